"""Everything that is changed of a VM that is there: what it is made of, where it lies, whether it runs.

Each call does the next thing that is missing and starts at most one task of some length; whoever calls looks again
and calls again. Invariants: hardware is changed only while the VM is off, its network at once; a plug that is to be
out is out before the VM runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import Done, Handle, Power, Ref, Step, TransientDriverError, intent_hash, machine_uuid
from provisioners.vsphere import cloud_init, datastore, fitting, hardware, pinning, removal, vms
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.ground import BoundaryPlace, Ground
from provisioners.vsphere.hardware import Hardware
from provisioners.vsphere.names import instance_uuid, marker
from provisioners.vsphere.plans import VmPlan
from provisioners.vsphere.tasks import finish
from provisioners.vsphere.vms import CONFIGURE, POWER, Vm

_LONGEST_ISOLATION_S: Final = 20.0
CARDS: Final = 1
"""Network cards of a VM of ours, the first ones of its template; any other is taken out."""


class Changer:
    """Changes the VMs of one vCenter. Thread-safe."""

    def __init__(self, ground: Ground, clock: Callable[[], float]) -> None:
        """Work in the vCenter of `ground`; `clock` gives seconds that other processes count too."""
        self._ground = ground
        self._clock = clock

    # --- vm.configure -----------------------------------------------------------------------------

    def configure(self, step: Step, plan: VmPlan, vm: Vm) -> Handle | Done:
        """Mark a VM, bring it where it belongs, and fit it, whichever of these is missing first.

        Raises `TransientDriverError` where it runs and would have to be off.
        """
        ground = self._ground
        if vm.is_on and vm.is_connected and self._is_strayed(plan, vm):
            self.connect(vm, connected=False)  # before anything else: whatever is wrong with the rest, it hears nobody
            return Done()
        place = ground.place(plan.boundary, plan.unit.host)
        if vm.mark != marker(step.ref, vm.index):
            self._ground.set_attribute(vm.ref, marker(step.ref, vm.index))
        if vm.folder != place.folder:
            return self._move(vm, place.folder)
        want = self._wanted(step.ref, plan, place, vm)
        record = vms.record_text(
            step.want,
            hardware=want.as_json(),
            host=plan.unit.host,
            unit=str(plan.unit.uid),
            product=plan.unit.product,
            profile=plan.unit.profile,
        )
        extra = {vms.key_of(CONFIGURE): record}
        if not vm.is_off:
            return self._configure_running(plan, place, vm, want, extra)
        if vm.host != place.host.ref or vm.pool != place.pool:
            return self._relocate(vm, place, plan.disk_gib)
        if vm.record(POWER).get("want") != intent_hash(vms.power_want(plan.power, cut_off=plan.cut_off)):
            extra[vms.key_of(POWER)] = vms.power_record(plan.power, cut_off=plan.cut_off, since=self._clock())
        extra |= cloud_init.guestinfo(plan.seed)
        spec = hardware.config_spec(
            want, vm.devices, switch_uuid=place.switch_uuid, connected=not plan.cut_off, extra=extra
        )
        if not spec.deviceChange and not hardware.differences(want, vm.have) and _has(vm, extra):
            return Done()
        return self.reconfigure(vm, spec)

    def _configure_running(
        self, plan: VmPlan, place: BoundaryPlace, vm: Vm, want: Hardware, extra: dict[str, str]
    ) -> Handle | Done:
        """Mend the network of a VM that runs; for the rest it has to be off.

        It is switched off for that where it is to be off, or where the ledger has given it another host.
        """
        wrong = [one.text for one in hardware.differences(want, vm.have) if one.needs_off and not one.is_of_cards]
        # placed anew since it was fitted, as when a host is emptied; moved by somebody else it is only told
        is_placed_anew = vm.record(CONFIGURE).get("host", place.host.name) != place.host.name
        if vm.host != place.host.ref:
            wrong.append(f"it runs on another host than {place.host.name}")
        if wrong and plan.power is Power.OFF:
            return self.stop_softly(vm, plan.power, cut_off=plan.cut_off)
        if wrong and is_placed_anew:
            return self.stop_softly(vm, None)
        if wrong:
            raise TransientDriverError(f"{vm.name} has to be switched off for this: {'; '.join(wrong)}")
        if vm.pool != place.pool:
            return self._relocate(vm, place, 0)
        spec = hardware.network_spec(
            vm.devices, want, switch_uuid=place.switch_uuid, connected=vm.is_connected, extra=extra
        )
        if not spec.deviceChange and _has(vm, extra):
            return Done()
        return self.reconfigure(vm, spec)

    def _wanted(self, ref: Ref, plan: VmPlan, place: BoundaryPlace, vm: Vm) -> Hardware:
        unit = plan.unit
        gpus = fitting.gpus(self._ground, unit, place.host)
        return Hardware(
            instance_uuid=instance_uuid(ref, vm.index),
            bios_uuid=str(machine_uuid(unit.uid)),
            vcpu=unit.vcpu,
            memory_mib=unit.memory_gib * 1024,
            gpus=gpus,
            mmio_gib=fitting.mmio_gib(unit.product, len(gpus)),
            networks=(place.portgroup_key,),
            disk_gib=plan.disk_gib,
            locked=bool(gpus),
            firmware=hardware.EFI if gpus else vm.have.firmware,
            macs=_macs(vm)[:CARDS],
        )

    def _move(self, vm: Vm, folder: MoRef) -> Handle | Done:
        client = self._ground.client
        task = client.start(lambda si: managed(folder, si).MoveIntoFolder_Task([managed(vm.ref, si)]))
        return finish(client, task, within_s=1)

    def _relocate(self, vm: Vm, place: BoundaryPlace, disk_gib: int) -> Handle | Done:
        client = self._ground.client
        seen = client.get(place.host.ref, "datastore") or {}
        reachable = {reference(one) for one in seen.get("datastore") or ()}
        store = None if set(vm.datastores) <= reachable else datastore.choose(self._ground, place.host, disk_gib)

        def relocate(si: Any) -> Any:
            spec = vim.vm.RelocateSpec(pool=managed(place.pool, si))
            if vm.is_off:
                spec.host = managed(place.host.ref, si)
                if store is not None:
                    spec.datastore = managed(store, si)
            return managed(vm.ref, si).RelocateVM_Task(spec)

        return finish(client, client.start(relocate), within_s=1)

    def reconfigure(self, vm: Vm, spec: Any, *, within_s: float = 1) -> Handle | Done:
        """Apply a ConfigSpec; one that is over in time is done."""
        client = self._ground.client
        return finish(client, client.start(lambda si: managed(vm.ref, si).ReconfigVM_Task(spec)), within_s=within_s)

    def connect(self, vm: Vm, *, connected: bool) -> None:
        """Put the plugs of a VM's cards in or pull them, and wait for it. Raises `DriverError`."""
        changes = hardware.connection_changes(vm.devices, connected=connected)
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        if changes and self.reconfigure(vm, spec, within_s=_LONGEST_ISOLATION_S) != Done():
            raise TransientDriverError(f"vCenter is still changing the network of {vm.name}")

    def tell(self, vm: Vm, values: dict[str, str]) -> Handle | Done:
        """Write keys of a VM's configuration, also of a running one; an empty value takes a key away."""
        return self.reconfigure(vm, vim.vm.ConfigSpec(extraConfig=hardware.options(values)))

    def _is_strayed(self, plan: VmPlan, vm: Vm) -> bool:
        """Whether a card is not in the network of its boundary as it is now; asked only where the record says so."""
        return vms.is_strayed(vm) and vms.is_strayed(vm, self._ground.network_of(plan.boundary))

    # --- vm.power ---------------------------------------------------------------------------------

    def switch(self, step: Step, plan: VmPlan, vm: Vm) -> Handle | Done:
        """Write down which power is wanted and set the plugs of its cards, then switch."""
        record = vm.record(POWER)
        cut_off = plan.cut_off or self._is_strayed(plan, vm)
        changes = hardware.connection_changes(vm.devices, connected=not cut_off)
        if record.get("want") != step.want or changes:
            text = vms.power_record(plan.power, cut_off=plan.cut_off, since=self._clock())
            spec = vim.vm.ConfigSpec(deviceChange=changes, extraConfig=hardware.options({vms.key_of(POWER): text}))
            return self.reconfigure(vm, spec)
        if plan.power is Power.ON:
            return self._switch_on(plan, vm)
        return removal.switch_off(self._ground.client, vm, since=_since(record), now=self._clock())

    def _switch_on(self, plan: VmPlan, vm: Vm) -> Handle | Done:
        """Switch a VM on where the ledger put it. Raises `NoCapacity` where that host takes nothing now."""
        client, host = self._ground.client, self._ground.host(plan.unit.host)
        if not vm.is_on:
            datastore.check_host(client, host)
            if (pinned := pinning.pin(client, host.cluster.ref, vm.ref)) != Done():
                return pinned
        return removal.switch_on(client, vm)

    def stop_softly(self, vm: Vm, power: Power | None, *, cut_off: bool = False) -> Handle | Done:
        """Switch a VM off; since when its guest is asked is written into the VM, for the next worker to know."""
        if vm.is_off:
            return Done()
        record = vm.record(POWER)
        if record.get("power") != Power.OFF and vm.has_tools:
            now = self._clock()
            if power is None:
                text = vms.record_text("", power=str(Power.OFF), cut_off=not vm.is_connected, since=round(now))
            else:
                text = vms.power_record(power, cut_off=cut_off, since=now)
            return self.tell(vm, {vms.key_of(POWER): text})
        return removal.switch_off(self._ground.client, vm, since=_since(record), now=self._clock())

    def stop(self, vm: Vm | None) -> Handle | Done:
        """Switch a VM off for good: nothing says any more which power was wanted."""
        if vm is None:
            return Done()
        if not vm.is_off:
            return self.stop_softly(vm, None)
        return self.tell(vm, {vms.key_of(POWER): ""}) if vm.record(POWER) else Done()

    def strip(self, vm: Vm | None) -> Handle | Done:
        """Take a VM's GPUs away, and all that its guest was told."""
        if vm is None or not (vm.record(CONFIGURE) or vm.have.gpus):
            return Done()
        if not vm.is_off:
            return self.stop_softly(vm, None)
        told = {key: "" for key in vm.extra if key.startswith("guestinfo.")}
        return self.reconfigure(vm, hardware.bare_spec(vm.devices, extra={vms.key_of(CONFIGURE): "", **told}))


def _has(vm: Vm, extra: dict[str, str]) -> bool:
    return all(vm.extra.get(key, "") == value for key, value in extra.items())


def _macs(vm: Vm) -> tuple[str, ...]:
    """Return the addresses that a VM's cards should have: as recorded, at first those that vCenter gave them."""
    try:
        made = Hardware.from_json(vm.record(CONFIGURE)["hardware"])
    except (KeyError, TypeError):
        return vm.have.macs
    return made.macs or vm.have.macs


def _since(record: dict[str, Any]) -> float:
    try:
        return float(record.get("since", 0))
    except (TypeError, ValueError):
        return 0.0
