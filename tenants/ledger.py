"""The ledger as Python sees it: claim, re-place, release, dated holds, rebinding.

Every function runs inside the caller's transaction and is one call of an SQL function of migration
`0003_ledger`; those alone write holds, masks and counters. Placement takes the best mask by the
published rule of `geometry.ranked_choices`; a host whose devices are not all reported is taken only
if the worst assignment still leaves room (`host_binding.worst_case_admits`). On a GPU of a fixed layout a
free range of slots is no place: only what is carved there, or the whole of one that is not carved, which
`ledger_claim` looks for first and `ledger_take` enforces (migration `0028_fixed_layouts`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from tenants import geometry, gpu_catalogue, host_binding, no_room
from tenants.models import Allocation, GpuDevice, Hold, Host, Unit
from tenants.no_room import NoRoom
from tenants.specs import AllocationSpec
from tenants.states import Binding, BoundaryKind, HoldKind, Tier

SECOND_TRY_HOSTS: Final = 16
"""Unsettled hosts looked at when the fast path finds nothing; the queue repeats what this misses."""


@dataclass(frozen=True, slots=True)
class Placed:
    """All units are placed."""

    hosts: tuple[UUID, ...]
    """One per unit, in order."""
    provider: UUID
    kind: BoundaryKind
    """Kind of boundary in which the hosts stand."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to place: a kind of boundary and the providers that offer it, best first."""

    kind: BoundaryKind
    providers: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """One window a unit holds."""

    hold: UUID
    host: str
    device: str
    device_index: int
    start: int
    size: int
    profile: str
    product: str
    settled: bool


def place(
    allocation: Allocation, units: Sequence[Unit], spec: AllocationSpec, *, now: datetime, options: Sequence[Option]
) -> Placed | NoRoom:
    """Place all units as a gang on one provider in one kind of boundary, or none.

    `options` are tried in order: all units of an allocation share one boundary. Runs in a savepoint per
    try; the caller's locks on the tenant path come first.
    """
    options = [option for option in options if option.providers]
    if not options:
        return NoRoom("No provider that is allowed and able to do this exists.", {"providers": 0})
    for option in options:
        if len(units) == 1:
            host = _place_one(allocation, units[0], spec, now, option, avoid=[])
            if host is not None:
                return Placed((host,), _provider_of(host), option.kind)
            continue
        for provider in option.providers:
            try:
                with transaction.atomic():
                    alone = Option(option.kind, (provider,))
                    return Placed(_place_gang(allocation, units, spec, now, alone), provider, option.kind)
            except _GangFailed:
                continue
    return no_room.explain(spec, sorted({p for option in options for p in option.providers}))


class _GangFailed(Exception):
    """One unit of a gang found no room; the savepoint is rolled back."""


def _place_gang(
    allocation: Allocation, units: Sequence[Unit], spec: AllocationSpec, now: datetime, option: Option
) -> tuple[UUID, ...]:
    hosts: list[UUID] = []
    used_by_group: dict[str, list[UUID]] = {}
    largest_first = sorted(units, key=lambda u: (-_size(u), u.index))
    at: dict[UUID, UUID] = {}
    for unit in largest_first:
        avoid = used_by_group.get(unit.spread_group, []) if unit.spread_group else []
        host = _place_one(allocation, unit, spec, now, option, avoid=avoid)
        if host is None:
            raise _GangFailed
        at[unit.pk] = host
        if unit.spread_group:
            used_by_group.setdefault(unit.spread_group, []).append(host)
    hosts = [at[unit.pk] for unit in units]
    return tuple(hosts)


def _size(unit: Unit) -> int:
    return gpu_catalogue.profile(unit.product, unit.profile).size * max(1, unit.gpu_count)


