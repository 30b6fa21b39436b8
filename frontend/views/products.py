"""What endpoints, machines and namespaces share: their lists, the frame of their pages, renewing, deleting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy
from django.utils.translation import ngettext

from frontend.design import phases, resting
from frontend.forms import wishes
from frontend.kernel import lists, live, story, strips
from frontend.kernel.page import PageRequest
from tenants import access, pricing, queries
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.models import Allocation, Endpoint, Machine, Namespace
from tenants.operations import allocations, endpoints, machines, namespaces
from tenants.operations.pricing import all_prices, currency
from tenants.states import Phase, ServiceClass
from tenants.transactions import reading

Product = Endpoint | Machine | Namespace
LIVE_PHASES: Final = tuple(phase for phase in Phase if phase is not Phase.RELEASED)


@dataclass(frozen=True, slots=True)
class Noun:
    """One of the three products."""

    model: type[Any]
    word: str
    """`endpoint`, `machine` or `namespace`: URL names and template folders follow it."""
    title: Promise
    """Of its list."""
    icon: str
    new: Promise
    none: Promise
    meaning: Promise
    """What one is, for somebody who has none."""

    @property
    def plural(self) -> str:
        """Return the word of its list."""
        return f"{self.word}s"


ENDPOINTS: Final = Noun(
    Endpoint,
    "endpoint",
    title=_lazy("Endpoints"),
    icon="radio-tower",
    new=_lazy("New endpoint"),
    none=_lazy("No endpoint yet"),
    meaning=_lazy("An endpoint is a model behind an address of its own. Deploy one: everything is filled in."),
)
MACHINES: Final = Noun(
    Machine,
    "machine",
    title=_lazy("Machines"),
    icon="monitor",
    new=_lazy("New machine"),
    none=_lazy("No machine yet"),
    meaning=_lazy("A machine is a VM with a GPU or a part of one, with SSH."),
)
NAMESPACES: Final = Noun(
    Namespace,
    "namespace",
    title=_lazy("Namespaces"),
    icon="box",
    new=_lazy("New namespace"),
    none=_lazy("No namespace yet"),
    meaning=_lazy("A namespace holds your own workloads on GPUs of a cluster."),
)
DELETE: Final[Mapping[str, Any]] = {
    "endpoint": lambda row, **who: endpoints.delete(endpoint=row, **who),
    "machine": lambda row, **who: machines.delete(machine=row, **who),
    "namespace": lambda row, **who: namespaces.delete(namespace=row, **who),
}


def rows_of(noun: Noun, request: PageRequest) -> QuerySet[Any]:
    """Return the products of the request's tenant, with what every page of them shows."""
    rows = access.scoped(noun.model, request.actor, tenant=request.tenant)
    rows = rows.select_related("tenant", "allocation", "boundary__provider")
    return rows.select_related("revision__model") if noun is ENDPOINTS else rows


def find(noun: Noun, request: PageRequest, name: str) -> Any:
    """Return one product by name, short id or id. Raises `NotVisible`."""
    return access.find(rows_of(noun, request), name)


# --- lists ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list."""

    product: Product
    url: str
    size: str
    place: str
    simulated: bool
    day: Decimal | None
    currency: str


