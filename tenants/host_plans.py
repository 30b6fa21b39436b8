"""What plans over hosts share between operations and passes: who is touched, and the holds that keep room empty.

A drain moves what can be placed elsewhere (endpoints, machines) and waits for the tenants of the rest
(namespaces, bare capacity). Its maintenance holds are put on free windows at once, dated from the end of
the notice, and on the others as they come free; they end with the plan's cancel or the host's return.
Plain functions inside the caller's transaction, the host being locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from tenants import ledger
from tenants.models import GpuDevice, Hold, Host, HostPlan, Unit
from tenants.specs import AllocationSpec
from tenants.states import HoldKind, ProductKind

STRAY: Final = "stray "
"""Begins the note of a foreign hold over a unit of ours that runs where it holds nothing; its id follows."""
MOVING: Final = "moving "
"""As `STRAY`, of a unit that is being moved away: expected, so no finding. Inventory drops it when it is gone."""
PLAN: Final = "plan "
"""Begins the note of a maintenance hold; the plan's id follows."""
MOVABLE: Final = frozenset({ProductKind.ENDPOINT.value, ProductKind.MACHINE.value})

DRAIN: Final = "drain"
REPAIR: Final = "repair"
RETURN: Final = "return"
LAYOUT: Final = "layout"
WORDS: Final = {DRAIN: "drain", REPAIR: "repair", RETURN: "return", LAYOUT: "layout change"}
"""Kind of a plan → what people call it."""
GUESS: Final = " (place not reported)"
"""Ends the note of a foreign hold whose device or start the provider does not say."""


@dataclass(frozen=True, slots=True)
class Touched:
    """One unit that a plan touches."""

    unit: str
    tenant: str
    tenant_name: str
    object_kind: str
    object_id: str
    name: str
    action: str
    """`move`: re-placed elsewhere by us; `stop`: only its tenant can let go of it."""
    to: str
    """Where it would go now, `""` for nowhere."""
    state: str
    """`pending`, `moved`, `waiting for room`, `waiting for tenant`, `gone`."""

    def as_json(self) -> dict[str, Any]:
        """Return the stored shape."""
        return asdict(self)


def touched_by(host: Host, *, now: datetime, units: Sequence[Unit] | None = None) -> list[Touched]:
    """Return whom emptying a host (or moving some of its units) touches, and where movable ones would go just now.

    The movable ones are really placed, one after the other, and the whole is rolled back: what it says is what
    the ledger would do. Takes locks on other hosts until the savepoint ends.
    """
    units = units_on(host) if units is None else units
    targets: dict[UUID, str] = {}
    tried = transaction.savepoint()
    try:
        for unit in filter(movable, units):
            if ledger.replace(unit, AllocationSpec.from_json(unit.allocation.spec), avoid=[host.pk], now=now):
                targets[unit.pk] = Host.objects.values_list("name", flat=True).get(units=unit.pk)
    finally:
        transaction.savepoint_rollback(tried)
    return [_entry(unit, targets.get(unit.pk, "")) for unit in units]


def units_on(host: Host, device: GpuDevice | None = None) -> list[Unit]:
    """Return the units that hold room on a host, or on one of its GPUs, largest first."""
    rows = Unit.objects.filter(host=host).select_related("allocation__boundary", "tenant")
    if device is not None:
        rows = rows.filter(holds__device=device).distinct()
    return largest_first(rows)


def largest_first(units: Iterable[Unit]) -> list[Unit]:
    """Return units in the order in which they are moved."""
    return sorted(units, key=lambda unit: (-unit.gpu_count, -unit.vcpu, str(unit.pk)))


def movable(unit: Unit) -> bool:
    """Whether we may re-place a unit; what is being deleted goes by itself."""
    return unit.allocation.product_kind in MOVABLE and unit.allocation.deletion_requested_at is None


def _entry(unit: Unit, to: str) -> Touched:
    allocation = unit.allocation
    bare = allocation.product_id is None
    return Touched(
        unit=str(unit.pk),
        tenant=str(unit.tenant_id),
        tenant_name=unit.tenant.name,
        object_kind="allocation" if bare else allocation.product_kind,
        object_id=str(allocation.pk if bare else allocation.product_id),
        name=allocation.name,
        action="move" if allocation.product_kind in MOVABLE else "stop",
        to=to,
        state="pending",
    )