def _place_one(
    allocation: Allocation,
    unit: Unit,
    spec: AllocationSpec,
    now: datetime,
    option: Option,
    *,
    avoid: list[UUID],
) -> UUID | None:
    profile = gpu_catalogue.profile(unit.product, unit.profile)
    masks, starts = geometry.ranked_arrays(unit.product, unit.profile)
    dedicated = spec.where.tier is Tier.DEDICATED_HOST
    refused = [*avoid, *(UUID(h) for h in unit.avoid_hosts)]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_claim(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                unit.pk, allocation.tenant_id, allocation.pk, unit.product, unit.profile, masks, starts, profile.size,
                profile.media, max(1, unit.gpu_count), unit.vcpu, unit.memory_gib, list(option.providers), refused,
                dedicated, [option.kind.value], now,
            ],
        )  # fmt: skip
        row = cursor.fetchone()
    host: UUID | None = row[0] if row else None
    if host is None:
        host = _second_try(allocation, unit, now, option, refused, dedicated=dedicated)
    if host is not None:
        unit.host_id, unit.placed_at = host, now
    return host


def _second_try(
    allocation: Allocation, unit: Unit, now: datetime, option: Option, avoid: list[UUID], *, dedicated: bool
) -> UUID | None:
    """Look at hosts with unreported units: admit only what the worst assignment cannot shut out."""
    if unit.gpu_count > 1:
        return None
    candidates = (
        Host.objects.filter(placeable=True, unsettled__gt=0, provider_id__in=option.providers)
        .filter(Q(boundary_kinds=[]) | Q(boundary_kinds__contains=[option.kind.value]))
        .filter(
            Exists(_recarvable(OuterRef("pk"), unit.product)),
            free_vcpu__gte=unit.vcpu,
            free_memory_gib__gte=unit.memory_gib,
        )
        .exclude(pk__in=avoid)
        .exclude(binding=Binding.DEVICE.value)
        .order_by("unsettled", "pk")
        .values_list("pk", flat=True)[:SECOND_TRY_HOSTS]
    )
    for host_id in candidates:
        found = _worst_case_window(host_id, unit)
        if found is None:
            continue
        moves, device, start = found
        if moves:
            rebind(host_id, moves, now=now)
        if _claim_at(allocation, unit, host_id, [device], [start], now=now, dedicated=dedicated):
            return UUID(str(host_id))
    return None


def _recarvable(host: UUID | OuterRef, product: str) -> QuerySet[GpuDevice]:
    """Return the open GPUs of a host whose windows are not fixed; the others need no worst case."""
    return GpuDevice.objects.filter(host=host, product=product, placeable=True).exclude(layout_change="fixed")


def _fixed_beside(host: Host, product: str) -> bool:
    """Whether a host that chooses the device by itself may have put a unit on a GPU that we do not count here."""
    return host.devices.filter(product=product, layout_change="fixed", removed_at=None).exists()


def _worst_case_window(host_id: UUID, unit: Unit) -> tuple[list[dict[str, Any]], UUID, int] | None:
    """Return moves of other guesses, device and start for one more unit on an unsettled host; None: not safely."""
    lock_host(host_id)  # a member may claim here and not write here
    host = Host.objects.get(pk=host_id)
    devices = list(_recarvable(host.pk, unit.product).order_by("number"))
    if host.binding == Binding.HOST.value and _fixed_beside(host, unit.product):
        return None
    by_number = {d.number: d for d in devices}
    holds = list(
        Hold.objects.filter(host_id=host_id, kind=HoldKind.TENANT, device_id__in=[d.pk for d in devices]).order_by("pk")
    )
    profile = gpu_catalogue.profile(unit.product, unit.profile)
    groups = [devices] if host.binding == Binding.HOST.value else [[d] for d in devices]
    for group in groups:
        ids = {d.pk for d in group}
        mine = [h for h in holds if h.device_id in ids]
        open_masks = {d.number: (d.free, d.media_free) for d in group}
        for hold in mine:
            if not hold.settled:
                free, media = open_masks[hold.device_number]
                mask = geometry.window_mask(hold.start, hold.size)
                open_masks[hold.device_number] = (free | mask, media or hold.media)
        crowd = [h.profile for h in mine if not h.settled]
        if not host_binding.worst_case_admits(unit.product, list(open_masks.values()), crowd, unit.profile):
            continue
        gpus = [host_binding.Gpu(number, free, media) for number, (free, media) in open_masks.items()]
        guesses = [host_binding.HeldUnit(str(h.pk), h.profile, h.device_number, h.start) for h in mine if not h.settled]
        answer = host_binding.make_room(unit.product, gpus, guesses, "new", unit.profile)
        if isinstance(answer, host_binding.Unexplained):
            continue
        number, start = answer.windows["new"]
        moves = [
            {
                "hold": name,
                "device": str(by_number[answer.windows[name][0]].pk),
                "start": answer.windows[name][1],
                "settled": False,
            }
            for name in answer.moved
            if name != "new"
        ]
        assert profile.size >= 1
        return moves, by_number[number].pk, start
    return None


