"""Home of a tenant: what needs you, what is being built, what ends soon, what is idle, quota, spend; the way there.

A constant number of queries, each over an index of the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from django.db.models import F, Max, Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from frontend.kernel import bill, outlook, portal, words
from frontend.kernel.page import PageRequest, page
from frontend.views import first, products
from tenants import access, billed
from tenants.models import Budget, EndpointUsage, Request
from tenants.operations import quotas
from tenants.operations.pricing import currency
from tenants.policies import ROUTES
from tenants.states import Phase, RequestState, Role

SHOWN: Final = 6
"""Lines of each card; the list has the rest."""
MOST: Final = 200
"""Rows of each kind that Home looks at; the lists show all."""
SOON: Final = timedelta(days=14)
IDLE: Final = timedelta(days=7)
"""Ready for so long without a call is idle."""
BUILDING: Final = (Phase.AWAITING_APPROVAL.value, Phase.WAITING.value, Phase.PROVISIONING.value)
TROUBLE: Final = (Phase.FAILED.value, Phase.DEGRADED.value, Phase.SUSPENDED.value)
REMEMBERED_S: Final = 365 * 86400


@page("who.read")
def landing(request: PageRequest) -> HttpResponse:
    """Send a person to what was just granted, else the home of his tenant, else his work, else the first steps."""
    tenant = request.portal.tenant
    opens = first.unopened(request) if tenant is not None else ""
    if opens:
        return HttpResponseRedirect(opens)
    if tenant is not None and request.portal.role:
        return HttpResponseRedirect(reverse("frontend:home-of", kwargs={"tenant": tenant.name}))
    work = [link.url for section in request.portal.rail for link in section.items if not link.url.startswith("/t/")]
    if work:
        return HttpResponseRedirect(work[0])
    if tenant is not None:
        return HttpResponseRedirect(reverse("frontend:home-of", kwargs={"tenant": tenant.name}))
    return HttpResponseRedirect(reverse("frontend:first"))


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that waits for the person."""

    title: str
    reason: str
    url: str
    action: str


@page("tenants.read")
def show(request: PageRequest) -> HttpResponse:
    """Show the home of one tenant."""
    lines = _lines(request)
    soon = [line for line in lines if _ends_soon(line, request)]
    soon.sort(key=lambda line: line.product.allocation.expires_at or request.now)
    idle = _idle(lines, request)
    nouns = (products.ENDPOINTS, products.MACHINES, products.NAMESPACES)
    count = sum(_living(noun, request).select_related(None).count() for noun in nouns)
    whole = count == len(lines)  # sums of a part would be wrong: then they are not shown
    day = sum((line.day for line in lines if line.day is not None), start=Decimal(0)) if whole else None
    budget = Budget.objects.filter(tenant=request.tenant).first()
    month = bill.month_so_far(request.tenant, now=request.now) if budget is not None else None
    start, end = billed.this_month(request.now)
    values: dict[str, Any] = {
        "needs": _needs(request, lines),
        "building": [line for line in lines if line.product.phase in BUILDING][:SHOWN],
        "soon": soon[:SHOWN],
        "soon_more": max(0, len(soon) - SHOWN),
        "idle": _last_called(idle[:SHOWN], request),
        "idle_more": max(0, len(idle) - SHOWN),
        "idle_day": sum((line.day for line in idle if line.day is not None), start=Decimal(0)) if whole else None,
        "bars": _bars(request),
        "running": [line for line in lines if line.product.phase == Phase.READY.value][:SHOWN],
        "count": count,
        "day": day,
        "month": month,
        "days_30": day * 30 if day is not None else None,
        "pace": bill.pace(budget, month, start, end, now=request.now) if budget is not None and month else None,
        "can_budget": budget is None and access.allowed(request.actor, request.tenant, ROUTES["budgets.set"]),
        "currency": currency(),
        "live_url": reverse("frontend:live-tenant", kwargs={"tenant": request.tenant.name}),
    }
    template = "_parts" if request.htmx else "show"
    response = render(request, f"frontend/pages/home/{template}.html", values)
    response.set_cookie(portal.TENANT_COOKIE, request.tenant.name, max_age=REMEMBERED_S, httponly=True, samesite="Lax")
    return response


