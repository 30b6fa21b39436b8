"""What a tenant held, what of it is billed, and what that costs: usage records × dated prices.

Reads only, in the caller's read block, so row-level security decides what is there. Exact: time is whole
microseconds, money a fraction until it is rounded once. GPU slices come from usage records, vCPU and memory
from their units (once, however many GPUs a unit has, each time by the size of that time), storage from the
allocation, tokens from what gateways counted. Billed is from the first ready to the asking for deletion; what is
held beyond that costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Final
from uuid import UUID

from django.db.models import Q

from tenants import gpu_catalogue, quota, unit_sizes
from tenants.models import (
    Allocation,
    Endpoint,
    EndpointUsage,
    Price,
    Provider,
    Tenant,
    Unit,
    UsageRecord,
    UsageSubject,
)
from tenants.operations.pricing import TOKEN, all_prices, currency
from tenants.pricing import HOUR_US, MICROSECOND, NoPrice, PriceList, money

Interval = tuple[datetime, datetime]
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a line is about, also when the object itself has been purged."""

    tenant: UUID
    allocation: UUID
    kind: str
    """`endpoint`, `machine`, `namespace` or `bare`."""
    name: str
    short_id: str
    """Of the allocation."""


@dataclass(frozen=True, slots=True)
class CostLine:
    """One item of one object on one UTC day at one place and price."""

    subject: Subject
    provider: str
    site: str
    day: date
    item: str
    """`gpu.<product>.slices`, `vcpu`, `memory_gib`, `storage_gib` (in unit-hours) or `token` (a count)."""
    held: Fraction
    """Unit-hours from claim to release; for tokens the count."""
    billable: Fraction
    price: Decimal | None
    """Per unit and hour, or per token; None where nobody has set one: then it costs nothing."""
    currency: str

    @property
    def exact(self) -> Fraction:
        """Return the cost, not rounded: sums of lines are exact."""
        return self.billable * Fraction(self.price) if self.price is not None else Fraction(0)

    @property
    def cost(self) -> Decimal:
        """Return the cost, rounded to 6 decimals."""
        return money(self.exact)


@dataclass(frozen=True, slots=True)
class Spend:
    """What a tenant and its children cost over a time."""

    start: datetime
    end: datetime
    total: Decimal
    currency: str
    unpriced: tuple[str, ...]
    """Items that were used and have no price."""


@dataclass(slots=True)
class Used:
    """What was held of one item by one object, before days and prices."""

    subject: Subject
    provider: UUID
    item: str
    amount: int
    held: list[Interval]
    billable: list[Interval]


@dataclass(slots=True)
class _Sum:
    held: Fraction = field(default_factory=Fraction)
    billable: Fraction = field(default_factory=Fraction)


def cost_lines(
    tenant: Tenant,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    children: bool = True,
    allocation: UUID | None = None,
) -> list[CostLine]:
    """Return the lines of a tenant (and all below it), or of one object, over [start, end), nothing beyond `now`.

    Ordered by day, object, item. Raises `ValueError` if the time runs backwards.
    """
    if end < start:
        raise ValueError("a time cannot end before it starts")
    ids = below(tenant) if children else [tenant.pk]
    period = (start, max(start, min(end, now)))
    providers = {row.pk: row for row in Provider.objects.only("name", "site")}
    money_word = currency()
    lines = [
        *_capacity(ids, period, providers, money_word, allocation),
        *(
            line
            for line in _tokens(ids, period, providers, money_word)
            if allocation in {None, line.subject.allocation}
        ),
    ]
    return sorted(lines, key=lambda line: (line.day, line.subject.name, line.subject.allocation.int, line.item))


def below(tenant: Tenant) -> list[UUID]:
    """Return the ids of a tenant and all below it, as far as the actor may see."""
    return list(Tenant.objects.filter(path__contains=[tenant.pk]).values_list("pk", flat=True))


def spend(tenant: Tenant, start: datetime, end: datetime, *, now: datetime) -> Spend:
    """Return what a tenant and its children cost over [start, end) as far as it has passed."""
    lines = cost_lines(tenant, start, end, now=now)
    total = sum((line.exact for line in lines), start=Fraction(0))
    unpriced = sorted({line.item for line in lines if line.price is None and line.billable})
    return Spend(start, end, money(total), currency(), tuple(unpriced))


def spend_month(tenant: Tenant, *, now: datetime) -> Spend:
    """Return what a tenant and its children have cost in the present UTC month: the dimension `spend_month`."""
    month = quota.month_of(now.astimezone(UTC))
    assert month.end is not None
    return spend(tenant, month.start, month.end, now=now)


# --- capacity -------------------------------------------------------------------------------------


