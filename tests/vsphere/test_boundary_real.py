"""VM boundaries on the lab's vCenter: made once however often, kept as wanted, removed only when empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from pyVmomi import vim

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import (
    BoundarySpec,
    Conflicting,
    Done,
    DriverError,
    Handle,
    Presence,
    Ref,
    RemarkKind,
    TransientDriverError,
    removal_of,
)
from provisioners.vsphere import network, roles, tasks
from provisioners.vsphere.client import Found, MoRef, VCenterClient, managed
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.names import marker
from provisioners.vsphere.settings import Settings
from tests.vsphere.ground import Hand, boundary, clear, complete, settings_for, unmet, walk

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

STEPS = ["folder.create", "pool.create", "network.create", "role.grant"]
GROUP = "VSPHERE.LOCAL\\tenant-{tenant}"


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    return settings_for(vcenter, tenant_group=GROUP)


@pytest.fixture
def driver(settings: Settings, vcenter_control: Control) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings)
    yield made
    vcenter_control.clear()
    made.close()


@pytest.fixture
def hand(settings: Settings) -> Iterator[Hand]:
    made = Hand(settings)
    yield made
    made.close()


@pytest.fixture
def spec(driver: VSphereDriver) -> Iterator[BoundarySpec]:
    """A boundary that is there."""
    made = boundary(access=(("p-1", "member"),))
    walk(driver, made)
    yield made
    clear(driver, made)


def objects(hand: Hand, ref: Ref) -> dict[str, int]:
    """Return how many objects of each kind carry a boundary's name."""
    kinds = ("Folder", "ResourcePool", "DistributedVirtualPortgroup")
    return {kind: len(hand.names(kind, ref.name)) for kind in kinds}


ONE_EACH = {"Folder": 1, "ResourcePool": 1, "DistributedVirtualPortgroup": 1}
NONE = dict.fromkeys(ONE_EACH, 0)


# --- making and removing --------------------------------------------------------------------------


def test_a_boundary_is_made_shown_as_wanted_and_leaves_nothing(driver, hand):
    spec = boundary(access=(("p-1", "member"),))
    assert not driver.observe(spec.ref).exists

    seen = walk(driver, spec)

    assert [part.step for part in seen.parts] == STEPS
    assert (seen.blocked_by, seen.simulated) == ("", True)
    assert objects(hand, spec.ref) == ONE_EACH
    clear(driver, spec)
    assert objects(hand, spec.ref) == NONE


def test_every_step_and_every_undo_started_twice_is_one_object(driver, hand):
    spec = boundary()
    for step in driver.steps(spec):
        assert driver.start(step) == driver.start(step) == Done()
    assert unmet(driver, spec, driver.observe(spec.ref)) is None
    assert objects(hand, spec.ref) == ONE_EACH
    for step in reversed(driver.steps(spec)):
        assert driver.start(step.undoing()) == driver.start(step.undoing()) == Done()
        assert driver.observe(spec.ref).part(step.name).presence is Presence.ABSENT
    assert objects(hand, spec.ref) == NONE


def test_eight_at_once_make_one_of_each(settings, hand):
    spec = boundary(access=(("p-1", "member"),))
    drivers = [VSphereDriver(settings) for _ in range(8)]

    def made(driver: VSphereDriver) -> list[str]:
        trouble = []
        for _ in range(5):
            try:
                walk(driver, spec)
            except TransientDriverError as error:
                trouble.append(error.detail)
                continue
            return trouble
        raise AssertionError(trouble)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(made, drivers))

    assert objects(hand, spec.ref) == ONE_EACH
    assert unmet(drivers[0], spec, drivers[0].observe(spec.ref)) is None
    clear(drivers[0], spec)
    for driver in drivers:
        driver.close()


