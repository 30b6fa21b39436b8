"""Help: searchable, from the product's own data, for visitors as well."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _

from frontend.kernel import topics
from frontend.kernel.page import PageRequest, page
from tenants.errors import NotVisible


@page("errors.read")
def listed(request: PageRequest) -> HttpResponse:
    """List the topics, or those that hold the words of `q`."""
    text = request.GET.get("q", "").strip()[:100]
    found = topics.matching(text)
    groups = [
        {"title": str(title), "topics": mine}
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
    values = {"topic": topic, "group": str(topics.GROUPS[topic.group])}
    return render(request, "frontend/pages/help/show.html", values)