def _capacity(
    tenants: Sequence[UUID],
    period: Interval,
    providers: Mapping[UUID, Provider],
    money_word: str,
    allocation: UUID | None,
) -> Iterator[CostLine]:
    prices = all_prices()
    sums: dict[tuple[Subject, UUID, date, str, Decimal | None], _Sum] = {}
    for used in used_over(tenants, period, allocation=allocation):
        place = providers[used.provider]
        for held, billable, day, price in _pieces(used, prices, place):
            key = (used.subject, used.provider, day, used.item, price)
            line = sums.setdefault(key, _Sum())
            line.held += held
            line.billable += billable
    for (subject, provider, day, item, price), line in sums.items():
        place = providers[provider]
        yield CostLine(subject, place.name, place.site, day, item, line.held, line.billable, price, money_word)


def used_over(tenants: Sequence[UUID], period: Interval, *, allocation: UUID | None = None) -> Iterator[Used]:
    """Yield what was held over a time, clipped to it, by all objects of some tenants or by one of them."""
    start, end = period
    rows = UsageRecord.objects.filter(
        Q(held_to=None) | Q(held_to__gt=start), tenant_id__in=tenants, held_from__lt=end
    ).exclude(allocation_id=None)
    if allocation is not None:
        rows = rows.filter(allocation_id=allocation)
    records = list(rows.select_related("device").order_by("held_from", "pk"))
    facts = _facts({row.allocation_id for row in records if row.allocation_id})
    by_unit: dict[tuple[UUID, UUID, UUID], tuple[list[Interval], list[Interval]]] = {}
    by_allocation: dict[tuple[UUID, UUID], tuple[list[Interval], list[Interval]]] = {}
    for row in records:
        assert row.allocation_id is not None
        fact = facts.get(row.allocation_id)
        if fact is None:
            continue
        held = clip([(row.held_from, row.held_to or end)], period)
        billable = clip(held, (row.billable_from, row.billable_to or end)) if row.billable_from else []
        yield Used(
            fact.subject, row.provider_id, gpu_catalogue.slices_dimension(row.device.product), row.size, held, billable
        )
        groups = [by_allocation.setdefault((row.allocation_id, row.provider_id), ([], []))]
        if row.unit_id is not None:
            groups.append(by_unit.setdefault((row.allocation_id, row.unit_id, row.provider_id), ([], [])))
        for group in groups:
            group[0].extend(held)
            group[1].extend(billable)
    for (owner, unit, provider), (held, billable) in by_unit.items():
        fact = facts[owner]
        for item, amount, since, until in fact.sizes_of(unit):
            if amount:
                mine = clip(_merged(held), (since, until)), clip(_merged(billable), (since, until))
                yield Used(fact.subject, provider, item, amount, *mine)
    for (owner, provider), (held, billable) in by_allocation.items():
        fact = facts[owner]
        if fact.storage_gib:
            yield Used(fact.subject, provider, "storage_gib", fact.storage_gib, _merged(held), _merged(billable))


@dataclass(frozen=True, slots=True)
class _Facts:
    subject: Subject
    storage_gib: int
    units: Mapping[UUID, tuple[int, int]]
    """Unit → (vCPU, memory GiB) of now."""
    former: Mapping[UUID, Sequence[unit_sizes.Sized]]
    """Unit → sizes that it had before, oldest first."""

    def sizes_of(self, unit: UUID) -> Iterator[tuple[str, int, datetime, datetime]]:
        """Yield (item, amount, since, until) of a unit."""
        vcpu, memory_gib = self.units.get(unit, (0, 0))
        past = self.former.get(unit, ())
        return unit_sizes.amounts(
            {"vcpu": vcpu, "memory_gib": memory_gib},
            [{"vcpu": one.size.vcpu, "memory_gib": one.size.memory_gib} for one in past],
            [one.until for one in past],
        )


def _facts(allocations: Iterable[UUID]) -> dict[UUID, _Facts]:
    """Return allocation → what it is, from its rows or from what was kept when they were purged."""
    wanted = list(allocations)
    units: dict[UUID, dict[UUID, tuple[int, int]]] = {}
    for unit in Unit.objects.filter(allocation_id__in=wanted):
        units.setdefault(unit.allocation_id, {})[unit.pk] = (unit.vcpu, unit.memory_gib)
    former = unit_sizes.former(wanted)
    found = {
        row.allocation_id: _Facts(
            Subject(row.tenant_id, row.allocation_id, row.kind, row.name, row.short_id),
            row.storage_gib,
            {UUID(unit): (int(vcpu), int(memory)) for unit, (vcpu, memory) in row.units.items()},
            former,
        )
        for row in UsageSubject.objects.filter(pk__in=wanted)
    }
    for row in Allocation.objects.filter(pk__in=wanted):
        subject = Subject(row.tenant_id, row.pk, row.product_kind, row.name, row.short_id)
        found[row.pk] = _Facts(subject, int(row.spec.get("storage_gib", 0)), units.get(row.pk, {}), former)
    return found


