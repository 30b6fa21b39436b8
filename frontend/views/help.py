"""Help: searchable, from the product's own data, for visitors as well."""

from __future__ import annotations

from typing import Final

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.kernel import topics
from frontend.kernel.page import PageRequest, page
from tenants.errors import NotVisible

FOLDED: Final = frozenset({"figure", "field", "reason", "error"})
"""Groups that are too long to stand open: the search finds their topics."""


@page("errors.read")
def listed(request: PageRequest) -> HttpResponse:
    """List the topics, or those that hold the words of `q`."""
    text = request.GET.get("q", "").strip()[:100]
    found = topics.matching(text)
    groups = [
        {
            "key": group,
            "title": str(title),
            "topics": mine,
            "folded": group in FOLDED and not text,
        }
        for group, title in topics.GROUPS.items()
        if (mine := [topic for topic in found if topic.group == group])
    ]
    side = [group for group in groups if group["key"] == "word" and not text]
    columns = [column for column in ([group for group in groups if group not in side], side) if column]
    query = {"name": "q", "value": text, "label": _("A word, a reason or an error code")}
    return render(request, "frontend/pages/help/list.html", {"columns": columns, "query": query})


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
        "pieces": _pieces(topic.text),
        "others": topics.related(topic),
        "breadcrumbs": [{"label": _("Help"), "url": reverse("frontend:help")}, {"label": topic.title, "url": ""}],
    }
    return render(request, "frontend/pages/help/show.html", values)


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Return a text in pieces, each with whether it is code: what stands between backticks."""
    return [(piece, bool(n % 2)) for n, piece in enumerate(text.split("`")) if piece]
