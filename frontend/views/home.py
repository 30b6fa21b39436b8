"""Home of a tenant: what needs you, what is being built, what ends soon, what is idle, quota, spend; the way there.

A constant number of queries, each over an index of the tenant; what lives is looked at once for all cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.db import connection
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
    living = _living(request)
    lines = _lines(request, living, money)
    day = sum(
        (number * products.day_of(*like, money.prices, now=request.now) for like, number in living.like), Decimal(0)
    )
    idle, all_looked_at = _idle(request)
    idle_day = products.days_price(_endpoints(request, idle), money.prices, now=request.now)[1]
    budget = Budget.objects.filter(tenant=request.tenant).first()
    month = bill.month_so_far(request.tenant, now=request.now) if budget is not None else None
    start, end = billed.this_month(request.now)
    values: dict[str, Any] = {
        "needs": _needs(request, _card(living, "trouble", lines)),
        "building": _card(living, "building", lines),
        "soon": _card(living, "soon", lines),
        "soon_more": max(0, living.soon - SHOWN),
        "idle": _last_called(idle, request, money),
        "idle_more": max(0, len(idle) - SHOWN),
        "idle_day": idle_day if all_looked_at else None,  # the sum of a part would be wrong
        "bars": _bars(request),
        "running": _card(living, "running", lines),
        "count": sum(number for _like, number in living.like),
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


@dataclass(frozen=True, slots=True)
class Living:
    """What lives in the tenant, of all kinds together: counted, and the first of each card."""

    cards: Mapping[str, Sequence[tuple[str, UUID]]]
    """Card → kind and id, newest first, or by their end."""
    like: Sequence[tuple[tuple[Mapping[str, Any], str, str], int]]
    """(demand, provider, site) → how many have the same."""
    soon: int
    """How many end soon."""


_LIVING: Final = """
WITH living AS (
  SELECT 'endpoint' AS kind, p.id, p.phase, p.created_at, p.boundary_id, a.demand, a.expires_at
  FROM tenants_endpoint p JOIN tenants_allocation a ON a.id = p.allocation_id
  WHERE p.tenant_id = %(tenant)s AND p.released_at IS NULL
  UNION ALL
  SELECT 'machine', p.id, p.phase, p.created_at, p.boundary_id, a.demand, a.expires_at
  FROM tenants_machine p JOIN tenants_allocation a ON a.id = p.allocation_id
  WHERE p.tenant_id = %(tenant)s AND p.released_at IS NULL
  UNION ALL
  SELECT 'namespace', p.id, p.phase, p.created_at, p.boundary_id, a.demand, a.expires_at
  FROM tenants_namespace p JOIN tenants_allocation a ON a.id = p.allocation_id
  WHERE p.tenant_id = %(tenant)s AND p.released_at IS NULL
),
alike AS (SELECT demand, boundary_id, count(*) AS number FROM living GROUP BY 1, 2),
trouble AS (SELECT kind, id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS place FROM living
            WHERE phase = ANY (%(trouble)s) ORDER BY place LIMIT 2 * %(shown)s),
building AS (SELECT kind, id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS place FROM living
             WHERE phase = ANY (%(building)s) ORDER BY place LIMIT %(shown)s),
running AS (SELECT kind, id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS place FROM living
            WHERE phase = %(ready)s ORDER BY place LIMIT %(shown)s),
soon AS (SELECT kind, id, row_number() OVER (ORDER BY expires_at, id) AS place, count(*) OVER () AS number FROM living
         WHERE expires_at < %(soon)s AND phase <> %(deleting)s ORDER BY place LIMIT %(shown)s)
SELECT 'like' AS card, NULL AS kind, NULL AS id, 0 AS place, l.number, l.demand, r.name, r.site
FROM alike l LEFT JOIN tenants_boundary b ON b.id = l.boundary_id LEFT JOIN tenants_provider r ON r.id = b.provider_id
UNION ALL SELECT 'trouble', kind, id, place, 0, NULL, NULL, NULL FROM trouble
UNION ALL SELECT 'building', kind, id, place, 0, NULL, NULL, NULL FROM building
UNION ALL SELECT 'running', kind, id, place, 0, NULL, NULL, NULL FROM running
UNION ALL SELECT 'soon', kind, id, place, number, NULL, NULL, NULL FROM soon
ORDER BY 1, 4
"""
"""One look at what lives, for all cards: each of them alone would go through it again."""


def _living(request: PageRequest) -> Living:
    values: dict[str, Any] = {
        "tenant": request.tenant.pk,
        "trouble": list(TROUBLE),
        "building": list(BUILDING),
        "ready": Phase.READY.value,
        "deleting": Phase.DELETING.value,
        "soon": request.now + SOON,
        "shown": SHOWN,
    }
    with connection.cursor() as cursor:
        cursor.execute(_LIVING, values)
        rows = cursor.fetchall()
    cards: dict[str, list[tuple[str, UUID]]] = {}
    like: list[tuple[tuple[Mapping[str, Any], str, str], int]] = []
    soon = 0
    for card, kind, key, _place, number, demand, provider, site in rows:
        if card == "like":
            like.append(
                ((json.loads(demand) if isinstance(demand, str) else demand, provider or "", site or ""), number)
            )
            continue
        cards.setdefault(card, []).append((kind, key))
        if card == "soon":
            soon = number
    return Living(cards, like, soon)


def _lines(request: PageRequest, living: Living, money: products.Money) -> dict[UUID, products.Row]:
    """Return the lines of all cards by id; one query for each kind that is there."""
    found: dict[UUID, products.Row] = {}
    for noun in NOUNS:
        keys = {key for card in living.cards.values() for kind, key in card if kind == noun.word}
        if keys:
            rows = list(products.rows_of(noun, request).filter(pk__in=keys))
            found |= {line.product.pk: line for line in products.shown(noun, rows, request, money)}
    return found


def _card(living: Living, name: str, lines: Mapping[UUID, products.Row]) -> list[products.Row]:
    return [lines[key] for _kind, key in living.cards.get(name, ()) if key in lines]


def _endpoints(request: PageRequest, keys: Sequence[UUID]) -> QuerySet[Any]:
    return products.rows_of(products.ENDPOINTS, request).filter(pk__in=keys)


def _idle(request: PageRequest) -> tuple[list[UUID], bool]:
    """Return ready endpoints that nobody called for a week, and whether all were looked at: the longest ready are."""
    before = request.now - IDLE
    ready = products.rows_of(products.ENDPOINTS, request).filter(released_at__isnull=True)
    ready = ready.filter(phase=Phase.READY.value, ready_at__lt=before)
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


def _needs(request: PageRequest, trouble: Sequence[products.Row]) -> list[Need]:
    found = [
        Need(
            line.product.name,
            words.plain(next((c["message"] for c in line.product.conditions if c["status"] == "False"), "")),
            line.url,
            _("Look at it"),
        )
        for line in trouble
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