def _claim_at(
    allocation: Allocation,
    unit: Unit,
    host_id: UUID,
    devices: Sequence[UUID],
    starts: Sequence[int],
    *,
    now: datetime,
    dedicated: bool = False,
) -> bool:
    profile = gpu_catalogue.profile(unit.product, unit.profile)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_claim_at(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                unit.pk, allocation.tenant_id, allocation.pk, host_id, list(devices), list(starts), unit.profile,
                profile.size, profile.media, unit.vcpu, unit.memory_gib, dedicated, now,
            ],
        )  # fmt: skip
        row = cursor.fetchone()
    taken = bool(row and row[0])
    if taken:
        unit.host_id, unit.placed_at = host_id, now
    return taken


def claim_windows(
    allocation: Allocation,
    unit: Unit,
    host: Host,
    devices: Sequence[GpuDevice],
    starts: Sequence[int],
    *,
    now: datetime,
) -> bool:
    """Take exactly these windows for one unit; False when any of them is not free. All or nothing."""
    return _claim_at(allocation, unit, host.pk, [d.pk for d in devices], starts, now=now)


def release(unit: Unit, *, now: datetime) -> int:
    """Give back what a unit holds; returns the number of windows, 0 when it held none. Safe to repeat."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_release(%s, %s)", [unit.pk, now])
        row = cursor.fetchone()
    unit.host_id, unit.placed_at = None, None
    return int(row[0]) if row else 0


def resize(unit: Unit, *, vcpu: int, memory_gib: int, disk_before_gib: int, now: datetime) -> str:
    """Give a placed unit another size on its host, and keep the former one for what it has used so far.

    Returns `done`, or why not: `unplaced`, `closed` (its host takes nothing more now), `full`.
    """
    answer = str(_scalar("SELECT ledger_resize(%s, %s, %s, %s, %s)", [unit.pk, vcpu, memory_gib, disk_before_gib, now]))
    unit.refresh_from_db(fields=["vcpu", "memory_gib", "sized_at"])
    return answer


def lock_host(host: UUID) -> None:
    """Lock a host for what is about to be placed or resized on it."""
    _scalar("SELECT ledger_lock_host(%s)", [host])


def replace(unit: Unit, spec: AllocationSpec, *, avoid: Sequence[UUID], now: datetime) -> bool:
    """Move a unit to another host of the same provider: old hold released, new one taken, one transaction.

    Only for a unit that was shown not to run (powered off, absent, or about to be re-made by its own
    steps). False: nowhere else has room, and it stays where it is.
    """
    allocation = unit.allocation
    size = Unit.objects.select_for_update(no_key=True).filter(pk=unit.pk).values_list("vcpu", "memory_gib")
    unit.vcpu, unit.memory_gib = size.get()  # it may have been resized since it was read
    old_host = unit.host_id
    if old_host is None:
        return False
    provider = _provider_of(old_host)
    kind = BoundaryKind(allocation.boundary.kind) if allocation.boundary else BoundaryKind.NAMESPACE
    billable = _billing_of(allocation, unit)
    refused = sorted({*unit.avoid_hosts, *(str(h) for h in avoid), str(old_host)})
    try:
        with transaction.atomic():
            release(unit, now=now)
            unit.avoid_hosts = refused
            if _place_one(allocation, unit, spec, now, Option(kind, (provider,)), avoid=[]) is None:
                raise _GangFailed  # noqa: TRY301 - leaves the savepoint
            Unit.objects.filter(pk=unit.pk).update(avoid_hosts=refused)
            _carry_billing(allocation, unit, billable)
    except _GangFailed:
        unit.refresh_from_db()
        return False
    return True


def _billing_of(allocation: Allocation, unit: Unit) -> tuple[datetime | None, datetime | None]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT min(billable_from), max(billable_to) FROM tenants_usagerecord "
            "WHERE allocation_id = %s AND unit_id = %s AND held_to IS NULL",
            [allocation.pk, unit.pk],
        )
        row = cursor.fetchone()
    return (row[0], row[1]) if row else (None, None)


def _carry_billing(allocation: Allocation, unit: Unit, billable: tuple[datetime | None, datetime | None]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE tenants_usagerecord SET billable_from = greatest(%s, held_from), billable_to = %s "
            "WHERE allocation_id = %s AND unit_id = %s AND held_to IS NULL AND %s::timestamptz IS NOT NULL",
            [billable[0], billable[1], allocation.pk, unit.pk, billable[0]],
        )


def windows_of(units: Sequence[UUID]) -> dict[UUID, list[Window]]:
    """Return unit → the windows it holds, ordered by device index; one query."""
    found: dict[UUID, list[Window]] = {unit: [] for unit in units}
    rows = (
        Hold.objects.filter(unit_id__in=list(units), kind=HoldKind.TENANT)
        .select_related("device", "host")
        .order_by("device__index", "start")
    )
    for hold in rows:
        assert hold.unit_id is not None
        found[hold.unit_id].append(
            Window(
                hold=hold.pk,
                host=hold.host.provider_ref,
                device=hold.device.provider_ref,
                device_index=hold.device.index,
                start=hold.start,
                size=hold.size,
                profile=hold.profile,
                product=hold.device.product,
                settled=hold.settled,
            )
        )
    return found


def put(
    kind: HoldKind,
    device: UUID,
    start: int,
    size: int,
    *,
    from_at: datetime,
    to_at: datetime | None,
    note: str,
    now: datetime,
    vcpu: int = 0,
    memory_gib: int = 0,
) -> UUID | None:
    """Keep a window for something that is no tenant; None when it is held in that time."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_put(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [kind.value, device, start, size, from_at, to_at, note[:300], vcpu, memory_gib, now],
        )
        row = cursor.fetchone()
    return row[0] if row else None


