"""Endpoints of several VMs on a vCenter that fails in every way, with guests that are well."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import (
    BoundaryKind,
    DriverError,
    DriverRejected,
    EndpointSpec,
    GatewaySpec,
    Kind,
    NotSupported,
    Observed,
    Power,
    Presence,
    Ref,
    Secret,
    Step,
    TransientDriverError,
)
from provisioners.steps import split
from provisioners.vsphere import datastore
from provisioners.vsphere.driver import VSphereDriver
from tests.vsphere.easy_guests import EasyGuests
from tests.vsphere.ground import boundary, complete, settings_for, walk
from tests.vsphere.guest_lab import serving, unit

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

ROUNDS = 60
INSIDE = ["vm.gateway[0]", "serving.replica[0]", "serving.service"]


class Endpoint:
    """One endpoint, walked by the plan that passes use; trouble of a moment is met by another round."""

    def __init__(self, driver: VSphereDriver, control: Control, spec: EndpointSpec) -> None:
        self.driver, self.spec = driver, spec
        self.guests = EasyGuests(control)
        self._never = threading.Event()
        self.started: list[str] = []
        self.trouble: list[str] = []

    def walk(
        self, *, deleting: bool = False, before: Callable[[Step], None] = lambda _: None, rounds: int = ROUNDS
    ) -> Observed:
        for _ in range(rounds):
            try:
                seen = self.driver.observe(self.spec.ref)
                action = plan.plan(self.driver.steps(self.spec), seen, deleting=deleting)
                if isinstance(action, plan.Forget) or (isinstance(action, plan.Nothing) and action.ready):
                    return seen
                if isinstance(action, plan.Start):
                    before(action.step)
                    self._start(action.step)
                elif isinstance(action, plan.Poll):
                    while self.driver.poll(action.handle).state == "running":
                        self._never.wait(0.02)  # a busy machine takes its time; that is no round
            except TransientDriverError as error:
                self.trouble.append(type(error).__name__)
            self.guests.round()
        raise AssertionError(f"not there after {rounds} rounds: {self.trouble} {self.driver.observe(self.spec.ref)}")

    def _start(self, step: Step) -> None:
        self.started.append(step.name)
        bare, index = split(step.name)
        if bare == "vm.gateway" and not step.undo:
            armed = tuple(replace(one, enrolment_token=Secret(f"tne_{uuid4().hex}")) for one in self.spec.gateways)
            step = next(
                one for one in self.driver.steps(replace(self.spec, gateways=armed)) if one.name == f"{bare}[{index}]"
            )
        complete(self.driver, step)


@pytest.fixture(scope="module")
def vcenter(vcenters: Callable[..., VCenter]) -> VCenter:
    """A vCenter of our own: what a guest says is played here."""
    return vcenters("serving-faults")


@pytest.fixture
def control(vcenter: VCenter) -> Iterator[Control]:
    with vcenter.control() as made:
        yield made
        made.clear()


@pytest.fixture
def driver(vcenter: VCenter) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings_for(vcenter, templates={"endpoint": "ubuntu-24.04-gpu"}, call_deadline_s=5.0))
    yield made
    made.close()


@pytest.fixture
def endpoint(driver: VSphereDriver, control: Control) -> Iterator[Endpoint]:
    """An endpoint of two VMs, nothing of it there yet; afterwards nothing is left."""
    place = boundary()
    walk(driver, place)
    made = Endpoint(driver, control, spec(place.ref, "1g.10gb", "1g.10gb"))
    yield made
    control.clear()
    made.walk(deleting=True)
    assert not driver.observe(made.spec.ref).exists


def spec(place: Ref, *profiles: str) -> EndpointSpec:
    units = tuple(unit(index, profile=profile) for index, profile in enumerate(profiles))
    return EndpointSpec(
        ref=Ref(Kind.ENDPOINT, uuid4(), place.tenant_uid),
        boundary=place,
        boundary_kind=BoundaryKind.VM,
        generation=1,
        serving=serving(),
        units=units,
        gateways=tuple(GatewaySpec(one.uid, "https://control.example", None) for one in units),
    )


def test_two_machines_serve_each_with_its_own_gateway_and_backend(endpoint: Endpoint) -> None:
    seen = endpoint.walk()

    assert sorted(endpoint.started)[:2] == ["serving.replica[0]", "serving.replica[1]"]
    assert [unit.uid for unit in seen.units] == [unit.uid for unit in endpoint.spec.units]
    assert len({unit.backend for unit in seen.units}) == 2
    assert seen.address.startswith("http://127.0.0.1:2")
    assert [part.ready for part in seen.parts] == [True] * len(seen.parts)
    assert seen.part("serving.replica[1]").message == "vGPU licence: simulated"


@pytest.mark.parametrize("fault", ["lost", "cut", "busy", "NotAuthenticated", "TaskInProgress", "HostNotConnected"])
def test_what_goes_wrong_once_in_every_step_inside_is_made_good(
    endpoint: Endpoint, control: Control, fault: str
) -> None:
    endpoint.spec = replace(endpoint.spec, units=endpoint.spec.units[:1], gateways=endpoint.spec.gateways[:1])
    struck = []

    def hurt(started: Step) -> None:
        if started.name in INSIDE and started.name not in struck:
            struck.append(started.name)
            ways: dict[str, Callable[[], object]] = {
                "lost": lambda: control.lose_answer("ReconfigVM_Task"),
                "cut": lambda: control.cut("ReconfigVM_Task"),
                "busy": lambda: control.answer("ReconfigVM_Task", 503),
                "NotAuthenticated": control.end_sessions,
            }
            ways.get(fault, lambda: control.fail_task("ReconfigVM_Task", fault))()

    seen = endpoint.walk(before=hurt)

    assert struck == INSIDE
    assert {part.presence for part in seen.parts} == {Presence.PRESENT}
    assert endpoint.started.count("vm.clone[0]") == 1
    assert [endpoint.started.count(step) <= 2 for step in INSIDE] == [True] * 3


@pytest.mark.parametrize("fault", ["SystemError", "InvalidArgument"])
@pytest.mark.parametrize("at", [*INSIDE, "SetField"])
def test_what_fails_for_good_in_a_step_leaves_nothing_after_its_removal(
    endpoint: Endpoint, driver: VSphereDriver, control: Control, at: str, fault: str
) -> None:
    endpoint.spec = replace(endpoint.spec, units=endpoint.spec.units[:1], gateways=endpoint.spec.gateways[:1])
    begun: list[str] = []

    def hurt(started: Step) -> None:
        if at == "SetField" and not begun:
            control.fail_call("SetField", fault, count=0)
        if started.name == at and at not in begun:
            control.fail_task("ReconfigVM_Task", fault, count=0)
        begun.append(started.name)

    with pytest.raises((AssertionError, DriverRejected)):  # it never comes to its end, or is told that it cannot
        endpoint.walk(before=hurt, rounds=25)
    assert [rule.hits > 0 for rule in control.rules()] == [True]
    control.clear()
    endpoint.walk(deleting=True)

    assert not driver.observe(endpoint.spec.ref).exists
    assert not [vm for vm in control.guests() if vm.name.startswith(endpoint.spec.ref.name)]
    assert control.inventory()["vms"].count(endpoint.spec.ref.name) == 0
    assert not [gpu for gpu in control.gpus() if gpu.held]
    assert datastore.stray_directories(driver.ground) == ()


def test_every_step_inside_started_twice_changes_nothing_more(
    endpoint: Endpoint, driver: VSphereDriver, control: Control
) -> None:
    endpoint.walk()
    before = {vm.name: vm.info for vm in control.guests()}

    for step in driver.steps(endpoint.spec):
        if split(step.name)[0] in {"serving.replica", "serving.service"}:
            complete(driver, step)
            complete(driver, step)

    assert {vm.name: vm.info for vm in control.guests()} == before


def test_undone_twice_and_without_a_machine_every_step_is_gone(endpoint: Endpoint, driver: VSphereDriver) -> None:
    endpoint.walk()
    steps = [step.undoing() for step in reversed(driver.steps(endpoint.spec))]

    for step in steps[:3]:
        complete(driver, step)
        complete(driver, step)
    seen = driver.observe(endpoint.spec.ref)
    undone = ["serving.service", "serving.replica[1]", "vm.gateway[1]"]
    assert [seen.part(step).presence for step in undone] == [Presence.ABSENT] * 3
    assert seen.part("vm.gateway[0]").presence is Presence.PRESENT
    endpoint.walk(deleting=True)
    for step in steps:
        complete(driver, step)

    assert not driver.observe(endpoint.spec.ref).exists


def test_one_machine_fewer_takes_its_gateway_along_and_leaves_the_other_alone(
    endpoint: Endpoint, control: Control
) -> None:
    endpoint.walk()
    endpoint.started.clear()

    endpoint.spec = replace(endpoint.spec, units=endpoint.spec.units[:1], gateways=endpoint.spec.gateways[:1])
    seen = endpoint.walk()

    assert {name for name in endpoint.started if not name.endswith("[1]")} == set()
    assert [unit.uid for unit in seen.units] == [endpoint.spec.units[0].uid]
    assert len([vm for vm in control.guests() if vm.name.startswith(endpoint.spec.ref.name)]) == 1


def test_another_host_takes_the_machine_along_with_its_gateway(endpoint: Endpoint) -> None:
    endpoint.walk()
    endpoint.started.clear()
    first = replace(endpoint.spec.units[0], host="DC0_C0_H1")

    endpoint.spec = replace(endpoint.spec, power=Power.OFF)
    endpoint.walk()
    endpoint.spec = replace(endpoint.spec, power=Power.ON, units=(first, endpoint.spec.units[1]))
    seen = endpoint.walk()

    assert [unit.host for unit in seen.units] == ["DC0_C0_H1", "DC0_C0_H0"]
    assert "vm.gateway[0]" not in endpoint.started


def test_nothing_is_told_to_a_machine_that_does_not_run(endpoint: Endpoint, driver: VSphereDriver) -> None:
    endpoint.walk()
    endpoint.spec = replace(endpoint.spec, power=Power.OFF)
    endpoint.walk()

    for step in driver.steps(replace(endpoint.spec, power=Power.ON)):
        if split(step.name)[0] == "serving.replica":
            with pytest.raises(TransientDriverError, match="does not run"):
                driver.start(step)


def test_what_cannot_be_served_is_refused_before_anything_is_made(endpoint: Endpoint, driver: VSphereDriver) -> None:
    good = endpoint.spec

    with pytest.raises(NotSupported, match="vm boundaries only"):
        driver.steps(replace(good, boundary_kind=BoundaryKind.NAMESPACE))
    with pytest.raises(DriverRejected, match="without its gateway"):
        driver.steps(replace(good, gateways=()))
    gateway = next(step for step in driver.steps(good) if step.name == "vm.gateway[0]")
    with pytest.raises(DriverError):
        driver.start(gateway)
