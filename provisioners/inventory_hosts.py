"""What a host is, against its rows: totals, health, GPUs and their carved MIG devices.

Pure comparison: `compare` says what differs, `inventory.py` writes it under the host's lock. Absence counts
only in a complete snapshot, and even then a GPU that tenants hold stays: it is unhealthy, until another one
with its product shows at its place (it was replaced, and its holds move over) or its holders have gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from provisioners.driver import ObservedGpu, ObservedHost
from tenants import geometry, gpu_catalogue
from tenants.findings import BINDING_CHANGED, GPU_MISSING, HOST_MISSING, PRODUCT_CHANGED, Seen
from tenants.gpu_catalogue import SoldByWindow
from tenants.models import GpuDevice, Host
from tenants.states import HostState

Windows = tuple[tuple[int, int, str], ...]
"""Carved MIG devices: (start, size, profile)."""

UNKNOWN_PRODUCT: Final = "unknown-product"
LAYOUT_MISMATCH: Final = "layout-mismatch"
HOST_SHRUNK: Final = "host-shrunk"
GPU_MOVED: Final = "gpu-moved"
CONTRADICTORY: Final = "contradictory-host"
KINDS: Final = frozenset(
    {
        UNKNOWN_PRODUCT, PRODUCT_CHANGED, LAYOUT_MISMATCH, HOST_SHRUNK, BINDING_CHANGED, HOST_MISSING, GPU_MISSING,
        GPU_MOVED, CONTRADICTORY,
    }
)  # fmt: skip
NOT_SHOWN: Final = "The provider does not show it any more."
OUR_MAINTENANCE: Final = frozenset({HostState.DRAINING.value, HostState.MAINTENANCE.value})


@dataclass(slots=True)
class News:
    """What differs between one host's rows and what is seen of it."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Columns of the host."""
    gpu_fields: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    new_gpus: list[ObservedGpu] = field(default_factory=list)
    replaced: dict[UUID, str] = field(default_factory=dict)
    """Row of a GPU that is gone → provider's id of the one at its place."""
    removed: list[UUID] = field(default_factory=list)
    layouts: dict[UUID, Windows] = field(default_factory=dict)
    findings: list[Seen] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether a row would change."""
        return bool(self.fields or self.gpu_fields or self.new_gpus or self.replaced or self.removed or self.layouts)


@dataclass(frozen=True, slots=True)
class Known:
    """Our rows of one host."""

    host: Host
    devices: Sequence[GpuDevice]
    """Not removed."""
    layouts: Mapping[UUID, frozenset[tuple[int, int, str]]]
    """Device → carved windows as stored."""
    held: Collection[UUID]
    """Devices that tenants hold room on."""


@dataclass(frozen=True, slots=True)
class Around:
    """What of the rest of the snapshot matters to one host."""

    foreign_room: tuple[int, int] = (0, 0)
    """vCPU and GiB of foreign uses without a GPU window: they make the host smaller."""
    shown_on: Mapping[str, str] = field(default_factory=dict)
    """GPU id → host that shows it."""
    rows_on: Mapping[str, str] = field(default_factory=dict)
    """GPU id → host of its live row."""
    complete: bool = True


def compare(known: Known, seen: ObservedHost | None, around: Around) -> News:
    """Return what differs; `seen` None: the provider shows no such host."""
    news = News()
    if known.host.state == HostState.REMOVED.value:
        return news
    if seen is None:
        if around.complete:
            _missing(known.host, news)
        return news
    _host(known.host, seen, around, news)
    _gpus(known, seen, around, news)
    return news


def _missing(host: Host, news: News) -> None:
    _set(news.fields, host, healthy=False, message=NOT_SHOWN)
    news.findings.append(
        Seen(HOST_MISSING, host.provider_ref, f"{host.name} is not shown by the provider any more.", host=host.pk)
    )


def _set(into: dict[str, Any], row: Any, **values: Any) -> None:
    into.update({name: value for name, value in values.items() if getattr(row, name) != value})


def _host(host: Host, seen: ObservedHost, around: Around, news: News) -> None:
    away = seen.in_maintenance and host.state not in OUR_MAINTENANCE
    message = seen.message or ("It is in maintenance at the provider." if away else "")
    _set(
        news.fields,
        host,
        name=seen.name[:200],
        healthy=seen.healthy and not away,
        message=message[:500],
        boundary_kinds=sorted(str(kind) for kind in seen.boundary_kinds),
    )
    if seen.contradictions:
        news.findings.append(
            Seen(
                CONTRADICTORY,
                host.provider_ref,
                f"{host.name} contradicts itself: {'; '.join(seen.contradictions)}."[:1000],
                host=host.pk,
                blocks_placement=True,
            )
        )
    binding = str(seen.binding)
    if binding != host.binding:
        if host.free_vcpu == host.total_vcpu and host.empty_gpus == host.gpu_count:
            news.fields["binding"] = binding
        else:
            news.findings.append(
                Seen(
                    BINDING_CHANGED,
                    host.provider_ref,
                    f"{host.name} binds GPUs by {binding} now, by {host.binding} when its room was given out.",
                    host=host.pk,
                    blocks_placement=True,
                    data={"binding": binding},
                )
            )
    for total, free, shown, less in (
        ("total_vcpu", "free_vcpu", seen.vcpu, around.foreign_room[0]),
        ("total_memory_gib", "free_memory_gib", seen.memory_gib, around.foreign_room[1]),
    ):
        _room(host, total, free, max(0, shown - less), news)


def _room(host: Host, total: str, free: str, shown: int, news: News) -> None:
    """Move a total and its free counter by the same amount, never below what is given out."""
    had, left = getattr(host, total), getattr(host, free)
    used = had - left
    if shown < used:
        news.findings.append(
            Seen(
                HOST_SHRUNK,
                f"{host.provider_ref}/{total.removeprefix('total_')}",
                f"{host.name} shows {shown} of {total.removeprefix('total_')}, {used} are given out.",
                host=host.pk,
                blocks_placement=True,
            )
        )
    wanted = max(shown, used)
    if wanted != had:
        news.fields |= {total: wanted, free: wanted - used}


def _gpus(known: Known, seen: ObservedHost, around: Around, news: News) -> None:
    by_ref = {device.provider_ref: device for device in known.devices}
    shown = {gpu.device: gpu for gpu in seen.gpus}
    for gpu in shown.values():
        device = by_ref.get(gpu.device)
        if device is not None:
            _gpu(known, device, gpu, news)
        elif around.rows_on.get(gpu.device, seen.host) != seen.host:
            news.findings.append(
                Seen(
                    GPU_MOVED,
                    gpu.device,
                    f"{gpu.device} is shown on {known.host.name}, its row is on another host.",
                    host=known.host.pk,
                )
            )
        elif gpu.product not in {item.id for item in gpu_catalogue.products()}:
            news.findings.append(
                Seen(
                    UNKNOWN_PRODUCT,
                    gpu.device,
                    f"{gpu.device} on {known.host.name} is a {gpu.product!r}, which the catalogue does not know; "
                    "it is left alone.",
                    host=known.host.pk,
                )
            )
        else:
            news.new_gpus.append(gpu)
    if around.complete:
        for device in known.devices:
            if device.provider_ref not in shown:
                _gone(known, device, around, news)
    products = {device.product for device in known.devices if device.provider_ref in shown}
    products |= {gpu.product for gpu in news.new_gpus}
    _set(news.fields, known.host, gpu_product=products.pop() if len(products) == 1 else "")


def _gpu(known: Known, device: GpuDevice, gpu: ObservedGpu, news: News) -> None:
    fields: dict[str, Any] = {}
    if gpu.product != device.product:
        news.findings.append(
            Seen(
                PRODUCT_CHANGED,
                gpu.device,
                f"{gpu.device} on {known.host.name} was a {device.product} and is shown as {gpu.product!r}.",
                host=known.host.pk,
                device=device.pk,
                blocks_placement=True,
            )
        )
    windows = frozenset(gpu.windows)
    fault = geometry_fault(device.product, windows)
    if fault is not None:
        news.findings.append(
            Seen(
                LAYOUT_MISMATCH,
                gpu.device,
                f"{gpu.device} on {known.host.name} shows a layout that the catalogue does not explain: {fault}.",
                host=known.host.pk,
                device=device.pk,
                blocks_placement=True,
            )
        )
    _set(
        fields,
        device,
        index=gpu.index,
        mode=gpu.mode,
        layout_change=gpu.layout_change,
        healthy=gpu.healthy,
        message=gpu.message[:500],
    )
    if windows and fault is None and not device.windows_trusted:
        fields["windows_trusted"] = True
    if fields:
        news.gpu_fields[device.pk] = fields
    if fault is None and windows != known.layouts.get(device.pk, frozenset()):
        news.layouts[device.pk] = tuple(sorted(windows))


def geometry_fault(product_id: str, windows: Collection[tuple[int, int, str]]) -> str | None:
    """Return why carved windows contradict the catalogue, None if they do not."""
    try:
        for start, size, name in windows:
            if gpu_catalogue.profile(product_id, name).size != size:
                return f"{name} at {start} is shown with {size} slots"
        return geometry.packing_fault(product_id, [(start, name) for start, _, name in sorted(windows)])
    except LookupError as error:
        return str(error.args[0])


def _gone(known: Known, device: GpuDevice, around: Around, news: News) -> None:
    """A GPU that a complete list does not show: replaced, moved away, or lost."""
    heir = next((gpu for gpu in news.new_gpus if gpu.index == device.index), None)
    if heir is not None and heir.product == device.product:
        news.replaced[device.pk] = heir.device
        return
    if device.pk not in known.held and (heir is not None or device.provider_ref in around.shown_on):
        news.removed.append(device.pk)
        return
    fields: dict[str, Any] = {}
    _set(fields, device, healthy=False, message=NOT_SHOWN)
    if fields:
        news.gpu_fields[device.pk] = fields
    news.findings.append(
        Seen(
            GPU_MISSING,
            device.provider_ref,
            f"{device.provider_ref} on {known.host.name} is not shown by the provider any more.",
            host=known.host.pk,
            device=device.pk,
        )
    )


def new_device(host: Host, gpu: ObservedGpu, *, now: Any) -> GpuDevice:
    """Return the unsaved row of a GPU that is new; its number comes from the sequence."""
    product = gpu_catalogue.product(gpu.product)
    trusted = product.sold_by_window is not SoldByWindow.AFTER_MATCHING_REPORT or bool(
        gpu.windows and geometry_fault(gpu.product, gpu.windows) is None
    )
    return GpuDevice(
        host=host,
        provider_id=host.provider_id,
        provider_ref=gpu.device,
        index=gpu.index,
        product=gpu.product,
        slots=product.slices,
        free=geometry.full_mask(gpu.product),
        mode=gpu.mode,
        layout_change=gpu.layout_change,
        healthy=gpu.healthy,
        message=gpu.message[:500],
        windows_trusted=trusted,
        created_at=now,
    )
