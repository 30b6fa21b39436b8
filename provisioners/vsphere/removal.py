"""Switching VMs on and off, and taking them away: the guest is asked first, then the plug is pulled.

Nothing is waited for in here. A guest that was asked to shut down has a handle of its own, which is done when the VM
is off and unknown when its time is over: then the VM is looked at, and the next start pulls the plug.
"""

from __future__ import annotations

import re
from typing import Any, Final

from provisioners.driver import Conflicting, Done, DriverError, Handle, Poll
from provisioners.vsphere.client import MoRef, VCenterClient, managed
from provisioners.vsphere.failures import LookFirst, fault_of
from provisioners.vsphere.tasks import finish
from provisioners.vsphere.vms import Vm

SHUTDOWN_S: Final = 60.0
"""For how long a guest may end by itself."""
_SHUTDOWN: Final = re.compile(r"vsphere-shutdown (?P<vcenter>\S+) (?P<vm>\S+) (?P<until>\d+)")
_NO_GUEST: Final = frozenset({"ToolsUnavailable", "NotSupported", "TaskInProgress"})
"""Faults of asking a guest that leave the plug."""


def switch_on(client: VCenterClient, vm: Vm) -> Handle | Done:
    """Start a VM, or resume a suspended one. Raises `NoCapacity` where its host has no room for its GPUs."""
    if vm.is_on:
        return Done()
    return _unless(client, vm.ref, "poweredOn", lambda si: managed(vm.ref, si).PowerOnVM_Task(None))


def switch_off(client: VCenterClient, vm: Vm, *, since: float, now: float) -> Handle | Done:
    """Switch a VM off: its guest is asked until a minute after `since`, then it is switched off hard."""
    if vm.is_off:
        return Done()
    until = round(since + SHUTDOWN_S)
    if vm.is_on and vm.has_tools and now < until:
        try:
            client.changing(lambda si: managed(vm.ref, si).ShutdownGuest())
        except DriverError as error:
            if fault_of(error) not in _NO_GUEST:
                return _settled(client, vm.ref, "poweredOff", error)
        else:
            return Handle(f"vsphere-shutdown {client.about()['instance_uuid']} {vm.ref.id} {until}")
    return pull_plug(client, vm)


def pull_plug(client: VCenterClient, vm: Vm) -> Handle | Done:
    """Switch a VM off without asking its guest."""
    if vm.is_off:
        return Done()
    return _unless(client, vm.ref, "poweredOff", lambda si: managed(vm.ref, si).PowerOffVM_Task())


def poll_shutdown(client: VCenterClient, handle: Handle, *, now: float) -> Poll | None:
    """Look at a guest that was asked to shut down, None for a handle of something else."""
    match = _SHUTDOWN.fullmatch(handle.value)
    if match is None:
        return None
    if match["vcenter"] != client.about()["instance_uuid"]:
        return Poll("unknown")
    told = client.get(MoRef("VirtualMachine", match["vm"]), "runtime.powerState")
    if told is None:
        return Poll("unknown")
    if told.get("runtime.powerState") == "poweredOff":
        return Poll("done")
    return Poll("running") if now < int(match["until"]) else Poll("unknown")


def destroy(client: VCenterClient, vm: Vm) -> Handle | Done:
    """Delete a VM that is off, with its disks. Raises `Conflicting` for one that runs: it would be refused."""
    if not vm.is_off:
        raise Conflicting(f"{vm.name} is not off")  # pragma: no cover - callers switch it off first
    try:
        return finish(client, client.start(lambda si: managed(vm.ref, si).Destroy_Task()), within_s=1)
    except LookFirst as error:
        if fault_of(error) != "ManagedObjectNotFound":
            raise
        return Done()  # gone already is what was wanted


def _unless(client: VCenterClient, ref: MoRef, state: str, change: Any) -> Handle | Done:
    try:
        return finish(client, client.start(change), within_s=1)
    except LookFirst as error:
        return _settled(client, ref, state, error)


def _settled(client: VCenterClient, ref: MoRef, state: str, error: DriverError) -> Done:
    """Return where a VM is in the wanted state in spite of an error; raise the error where it is not."""
    if fault_of(error) == "InvalidPowerState":
        told = client.get(ref, "runtime.powerState")
        if told is not None and told.get("runtime.powerState") == state:
            return Done()
    raise error
