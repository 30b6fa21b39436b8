"""The roll-up of what is billed: made by workers once an hour, read by `tenants.billed`, checked by the audit.

It holds sums of days up to a full hour (`through`) and what goes on from there. What changed since is known
(`UsageChange`, written by triggers with the change itself): changes after `through` are worked out from the records
of the objects that changed, changes before it make a reader take the tenant's records instead until the next roll.
So sums are exact at every moment, and the roll-up may be lost or made anew at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.db.models import Min

from tenants import quota, usage_sums
from tenants.actor import SYSTEM
from tenants.models import (
    EndpointUsage,
    Price,
    Tenant,
    UsageChange,
    UsageDay,
    UsageRecord,
    UsageRollup,
    UsageStanding,
)
from tenants.transactions import acting
from tenants.usage_sums import BilledSum, Piece

DAY: Final = timedelta(days=1)
HOUR: Final = timedelta(hours=1)
INSTANT: Final = timedelta(microseconds=1)
PATIENCE: Final = timedelta(minutes=5)
"""So long after its end an hour is rolled up: who counts tokens in it has committed by then, or leaves a change."""
MOST_DAYS: Final = 31
"""Of one step."""
LOOKED_BACK: Final = timedelta(days=35)
"""So far back the audit compares."""


def day_of(moment: datetime) -> datetime:
    """Return the start of the UTC day that holds a moment."""
    return datetime.combine(moment.astimezone(UTC).date(), time(), UTC)


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What of some tenants may be taken from the roll-up."""

    through: datetime | None = None
    tenants: tuple[UUID, ...] = ()
    """Those whose roll-up goes to `through` and misses nothing before it."""
    others: tuple[UUID, ...] = ()
    """Those whose records have to be read."""


