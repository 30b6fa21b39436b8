"""The object of a virtual machine, as read → its parts, its unit, its address. Pure.

The Supervisor's operator tells how a machine is in `status`; what it has not told yet is not there. A part shows its
want only while the fields that its step wrote are as it wrote them.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from provisioners.driver import ObservedUnit, ObservedUse, Part, Power, Presence, Ref
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import removal_handle
from provisioners.kubernetes.objects import Object, dig
from provisioners.kubernetes.reading import finalizers
from provisioners.kubernetes.vm_service.kinds import CLONE, CONFIGURE, POWER
from provisioners.kubernetes.vm_service.machine import OFF, ON, boot_disk, record
from provisioners.vsphere import gpu_types

TROUBLES: Final = (
    "VirtualMachineClassReady",
    "VirtualMachineImageReady",
    "VirtualMachineConditionVMSetResourcePolicyReady",
    "VirtualMachineStorageReady",
    "VirtualMachineBootstrapReady",
    "VirtualMachineNetworkReady",
    "VirtualMachineConditionPlacementReady",
    "VirtualMachineCreated",
    "VirtualMachineReconcileReady",
    "VirtualMachineConfigurationSynced",
    "GuestCustomization",
)
"""Conditions that say what a machine lacks while they are False, in the order in which they come about."""


def parts(ref: Ref, vm: Object, *, has_secret: bool) -> tuple[Part, ...]:
    """Return the parts of a machine, in the order of its steps; `has_secret`: what its guest is told is there."""
    if marks.is_deleting(vm):
        held = next(iter(finalizers([vm])), "")
        message = f"being removed{f': {held}' if held else ''}"
        return (Part(CLONE, Presence.CHANGING, handle=removal_handle(ref, CLONE).value, message=message, ready=False),)
    found = (_clone(vm), _configured(vm, has_secret=has_secret), _powered(ref, vm))
    return tuple(part for part in found if part.presence is not Presence.ABSENT)


def _clone(vm: Object) -> Part:
    """Ready from the start: the Supervisor makes it once what it refers to is there, which the next step brings."""
    want = str(record(vm, CLONE).get("want", ""))
    if not want:
        return Part(CLONE, Presence.FAILED, message="nobody knows of what it was made: its record is gone")
    return Part(CLONE, Presence.PRESENT, have=want)


def _configured(vm: Object, *, has_secret: bool) -> Part:
    made = record(vm, CONFIGURE)
    if not made:
        return Part(CONFIGURE, Presence.ABSENT)
    wrong = []
    if not has_secret:
        wrong.append("what its guest is told at its first boot is not there")
    if dig(vm, "spec", "className") != made.get("class"):
        wrong.append(f"its VM class is {dig(vm, 'spec', 'className', default='none')}")
    if made.get("disk_gib") and boot_disk(vm) != made["disk_gib"]:
        wrong.append(f"its first disk is to have {boot_disk(vm)} GiB")
    if wrong:
        return Part(CONFIGURE, Presence.PRESENT, message="; ".join(wrong))
    return Part(CONFIGURE, Presence.PRESENT, have=str(made.get("want", "")))


def _powered(ref: Ref, vm: Object) -> Part:
    made, asked, is_now = record(vm, POWER), str(dig(vm, "spec", "powerState", default="")), state(vm)
    if not made:
        if is_now in {"", OFF} and asked == OFF:
            return Part(POWER, Presence.ABSENT)
        if asked == OFF:
            handle = removal_handle(ref, POWER).value
            return Part(POWER, Presence.CHANGING, handle=handle, message="it is being switched off", ready=False)
        return Part(POWER, Presence.PRESENT, message="somebody else switched it on")
    if asked != made.get("state"):
        return Part(POWER, Presence.PRESENT, message="its power was changed by somebody else")
    waiting = _waiting(vm, asked, is_now)
    return Part(POWER, Presence.PRESENT, have=str(made.get("want", "")), message=waiting, ready=not waiting)


def _waiting(vm: Object, asked: str, is_now: str) -> str:
    """Return what keeps a machine from being as it was asked to be, `""` where it is."""
    if not is_now and asked == OFF:
        return trouble(vm) or "the Supervisor has not made it yet"
    if is_now != asked:
        return trouble(vm) or f"the Supervisor has not made it {asked} yet: it is {is_now or 'not there'}"
    if asked != ON:
        return ""
    return "" if address(vm) else trouble(vm) or "nothing is heard of its address yet"


def trouble(vm: Object) -> str:
    """Return what the Supervisor says that a machine lacks, `""` where it complains of nothing."""
    told = {str(one.get("type")): one for one in dig(vm, "status", "conditions", default=[])}
    for name in TROUBLES:
        one = told.get(name, {})
        if one.get("status") == "False":
            return f"{one.get('reason') or name}: {one.get('message') or name}"
    return ""


# --- the machine ----------------------------------------------------------------------------------


def state(vm: Object) -> str:
    """Return how a machine runs as the Supervisor tells, `""` before it has told."""
    return str(dig(vm, "status", "powerState", default=""))


def power(vm: Object) -> Power:
    """Return on while a machine is not surely off; one that was never made is off."""
    surely_off = state(vm) == OFF or (not state(vm) and dig(vm, "spec", "powerState") == OFF)
    return Power.OFF if surely_off else Power.ON


def address(vm: Object) -> str:
    """Return the address of a machine's card as its guest tells, `""` while it tells none or is not on."""
    return str(dig(vm, "status", "network", "primaryIP4", default="")) if state(vm) == ON else ""


def host(vm: Object) -> str:
    """Return the host of a machine, `""` while it has none."""
    return str(dig(vm, "status", "nodeName", default="") or dig(vm, "status", "host", default=""))


def uses(vm: Object) -> tuple[ObservedUse, ...]:
    """Return the vGPUs of a machine that is not off, ours or not; which GPU of the host each is on is not told."""
    if not host(vm) or power(vm) is Power.OFF:
        return ()
    ref, made = marks.ref_of(vm), record(vm, CLONE)
    found = []
    for one in dig(vm, "status", "hardware", "vGPUs", default=[]):
        known = gpu_types.read(str(one.get("profile", "")))
        profile = "" if known is None or not known.is_mig else known.profile
        size = 0 if known is None else known.size
        unit = _unit(made) if ref is not None else None
        whose = ref if unit is not None else None
        found.append(ObservedUse(host(vm), "", None, size, profile, whose, unit, marks.name_of(vm)))
    return tuple(found)


def _unit(made: dict[str, Any]) -> UUID | None:
    try:
        return UUID(str(made.get("unit", "")))
    except ValueError:
        return None


def units(vm: Object) -> tuple[ObservedUnit, ...]:
    """Return where a machine's unit is, once it has a host; which GPU of the host it has is not told."""
    made, where = record(vm, CLONE), host(vm)
    uid = _unit(made)
    if uid is None or not where:
        return ()
    return (ObservedUnit(uid, where, "", None, str(made.get("profile", "")), exact=False),)
