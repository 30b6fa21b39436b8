"""Renewing many at once: choose, see what it would cost and whether it fits, confirm, see what came of each.

The preview runs the very operation of each and rolls it back; the deed is one operation per object, so one that is
refused does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

from django.core import signing
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.forms import wishes
from frontend.kernel import outlook, plans, twins, words
from frontend.kernel.page import PageRequest, page
from frontend.views import products
from tenants.errors import ControlPlaneError, NotVisible
from tenants.operations import allocations
from tenants.operations.pricing import all_prices, currency
from tenants.pricing import PriceList
from tenants.states import Phase
from tenants.transactions import reading

MOST: Final = 50
"""Renewed at once."""
SOON: Final = timedelta(days=14)
SALT: Final = "tenantry.renewals"
REMEMBERED_S: Final = 86400
NOUNS: Final = {noun.word: noun for noun in (products.ENDPOINTS, products.MACHINES, products.NAMESPACES)}
OVER: Final = (Phase.DELETING.value, Phase.RELEASED.value)


@dataclass(frozen=True, slots=True)
class Line:
    """What renewing one would do."""

    row: Any
    pick: str
    url: str
    size: str
    until: datetime | None
    """Its new end; None where it is refused."""
    why_not: str
    adds: Decimal | None
    """Cost of the time that it gets; None where something has no price."""


@page("allocations.renew", methods=("GET", "POST"), own_blocks=True)
def renew(request: PageRequest) -> HttpResponse:
    """Show what renewing the chosen would do (GET), do it (POST)."""
    given = request.POST if request.method == "POST" else request.GET
    days = wishes.number(given.get("days"), wishes.DEFAULT_DAYS, least=1, most=1826)
    with reading(request.actor):
        rows = _chosen(request, given)
        prices = all_prices()
        money = currency()
    if request.method == "POST":
        return _done(request, rows, days)
    planned = [_planned(request, row, days) for row in rows]
    with reading(request.actor):
        lines = [_line(request, row, until, why_not, prices) for row, until, why_not in planned]
    fitting = [line for line in lines if not line.why_not]
    adds = [line.adds for line in fitting]
    values = {
        "lines": lines,
        "fitting": len(fitting),
        "empty": not lines,
        "was_chosen": bool(request.GET.getlist("pick")),
        "days": str(days),
        "choices": [
            {"value": str(n), "label": ngettext("%(n)d day", "%(n)d days", n) % {"n": n}}
            for n in sorted({*wishes.DAYS, days})
        ],
        "adds": sum((each for each in adds if each is not None), start=Decimal(0)),
        "is_priced": all(each is not None for each in adds),
        "currency": money,
        "back_url": reverse("frontend:home-of", kwargs={"tenant": request.tenant.name}),
        "twins": _twins(request, fitting, days),
        "columns": [
            {"key": "pick", "label": _("Renew it"), "hidden_label": True},
            {"key": "name", "label": _("Name")},
            {"key": "now", "label": _("Ends now")},
            {"key": "then", "label": _("Ends then")},
            {"key": "adds", "label": _("Cost of the added time"), "numeric": True},
            {"key": "verdict", "label": _("Limits and rules")},
        ],
    }
    return render(request, "frontend/pages/renewals/plan.html", values)


def _chosen(request: PageRequest, given: QueryDict) -> list[Any]:
    """Return the chosen products, those that end within 14 days where none is named; soonest first."""
    picks = given.getlist("pick")
    found: list[Any] = []
    for word, noun in NOUNS.items():
        rows = products.rows_of(noun, request).filter(released_at__isnull=True, deletion_requested_at__isnull=True)
        if picks or request.method == "POST":
            rows = rows.filter(short_id__in=[text.partition(":")[2] for text in picks if text.startswith(f"{word}:")])
        else:
            rows = rows.filter(allocation__expires_at__lt=request.now + SOON)
        found += rows.order_by("allocation__expires_at", "pk")[:MOST]
    found.sort(key=lambda row: (row.allocation.expires_at is None, row.allocation.expires_at or request.now))
    return found[:MOST]


def _planned(request: PageRequest, row: Any, days: int) -> tuple[Any, datetime | None, str]:
    """Return a row, its new end, and why not; outside any read block."""
    end = row.allocation.expires_at
    if end is None:
        return row, None, _("Its term begins when it is ready; nothing to renew before.")
    if request.now + timedelta(days=days) < end:
        return row, None, _("It ends later than that already; choose a longer term.")
    try:
        return row, plans.planned(lambda: _renewed(request, row, days), lambda done: done.expires_at), ""
    except ControlPlaneError as error:
        return row, None, words.plain(error.detail)


def _line(request: PageRequest, row: Any, until: datetime | None, why_not: str, prices: PriceList) -> Line:
    return Line(
        row=row,
        pick=f"{_word(row)}:{row.short_id}",
        url=reverse(f"frontend:{_word(row)}", kwargs={"tenant": request.tenant.name, "name": row.short_id}),
        size=products.size_of(row.allocation),
        until=until,
        why_not=why_not,
        adds=_cost(row, until, prices, now=request.now) if until is not None else None,
    )


def _renewed(request: PageRequest, row: Any, days: int) -> Any:
    return allocations.renew(allocation=row.allocation, duration_s=days * 86400, actor=request.actor, now=request.now)


def _twins(request: PageRequest, lines: Sequence[Line], days: int) -> list[dict[str, str]]:
    """Return the same deed for a shell, one line per object; nothing where nothing can be renewed."""
    name = request.tenant.name
    if not lines:
        return []
    return twins.pair(
        "\n".join(f"tenantry renew {_word(line.row)}/{line.row.name} --for {days}d --tenant {name}" for line in lines),
        "\n".join(
            twins.api(
                "POST",
                f"tenants/{name}/allocations/{line.row.allocation.short_id}/renew",
                {"duration_s": days * 86400},
            )
            for line in lines
        ),
    )


def _word(row: Any) -> str:
    return type(row).__name__.lower()


def _cost(row: Any, until: datetime, prices: PriceList, *, now: datetime) -> Decimal | None:
    """Return the price of the time between its present and its new end."""
    start = max(now, row.allocation.expires_at or now)
    provider = row.boundary.provider if row.boundary is not None else None
    place = {"provider": provider.name, "site": provider.site} if provider is not None else {}
    demand = {key: int(amount) for key, amount in row.allocation.demand.items()}
    return outlook.price(demand, start, max(start, until), prices=prices, **place).to_the_end


def _done(request: PageRequest, rows: Sequence[Any], days: int) -> HttpResponse:
    """Renew one after the other and go to what came of it."""
    came: list[tuple[str, str, str, str]] = []
    for row in rows:
        try:
            end = _renewed(request, row, days).expires_at
            came.append((_word(row), row.short_id, end.isoformat() if end is not None else "", ""))
        except ControlPlaneError as error:
            came.append((_word(row), row.short_id, "", words.plain(error.detail)[:300]))
    done = signing.dumps({"tenant": str(request.tenant.pk), "came": came}, salt=SALT, compress=True)
    url = reverse("frontend:renew-done", kwargs={"tenant": request.tenant.name})
    return HttpResponseRedirect(f"{url}?{urlencode({'done': done})}")


def _said(request: PageRequest) -> dict[str, Any]:
    """Return what the address says of a renewal of this tenant. Raises `NotVisible` for one that we did not write."""
    if "done" not in request.GET:
        return {"came": []}
    try:
        said: dict[str, Any] = signing.loads(request.GET["done"], salt=SALT, max_age=REMEMBERED_S)
    except signing.BadSignature as error:
        raise NotVisible from error
    if said["tenant"] != str(request.tenant.pk):
        raise NotVisible
    return said


@page("allocations.renew")
def done(request: PageRequest) -> HttpResponse:
    """Show what came of renewing many."""
    said = _said(request)
    names: dict[str, str] = {}
    for word, noun in NOUNS.items():
        keys = [key for kind, key, _until, _why in said["came"] if kind == word]
        names |= dict(products.rows_of(noun, request).filter(short_id__in=keys).values_list("short_id", "name"))
    lines = [
        {
            "name": names.get(key, key),
            "url": reverse(f"frontend:{kind}", kwargs={"tenant": request.tenant.name, "name": key}),
            "until": datetime.fromisoformat(until) if until else None,
            "why_not": why,
        }
        for kind, key, until, why in said["came"]
    ]
    refused = sum(1 for line in lines if line["why_not"])
    values = {
        "lines": lines,
        "refused": refused,
        "renewed": len(lines) - refused,
        "empty": not lines,
        "back_url": reverse("frontend:home-of", kwargs={"tenant": request.tenant.name}),
        "columns": [
            {"key": "name", "label": _("Name")},
            {"key": "came", "label": _("What came of it")},
            {"key": "until", "label": _("Until")},
        ],
    }
    return render(request, "frontend/pages/renewals/done.html", values)