def progress(plan: HostPlan) -> list[dict[str, Any]]:
    """Return a plan's touched units with their state of now."""
    units = {str(unit.pk): unit for unit in Unit.objects.filter(pk__in=[entry["unit"] for entry in plan.touched])}
    started = bool(plan.observed.get("started"))
    answer = []
    for entry in plan.touched:
        unit = units.get(entry["unit"])
        if unit is None or unit.released_at is not None or unit.host_id is None:
            state = "gone"
        elif unit.host_id != plan.host_id:
            state = "moved"
        elif not started:
            state = "pending"
        else:
            state = "waiting for room" if entry["action"] == "move" else "waiting for tenant"
        answer.append({**entry, "state": state})
    return answer


# --- holds --------------------------------------------------------------------------------------------


def keep_empty(plan: HostPlan, *, now: datetime) -> int:
    """Put the plan's maintenance holds on all free windows that it empties; returns how many were put."""
    start = max(plan.starts_at, now)
    put = 0
    devices = GpuDevice.objects.filter(host_id=plan.host_id, removed_at__isnull=True)
    if plan.kind == LAYOUT:
        devices = devices.filter(pk__in=[gpu["id"] for gpu in plan.layout["gpus"] if gpu["differs"]])
    for device in devices.order_by("number"):
        taken = 0
        for hold in Hold.objects.filter(device=device):
            taken |= ((1 << hold.size) - 1) << hold.start
        for at, size in runs(((1 << device.slots) - 1) & ~taken):
            hold_id = ledger.put(
                HoldKind.MAINTENANCE, device.pk, at, size, from_at=start, to_at=None, note=f"{PLAN}{plan.pk}", now=now
            )
            put += hold_id is not None
    return put


def empty_all(provider: UUID, *, now: datetime) -> None:
    """Do what `empty` does for every host of a provider, all being locked; statements do not grow with the hosts."""
    held = Hold.objects.filter(host__provider=provider).order_by("device_number", "start")
    for pk in held.values_list("pk", flat=True):
        ledger.drop(pk, now=now)
    GpuDevice.objects.filter(provider=provider, removed_at__isnull=True).update(removed_at=now, placeable=False)
    ledger.recount_all(provider, now=now)


def empty(host: Host, *, now: datetime) -> None:
    """Drop what is no tenant's and take the GPUs off the list, the host being locked."""
    for pk in Hold.objects.filter(host=host).order_by("device_number", "start").values_list("pk", flat=True):
        ledger.drop(pk, now=now)
    GpuDevice.objects.filter(host=host, removed_at__isnull=True).update(removed_at=now, placeable=False)
    ledger.recount(host.pk, now=now)


def give_back(host: Host, *, now: datetime, plan: HostPlan | None = None) -> int:
    """Drop every maintenance hold of a host, or those of one plan; returns how many."""
    holds = Hold.objects.filter(host=host, kind=HoldKind.MAINTENANCE.value).order_by("device_number", "start")
    if plan is not None:
        holds = holds.filter(note=f"{PLAN}{plan.pk}")
    return sum(ledger.drop(pk, now=now) for pk in holds.values_list("pk", flat=True))


def move(unit: Unit, *, now: datetime) -> bool:
    """Re-place a unit on another host; its old windows stay out of the market until it is seen to be gone there.

    False: nowhere else has room now.
    """
    old = list(Hold.objects.filter(unit=unit).order_by("device_number", "start"))
    spec = AllocationSpec.from_json(unit.allocation.spec)
    before = unit.host_id
    if before is None or not ledger.replace(unit, spec, avoid=[before], now=now):
        return False
    for hold in old:
        ledger.put(
            HoldKind.FOREIGN, hold.device_id, hold.start, hold.size, from_at=now, to_at=None, now=now,
            note=f"{MOVING}{unit.pk}",
        )  # fmt: skip
    return True


def still_leaving(host: Host) -> bool:
    """Whether a unit that was moved away, or one that should not be here, may still run on the host."""
    return (
        Hold.objects.filter(host=host, kind=HoldKind.FOREIGN.value, note__startswith=MOVING).exists()
        or Hold.objects.filter(host=host, kind=HoldKind.FOREIGN.value, note__startswith=STRAY).exists()
    )


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield (start, size) of each run of set bits, ascending."""
    start = 0
    while mask >> start:
        if not mask >> start & 1:
            start += 1
            continue
        size = 1
        while mask >> (start + size) & 1:
            size += 1
        yield start, size
        start += size
