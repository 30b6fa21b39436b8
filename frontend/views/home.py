"""Home of a tenant: what needs you, what is being built, what ends soon, what is idle, quota, spend; the way there.

A constant number of queries, each over an index of the tenant; what lives is looked at once for all cards.
"""

from __future__ import annotations

import functools
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

from frontend.kernel import bill, live, outlook, portal, words
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
        "live_url": live.address("frontend:live-tenant", request, tenant=request.tenant.name),
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


_NEWEST: Final = """
SELECT '{card}' AS card, x.* FROM (
  SELECT '{word}' AS kind, id, created_at FROM {table}
  WHERE tenant_id = %(tenant)s AND released_at IS NULL AND phase = ANY (%({card})s)
  ORDER BY created_at DESC, id DESC LIMIT %(most)s) x
"""
_ENDING: Final = """
SELECT '{word}' AS kind, p.id, a.expires_at FROM tenants_allocation a JOIN {table} p ON p.allocation_id = a.id
WHERE a.tenant_id = %(tenant)s AND a.released_at IS NULL AND a.expires_at < %(soon)s
  AND p.released_at IS NULL AND p.phase <> %(deleting)s
"""
_ALIKE: Final = """
SELECT a.demand, r.name, r.site, sum(a.number)::int FROM (
  SELECT demand, boundary_id, count(*) AS number FROM tenants_allocation
  WHERE tenant_id = %(tenant)s AND released_at IS NULL AND product_kind = ANY (%(kinds)s)
  GROUP BY 1, 2) a
LEFT JOIN tenants_boundary b ON b.id = a.boundary_id LEFT JOIN tenants_provider r ON r.id = b.provider_id
GROUP BY 1, 2, 3
"""
"""What is paid for is capacity, so allocations are looked at, not what stands on them."""


@functools.cache
def _cards_query() -> str:
    """Return the statement of the cards: each takes its first lines by an index of its table."""
    tables = [(noun.word, noun.model._meta.db_table) for noun in NOUNS]
    newest = [
        _NEWEST.format(card=card, word=word, table=table)
        for card in ("trouble", "building", "running")
        for word, table in tables
    ]
    ending = " UNION ALL ".join(_ENDING.format(word=word, table=table) for word, table in tables)
    return (
        f"WITH newest AS ({' UNION ALL '.join(newest)}), ending AS ({ending}) "  # noqa: S608 - our own names only
        "SELECT card, kind, id, row_number() OVER (PARTITION BY card ORDER BY created_at DESC, id DESC) AS place, 0 "
        "FROM newest UNION ALL (SELECT 'soon', kind, id, row_number() OVER (ORDER BY expires_at, id) AS place, "
        "count(*) OVER () FROM ending ORDER BY place LIMIT %(shown)s) ORDER BY 1, 4"
    )


def _living(request: PageRequest) -> Living:
    values: dict[str, Any] = {
        "tenant": request.tenant.pk,
        "trouble": list(TROUBLE),
        "building": list(BUILDING),
        "running": [Phase.READY.value],
        "deleting": Phase.DELETING.value,
        "soon": request.now + SOON,
        "shown": SHOWN,
        "most": 2 * SHOWN,
        "kinds": [noun.word for noun in NOUNS],
    }
    cards: dict[str, list[tuple[str, UUID]]] = {}
    soon = 0
    with connection.cursor() as cursor:
        cursor.execute(_cards_query(), values)
        for card, kind, key, place, number in cursor.fetchall():
            if place <= (2 * SHOWN if card == "trouble" else SHOWN):
                cards.setdefault(card, []).append((kind, key))
            soon = max(soon, number)
        cursor.execute(_ALIKE, values)
        like = [
            ((json.loads(demand) if isinstance(demand, str) else demand, provider or "", site or ""), number)
            for demand, provider, site, number in cursor.fetchall()
        ]
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
