"""The log of what serves an endpoint: asked for by the page, read at the provider by a worker, shown when it is there.

Where an endpoint has failed its overview asks by itself.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import phases
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoints as endpoint_pages
from frontend.views import products
from frontend.views.products import ENDPOINTS
from tenants.errors import Conflict, NotVisible
from tenants.models import Endpoint, EndpointLog
from tenants.operations import endpoint_logs
from tenants.states import Reason
from tenants.transactions import reading

TAIL: Final = 200
TROUBLE: Final = frozenset(
    {Reason.UNHEALTHY, Reason.PROVIDER_ERROR, Reason.LOST, Reason.HOST_LOST, Reason.STEP_OVERDUE}
)
"""Reasons of a condition with which one wants to read the log, though it has not failed for good."""


@page("endpoints.log")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show the log's own page; it asks by itself."""
    row = products.find(ENDPOINTS, request, name)
    values = endpoint_pages.frame(request, row, "logs") | offered(request, row) | {"log_is_page": True}
    return render(request, "frontend/pages/endpoints/logs.html", values)


@page("endpoints.log", methods=("POST",))
def ask(request: PageRequest, name: str) -> HttpResponse:
    """Ask for the newest lines."""
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
    try:
        asked = endpoint_logs.ask(endpoint=row, tail=TAIL, actor=request.actor, now=request.now)
    except Conflict as error:
        if not request.htmx:
            messages.error(request, error.detail)
            return products.back(ENDPOINTS, request, row, "logs")
        return _answer(request, row, None, error.detail)
    return _answer(request, row, asked, "") if request.htmx else products.back(ENDPOINTS, request, row, "logs")


@page("endpoints.read_log")
def part(request: PageRequest, name: str, log: UUID) -> HttpResponse:
    """Return lines that were asked for, or that they are still being read."""
    row: Endpoint = products.find(ENDPOINTS, request, name)
    try:
        return _answer(request, row, endpoint_logs.read(row, log), "")
    except NotVisible:
        return _answer(request, row, None, _("What was read is gone after five minutes. Read it again."))


def offered(request: PageRequest, row: Endpoint) -> dict[str, Any]:
    """Return what a page needs that holds a log: where to ask, and the newest answer there is."""
    newest = EndpointLog.objects.filter(endpoint=row).order_by("-asked_at").first()
    return {"log": newest, "log_error": newest.error if newest is not None else "", **_urls(request, row, newest)}


def opens(row: Endpoint, request: PageRequest) -> bool:
    """Whether the log opens by itself: something is wrong, something may run that has one, and he may read it."""
    if row.boundary_id is None or row.deletion_requested_at is not None or not request.portal.can_write:
        return False
    wrong = any(one["status"] == "False" and one["reason"] in TROUBLE for one in row.conditions)
    return wrong or phases.look(row.phase).page_state == "failed"


def _urls(request: PageRequest, row: Endpoint, log: EndpointLog | None) -> dict[str, str]:
    where = {"tenant": request.tenant.name, "name": row.short_id}
    found = {"log_ask_url": reverse("frontend:endpoint-log-ask", kwargs=where), "log_part_url": ""}
    if log is not None:
        found["log_part_url"] = reverse("frontend:endpoint-log", kwargs={**where, "log": log.pk})
    return found


def _answer(request: PageRequest, row: Endpoint, log: EndpointLog | None, error: str) -> HttpResponse:
    values = {
        "row": row,
        "log": log,
        "log_error": error or (log.error if log is not None else ""),
        "can_write": request.portal.can_write,
    }
    return render(request, "frontend/pages/endpoints/_log.html", values | _urls(request, row, log))