def state(tenants: Sequence[UUID] | None) -> State:
    """Return how far the roll-up of these tenants goes, or of all that the caller sees; one statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT t.id, r.through, r.tenant_id IS NOT NULL AND usage_is_whole(r) FROM tenants_tenant t "
            "LEFT JOIN tenants_usagerollup r ON r.tenant_id = t.id "
            "WHERE %(tenants)s::uuid[] IS NULL OR t.id = ANY (%(tenants)s::uuid[])",
            {"tenants": list(tenants) if tenants is not None else None},
        )
        rows = cursor.fetchall()
    through = max((at for _tenant, at, is_whole in rows if is_whole), default=None)
    good = tuple(tenant for tenant, at, is_whole in rows if is_whole and at == through)
    known = set(good)
    return State(through, good, tuple(tenant for tenant, _at, _is_whole in rows if tenant not in known))


@dataclass(slots=True)
class Split:
    """A time in what the roll-up has of it, what goes on since, and parts of days that it has not apart."""

    days: list[tuple[datetime, datetime]] = field(default_factory=list)
    """(since, start of the day)."""
    rest: list[Piece] = field(default_factory=list)
    tail: list[Piece] = field(default_factory=list)


def split(edges: Sequence[datetime], through: datetime) -> Split:
    """Split the times between edges by what a roll-up through a moment has of them."""
    found, today = Split(), day_of(through)
    for lo, hi in pairwise(edges):
        reached = lo
        first, last = day_of(lo + DAY - INSTANT), min(day_of(hi), today)
        if first < last:
            if lo < first:
                found.rest.append(Piece(lo, first, lo))
            found.days += [(lo, first + n * DAY) for n in range((last - first) // DAY)]
            reached = last
        if reached == today < through <= hi:
            found.days.append((lo, today))
            reached = through
        middle = min(hi, max(reached, through))
        if reached < middle:
            found.rest.append(Piece(reached, middle, lo))
        if middle < hi:
            found.tail.append(Piece(middle, hi, lo))
    return found


def read(edges: Sequence[datetime], known: State) -> Iterator[BilledSum]:
    """Yield what the tenants of `known` were billed between each two edges, in parts that add up."""
    assert known.through is not None
    parts = split(edges, known.through)
    mine = known.tenants
    yield from _days(parts.days, mine)
    yield from usage_sums.capacity(parts.rest, tenants=mine)
    yield from usage_sums.tokens([*parts.rest, *parts.tail], tenants=mine)
    if parts.tail:
        yield from _going_on(parts.tail, known.through, mine)


def _days(days: Sequence[tuple[datetime, datetime]], tenants: Sequence[UUID]) -> list[BilledSum]:
    if not days:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT d.tenant_id, d.provider_id, d.item, s.since, sum(d.quantity) FROM tenants_usageday d "
            "JOIN unnest(%s::timestamptz[], %s::date[]) AS s(since, day) ON s.day = d.day "
            "WHERE d.tenant_id = ANY (%s::uuid[]) GROUP BY 1, 2, 3, 4",
            [[since for since, _day in days], [day.date() for _since, day in days], list(tenants)],
        )
        return [BilledSum(*row) for row in cursor.fetchall()]


def _going_on(tail: Sequence[Piece], through: datetime, tenants: Sequence[UUID]) -> Iterator[BilledSum]:
    """Yield what goes on since `through`, what of it does not, and what came beside it."""
    standing = UsageStanding.objects.filter(tenant_id__in=tenants, amount__gt=0)
    amounts = [BilledSum(*row) for row in standing.values_list("tenant_id", "provider_id", "item", "since", "amount")]
    changes = UsageChange.objects.filter(tenant_id__in=tenants, at__gt=through, allocation_id__isnull=False)
    changed = list(changes.order_by().values_list("allocation_id", flat=True).distinct())
    if changed:
        keys = [key for key in changed if key is not None]
        stood = usage_sums.capacity(_instant(through), tenants=tenants, allocations=keys)
        amounts += [BilledSum(one.tenant, one.provider, one.item, through, -one.quantity * 1_000_000) for one in stood]
        yield from usage_sums.capacity(tail, tenants=tenants, allocations=keys)
    for piece in tail:
        seconds = Decimal((piece.hi - piece.lo) // INSTANT).scaleb(-6)
        for one in amounts:
            yield BilledSum(one.tenant, one.provider, one.item, piece.since, one.quantity * seconds)


def _instant(at: datetime) -> list[Piece]:
    """Return the shortest time from a moment on: what is billed in it, a million times, is billed at that moment."""
    return [Piece(at, at + INSTANT, at)]


def to_come(known: State, now: datetime, end: datetime) -> list[BilledSum] | None:
    """Return what stood at `through` will be billed over [now, end), each to its own end as known then.

    None where the roll-up cannot tell: it is of another month, not of all, or prices change otherwise than it knew.
    """
    through = known.through
    if through is None or known.others or not through <= now < end:
        return None
    if UsageRollup.objects.filter(tenant_id__in=known.tenants).exclude(ends=end).exists():
        return None
    edges = set(edges_of(now, end)[1:-1])
    rows = list(
        UsageStanding.objects.filter(tenant_id__in=known.tenants).values_list(
            "tenant_id", "provider_id", "item", "since", "amount", "to_come"
        )
    )
    if {row[3] for row in rows} - {through} - edges or (rows and edges - {row[3] for row in rows}):
        return None
    passed = Decimal((now - through) // INSTANT).scaleb(-6)
    return [
        BilledSum(tenant, provider, item, max(since, now), to_come - amount * passed)
        for tenant, provider, item, since, amount, to_come in rows
    ]


def edges_of(start: datetime, end: datetime) -> list[datetime]:
    """Return start, each moment between at which any price changes, and end."""
    changes = Price.objects.filter(price_list__valid_from__gt=start, price_list__valid_from__lt=end)
    return [start, *sorted(set(changes.values_list("price_list__valid_from", flat=True))), end]


# --- making ---------------------------------------------------------------------------------------


def roll_all(now: datetime) -> int:
    """Bring every tenant's roll-up to the last full hour; return how many tenants had something to roll."""
    through = (now - PATIENCE).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with acting(SYSTEM):
        _pass_over(through)
        wanted = _behind(through)
    for tenant in wanted:
        while roll(tenant, through):
            pass
    return len(wanted)


