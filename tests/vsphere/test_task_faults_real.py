"""Every fault that a vCenter answers with, at each change of a machine: what it means, and how it stands in the end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import (
    BoundarySpec,
    Done,
    DriverError,
    DriverRejected,
    MachineSpec,
    NoCapacity,
    Power,
    Step,
    TransientDriverError,
    removal_of,
)
from provisioners.vsphere import datastore
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import AccessDenied, Advice, LookFirst, SessionLost, advice_of, fault_of
from tests.vsphere.ground import Hand, boundary, clear, complete, settings_for, walk
from tests.vsphere.test_machines_real import held, machine, run, step, up, vm_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

FAULTS = (
    "TaskInProgress", "ResourceInUse", "FileLocked", "ConcurrentAccess", "HostCommunication", "HostNotConnected",
    "HostConnectFault", "Timedout", "RequestCanceled", "SystemError", "InsufficientGraphicsResourcesFault",
    "InsufficientResourcesFault", "InsufficientMemoryResourcesFault", "InsufficientCpuResourcesFault",
    "NoCompatibleHost", "NoDiskSpace", "InsufficientStorageSpace", "NoPermission", "InvalidLogin", "InvalidArgument",
    "InvalidVmConfig", "InvalidDeviceSpec", "VmConfigFault", "GenericVmConfigFault", "NotSupported",
    "RestrictedVersion", "LicenseRestricted", "InvalidState", "ManagedObjectNotFound", "InvalidPowerState",
    "DuplicateName", "AlreadyExists", "NotAuthenticated",
)  # fmt: skip
"""Those of reference/vsphere.md 1.6 that a call or a task ends with."""
FEW = (
    "TaskInProgress", "InsufficientGraphicsResourcesFault", "NoPermission", "InvalidArgument", "InvalidPowerState",
    "NotAuthenticated", "AlreadyExists",
)  # fmt: skip
"""At least one of each class."""
CLASSES: dict[Advice, type[DriverError]] = {
    Advice.LATER: TransientDriverError,
    Advice.ELSEWHERE: NoCapacity,
    Advice.LOOK: LookFirst,
    Advice.NO: DriverRejected,
    Advice.RELOGIN: SessionLost,
}
METHODS = ("CloneVM_Task", "ReconfigVM_Task", "PowerOnVM_Task", "PowerOffVM_Task", "Destroy_Task")
TASK, CALL = "task", "call"


@pytest.fixture
def driver(vcenter: VCenter, vcenter_control: Control) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings_for(vcenter, templates={"ubuntu-24.04": "ubuntu-24.04-gpu"}))
    yield made
    vcenter_control.clear()
    made.close()


@pytest.fixture
def hand(driver: VSphereDriver) -> Iterator[Hand]:
    made = Hand(driver.settings)
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


def expected(fault: str) -> type[DriverError]:
    return AccessDenied if fault in {"NoPermission", "InvalidLogin"} else CLASSES[advice_of(fault)]


def failing(driver: VSphereDriver, one: Step, count: int) -> list[DriverError]:
    """Start a step until it is there; return what it failed with."""
    errors: list[DriverError] = []
    for _ in range(count + 4):
        try:
            complete(driver, one)
        except DriverError as error:
            errors.append(error)
        else:
            return errors
    raise AssertionError(errors)


# --- one fault, one meaning -----------------------------------------------------------------------


@pytest.mark.parametrize("at", [TASK, CALL])
@pytest.mark.parametrize("method", METHODS)
def test_a_fault_of_each_class_means_what_the_table_says(driver, home, hand, vcenter_control, method, at):
    check_faults(driver, home, hand, vcenter_control, method, FEW, 3, at)


@pytest.mark.slow
@pytest.mark.parametrize(("at", "count"), [(TASK, 1), (TASK, 3), (CALL, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_every_fault_means_what_the_table_says_and_the_end_is_right(
    driver, home, hand, vcenter_control, method, at, count
):
    check_faults(driver, home, hand, vcenter_control, method, FAULTS, count, at)


def check_faults(
    driver: VSphereDriver,
    home: BoundarySpec,
    hand: Hand,
    vcenter_control: Control,
    method: str,
    faults: tuple[str, ...],
    count: int,
    at: str,
) -> None:
    spec = machine(home, power=Power.OFF)
    vcenter_control.boot_guests(boot=False)
    try:
        for number, fault in enumerate(faults):
            wanted = prepared(driver, spec, method, 5 + number)
            rule = (vcenter_control.fail_task if at == TASK else vcenter_control.fail_call)(method, fault, count=count)

            errors = failing(driver, wanted, count)

            struck = next(one.hits for one in vcenter_control.rules() if one.id == rule.id)
            vcenter_control.clear(rule)
            if (method, fault) == ("Destroy_Task", "ManagedObjectNotFound"):
                assert (errors, struck) == ([], 1)  # gone already is what was wanted; the lab lied, and keeps it
                continue
            assert struck == count, fault
            assert [(type(error), fault_of(error)) for error in errors] == [(expected(fault), fault)] * count, fault
            assert_done(driver, hand, spec, method, 5 + number)
            if method == "CloneVM_Task":
                complete(driver, removal_of(spec.ref, "vm.clone"))
    finally:
        vcenter_control.boot_guests(boot=True)
    assert run(driver, spec, deleting=True).end == plan.Forget()
    assert hand.names("VirtualMachine", spec.ref.name) == []
    assert held(vcenter_control) == []


def prepared(driver: VSphereDriver, spec: MachineSpec, method: str, vcpu: int) -> Step:
    """Bring a machine to where one call is the next thing, and return the step that makes it."""
    on = replace(spec, power=Power.ON)
    if method != "CloneVM_Task":
        run(driver, spec)
    if method in {"PowerOffVM_Task", "PowerOnVM_Task"}:
        complete(driver, step(driver, on, "vm.power"))  # writes down what is wanted
    if method == "PowerOffVM_Task":
        complete(driver, step(driver, on, "vm.power"))
    return {
        "CloneVM_Task": step(driver, spec, "vm.clone"),
        "ReconfigVM_Task": step(driver, replace(spec, unit=replace(spec.unit, vcpu=vcpu)), "vm.configure"),
        "PowerOnVM_Task": step(driver, on, "vm.power"),
        "PowerOffVM_Task": removal_of(spec.ref, "vm.power"),
        "Destroy_Task": removal_of(spec.ref, "vm.clone"),
    }[method]


def assert_done(driver: VSphereDriver, hand: Hand, spec: MachineSpec, method: str, vcpu: int) -> None:
    """See that the step did what it is for, once."""
    there = hand.names("VirtualMachine", spec.ref.name)
    assert len(there) == (0 if method == "Destroy_Task" else 1)
    if method == "ReconfigVM_Task":
        assert vm_of(driver, spec).have.vcpu == vcpu
    if method == "PowerOnVM_Task":
        assert vm_of(driver, spec).is_on
    if method == "PowerOffVM_Task":
        assert vm_of(driver, spec).is_off


# --- what is left after a failure -----------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["before it is done", "after it is done"])
@pytest.mark.parametrize("method", ["CloneVM_Task", "ReconfigVM_Task", "RelocateVM_Task", "PowerOnVM_Task"])
def test_after_a_failure_in_any_step_all_can_be_undone(driver, home, hand, vcenter_control, method, late):
    spec = machine(home, power=Power.OFF)
    if method == "RelocateVM_Task":
        run(driver, spec)
        spec = replace(spec, unit=replace(spec.unit, host="DC0_C0_H1"))
    vcenter_control.fail_task(method, "SystemError", count=0, late=late)
    run(driver, replace(spec, power=Power.ON), rounds=8)

    gone_anyway = run(driver, spec, deleting=True, rounds=8)
    vcenter_control.clear()
    gone = run(driver, spec, deleting=True)

    assert gone_anyway.end in {None, plan.Forget()}
    assert gone.end == plan.Forget()
    assert_nothing_left(driver, hand, vcenter_control, spec)


@pytest.mark.parametrize("fault", ["SystemError", "NoPermission", "InvalidArgument", "NotAuthenticated"])
def test_a_machine_that_never_got_its_mark_goes_without_it(driver, home, hand, vcenter_control, fault):
    """Between the clone and its mark the name in the boundary's folder is all that tells whose it is."""
    spec = machine(home)
    rule = vcenter_control.fail_call("SetField", fault, count=0)

    made = run(driver, spec, rounds=8)

    assert {type(error) for error in made.errors} == {expected(fault)}
    [unmarked] = hand.names("VirtualMachine", spec.ref.name)
    assert driver.ground.mark_of(unmarked) == ""
    gone = run(driver, spec, deleting=True)
    vcenter_control.clear(rule)
    assert (gone.errors, gone.end) == ([], plan.Forget())
    assert_nothing_left(driver, hand, vcenter_control, spec)


