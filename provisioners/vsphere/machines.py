"""Virtual machines: cloned, fitted, switched; those of machines, and those of the units of an endpoint.

Each start looks at the VM and does the next thing that is missing of its step; the plan starts the step again until
what is shown is what is wanted. Invariants: a VM is changed only while it is ours by mark or, before it has one, by
its name in a folder of ours; hardware is changed only while it is off, networks at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from pyVmomi import vim

from provisioners.driver import (
    Conflicting,
    Done,
    DriverError,
    Handle,
    Kind,
    LogLine,
    MachineSpec,
    Observed,
    ObservedUnit,
    Part,
    Power,
    Presence,
    Ref,
    Remark,
    RemarkKind,
    Step,
    TransientDriverError,
    machine_uuid,
)
from provisioners.steps import indexed, order_of, split
from provisioners.vsphere import acceptance, datastore, fitting, hardware, hosts, removal, vms
from provisioners.vsphere.changing import Changer
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.cloning import Clones
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.failures import LookFirst, fault_of
from provisioners.vsphere.ground import Ground, HostPlace, payload
from provisioners.vsphere.libraries import Libraries
from provisioners.vsphere.names import index_in, instance_uuid, marker, vm_name
from provisioners.vsphere.plans import VmPlan, vm_steps
from provisioners.vsphere.tasks import handle_of
from provisioners.vsphere.vms import CLONE, CONFIGURE, POWER, Surroundings, Vm

_SSH_KEY: Final = "guestinfo.tenantry.ssh"
"""Where a lab's fake guest says at which address it answers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """What there is of the VMs of one machine or endpoint."""

    vms: tuple[Vm, ...]
    parts: tuple[Part, ...]
    units: tuple[ObservedUnit, ...]
    """Where each VM's unit is, in the order of VMs."""

    @property
    def power(self) -> Power | None:
        """On while any of them is not surely off, None without any."""
        if not self.vms:
            return None
        return Power.OFF if all(vm.is_off for vm in self.vms) else Power.ON