def drop(hold: UUID, *, now: datetime) -> bool:
    """End a hold that is no tenant's. Safe to repeat."""
    return bool(_scalar("SELECT ledger_drop(%s, %s)", [hold, now]))


def rebind(host: UUID, moves: Sequence[dict[str, Any]], *, now: datetime) -> int:
    """Correct where holds of one host lie: [{hold, device, start[, settled]}]; swaps pass. Returns how many moved."""
    return int(_scalar("SELECT ledger_rebind(%s, %s::jsonb, %s)", [host, json.dumps(list(moves), default=str), now]))


def recount(host: UUID, *, now: datetime) -> None:
    """Bring masks and counters of a host in line with its holds."""
    _scalar("SELECT ledger_recount(%s, %s)", [host, now])


def recount_all(provider: UUID, *, now: datetime) -> None:
    """Bring masks and counters of every host of a provider in line with its holds."""
    _scalar("SELECT count(ledger_recount(id, %s)) FROM tenants_host WHERE provider_id = %s", [now, provider])


def turn_dated(*, now: datetime) -> int:
    """Begin and end dated holds whose time has come; returns how many."""
    return int(_scalar("SELECT ledger_turn_dated(%s)", [now]))


def refresh_placeable(provider: UUID) -> None:
    """Say again which hosts and devices of a provider may be placed on."""
    _scalar("SELECT ledger_refresh_placeable(%s)", [provider])


def _scalar(query: str, parameters: list[Any]) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        row = cursor.fetchone()
    return row[0] if row else None


@lru_cache(maxsize=20_000)
def _provider_of(host: UUID) -> UUID:
    """Return a host's provider; a host never changes it, so the process remembers."""
    return UUID(str(Host.objects.values_list("provider_id", flat=True).get(pk=host)))
