"""MachineSpec → the object of its virtual machine, the steps on it, and the changes that each step makes. Pure.

The object is applied once, powered off; after that each step changes its own fields alone, so one step takes nothing
of another's back, and what the Supervisor's webhooks have filled in stays. What a step has made true is recorded on
the object, with what it wrote, so that a look which knows no spec can say whether it is still so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import MARK_DOMAIN, DriverRejected, MachineSpec, Power, Step, machine_uuid
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.nodes import gib
from provisioners.kubernetes.objects import Object, dig
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.vm_service import bootstrap, network
from provisioners.kubernetes.vm_service.kinds import CLONE, CONFIGURE, POWER, VM
from provisioners.steps import make
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.names import instance_uuid

RECORD: Final = f"{MARK_DOMAIN}/want."
"""Before the last word of a step's name: the annotation with what the step made true."""
ON: Final = "PoweredOn"
OFF: Final = "PoweredOff"
SUSPENDED: Final = "Suspended"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about one machine that its steps need."""

    spec: MachineSpec
    seed: Seed


def steps(spec: MachineSpec) -> tuple[Step, Step, Step]:
    """Return the steps of a machine. Raises `DriverRejected` with the field.

    The host is in no want: which one a machine runs on is the Supervisor's choice, and it moves them.
    """
    if not spec.image:
        raise DriverRejected("image: a machine needs one")
    if spec.disk_gib < 0:
        raise DriverRejected("disk_gib: below 0")
    unit = spec.unit
    seed = Seed(
        instance_id=machine_uuid(unit.uid),
        hostname=spec.ref.name,
        ssh_keys=spec.ssh_keys,
        ssh_ca=spec.ssh_ca,
        ssh_principals=spec.ssh_principals,
        ssh_revoked_url=spec.ssh_revoked_url,
    )
    bootstrap.check(seed)
    plan = Plan(spec, seed)
    origin: dict[str, object] = {"boundary": str(spec.boundary.uid), "image": spec.image, "unit": str(unit.uid)}
    if spec.build > 1:
        origin["build"] = spec.build
    fitted = {
        "product": unit.product,
        "profile": unit.profile,
        "gpu_count": unit.gpu_count,
        "vcpu": unit.vcpu,
        "memory_gib": unit.memory_gib,
        "disk_gib": spec.disk_gib,
    }
    power = {"power": str(spec.power), "cut_off": spec.cut_off}
    return (
        make(spec.ref, CLONE, origin, plan, replaces=True),
        make(spec.ref, CONFIGURE, fitted, plan),
        make(spec.ref, POWER, power, plan),
    )


def build(step: Step, plan: Plan, api: str, class_name: str, settings: Settings) -> Object:
    """Return the virtual machine, powered off, with our mark and the record of `vm.clone`."""
    spec, unit = plan.spec, plan.spec.unit
    wanted: Object = {
        "className": class_name,
        "imageName": spec.image,
        "biosUUID": str(machine_uuid(unit.uid)),
        "powerState": OFF,
        "powerOffMode": "TrySoft",
        "network": network.of(spec.ref, settings.vm_network),
        "bootstrap": {"cloudInit": bootstrap.cloud_init_of(spec.ref, plan.seed)},
    }
    if settings.vm_instance_uuid:
        wanted["instanceUUID"] = instance_uuid(spec.ref, None)
    if settings.storage_class:
        wanted["storageClass"] = settings.storage_class
    if spec.disk_gib:
        wanted["advanced"] = _disk(spec.disk_gib)
    record = record_text(step.want, unit=str(unit.uid), profile=unit.profile)
    made: Object = {
        "apiVersion": api,
        "kind": VM,
        "metadata": {
            "name": spec.ref.name,
            "namespace": spec.boundary.name,
            "annotations": {key_of(CLONE): record},
        },
        "spec": wanted,
    }
    return marks.marked(made, spec.ref, step=CLONE, want=step.want)


# --- changes --------------------------------------------------------------------------------------


def configured(step: Step, plan: Plan, class_name: str, live: Object) -> Object:
    """Return the patch that fits a machine, which is off, and records it."""
    spec: Object = {}
    if dig(live, "spec", "className") != class_name:
        spec["className"] = class_name
    if plan.spec.disk_gib and boot_disk(live) != plan.spec.disk_gib:
        spec["advanced"] = _disk(plan.spec.disk_gib)
    record = record_text(step.want, **{"class": class_name, "disk_gib": plan.spec.disk_gib})
    return _patch(live, {key_of(CONFIGURE): record}, spec)


def powered(step: Step, plan: Plan, live: Object) -> Object:
    """Return the patch that sets the wanted power and records it."""
    state = state_of(plan.spec.power, cut_off=plan.spec.cut_off, now=str(dig(live, "spec", "powerState", default="")))
    record = record_text(step.want, state=state)
    return _patch(live, {key_of(POWER): record}, {"powerState": state})


def switched(live: Object, state: str) -> Object:
    """Return the patch that sets a machine's power and nothing else."""
    return _patch(live, {}, {"powerState": state})


def undone(live: Object, step: str) -> Object:
    """Return the patch that forgets `vm.configure`, or switches a machine off and forgets which power was wanted."""
    return _patch(live, {key_of(step): None}, {"powerState": OFF} if step == POWER else {})


def state_of(power: Power, *, cut_off: bool, now: str) -> str:
    """Return `spec.powerState`; `now`: what it says.

    A machine that is cut off is suspended: its memory stays and nobody can talk with it. One that does not run is left
    off, for a Supervisor suspends only what runs.
    """
    if power is Power.OFF:
        return OFF
    if not cut_off:
        return ON
    return SUSPENDED if now in {ON, SUSPENDED} else OFF


def _patch(live: Object, annotations: Mapping[str, str | None], spec: Object) -> Object:
    metadata: Object = {"uid": marks.uid_of(live)}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"metadata": metadata, **({"spec": spec} if spec else {})}


def _disk(gib: int) -> Object:
    return {"bootDiskCapacity": f"{gib}Gi"}


def boot_disk(vm: Object) -> int:
    """Return the size that is asked for the first disk, in GiB; 0: as the image has it."""
    return gib(dig(vm, "spec", "advanced", "bootDiskCapacity", default=0))


# --- records --------------------------------------------------------------------------------------


def key_of(step: str) -> str:
    """Return the annotation of a step's record."""
    return RECORD + step.rpartition(".")[2]


def record_text(want: str, **made: Any) -> str:
    """Return the text of a record."""
    return json.dumps({"want": want, **made}, sort_keys=True)


def record(vm: Object, step: str) -> dict[str, Any]:
    """Return what a step recorded, empty where there is nothing or nonsense."""
    try:
        found = json.loads(marks.annotations_of(vm).get(key_of(step), "") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
