"""Which size a unit had when: what multiplies time by size cuts the time where the size changed.

The present size stands in the unit's row (or, once that is purged, in its `UsageSubject`), former ones in `UnitSize`.
Reads only, in the caller's read block. `tenants.usage_sums` does the same in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from uuid import UUID

from tenants.models import UnitSize

BEGINNING = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Size:
    """What a unit has of its host beside its GPUs, and its disk."""

    vcpu: int
    memory_gib: int
    disk_gib: int = 0


@dataclass(frozen=True, slots=True)
class Sized:
    """A size that ended."""

    size: Size
    until: datetime


def former(allocations: Iterable[UUID]) -> dict[UUID, list[Sized]]:
    """Return unit → its former sizes, oldest first; only of units that had any. One query."""
    found: dict[UUID, list[Sized]] = {}
    for row in UnitSize.objects.filter(allocation_id__in=list(allocations)).order_by("until"):
        size = Size(row.vcpu, row.memory_gib, row.disk_gib)
        found.setdefault(row.unit_id, []).append(Sized(size, row.until))
    return found


def amounts(
    present: Mapping[str, int], past: Sequence[Mapping[str, int]], ends: Sequence[datetime]
) -> Iterator[tuple[str, int, datetime, datetime]]:
    """Yield (item, amount, since, until) of each item, unbroken as long as its amount is the same; pure.

    `past[n]` was so until `ends[n]`, the first from the beginning on; `present` is so since the last of them.
    """
    edges = [BEGINNING, *ends, END]
    for item in present:
        stages = [(values[item], edges[at], edges[at + 1]) for at, values in enumerate((*past, present))]
        for amount, alike in groupby(stages, key=lambda stage: stage[0]):
            same = list(alike)
            yield item, amount, same[0][1], same[-1][2]
