"""Who uses the GPUs of one host: VMs that run there, with the windows of their devices, as exactly as is told. Pure.

vCenter tells which VMs are on a GPU (`graphicsInfo[].vm`) and never where on it; which of a VM's several devices lies
on which GPU is told only where there is no choice. What is not told stays open (`device` is `""`), for a place that was
guessed wrongly would let two tenants have one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from pyVmomi import vim

from provisioners.driver import ObservedUse, Ref
from provisioners.vsphere import gpu_types
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.gpu_types import GpuType
from provisioners.vsphere.reading_hosts import Gpu, Host
from tenants import geometry, gpu_catalogue
from tenants.gpu_catalogue import WHOLE

OTHERS: Final = "other virtual machines"
UNSEEN: Final = "a VM that our account may not see"
_Passthrough: Final = vim.vm.device.VirtualPCIPassthrough


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU device of a VM."""

    type: str = ""
    """vGPU type; `""` for passthrough."""
    pci: str = ""
    """Of a passthrough device, where it is told."""


@dataclass(frozen=True, slots=True)
class Vm:
    """One VM that runs."""

    ref: MoRef
    name: str
    vcpu: int
    memory_mib: int
    devices: tuple[Device, ...]
    owner: Ref | None = None
    unit: UUID | None = None
    is_whole: bool = False
    """Whether it was to have whole GPUs: on one that stays in MIG mode that is a MIG device of all slices."""


def devices_of(hardware: Iterable[Any]) -> tuple[Device, ...]:
    """Return the GPU devices among a VM's hardware, by key."""
    found = []
    for one in sorted((one for one in hardware if isinstance(one, _Passthrough)), key=lambda one: int(one.key)):
        match one.backing:
            case _Passthrough.VmiopBackingInfo():
                found.append(Device(type=str(one.backing.vgpu or "")))
            case _Passthrough.DynamicBackingInfo():
                found.append(Device(pci=str(one.backing.assignedId or "")))
            case _Passthrough.DeviceBackingInfo():
                found.append(Device(pci=str(one.backing.id or "")))
            case _:
                found.append(Device())
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Taken:
    device: Gpu | None
    type: GpuType | None
    """None for a whole GPU by passthrough, and for a type that nothing explains."""
    slots: int


def uses_of(
    host: Host, vms: Sequence[Vm], visible: Collection[MoRef] = ()
) -> tuple[tuple[ObservedUse, ...], tuple[str, ...]]:
    """Return the uses of a host's room by VMs that run there, and what of it cannot all be true.

    `visible` are further VMs that can be read and do not run there: one that has just stopped may still be shown.
    """
    uses: list[ObservedUse] = []
    taken: dict[str, list[tuple[Vm, _Taken]]] = {}
    rest_vcpu, rest_mib = 0, 0
    turns: set[str] = set()
    """GPUs on which somebody is shown who takes turns: others there add no window."""
    for vm in sorted(vms, key=lambda one: one.name):
        if not vm.devices and vm.owner is None:
            rest_vcpu, rest_mib = rest_vcpu + vm.vcpu, rest_mib + vm.memory_mib
            continue
        windows = _placed(host, vm) or (None,)
        for position, window in enumerate(windows):
            if window is not None and window.device is not None:
                taken.setdefault(window.device.device, []).append((vm, window))
            uses.append(_use(host, vm, window, first=position == 0, turns=turns))
    if rest_vcpu or rest_mib:
        uses.append(ObservedUse(host.name, "", None, 0, "", None, None, OTHERS, rest_vcpu, _gib(rest_mib)))
    uses += _unseen(host, {*visible, *(vm.ref for vm in vms)})
    return tuple(uses), tuple(_contradictions(taken))


def _use(host: Host, vm: Vm, window: _Taken | None, *, first: bool, turns: set[str]) -> ObservedUse:
    device = window.device.device if window is not None and window.device is not None else ""
    kind = window.type if window is not None else None
    size = window.slots if window is not None else 0
    start: int | None = None
    profile = kind.profile if kind is not None else WHOLE
    if vm.is_whole and kind is not None and kind.fills:
        profile, start = WHOLE, 0 if device else None
    elif window is not None and kind is not None and kind.is_mig:
        starts = gpu_catalogue.profile(kind.product, kind.profile).starts if kind.product else ()
        start = starts[0] if len(starts) == 1 else None
    elif window is not None:
        start = 0 if device else None
        if device and kind is not None and not kind.fills:
            size, start = (0, None) if device in turns else (size, start)
            turns.add(device)
    return ObservedUse(
        host=host.name,
        device=device,
        start=start,
        size=size,
        profile=profile,
        ref=vm.owner,
        unit=vm.unit,
        name=vm.name,
        vcpu=vm.vcpu if first else 0,
        memory_gib=_gib(vm.memory_mib) if first else 0,
    )


