"""Dated prices, what a span costs across their changes, and the hourly account of a GPU.

Pure and exact: money is a Decimal, time is whole microseconds, and products of both stay fractions until
`money` rounds once. A price holds from its start until the next one of the same item and place, and is never
changed backwards. The account of a GPU proves for any time that billed + held unbilled + reserved + free +
foreign + maintenance + fault = capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Final, Self

from tenants.gpu_catalogue import GpuDimension, parse_dimension

HOUR: Final = timedelta(hours=1)
MICROSECOND: Final = timedelta(microseconds=1)
HOUR_US: Final = HOUR // MICROSECOND

PRICED_PLAIN: Final = frozenset({"vcpu", "memory_gib", "storage_gib"})
"""Plain dimensions that cost money by the hour; of the GPU dimensions only slices do."""


class NoPrice(LookupError):
    """Nobody has set a price for this item at this place and time."""


class PriceInThePast(ValueError):
    """A price would start before now: what was charged would change."""


# --- prices ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one unit of an item for one hour, from `starts_at` on.

    `provider` binds tighter than `site`, which binds tighter than neither.
    """

    item: str
    """`gpu.<product>.slices`, `vcpu`, `memory_gib` or `storage_gib`."""
    amount: Decimal
    starts_at: datetime
    provider: str = ""
    site: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be a price. Raises `BadDimension`, `ValueError`, `TypeError`."""
        if not is_priced(self.item):
            msg = f"{self.item} has no price by the hour"
            raise ValueError(msg)
        _refuse_float(self.item, self.amount)
        if not self.amount.is_finite() or self.amount < 0:
            msg = f"{self.item}: a price is a finite amount of at least 0"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Charge:
    """One item at one price for one unbroken time."""

    item: str
    amount: Decimal | int
    """Units held: slices, vCPUs, GiB."""
    price: Price
    start: datetime
    end: datetime

    @property
    def exact(self) -> Fraction:
        """Return amount × price × hours as an exact fraction."""
        hours = Fraction((self.end - self.start) // MICROSECOND, HOUR_US)
        return Fraction(self.amount) * Fraction(self.price.amount) * hours


@dataclass(frozen=True, slots=True)
class Cost:
    """What a demand costs over a time, line by line."""

    charges: tuple[Charge, ...]

    @property
    def exact(self) -> Fraction:
        """Return the exact sum; sums of parts of a time equal the sum of the whole."""
        return sum((charge.exact for charge in self.charges), start=Fraction(0))

    @property
    def total(self) -> Decimal:
        """Return the sum, rounded once (`money`)."""
        return money(self.exact)


@dataclass(frozen=True, slots=True)
class PriceList:
    """All prices there ever were; the version is the number of entries, since none is ever taken out."""

    prices: tuple[Price, ...] = ()

    @property
    def version(self) -> int:
        """Return what a usage record names beside its rule."""
        return len(self.prices)

    def adding(self, price: Price, *, now: datetime) -> Self:
        """Return the list with one more price. Raises `PriceInThePast`, `ValueError` for a second of one start."""
        if price.starts_at < now:
            msg = f"a price cannot start in the past: {price.starts_at.isoformat()} is before {now.isoformat()}"
            raise PriceInThePast(msg)
        key = (price.item, price.provider, price.site, price.starts_at)
        if any((p.item, p.provider, p.site, p.starts_at) == key for p in self.prices):
            msg = f"{price.item} has a price from {price.starts_at.isoformat()} on at this place already"
            raise ValueError(msg)
        return type(self)((*self.prices, price))

    def at(self, item: str, moment: datetime, *, provider: str = "", site: str = "") -> Price:
        """Return the price in force: of the provider, else of the site, else the general one. Raises `NoPrice`."""
        found = max(
            (
                price
                for price in self.prices
                if price.item == item
                and price.starts_at <= moment
                and price.provider in {"", provider}
                and price.site in {"", site}
            ),
            key=lambda price: (bool(price.provider), bool(price.site), price.starts_at),
            default=None,
        )
        if found is None:
            where = f" at {provider or site}" if provider or site else ""
            msg = f"{item} has no price{where} on {moment.date().isoformat()}"
            raise NoPrice(msg)
        return found

    def hourly(
        self, demand: Mapping[str, Decimal | int], moment: datetime, *, provider: str = "", site: str = ""
    ) -> Decimal:
        """Return what a demand costs per hour at a moment. Raises `NoPrice`, `BadDimension`."""
        parts = (
            Fraction(amount) * Fraction(self.at(item, moment, provider=provider, site=site).amount)
            for item, amount in _priced(demand)
        )
        return money(sum(parts, start=Fraction(0)))

    def cost(
        self,
        demand: Mapping[str, Decimal | int],
        start: datetime,
        end: datetime,
        *,
        provider: str = "",
        site: str = "",
    ) -> Cost:
        """Return what a demand costs over [start, end), split where prices change.

        Raises `NoPrice`, `BadDimension`, `ValueError` if the time runs backwards.
        """
        if end < start:
            raise ValueError("a time cannot end before it starts")
        charges: list[Charge] = []
        for item, amount in _priced(demand):
            changes = {p.starts_at for p in self.prices if p.item == item and start < p.starts_at < end}
            edges = [start, *sorted(changes), end]
            for left, right in pairwise(edges):
                if left == right:
                    continue
                price = self.at(item, left, provider=provider, site=site)
                if charges and charges[-1].price == price and charges[-1].end == left:
                    left = charges.pop().start  # noqa: PLW2901  a price of another place changed, not this one
                charges.append(Charge(item, amount, price, left, right))
        return Cost(tuple(charges))


def is_priced(dimension: str) -> bool:
    """Tell whether a dimension costs money by the hour. Raises `BadDimension`."""
    parsed = parse_dimension(dimension)
    return parsed.profile is None if isinstance(parsed, GpuDimension) else parsed in PRICED_PLAIN


def money(exact: Fraction, *, places: int = 6) -> Decimal:
    """Return a fraction as a Decimal with `places` decimals, rounded half to even."""
    # Fraction.__round__ is exact and rounds half to even; the scaled value is a whole number.
    return Decimal(round(exact * 10**places)).scaleb(-places)


def _refuse_float(item: str, amount: object) -> None:
    if isinstance(amount, float):
        msg = f"{item}: amounts are exact, use int or Decimal"
        raise TypeError(msg)


def _priced(demand: Mapping[str, Decimal | int]) -> Iterator[tuple[str, Decimal | int]]:
    for item, amount in sorted(demand.items()):
        _refuse_float(item, amount)
        if amount and is_priced(item):
            yield item, amount


# --- hours ----------------------------------------------------------------------------------------


def hour_of(moment: datetime) -> datetime:
    """Return the start of the UTC hour that holds an aware moment."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def split_hours(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """Yield (UTC hour, start, end) for the part of [start, end) in each hour; nothing for an empty time."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    while start < end:
        hour = hour_of(start)
        stop = min(end, hour + HOUR)
        yield hour, start, stop
        start = stop


