"""What one VM is to be, and the three steps that make it so. Pure.

A step's want holds what vCenter would really look at; which GPU of a host a VM gets is in none, for that is the host's
choice. Invariant: another host, size or network alters a VM; another image or unit is another VM.
"""

from __future__ import annotations

from dataclasses import dataclass

from provisioners.driver import Power, Ref, Step, UnitSpec
from provisioners.steps import indexed, make
from provisioners.vsphere import cloud_init, vms
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.vms import CLONE, CONFIGURE, POWER


@dataclass(frozen=True, slots=True)
class VmPlan:
    """Everything about one VM that its three steps need."""

    boundary: Ref
    index: int | None
    """Of the unit, None for a machine's only one."""
    unit: UnitSpec
    image: str
    disk_gib: int
    """0: as the template has it."""
    power: Power
    cut_off: bool
    seed: Seed
    build: int = 1
    """How often it was asked for anew."""


def vm_steps(ref: Ref, plan: VmPlan) -> tuple[Step, Step, Step]:
    """Return the steps of one VM; pure. Raises `DriverRejected` for what no guest should be told."""
    cloud_init.guestinfo(plan.seed)  # refused before anything is made

    def name(step: str) -> str:
        return step if plan.index is None else indexed(step, plan.index)

    unit = plan.unit
    boundary = str(plan.boundary.uid)
    origin: dict[str, object] = {"boundary": boundary, "image": plan.image, "unit": str(unit.uid)}
    if plan.build > 1:
        origin["build"] = plan.build
    fitted = {
        "boundary": boundary,
        "unit": str(unit.uid),
        "host": unit.host,
        "product": unit.product,
        "profile": unit.profile,
        "gpu_count": unit.gpu_count,
        "vcpu": unit.vcpu,
        "memory_gib": unit.memory_gib,
        "disk_gib": plan.disk_gib,
    }
    return (
        make(ref, name(CLONE), origin, plan, replaces=True),
        make(ref, name(CONFIGURE), fitted, plan),
        make(ref, name(POWER), vms.power_want(plan.power, cut_off=plan.cut_off), plan),
    )