def rebuild(tenant: Tenant, now: datetime) -> None:
    """Forget a tenant's roll-up and make it anew from the records."""
    through = (now - PATIENCE).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with acting(SYSTEM):
        UsageRollup.objects.filter(pk=tenant.pk).delete()
    while roll(tenant.pk, through):
        pass


def _pass_over(through: datetime) -> None:
    """Move on all at once where nothing is billed and nothing changed; a change that commits later is a late one."""
    ends = quota.month_of(through).end
    values = {"through": through, "ends": ends, "today": day_of(through)}
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE tenants_usagerollup r SET through = %(through)s, ends = %(ends)s WHERE r.through < %(through)s "
            "AND NOT EXISTS (SELECT FROM tenants_usagestanding s WHERE s.tenant_id = r.tenant_id) "
            "AND NOT EXISTS (SELECT FROM tenants_usagechange c WHERE c.tenant_id = r.tenant_id) "
            "AND NOT EXISTS (SELECT FROM tenants_endpointusage e WHERE e.tenant_id = r.tenant_id "
            "AND e.hour >= r.through)",
            values,
        )
        cursor.execute(
            "INSERT INTO tenants_usagerollup (tenant_id, through, ends) SELECT t.id, %(through)s, %(ends)s "
            "FROM tenants_tenant t WHERE NOT EXISTS (SELECT FROM tenants_usagerollup r WHERE r.tenant_id = t.id) "
            "AND NOT EXISTS (SELECT FROM tenants_usagerecord u WHERE u.tenant_id = t.id) "
            "AND NOT EXISTS (SELECT FROM tenants_endpointusage e WHERE e.tenant_id = t.id) ON CONFLICT DO NOTHING",
            values,
        )


def _behind(through: datetime) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT t.id FROM tenants_tenant t LEFT JOIN tenants_usagerollup r ON r.tenant_id = t.id "
            "WHERE r.tenant_id IS NULL OR r.through < %s OR NOT usage_is_whole(r) ORDER BY t.id",
            [through],
        )
        return [key for (key,) in cursor.fetchall()]