def listed(noun: Noun, request: PageRequest) -> HttpResponse:
    """Answer the list of one noun: filters in the address, pages by key, export of all that the filters show."""
    rows = filtered(noun, request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(noun, request, rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""))
    more = ""
    if found.after:
        query = request.GET.copy()
        query["after"] = found.after
        more = f"?{query.urlencode()}"
    plain = {key: value for key, value in request.GET.items() if key in {"q", "phase"} and value}
    first = f"?{urlencode(plain)}" if not found.is_first else ""
    values = {
        "rows": shown(noun, found.rows, request),
        "noun": noun,
        "live_url": live.address("frontend:live-tenant", request, tenant=request.tenant.name),
        "new_url": _new_url(noun, request) if request.portal.can_write else "",
        "more_url": more,
        "previous_url": first or (request.path if not found.is_first else ""),
        "query": {"name": "q", "value": request.GET.get("q", ""), "label": _("Name")},
        "fields": [_phase_filter(request.GET.get("phase", ""))],
        "active": _chips(request),
        "clear_url": request.path,
        "is_filtered": bool(plain),
        "empty": not found.rows,
        "can_pick": request.portal.can_write,
        "shows_model": noun is ENDPOINTS,
        "columns": [
            *([{"key": "pick", "label": _("Choose"), "hidden_label": True}] if request.portal.can_write else []),
            {"key": "name", "label": _("Name")},
            {"key": "phase", "label": _("State")},
            *([{"key": "model", "label": _("Model")}] if noun is ENDPOINTS else []),
            {"key": "size", "label": _("Size")},
            {"key": "place", "label": _("Where")},
            {"key": "day", "label": _("Cost a day"), "numeric": True},
            {"key": "until", "label": _("Until")},
        ],
        "count": _counted(rows, found),
    }
    return render(request, f"frontend/pages/products/{'_table' if request.htmx else 'list'}.html", values)


def _new_url(noun: Noun, request: PageRequest) -> str:
    return reverse(f"frontend:new-{noun.word}", kwargs={"tenant": request.tenant.name})


def filtered(noun: Noun, request: PageRequest) -> QuerySet[Any]:
    """Return the rows that the address asks for."""
    rows = rows_of(noun, request)
    phase = request.GET.get("phase", "")
    if phase in {each.value for each in Phase}:
        rows = rows.filter(phase=phase)
    else:
        rows = rows.filter(released_at__isnull=True)
    if text := request.GET.get("q", "").strip()[:60]:
        rows = rows.filter(name__icontains=text)
    return rows


@dataclass(frozen=True, slots=True)
class Money:
    """All prices, and the currency they are in; read once for a page."""

    prices: pricing.PriceList
    currency: str

    @classmethod
    def read(cls) -> Money:
        """Read both."""
        return cls(all_prices(), currency())


def shown(noun: Noun, rows: Sequence[Any], request: PageRequest, money: Money | None = None) -> list[Row]:
    """Return the lines of rows; prices are read once, here where they are not given."""
    money = money or Money.read()
    days: dict[tuple[Any, ...], Decimal | None] = {}  # many rows ask for the same at the same place

    def day(row: Product) -> Decimal | None:
        place = row.boundary.provider_id if row.boundary is not None else None
        key = (place, *sorted(row.allocation.demand.items()))
        if key not in days:
            days[key] = day_price(row, money.prices, now=request.now)
        return days[key]

    folder = reverse(f"frontend:{noun.plural}", kwargs={"tenant": request.tenant.name})
    return [
        Row(
            product=row,
            url=f"{folder}/{row.name}",
            size=size_of(row.allocation),
            place=f"{row.boundary.provider.name}, {row.boundary.provider.site}" if row.boundary else "",
            simulated=bool(row.boundary and row.boundary.provider.capabilities.get("simulated")),
            day=day(row),
            currency=money.currency,
        )
        for row in rows
    ]


def size_of(allocation: Allocation) -> str:
    """Return what it has of GPUs, in words."""
    units = allocation.spec.get("units", [])
    if not units or not units[0].get("gpu"):
        return "--"
    gpu = units[0]["gpu"]
    name = f"{gpu['product']} {gpu['profile']}" if gpu["profile"] else gpu["product"]
    count = len(units) * (1 if gpu["profile"] else int(gpu["count"]))
    return name if count == 1 else f"{count} × {name}"


def day_price(row: Product, known: pricing.PriceList, *, now: datetime) -> Decimal | None:
    """Return what it costs a day at present prices, None where something has none."""
    provider = row.boundary.provider if row.boundary is not None else None
    place = (provider.name, provider.site) if provider else ("", "")
    return _day(row.allocation.demand, place, known, now=now)


