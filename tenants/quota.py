"""Limits against demand: the arithmetic of quotas, over the whole time that is asked for.

Pure: the caller locks the path of tenants and reads limits and usage; this says whether a demand passes,
until when, what is missing where, and what to ask for. Amounts are exact (int or Decimal), never floats.

Rules. Each dimension that a demand touches is checked at the tenant and at every ancestor. Limits of one
tenant on one dimension add up while they last. No limit means zero, except that counts per MIG profile are
limited only where somebody set a limit. A dimension that a tenant inherits is decided further up; a limit of
its own wins over `inherits`; the root has nothing to inherit from. Usage counts as lasting: a promised end
makes no room in a check, it only tells the earliest time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from tenants.gpu_catalogue import is_optional

Amount = int | Decimal
Demand = Mapping[str, Amount]
"""Dimension → amount that a spec would add; zero amounts touch nothing."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a tenant may hold of one dimension, until `until` (exclusive) or for good."""

    tenant: str
    dimension: str
    amount: Amount
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """Use that is known to end: a promise for forecasts, no room in a check."""

    dimension: str
    at: datetime
    amount: Amount


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant and all below it hold, and what waits with its quota reserved (pending)."""

    held: Demand = field(default_factory=dict)
    pending: Demand = field(default_factory=dict)
    endings: tuple[Ending, ...] = ()

    def of(self, dimension: str) -> Amount:
        """Return held plus pending."""
        return self.held.get(dimension, 0) + self.pending.get(dimension, 0)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """One tenant of the path: its limits, what it inherits, what it uses."""

    tenant: str
    limits: tuple[Limit, ...] = ()
    inherits: frozenset[str] = frozenset()
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Span:
    """A time [start, end); open where `end` is None. Both aware."""

    start: datetime
    end: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse an empty time."""
        if self.end is not None and self.end <= self.start:
            msg = f"a time must end after it starts: {self.start.isoformat()} to {self.end.isoformat()}"
            raise ValueError(msg)

    def starting(self, at: datetime) -> Span:
        """Return the time of the same length from `at` on."""
        return Span(at, None if self.end is None else at + (self.end - self.start))


@dataclass(frozen=True, slots=True)
class Line:
    """One limit that a demand touches, as it stands at the start."""

    tenant: str
    dimension: str
    limit: Amount
    used: Amount
    demanded: Amount

    @property
    def missing(self) -> Amount:
        """Return by how much the demand goes beyond the limit; 0 if it does not."""
        return max(self.used + self.demanded - self.limit, 0)


