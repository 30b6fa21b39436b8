"""Machines on the lab's vCenter: one VM however often, by whomever and whatever goes wrong; nothing left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import yaml
from pyVmomi import vim

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import (
    Binding,
    BoundarySpec,
    Conflicting,
    Done,
    DriverError,
    DriverRejected,
    Handle,
    Kind,
    MachineSpec,
    NoCapacity,
    NotSupported,
    Observed,
    Power,
    Presence,
    Ref,
    RemarkKind,
    Step,
    TransientDriverError,
    UnitSpec,
    machine_uuid,
    removal_of,
)
from provisioners.vsphere import acceptance, cloud_init, datastore, hardware, removal, vms
from provisioners.vsphere.client import Found, MoRef, managed
from provisioners.vsphere.cloning import Clones
from provisioners.vsphere.cloud_init import Seed
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import LookFirst, fault_of
from provisioners.vsphere.machines import Machines, line_of
from provisioners.vsphere.names import MARK_FIELD, instance_uuid, marker
from provisioners.vsphere.plans import VmPlan, vm_steps
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.tasks import finish
from tests.vsphere.ground import TENANT, Hand, boundary, clear, complete, settings_for, walk

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

STEPS = ["vm.clone", "vm.configure", "vm.power"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHVvZGtqZmhnaGdqZGtzamRoZ2Zoa2Rq"


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    templates = {"ubuntu-24.04": "ubuntu-24.04-gpu", "debian-12": "legacy-bios", "ubuntu-22.04": "not-there"}
    return settings_for(vcenter, templates=templates)


@pytest.fixture
def drivers(settings: Settings, vcenter_control: Control) -> Iterator[Callable[..., VSphereDriver]]:
    """Drivers with connections of their own."""
    made: list[VSphereDriver] = []

    def make(**more: object) -> VSphereDriver:
        made.append(VSphereDriver(replace(settings, **more)))
        return made[-1]

    yield make
    vcenter_control.clear()
    for driver in made:
        driver.close()


@pytest.fixture
def driver(drivers: Callable[..., VSphereDriver]) -> VSphereDriver:
    return drivers()


@pytest.fixture
def hand(settings: Settings) -> Iterator[Hand]:
    made = Hand(settings)
    yield made
    made.close()


@pytest.fixture
def home(driver: VSphereDriver, vcenter_control: Control) -> Iterator[BoundarySpec]:
    """A boundary that is there."""
    made = boundary()
    walk(driver, made)
    yield made
    vcenter_control.clear()
    clear(driver, made)


@pytest.fixture
def spec(driver: VSphereDriver, home: BoundarySpec, vcenter_control: Control) -> Iterator[MachineSpec]:
    """A machine that is asked for; whatever there is of it at the end is taken away."""
    made = machine(home)
    yield made
    vcenter_control.clear()
    assert run(driver, made, deleting=True).end == plan.Forget()


def unit(host: str = "DC0_C0_H0", *, profile: str = "1g.10gb", count: int = 0, product: str = "H100-80GB") -> UnitSpec:
    return UnitSpec(uuid4(), 0, host, product, profile, count, Binding.HOST, (), (), 4, 16, role="machine")


def machine(home: BoundarySpec, one: UnitSpec | None = None, **more: object) -> MachineSpec:
    ref = Ref(Kind.MACHINE, uuid4(), TENANT)
    made = MachineSpec(ref, home.ref, 1, one or unit(), "ubuntu-24.04", 40, (KEY,))
    return replace(made, **more)


@dataclass
class Walk:
    """What came of passes."""

    end: plan.Action | None = None
    seen: Observed | None = None
    errors: list[DriverError] = field(default_factory=list)
    started: list[str] = field(default_factory=list)


def run(
    driver: VSphereDriver,
    spec: MachineSpec,
    *,
    deleting: bool = False,
    before: Callable[[], object] = lambda: None,
    rounds: int = 60,
) -> Walk:
    """Do what passes do with a machine, with the real plan: until nothing is to be done; errors are tried again."""
    walked = Walk()
    handle: Handle | None = None
    for _ in range(rounds):
        try:
            before()
            if handle is not None:
                answer = driver.poll(handle)
                if answer.state == "running":
                    continue
                handle = None
                if answer.error is not None:
                    raise answer.error
            walked.seen = driver.observe(spec.ref)
            action = plan.plan(() if deleting else tuple(driver.steps(spec)), walked.seen, deleting=deleting)
            if isinstance(action, plan.Start):
                walked.started.append(action.step.name + (":undo" if action.step.undo else ""))
                started = driver.start(action.step)
                handle = started if isinstance(started, Handle) else None
            elif isinstance(action, plan.Poll):
                handle = action.handle
            elif not (isinstance(action, plan.Nothing) and not action.ready):
                walked.end = action
                return walked
        except DriverError as error:
            walked.errors.append(error)
    return walked


def up(driver: VSphereDriver, spec: MachineSpec) -> Observed:
    """Walk until the machine runs, without any error."""
    walked = run(driver, spec)
    assert (walked.errors, walked.end) == ([], plan.Nothing(ready=True, complete=True)), walked
    assert walked.seen is not None
    return walked.seen


def vm_of(driver: VSphereDriver, spec: MachineSpec) -> vms.Vm:
    found = Machines(driver.ground).find(spec.ref, None)
    assert found is not None
    return found


def one_vm(hand: Hand, spec: MachineSpec) -> MoRef:
    [only] = hand.names("VirtualMachine", spec.ref.name)
    return only


def held(control: Control) -> list[tuple[str, str]]:
    """Return (host, VM) of every window in use."""
    return [(gpu.host, window.vm) for gpu in control.gpus() for window in gpu.held]


def step(driver: VSphereDriver, spec: MachineSpec, name: str) -> Step:
    return next(one for one in driver.steps(spec) if one.name == name)


# --- the usual way --------------------------------------------------------------------------------


def test_a_machine_is_made_as_asked_for_shown_so_and_leaves_nothing(driver, home, hand, vcenter_control):
    spec = machine(home)

    seen = up(driver, spec)

    assert [part.step for part in seen.parts] == STEPS
    assert (seen.power, seen.simulated) == (Power.ON, True)
    [where] = seen.units
    assert (where.uid, where.host, where.profile, where.exact) == (spec.unit.uid, "DC0_C0_H0", "1g.10gb", True)
    vm = vm_of(driver, spec)
    assert (vm.name, vm.mark) == (spec.ref.name, marker(spec.ref))
    assert (vm.folder, vm.pool) == (driver.ground.folder_of(home.ref), driver.ground.place(home.ref, where.host).pool)
    assert vm.have.instance_uuid == instance_uuid(spec.ref, None)
    assert vm.have.bios_uuid == str(machine_uuid(spec.unit.uid))
    assert (vm.have.vcpu, vm.have.memory_mib, vm.have.disk_gib, vm.have.locked) == (4, 16384, 40, True)
    assert (vm.have.gpus, vm.have.mmio_gib, vm.have.firmware) == (("vgpu:nvidia_h100xm-1-10c",), 256, "efi")
    assert vm.have.networks == (driver.ground.place(home.ref, where.host).portgroup_key,)
    assert held(vcenter_control) == [("DC0_C0_H0", vm.ref.id)]

    gone = run(driver, spec, deleting=True)

    assert (gone.errors, gone.end) == ([], plan.Forget())
    assert hand.names("VirtualMachine", spec.ref.name) == []
    assert held(vcenter_control) == []
    assert datastore.stray_directories(driver.ground) == ()


@pytest.mark.parametrize(
    ("changes", "gpus", "mmio"),
    [
        ({"product": "", "profile": ""}, (), 0),
        ({"profile": "", "count": 2}, ("vgpu:nvidia_h100xm-80c",) * 2, 512),
        ({"profile": "", "count": 1, "host": "DC0_C0_H3"}, ("pci:10de:2330:tenants",), 256),
    ],
    ids=["no GPU", "whole GPUs", "passthrough"],
)
def test_gpus_are_given_as_the_host_offers_them(driver, home, vcenter_control, changes, gpus, mmio):
    spec = machine(home, unit(**changes))

    seen = up(driver, spec)

    vm = vm_of(driver, spec)
    assert (vm.have.gpus, vm.have.mmio_gib, vm.have.locked) == (gpus, mmio, bool(gpus))
    assert len(held(vcenter_control)) == len(gpus)
    assert {one.host for one in seen.units} == {spec.unit.host}
    assert run(driver, spec, deleting=True).errors == []


def test_every_step_and_every_undo_started_again_is_one_machine(driver, spec, hand):
    for one in driver.steps(spec):
        complete(driver, one)
        assert driver.start(one) == Done()
    assert driver.observe(spec.ref).part("vm.power").have == step(driver, spec, "vm.power").want
    one_vm(hand, spec)

    for one in reversed(driver.steps(spec)):
        for _ in range(3):
            complete(driver, one.undoing())
        assert driver.start(one.undoing()) == Done()
        assert driver.observe(spec.ref).part(one.name).presence is Presence.ABSENT
    assert not driver.observe(spec.ref).exists


def test_what_is_fitted_already_is_not_fitted_again(driver, spec, vcenter_control):
    run(driver, replace(spec, power=Power.OFF))
    vcenter_control.forget_calls()

    assert driver.start(step(driver, replace(spec, power=Power.OFF), "vm.configure")) == Done()

    assert "ReconfigVM_Task" not in vcenter_control.calls()


def test_a_direct_switch_holds_until_the_spec_brings_it_back(driver, spec):
    up(driver, spec)

    driver.power(spec.ref, want=Power.OFF)

    seen = driver.observe(spec.ref)
    assert (seen.power, seen.part("vm.power").presence) == (Power.OFF, Presence.ABSENT)
    assert up(driver, spec).power is Power.ON


def test_isolating_pulls_the_plugs_and_keeps_the_memory(driver, spec):
    up(driver, spec)

    assert driver.isolate(spec.ref, cut_off=True) == Done()

    seen = driver.observe(spec.ref)
    assert (seen.power, seen.part("vm.power").have) == (Power.ON, "")
    assert not vm_of(driver, spec).is_connected
    assert driver.isolate(spec.ref, cut_off=True) == Done()
    cut = run(driver, replace(spec, cut_off=True))
    assert cut.end == plan.Nothing(ready=True, complete=True)
    assert not vm_of(driver, spec).is_connected
    up(driver, spec)
    assert vm_of(driver, spec).is_connected


# --- several at once, and lost ones ---------------------------------------------------------------


def test_eight_workers_make_one_machine(drivers, spec, hand, vcenter_control):
    vcenter_control.slow_task("CloneVM_Task", 150, object="ubuntu-24.04-gpu")

    with ThreadPoolExecutor(8) as pool:
        walks = list(pool.map(lambda _: run(drivers(), spec), range(8)))

    assert {walk.end for walk in walks} == {plan.Nothing(ready=True, complete=True)}
    assert [error.raw for walk in walks for error in walk.errors if not isinstance(error, TransientDriverError)] == []
    one_vm(hand, spec)


def test_a_clone_whose_worker_died_is_taken_up_by_the_next(drivers, spec, hand, vcenter_control):
    rule = vcenter_control.hang_task("CloneVM_Task")
    first, second = drivers(), drivers()
    started = first.start(step(first, spec, "vm.clone"))
    first.close()

    part = second.observe(spec.ref).part("vm.clone")
    again = second.start(step(second, spec, "vm.clone"))

    assert (part.presence, part.handle) == (Presence.CHANGING, started.value)
    assert again == started
    assert second.poll(again).state == "running"
    vcenter_control.forget_calls()
    vcenter_control.clear(rule)
    up(second, spec)
    assert "CloneVM_Task" not in vcenter_control.calls()
    one_vm(hand, spec)


def test_a_machine_that_is_asked_to_go_while_it_is_cloned_goes(driver, home, hand, vcenter_control):
    spec = machine(home)
    rule = vcenter_control.hang_task("CloneVM_Task")
    driver.start(step(driver, spec, "vm.clone"))

    waits = run(driver, spec, deleting=True, rounds=4)
    vcenter_control.clear(rule)
    gone = run(driver, spec, deleting=True)

    assert waits.end is None
    assert gone.end == plan.Forget()
    assert hand.names("VirtualMachine", spec.ref.name) == []


@pytest.mark.parametrize(
    "method", ["CloneVM_Task", "ReconfigVM_Task", "SetField", "PowerOnVM_Task", "PowerOffVM_Task", "Destroy_Task"]
)
def test_a_lost_answer_costs_a_look_and_no_second_machine(driver, home, hand, vcenter_control, method):
    spec = machine(home)
    vcenter_control.boot_guests(boot=method != "PowerOffVM_Task")
    try:
        vcenter_control.lose_answer(method)
        made = run(driver, spec, rounds=20)
        gone = run(driver, spec, deleting=True)
    finally:
        vcenter_control.boot_guests(boot=True)

    assert [type(error) for error in made.errors + gone.errors] == [LookFirst]
    assert gone.end == plan.Forget()
    assert hand.names("VirtualMachine", spec.ref.name) == []


def test_sessions_that_end_in_every_step_cost_nothing_but_another_try(driver, spec, hand, vcenter_control):
    made = run(driver, spec, before=vcenter_control.end_sessions)
    one_vm(hand, spec)
    gone = run(driver, spec, deleting=True, before=vcenter_control.end_sessions)

    assert (made.end, gone.end) == (plan.Nothing(ready=True, complete=True), plan.Forget())


@pytest.mark.parametrize("name", ["CloneVM_Task", "ReconfigVM_Task", "PowerOnVM_Task"])
def test_a_task_without_end_holds_up_its_own_machine_only(driver, home, spec, vcenter_control, name):
    other = machine(home, unit("DC0_C0_H1"))
    rule = vcenter_control.hang_task(name)

    held_up = run(driver, spec, rounds=12)
    up(driver, other)

    assert held_up.end is None
    assert held_up.started.count("vm.clone") <= 1
    vcenter_control.clear(rule)
    up(driver, spec)
    run(driver, other, deleting=True)


# --- room -----------------------------------------------------------------------------------------


def test_a_full_host_is_told_at_power_on_and_the_machine_moves_to_the_next(driver, home, hand, vcenter_control):
    spec = machine(home, unit(profile="7g.80gb"))
    for number in range(2):
        vcenter_control.add_vm(f"neighbour-{number}", "DC0_C0_H0", "nvidia_h100xm-7-80c")
    try:
        full = run(driver, spec, rounds=5)
        assert {type(error) for error in full.errors} == {NoCapacity}
        assert full.seen is not None
        assert (full.seen.power, full.seen.part("vm.power").presence) == (Power.OFF, Presence.ABSENT)
        first = one_vm(hand, spec)

        moved = up(driver, replace(spec, unit=replace(spec.unit, host="DC0_C0_H1")))

        assert {one.host for one in moved.units} == {"DC0_C0_H1"}
        assert one_vm(hand, spec) == first
        assert ("DC0_C0_H1", first.id) in held(vcenter_control)
    finally:
        run(driver, spec, deleting=True)
        for number in range(2):
            vcenter_control.remove_vm(f"neighbour-{number}")


def test_one_clone_more_than_a_host_or_vcenter_takes_waits_and_says_so(drivers, home, vcenter_control):
    driver = drivers(clones_per_host=1, clones=2)
    specs = [
        machine(home),
        machine(home),
        machine(home, unit("DC0_C0_H1")),
        machine(home, unit("DC0_C0_H4", product="", profile="")),
    ]
    rule = vcenter_control.hang_task("CloneVM_Task", count=0)
    clones = [step(driver, one, "vm.clone") for one in specs]
    first = driver.start(clones[0])

    with pytest.raises(TransientDriverError, match="host DC0_C0_H0 takes 1 new machines already") as full:
        drivers(clones_per_host=1, clones=2).start(clones[1])
    third = driver.start(clones[2])
    with pytest.raises(TransientDriverError, match="vCenter makes 2 machines already"):
        driver.start(clones[3])

    assert full.value.retry_after_s is not None
    assert 0.25 <= full.value.retry_after_s <= 2
    vcenter_control.clear(rule)
    for handle in (first, third):
        while driver.poll(handle).state == "running":
            pass
    assert driver.start(clones[1]) == Done()
    for one in specs:
        assert run(driver, one, deleting=True).end == plan.Forget()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"image": "debian-13"}, NotSupported, "image: no template is configured for debian-13"),
        ({"image": "ubuntu-22.04"}, DriverRejected, "image: vCenter has no template not-there"),
        ({"image": "debian-12"}, DriverRejected, "image: template legacy-bios does not start by EFI"),
        ({"unit": unit(product="H200-141GB", profile="1g.18gb")}, NotSupported, "profile: no host offers H200"),
        ({"unit": unit("DC0_C0_H2")}, TransientDriverError, "host DC0_C0_H2 does not offer H100-80GB 1g.10gb now"),
        ({"unit": unit("DC0_C0_H9")}, TransientDriverError, "no host DC0_C0_H9"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_field_before_anything_is(driver, spec, hand, changes, kind, words):
    changed = replace(spec, **changes)

    with pytest.raises(kind, match=words):
        driver.start(step(driver, changed, "vm.clone"))

    assert hand.names("VirtualMachine", spec.ref.name) == []


def test_a_store_is_the_allowed_one_with_the_most_room():
    def store(name: str, free_gib: int, *, shared: bool = True, up: bool = True) -> object:
        values = {"name": name, "summary.accessible": up, "summary.freeSpace": free_gib * 2**30,
                  "summary.maintenanceMode": "normal", "summary.multipleHostAccess": shared}  # fmt: skip
        return datastore.Found(MoRef("Datastore", name), values)

    stores = [store("local", 900, shared=False), store("a", 100), store("b", 200), store("off", 999, up=False)]

    def best(allowed: tuple[str, ...] = (), gib: int = 10) -> str:
        return datastore.best(stores, allowed, "H", gib).id

    assert (best(), best(("a", "local")), best(("a",))) == ("b", "local", "a")
    with pytest.raises(NoCapacity, match="no datastore of host H has 300 GiB free"):
        best(gib=300)
    with pytest.raises(NoCapacity, match="host H sees no datastore"):
        best(("off",))


# --- others, and changes by hand ------------------------------------------------------------------


def foreign(driver: VSphereDriver, hand: Hand, spec: MachineSpec, home: BoundarySpec, mark: str) -> MoRef:
    """Let somebody make a VM of a machine's name in its folder, with a mark of his."""
    made = machine(home, power=Power.OFF)
    run(driver, made)
    vm = one_vm(hand, made)
    hand.task(vm, "ReconfigVM_Task", vim.vm.ConfigSpec(name=spec.ref.name, instanceUuid=str(uuid4())))
    key = driver.ground.field_key(MARK_FIELD)
    hand.client.changing(lambda si: si.content.customFieldsManager.SetField(managed(vm, si), key, mark))
    return vm


