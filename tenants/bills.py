"""A month's bill beyond its lines: spans to the second, what is still to come, what was called.

Reads only, in the caller's read block. The forecast is arithmetic, not a guess at wishes: what is billed now goes on
at published prices to its end or the end of the time, tokens at their average so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Final
from uuid import UUID

from django.db.models import Count, Max, Min, Q, Sum, Value
from django.db.models.functions import Coalesce

from tenants import billed, costs, usage_days, usage_sums
from tenants.models import Endpoint, EndpointUsage, PriceList, Provider, Tenant, UsageRecord
from tenants.operations.pricing import all_prices
from tenants.pricing import HOUR_US, MICROSECOND, NoPrice, money
from tenants.pricing import Price as DatedPrice
from tenants.pricing import PriceList as DatedPrices
from tenants.usage_sums import BilledSum, Piece

MOST_SPANS: Final = 500
"""Of one answer."""


# --- to the second --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListName:
    """A price list as people cite it."""

    name: str
    number: int
    """Its place among all lists by the date from which they hold, from 1."""
    valid_from: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """One item of one object, unbroken, at one price."""

    item: str
    amount: int
    """Slots, vCPUs, GiB."""
    start: datetime
    end: datetime
    is_open: bool
    """It goes on: `end` is now."""
    billed: bool
    """False while it was built, and after its deletion was asked for."""
    place: str
    price: Decimal | None
    """Per unit and hour; None where nobody has set one."""
    price_list: ListName | None

    @property
    def seconds(self) -> Decimal:
        """Return its length, exactly."""
        return Decimal((self.end - self.start) // MICROSECOND).scaleb(-6)

    @property
    def exact(self) -> Fraction:
        """Return amount × hours × price, 0 where it is not billed or has no price."""
        if not self.billed or self.price is None:
            return Fraction(0)
        return Fraction((self.end - self.start) // MICROSECOND * self.amount, HOUR_US) * Fraction(self.price)

    @property
    def cost(self) -> Decimal:
        """Return the cost, rounded to 6 decimals."""
        return money(self.exact)


def spans(tenant: Tenant, allocation: UUID, start: datetime, end: datetime, *, now: datetime) -> list[Span]:
    """Return what one object of a tenant (or below it) held over [start, end), nothing beyond `now`, by time and item.

    Sums of `exact` over the billed ones equal those of its cost lines; tokens are no time and not in it. At most
    `MOST_SPANS`, the newest. Raises nothing for an object that is not there: it held nothing.
    """
    period = (start, max(start, min(end, now)))
    places = {row.pk: row for row in Provider.objects.only("name", "site")}
    prices, names = all_prices(), _lists()
    found: list[Span] = []
    for used in costs.used_over(costs.below(tenant), period, allocation=allocation):
        place = places[used.provider]
        changes = sorted({price.starts_at for price in prices.prices if price.item == used.item})
        for is_billed, intervals in ((True, used.billable), (False, _without(used.held, used.billable))):
            for left, right in costs.cut(intervals, changes if is_billed else ()):
                price = _dated(prices, used.item, left, place) if is_billed else None
                found.append(
                    Span(
                        item=used.item,
                        amount=used.amount,
                        start=left,
                        end=right,
                        is_open=right == now,
                        billed=is_billed,
                        place=f"{place.name}, {place.site}",
                        price=price.amount if price is not None else None,
                        price_list=names.get((price.starts_at, price.provider, price.site)) if price else None,
                    )
                )
    found.sort(key=lambda span: (span.start, span.item, span.end))
    return found[-MOST_SPANS:]


def _without(whole: Iterable[costs.Interval], parts: Iterable[costs.Interval]) -> list[costs.Interval]:
    """Return what of `whole` lies in none of `parts`."""
    rest = list(whole)
    for left, right in parts:
        rest = [
            piece
            for start, end in rest
            for piece in ((start, min(end, left)), (max(start, right), end))
            if piece[0] < piece[1]
        ]
    return rest


def _dated(prices: DatedPrices, item: str, at: datetime, place: Provider) -> DatedPrice | None:
    try:
        return prices.at(item, at, provider=place.name, site=place.site)
    except NoPrice:
        return None


def _lists() -> dict[tuple[datetime, str, str], ListName]:
    """Return (from, provider, site) → price list; the three are unique."""
    rows = PriceList.objects.select_related("provider").order_by("valid_from", "name")
    return {
        (row.valid_from, row.provider.name if row.provider is not None else "", row.site): ListName(
            row.name, number, row.valid_from
        )
        for number, row in enumerate(rows, start=1)
    }


# --- what is to come ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a time will have cost at its end, if what runs goes on."""

    spent: Decimal
    running: Decimal
    """Of what is billed now, to its end or the end of the time, at prices published so far."""
    tokens: Decimal
    """At the average of the time so far."""
    as_of: datetime | None = None
    """When what runs was looked at, at most about an hour ago; None: just now."""

    @property
    def total(self) -> Decimal:
        """Return all of it."""
        return self.spent + self.running + self.tokens