def test_what_is_asked_for_is_what_stands_in_vcenter(driver, hand, spec):
    [pool] = hand.names("ResourcePool", spec.ref.name)
    told = hand.client.get(pool, "config.memoryAllocation", "config.cpuAllocation")
    memory, cpu = told["config.memoryAllocation"], told["config.cpuAllocation"]
    assert 64 * 1024 < memory.limit < 80 * 1024
    assert (memory.reservation, memory.expandableReservation, cpu.reservation) == (0, True, 0)
    assert cpu.limit > 16 * 1000

    [group] = hand.names("DistributedVirtualPortgroup", spec.ref.name)
    wiring = network.wiring_of(hand.client.get(group, "config.defaultPortConfig", "config.policy"))
    assert wiring == network.Wiring(spec.vlan)

    grants = permissions(hand, spec.ref)
    assert [(one.principal, one.group, one.propagate) for one in grants] == [
        (f"VSPHERE.LOCAL\\tenant-{spec.ref.tenant_uid}", True, True)
    ]


def test_nobody_is_let_in_where_nobody_has_access(driver, hand):
    spec = boundary(access=())
    walk(driver, spec)

    assert permissions(hand, spec.ref) == []
    clear(driver, spec)


def test_more_room_is_the_pools_step_alone(driver, hand, spec):
    wider = replace(spec, memory_gib=128)

    step = unmet(driver, wider, driver.observe(spec.ref))

    assert step is not None
    assert step.name == "pool.create"
    walk(driver, wider)
    [pool] = hand.names("ResourcePool", spec.ref.name)
    assert hand.client.get(pool, "config.memoryAllocation")["config.memoryAllocation"].limit > 128 * 1024


def test_without_a_vlan_of_its_own_there_is_no_boundary(driver):
    with pytest.raises(TransientDriverError, match="setting vlans"):
        driver.steps(boundary(vlan=None))


# --- what is not ours -----------------------------------------------------------------------------


def test_another_tenant_sees_nothing_of_it_and_takes_nothing_away(driver, hand, spec):
    stranger = Ref(spec.ref.kind, spec.ref.uid, uuid4())

    assert not driver.observe(stranger).exists
    for name in reversed(STEPS):
        assert driver.start(removal_of(stranger, name)) == Done()

    assert objects(hand, spec.ref) == ONE_EACH
    with pytest.raises(Conflicting, match="not ours"):
        driver.start(driver.steps(replace(spec, ref=stranger))[0])
    assert unmet(driver, spec, driver.observe(spec.ref)) is None


@pytest.mark.parametrize("kind", ["Folder", "ResourcePool", "DistributedVirtualPortgroup"])
def test_somebody_elses_of_our_name_is_reported_and_not_touched(driver, hand, kind):
    spec = boundary()
    walk(driver, boundary_for_root := boundary())
    estate = driver.ground.estate()
    if kind == "Folder":
        root = driver.ground.root_folder()
        theirs = hand.call(root, "CreateFolder", spec.ref.name)
        hand.call(theirs, "CreateFolder", "theirs")
    elif kind == "ResourcePool":
        made = driver.ground.client.changing(
            lambda si: managed(estate.clusters[0].pool, si).CreateResourcePool(spec.ref.name, pool_spec())._moId
        )
        theirs = MoRef("ResourcePool", made)
        driver.ground.set_attribute(theirs, "somebody else's")
    else:
        group = network.config_spec(Ref(spec.ref.kind, spec.ref.uid, uuid4()), network.Wiring(7))
        hand.task(driver.ground.switch().ref, "AddDVPortgroup_Task", [group])
        [theirs] = hand.names(kind, spec.ref.name)
    step = next(one for one in driver.steps(spec) if one.name == OF_KIND[kind])

    with pytest.raises(Conflicting, match="not ours"):
        driver.start(step)
    assert driver.start(step.undoing()) == Done()

    assert driver.observe(spec.ref).part(step.name).presence is Presence.ABSENT
    assert hand.names(kind, spec.ref.name) == [theirs]
    hand.task(theirs, "Destroy_Task")
    clear(driver, boundary_for_root)


def test_a_vlan_that_somebody_else_uses_is_not_used_twice(driver, hand, spec):
    second = boundary(vlan=spec.vlan)
    for step in driver.steps(second)[:2]:
        driver.start(step)

    with pytest.raises(Conflicting, match=f"VLAN {spec.vlan} is that of port group {spec.ref.name}"):
        driver.start(driver.steps(second)[2])

    assert not driver.observe(second.ref).part("network.create").have
    clear(driver, second)