def _living(noun: products.Noun, request: PageRequest) -> QuerySet[Any]:
    return products.rows_of(noun, request).filter(released_at__isnull=True)


def _lines(request: PageRequest) -> list[products.Row]:
    """Return what lives in the tenant, newest first, up to a few hundred of each kind."""
    found: list[products.Row] = []
    for noun in (products.ENDPOINTS, products.MACHINES, products.NAMESPACES):
        rows = _living(noun, request).order_by("-created_at", "-id")
        found += products.shown(noun, list(rows[:MOST]), request)
    return sorted(found, key=lambda line: line.product.created_at, reverse=True)


def _ends_soon(line: products.Row, request: PageRequest) -> bool:
    end = line.product.allocation.expires_at
    return end is not None and end - request.now < SOON and line.product.phase != Phase.DELETING.value


def _idle(lines: Sequence[products.Row], request: PageRequest) -> list[products.Row]:
    """Return ready endpoints that nobody called for a week."""
    before = request.now - IDLE
    ready = [
        line
        for line in lines
        if line.product.phase == Phase.READY.value
        and type(line.product).__name__ == "Endpoint"
        and line.product.ready_at is not None
        and line.product.ready_at < before
    ]
    if not ready:
        return []
    keys = [line.product.pk for line in ready]
    used = set(
        EndpointUsage.objects.filter(
            tenant_id=request.tenant.pk, endpoint_id__in=keys, hour__gte=before, requests__gt=0
        )
        .values_list("endpoint_id", flat=True)
        .distinct()
    )
    return [line for line in ready if line.product.pk not in used]


def _last_called(lines: Sequence[products.Row], request: PageRequest) -> list[dict[str, Any]]:
    """Return idle lines with the hour in which each was called last, None for never."""
    called = dict(
        EndpointUsage.objects.filter(
            tenant_id=request.tenant.pk, endpoint_id__in=[line.product.pk for line in lines], requests__gt=0
        )
        .values_list("endpoint_id")
        .annotate(last=Max("hour"))
        .order_by("endpoint_id")
    )
    return [{"line": line, "last": called.get(line.product.pk)} for line in lines]


def _needs(request: PageRequest, lines: Sequence[products.Row]) -> list[Need]:
    found = [
        Need(
            line.product.name,
            words.plain(next((c["message"] for c in line.product.conditions if c["status"] == "False"), "")),
            line.url,
            _("Look at it"),
        )
        for line in lines
        if line.product.phase in TROUBLE
    ]
    if request.actor.role_on(request.tenant.path) == Role.OWNER:
        waiting = (
            Request.objects.filter(tenant=request.tenant, state=RequestState.SUBMITTED.value)
            .filter(stages__done_at__isnull=True, stages__decider="tenant-owner")
            .filter(~Q(requester_id=request.actor.person_id))
            .annotate(order=F("stages__order"))
            .order_by("created_at")[:SHOWN]
        )
        url = _inbox()
        found += [
            Need(_("Request %(id)s") % {"id": row.short_id}, row.reason, url, _("Decide")) for row in waiting if url
        ]
    return found[: SHOWN * 2]


def _inbox() -> str:
    try:
        return reverse("frontend:inbox")
    except NoReverseMatch:
        return ""


def _bars(request: PageRequest) -> list[Any]:
    """Return a quota bar per GPU dimension that the tenant may hold or holds."""
    dimensions = [
        name for name in quotas.dimensions_of(request.tenant) if name.startswith("gpu.") and name.endswith(".slices")
    ]
    levels = quotas.position(request.tenant, dimensions) if dimensions else ()
    found = [outlook.line_of(levels, dimension) for dimension in dimensions]
    return [line for line in found if line.limit or line.used or line.pending]