def _placed(host: Host, vm: Vm) -> tuple[_Taken | None, ...]:
    """Return where each of a VM's devices is, as far as there is no choice."""
    on = [gpu for gpu in host.gpus if vm.ref in gpu.vms]
    by_pci = {gpu.pci: gpu for gpu in host.gpus}
    found: list[_Taken | None] = []
    shared = [one for one in vm.devices if one.type]
    for position, one in enumerate(vm.devices):
        if not one.type:
            gpu = by_pci.get(one.pci) or _only([gpu for gpu in on or host.gpus if gpu.passthrough])
            found.append(_Taken(gpu, None, gpu.slots if gpu is not None else _largest(host)))
            continue
        able = [gpu for gpu in on or host.gpus if not gpu.passthrough and _carries(gpu, one.type)]
        equal = len({other.type.lower() for other in shared}) == 1
        gpu = _only(able)
        if gpu is None and on and equal and len(able) == len(shared):
            # as many GPUs as equal devices, and none of the GPUs is idle: one on each
            gpu = able[sum(1 for other in vm.devices[:position] if other.type)]
        found.append(_taken(host, gpu, one.type))
    return tuple(found)


def _taken(host: Host, gpu: Gpu | None, name: str) -> _Taken:
    products = {one.product for one in host.gpus if one.is_known and not one.passthrough}
    product = gpu.product if gpu is not None else (products.pop() if len(products) == 1 else "")
    kind = gpu_types.read(name, product=product) or gpu_types.read(name)
    if kind is None or not kind.size:
        return _Taken(gpu, None, (gpu.slots if gpu is not None else 0) or _largest(host))
    return _Taken(gpu, kind, kind.size)


def _carries(gpu: Gpu, name: str) -> bool:
    """Whether a GPU may carry a type: a string that nothing explains may be on any."""
    known = gpu_types.read(name)
    return known is None or not known.product or known.product == gpu.product or not gpu.is_known


def _only(found: Sequence[Gpu]) -> Gpu | None:
    return found[0] if len(found) == 1 else None


def _largest(host: Host) -> int:
    return max((gpu.slots for gpu in host.gpus), default=0)


def _unseen(host: Host, seen: set[MoRef]) -> Iterator[ObservedUse]:
    """Yield whole GPUs on which the host shows somebody whom we cannot read: all that others leave may be his."""
    for gpu in host.gpus:
        if gpu.slots and (strangers := sorted(set(gpu.vms) - seen)):
            name = f"{UNSEEN} ({strangers[0].id})"
            yield ObservedUse(host.name, gpu.device, 0, gpu.slots, WHOLE, None, None, name)


def _contradictions(taken: Mapping[str, Sequence[tuple[Vm, _Taken]]]) -> Iterator[str]:
    """Name GPUs that carry what cannot be on one GPU at once."""
    for device, found in sorted(taken.items()):
        names = ", ".join(sorted({vm.name for vm, _ in found}))
        kinds = [window.type for _, window in found]
        migs = [kind for kind in kinds if kind is not None and kind.is_mig]
        if migs and len(migs) < len(found):
            yield f"{device} carries MIG-backed and whole devices at once ({names})"
        elif len(found) > 1 and any(kind is None or kind.fills for kind in kinds):
            yield f"{device} carries a whole device and another one ({names})"
        elif migs and not _fit(migs):
            yield f"{device} carries more MIG devices than fit on it ({names})"


def _fit(types: Sequence[GpuType]) -> bool:
    products = {one.product for one in types}
    if len(products) != 1 or not (product := products.pop()):
        return True  # nothing is known of its geometry
    return geometry.arrangement(product, [one.profile for one in types]) is not None


def _gib(mib: int) -> int:
    return math.ceil(mib / 1024)