def test_what_a_dead_worker_left_unmarked_and_empty_is_adopted(driver, hand):
    spec = boundary()
    walk(driver, other := boundary())
    hand.call(driver.ground.root_folder(), "CreateFolder", spec.ref.name)

    seen = driver.observe(spec.ref)
    walk(driver, spec)

    assert [(part.step, part.have) for part in seen.parts] == [("folder.create", "")]
    assert objects(hand, spec.ref) == ONE_EACH
    clear(driver, spec)
    clear(driver, other)


# --- drift ----------------------------------------------------------------------------------------


def rewire(driver: VSphereDriver, hand: Hand, ref: Ref, **changes: Any) -> None:
    [group] = hand.names("DistributedVirtualPortgroup", ref.name)
    wiring = network.wiring_of(hand.client.get(group, "config.defaultPortConfig", "config.policy"))
    spec = network.config_spec(ref, replace(wiring, **changes))
    hand.task(group, "ReconfigureDVPortgroup_Task", spec)


def permit(driver: VSphereDriver, hand: Hand, ref: Ref) -> None:
    [folder] = hand.names("Folder", ref.name)
    theirs = vim.AuthorizationManager.Permission(principal="EVE", group=False, roleId=-1, propagate=True)
    hand.client.changing(lambda si: si.content.authorizationManager.SetEntityPermissions(managed(folder, si), [theirs]))


def permissions(hand: Hand, ref: Ref) -> list[Any]:
    [folder] = hand.names("Folder", ref.name)
    return list(
        hand.client.changing(
            lambda si: si.content.authorizationManager.RetrieveEntityPermissions(managed(folder, si), False)
        )
        or ()
    )


def widen(driver: VSphereDriver, hand: Hand, ref: Ref) -> None:
    [pool] = hand.names("ResourcePool", ref.name)
    hand.call(pool, "UpdateConfig", None, pool_spec(limit=-1))


def unmark(kind: str) -> Callable[[VSphereDriver, Hand, Ref], None]:
    def meddle(driver: VSphereDriver, hand: Hand, ref: Ref) -> None:
        [found] = hand.names(kind, ref.name)
        driver.ground.set_attribute(found, "", "tenantry.internal/wants")

    return meddle


def pool_spec(limit: int = 4096) -> Any:
    share = vim.ResourceAllocationInfo(
        reservation=0, limit=limit, expandableReservation=True, shares=vim.SharesInfo(level="normal", shares=0)
    )
    return vim.ResourceConfigSpec(cpuAllocation=share, memoryAllocation=share)


OF_KIND = {
    "Folder": "folder.create",
    "ResourcePool": "pool.create",
    "DistributedVirtualPortgroup": "network.create",
}
DRIFTS: dict[str, tuple[str, Callable[[VSphereDriver, Hand, Ref], None]]] = {
    "vlan": ("network.create", lambda *at: rewire(*at, vlan=9)),
    "promiscuous": ("network.create", lambda *at: rewire(*at, promiscuous=True)),
    "forged": ("network.create", lambda *at: rewire(*at, forged=True)),
    "mac changes": ("network.create", lambda *at: rewire(*at, mac_changes=True)),
    "blocked": ("network.create", lambda *at: rewire(*at, blocked=True)),
    "overridable": ("network.create", lambda *at: rewire(*at, overridable=True)),
    "limits": ("pool.create", widen),
    "permission": ("role.grant", permit),
    "record of the folder": ("folder.create", unmark("Folder")),
    "record of the pool": ("pool.create", unmark("ResourcePool")),
    "record of the port group": ("network.create", unmark("DistributedVirtualPortgroup")),
}


REMARKED = {
    **{key: [RemarkKind.RULES] for key in ("vlan", "promiscuous", "forged", "mac changes", "blocked", "overridable")},
    "limits": [RemarkKind.CHANGED],
    "permission": [RemarkKind.ACCESS],
}
"""What is remarked on; of a record that is gone nobody knows what it said."""
LAB_HIDES = frozenset({"permission"})
"""The lab's library shows permissions to whoever asks its manager, not as a property."""


