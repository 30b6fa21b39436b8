"""What one host's properties say of it: its room, its GPUs, what they can carry, and what is to be mended. Pure.

A GPU is known by the host's name and its PCI address, both of which outlive a rebuilt inventory. Its product comes from
its name, then from its PCI id, then from the vGPU types that the host offers; never from a guess between two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provisioners.vsphere import gpu_types
from provisioners.vsphere.client import Found, MoRef, reference
from tenants import gpu_catalogue
from tenants.gpu_catalogue import WHOLE

PATHS: Final = (
    "name", "parent", "customValue", "runtime.connectionState", "runtime.inMaintenanceMode", "runtime.powerState",
    "summary.hardware.numCpuThreads", "summary.hardware.memorySize", "config.graphicsInfo", "config.graphicsConfig",
    "config.sharedPassthruGpuTypes", "config.product.version",
)  # fmt: skip
PCI_PATHS: Final = ("hardware.pciDevice", "config.pciPassthruInfo")
"""Long lists that change at a boot only; read once in a while."""
SHARED_DIRECT: Final = "sharedDirect"
DIRECT: Final = "direct"
MIG_MODE: Final = "multiInstanceGpu"
NVIDIA: Final = 0x10DE
_DISPLAY: Final = 0x03
"""PCI base class of display controllers: VGA (0x0300) and 3D (0x0302)."""
_FOR_ITSELF: Final = 0.06
"""Part of a host's memory that ESXi and the overhead of VMs take; GPU VMs lock all of theirs."""

NO_MANAGER: Final = (
    "It offers no vGPU types: add the NVIDIA vGPU manager to the cluster's image and remediate the host, or give its "
    "GPUs to VMs by passthrough."
)
NOT_SHARED: Final = (
    "Its graphics are {seen}, and vGPUs need Shared Direct: set host and GPU to Shared Direct (Configure, Graphics), "
    "then restart the host."
)
RESTART: Final = "Shared Direct is set and not in force: restart the host."
NO_MIG: Final = (
    "It offers no MIG-backed vGPU types, so only whole GPUs are given out: switch MIG on and restart the host."
)
GONE: Final = {
    "disconnected": "It is disconnected from vCenter: connect it again (Connection, Connect).",
    "notResponding": "It does not respond to vCenter: see whether it runs and whether its management network does.",
}
OFF: Final = {
    "poweredOff": "It is powered off: power it on.",
    "standBy": "It is in standby: power it on, and keep power management (DPM) off for GPU hosts.",
}


@dataclass(frozen=True, slots=True)
class PciGpu:
    """One GPU as the host's PCI bus shows it."""

    pci: str
    product: str
    """Catalogue id, or the name that the host gives it."""
    passthrough: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU of a host."""

    device: str
    """`<host>/<PCI address>`: its stable id."""
    pci: str
    product: str
    """Catalogue id; the host's own name of it where the catalogue does not know it."""
    slots: int
    """Memory slices; 0 where the product is not known."""
    passthrough: bool
    mode: str
    """`vgpuMode`: `none`, `sameSize`, `mixedSize`, `multiInstanceGpu`."""
    vms: tuple[MoRef, ...]
    """Who is on it, as far as the host tells."""
    message: str = ""
    """What keeps it from being used, with the remedy."""
    has_mig: bool = False
    """Whether the host offers a MIG-backed type for it."""

    @property
    def is_known(self) -> bool:
        """Whether the catalogue has its product."""
        return self.slots > 0


@dataclass(frozen=True, slots=True)
class Host:
    """One host."""

    ref: MoRef
    name: str
    vcpu: int
    memory_gib: int
    """For VMs."""
    types: tuple[str, ...]
    """vGPU types that it offers, as it spells them."""
    gpus: tuple[Gpu, ...]
    connected: bool
    in_maintenance: bool
    version: str
    problems: tuple[str, ...]
    """What is to be mended before it can be used fully, each with its remedy."""

    @property
    def healthy(self) -> bool:
        """Whether a VM can be placed on it at all."""
        return self.connected


def pci_gpus(values: Mapping[str, Any]) -> tuple[PciGpu, ...]:
    """Return the GPUs on a host's PCI bus, from values read with `PCI_PATHS`."""
    active = {one.id: bool(one.passthruActive) for one in values.get("config.pciPassthruInfo") or ()}
    found = []
    for one in values.get("hardware.pciDevice") or ():
        # the API gives 16-bit numbers with a sign
        vendor, device, base = one.vendorId & 0xFFFF, one.deviceId & 0xFFFF, (one.classId & 0xFFFF) >> 8
        if vendor == NVIDIA and base == _DISPLAY:
            known = gpu_catalogue.find_by_provider_name(one.deviceName or "") or gpu_catalogue.find_by_pci_id(
                f"0x{device:04X}{vendor:04X}"
            )
            product = known.id if known is not None else str(one.deviceName or f"10de:{device:04x}")
            found.append(PciGpu(str(one.id), product, active.get(one.id, False)))
    return tuple(found)


