"""Emptying a host of the lab's vCenter: nobody else is moved, and what was there before us stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Template, World
from provisioners.driver import Done, TransientDriverError
from provisioners.vsphere.client import Found, MoRef, VCenterClient
from provisioners.vsphere.driver import VSphereDriver
from tests.vsphere.ground import Hand, settings_for

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

HOST = "DC0_C0_H1"


@pytest.fixture(scope="module")
def place(vcenters: Callable[..., VCenter]) -> VCenter:
    gpus = GpuHosts(("*",), worlds.gpus("H100-80GB", 2, board="H100XM"))
    return vcenters("hosts", world=World(hosts=2, gpu_hosts=(gpus,), templates=(Template("image"),)))


@pytest.fixture
def control(place: VCenter) -> Iterator[Control]:
    with place.control() as made:
        yield made
        made.clear()


@pytest.fixture
def driver(place: VCenter, control: Control) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings_for(place))
    yield made
    control.clear()
    made.restore(HOST)
    made.close()


@pytest.fixture
def hand(driver: VSphereDriver) -> Iterator[Hand]:
    made = Hand(driver.settings)
    yield made
    made.close()


def is_away(driver: VSphereDriver) -> bool:
    return next(host.in_maintenance for host in driver.snapshot().hosts if host.host == HOST)


def really_is(hand: Hand) -> bool:
    [host] = hand.names("HostSystem", HOST)
    told = hand.client.get(host, "runtime.inMaintenanceMode")
    assert told is not None
    return bool(told["runtime.inMaintenanceMode"])


def test_a_host_on_which_nothing_runs_goes_into_maintenance_and_comes_back(driver, hand):
    for _ in range(2):
        assert driver.evacuate(HOST) == []
        assert (is_away(driver), really_is(hand)) == (True, True)
    for _ in range(2):
        assert driver.restore(HOST) == Done()
        assert (is_away(driver), really_is(hand)) == (False, False)


def test_where_others_run_it_is_marked_only_until_they_have_gone(driver, hand, control):
    control.add_vm("neighbour", HOST, "nvidia_h100xm-3-40c")
    control.add_vm("idle", HOST, power_on=False)
    try:
        uses = driver.evacuate(HOST)
        assert [(use.name, use.ref) for use in uses] == [("neighbour", None)]
        assert (is_away(driver), really_is(hand)) == (True, False)
    finally:
        control.remove_vm("neighbour")
    driver.evacuate(HOST)
    assert really_is(hand)
    driver.restore(HOST)
    assert (is_away(driver), really_is(hand)) == (False, False)
    control.remove_vm("idle")


def test_a_machine_that_does_not_tell_its_power_is_taken_to_run(driver, hand, control, monkeypatch):
    control.add_vm("hidden", HOST, power_on=False)
    real = VCenterClient.many

    def many(self: VCenterClient, refs: Sequence[MoRef], *paths: str) -> tuple[Found, ...]:
        if paths != ("runtime.powerState",):
            return real(self, refs, *paths)
        return tuple(Found(ref, {}, {"runtime.powerState": "NoPermission"}) for ref in refs)

    with monkeypatch.context() as patched:
        patched.setattr(VCenterClient, "many", many)
        driver.evacuate(HOST)
    assert (is_away(driver), really_is(hand)) == (True, False)
    control.remove_vm("hidden")


def test_maintenance_that_was_there_before_us_stays(driver, hand):
    [host] = hand.names("HostSystem", HOST)
    hand.task(host, "EnterMaintenanceMode_Task", 0, False)
    driver.evacuate(HOST)
    driver.restore(HOST)

    assert really_is(hand)
    hand.task(host, "ExitMaintenanceMode_Task", 0)
    assert not is_away(driver)


def test_a_lost_answer_and_a_failed_task_leave_something_that_can_be_undone(driver, hand, control):
    control.lose_answer("EnterMaintenanceMode_Task")
    with pytest.raises(TransientDriverError):
        driver.evacuate(HOST)
    driver.evacuate(HOST)
    assert really_is(hand)
    control.fail_task("ExitMaintenanceMode_Task", "HostCommunication")
    with pytest.raises(TransientDriverError):
        driver.restore(HOST)
    assert really_is(hand)
    driver.restore(HOST)
    assert not really_is(hand)


def test_a_host_that_is_not_offered_is_named(driver):
    with pytest.raises(TransientDriverError, match="shows no host nowhere"):
        driver.evacuate("nowhere")