@dataclass(frozen=True, slots=True)
class Shortage(Line):
    """A limit that is too small from `since` on, and why it cannot wait away."""

    since: datetime
    """Start of the demand, or the moment at which a limit ends."""
    earliest: datetime | None
    """When known ends of use would make room at this tenant for the whole time; None: not known."""

    def sentence(self) -> str:
        """Return it in one sentence, for people."""
        return (
            f"{self.dimension} of {self.tenant}: limit {self.limit}, {self.used} in use, "
            f"{self.demanded} asked, {self.missing} missing"
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """One row of the ready-made request: raise this limit by exactly this, until then (None: for good)."""

    tenant: str
    dimension: str
    amount: Amount
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a check."""

    during: Span
    lines: tuple[Line, ...]
    """Every limit touched, root first, by dimension."""
    shortages: tuple[Shortage, ...]
    """By time, then root first, then by dimension; one per tenant, dimension and size of the limit."""
    earliest: datetime | None
    """When the whole demand would pass for its whole length; None: already, or not known."""

    @property
    def fits(self) -> bool:
        """True if the demand passes every limit over its whole time."""
        return not self.shortages

    @property
    def fits_at_start(self) -> bool:
        """True if it passes now, though perhaps not to its end."""
        return all(short.since > self.during.start for short in self.shortages)

    @property
    def offered_until(self) -> datetime | None:
        """Return the date to which a limit that ends sooner shortens the offer; None if nothing shortens it."""
        if self.fits or not self.fits_at_start:
            return None
        return self.shortages[0].since

    @property
    def shortened_by(self) -> tuple[Shortage, ...]:
        """Return the limits that end at `offered_until`."""
        return tuple(short for short in self.shortages if short.since == self.offered_until)

    def request(self) -> tuple[Ask, ...]:
        """Return what to ask for so that exactly this demand passes, root first; empty if it fits."""
        most: dict[tuple[str, str], Amount] = {}
        for short in self.shortages:
            key = (short.tenant, short.dimension)
            most[key] = max(most.get(key, 0), short.missing)
        order = [(line.tenant, line.dimension) for line in self.lines]
        return tuple(Ask(*key, most[key], self.during.end) for key in order if key in most)


def check(path: Sequence[TenantLimits], *, demand: Demand, during: Span) -> Verdict:
    """Check a demand against every limit that it touches, over its whole time.

    `path` runs from the root to the tenant. Raises `BadDimension` for a dimension that does not exist,
    `ValueError` for a negative amount or an empty path, `TypeError` for a float.
    """
    if not path:
        raise ValueError("a check needs the path from the root to the tenant")
    asked = {dimension: _exact(dimension, amount) for dimension, amount in sorted(demand.items()) if amount}
    bound = [
        (tenant, dimension)
        for tenant, dimension in _touched(path, asked)
        if _binds(tenant, dimension, tenant is path[0])
    ]
    lines = tuple(
        Line(
            tenant=tenant.tenant,
            dimension=dimension,
            limit=limit_at(tenant, dimension, during.start),
            used=tenant.usage.of(dimension),
            demanded=asked[dimension],
        )
        for tenant, dimension in bound
    )
    shortages = [short for tenant, dimension in bound for short in _shortages(tenant, dimension, asked, during)]
    shortages.sort(key=lambda short: short.since)  # stable: root first, by dimension
    return Verdict(
        during=during,
        lines=lines,
        shortages=tuple(shortages),
        earliest=_earliest(bound, asked, during) if shortages else None,
    )


def headroom(path: Sequence[TenantLimits], dimension: str, during: Span) -> Amount | None:
    """Return how much of a dimension would still pass over the whole time, at least 0; None: not limited.

    Raises `BadDimension`.
    """
    rooms = [
        limit_at(tenant, dimension, moment) - tenant.usage.of(dimension)
        for tenant in path
        if _binds(tenant, dimension, tenant is path[0])
        for moment in _moments(tenant, dimension, during)
    ]
    return max(min(rooms), 0) if rooms else None


def limit_at(tenant: TenantLimits, dimension: str, at: datetime) -> Amount:
    """Return the sum of a tenant's own limits in force at a moment."""
    return sum(
        (
            limit.amount
            for limit in tenant.limits
            if limit.dimension == dimension and (limit.until is None or at < limit.until)
        ),
        start=0,
    )


def _exact(dimension: str, amount: Amount) -> Amount:
    if isinstance(amount, float):
        msg = f"{dimension}: amounts are exact, use int or Decimal"
        raise TypeError(msg)
    if amount < 0:
        msg = f"{dimension}: a demand cannot be negative"
        raise ValueError(msg)
    return amount


def _touched(path: Sequence[TenantLimits], asked: Demand) -> Iterator[tuple[TenantLimits, str]]:
    for tenant in path:
        for dimension in asked:
            yield tenant, dimension


def _binds(tenant: TenantLimits, dimension: str, is_root: bool) -> bool:  # noqa: FBT001
    """Tell whether this tenant has a say in a dimension: its own limit, or the zero that stands for none."""
    optional = is_optional(dimension)  # first, so that a name that does not exist is refused in any case
    if any(limit.dimension == dimension for limit in tenant.limits):
        return True
    return not optional and (is_root or dimension not in tenant.inherits)


def _moments(tenant: TenantLimits, dimension: str, during: Span) -> list[datetime]:
    """Return the start and each later moment within the time at which a limit ends."""
    ends = {
        limit.until
        for limit in tenant.limits
        if limit.dimension == dimension
        and limit.until is not None
        and limit.until > during.start
        and (during.end is None or limit.until < during.end)
    }
    return [during.start, *sorted(ends)]


def _shortages(tenant: TenantLimits, dimension: str, asked: Demand, during: Span) -> Iterator[Shortage]:
    amount = asked[dimension]
    before: Amount | None = None
    for moment in _moments(tenant, dimension, during):
        limit = limit_at(tenant, dimension, moment)
        used = tenant.usage.of(dimension)
        if moment > during.start:  # until then what should have ended is still in use
            used = max(used - _ended(tenant, dimension, moment), 0)
        if used + amount > limit and limit != before:
            earliest = _earliest([(tenant, dimension)], asked, during)
            yield Shortage(tenant.tenant, dimension, limit, used, amount, moment, earliest)
        before = limit


def _earliest(bound: Sequence[tuple[TenantLimits, str]], asked: Demand, during: Span) -> datetime | None:
    """Return the first known end of use at which all of `bound` would pass for the whole length."""
    candidates = {
        ending.at
        for tenant, dimension in bound
        for ending in tenant.usage.endings
        if ending.dimension == dimension and ending.at > during.start
    }
    return next((at for at in sorted(candidates) if _passes(bound, asked, during.starting(at))), None)


def _ended(tenant: TenantLimits, dimension: str, at: datetime) -> Amount:
    """Return how much of a tenant's use is promised to have ended by a moment."""
    ended: Amount = 0
    return sum((e.amount for e in tenant.usage.endings if e.dimension == dimension and e.at <= at), start=ended)


def _passes(bound: Sequence[tuple[TenantLimits, str]], asked: Demand, during: Span) -> bool:
    return not any(
        max(tenant.usage.of(dimension) - _ended(tenant, dimension, moment), 0) + asked[dimension]
        > limit_at(tenant, dimension, moment)
        for tenant, dimension in bound
        for moment in _moments(tenant, dimension, during)
    )


def month_of(at: datetime) -> Span:
    """Return the calendar month that holds a moment, in its own time zone: the time of `spend_month`."""
    start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Span(start, (start + timedelta(days=32)).replace(day=1))