def assert_nothing_left(driver: VSphereDriver, hand: Hand, control: Control, spec: MachineSpec) -> None:
    assert hand.names("VirtualMachine", spec.ref.name) == []
    assert held(control) == []
    assert datastore.stray_directories(driver.ground) == ()


# --- removal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot", [True, False], ids=["guest answers", "no guest"])
def test_a_running_machine_goes_by_the_undo_of_its_clone_alone_and_again(driver, home, hand, vcenter_control, boot):
    spec = machine(home)
    up(driver, spec)
    vcenter_control.boot_guests(boot=boot)
    undo = removal_of(spec.ref, "vm.clone")
    try:
        for _ in range(6):
            complete(driver, undo)
            if not driver.observe(spec.ref).exists:
                break
    finally:
        vcenter_control.boot_guests(boot=True)

    assert not driver.observe(spec.ref).exists
    assert [driver.start(undo), driver.start(undo)] == [Done(), Done()]
    assert_nothing_left(driver, hand, vcenter_control, spec)


def test_eight_workers_remove_one_machine_without_an_error_in_the_end(driver, home, hand, vcenter_control):
    spec = machine(home)
    up(driver, spec)
    others = [VSphereDriver(driver.settings) for _ in range(8)]

    with ThreadPoolExecutor(len(others)) as pool:
        gone = list(pool.map(lambda other: run(other, spec, deleting=True), others))

    for other in others:
        other.close()
    assert [one.end for one in gone] == [plan.Forget()] * len(others)
    assert_nothing_left(driver, hand, vcenter_control, spec)