class Machines:
    """The VMs of one vCenter. Thread-safe."""

    def __init__(
        self, ground: Ground, libraries: Libraries | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Drive the VMs of `ground`."""
        self._ground = ground
        self._changer = Changer(ground, clock)
        self._clones = Clones(ground, libraries)
        self._sweeper = datastore.Sweeper(ground, clock=clock)

    # --- steps ------------------------------------------------------------------------------------

    def steps(self, spec: MachineSpec) -> Sequence[Step]:
        """Return the steps of a machine. Raises `DriverRejected`."""
        seed = Seed(
            instance_id=machine_uuid(spec.unit.uid),
            hostname=spec.ref.name,
            ssh_keys=spec.ssh_keys,
            ssh_ca=spec.ssh_ca,
            ssh_principals=spec.ssh_principals,
            ssh_revoked_url=spec.ssh_revoked_url,
            ssh_revoked_ca_pem=self._ground.settings.control_plane_ca_pem,
        )
        plan = VmPlan(
            spec.boundary, None, spec.unit, spec.image, spec.disk_gib, spec.power, spec.cut_off, seed, spec.build
        )
        return vm_steps(spec.ref, plan)

    def start(self, step: Step) -> Handle | Done:
        """Start one of the three steps, or its undo."""
        bare, index = split(step.name)
        vm = self.find(step.ref, index)
        if step.undo and vm is None and bare == CLONE and (clone := self._clones.of(step.ref, index)) is not None:
            return handle_of(self._ground.client, clone.task)  # what is not there yet cannot be removed yet
        if step.undo and bare == CLONE:
            self._sweeper.expect(vm_name(step.ref, index))
        if step.undo:
            return {CLONE: self._destroy, CONFIGURE: self._changer.strip, POWER: self._changer.stop}[bare](vm)
        plan = payload(step, VmPlan)
        if bare == CLONE:
            self._sweeper.keep(vm_name(step.ref, index))
            return self._clone(step, plan, vm)
        if vm is None:
            raise TransientDriverError(f"{vm_name(step.ref, index)} is not there")
        change = self._changer.configure if bare == CONFIGURE else self._changer.switch
        return change(step, plan, vm)

    # --- looking ----------------------------------------------------------------------------------

    def find(self, ref: Ref, index: int | None) -> Vm | None:
        """Return one VM of ours, None by an exact search that found none."""
        return self._by_uuid(ref, index) or next((vm for vm in self._searched(ref) if vm.index == index), None)

    def all_of(self, ref: Ref) -> tuple[Vm, ...]:
        """Return the VMs of a machine or endpoint by index, wherever they lie."""
        if ref.kind is Kind.MACHINE and (only := self._by_uuid(ref, None)) is not None:
            return (only,)
        return self._searched(ref)

    def _searched(self, ref: Ref) -> tuple[Vm, ...]:
        """Return them by the long way, which finds what was renamed, moved, or has no mark yet."""
        ours = {one.ref: one for one in self._ground.vms_of(ref) if one.is_ours}
        found = [vms.vm_of(one, ours[one.ref].index, ours[one.ref].mark) for one in self._read(list(ours))]
        by_index: dict[int | None, Vm] = {}
        # a copy that somebody made carries our mark too, with a UUID of its own; elsewhere it may have our name as well
        for vm in sorted(found, key=lambda one: (not vms.is_itself(one, ref), one.name != vm_name(ref, one.index))):
            is_named = vm.name == vm_name(ref, vm.index) and ours[vm.ref].is_inside
            if vms.is_itself(vm, ref) or is_named:
                by_index.setdefault(vm.index, vm)
        return tuple(by_index[index] for index in sorted(by_index, key=lambda at: -1 if at is None else at))

    def _read(self, refs: Sequence[MoRef]) -> Sequence[Any]:
        return self._ground.client.many(refs, *vms.PATHS)

    def _by_uuid(self, ref: Ref, index: int | None) -> Vm | None:
        """Return a VM by the short way, one search and one read; None where that does not tell."""
        uuid = instance_uuid(ref, index)

        def search(session: Any) -> list[MoRef]:
            found = session.content.searchIndex.FindAllByUuid(None, uuid, True, True)
            return [reference(one) for one in found or ()]

        hits = self._ground.client.reading(search)
        if len(hits) != 1:
            return None
        [found] = self._read(hits)
        mark = self._ground.attribute(found.values)
        return vms.vm_of(found, index, mark) if mark == marker(ref, index) else None

    def look(self, ref: Ref) -> Look:
        """Read the VMs of a machine or endpoint exactly, with clones that are under way."""
        found = self.all_of(ref)
        parts: list[Part] = []
        units: list[ObservedUnit] = []
        made = [vm for vm in found if vm.record(CLONE)]
        under_way: dict[int | None, Part] = {}
        if ref.kind is Kind.ENDPOINT or len(made) < len(found) or not found:
            under_way = self._under_way(ref, {vm.index for vm in made})
        for vm in found:
            if vm.index in under_way:
                continue  # some vCenters show the machine before its clone has ended
            around = self._surroundings(ref, vm)
            parts += vms.parts(vm, around)
            units += vms.units(vm, around.host, self._gpus_of(vm, around.host))
        parts += under_way.values()
        return Look(found, tuple(sorted(parts, key=lambda part: order_of(part.step))), tuple(units))

    def _under_way(self, ref: Ref, made: Collection[int | None]) -> dict[int | None, Part]:
        """Return a part for each clone of ours that runs: without it a machine that is being made seems to be none."""
        found: dict[int | None, Part] = {}
        for clone in self._clones.running():
            try:
                index = index_in(ref, clone.name)
            except LookupError:
                continue
            if index not in made:
                handle = handle_of(self._ground.client, clone.task).value
                name = CLONE if index is None else indexed(CLONE, index)
                found[index] = Part(name, Presence.CHANGING, handle=handle, ready=False)
        return found

    def observe(self, ref: Ref) -> Observed:
        """Read one machine exactly."""
        seen = self.look(ref)
        address = self._address(seen.vms[0]) if seen.vms and seen.vms[0].is_on else ""
        lab = self._ground.settings.is_lab
        return Observed(
            ref,
            exists=bool(seen.parts),
            parts=seen.parts,
            units=seen.units,
            address=address,
            reachable_from=("lab" if lab else "tenant") if address else "",
            power=seen.power,
            simulated=lab,
        )

    def _address(self, vm: Vm) -> str:
        if self._ground.settings.is_lab:
            return vm.extra.get(_SSH_KEY, "")
        found = vms.address(vm)
        return f"{found}:22" if found else ""

    def _surroundings(self, ref: Ref, vm: Vm) -> Surroundings:
        boundary, place = _boundary_of(ref, vm), self._host_of(vm)
        folder = None if boundary is None else self._ground.folder_of(boundary)
        pool = None
        if boundary is not None and place is not None:
            pool = self._ground.pool_of(boundary, place.cluster)
        is_marked = vm.mark == marker(ref, vm.index)
        network = self._ground.network_of(boundary) if boundary is not None and vms.is_strayed(vm) else ""
        return Surroundings(folder, pool, "" if place is None else place.name, is_marked, network)

    def _host_of(self, vm: Vm) -> HostPlace | None:
        return next((one for one in self._ground.estate().hosts.values() if one.ref == vm.host), None)

    def _gpus_of(self, vm: Vm, host: str) -> list[str]:
        """Return the devices that a running VM is on, as its host tells."""
        if not vm.is_on or vm.host is None or not vm.have.gpus:
            return []
        told = self._ground.client.get(vm.host, "config.graphicsInfo") or {}
        on = [str(one.pciId) for one in told.get("config.graphicsInfo") or ()
              if any(reference(at) == vm.ref for at in one.vm or ())]  # fmt: skip
        return [f"{host}/{pci}" for pci in sorted(on)]

    # --- vm.clone ---------------------------------------------------------------------------------

    def _clone(self, step: Step, plan: VmPlan, vm: Vm | None) -> Handle | Done:
        if vm is not None and vm.record(CLONE):
            return self._adopt(step, plan, vm)
        running = self._clones.running()
        for same in (one for one in running if one.name == vm_name(step.ref, plan.index)):
            return handle_of(self._ground.client, same.task)
        if vm is not None:
            return self._adopt(step, plan, vm)
        self._clones.check_room(running, plan.unit.host)
        place = self._ground.place(plan.boundary, plan.unit.host)
        datastore.check_host(self._ground.client, place.host)
        hosts.check(self._ground, place.host)
        self._check_name(step.ref, plan.index, place.folder)
        template = self._clones.template(plan.image, place.host, with_gpu=bool(plan.unit.product))
        fitting.gpus(self._ground, plan.unit, place.host)  # what no host offers is refused before anything is made
        record = vms.record_text(step.want, boundary=str(plan.boundary.uid))
        try:
            return self._clones.start(step.ref, plan.index, template, place, disk_gib=plan.disk_gib, record=record)
        except LookFirst as error:
            if fault_of(error) != "DuplicateName" or self.find(step.ref, plan.index) is None:
                raise
            return Done()  # another worker was faster; what it made is looked at next

    def _adopt(self, step: Step, plan: VmPlan, vm: Vm) -> Handle | Done:
        record = vm.record(CLONE)
        if record.get("want") == step.want:
            return Done()
        if record:
            raise TransientDriverError(f"{vm.name} is made of something else and has to go first")
        if vm.mark or not vm.is_off:
            raise Conflicting(f"nobody knows of what {vm.name} was made; remove it, or give its record back")
        text = vms.record_text(step.want, boundary=str(plan.boundary.uid))
        return self._changer.reconfigure(vm, vim.vm.ConfigSpec(extraConfig=hardware.options({vms.key_of(CLONE): text})))

    def _check_name(self, ref: Ref, index: int | None, folder: MoRef) -> None:
        taken = self._ground.child(folder, vm_name(ref, index))
        if taken is not None:
            mark = self._ground.mark_of(taken)
            if mark not in {None, "", marker(ref, index)}:
                raise Conflicting(f"a VM {vm_name(ref, index)} is there and is not ours")

    # --- undo -------------------------------------------------------------------------------------

    def _destroy(self, vm: Vm | None) -> Handle | Done:
        if vm is None:
            return Done()
        if not vm.is_off:
            return self._changer.stop_softly(vm, None)
        return removal.destroy(self._ground.client, vm)

    # --- at once ----------------------------------------------------------------------------------

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Pull the plugs of every VM's cards, or put them in again; memory stays. Waits for it a while."""
        for vm in self.all_of(ref):
            self._changer.connect(vm, connected=not cut_off)
        return Done()

    def tell(self, vm: Vm, values: dict[str, str]) -> Handle | Done:
        """Write keys of a VM's configuration, also of a running one; an empty value takes a key away."""
        return self._changer.tell(vm, values)

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch every VM of a machine or endpoint at once, without asking its guest."""
        answer: Handle | Done = Done()
        for vm in self.all_of(ref):
            done = removal.switch_on if want is Power.ON else removal.pull_plug
            if (started := done(self._ground.client, vm)) != Done():
                answer = started
        return answer

    def tidy(self) -> tuple[Remark, ...] | None:
        """Now and then remove what VMs that were removed here have left, and return what else is left, by whomever.

        None where it was not looked for now, or could not be; what goes wrong is tried again next time.
        """
        if not self._sweeper.is_due():
            return None
        try:
            swept = self._sweeper.sweep(making=self._making())
        except DriverError as error:
            _log.warning("left directories could not be looked for: %s", error.detail)
            return None
        for one in swept.removed:
            _log.warning("removed %s, which was left of a VM that was removed", one.written)
        if swept.left is None:
            return None
        return tuple(found for at in swept.left if (found := self._left(at)) is not None)

    def _left(self, directory: datastore.Directory) -> Remark | None:
        """Return what to say of a stray directory; nothing of one that another vCenter's host was tried with."""
        vm = datastore.vm_of(directory)
        text = f"{directory.written} is named like a machine of ours, and no VM has files in it"
        if datastore.ACCEPTANCE.fullmatch(vm):
            vcenter = self._ground.client.about()["instance_uuid"]
            if vm not in {acceptance.name_for(one, vcenter) for one in self._ground.estate().hosts.values()}:
                return None
            return Remark(RemarkKind.LEFT, text, directory.written, removable=True)
        uid = UUID(hex=vm.split("-")[2])
        return Remark(RemarkKind.LEFT, text, directory.written, uid)

    def remove_left(self, written: str) -> bool:
        """Remove a stray directory; whether it is gone. Raises `Conflicting` for one that is in use."""
        return self._sweeper.remove_left(written, making=self._making())

    def _making(self) -> list[str]:
        return [clone.name for clone in self._clones.running()]

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` events of a ref's VMs since an RFC 3339 time, oldest first."""
        lines: list[LogLine] = []
        for vm in self.all_of(ref):
            lines += self._ground.client.reading(partial(_events, vm=vm))
        lines.sort(key=lambda line: line.at)
        kept = [line for line in lines if line.at >= since]
        yield from kept[-tail:] if tail > 0 else ()


def _events(session: Any, *, vm: Vm) -> list[LogLine]:
    own = vim.event.EventFilterSpec.ByEntity(
        entity=managed(vm.ref, session.si), recursion=vim.event.EventFilterSpec.RecursionOption.self
    )
    found = session.content.eventManager.QueryEvents(vim.event.EventFilterSpec(entity=own)) or ()
    return [line_of(one, vm.name) for one in found]


def line_of(event: Any, vm: str) -> LogLine:
    """Return an event for people: its first line, for what was changed follows it, one-time tokens too."""
    text = str(event.fullFormattedMessage or "").strip().partition("\n")[0].rstrip()
    return LogLine(event.createdTime.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), text, vm)


def _boundary_of(ref: Ref, vm: Vm) -> Ref | None:
    try:
        return Ref(Kind.BOUNDARY, UUID(str(vm.record(CLONE)["boundary"])), ref.tenant_uid)
    except (KeyError, ValueError):
        return None