def days_price(rows: QuerySet[Any], known: pricing.PriceList, *, now: datetime) -> tuple[int, Decimal]:
    """Return how many they are and what they cost a day together; what has no price counts nothing. One statement."""
    like = ("allocation__demand", "boundary__provider__name", "boundary__provider__site")
    count, total = 0, Decimal(0)
    for demand, provider, site, number in rows.order_by().values_list(*like).annotate(number=Count("pk")):
        count += number
        total += number * (_day(demand, (provider or "", site or ""), known, now=now) or Decimal(0))
    return count, total


def day_of(demand: Mapping[str, Any], provider: str, site: str, known: pricing.PriceList, *, now: datetime) -> Decimal:
    """Return what a demand costs a day at a place at present prices; nothing where something of it has none."""
    return _day(demand, (provider, site), known, now=now) or Decimal(0)


def _day(
    demand: Mapping[str, Any], place: tuple[str, str], known: pricing.PriceList, *, now: datetime
) -> Decimal | None:
    whole = {key: int(amount) for key, amount in demand.items()}
    try:
        return known.hourly(whole, now, provider=place[0], site=place[1]) * 24
    except pricing.NoPrice:
        return None


def _phase_filter(value: str) -> dict[str, Any]:
    options = [{"value": "", "label": _("All that live")}]
    options += [{"value": phase.value, "label": str(phases.look(phase).word)} for phase in Phase]
    return {"name": "phase", "label": _("State"), "value": value, "options": options}


def _chips(request: PageRequest) -> list[dict[str, str]]:
    chips = []
    for key in ("q", "phase"):
        value = request.GET.get(key, "")
        if not value:
            continue
        rest = request.GET.copy()
        rest.pop(key)
        rest.pop("after", None)
        label = str(phases.look(value).word) if key == "phase" else value
        chips.append({"label": label, "remove_url": f"{request.path}?{rest.urlencode()}" if rest else request.path})
    return chips


def _counted(rows: QuerySet[Any], found: lists.Page[Any]) -> str:
    if found.is_first and not found.after:
        return ngettext("%(n)d in all", "%(n)d in all", len(found.rows)) % {"n": len(found.rows)}
    total = rows.order_by().select_related(None).count()
    return ngettext("%(n)d in all", "%(n)d in all", total) % {"n": total}


