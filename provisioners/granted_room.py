"""How much room a boundary has granted to what was given another size since it was made.

That a boundary grants room to an allocation stands in `observed["granted"]`; how much, in `observed["sizes"]`, for
those whose units were resized. Invariants: what needs more than was granted waits, so a pool is widened before anything
larger is switched on; what became smaller keeps its former room until it was seen to be smaller; and a grant is lowered
before the provider is told, so nobody takes one for good that is just being taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from tenants import unit_sizes
from tenants.models import Allocation, Boundary, Machine, Unit
from tenants.operations.surges import ROLE
from tenants.unit_sizes import Size

SIZES: Final = "sizes"
"""In `Boundary.observed`: allocation → [vCPU, memory GiB]."""
BESIDE: Final = "beside"
"""In `Boundary.observed`: the units claimed beside others for a rollout that it has room for."""


def covers(boundary: Boundary, allocation: Allocation, units: Sequence[Unit]) -> bool:
    """Whether a boundary grants an allocation the room that its units need now."""
    if str(allocation.pk) not in boundary.observed.get("granted", ()):
        return False
    if all(unit.sized_at is None for unit in units):
        return True
    vcpu, memory_gib = boundary.observed.get(SIZES, {}).get(str(allocation.pk), (0, 0))
    wanted = sum(unit.vcpu for unit in units), sum(unit.memory_gib for unit in units)
    return bool(vcpu >= wanted[0] and memory_gib >= wanted[1])


def without_room(boundary: Boundary, units: Sequence[Unit]) -> list[Unit]:
    """Return the units beside others that a boundary has no room for yet: those may run meanwhile."""
    granted = boundary.observed.get(BESIDE, ())
    return [unit for unit in units if unit.role == ROLE and str(unit.pk) not in granted]


def allocations_beside(units: Sequence[Unit]) -> tuple[UUID, ...]:
    """Return the allocations that hold a unit beside theirs."""
    return tuple({unit.allocation_id for unit in units if unit.role == ROLE})


def beside(units: Sequence[Unit]) -> tuple[str, ...]:
    """Return what is to be kept of the room for units beside others."""
    return tuple(sorted(str(unit.pk) for unit in units if unit.role == ROLE))


def needed(units: Sequence[Unit]) -> dict[UUID, Size]:
    """Return unit → the room it needs, of those that were resized: also what it had until it is seen to be smaller."""
    resized = [unit for unit in units if unit.sized_at is not None]
    if not resized:
        return {}
    owners = [unit.allocation_id for unit in resized]
    former = unit_sizes.former(owners)
    fitted = dict(Machine.objects.filter(allocation_id__in=owners).values_list("allocation_id", "fitted"))
    found = {}
    for unit in resized:
        past = former.get(unit.pk, [])[fitted.get(unit.allocation_id, 0) :]
        stages = [Size(unit.vcpu, unit.memory_gib), *(one.size for one in past)]
        found[unit.pk] = Size(max(one.vcpu for one in stages), max(one.memory_gib for one in stages))
    return found


def sizes(units: Sequence[Unit], rooms: Mapping[UUID, Size]) -> dict[str, list[int]]:
    """Return what is to be kept of the room that is granted: allocation → its sum, where a unit was resized."""
    found: dict[str, list[int]] = {}
    owners = {unit.allocation_id for unit in units if unit.pk in rooms}
    for unit in units:
        if unit.allocation_id in owners:
            room = rooms.get(unit.pk) or Size(unit.vcpu, unit.memory_gib)
            total = found.setdefault(str(unit.allocation_id), [0, 0])
            total[0] += room.vcpu
            total[1] += room.memory_gib
    return found


def lower(row: Boundary, wanted: Mapping[str, Sequence[int]]) -> None:
    """Take back, before the provider is told, what a boundary grants more than it is to. The row is locked."""
    before: dict[str, Any] = row.observed.get(SIZES, {})
    lowered = {pk: [min(pair) for pair in zip(size, wanted.get(pk, size), strict=True)] for pk, size in before.items()}
    if lowered != before:
        row.observed = {**row.observed, SIZES: lowered}
        row.save(update_fields=["observed"])
