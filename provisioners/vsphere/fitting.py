"""Which GPU devices a unit's VM gets on a host: vGPU types or passthrough, in the host's own words.

The ledger has chosen host and profile; the host's offer decides how that is written. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from provisioners.driver import NotSupported, TransientDriverError, UnitSpec
from provisioners.vsphere import gpu_types, hardware
from provisioners.vsphere.ground import Ground, HostPlace
from tenants import gpu_catalogue
from tenants.gpu_catalogue import WHOLE, UnknownProduct

USUAL_MMIO_GIB: Final = 512
"""For a GPU that the catalogue does not know."""
PATHS: Final = (
    "config.sharedPassthruGpuTypes",
    "config.graphicsInfo",
    "config.pciPassthruInfo",
    "hardware.pciDevice",
)
"""What `device_of` and `passthrough_of` need of a host."""
_NVIDIA: Final = 0x10DE


def gpus(ground: Ground, unit: UnitSpec, host: HostPlace) -> tuple[str, ...]:
    """Return the GPU devices of a unit's VM on a host, none for one without a GPU.

    Raises `NotSupported` where no host offers what is asked for, `TransientDriverError` where only this one does not.
    """
    if not unit.product:
        return ()
    told = ground.client.get(host.ref, *PATHS)
    if told is None:
        raise TransientDriverError(f"host {host.name} has gone")
    found = device_of(unit, told, whole=ground.settings.whole_gpus)
    if found is not None:
        return (found,) * (1 if unit.profile else max(1, unit.gpu_count))
    what = f"{unit.product} {unit.profile}".strip()
    others = ground.client.many([one.ref for one in ground.estate().hosts.values()], *PATHS)
    if any(device_of(unit, one.values, whole=ground.settings.whole_gpus) is not None for one in others):
        raise TransientDriverError(f"host {host.name} does not offer {what} now")
    raise NotSupported(f"profile: no host offers {what}")


def device_of(unit: UnitSpec, told: Mapping[str, Any], *, whole: str) -> str | None:
    """Return how one GPU of a unit is written for a host that tells this of itself, None where it offers none; pure."""
    offered = [str(one) for one in told.get("config.sharedPassthruGpuTypes") or ()]
    if unit.profile or whole == "vgpu":
        graphics = told.get("config.graphicsInfo") or ()
        found = gpu_types.offered_for(unit.product, unit.profile or WHOLE, offered, mig_only=_is_fixed(graphics))
        if found is not None or unit.profile:
            return None if found is None else hardware.vgpu(found)
    return passthrough_of(unit.product, told)


def _is_fixed(graphics: Iterable[Any]) -> bool:
    """Whether GPUs that nobody uses stand in MIG mode: then people set it, and only people can end it."""
    idle = [str(one.vgpuMode) for one in graphics if str(one.graphicsType) != "direct" and not one.vm]
    return bool(idle) and all(mode == "multiInstanceGpu" for mode in idle)


def passthrough_of(product: str, told: Mapping[str, Any]) -> str | None:
    """Return the way to any device of a product that the host gives away whole."""
    labels = {
        str(one.id): str(getattr(one, "hardwareLabel", None) or "")
        for one in told.get("config.pciPassthruInfo") or ()
        if one.passthruActive
    }
    names = {str(one.pciId): str(one.deviceName) for one in told.get("config.graphicsInfo") or ()}
    for device in told.get("hardware.pciDevice") or ():
        at = str(device.id)
        known = gpu_catalogue.find_by_provider_name(names.get(at) or str(device.deviceName))
        if at in labels and (device.vendorId & 0xFFFF) == _NVIDIA and known is not None and known.id == product:
            return hardware.passthrough(device.vendorId & 0xFFFF, device.deviceId & 0xFFFF, labels[at])
    return None


def mmio_gib(product: str, count: int) -> int:
    """Return the MMIO room of a VM with so many GPUs of a product, 0 without one."""
    if not count:
        return 0
    try:
        return gpu_types.mmio_gib(product, count)
    except UnknownProduct:
        return USUAL_MMIO_GIB