def _exported(noun: Noun, request: PageRequest, rows: QuerySet[Any], form: str) -> HttpResponse:
    wanted = rows.order_by("-created_at", "-id")[: lists.READ_FOR_EXPORT]
    columns = ["name", "short_id", "phase", "size", "place", "cost_a_day", "currency", "until", "created_at"]
    body = [
        {
            "name": line.product.name,
            "short_id": line.product.short_id,
            "phase": line.product.phase,
            "size": line.size,
            "place": line.place,
            "cost_a_day": line.day,
            "currency": line.currency,
            "until": line.product.allocation.expires_at,
            "created_at": line.product.created_at,
        }
        for line in shown(noun, list(wanted), request)
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-{noun.plural}", form=form)


# --- one page -------------------------------------------------------------------------------------


def frame(noun: Noun, request: PageRequest, row: Any, *, current: str) -> dict[str, Any]:
    """Return what every page of one product shows around its content."""
    tenant = request.tenant.name
    return {
        "noun": noun,
        "row": row,
        "current": current,
        "can_write": request.portal.can_write and row.deletion_requested_at is None,
        "simulated": bool(row.boundary and row.boundary.provider.capabilities.get("simulated")),
        "page_state": phases.look(row.phase).page_state,
        "size": size_of(row.allocation),
        "breadcrumbs": [
            {"label": noun.title, "url": reverse(f"frontend:{noun.plural}", kwargs={"tenant": tenant})},
            {"label": row.name, "url": ""},
        ],
        "live_url": live.address("frontend:live", request, tenant=tenant, kind=noun.word, key=row.pk),
        "part_url": reverse(f"frontend:{noun.word}-state", kwargs={"tenant": tenant, "name": row.short_id}),
        "isolation_url": reverse("frontend:isolation", kwargs={"tenant": tenant}) if row.boundary else "",
        "delete_url": reverse(f"frontend:{noun.word}-delete", kwargs={"tenant": tenant, "name": row.short_id}),
        "renew_url": reverse(f"frontend:{noun.word}-renew", kwargs={"tenant": tenant, "name": row.short_id}),
    }


def state(row: Any, request: PageRequest) -> dict[str, Any]:
    """Return what changes while it is built: story, conditions, windows, price, ends."""
    known = all_prices()
    return {
        "row": row,
        "timeline": story.of(row, now=request.now),
        "conditions": story.conditions(row),
        "gpus": strips.own(queries.placement_of(row.allocation), label=row.name),
        "is_building": row.ready_at is None and row.deletion_requested_at is None,
        "day": day_price(row, known, now=request.now),
        "currency": currency(),
        "ends": ends_of(row.allocation, now=request.now),
        "size": size_of(row.allocation),
        "page_state": phases.look(row.phase).page_state,
        "next_step": resting.next_step(row) or _(queries.NEXT_STEPS[row.phase]),
    }


@dataclass(frozen=True, slots=True)
class Ends:
    """When it ends."""

    at: datetime | None
    """None before it was ready for the first time."""
    days: int
    """Length of its term."""
    soon: bool


def ends_of(allocation: Allocation, *, now: datetime) -> Ends:
    """Return when an allocation ends."""
    left = (allocation.expires_at - now).total_seconds() if allocation.expires_at else None
    return Ends(allocation.expires_at, round(allocation.duration_s / 86400), left is not None and left < 14 * 86400)


def deletion_plan(row: Any, request: PageRequest) -> dict[str, Any]:
    """Return what a delete takes away, and what it frees."""
    return {
        "must_type": row.name if row.allocation.service_class == ServiceClass.PRODUCTION.value else "",
        "frees": size_of(row.allocation),
        "day": day_price(row, all_prices(), now=request.now),
        "currency": currency(),
    }


def delete(noun: Noun, request: PageRequest, name: str) -> HttpResponse:
    """Delete one product; production needs its name typed."""
    with reading(request.actor):
        row = find(noun, request, name)
    if row.allocation.service_class == ServiceClass.PRODUCTION.value and request.POST.get("confirm") != row.name:
        msg = _("This is production: type its name to delete it.")
        raise InvalidSpec(msg, field="confirm")
    DELETE[noun.word](row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s is being given back.") % {"name": row.name})
    return back(noun, request, row)


def renew(noun: Noun, request: PageRequest, name: str) -> HttpResponse:
    """Give one product a new term from now."""
    with reading(request.actor):
        row = find(noun, request, name)
    days = wishes.number(request.POST.get("days"), wishes.DEFAULT_DAYS, least=1, most=1826)
    try:
        allocations.renew(allocation=row.allocation, duration_s=days * 86400, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    else:
        text = ngettext("%(name)s goes on for %(n)d day.", "%(name)s goes on for %(n)d days.", days)
        messages.success(request, text % {"name": row.name, "n": days})
    return back(noun, request, row)


def back(noun: Noun, request: PageRequest, row: Any, part: str = "") -> HttpResponse:
    """Return to a page of the product after a change."""
    route = f"frontend:{noun.word}{f'-{part}' if part else ''}"
    return HttpResponseRedirect(reverse(route, kwargs={"tenant": request.tenant.name, "name": row.short_id}))


def live_topics(kind: str, key: UUID, request: PageRequest) -> tuple[str, ...]:
    """Return what a page of this object listens to. Raises `NotVisible` unless the actor may see it.

    While it has no place yet, news of its tenant stand for those of the isolation that it will get.
    """
    noun = next((each for each in (ENDPOINTS, MACHINES, NAMESPACES) if each.word == kind), None)
    row = rows_of(noun, request).filter(pk=key).first() if noun is not None else None
    if row is None:
        raise NotVisible
    above = live.tenant_topic(request.tenant.pk) if row.boundary_id is None else live.object_topic(row.boundary_id)
    return live.object_topic(key), above
