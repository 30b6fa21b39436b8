"""VM classes: one per shape of a machine, made by us or chosen among those that are there. Pure.

A class says one shape and is never changed: its name stands for its content, so machines of one shape share it and
another shape is another class. It is the boundary's, and goes with its namespace.

A class names each vGPU type once (`vgpuDevices` is a list of unique names), so a machine with several vGPUs of one
type can only have a class that people have made, whose `configSpec` lists them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from provisioners.driver import DriverRejected, Ref, UnitSpec
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.nodes import quantity
from provisioners.kubernetes.objects import Object, dig, name_of
from provisioners.kubernetes.vm_service.kinds import CLASS
from provisioners.vsphere import gpu_types
from tenants.gpu_catalogue import WHOLE

STEP: Final = "vm.class"
"""On our classes in the place of a step's name: no step of a boundary looks after them."""
_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """What a machine is made of."""

    vcpu: int
    memory_gib: int
    gpus: tuple[str, ...]
    """vGPU types, in order, one per device."""

    @property
    def name(self) -> str:
        """Name of its class: a DNS label that stands for the content."""
        text = json.dumps([self.vcpu, self.memory_gib, self.gpus])
        return f"{marks.OUR_NAMES}class-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def words(self) -> str:
        """Return it for people."""
        counted = [f"{self.gpus.count(name)} × {name}" for name in sorted(set(self.gpus))]
        return ", ".join([f"{self.vcpu} vCPU", f"{self.memory_gib} GiB", *counted])


def shape_of(unit: UnitSpec, offered: Iterable[str]) -> Shape:
    """Return what a unit asks for; `offered`: vGPU types that the hosts are known to have.

    Raises `DriverRejected` with the field: boards of one product have types of different names, so none is guessed.
    """
    for field, value in (("unit.vcpu", unit.vcpu), ("unit.memory_gib", unit.memory_gib)):
        if value < 1:
            raise DriverRejected(f"{field}: a machine has at least 1")
    count = 1 if unit.profile else unit.gpu_count
    if not unit.product or not count:
        return Shape(unit.vcpu, unit.memory_gib, ())
    found = gpu_types.offered_for(unit.product, unit.profile or WHOLE, offered)
    if found is None:
        asked = f"{unit.product} {unit.profile or 'as a whole'}"
        field = "unit.profile" if unit.profile else "unit.product"
        raise DriverRejected(
            f"{field}: nothing says that a host has {asked} as vGPU: no VM class of the namespace, nor the provider's "
            "vm_gpu_types"
        )
    return Shape(unit.vcpu, unit.memory_gib, (found,) * count)


def is_makeable(shape: Shape) -> bool:
    """Whether a class of ours can say the shape."""
    return len(set(shape.gpus)) == len(shape.gpus)


def build(shape: Shape, api: str, boundary: Ref) -> Object:
    """Return the class of a shape in a boundary, with the boundary's mark; memory is reserved whole for a GPU."""
    memory = f"{shape.memory_gib}Gi"
    hardware: Object = {"cpus": shape.vcpu, "memory": memory}
    spec: Object = {"hardware": hardware}
    if shape.gpus:
        hardware["devices"] = {"vgpuDevices": [{"profileName": name} for name in shape.gpus]}
        spec["policies"] = {"resources": {"requests": {"memory": memory}, "limits": {"memory": memory}}}
    metadata = {"name": shape.name, "namespace": boundary.name}
    made: Object = {"apiVersion": api, "kind": CLASS, "metadata": metadata, "spec": spec}
    return marks.marked(made, boundary, step=STEP, want=shape.name.rpartition("-")[2][:16])


# --- what is there --------------------------------------------------------------------------------


def gpus_of(found: Object) -> tuple[str, ...]:
    """Return the vGPU types of a class, one per device; what its `configSpec` lists is the whole of it."""
    changes = dig(found, "spec", "configSpec", "deviceChange", default=[])
    listed = [str(dig(one, "device", "backing", "vgpu", default="")) for one in changes]
    if any(listed):
        return tuple(name for name in listed if name)
    named = dig(found, "spec", "hardware", "devices", "vgpuDevices", default=[])
    return tuple(str(one.get("profileName", "")) for one in named)


def offered(found: Iterable[Object], configured: Sequence[str]) -> tuple[str, ...]:
    """Return the vGPU types that hosts are known to have: what is configured, and what classes of others name."""
    theirs = (one for one in found if not marks.is_made_by_us(one))
    return tuple(dict.fromkeys((*configured, *(name for one in theirs for name in gpus_of(one)))))


def fits(found: Object, shape: Shape) -> bool:
    """Whether a class makes exactly a shape: not less, and nothing that was not asked for."""
    hardware = dig(found, "spec", "hardware", default={})
    if dig(hardware, "devices", "dynamicDirectPathIODevices") or hardware.get("instanceStorage"):
        return False
    return (
        hardware.get("cpus") == shape.vcpu
        and quantity(hardware.get("memory", 0)) == shape.memory_gib * _GIB
        and sorted(name.lower() for name in gpus_of(found)) == sorted(name.lower() for name in shape.gpus)
    )


def chosen(found: Iterable[Object], shape: Shape, *, why: str) -> str:
    """Return the name of a class that makes a shape. Raises `DriverRejected` where there is none; `why` not ours."""
    names = sorted(name_of(one) for one in found if fits(one, shape) and not marks.is_deleting(one))
    if not names:
        raise DriverRejected(f"unit: the namespace has no VM class of {shape.words}, and {why}")
    return names[0]
