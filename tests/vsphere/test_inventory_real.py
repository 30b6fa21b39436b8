"""The whole of a lab's vCenter at once: GPUs and what they carry, whose uses they are, and what a read costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from pyVmomi import vim

from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, OtherVm, Template, World
from provisioners.driver import (
    Binding,
    BoundaryKind,
    Kind,
    ObservedProvider,
    ObservedUse,
    Ref,
    RemarkKind,
    Secret,
    TransientDriverError,
)
from provisioners.vsphere.client import MoRef, VCenterClient, managed
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.inventory import RECORD
from provisioners.vsphere.names import marker
from provisioners.vsphere.settings import Settings
from tests.vsphere.ground import Hand, settings_for

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

TENANT, OTHER = uuid4(), uuid4()
ESTATE = World(
    hosts=5,
    gpu_hosts=(
        GpuHosts(("DC0_C0_H0", "DC0_C0_H1"), worlds.gpus("H100-80GB", 2, board="H100XM")),
        GpuHosts(("DC0_C0_H2",), worlds.gpus("A100-80GB", 1, fixed_mode=worlds.MIG)),
        GpuHosts(("DC0_C0_H3",), worlds.gpus("H100-80GB", 2, board="H100XM", passthrough=True, label="tenants")),
    ),
    templates=(Template("image"),),
)


@pytest.fixture(scope="module")
def place(vcenters: Callable[..., VCenter]) -> VCenter:
    return vcenters("inventory", world=ESTATE)


@pytest.fixture
def control(place: VCenter) -> Iterator[Control]:
    with place.control() as made:
        yield made
        made.clear()


@pytest.fixture
def settings(place: VCenter) -> Settings:
    return settings_for(place)


@pytest.fixture
def driver(settings: Settings) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings)
    yield made
    made.close()


@pytest.fixture
def hand(settings: Settings) -> Iterator[Hand]:
    made = Hand(settings)
    yield made
    made.close()


class Folders:
    """Boundaries and VMs of ours, made by hand and removed after the test."""

    def __init__(self, hand: Hand, driver: VSphereDriver) -> None:
        self.hand, self.driver = hand, driver
        self.made: list[MoRef] = []

    def folder(self, ref: Ref, *, root: str = "tenantry") -> MoRef:
        ground = self.driver.ground
        top = ground.child(ground.estate().vm_folder, root)
        if top is None:
            top = self.hand.call(ground.estate().vm_folder, "CreateFolder", root)
            self.made.append(top)
        folder = self.hand.call(top, "CreateFolder", ref.name)
        self.made.append(folder)
        ground.set_attribute(folder, marker(ref))
        return folder

    def vm(
        self,
        folder: MoRef,
        name: str,
        host: str,
        *types: str,
        mark: str = "",
        unit: UUID | None = None,
        on: bool = True,
    ) -> MoRef:
        ground = self.driver.ground
        where = ground.host(host)
        devices = [
            vim.vm.device.VirtualDeviceSpec(
                operation="add",
                device=vim.vm.device.VirtualPCIPassthrough(
                    key=-100 - at, backing=vim.vm.device.VirtualPCIPassthrough.VmiopBackingInfo(vgpu=name)
                ),
            )
            for at, name in enumerate(types)
        ]
        spec = vim.vm.ConfigSpec(
            name=name, numCPUs=8, memoryMB=32_768, guestId="ubuntu64Guest", deviceChange=devices,
            files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
            extraConfig=[vim.option.OptionValue(key=RECORD, value=json.dumps({"unit": str(unit)}))] if unit else [],
        )  # fmt: skip

        def make(si: Any) -> Any:
            return managed(folder, si).CreateVM_Task(spec, managed(where.cluster.pool, si), managed(where.ref, si))

        task = self.hand.client.start(make)
        while not (state := self.hand.client.task(task)).is_over:
            pass
        assert state.error is None
        self.made.append(state.result)
        if mark:
            ground.set_attribute(state.result, mark)
        if on:
            self.hand.task(state.result, "PowerOnVM_Task")
        return state.result

    def remove(self) -> None:
        for ref in reversed(self.made):
            if ref.kind == "VirtualMachine":
                told = self.hand.client.get(ref, "runtime.powerState")
                if told is None:
                    continue
                if told["runtime.powerState"] == "poweredOn":
                    self.hand.task(ref, "PowerOffVM_Task")
            if self.hand.client.get(ref, "name") is not None:
                self.hand.task(ref, "Destroy_Task")


@pytest.fixture
def folders(hand: Hand, driver: VSphereDriver) -> Iterator[Folders]:
    made = Folders(hand, driver)
    yield made
    made.remove()


@pytest.fixture
def neighbour(control: Control) -> Iterator[Callable[..., None]]:
    made: list[str] = []

    def add(name: str, host: str, *types: str, **more: Any) -> None:
        control.add_vm(name, host, *types, **more)
        made.append(name)

    yield add
    for name in made:
        control.remove_vm(name)


def on(seen: ObservedProvider, name: str) -> list[ObservedUse]:
    return [use for use in seen.uses if use.name == name]


def host_of(seen: ObservedProvider, name: str) -> Any:
    return next(host for host in seen.hosts if host.name == name)


# --- hosts ----------------------------------------------------------------------------------------


def test_hosts_and_gpus_are_told_as_they_are(driver):
    seen = driver.snapshot()

    assert [host.name for host in seen.hosts] == [f"DC0_C0_H{at}" for at in range(5)]
    assert {host.binding for host in seen.hosts} == {Binding.HOST}
    assert {host.boundary_kinds for host in seen.hosts} == {frozenset({BoundaryKind.VM})}
    assert {(host.vcpu, host.memory_gib) for host in seen.hosts} == {(128, 962)}
    h100, a100, whole, none = (host_of(seen, f"DC0_C0_H{at}") for at in (0, 2, 3, 4))
    assert [(gpu.device, gpu.product, gpu.index) for gpu in h100.gpus] == [
        ("DC0_C0_H0/0000:1b:00.0", "H100-80GB", 0), ("DC0_C0_H0/0000:3b:00.0", "H100-80GB", 1),
    ]  # fmt: skip
    assert {(gpu.mode, gpu.layout_change, gpu.healthy) for gpu in h100.gpus} == {("empty", "dynamic", True)}
    assert [(gpu.product, gpu.mode, gpu.healthy) for gpu in a100.gpus] == [("A100-80GB", "mig", True)]
    assert {(gpu.product, gpu.mode, gpu.layout_change, gpu.healthy) for gpu in whole.gpus} == {
        ("H100-80GB", "empty", "fixed", True)
    }
    assert none.gpus == ()
    assert none.healthy
    assert (seen.complete, seen.uses, seen.objects) == (True, (), ())
    assert {host.message for host in seen.hosts} == {""}
    assert not any(host.contradictions for host in seen.hosts)


def test_a_host_in_maintenance_is_told_and_shown(driver, hand):
    [host] = hand.names("HostSystem", "DC0_C0_H4")
    hand.task(host, "EnterMaintenanceMode_Task", 0, False)
    try:
        seen = host_of(driver.snapshot(), "DC0_C0_H4")
    finally:
        hand.task(host, "ExitMaintenanceMode_Task", 0)

    assert (seen.in_maintenance, seen.healthy) == (True, True)
    assert not host_of(driver.snapshot(), "DC0_C0_H4").in_maintenance


def test_only_hosts_of_the_clusters_that_are_offered_are_shown(settings, vcenters):
    two = vcenters("two-clusters", world=World(hosts=1, clusters=2, templates=(Template("image"),)))
    for clusters, names in (((), ["DC0_C0_H0", "DC0_C1_H0"]), (("DC0_C1",), ["DC0_C1_H0"])):
        made = VSphereDriver(settings_for(two, clusters=clusters))
        assert [host.name for host in made.snapshot().hosts] == names
        made.close()
    missing = VSphereDriver(settings_for(two, clusters=("DC0_C9",)))
    with pytest.raises(TransientDriverError, match="no cluster DC0_C9"):
        missing.snapshot()
    missing.close()


# --- uses -----------------------------------------------------------------------------------------


def test_a_foreign_vm_is_shown_where_the_host_says_it_is(driver, control, neighbour):
    neighbour("slice", "DC0_C0_H0", "nvidia_h100xm-3-40c")
    neighbour("turns", "DC0_C0_H1", "nvidia_h100xm-40c")
    neighbour("plain", "DC0_C0_H4")

    seen = driver.snapshot()

    [slice_] = on(seen, "slice")
    [truth] = [gpu for gpu in control.gpus() if any(window.type.endswith("3-40c") for window in gpu.held)]
    assert (slice_.device, slice_.profile, slice_.size) == (f"{truth.host}/{truth.pci_id}", "3g.40gb", 4)
    assert (slice_.start, slice_.ref, slice_.unit, slice_.vcpu, slice_.memory_gib) == (None, None, None, 4, 16)
    [turns] = on(seen, "turns")
    assert (turns.start, turns.size, turns.profile) == (0, 8, "")
    assert {gpu.mode for gpu in host_of(seen, "DC0_C0_H0").gpus} == {"mig", "empty"}
    [rest] = [use for use in seen.uses if use.host == "DC0_C0_H4"]
    assert (rest.device, rest.size, rest.vcpu, rest.memory_gib) == ("", 0, 4, 16)


def test_those_who_take_turns_take_the_gpu_once(driver, neighbour):
    for name in ("turn-a", "turn-b"):
        neighbour(name, "DC0_C0_H1", "nvidia_h100xm-40c")

    seen = driver.snapshot()

    a, b = on(seen, "turn-a")[0], on(seen, "turn-b")[0]
    assert a.device == b.device
    assert [(a.start, a.size), (b.start, b.size)] == [(0, 8), (None, 0)]
    assert (b.vcpu, b.memory_gib) == (4, 16)
    assert not host_of(seen, "DC0_C0_H1").contradictions


def test_a_whole_gpu_and_a_profile_with_one_place_are_exact(driver, neighbour):
    neighbour("whole", "DC0_C0_H1", "nvidia_h100xm-80c")
    neighbour("seven", "DC0_C0_H0", "nvidia_h100xm-7-80c")

    seen = driver.snapshot()

    [whole], [seven] = on(seen, "whole"), on(seen, "seven")
    assert (whole.profile, whole.start, whole.size) == ("", 0, 8)
    assert (seven.profile, seven.start, seven.size) == ("7g.80gb", 0, 8)
    assert {gpu.mode for gpu in host_of(seen, "DC0_C0_H1").gpus} == {"full", "empty"}


def test_of_several_devices_the_place_is_told_only_without_a_choice(driver, neighbour):
    neighbour("both", "DC0_C0_H0", "nvidia_h100xm-80c", "nvidia_h100xm-80c")
    neighbour("pair", "DC0_C0_H1", "nvidia_h100xm-1-10c", "nvidia_h100xm-2-20c")

    seen = driver.snapshot()

    assert sorted(use.device for use in on(seen, "both")) == ["DC0_C0_H0/0000:1b:00.0", "DC0_C0_H0/0000:3b:00.0"]
    assert [use.vcpu for use in on(seen, "both")] == [4, 0]
    pair = on(seen, "pair")
    assert [use.profile for use in pair] == ["1g.10gb", "2g.20gb"]
    assert len({use.device for use in pair}) == 1  # first come, first served: the host put both on one GPU


def test_a_vm_that_is_off_uses_nothing(driver, neighbour):
    neighbour("off", "DC0_C0_H0", "nvidia_h100xm-3-40c", power_on=False)

    assert driver.snapshot().uses == ()


def test_ours_are_ours_by_mark_folder_tenant_and_unit(driver, folders):
    boundary = Ref(Kind.BOUNDARY, uuid4(), TENANT)
    folder = folders.folder(boundary)
    machine, endpoint, stranger = (
        Ref(Kind.MACHINE, uuid4(), TENANT), Ref(Kind.ENDPOINT, uuid4(), TENANT), Ref(Kind.MACHINE, uuid4(), OTHER),
    )  # fmt: skip
    unit, replica = uuid4(), uuid4()
    small = "nvidia_h100xm-1-10c"
    folders.vm(folder, machine.name, "DC0_C0_H0", small, mark=marker(machine), unit=unit)
    folders.vm(folder, f"{endpoint.name}-1", "DC0_C0_H0", small, mark=marker(endpoint, 1), unit=replica)
    folders.vm(folder, "stranger", "DC0_C0_H0", small, mark=marker(stranger), unit=uuid4())
    no_unit = Ref(Kind.MACHINE, uuid4(), TENANT)
    folders.vm(folder, no_unit.name, "DC0_C0_H0", small, mark=marker(no_unit))
    folders.vm(folder, "copy", "DC0_C0_H0", small, mark=marker(machine), unit=unit)
    elsewhere = folders.folder(Ref(Kind.BOUNDARY, uuid4(), TENANT), root="another-installation")
    folders.vm(elsewhere, "theirs", "DC0_C0_H0", small, mark=marker(machine), unit=unit)
    unmarked = Ref(Kind.MACHINE, uuid4(), TENANT)
    folders.vm(folder, unmarked.name, "DC0_C0_H4", on=False)

    seen = driver.snapshot()

    owners = {use.name: (use.ref, use.unit) for use in seen.uses}
    assert owners[machine.name] == (machine, unit)
    assert owners[f"{endpoint.name}-1"] == (endpoint, replica)
    assert {owners[name] for name in ("stranger", no_unit.name, "theirs", "copy")} == {(None, None)}
    found = {one.ref for one in seen.objects}
    assert {boundary, machine, endpoint, unmarked} <= found
    assert stranger not in found
    assert {one.text.split(" ")[1] for one in seen.remarks} == {"stranger", "copy"}
    assert {(one.kind, one.uid) for one in seen.remarks} == {(RemarkKind.FOREIGN, boundary.uid)}
    assert len(found) == 5  # with the one that has no unit, and nothing of the other installation


def test_a_fingerprint_changes_with_what_matters_and_with_nothing_else(driver, folders, hand):
    boundary, machine = Ref(Kind.BOUNDARY, uuid4(), TENANT), Ref(Kind.MACHINE, uuid4(), TENANT)
    folder = folders.folder(boundary)
    vm = folders.vm(folder, machine.name, "DC0_C0_H0", mark=marker(machine), unit=uuid4(), on=False)

    def prints() -> dict[Ref, str]:
        return {one.ref: one.fingerprint for one in driver.snapshot().objects}

    first = prints()
    assert prints() == first
    hand.task(vm, "PowerOnVM_Task")
    second = prints()
    assert second[machine] != first[machine]
    assert second[boundary] == first[boundary]
    hand.task(folder, "Rename_Task", f"{boundary.name}-x")
    assert prints()[boundary] != first[boundary]


def test_a_device_that_was_changed_is_seen_though_devices_are_remembered(driver, folders, hand, control):
    boundary, machine = Ref(Kind.BOUNDARY, uuid4(), TENANT), Ref(Kind.MACHINE, uuid4(), TENANT)
    folder = folders.folder(boundary)
    vm = folders.vm(folder, machine.name, "DC0_C0_H0", "nvidia_h100xm-1-10c", mark=marker(machine), unit=uuid4())
    assert [use.profile for use in driver.snapshot().uses] == ["1g.10gb"]
    hand.task(vm, "PowerOffVM_Task")
    told = hand.client.get(vm, "config.hardware.device")
    assert told is not None
    [old] = [one for one in told["config.hardware.device"] if isinstance(one, vim.vm.device.VirtualPCIPassthrough)]
    old.backing.vgpu = "nvidia_h100xm-2-20c"
    change = vim.vm.device.VirtualDeviceSpec(operation="edit", device=old)
    hand.task(vm, "ReconfigVM_Task", vim.vm.ConfigSpec(deviceChange=[change]))
    hand.task(vm, "PowerOnVM_Task")

    assert [use.profile for use in driver.snapshot().uses] == ["2g.20gb"]


# --- what a read costs, and what goes wrong -------------------------------------------------------


def test_calls_do_not_grow_with_objects(driver, control, neighbour):
    driver.snapshot()
    control.forget_calls()
    driver.snapshot()
    few = control.calls()
    for at in range(10):
        neighbour(f"n{at}", f"DC0_C0_H{at % 2}", "nvidia_h100xm-1-10c")
    control.forget_calls()
    driver.snapshot()
    fresh = control.calls()
    control.forget_calls()
    driver.snapshot()

    assert few == control.calls() == {"RetrievePropertiesEx": 1}
    assert fresh == {"RetrievePropertiesEx": 2}


def test_what_cannot_be_read_makes_it_incomplete_and_what_fails_makes_it_fail(driver, control, monkeypatch):
    driver.snapshot()
    control.fail_call("RetrievePropertiesEx", "HostCommunication")
    with pytest.raises(TransientDriverError):
        driver.snapshot()
    real = VCenterClient.rows

    def with_a_gap(self: VCenterClient, *given: Any, **more: Any) -> Any:
        rows = dict(real(self, *given, **more))
        if "VirtualMachine" in rows:
            rows["VirtualMachine"] = tuple(
                replace(one, unread={"config.changeVersion": "NoPermission"}) for one in rows["VirtualMachine"]
            )
        return rows

    monkeypatch.setattr(VCenterClient, "rows", with_a_gap)
    seen = driver.snapshot()
    assert not seen.complete
    assert "config.changeVersion of 2 VirtualMachine (NoPermission)" in seen.version


def test_a_vm_whose_hardware_is_not_told_makes_it_incomplete(driver, neighbour, monkeypatch):
    neighbour("orphan", "DC0_C0_H0", "nvidia_h100xm-1-10c")
    real = VCenterClient.many

    def without(self: VCenterClient, refs: Any, *paths: str) -> Any:
        found = real(self, refs, *paths)
        return tuple(replace(one, values={}) for one in found) if "config.hardware.device" in paths else found

    monkeypatch.setattr(VCenterClient, "many", without)
    seen = driver.snapshot()
    assert not seen.complete
    assert "hardware of orphan" in seen.version
    monkeypatch.setattr(VCenterClient, "many", real)
    assert driver.snapshot().complete


def test_a_vm_that_goes_between_two_calls_is_read_around(driver, neighbour, control, monkeypatch):
    neighbour("stays", "DC0_C0_H0", "nvidia_h100xm-1-10c")
    control.add_vm("goes", "DC0_C0_H0", "nvidia_h100xm-1-10c")
    real, gone = VCenterClient.many, []

    def late(self: VCenterClient, refs: Any, *paths: str) -> Any:
        if refs and refs[0].kind == "VirtualMachine" and not gone:
            gone.append(True)
            control.remove_vm("goes")
        return real(self, refs, *paths)

    monkeypatch.setattr(VCenterClient, "many", late)

    assert {use.name for use in driver.snapshot().uses} == {"stays"}
    assert gone


def test_after_the_end_of_a_session_it_goes_on(driver, control, neighbour):
    neighbour("slice", "DC0_C0_H0", "nvidia_h100xm-3-40c")
    before = driver.snapshot()
    control.end_sessions()

    assert driver.snapshot().uses == before.uses


def test_custom_attribute_of_ours_may_not_be_there_yet(vcenters):
    fresh = vcenters("no-fields", world=World(hosts=1, templates=(Template("image"),)))
    made = VSphereDriver(
        Settings("lab", fresh.host, fresh.user, Secret(fresh.password), port=fresh.port, ca_pem=fresh.ca_pem)
    )
    seen = made.snapshot()
    made.close()

    assert (len(seen.hosts), seen.objects, seen.complete) == (1, (), True)


@pytest.mark.slow
def test_five_hundred_vms_are_read_in_half_a_second(vcenters):
    """The lab makes them one by one: that is what takes long."""
    crowd = tuple(
        OtherVm(f"vm-{at:03}", f"DC0_C0_H{at % 40}", ("nvidia_h100xm-1-10c",) if at < 400 else ()) for at in range(500)
    )
    large = World(
        hosts=40, gpu_hosts=(GpuHosts(("*",), worlds.gpus("H100-80GB", 2, board="H100XM")),),
        templates=(Template("image"),), vms=crowd,
    )  # fmt: skip
    made = VSphereDriver(settings_for(vcenters("crowd", world=large)))
    assert len([use for use in made.snapshot().uses if use.profile]) == 400
    with vcenters("crowd").control() as control:
        control.forget_calls()
        started = time.process_time(), time.monotonic()
        made.snapshot()
        took = time.process_time() - started[0], time.monotonic() - started[1]
        assert control.calls() == {"RetrievePropertiesEx": 1}
    made.close()
    assert took[0] < 0.5, took
