"""Dated prices: what holds where and since when; publishing from a date, with what it would have cost last month."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Prefetch
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.kernel import asks, lists, problems, words
from frontend.kernel.page import PageRequest, page
from tenants import access, billed
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.gpu_catalogue import slices_dimension
from tenants.models import Host, Price, PriceList, Provider
from tenants.operations import pricing
from tenants.operations.pricing import TOKEN
from tenants.policies import ROUTES
from tenants.transactions import reading

PLAIN: Final = ("vcpu", "memory_gib", "storage_gib")
MILLION: Final = Decimal(1_000_000)
"""Tokens are priced by the million on pages, each in the list."""
LISTS: Final = 200
EVERYWHERE: Final = ""


# --- words ------------------------------------------------------------------------------------------------


def title(item: str) -> str:
    """Return an item as people call it: `H100-80GB, one slot`."""
    if item == TOKEN:
        return _("Tokens, a million")
    if item.endswith(".slices"):
        return _("%(product)s, one slot") % {"product": asks.dimension(item)}
    return {
        "vcpu": _("One virtual CPU"), "memory_gib": _("One GiB of main memory"), "storage_gib": _("One GiB of storage")
    }.get(item, item)  # fmt: skip


def unit(item: str) -> str:
    """Return what a price is for."""
    return _("a million") if item == TOKEN else _("an hour")


def shown(item: str, amount: Decimal | None) -> Decimal | None:
    """Return an amount as pages show it."""
    return amount * MILLION if item == TOKEN and amount is not None else amount


def place_of(row: PriceList) -> str:
    """Return where a list holds, in words."""
    if row.provider is not None:
        return _("provider %(name)s") % {"name": row.provider.name}
    return _("site %(name)s") % {"name": row.site} if row.site else _("everywhere")


def per_cent(before: Decimal | None, after: Decimal | None) -> dict[str, str]:
    """Return a change in per cent with its sign, and its tone: dearer is a warning."""
    if before is None or after is None:
        return {"text": _("new") if after is not None else "--", "tone": "quiet"}
    if before == after:
        return {"text": _("same"), "tone": "quiet"}
    if before == 0:
        return {"text": _("was free"), "tone": "warn"}
    change = (after - before) / before
    sign = "+" if change > 0 else "−"
    places = 0 if abs(change) >= Decimal("0.1") else 1
    return {"text": f"{sign}{numbers.percent(abs(change), places)}", "tone": "warn" if change > 0 else "ok"}


def _rank(item: str) -> tuple[int, str]:
    if item.endswith(".slices"):
        return (0, item)
    return (1 + PLAIN.index(item) if item in PLAIN else 9, item)


def tabs(current: str) -> list[dict[str, Any]]:
    """Return the tabs of this part of the portal."""
    found = [
        ("prices", _("Prices"), "tags"),
        ("policies", _("Policies"), "shield-check"),
        ("platform-notices", _("Notices and channels"), "bell"),
    ]
    return [
        {"label": label, "url": reverse(f"frontend:{route}"), "icon": icon, "current": route == current}
        for route, label, icon in found
    ]


# --- what holds ---------------------------------------------------------------------------------------------


@page("people.list")
def listed(request: PageRequest) -> HttpResponse:
    """Show the prices in force, those that come, and every list there ever was."""
    rows = _lists()
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(rows, form)
    before = _before(rows)
    in_force = _in_force(rows, request.now)
    values = {
        "groups": _groups(rows, request.now),
        "coming": [_line(row, before, in_force, request.now) for row in rows if row.valid_from > request.now],
        "lists": [_line(row, before, in_force, request.now) for row in rows if row.valid_from <= request.now],
        "empty": not rows,
        "may_write": access.allowed(request.actor, None, ROUTES["prices.create"]),
        "tabs": tabs("prices"),
        "price_columns": [
            {"key": "item", "label": _("What")},
            {"key": "amount", "label": _("Price"), "numeric": True},
            {"key": "month", "label": _("30 days of full use"), "numeric": True},
            {"key": "since", "label": _("Since")},
            {"key": "list", "label": _("By the list")},
        ],
        "list_columns": [
            {"key": "name", "label": _("List")},
            {"key": "place", "label": _("Where")},
            {"key": "from", "label": _("From")},
            {"key": "state", "label": _("State")},
            {"key": "count", "label": _("Prices"), "numeric": True},
        ],
    }
    return render(request, "frontend/pages/prices/list.html", values)


def _lists() -> list[PriceList]:
    """Return the newest lists with their prices, newest start first; two queries."""
    prices = Prefetch("prices", Price.objects.order_by("item"))
    rows = PriceList.objects.select_related("provider").prefetch_related(prices)
    return list(rows.order_by("-valid_from", "-created_at")[:LISTS])


def _place(row: PriceList) -> tuple[UUID | None, str]:
    return row.provider_id, row.site


def _before(rows: Sequence[PriceList]) -> dict[UUID, dict[str, Decimal]]:
    """Return list → the prices of its place right before it starts, item by item."""
    found: dict[UUID, dict[str, Decimal]] = {}
    running: dict[tuple[UUID | None, str], dict[str, Decimal]] = {}
    for row in reversed(rows):
        at = running.setdefault(_place(row), {})
        found[row.pk] = dict(at)
        at.update({one.item: one.amount for one in row.prices.all()})
    return found


def _in_force(rows: Sequence[PriceList], now: datetime) -> set[UUID]:
    """Return the lists of which at least one price holds now."""
    seen: set[tuple[UUID | None, str, str]] = set()
    found = set()
    for row in rows:
        if row.valid_from > now:
            continue
        items = {(*_place(row), one.item) for one in row.prices.all()}
        if items - seen:
            found.add(row.pk)
        seen |= items
    return found


def _groups(rows: Sequence[PriceList], now: datetime) -> list[dict[str, Any]]:
    """Return the prices in force by place, the general ones first."""
    held: dict[tuple[UUID | None, str], dict[str, tuple[Price, PriceList]]] = {}
    for row in rows:
        if row.valid_from > now:
            continue
        at = held.setdefault(_place(row), {})
        for one in row.prices.all():
            at.setdefault(one.item, (one, row))
    return [
        {
            "place": place_of(next(iter(found.values()))[1]),
            "general": not any(place),
            "currency": next(iter(found.values()))[1].currency,
            "lines": [
                {
                    "title": title(item),
                    "amount": shown(item, price.amount),
                    "unit": unit(item),
                    "places": 4 if price.amount < 1 and item != TOKEN else 2,
                    "month": price.amount * 24 * 30 if item != TOKEN else None,
                    "row": row,
                    "url": reverse("frontend:price-list", kwargs={"key": row.pk}),
                }
                for item, (price, row) in sorted(found.items(), key=lambda entry: _rank(entry[0]))
            ],
        }
        for place, found in sorted(held.items(), key=lambda entry: (any(entry[0]), str(entry[0])))
        if found
    ]


def _line(
    row: PriceList, before: Mapping[UUID, Mapping[str, Decimal]], in_force: set[UUID], now: datetime
) -> dict[str, Any]:
    state = (
        {"text": _("Comes"), "tone": "info", "icon": "calendar"}
        if row.valid_from > now
        else {"text": _("In force"), "tone": "ok", "icon": "circle-check"}
        if row.pk in in_force
        else {"text": _("Past"), "tone": "quiet", "icon": "history"}
    )
    changes = [
        {"title": title(one.item), **per_cent(before[row.pk].get(one.item), one.amount)}
        for one in sorted(row.prices.all(), key=lambda one: _rank(one.item))
        if before[row.pk].get(one.item) not in {None, one.amount}
    ]
    return {
        "row": row,
        "url": reverse("frontend:price-list", kwargs={"key": row.pk}),
        "place": place_of(row),
        "state": state,
        "count": len(row.prices.all()),
        "changes": changes[:3],
        "more": max(0, len(changes) - 3),
    }


@page("people.list")
def show(request: PageRequest, key: UUID) -> HttpResponse:
    """Show one list against the one before it, and what last month would have cost by it."""
    row = access.find(PriceList.objects.all(), key)
    rows = _lists()
    row = next((one for one in rows if one.pk == row.pk), row)
    before = _before(rows).get(row.pk, {})
    prices = {one.item: one.amount for one in row.prices.all()}
    values = {
        "row": row,
        "place": place_of(row),
        "line": _line(row, {row.pk: before}, _in_force(rows, request.now), request.now),
        "comes": row.valid_from > request.now,
        "lines": _compared(prices, before),
        "columns": _columns(),
        "currency": row.currency,
        "breadcrumbs": [
            {"label": _("Prices"), "url": reverse("frontend:prices")},
            {"label": row.name, "url": ""},
        ],
    }
    if row.valid_from > request.now:
        draft = billed.Draft(prices, row.valid_from, row.provider_id, row.site)
        values |= _effects(draft, request.now)
    return render(request, "frontend/pages/prices/show.html", values)


def _columns() -> list[dict[str, Any]]:
    return [
        {"key": "item", "label": _("What")},
        {"key": "before", "label": _("Before"), "numeric": True},
        {"key": "after", "label": _("Price"), "numeric": True},
        {"key": "change", "label": _("Change"), "numeric": True},
    ]


def _compared(prices: Mapping[str, Decimal], before: Mapping[str, Decimal]) -> list[dict[str, Any]]:
    return [
        {
            "title": title(item),
            "unit": unit(item),
            "before": shown(item, before.get(item)),
            "after": shown(item, amount),
            "change": per_cent(before.get(item), amount),
        }
        for item, amount in sorted(prices.items(), key=lambda entry: _rank(entry[0]))
    ]


def _effects(draft: billed.Draft, now: datetime) -> dict[str, Any]:
    """Return what last month would have cost by a list, item by item and in all."""
    start, end = billed.last_month(now)
    found = billed.effects(billed.read(start, end, now=now), billed.Book.read(), draft, now=now)
    before, after = sum((one.before for one in found), Decimal(0)), sum((one.after for one in found), Decimal(0))
    return {
        "month": start,
        "effects": [
            {
                "title": title(one.item),
                "quantity": one.quantity / MILLION if one.item == TOKEN else one.quantity,
                "unit": _("million tokens") if one.item == TOKEN else _("hours"),
                "before": one.before,
                "after": one.after,
                "difference": one.after - one.before,
            }
            for one in sorted(found, key=lambda one: _rank(one.item))
            if one.quantity
        ],
        "before": before,
        "after": after,
        "change": per_cent(before, after) if before else None,
        "effect_columns": [
            {"key": "item", "label": _("What")},
            {"key": "quantity", "label": _("Billed last month"), "numeric": True},
            {"key": "before", "label": _("At present prices"), "numeric": True},
            {"key": "after", "label": _("At these"), "numeric": True},
            {"key": "difference", "label": _("Difference"), "numeric": True},
        ],
    }


def _exported(rows: Sequence[PriceList], form: str) -> HttpResponse:
    columns = ["list", "provider", "site", "valid_from", "item", "amount", "currency"]
    body = [
        {
            "list": row.name,
            "provider": row.provider.name if row.provider is not None else "",
            "site": row.site,
            "valid_from": row.valid_from,
            "item": one.item,
            "amount": str(one.amount.normalize()),
            "currency": row.currency,
        }
        for row in rows
        for one in row.prices.all()
    ]
    return lists.exported(body, columns, name="prices", form=form)


# --- publishing ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Wish:
    """What the form holds."""

    name: str = ""
    start: str = ""
    place: str = EVERYWHERE
    """`""`, `provider:<name>` or `site:<slug>`."""
    prices: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, given: QueryDict) -> Wish:
        """Return the form as it was sent."""
        prices = {key.removeprefix("price:"): str(given[key]).strip() for key in given if key.startswith("price:")}
        return cls(given.get("name", ""), given.get("start", ""), given.get("place", ""), prices)

    def amounts(self) -> dict[str, Decimal]:
        """Return item → price each and hour; empty leaves an item as it is. Raises `InvalidSpec`."""
        found = {}
        for item, text in sorted(self.prices.items()):
            if not text:
                continue
            try:
                amount = Decimal(text.replace(",", ""))
            except InvalidOperation as error:
                raise InvalidSpec(_("Give an amount such as 0.42."), field=f"prices.{item}") from error
            if not amount.is_finite() or amount < 0:
                raise InvalidSpec(_("Give an amount of at least 0."), field=f"prices.{item}")
            found[item] = amount / MILLION if item == TOKEN else amount
        return found

    def starts_at(self, now: datetime) -> datetime:
        """Return the first moment of the chosen day in the person's zone, now for today. Raises `InvalidSpec`."""
        try:
            day = datetime.strptime(self.start.strip(), "%Y-%m-%d").replace(tzinfo=timezone.get_current_timezone())
        except ValueError as error:
            raise InvalidSpec(_("Give a day."), field="valid_from") from error
        return now if day.date() == timezone.localdate(now) else day