@pytest.mark.parametrize("kind", DRIFTS)
def test_what_somebody_changed_by_hand_is_seen_and_set_right(driver, hand, spec, kind):
    step, meddle = DRIFTS[kind]
    meddle(driver, hand, spec.ref)

    seen = driver.observe(spec.ref)
    first = unmet(driver, spec, seen)

    assert first is not None
    assert (first.name, seen.part(step).have) == (step, "")
    assert [one.kind for part in seen.parts for one in part.remarks] == REMARKED.get(kind, [])
    assert not any(part.remarks for part in walk(driver, spec).parts)
    [group] = hand.names("DistributedVirtualPortgroup", spec.ref.name)
    assert network.wiring_of(hand.client.get(group, "config.defaultPortConfig", "config.policy")) == network.Wiring(
        spec.vlan
    )
    assert [one.principal for one in permissions(hand, spec.ref)] == [f"VSPHERE.LOCAL\\tenant-{spec.ref.tenant_uid}"]


@pytest.mark.parametrize("kind", [kind for kind in DRIFTS if kind not in LAB_HIDES])
def test_a_sweep_sees_that_something_was_changed(driver, hand, spec, kind):
    before = fingerprint(driver, spec.ref)
    DRIFTS[kind][1](driver, hand, spec.ref)

    assert fingerprint(driver, spec.ref) != before


def fingerprint(driver: VSphereDriver, ref: Ref) -> str:
    driver.client.close()  # the lab leaves a pool that is made later out of a view
    [found] = [one.fingerprint for one in driver.snapshot().objects if one.ref == ref]
    return found


# --- cutting off ----------------------------------------------------------------------------------


def test_cutting_off_blocks_at_once_and_shows_as_not_wanted(driver, hand, spec):
    assert driver.isolate(spec.ref, cut_off=True) == driver.isolate(spec.ref, cut_off=True) == Done()

    step = unmet(driver, spec, driver.observe(spec.ref))
    assert step is not None
    assert step.name == "network.create"
    walk(driver, replace(spec, cut_off=True))
    [group] = hand.names("DistributedVirtualPortgroup", spec.ref.name)
    paths = ("config.defaultPortConfig", "config.policy")
    assert network.wiring_of(hand.client.get(group, *paths)) == network.Wiring(spec.vlan, blocked=True)

    driver.isolate(spec.ref, cut_off=False)
    walk(driver, spec)
    assert network.wiring_of(hand.client.get(group, *paths)) == network.Wiring(spec.vlan)


@pytest.mark.parametrize("cut_off", [True, False])
def test_a_change_of_ours_that_takes_long_is_nobody_elses_doing(
    driver, hand, spec, vcenter_control, monkeypatch, cut_off
):
    monkeypatch.setattr(tasks, "SHORT_S", 0.05)
    if not cut_off:
        walk(driver, replace(spec, cut_off=True))
    changed = replace(spec, cut_off=cut_off)
    vcenter_control.slow_task("ReconfigureDVPortgroup_Task", 2500, count=1)
    step = unmet(driver, changed, driver.observe(spec.ref))
    assert step is not None

    handle = driver.start(step)
    before = driver.observe(spec.ref)
    assert isinstance(handle, Handle)
    while driver.poll(handle).state == "running":
        pass
    after = driver.observe(spec.ref)

    assert [one.text for seen in (before, after) for part in seen.parts for one in part.remarks] == []
    monkeypatch.undo()
    assert not any(part.remarks for part in walk(driver, changed).parts)
    DRIFTS["vlan"][1](driver, hand, spec.ref)
    assert any(part.remarks for part in driver.observe(spec.ref).parts)
    walk(driver, spec)


def test_cutting_off_at_once_is_nobody_elses_doing(driver, spec):
    driver.isolate(spec.ref, cut_off=True)

    assert not any(part.remarks for part in driver.observe(spec.ref).parts)


# --- things inside --------------------------------------------------------------------------------


def tenant_vm(driver: VSphereDriver, hand: Hand, ref: Ref, name: str) -> MoRef:
    """Make a VM with a card in a boundary by hand."""
    place = driver.ground.place(ref, "DC0_C0_H0")
    port = vim.dvs.PortConnection(portgroupKey=place.portgroup_key, switchUuid=place.switch_uuid)
    card = vim.vm.device.VirtualVmxnet3(
        key=-1, backing=vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
    )
    config = vim.vm.ConfigSpec(
        name=name,
        guestId="ubuntu64Guest",
        numCPUs=1,
        memoryMB=128,
        files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=card)],
    )
    task = hand.client.start(
        lambda si: managed(place.folder, si).CreateVM_Task(config, managed(place.pool, si), managed(place.host.ref, si))
    )
    assert tasks.finish(hand.client, task) == Done()
    [found] = hand.names("VirtualMachine", name)
    return found