def roll(tenant: UUID, through: datetime) -> bool:
    """Bring one tenant's roll-up up to a full hour, at most `MOST_DAYS` in one step; whether more is to do.

    The row of the roll-up is its lock. What was noted before the records are read is in what is read.
    """
    with acting(SYSTEM):
        row = UsageRollup.objects.select_for_update().filter(pk=tenant).first()
        noted = list(UsageChange.objects.filter(tenant_id=tenant, at__lte=through).values_list("pk", "at"))
        first = _first_day(tenant, row, min((at for _key, at in noted), default=through), through)
        until = min(through, first + MOST_DAYS * DAY)
        days = [first + n * DAY for n in range((until - first) // DAY + 1)]
        pieces = [Piece(day, min(day + DAY, until), day) for day in days if day < until]
        mine = [tenant]
        sums = [*usage_sums.capacity(pieces, tenants=mine), *usage_sums.tokens(pieces, tenants=mine)]
        UsageDay.objects.filter(tenant_id=tenant, day__gte=first.date()).delete()
        UsageDay.objects.bulk_create(
            UsageDay(
                tenant_id=tenant, provider_id=one.provider, day=one.since.astimezone(UTC).date(), item=one.item,
                quantity=one.quantity,
            )
            for one in sums
        )  # fmt: skip
        ends = quota.month_of(until).end
        assert ends is not None
        _stand(tenant, until, ends)
        UsageChange.objects.filter(pk__in=[key for key, at in noted if at <= until]).delete()
        UsageRollup.objects.update_or_create(tenant_id=tenant, defaults={"through": until, "ends": ends})
    return until < through


def _first_day(tenant: UUID, row: UsageRollup | None, changed: datetime, through: datetime) -> datetime:
    """Return from which day on the roll-up has to be made: the one that is not over, or an earlier one that changed."""
    if row is not None:
        return day_of(min(row.through, changed, through))
    records = UsageRecord.objects.filter(tenant_id=tenant, billable_from__isnull=False)
    found = (
        records.aggregate(at=Min("billable_from"))["at"],
        EndpointUsage.objects.filter(tenant_id=tenant).aggregate(at=Min("hour"))["at"],
    )
    return day_of(min(at for at in (*found, through) if at is not None))


def _stand(tenant: UUID, at: datetime, ends: datetime) -> None:
    """Keep what is billed at a moment, and what of it is to come until `ends`."""
    edges = edges_of(at, ends)
    pieces = [Piece(lo, hi, lo) for lo, hi in pairwise(edges)]
    stood = usage_sums.capacity(_instant(at), tenants=[tenant])
    amounts = {(one.provider, one.item, one.since): one.quantity * 1_000_000 for one in stood}
    come = {(one.provider, one.item, one.since): one.quantity for one in usage_sums.to_come(pieces, tenants=[tenant])}
    places = {(provider, item) for provider, item, _since in (*amounts, *come)}
    UsageStanding.objects.filter(tenant_id=tenant).delete()
    UsageStanding.objects.bulk_create(
        UsageStanding(
            tenant_id=tenant, provider_id=provider, item=item, since=piece.since,
            amount=amounts.get((provider, item, piece.since), Decimal(0)),
            to_come=come.get((provider, item, piece.since), Decimal(0)),
        )
        for provider, item in sorted(places, key=str)
        for piece in pieces
    )  # fmt: skip


# --- checking -------------------------------------------------------------------------------------


def differences() -> Iterator[tuple[UUID, str]]:
    """Yield (tenant, what differs) wherever the roll-up says otherwise than the records; nothing where all agrees.

    Tenants with a change that the roll-up has yet to take in are left out: readers do not use it either.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT r.through, array_agg(r.tenant_id) FROM tenants_usagerollup r WHERE usage_is_whole(r) GROUP BY 1"
        )
        groups = cursor.fetchall()
    for through, tenants in groups:
        first = day_of(through - LOOKED_BACK)
        days = [first + n * DAY for n in range((through - first) // DAY + 1)]
        pieces = [Piece(day, min(day + DAY, through), day) for day in days if day < through]
        sums = [*usage_sums.capacity(pieces, tenants=tenants), *usage_sums.tokens(pieces, tenants=tenants)]
        kept = UsageDay.objects.filter(tenant_id__in=tenants, day__gte=first.date())
        yield from _compared(
            {(one.tenant, one.provider, one.item, one.since.astimezone(UTC).date()): one.quantity for one in sums},
            {row[:4]: row[4] for row in kept.values_list("tenant_id", "provider_id", "item", "day", "quantity")},
        )
        stood = usage_sums.capacity(_instant(through), tenants=tenants)
        standing = UsageStanding.objects.filter(tenant_id__in=tenants, amount__gt=0)
        yield from _compared(
            {(one.tenant, one.provider, one.item, "standing"): one.quantity * 1_000_000 for one in stood},
            {
                (row[0], row[1], row[2], "standing"): row[3]
                for row in standing.values_list("tenant_id", "provider_id", "item", "amount")
            },
        )


def _compared(records: dict[Any, Decimal], kept: dict[Any, Decimal]) -> Iterator[tuple[UUID, str]]:
    for key in sorted({*records, *kept}, key=str):
        billed, rolled = records.get(key, Decimal(0)), kept.get(key, Decimal(0))
        if billed != rolled:
            yield key[0], f"{key[3]}: {key[2]} at {key[1]} rolled up as {rolled}, the records say {billed}"