# --- the account of a GPU -------------------------------------------------------------------------


class Use(StrEnum):
    """What a part of a GPU was during a time. Every slot at every moment is exactly one of these."""

    BILLED = "billed"
    HELD_UNBILLED = "held-unbilled"
    RESERVED = "reserved"
    FREE = "free"
    FOREIGN = "foreign"
    MAINTENANCE = "maintenance"
    FAULT = "fault"


class DoubleBooked(ValueError):
    """Two uses claim one slot at one moment, or a use lies outside its GPU: the ledger is wrong."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One use of [slot, slot + size) of a GPU during [start, end)."""

    slot: int
    size: int
    use: Use
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Account:
    """Slot-microseconds of one GPU by use over a time."""

    capacity: int
    """Slots × microseconds."""
    by_use: Mapping[Use, int]

    @property
    def balanced(self) -> bool:
        """True if the parts add up to the capacity exactly."""
        return sum(self.by_use.values()) == self.capacity

    def slot_hours(self, use: Use) -> Fraction:
        """Return one part in slot-hours, exactly."""
        return Fraction(self.by_use[use], HOUR_US)


def account(slots: int, start: datetime, end: datetime, intervals: Iterable[Interval]) -> Account:
    """Return the account of one GPU over [start, end) from its intervals, which may stick out of it.

    Free time is measured as the gaps on each slot, not as what is left over, so that `balanced` is a check and
    no definition. Raises `DoubleBooked` if two intervals overlap or one lies outside the GPU, `ValueError` for
    an interval or a time that runs backwards.
    """
    if end < start:
        raise ValueError("a time cannot end before it starts")
    by_slot: list[list[Interval]] = [[] for _ in range(slots)]
    for part in intervals:
        if part.slot < 0 or part.size < 1 or part.slot + part.size > slots:
            msg = f"[{part.slot}, {part.slot + part.size}) is not on a GPU of {slots} slots"
            raise DoubleBooked(msg)
        if part.end < part.start:
            raise ValueError("an interval cannot end before it starts")
        if max(part.start, start) < min(part.end, end):
            for slot in range(part.slot, part.slot + part.size):
                by_slot[slot].append(part)
    totals = dict.fromkeys(Use, 0)
    for slot, parts in enumerate(by_slot):
        reached = start
        for part in sorted(parts, key=lambda p: (p.start, p.end)):
            left, right = max(part.start, start), min(part.end, end)
            if left < reached:
                msg = (
                    f"slot {slot} is {part.use} from {left.isoformat()} on, something else until {reached.isoformat()}"
                )
                raise DoubleBooked(msg)
            totals[Use.FREE] += (left - reached) // MICROSECOND
            totals[part.use] += (right - left) // MICROSECOND
            reached = right
        totals[Use.FREE] += (end - reached) // MICROSECOND
    return Account(slots * ((end - start) // MICROSECOND), totals)