def read(found: Found, pci: Sequence[PciGpu] = ()) -> Host:
    """Return what a host's values, read with `PATHS`, say."""
    values = found.values
    name = str(values.get("name", ""))
    state, power = str(values.get("runtime.connectionState", "")), str(values.get("runtime.powerState", ""))
    types = tuple(values.get("config.sharedPassthruGpuTypes") or ())
    gpus = _gpus(name, values, types, {one.pci: one for one in pci})
    problems = [GONE[state]] if state in GONE else []
    problems += [OFF[power]] if state == "connected" and power in OFF else []
    problems += dict.fromkeys(gpu.message for gpu in gpus if gpu.message)
    if any(gpu.is_known and not gpu.passthrough and not gpu.message and _lacks_mig(gpu) for gpu in gpus):
        problems.append(NO_MIG)
    return Host(
        ref=found.ref,
        name=name,
        vcpu=int(values.get("summary.hardware.numCpuThreads") or 0),
        memory_gib=int((values.get("summary.hardware.memorySize") or 0) / 2**30 * (1 - _FOR_ITSELF)),
        types=types,
        gpus=gpus,
        connected=state == "connected" and power not in OFF,
        in_maintenance=bool(values.get("runtime.inMaintenanceMode")),
        version=str(values.get("config.product.version") or ""),
        problems=tuple(problems),
    )


def _lacks_mig(gpu: Gpu) -> bool:
    return not gpu.has_mig and bool(gpu_catalogue.product(gpu.product).placeable)


def _gpus(host: str, values: Mapping[str, Any], types: tuple[str, ...], pci: Mapping[str, PciGpu]) -> tuple[Gpu, ...]:
    shown = {str(one.pciId): one for one in values.get("config.graphicsInfo") or () if one.pciId}
    found = []
    for address in sorted({*shown, *(one.pci for one in pci.values() if one.passthrough)}):
        info, on_bus = shown.get(address), pci.get(address)
        if info is not None and not _is_gpu(info, on_bus):
            continue  # the board's own display controller
        product = _product(info, on_bus, types)
        known = next((one for one in gpu_catalogue.products() if one.id == product), None)
        passthrough = on_bus.passthrough if on_bus is not None else info is not None and info.graphicsType == DIRECT
        mig = {t.profile for name in types if (t := gpu_types.read(name, product=product)) is not None and t.is_mig}
        found.append(
            Gpu(
                device=f"{host}/{address}",
                pci=address,
                product=product,
                slots=known.slices if known is not None else 0,
                passthrough=passthrough,
                mode=str((info.vgpuMode if info is not None else "") or "none"),
                vms=tuple(reference(vm) for vm in (info.vm if info is not None else ()) or ()),
                message="" if passthrough else _fault(info, types, _wanted(values, address)),
                has_mig=bool(mig),
            )
        )
    return tuple(found)


def _is_gpu(info: Any, on_bus: PciGpu | None) -> bool:
    named = gpu_catalogue.find_by_provider_name(str(info.deviceName or ""))
    return on_bus is not None or named is not None or "nvidia" in str(info.vendorName or "").lower()


def _product(info: Any, on_bus: PciGpu | None, types: Iterable[str]) -> str:
    name = str(info.deviceName or "") if info is not None else ""
    known = gpu_catalogue.find_by_provider_name(name)
    if known is not None:
        return known.id
    ids = {one.id for one in gpu_catalogue.products()}
    if on_bus is not None and on_bus.product in ids:
        return on_bus.product
    carried = gpu_types.products_of(types)
    return next(iter(carried)) if len(carried) == 1 else name or (on_bus.product if on_bus is not None else "")


def _wanted(values: Mapping[str, Any], address: str) -> str:
    """Return the graphics type that a GPU is set to have after the next start, `""` where nothing is said."""
    config = values.get("config.graphicsConfig")
    if config is None:
        return ""
    own = {one.deviceId: one.graphicsType for one in config.deviceType or ()}
    return str(own.get(address) or config.hostDefaultGraphicsType or "")


def _fault(info: Any, types: tuple[str, ...], wanted: str) -> str:
    seen = str(info.graphicsType or "") if info is not None else ""
    if not types:
        return NO_MANAGER
    if seen == SHARED_DIRECT:
        return ""
    return RESTART if wanted == SHARED_DIRECT else NOT_SHARED.format(seen=seen or "not told")


def can_be_used(host: Host, gpu: Gpu) -> bool:
    """Whether anything that we give out can be made of a GPU."""
    return gpu.passthrough or gpu.has_mig or gpu_types.offered_for(gpu.product, WHOLE, host.types) is not None