def forecast(
    tenant: Tenant,
    spent: Fraction,
    tokens: Fraction,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    allocation: UUID | None = None,
) -> Forecast:
    """Return what [start, end) will have cost, given what it cost so far, and tokens of that.

    Nothing is to come where it is over. `allocation` is the one object that the sums are of, if they are.
    """
    if not start <= now < end:
        return Forecast(money(spent), Decimal(0), Decimal(0))
    passed = (now - start) // MICROSECOND
    more = tokens * ((end - now) // MICROSECOND) / passed if passed else Fraction(0)
    return Forecast(money(spent), money(running(tenant, now, end, allocation=allocation)), money(more))


def running(tenant: Tenant, now: datetime, end: datetime, *, allocation: UUID | None = None) -> Fraction:
    """Return what is billed now will cost over [now, end), each to its own end, at published prices.

    Summed in the database: the number of statements and rows does not depend on what runs.
    """
    if end <= now:
        return Fraction(0)
    pieces = [Piece(lo, hi, lo) for lo, hi in pairwise(usage_days.edges_of(now, end))]
    only = [allocation] if allocation is not None else None
    return _cost(usage_sums.to_come(pieces, tenants=costs.below(tenant), allocations=only), billed.Book.read())


def running_as_rolled(
    tenants: Sequence[UUID], now: datetime, end: datetime, book: billed.Book
) -> tuple[Fraction, datetime] | None:
    """Return the same of many tenants, as the roll-up knew it, and when that was; None where it does not know."""
    known = usage_days.state(tenants)
    sums = usage_days.to_come(known, now, end)
    if sums is None or known.through is None:
        return None
    return max(Fraction(0), _cost(sums, book)), known.through


def _cost(sums: Iterable[BilledSum], book: billed.Book) -> Fraction:
    total = Fraction(0)
    for one in sums:
        price = book.price(one.item, one.since, one.provider)
        if price is not None:
            total += Fraction(one.quantity) / 3600 * Fraction(price)
    return total


# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calls:
    """What gateways counted for one endpoint over a time."""

    requests: int
    tokens: int
    hours: int
    """Clock hours in which it was called at least once."""


def calls(tenant: Tenant, start: datetime, end: datetime) -> dict[UUID, Calls]:
    """Return allocation → calls, of the endpoints of a tenant and all below it; none for what nobody called."""
    rows = list(
        EndpointUsage.objects.filter(tenant_id__in=costs.below(tenant), hour__gte=start, hour__lt=end)
        .values("endpoint_id")
        .annotate(
            n=Sum("requests"),
            tokens=Sum("prompt_tokens") + Sum("completion_tokens"),
            hours=Count("hour", distinct=True, filter=Q(requests__gt=0)),
        )
        .order_by("endpoint_id")
    )
    owners = dict(
        Endpoint.objects.filter(pk__in=[row["endpoint_id"] for row in rows]).values_list("pk", "allocation_id")
    )
    return {
        owners[row["endpoint_id"]]: Calls(int(row["n"]), int(row["tokens"]), int(row["hours"]))
        for row in rows
        if row["endpoint_id"] in owners
    }


def idle_shares(
    lines: Iterable[costs.CostLine], called: Mapping[UUID, Calls], start: datetime, end: datetime, *, now: datetime
) -> dict[UUID, Fraction]:
    """Return allocation → share (0 to 1) of its billed hours in which no call was counted; endpoints alone.

    Measured by the clock hour: one call makes a whole hour one of use. Machines and namespaces are not measured.
    """
    kept = [line.subject.allocation for line in lines if line.subject.kind == "endpoint"]
    until = min(end, now)
    rows = (
        UsageRecord.objects.filter(allocation_id__in=set(kept), billable_from__lt=until)
        .filter(Q(held_to=None) | Q(held_to__gt=start))
        .values("allocation_id")
        .annotate(since=Min("billable_from"), to=Max(Coalesce("billable_to", "held_to", Value(until))))
        .order_by("allocation_id")
    )
    found: dict[UUID, Fraction] = {}
    for row in rows:
        billed = (min(row["to"], until) - max(row["since"], start)) // MICROSECOND
        key = row["allocation_id"]
        if billed > 0 and key is not None:
            hours = called[key].hours if key in called else 0
            found[key] = max(Fraction(0), 1 - Fraction(hours * HOUR_US, billed))
    return found