def test_nothing_goes_while_something_is_in_it_and_what_it_is_stands_there(driver, hand, spec):
    name = f"somebody-{uuid4().hex[:8]}"
    vm = tenant_vm(driver, hand, spec.ref, name)

    seen = driver.observe(spec.ref)
    for step in reversed(driver.steps(spec)[:3]):
        with pytest.raises(TransientDriverError, match=name):
            driver.start(step.undoing())

    assert name in seen.blocked_by
    assert objects(hand, spec.ref) == ONE_EACH
    assert hand.names("VirtualMachine", name) == [vm]
    hand.task(vm, "Destroy_Task")
    assert driver.observe(spec.ref).blocked_by == ""


def test_a_folder_whose_contents_are_not_told_is_not_taken_for_empty(driver, spec, monkeypatch):
    [folder, *_] = driver.steps(spec)
    withheld = {"childEntity": "NoPermission"}
    real = VCenterClient.many

    def many(self: VCenterClient, refs: Sequence[MoRef], *paths: str) -> tuple[Found, ...]:
        if "childEntity" not in paths:
            return real(self, refs, *paths)
        return tuple(Found(ref, {}, withheld) for ref in refs)

    with monkeypatch.context() as patched:
        patched.setattr(VCenterClient, "many", many)
        with pytest.raises(TransientDriverError, match="does not tell what is in"):
            driver.start(folder.undoing())
    assert driver.observe(spec.ref).part("folder.create").presence is Presence.PRESENT


def test_a_vms_place_is_where_its_boundary_is(driver, spec):
    place = driver.ground.place(spec.ref, "DC0_C0_H1")

    assert driver.ground.mark_of(place.folder) == marker(spec.ref)
    assert place.host.name == "DC0_C0_H1"
    with pytest.raises(TransientDriverError, match="not there yet"):
        driver.ground.place(boundary().ref, "DC0_C0_H1")
    with pytest.raises(TransientDriverError, match="no host"):
        driver.ground.place(spec.ref, "DC0_C0_H77")


# --- trouble --------------------------------------------------------------------------------------


def test_a_session_killed_before_every_step_costs_nothing(driver, hand, vcenter_control):
    spec = boundary(access=(("p-1", "member"),))
    for step in driver.steps(spec):
        vcenter_control.end_sessions()
        stubborn(lambda step=step: complete(driver, step))
    assert unmet(driver, spec, driver.observe(spec.ref)) is None
    for step in reversed(driver.steps(spec)):
        vcenter_control.end_sessions()
        stubborn(lambda step=step: complete(driver, step.undoing()))
    assert objects(hand, spec.ref) == NONE


def stubborn(work: Callable[[], None], *, tries: int = 6) -> list[DriverError]:
    """Try again after errors that pass; return them."""
    told: list[DriverError] = []
    for _ in range(tries):
        try:
            work()
        except TransientDriverError as error:
            told.append(error)
            continue
        return told
    raise told[-1]


def forget_role(hand: Hand) -> None:
    def remove(si: Any) -> None:
        manager = si.content.authorizationManager
        for role in manager.roleList:
            if role.name == roles.ROLE:
                manager.RemoveAuthorizationRole(role.roleId, False)

    hand.client.changing(remove)