@page("prices.create", methods=("GET", "POST"), own_blocks=True)
def create(request: PageRequest) -> HttpResponse:
    """Publish a list from a day on; difference and last month's cost are shown while it is written."""
    given = request.POST if request.method == "POST" else request.GET
    wish = Wish.read(given)
    wish.start = wish.start or timezone.localdate(request.now + timedelta(days=1)).isoformat()
    if request.method != "POST":
        return _form(request, wish, {})
    try:
        with reading(request.actor):
            provider, site = _where(wish.place)
            money = pricing.currency()
        made = pricing.publish(
            name=wish.name,
            prices=wish.amounts(),
            valid_from=wish.starts_at(request.now),
            provider=provider,
            site=site,
            currency=money,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _form(request, wish, _at_fields(error), status=problems.status_of(error))
    messages.success(request, _("%(name)s is published. What was billed before it stays as it was.") % {
        "name": made.name
    })  # fmt: skip
    return HttpResponseRedirect(reverse("frontend:price-list", kwargs={"key": made.pk}))


def _where(place: str) -> tuple[Provider | None, str]:
    """Return provider and site of a chosen place, in the caller's read block."""
    kind, _colon, name = place.partition(":")
    if kind == "provider":
        return access.find(Provider.objects.all(), name), ""
    return None, name if kind == "site" else ""


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    found = {}
    for name, text in problems.at_fields(error).items():
        at = f"price:{name.removeprefix('prices.')}" if name.startswith("prices.") else name
        at = {"valid_from": "start", "site": "place", "provider": "place", "prices": "", "currency": ""}.get(at, at)
        found[at] = words.plain(text)
    if error.specific_code == "price-list-exists":
        return {"name": next(iter(found.values()))}
    return found


def _form(request: PageRequest, wish: Wish, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    with reading(request.actor):
        provider, site = _where(wish.place)
        present = _present(provider, site, request.now)
        money = pricing.currency()
        items = sorted({*_items(), *present, *wish.prices}, key=_rank)
        sent = bool(wish.prices)
        wrong = dict(errors)
        preview: dict[str, Any] = {}
        if not wrong and sent:
            preview, wrong = _preview(wish, present, provider, site, request.now)
        values = {
            "wish": wish,
            "errors": wrong,
            "fields": [
                {
                    "name": f"price:{item}",
                    "label": title(item),
                    "suffix": f"{money} {unit(item)}",
                    "sentence": _now_words(shown(item, present.get(item)), money),
                    "value": wish.prices.get(item, "") if sent else _plain(shown(item, present.get(item))),
                    "error": wrong.get(f"price:{item}", ""),
                }
                for item in items
            ],
            "places": _places(),
            "here": reverse("frontend:price-list-new"),
            "back_url": reverse("frontend:prices"),
            "columns": _columns(),
            "currency": money,
            "breadcrumbs": [
                {"label": _("Prices"), "url": reverse("frontend:prices")},
                {"label": _("Publish prices"), "url": ""},
            ],
            **preview,
        }
        template = "_preview" if request.htmx and request.method != "POST" else "new"
        return render(request, f"frontend/pages/prices/{template}.html", values, status=status)


def _now_words(amount: Decimal | None, money: str) -> str:
    if amount is None:
        return _("No price here yet.")
    return _("Now %(amount)s.") % {"amount": numbers.money(amount, money, 4)}


def _plain(amount: Decimal | None) -> str:
    return f"{amount.normalize():f}" if amount is not None else ""


def _items() -> set[str]:
    products = Host.objects.exclude(gpu_product="").order_by().values_list("gpu_product", flat=True).distinct()
    return {*(slices_dimension(product) for product in products), *PLAIN, TOKEN}


def _present(provider: Provider | None, site: str, now: datetime) -> dict[str, Decimal]:
    """Return the prices in force right at a place, not those it takes over from a wider one."""
    rows = Price.objects.filter(
        price_list__provider=provider, price_list__site=site, price_list__valid_from__lte=now
    ).order_by("price_list__valid_from")
    return dict(rows.values_list("item", "amount"))


def _places() -> list[dict[str, str]]:
    providers = list(Provider.objects.filter(released_at=None).order_by("name").values_list("name", "site"))
    return [
        {"value": EVERYWHERE, "label": _("Everywhere")},
        *(
            {"value": f"site:{site}", "label": _("Only the site %(name)s") % {"name": site}}
            for site in sorted({site for _name, site in providers if site})
        ),
        *(
            {"value": f"provider:{name}", "label": _("Only the provider %(name)s") % {"name": name}}
            for name, _site in providers
        ),
    ]


def _preview(
    wish: Wish, present: Mapping[str, Decimal], provider: Provider | None, site: str, now: datetime
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return difference and effect of the form, and what is wrong with it."""
    try:
        prices, starts = wish.amounts(), wish.starts_at(now)
    except InvalidSpec as error:
        return {}, _at_fields(error)
    if not prices:
        return {}, {}
    draft = billed.Draft(prices, max(starts, now), provider.pk if provider is not None else None, site)
    body = {
        "name": wish.name or _("New prices"),
        "valid_from": starts.isoformat(timespec="seconds"),
        "prices": {item: _plain(amount) for item, amount in prices.items()},
        **({"provider": provider.name} if provider is not None else {}),
        **({"site": site} if site else {}),
    }
    call = (
        '$TENANTRY/api/v1/prices -H "Authorization: Bearer $TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' -H 'Idempotency-Key: '$(uuidgen) \\\n  -d '{json.dumps(body)}'"
    )
    return {"lines": _compared(prices, present), **_effects(draft, now), "call": f"curl -X POST {call}"}, {}