def test_a_vm_of_our_name_with_anothers_mark_is_reported_and_not_touched(driver, spec, home, hand, vcenter_control):
    vm = foreign(driver, hand, spec, home, "boundary of somebody else")
    vcenter_control.forget_calls()

    walked = run(driver, spec, rounds=2)

    assert {type(error) for error in walked.errors} == {Conflicting}
    assert not driver.observe(spec.ref).exists
    assert driver.start(removal_of(spec.ref, "vm.clone")) == Done()
    assert not {"ReconfigVM_Task", "Destroy_Task", "SetField", "PowerOnVM_Task"} & set(vcenter_control.calls())
    hand.task(vm, "Destroy_Task")


def test_another_tenants_ref_of_the_same_id_shows_nothing(driver, spec):
    up(driver, spec)
    stranger = Ref(Kind.MACHINE, spec.ref.uid, uuid4())

    assert not driver.observe(stranger).exists
    for name in reversed(STEPS):
        assert driver.start(removal_of(stranger, name)) == Done()
    assert driver.observe(spec.ref).power is Power.ON


def test_a_running_vm_in_a_foreign_network_is_taken_back_at_once(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    switch = driver.ground.switch()
    [other] = hand.names("DistributedVirtualPortgroup", "DC0_DVPG0")
    key = driver.client.get(other, "key")["key"]
    [card] = hardware.cards(vm.devices)
    card.backing.port = vim.dvs.PortConnection(portgroupKey=key, switchUuid=switch.uuid)
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    hand.task(vm.ref, "ReconfigVM_Task", vim.vm.ConfigSpec(deviceChange=[change]))

    seen = driver.observe(spec.ref).part("vm.configure")
    assert "port groups of cards" in seen.message
    assert [(one.kind, one.subject) for one in seen.remarks] == [(RemarkKind.CARDS, "cards")]
    assert driver.start(step(driver, spec, "vm.configure")) == Done()
    cut_off = vm_of(driver, spec)
    assert (cut_off.is_connected, cut_off.have.networks) == (False, (key,))  # before anything is rewired
    assert run(driver, spec).started == ["vm.configure", "vm.power"]

    after = vm_of(driver, spec)
    assert (after.have.networks, after.is_on, after.is_connected) == (vm.have.networks, True, True)
    assert not any(part.remarks for part in driver.observe(spec.ref).parts)


def test_a_vm_of_another_mac_address_is_cut_off_at_once_and_gets_its_own_back_when_it_is_off(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    assert vm.have.macs
    [card] = hardware.cards(vm.devices)
    card.macAddress, card.addressType = "00:50:56:00:00:07", "manual"
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=card)
    hand.task(vm.ref, "ReconfigVM_Task", vim.vm.ConfigSpec(deviceChange=[change]))

    assert run(driver, spec, rounds=5).started == ["vm.configure"]
    seen = driver.observe(spec.ref)
    assert not vm_of(driver, spec).is_connected
    assert (seen.part("vm.power").ready, seen.part("vm.power").message) == (False, vms.CUT_OFF)
    assert [one.kind for one in seen.part("vm.configure").remarks] == [RemarkKind.CARDS]

    hand.task(vm.ref, "PowerOffVM_Task")
    up(driver, spec)
    after = vm_of(driver, spec)
    assert (after.have.macs, after.is_connected) == (vm.have.macs, True)
    assert not any(part.remarks for part in driver.observe(spec.ref).parts)


def test_snapshots_are_told_and_left_alone(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    hand.task(vm.ref, "CreateSnapshot_Task", "before-upgrade", "", False, False)

    seen = driver.observe(spec.ref)

    [remark] = seen.part("vm.configure").remarks
    assert (remark.kind, remark.text.startswith("1 kept: before-upgrade (20")) == (RemarkKind.SNAPSHOTS, True)
    assert run(driver, spec).started == []
    hand.task(vm.ref, "RemoveAllSnapshots_Task")
    assert driver.observe(spec.ref).part("vm.configure").remarks == ()


def test_hardware_changed_by_hand_is_told_while_it_runs_and_mended_when_it_is_off(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    hand.task(vm.ref, "ReconfigVM_Task", vim.vm.ConfigSpec(numCPUs=9, memoryReservationLockedToMax=False))

    seen = driver.observe(spec.ref).part("vm.configure")

    assert seen.message.startswith("changed by hand, mended when it is off: vCPUs: 9 in the place of 4; memory")
    assert [(one.kind, "vCPUs: 9 in the place of 4" in one.text) for one in seen.remarks] == [
        (RemarkKind.CHANGED, True)
    ]
    assert run(driver, spec).started == []
    assert run(driver, replace(spec, power=Power.OFF)).end == plan.Nothing(ready=True, complete=True)
    up(driver, spec)
    assert (vm_of(driver, spec).have.vcpu, vm_of(driver, spec).have.locked) == (4, True)


def test_a_vm_that_was_moved_to_another_folder_is_moved_back(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    root = driver.ground.estate().vm_folder
    hand.client.start(lambda si: managed(root, si).MoveIntoFolder_Task([managed(vm.ref, si)]))

    walked = run(driver, spec)

    assert "vm.configure" in walked.started
    assert vm_of(driver, spec).folder == vm.folder


@pytest.mark.parametrize("power", [Power.ON, Power.OFF])
def test_a_vm_that_was_moved_to_another_pool_is_moved_back(driver, spec, hand, vcenter_control, power):
    """Outside its pool it would be bound by nobody's limits, and seen by whoever may see the cluster."""
    wanted = replace(spec, power=power)
    up(driver, wanted)
    vm, windows = vm_of(driver, spec), vcenter_control.gpus()
    [cluster] = driver.ground.estate().clusters
    session = hand.client.reading(lambda session: session.si)
    hand.task(vm.ref, "RelocateVM_Task", vim.vm.RelocateSpec(pool=managed(cluster.pool, session)))
    assert vm_of(driver, spec).pool == cluster.pool

    walked = run(driver, wanted)

    assert (walked.started, walked.errors) == (["vm.configure"], [])
    assert (vm_of(driver, spec).pool, vm_of(driver, spec).power) == (vm.pool, vm.power)
    assert vcenter_control.gpus() == windows


def test_a_vgpu_of_another_type_is_told_while_it_runs_and_mended_when_it_is_off(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    [gpu] = [one for one in vm.devices if isinstance(one, vim.vm.device.VirtualPCIPassthrough)]
    assert gpu.backing.vgpu == "nvidia_h100xm-1-10c"
    other = vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo(vgpu="nvidia_h100xm-2-20c")
    changes = [
        vim.vm.device.VirtualDeviceSpec(operation="remove", device=gpu),
        vim.vm.device.VirtualDeviceSpec(
            operation="add", device=vim.vm.device.VirtualPCIPassthrough(key=-1, backing=other)
        ),
    ]
    hand.task(vm.ref, "ReconfigVM_Task", vim.vm.ConfigSpec(deviceChange=changes))

    seen = driver.observe(spec.ref).part("vm.configure")

    assert seen.message.startswith("changed by hand, mended when it is off: ")
    assert "GPUs: 1 × vgpu:nvidia_h100xm-2-20c in the place of 1 × vgpu:nvidia_h100xm-1-10c" in seen.message
    assert run(driver, spec).started == []
    run(driver, replace(spec, power=Power.OFF))
    up(driver, spec)
    assert vm_of(driver, spec).have.gpus == vm.have.gpus


def test_a_vm_that_lost_its_mark_gets_it_back(driver, spec, hand):
    up(driver, spec)
    vm = vm_of(driver, spec)
    key = driver.ground.field_key(MARK_FIELD)
    hand.client.changing(lambda si: si.content.customFieldsManager.SetField(managed(vm.ref, si), key, ""))

    assert run(driver, spec).started == ["vm.configure"]

    assert vm_of(driver, spec).mark == marker(spec.ref)


def test_a_vm_whose_origin_nobody_knows_is_left_to_people_and_can_go(driver, spec, hand):
    up(driver, spec)
    hand.task(
        vm_of(driver, spec).ref,
        "ReconfigVM_Task",
        vim.vm.ConfigSpec(extraConfig=hardware.options({vms.key_of("vm.clone"): ""})),
    )

    walked = run(driver, spec, rounds=2)

    assert {type(error) for error in walked.errors} == {Conflicting}
    assert driver.observe(spec.ref).power is Power.ON


def test_a_vm_switched_off_by_hand_is_switched_on_again(driver, spec, hand):
    up(driver, spec)
    hand.task(vm_of(driver, spec).ref, "PowerOffVM_Task")

    assert run(driver, spec).started == ["vm.power"]


# --- change ---------------------------------------------------------------------------------------


def test_a_size_changes_only_while_the_machine_is_off(driver, spec):
    up(driver, spec)
    larger = replace(spec, disk_gib=80, unit=replace(spec.unit, vcpu=8, memory_gib=32))

    running = run(driver, larger, rounds=2)
    off = run(driver, replace(larger, power=Power.OFF))

    why = (
        f"{spec.ref.name} has to be switched off for this: vCPUs: 4 in the place of 8; "
        "MiB of memory: 16384 in the place of 32768; GiB of disk: 40 in the place of 80"
    )
    assert {error.detail for error in running.errors} == {why}
    assert (off.errors, off.end) == ([], plan.Nothing(ready=True, complete=True))
    vm = vm_of(driver, spec)
    assert (vm.is_off, vm.have.vcpu, vm.have.memory_mib, vm.have.disk_gib) == (True, 8, 32768, 80)
    up(driver, larger)


def test_another_image_is_another_machine_of_the_same_id(drivers, home, settings, hand):
    driver = drivers(templates={**settings.templates, "debian-12": "ubuntu-24.04-gpu"})
    spec = machine(home)
    up(driver, spec)
    before = one_vm(hand, spec)

    up(driver, replace(spec, image="debian-12"))

    assert one_vm(hand, spec) != before
    assert run(driver, spec, deleting=True).end == plan.Forget()


def test_a_guest_is_asked_first_and_has_a_minute(driver, spec, vcenter_control):
    up(driver, spec)
    client, vm = driver.client, vm_of(driver, spec)
    vcenter_control.forget_calls()
    handle = Handle(f"vsphere-shutdown {client.about()['instance_uuid']} {vm.ref.id} 1060")

    assert removal.poll_shutdown(client, handle, now=1059).state == "running"
    assert removal.poll_shutdown(client, handle, now=1060).state == "unknown"
    assert removal.poll_shutdown(client, Handle("vsphere-task x y"), now=0) is None
    assert removal.switch_off(client, vm, since=1000, now=1060) == Done()

    assert {"PowerOffVM_Task", "ShutdownGuest"} & set(vcenter_control.calls()) == {"PowerOffVM_Task"}
    assert removal.poll_shutdown(client, handle, now=0).state == "done"


def test_a_machine_that_boots_is_not_ready_yet(driver, spec, vcenter_control):
    vcenter_control.boot_guests(boot=False)
    try:
        walked = run(driver, spec, rounds=6)
    finally:
        vcenter_control.boot_guests(boot=True)

    assert walked.seen is not None
    power = walked.seen.part("vm.power")
    assert (power.ready, power.message) == (False, "it is starting: nothing is heard of its tools yet")


def test_a_copy_of_the_same_name_that_lies_elsewhere_is_left_alone(driver, home, hand):
    """A backup that somebody looks into: it has the machine's name and attributes, and another instance UUID."""
    spec = machine(home, power=Power.OFF)
    run(driver, spec)
    own, outside = one_vm(hand, spec), driver.ground.estate().vm_folder
    how = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False)
    copied = hand.client.start(
        lambda si: managed(own, si).CloneVM_Task(folder=managed(outside, si), name=spec.ref.name, spec=how)
    )
    assert finish(hand.client, copied) == Done()
    [copy] = set(hand.names("VirtualMachine", spec.ref.name)) - {own}
    driver.ground.set_attribute(copy, marker(spec.ref))

    assert run(driver, spec, deleting=True).end == plan.Forget()

    assert hand.names("VirtualMachine", spec.ref.name) == [copy]
    hand.task(copy, "Destroy_Task")


# --- what is left behind --------------------------------------------------------------------------


def test_of_a_machine_that_was_removed_here_what_is_left_goes_at_the_second_look(driver, home, hand):
    gone, taken_out = (machine(home, power=Power.OFF) for _ in range(2))
    now = [0.0]
    machines = Machines(driver.ground, clock=lambda: now[0])
    for spec in (gone, taken_out):
        run(driver, spec)
    for step in reversed(driver.steps(gone)):
        while isinstance(machines.start(step.undoing()), Handle):
            pass
    _make_directory(hand, driver, gone.ref.name)
    hand.call(one_vm(hand, taken_out), "UnregisterVM")

    left = []
    told = []
    for _ in range(2 + round(datastore.GRACE_S / datastore.EVERY_S)):
        now[0] += datastore.EVERY_S
        told.append({one.uid for one in machines.tidy() or ()})
        left.append({one.path for one in datastore.stray_directories(driver.ground)})

    assert left[0] == left[-3] == {gone.ref.name, taken_out.ref.name}
    assert left[-1] == {taken_out.ref.name}, "whoever took it out of the inventory may want it back"
    assert told[0] == told[-1] == {taken_out.ref.uid}, "what goes by itself is nobody's business"
    [stray] = datastore.stray_directories(driver.ground)
    assert driver.remove_left(stray.written)
    assert driver.remove_left(stray.written), "gone is gone"


def test_of_what_is_left_nothing_is_removed_that_is_in_use_or_not_named_like_ours(driver, spec, hand):
    up(driver, spec)
    [store] = {one.values["name"] for one in driver.client.rows({"Datastore": ("name",)})["Datastore"]}
    _make_directory(hand, driver, "backups-of-tn")

    for name, words in ((spec.ref.name, "a VM has files"), ("backups-of-tn", "not named like"), ("", "not named like")):
        with pytest.raises(Conflicting, match=words):
            driver.remove_left(f"[{store}] {name}")
    assert driver.observe(spec.ref).power is Power.ON


def test_what_trying_a_host_has_left_is_told_by_every_process_and_of_no_other_vcenter(driver, hand):
    host, vcenter = driver.ground.host("DC0_C0_H0"), driver.client.about()["instance_uuid"]
    ours, theirs = acceptance.name_for(host, vcenter), acceptance.name_for(host, "another")
    _make_directory(hand, driver, ours)
    _make_directory(hand, driver, theirs)
    for _ in range(2):
        now = [0.0]
        machines = Machines(driver.ground, clock=lambda now=now: now[0])
        assert machines.tidy() is None
        now[0] = datastore.EVERY_S
        [remark] = machines.tidy() or ()
        assert (remark.kind, remark.removable, ours in remark.subject) == (RemarkKind.LEFT, True, True)

    for one in datastore.stray_directories(driver.ground):
        assert driver.remove_left(one.written)


def test_a_directory_is_left_to_a_clone_that_is_under_way(driver, hand):
    """Another process may be making the machine again whose removal this one remembers."""
    name = Ref(Kind.MACHINE, uuid4(), TENANT).name
    now = [0.0]
    sweeper = datastore.Sweeper(driver.ground, clock=lambda: now[0])
    _make_directory(hand, driver, name)
    sweeper.expect(name)
    sweeper.sweep()
    now[0] = datastore.GRACE_S

    assert sweeper.sweep(making=[name]) == datastore.Swept((), ())
    assert sweeper.sweep(making=[""]) == datastore.Swept((), None), "a clone whose name is not told may be this one"
    assert [one.path for one in sweeper.sweep().removed] == [name]


def test_a_vm_that_does_not_tell_where_its_files_are_makes_nothing_stray():
    at = MoRef("VirtualMachine", "vm-1")
    file = vim.vm.FileLayoutEx.FileInfo(key=0, name="[ds 2] tn-vm-2/tn-vm-2.vmdk", type="diskDescriptor", size=0)
    whole = Found(at, {"config.files.vmPathName": "[ds 1] tn-vm-1/tn-vm-1.vmx", "layoutEx.file": [file]})
    inaccessible = Found(at, {"summary.config.vmPathName": "[ds 1] tn-vm-1/tn-vm-1.vmx"})

    assert datastore.used_by(whole) == {datastore.Directory("ds 1", "tn-vm-1"), datastore.Directory("ds 2", "tn-vm-2")}
    assert datastore.used_by(inaccessible) == {datastore.Directory("ds 1", "tn-vm-1")}
    with pytest.raises(TransientDriverError):
        datastore.used_by(Found(at, {"name": "orphan"}))


def _make_directory(hand: Hand, driver: VSphereDriver, name: str) -> None:
    estate = driver.ground.estate()
    store = hand.client.rows({"Datastore": ("name",)}, root=estate.datacenter)["Datastore"][0].values["name"]
    hand.client.changing(
        lambda si: si.content.fileManager.MakeDirectory(
            name=f"[{store}] {name}", datacenter=managed(estate.datacenter, si), createParentDirectories=False
        )
    )


def test_a_sweep_looks_now_and_then_and_survives_a_vcenter_that_is_busy(driver, vcenter_control, caplog):
    now = [0.0]
    machines = Machines(driver.ground, clock=lambda: now[0])
    vcenter_control.forget_calls()
    machines.tidy()
    assert "SearchDatastore_Task" not in vcenter_control.calls()

    now[0] = datastore.EVERY_S
    vcenter_control.fail_task("SearchDatastore_Task", "TaskInProgress")
    machines.tidy()
    machines.tidy()

    assert vcenter_control.calls()["SearchDatastore_Task"] == 1
    assert "could not be looked for: vCenter or a host is busy" in caplog.text


def test_paths_of_a_datastore_are_read_however_they_are_spelled():
    wanted = datastore.Directory("ds 1", "tn-vm-1")
    for written in ("[ds 1]/tn-vm-1", "[ds 1] tn-vm-1/", "[ds 1] tn-vm-1"):
        assert datastore.normal(written) == wanted
    assert datastore.normal("tn-vm-1") is None
    assert wanted.written == "[ds 1] tn-vm-1"


def test_what_was_written_into_a_machine_is_in_no_log():
    said = 'Reconfigured tn-ep-1 on host-1.  \n \nModified:  \n \nconfig.extraConfig("guestinfo.x").value: "tne_secret"'
    at = datetime(2026, 1, 2, tzinfo=UTC)
    told = vim.event.VmReconfiguredEvent(createdTime=at, fullFormattedMessage=said)
    other = vim.event.VmPoweredOnEvent(createdTime=at, fullFormattedMessage="It is on.\n")

    assert [line_of(one, "tn-ep-1").text for one in (told, other)] == ["Reconfigured tn-ep-1 on host-1.", "It is on."]


def test_a_template_that_was_renamed_is_not_the_one_of_that_name_any_more(driver, hand):
    clones = Clones(driver.ground)
    before = clones.template("ubuntu-24.04", driver.ground.host("DC0_C0_H0"), with_gpu=True)
    hand.task(before, "Rename_Task", "ubuntu-24.04-gpu-old")
    try:
        # a content library has a copy of its own under the same name
        assert clones.template("ubuntu-24.04", driver.ground.host("DC0_C0_H0"), with_gpu=True) != before
    finally:
        hand.task(before, "Rename_Task", "ubuntu-24.04-gpu")


# --- where it runs --------------------------------------------------------------------------------


def overrides(driver: VSphereDriver) -> dict[str, bool]:
    [cluster] = driver.ground.estate().clusters
    told = driver.client.get(cluster.ref, "configurationEx.drsVmConfig")["configurationEx.drsVmConfig"]
    return {one.key._moId: one.enabled for one in told}


def test_a_cluster_that_balances_by_itself_leaves_our_machine_where_the_ledger_put_it(driver, home):
    spec = machine(home)
    up(driver, spec)
    vm = vm_of(driver, spec)

    assert overrides(driver)[vm.ref.id] is False
    assert run(driver, spec).started == []
    assert run(driver, spec, deleting=True).end == plan.Forget()


def test_a_host_in_maintenance_takes_no_machine_and_that_is_no_fault_of_the_machine(driver, spec, hand):
    run(driver, replace(spec, power=Power.OFF))
    host = driver.ground.host("DC0_C0_H0").ref
    hand.task(host, "EnterMaintenanceMode_Task", 0)
    try:
        walked = run(driver, spec, rounds=4)
    finally:
        hand.task(host, "ExitMaintenanceMode_Task", 0)

    assert {(type(error), error.detail) for error in walked.errors} == {
        (NoCapacity, "host DC0_C0_H0 is in maintenance")
    }
    assert walked.seen is not None
    assert walked.seen.power is Power.OFF
    up(driver, spec)


def test_a_host_that_goes_into_maintenance_just_before_power_on_is_looked_at_again(driver, spec, hand, monkeypatch):
    run(driver, replace(spec, power=Power.OFF))
    host = driver.ground.host("DC0_C0_H0").ref
    looked = datastore.check_host

    def look(*given: Any) -> None:
        looked(*given)
        monkeypatch.setattr(datastore, "check_host", looked)
        hand.task(host, "EnterMaintenanceMode_Task", 0)

    monkeypatch.setattr(datastore, "check_host", look)
    try:
        walked = run(driver, spec, rounds=5)
    finally:
        hand.task(host, "ExitMaintenanceMode_Task", 0)

    assert [fault_of(error) for error in walked.errors][:1] == ["InvalidState"]
    assert [type(error) for error in walked.errors][:2] == [TransientDriverError, NoCapacity]
    up(driver, spec)


def test_of_a_vm_that_vcenter_has_lost_sight_of_nothing_is_concluded(driver, spec):
    up(driver, spec)
    for connection in ("disconnected", "inaccessible", "orphaned"):
        for power in ("poweredOn", "poweredOff"):
            vm = replace(vm_of(driver, spec), connection=connection, power=power)

            parts = vms.parts(vm, vms.Surroundings())

            assert {part.presence for part in parts} == {Presence.UNKNOWN}
            assert parts[0].message == f"vCenter does not know how it is: it is {connection}"
            assert (vm.is_on, vm.is_off) == (False, False)


# --- hostile texts, end to end --------------------------------------------------------------------


def test_fifty_hostile_texts_arrive_in_the_guest_as_they_are(driver, home):
    words = (
        "[Unit]\n",
        "$X",
        "%n",
        "{{ a }}",
        "\0",
        "\x85",
        "\u2028",
        "'\"",
        "\U0001f600",
        "]]>",
        "&amp;",
        "\r\n",
        "\\",
    )
    files = {f"/etc/tenantry/{at}": (words[at % len(words)] * (at + 1), "0600") for at in range(50)}
    asked = machine(home)
    seed = Seed(machine_uuid(asked.unit.uid), asked.ref.name, files=files)
    one = VmPlan(home.ref, None, asked.unit, asked.image, 0, Power.OFF, cut_off=False, seed=seed)

    for each in vm_steps(asked.ref, one)[:2]:
        complete(driver, each)

    extra = vm_of(driver, asked).extra
    told = yaml.safe_load(cloud_init.unpacked(extra["guestinfo.userdata"]))
    written = {entry["path"]: entry["content"] for entry in told["write_files"]}
    assert {path: written[path] for path in files} == {path: text for path, (text, _mode) in files.items()}
    assert run(driver, asked, deleting=True).end == plan.Forget()


@pytest.mark.parametrize("image", ["../x", "a/b", "a%2fb", "ubuntu-24.04\u2024", "ubuntu\u201124.04", "\0", "x" * 500])
def test_an_image_of_a_hostile_name_is_refused_with_the_field(driver, spec, image):
    with pytest.raises(NotSupported, match=r"^image: no template is configured for "):
        driver.start(step(driver, replace(spec, image=image), "vm.clone"))


# --- console --------------------------------------------------------------------------------------


def test_a_console_is_a_new_ticket_of_a_machine_that_runs(driver, spec):
    with pytest.raises(TransientDriverError, match="no such machine"):
        driver.console(spec.ref)
    up(driver, spec)

    first, second = driver.console(spec.ref), driver.console(spec.ref)

    assert first.address.reveal().startswith("wss://console.simulated.invalid:443/ticket/")
    assert first.address != second.address
    assert first.simulated
    assert "ticket" not in repr(first)
    driver.power(spec.ref, want=Power.OFF)
    while driver.observe(spec.ref).power is not Power.OFF:
        pass
    with pytest.raises(TransientDriverError, match="switched off"):
        driver.console(spec.ref)