TROUBLE = [
    ("CreateFolder", "fail_call", "TaskInProgress"),
    ("CreateFolder", "fail_call", "NotAuthenticated"),
    ("CreateFolder", "lose_answer", ""),
    ("CreateFolder", "cut", ""),
    ("SetField", "fail_call", "HostCommunication"),
    ("SetField", "lose_answer", ""),
    ("CreateResourcePool", "fail_call", "SystemError"),
    ("CreateResourcePool", "lose_answer", ""),
    ("UpdateConfig", "lose_answer", ""),
    ("AddDVPortgroup_Task", "fail_call", "ResourceInUse"),
    ("AddDVPortgroup_Task", "fail_task", "ConcurrentAccess"),
    ("AddDVPortgroup_Task", "lose_answer", ""),
    ("AddDVPortgroup_Task", "cut", ""),
    ("AddAuthorizationRole", "lose_answer", ""),
    ("SetEntityPermissions", "fail_call", "Timedout"),
    ("SetEntityPermissions", "lose_answer", ""),
    ("RetrieveEntityPermissions", "fail_call", "NotAuthenticated"),
    ("FindChild", "lose_answer", ""),
    ("RetrievePropertiesEx", "lose_answer", ""),
    ("Destroy_Task", "fail_call", "TaskInProgress"),
    ("Destroy_Task", "fail_call", "NotAuthenticated"),
    ("Destroy_Task", "fail_task", "ResourceInUse"),
    ("Destroy_Task", "lose_answer", ""),
    ("Destroy_Task", "cut", ""),
    ("RemoveEntityPermission", "fail_call", "HostCommunication"),
    ("RemoveEntityPermission", "lose_answer", ""),
]


@pytest.mark.parametrize("kind", ["Folder", "ResourcePool", "DistributedVirtualPortgroup"])
def test_what_somebody_destroyed_is_made_anew(driver, hand, spec, kind):
    [gone] = hand.names(kind, spec.ref.name)
    hand.task(gone, "Destroy_Task")

    assert driver.observe(spec.ref).part(OF_KIND[kind]).presence is Presence.ABSENT
    walk(driver, spec)

    assert objects(hand, spec.ref) == ONE_EACH
    assert hand.names(kind, spec.ref.name) != [gone]


def test_a_look_costs_few_calls(driver, spec, vcenter_control):
    driver.observe(spec.ref)
    vcenter_control.forget_calls()

    driver.observe(spec.ref)

    calls = vcenter_control.calls()
    assert sum(calls.values()) <= 11, calls


@pytest.mark.parametrize(("method", "how", "fault"), TROUBLE)
def test_one_trouble_is_one_more_try(driver, hand, vcenter_control, method, how, fault):
    spec = boundary(access=(("p-1", "member"),))
    forget_role(hand)
    getattr(vcenter_control, how)(method, *([fault] if fault else []))

    stubborn(lambda: walk(driver, spec))
    stubborn(lambda: walk(driver, replace(spec, memory_gib=128)))

    assert objects(hand, spec.ref) == ONE_EACH
    stubborn(lambda: clear(driver, spec))
    assert objects(hand, spec.ref) == NONE
    assert [rule.hits for rule in vcenter_control.rules()] == [1]


@pytest.mark.parametrize("first", range(3), ids=["folder", "pool", "network"])
def test_what_never_got_its_mark_goes_without_it(driver, hand, vcenter_control, first):
    """A failure between making a thing and marking it: its name in our place is all that tells whose it is."""
    spec = boundary()
    for step in driver.steps(spec)[:first]:
        complete(driver, step)
    rule = vcenter_control.fail_call("SetField", "SystemError", count=0)
    with pytest.raises(TransientDriverError):
        stubborn(lambda: complete(driver, driver.steps(spec)[first]))
    assert sum(objects(hand, spec.ref).values()) == first + 1

    stubborn(lambda: clear(driver, spec))
    vcenter_control.clear(rule)

    assert objects(hand, spec.ref) == NONE


def test_a_port_group_that_takes_long_is_polled(driver, hand, vcenter_control, monkeypatch):
    monkeypatch.setattr(tasks, "SHORT_S", 0.5)
    spec = boundary()
    for step in driver.steps(spec)[:2]:
        complete(driver, step)
    vcenter_control.slow_task("AddDVPortgroup_Task", 2500, count=1)

    answer = driver.start(driver.steps(spec)[2])

    assert isinstance(answer, Handle)
    assert driver.poll(answer).state == "running"
    while driver.poll(answer).state == "running":
        pass
    assert driver.poll(answer).state == "done"
    walk(driver, spec)
    assert objects(hand, spec.ref) == ONE_EACH
    clear(driver, spec)


def test_a_denied_account_is_told_so(driver, vcenter_control):
    spec = boundary()
    vcenter_control.fail_call("CreateFolder", "NoPermission", count=0)

    with pytest.raises(TransientDriverError, match="may not"):
        driver.start(driver.steps(spec)[0])
