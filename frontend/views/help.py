"""Help: searchable, from the product's own data, for visitors as well."""

from __future__ import annotations

from typing import Final

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.kernel import topics
from frontend.kernel.page import PageRequest, page
from tenants.errors import NotVisible

FOLDED: Final = frozenset({"field", "error"})
"""Groups that are too long to stand open: the search finds their topics."""


@page("errors.read")
def listed(request: PageRequest) -> HttpResponse:
    """List the topics, or those that hold the words of `q`."""
    text = request.GET.get("q", "").strip()[:100]
    found = topics.matching(text)
    groups = [
        {
            "title": str(title),
            "topics": mine,
            "count": numbers.number(len(mine)),
            "folded": group in FOLDED and not text,
        }
        for group, title in topics.GROUPS.items()
        if (mine := [topic for topic in found if topic.group == group])
    ]
    query = {"name": "q", "value": text, "label": _("A word, a reason or an error code")}
    return render(request, "frontend/pages/help/list.html", {"groups": groups, "query": query})


@page("errors.read")
def show(request: PageRequest, code: str) -> HttpResponse:
    """Show one topic. Raises `NotVisible`."""
    topic = topics.named(code)
    if topic is None:
        raise NotVisible
    values = {
        "topic": topic,
        "group": str(topics.GROUPS[topic.group]),
        "code": topic.code if topic.group == "error" else "",
    }
    return render(request, "frontend/pages/help/show.html", values)