def _pieces(
    used: Used, prices: PriceList, place: Provider
) -> Iterator[tuple[Fraction, Fraction, date, Decimal | None]]:
    """Yield (held, billable, day, price) in unit-hours, cut at midnights (UTC) and where prices change."""
    changes = sorted({price.starts_at for price in prices.prices if price.item == used.item})
    edges = sorted({edge for span in (*used.held, *used.billable) for edge in span})
    if not edges:
        return
    cuts = [*changes, *_midnights(edges[0], edges[-1])]
    for intervals, is_held in ((used.held, True), (used.billable, False)):
        for left, right in cut(intervals, cuts):
            hours = Fraction((right - left) // MICROSECOND * used.amount, HOUR_US)
            price = price_at(prices, used.item, left, place)
            day = left.astimezone(UTC).date()
            yield (hours, Fraction(0), day, price) if is_held else (Fraction(0), hours, day, price)


def price_at(prices: PriceList, item: str, at: datetime, place: Provider) -> Decimal | None:
    """Return the price of a unit for an hour at a place and moment, None where nobody has set one."""
    try:
        return prices.at(item, at, provider=place.name, site=place.site).amount
    except NoPrice:
        return None


# --- tokens ---------------------------------------------------------------------------------------


def _tokens(
    tenants: Sequence[UUID], period: Interval, providers: Mapping[UUID, Provider], money_word: str
) -> Iterator[CostLine]:
    """Yield tokens where they have a price; they are counted by whole hours, at the price the hour began with."""
    dated = list(Price.objects.filter(item=TOKEN).select_related("price_list").order_by("price_list__valid_from"))
    if not dated:
        return
    rows = list(
        EndpointUsage.objects.filter(tenant_id__in=tenants, hour__gte=period[0], hour__lt=period[1]).order_by("hour")
    )
    endpoints = {
        row.pk: row
        for row in Endpoint.objects.filter(pk__in={row.endpoint_id for row in rows}).select_related("boundary")
    }
    facts = _facts({row.allocation_id for row in endpoints.values()})
    sums: dict[tuple[Subject, UUID, date, Decimal | None], int] = {}
    for row in rows:
        endpoint = endpoints.get(row.endpoint_id)
        count = row.prompt_tokens + row.completion_tokens
        if endpoint is None or endpoint.boundary is None or not count:
            continue
        place = providers[endpoint.boundary.provider_id]
        price = _token_price(dated, row.hour, place)
        key = (facts[endpoint.allocation_id].subject, place.pk, row.hour.astimezone(UTC).date(), price)
        sums[key] = sums.get(key, 0) + count
    for (subject, provider, day, price), count in sums.items():
        place = providers[provider]
        yield CostLine(subject, place.name, place.site, day, TOKEN, Fraction(count), Fraction(count), price, money_word)


def _token_price(dated: Sequence[Price], at: datetime, place: Provider) -> Decimal | None:
    found = [
        (row.price_list.provider_id is not None, bool(row.price_list.site), row.price_list.valid_from, row.amount)
        for row in dated
        if row.price_list.valid_from <= at
        and row.price_list.provider_id in {None, place.pk}
        and row.price_list.site in {"", place.site}
    ]
    return max(found)[3] if found else None


# --- intervals ------------------------------------------------------------------------------------


def clip(intervals: Iterable[Interval], to: Interval) -> list[Interval]:
    """Return the parts of intervals that lie in a time."""
    clipped = [(max(left, to[0]), min(right, to[1])) for left, right in intervals]
    return [(left, right) for left, right in clipped if left < right]


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals, each moment once."""
    merged: list[Interval] = []
    for left, right in sorted(intervals):
        if merged and left <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(right, merged[-1][1]))
        else:
            merged.append((left, right))
    return merged


def cut(intervals: Iterable[Interval], cuts: Sequence[datetime]) -> Iterator[Interval]:
    """Yield intervals in pieces, cut at moments."""
    for left, right in intervals:
        edges = [left, *sorted({cut for cut in cuts if left < cut < right}), right]
        yield from pairwise(edges)


def _midnights(start: datetime, end: datetime) -> Iterator[datetime]:
    midnight = datetime.combine(start.astimezone(UTC).date(), time(), UTC) + DAY
    while midnight < end:
        yield midnight
        midnight += DAY
