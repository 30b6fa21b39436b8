"""What is whose when references say nothing: an inventory that was rebuilt, and two vCenters that number alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Template, World
from provisioners import plan
from provisioners.driver import BoundarySpec, Done, Handle, MachineSpec, Power
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.names import instance_uuid
from tests.vsphere.ground import Hand, boundary, clear, settings_for, walk
from tests.vsphere.test_machines_real import machine, run, step, unit, up, vm_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

WORLD = World(
    hosts=2,
    gpu_hosts=(GpuHosts(("DC0_C0_H*",), worlds.gpus("H100-80GB", 2, board="H100XM")),),
    templates=(Template("ubuntu-24.04-gpu", annotation="cloud-init with the VMware datasource"),),
)


def driver_of(vcenter: VCenter) -> VSphereDriver:
    return VSphereDriver(settings_for(vcenter, templates={"ubuntu-24.04": "ubuntu-24.04-gpu"}))


def made_of(control: Control) -> dict[str, object]:
    """Return all that there is of ours by name, by the lab's own words."""
    return {
        word: sorted(name for name in (found if isinstance(found, list) else []) if name.startswith("tn-"))
        for word, found in control.inventory().items()
    }


# --- a rebuilt inventory --------------------------------------------------------------------------


@pytest.fixture
def place(vcenters: Callable[..., VCenter]) -> VCenter:
    return vcenters("rebuilt", world=WORLD)


@pytest.fixture
def control(place: VCenter) -> Iterator[Control]:
    with place.control() as made:
        yield made
        made.clear()


@pytest.fixture
def driver(place: VCenter, control: Control) -> Iterator[VSphereDriver]:
    made = driver_of(place)
    yield made
    control.clear()
    made.close()


@pytest.fixture
def home(driver: VSphereDriver, control: Control) -> Iterator[BoundarySpec]:
    made = boundary()
    walk(driver, made)
    yield made
    control.clear()
    clear(driver, made)


@pytest.fixture
def spec(driver: VSphereDriver, home: BoundarySpec, control: Control) -> Iterator[MachineSpec]:
    made = machine(home)
    yield made
    control.clear()
    assert run(driver, made, deleting=True).end == plan.Forget()
    assert made_of(control)["vms"] == []


def rebuild(control: Control, *, session_ends: bool) -> None:
    control.rebuild_inventory()
    if session_ends:
        control.end_sessions()


@pytest.mark.parametrize("session_ends", [True, False], ids=["session ended", "session goes on"])
def test_a_machine_is_found_again_by_its_uuid_and_stays_as_it_is(driver, spec, home, control, session_ends):
    up(driver, spec)
    before, there = vm_of(driver, spec), made_of(control)
    rebuild(control, session_ends=session_ends)

    walked = run(driver, spec)

    after = vm_of(driver, spec)
    assert walked.end == plan.Nothing(ready=True, complete=True)
    assert walked.started == ["vm.configure"]  # its record names the port group by its key, which is a reference too
    assert run(driver, spec).started == []
    assert after.ref != before.ref
    assert (after.have.instance_uuid, after.is_on) == (instance_uuid(spec.ref, None), True)
    assert made_of(control) == there
    assert run_boundary(driver, home) == []
    assert {one.ref for one in driver.snapshot().objects} >= {spec.ref, home.ref}


def run_boundary(driver: VSphereDriver, home: BoundarySpec) -> list[str]:
    """Return the steps of a boundary that are not as wanted."""
    seen = driver.observe(home.ref)
    return [one.name for one in driver.steps(home) if seen.part(one.name).have != one.want]


@pytest.mark.parametrize("session_ends", [True, False], ids=["session ended", "session goes on"])
@pytest.mark.parametrize("power", [Power.ON, Power.OFF])
def test_what_is_changed_next_is_changed_of_the_same_machine(driver, spec, control, power, session_ends):
    """The driver has looked before, and knows places and the template by their old references."""
    up(driver, spec)
    there = made_of(control)
    rebuild(control, session_ends=session_ends)
    other = machine_of(spec, power)

    walked = run(driver, other)

    assert walked.end == plan.Nothing(ready=True, complete=True)
    assert "vm.clone" not in walked.started
    assert vm_of(driver, spec).is_on is (power is Power.ON)
    assert made_of(control) == there


def machine_of(spec: MachineSpec, power: Power) -> MachineSpec:
    return replace(spec, power=power, unit=replace(spec.unit, vcpu=spec.unit.vcpu if power is Power.ON else 8))


@pytest.mark.parametrize("session_ends", [True, False], ids=["session ended", "session goes on"])
def test_a_clone_that_runs_meanwhile_is_not_made_twice(driver, spec, control, session_ends):
    hung = control.hang_task("CloneVM_Task")
    answer = driver.start(step(driver, spec, "vm.clone"))
    assert isinstance(answer, Handle)
    rebuild(control, session_ends=session_ends)
    held_up = run(driver, spec, rounds=4)
    control.clear(hung)

    assert "vm.clone" not in held_up.started
    assert run(driver, spec).end == plan.Nothing(ready=True, complete=True)
    assert made_of(control)["vms"] == [spec.ref.name]


def test_a_new_machine_is_made_where_it_belongs(driver, spec, home, control):
    up(driver, spec)
    second = machine(home, unit("DC0_C0_H1"))
    rebuild(control, session_ends=False)

    assert run(driver, second).end == plan.Nothing(ready=True, complete=True)

    assert made_of(control)["vms"] == sorted([spec.ref.name, second.ref.name])
    assert run(driver, second, deleting=True).end == plan.Forget()


# --- two vCenters ---------------------------------------------------------------------------------


@pytest.fixture
def pair(vcenters: Callable[..., VCenter]) -> Iterator[tuple[VSphereDriver, VSphereDriver]]:
    """Drivers of two vCenters that are equal object by object."""
    made = driver_of(vcenters("twin-1", world=WORLD)), driver_of(vcenters("twin-2", world=WORLD))
    yield made
    for one in made:
        one.close()


def test_two_drivers_in_one_process_do_not_take_one_vcenter_for_the_other(pair, vcenters):
    first, second = pair
    home = boundary()
    for driver in pair:
        walk(driver, home)
    spec = machine(home)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda driver: up(driver, spec), pair))
    assert vm_of(first, spec).ref == vm_of(second, spec).ref, "the same references, or this shows nothing"
    hands = [Hand(driver.settings) for driver in pair]
    handle = handle_of_a_long_task(first, spec, vcenters("twin-1"))

    assert second.poll(handle).state == "unknown"
    assert run(first, spec, deleting=True).end == plan.Forget()
    for _ in range(2):
        assert not first.observe(spec.ref).exists
        assert second.observe(spec.ref).power is Power.ON
    assert [hand.names("VirtualMachine", spec.ref.name) for hand in hands] == [[], [vm_of(second, spec).ref]]
    clear(first, home)
    assert run_boundary(second, home) == []

    assert run(second, spec, deleting=True).end == plan.Forget()
    clear(second, home)
    for hand in hands:
        hand.close()


def handle_of_a_long_task(driver: VSphereDriver, spec: MachineSpec, vcenter: VCenter) -> Handle:
    """Return the handle of a task of one vCenter whose id the other has given to a task, too."""
    with vcenter.control() as control:
        rule = control.slow_task("PowerOffVM_Task", 1500, count=1)
        answer = driver.power(spec.ref, want=Power.OFF)
        assert isinstance(answer, Handle)
        while driver.poll(answer).state == "running":
            pass
        control.clear(rule)
    assert driver.power(spec.ref, want=Power.ON) == Done()
    return answer
