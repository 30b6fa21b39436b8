"""The account of every GPU and hour: what it was used for adds up to what it is, exactly.

billed + held unbilled + reserved + free + foreign + maintenance + fault = capacity, in slots × microseconds.
Built from usage records alone; beside the sums it asks whether records overlap, and whether those that are
open leave exactly the slots free that the ledger's masks give out. Reads only; all rows show to workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Q

from tenants.models import GpuDevice, UsageRecord
from tenants.pricing import HOUR_US, Account, DoubleBooked, Interval, Use, account, split_hours
from tenants.states import HoldKind

AT_ONCE: Final = 500
"""Devices read at once."""
_USES: Final = {
    HoldKind.FOREIGN: Use.FOREIGN,
    HoldKind.MAINTENANCE: Use.MAINTENANCE,
    HoldKind.FAULT: Use.FAULT,
    HoldKind.RESERVED: Use.RESERVED,
}


@dataclass(frozen=True, slots=True)
class GpuHour:
    """One GPU in one UTC hour, or the part of it in which it was there."""

    device: UUID
    short_id: str
    hour: datetime
    account: Account


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A GPU whose account does not come out."""

    device: UUID
    short_id: str
    detail: str


@dataclass(slots=True)
class EstateAccount:
    """The sums over all GPUs, by hour and use, and what does not fit."""

    capacity: dict[datetime, int] = field(default_factory=dict)
    """Hour → slot-microseconds."""
    by_use: dict[datetime, dict[Use, int]] = field(default_factory=dict)
    gpu_hours: int = 0
    """How many (GPU, hour) were looked at."""
    mismatches: list[Mismatch] = field(default_factory=list)

    def slot_hours(self, use: Use) -> Fraction:
        """Return one use over all hours in slot-hours."""
        return Fraction(sum(parts[use] for parts in self.by_use.values()), HOUR_US)

    @property
    def capacity_slot_hours(self) -> Fraction:
        """Return the capacity over all hours in slot-hours."""
        return Fraction(sum(self.capacity.values()), HOUR_US)

    @property
    def balanced(self) -> bool:
        """Whether the uses of every hour add up to its capacity and nothing was found."""
        return not self.mismatches and all(
            sum(self.by_use[hour].values()) == capacity for hour, capacity in self.capacity.items()
        )


def of_estate(start: datetime, end: datetime, *, now: datetime) -> EstateAccount:
    """Return the account of all GPUs over [start, end), nothing beyond `now`; in a read block of a worker."""
    total = EstateAccount()
    end = min(end, now)
    if end <= start:
        return total
    known = GpuDevice.objects.filter(Q(removed_at=None) | Q(removed_at__gt=start), created_at__lt=end)
    numbers = list(known.order_by("number").values_list("number", flat=True))
    for first in range(0, len(numbers), AT_ONCE):
        devices = list(GpuDevice.objects.filter(number__in=numbers[first : first + AT_ONCE]).order_by("number"))
        records = _records([device.pk for device in devices], start, end)
        for device in devices:
            _add(total, device, records.get(device.pk, []), start, end)
    if end == now:
        total.mismatches += _against_masks()
    return total


def _add(
    total: EstateAccount,
    device: GpuDevice,
    records: Sequence[UsageRecord],
    start: datetime,
    end: datetime,
) -> None:
    try:
        for line in of_device(device, records, start, end):
            total.gpu_hours += 1
            parts = total.by_use.setdefault(line.hour, dict.fromkeys(Use, 0))
            total.capacity[line.hour] = total.capacity.get(line.hour, 0) + line.account.capacity
            for use, amount in line.account.by_use.items():
                parts[use] += amount
            if not line.account.balanced:
                detail = f"{line.hour.isoformat()}: the parts do not add up to the capacity"
                total.mismatches.append(Mismatch(device.pk, device.short_id, detail))
    except DoubleBooked as error:
        total.mismatches.append(Mismatch(device.pk, device.short_id, str(error)))


def of_device(device: GpuDevice, records: Sequence[UsageRecord], start: datetime, end: datetime) -> Iterator[GpuHour]:
    """Yield the account of each hour of [start, end) in which a GPU was there. Raises `DoubleBooked`.

    A GPU is there from when it was first known until it was removed, or its last hold ended if that was later.
    """
    intervals = [interval for record in records for interval in intervals_of(record, end)]
    since = min([device.created_at, *(interval.start for interval in intervals)])
    until = end
    if device.removed_at is not None:
        until = max([device.removed_at, *(interval.end for interval in intervals)])
    for hour, left, right in split_hours(max(start, since), min(end, until)):
        mine = [part for part in intervals if part.start < right and part.end > left]
        yield GpuHour(device.pk, device.short_id, hour, account(device.slots, left, right, mine))


def intervals_of(record: UsageRecord, end: datetime) -> Iterator[Interval]:
    """Yield what a usage record was, in time order: a tenant's hold is unbilled, billed, unbilled again."""
    start, stop = record.held_from, max(record.held_from, record.held_to or end)
    if record.kind != HoldKind.TENANT.value:
        yield Interval(record.start, record.size, _USES[HoldKind(record.kind)], start, stop)
        return
    left = min(max(start, record.billable_from or stop), stop)
    right = min(max(left, record.billable_to or stop), stop)
    for use, begins, ends in (
        (Use.HELD_UNBILLED, start, left),
        (Use.BILLED, left, right),
        (Use.HELD_UNBILLED, right, stop),
    ):
        if begins < ends:
            yield Interval(record.start, record.size, use, begins, ends)


def _records(devices: Iterable[UUID], start: datetime, end: datetime) -> dict[UUID, list[UsageRecord]]:
    found: dict[UUID, list[UsageRecord]] = {}
    rows = UsageRecord.objects.filter(
        Q(held_to=None) | Q(held_to__gt=start), device_id__in=list(devices), held_from__lt=end
    )
    for row in rows.order_by("held_from", "pk"):
        found.setdefault(row.device_id, []).append(row)
    return found


def _against_masks() -> Iterator[Mismatch]:
    """Yield GPUs where the open records leave other slots free than the ledger does now; one statement, one moment."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT g.id, g.short_id, g.free, m.free FROM tenants_gpudevice g CROSS JOIN LATERAL ("
            "SELECT ((1 << g.slots) - 1) & ~coalesce(bit_or(ledger_mask(r.start, r.size)), 0) AS free "
            "FROM tenants_usagerecord r WHERE r.device_id = g.id AND r.held_to IS NULL) m "
            "WHERE g.free <> m.free ORDER BY g.number"
        )
        for device, short_id, given, left in cursor.fetchall():
            detail = f"open usage records leave the slots {left:b} free, the ledger gives out {given:b}"
            yield Mismatch(device, short_id, detail)
