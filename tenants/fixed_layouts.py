"""Places on GPUs whose layout nobody changes: what is carved already, or a GPU that is not carved at all.

On such a GPU a free range of slots is worth nothing unless a MIG device of the asked profile lies in it, so the
best mask of `geometry` does not count; these hosts are left out of the ledger's general choice and asked here. On a
host that chooses the device by itself, devices of one profile stand for each other: any free one will do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db.models import Q

from tenants import geometry
from tenants.gpu_catalogue import WHOLE
from tenants.models import GpuDevice, MigDevice, Unit
from tenants.states import BoundaryKind

FIXED: Final = "fixed"
MOST: Final = 64
"""Places that are tried, best first; who loses a race for one takes the next."""


@dataclass(frozen=True, slots=True)
class Place:
    """One host with the devices and starts that a unit would take there."""

    host: UUID
    devices: tuple[UUID, ...]
    starts: tuple[int, ...]


def hosts(product: str, providers: Collection[UUID]) -> list[UUID]:
    """Return the hosts that have GPUs of a product with a fixed layout."""
    fixed = GpuDevice.objects.filter(
        product=product, provider_id__in=list(providers), layout_change=FIXED, removed_at=None
    )
    return list(fixed.order_by().values_list("host_id", flat=True).distinct())


def places(unit: Unit, *, among: Collection[UUID], kind: BoundaryKind, avoid: Collection[UUID] = ()) -> Iterator[Place]:
    """Yield places for a unit on hosts with fixed layouts, the fullest GPU first."""
    devices = (
        GpuDevice.objects.filter(product=unit.product, host_id__in=list(among), layout_change=FIXED, removed_at=None)
        .filter(placeable=True, host__placeable=True)
        .filter(host__free_vcpu__gte=unit.vcpu, host__free_memory_gib__gte=unit.memory_gib)
        .filter(Q(host__boundary_kinds=[]) | Q(host__boundary_kinds__contains=[kind.value]))
        .exclude(host_id__in=list(avoid))
    )
    known = list(devices.only("pk", "host_id", "number", "product", "free", "media_free", "mode"))
    windows: dict[UUID, list[MigDevice]] = defaultdict(list)
    for window in MigDevice.objects.filter(device_id__in=[device.pk for device in known]):
        windows[window.device_id].append(window)
    found = _whole(unit, known, windows) if unit.profile == WHOLE else _carved(unit, known, windows)
    for number, place in enumerate(found):
        if number == MOST:
            return
        yield place


def _carved(unit: Unit, devices: Sequence[GpuDevice], windows: dict[UUID, list[MigDevice]]) -> Iterator[Place]:
    ranked = []
    for device in devices:
        for window in windows[device.pk]:
            mask = geometry.window_mask(window.start, window.size)
            if window.profile == unit.profile and device.free & mask == mask:
                ranked.append((device.free.bit_count(), device.number, window.start, device))
    for _, _, start, device in sorted(ranked, key=lambda each: each[:3]):
        yield Place(device.host_id, (device.pk,), (start,))


def _whole(unit: Unit, devices: Sequence[GpuDevice], windows: dict[UUID, list[MigDevice]]) -> Iterator[Place]:
    empty: dict[UUID, list[GpuDevice]] = defaultdict(list)
    for device in devices:
        is_carved = bool(windows[device.pk]) or device.mode in {"mig", "unknown"}
        if not is_carved and device.free == geometry.full_mask(device.product):
            empty[device.host_id].append(device)
    count = max(1, unit.gpu_count)
    for host, there in sorted(empty.items(), key=lambda each: (len(each[1]), each[0])):
        if len(there) >= count:
            chosen = sorted(there, key=lambda device: device.number)[:count]
            yield Place(host, tuple(device.pk for device in chosen), (0,) * count)
