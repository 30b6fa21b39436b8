"""The harm on the way to a vCenter: heard are the calls that change something, struck is exactly one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import TransientDriverError
from provisioners.vsphere.driver import VSphereDriver
from tests.crash.wire import ENDED, LOST, START, Heard, Wire
from tests.vsphere.ground import boundary, clear, complete, settings_for, walk

pytestmark = [pytest.mark.real, pytest.mark.vcsim]


@pytest.fixture
def heard(vcenter: VCenter, vcenter_control: Control) -> Iterator[tuple[Heard, Wire]]:
    wire = Wire(lambda: vcenter_control)
    driver = VSphereDriver(settings_for(vcenter))
    yield Heard(driver, wire), wire
    vcenter_control.clear()
    driver.close()


def test_what_a_step_changes_is_heard_under_its_name(heard: tuple[Heard, Wire]) -> None:
    driver, wire = heard
    spec = boundary()
    walk(driver, spec)  # type: ignore[arg-type]
    clear(driver, spec)  # type: ignore[arg-type]

    assert ("folder.create", START) in wire.met
    assert ("folder.create", "CreateFolder") in wire.met
    assert ("network.create", "AddDVPortgroup_Task") in wire.met
    assert ("undo:folder.create", "Destroy_Task") in wire.met
    assert not [method for _step, method in wire.met if method.startswith("Retrieve")]


@pytest.mark.parametrize("mode", [LOST, ENDED])
def test_one_call_is_struck_and_the_next_try_ends_with_the_same_one_object(
    heard: tuple[Heard, Wire], vcenter_control: Control, mode: str
) -> None:
    driver, wire = heard
    spec = boundary()
    steps = driver.steps(spec)
    names = [step.name for step in steps]
    for step in steps[: names.index("network.create")]:
        complete(driver, step)  # type: ignore[arg-type]
    wire.harm(mode, "network.create", "AddDVPortgroup_Task", 1)

    try:
        answer: object = driver.start(steps[names.index("network.create")])
    except TransientDriverError as error:
        answer = error

    assert wire.has_struck
    assert [rule.hits for rule in vcenter_control.rules()] == ([1] if mode == LOST else [])
    assert isinstance(answer, TransientDriverError) is (mode == ENDED)  # what was made all the same is found at once
    made = [name for name in vcenter_control.inventory()["portgroups"] if name == spec.ref.name]
    assert len(made) == (1 if mode == LOST else 0)
    walk(driver, spec)  # type: ignore[arg-type]
    clear(driver, spec)  # type: ignore[arg-type]
