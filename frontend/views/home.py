"""Home of a tenant: what needs you, what is being built, what ends soon, what is idle, quota, spend; the way there.

A constant number of queries, each over an index of the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

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
from tenants.policies import ROUTES
from tenants.states import Phase, RequestState, Role

SHOWN: Final = 6
"""Lines of each card; the list has the rest."""
MOST: Final = 200
"""Endpoints that are looked at for idleness."""
SOON: Final = timedelta(days=14)
IDLE: Final = timedelta(days=7)
"""Ready for so long without a call is idle."""
BUILDING: Final = (Phase.AWAITING_APPROVAL.value, Phase.WAITING.value, Phase.PROVISIONING.value)
TROUBLE: Final = (Phase.FAILED.value, Phase.DEGRADED.value, Phase.SUSPENDED.value)
NOUNS: Final = (products.ENDPOINTS, products.MACHINES, products.NAMESPACES)
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
    money = products.Money.read()
    parts = [products.days_price(_living(noun, request), money.prices, now=request.now) for noun in NOUNS]
    count, day = sum(number for number, _price in parts), sum((price for _number, price in parts), start=Decimal(0))
    idle, all_looked_at = _idle(request)
    idle_day = products.days_price(_endpoints(request, idle), money.prices, now=request.now)[1]
    ending = Q(allocation__expires_at__lt=request.now + SOON) & ~Q(phase=Phase.DELETING.value)
    soon_count = sum(_living(noun, request).filter(ending).count() for noun in NOUNS)
    budget = Budget.objects.filter(tenant=request.tenant).first()
    month = bill.month_so_far(request.tenant, now=request.now) if budget is not None else None
    start, end = billed.this_month(request.now)
    values: dict[str, Any] = {
        "needs": _needs(request, money),
        "building": _card(request, Q(phase__in=BUILDING), money),
        "soon": _card(request, ending, money, soonest=True),
        "soon_more": max(0, soon_count - SHOWN),
        "idle": _last_called(idle, request, money),
        "idle_more": max(0, len(idle) - SHOWN),
        "idle_day": idle_day if all_looked_at else None,  # the sum of a part would be wrong
        "bars": _bars(request),
        "running": _card(request, Q(phase=Phase.READY.value), money),
        "count": count,
        "day": day,
        "month": month,
        "days_30": day * 30,
        "pace": bill.pace(budget, month, start, end, now=request.now) if budget is not None and month else None,
        "can_budget": budget is None and access.allowed(request.actor, request.tenant, ROUTES["budgets.set"]),
        "currency": money.currency,
        "live_url": reverse("frontend:live-tenant", kwargs={"tenant": request.tenant.name}),
    }
    template = "_parts" if request.htmx else "show"
    response = render(request, f"frontend/pages/home/{template}.html", values)
    response.set_cookie(portal.TENANT_COOKIE, request.tenant.name, max_age=REMEMBERED_S, httponly=True, samesite="Lax")
    return response


def _living(noun: products.Noun, request: PageRequest) -> QuerySet[Any]:
    return products.rows_of(noun, request).filter(released_at__isnull=True)


def _card(
    request: PageRequest, which: Q, money: products.Money, *, soonest: bool = False, most: int = SHOWN
) -> list[products.Row]:
    """Return the first lines of what lives in the tenant, of all kinds together: newest first, or by their end."""
    order = ("allocation__expires_at", "pk") if soonest else ("-created_at", "-id")
    lines = []
    for noun in NOUNS:
        rows = list(_living(noun, request).filter(which).order_by(*order)[:most])
        lines += products.shown(noun, rows, request, money)
    if soonest:
        lines.sort(key=lambda line: line.product.allocation.expires_at or request.now)
    else:
        lines.sort(key=lambda line: line.product.created_at, reverse=True)
    return lines[:most]


def _endpoints(request: PageRequest, keys: Sequence[UUID]) -> QuerySet[Any]:
    return products.rows_of(products.ENDPOINTS, request).filter(pk__in=keys)


def _idle(request: PageRequest) -> tuple[list[UUID], bool]:
    """Return ready endpoints that nobody called for a week, and whether all were looked at: the longest ready are."""
    before = request.now - IDLE
    ready = _living(products.ENDPOINTS, request).filter(phase=Phase.READY.value, ready_at__lt=before)
    keys = list(ready.order_by("ready_at", "pk").values_list("pk", flat=True)[: MOST + 1])
    keys, all_looked_at = keys[:MOST], len(keys) <= MOST
    if not keys:
        return [], True
    used = set(
        EndpointUsage.objects.filter(
            tenant_id=request.tenant.pk, endpoint_id__in=keys, hour__gte=before, requests__gt=0
        )
        .values_list("endpoint_id", flat=True)
        .distinct()
    )
    return [key for key in keys if key not in used], all_looked_at


def _last_called(keys: Sequence[UUID], request: PageRequest, money: products.Money) -> list[dict[str, Any]]:
    """Return the first idle lines with the hour in which each was called last, None for never."""
    rows = list(_endpoints(request, keys[:SHOWN]).order_by("ready_at", "pk"))
    lines = products.shown(products.ENDPOINTS, rows, request, money)
    called = dict(
        EndpointUsage.objects.filter(tenant_id=request.tenant.pk, endpoint_id__in=keys[:SHOWN], requests__gt=0)
        .values_list("endpoint_id")
        .annotate(last=Max("hour"))
        .order_by("endpoint_id")
    )
    return [{"line": line, "last": called.get(line.product.pk)} for line in lines]


def _needs(request: PageRequest, money: products.Money) -> list[Need]:
    found = [
        Need(
            line.product.name,
            words.plain(next((c["message"] for c in line.product.conditions if c["status"] == "False"), "")),
            line.url,
            _("Look at it"),
        )
        for line in _card(request, Q(phase__in=TROUBLE), money, most=2 * SHOWN)
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
