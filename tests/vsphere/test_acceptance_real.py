"""The acceptance of a host on the lab's vCenter: what it tries, what it says, and that nothing of it stays."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.labs.vsphere import worlds
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Template, World
from provisioners.driver import Acceptance, DriverRejected, TransientDriverError
from provisioners.vsphere import acceptance
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.vms import Vm
from tests.vsphere.ground import Hand, settings_for

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

TEMPLATES = {"ubuntu": "image"}
H100 = worlds.gpus("H100-80GB", 1, board="H100XM")


@pytest.fixture(scope="module")
def place(vcenters: Callable[..., VCenter]) -> VCenter:
    return vcenters(
        "acceptance",
        world=World(
            hosts=3,
            gpu_hosts=(
                GpuHosts(("DC0_C0_H0",), H100),
                GpuHosts(("DC0_C0_H1",), worlds.gpus("H100-80GB", 1, board="H100XM", passthrough=True, label="t")),
            ),
            templates=(Template("image", annotation="cloud-init"), Template("bare")),
        ),
    )


@pytest.fixture
def control(place: VCenter) -> Iterator[Control]:
    with place.control() as made:
        yield made
        made.clear()
        made.boot_guests(boot=True)


@pytest.fixture
def settings(place: VCenter) -> Settings:
    return settings_for(place, templates=TEMPLATES)


@pytest.fixture
def driver(settings: Settings, control: Control) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings)
    yield made
    made.close()


@pytest.fixture
def hand(settings: Settings) -> Iterator[Hand]:
    made = Hand(settings)
    yield made
    made.close()


def accepted(driver: VSphereDriver, host: str, *, most: int = 60) -> Acceptance:
    for _ in range(most):
        try:
            return driver.acceptance(host)
        except TransientDriverError:
            continue
    raise AssertionError("no verdict")


def left(hand: Hand) -> list[str]:
    return [
        str(one.values["name"])
        for one in hand.client.rows({"VirtualMachine": ("name",)})["VirtualMachine"]
        if str(one.values["name"]).startswith("tn-accept")
    ]


def test_a_small_gpu_machine_boots_and_goes(driver, hand, control):
    verdict = accepted(driver, "DC0_C0_H0")

    assert verdict.passed
    names = [name for name, _ok, _text in verdict.checks]
    assert names == ["host is ready", "a GPU machine starts", "its guest boots"]
    assert "with vgpu:nvidia_h100xm-1-10c, on DC0_C0_H0/0000:1b:00.0" in verdict.checks[1][2]
    assert "simulated" in verdict.checks[2][2]
    assert left(hand) == []
    assert not any(gpu.held for gpu in control.gpus())


def test_a_gpu_for_passthrough_is_tried_too(driver, hand):
    verdict = accepted(driver, "DC0_C0_H1")

    assert verdict.passed
    assert "pci:10de:2330:t" in verdict.checks[1][2]
    assert left(hand) == []


def test_a_machine_that_came_up_on_another_host_says_nothing_of_this_one(driver, hand, monkeypatch):
    [elsewhere] = hand.names("HostSystem", "DC0_C0_H1")
    really = acceptance._vm

    def moved(one: Any) -> Vm | None:
        vm = really(one)
        return replace(vm, host=elsewhere) if vm is not None and vm.is_on else vm

    monkeypatch.setattr(acceptance, "_vm", moved)
    verdict = accepted(driver, "DC0_C0_H0")

    assert verdict.checks == (("a GPU machine starts", False, "vCenter started it on another host"),)
    assert left(hand) == []


def test_a_host_without_gpus_needs_no_machine(driver, hand):
    assert driver.acceptance("DC0_C0_H2").checks == (("host is ready", True, "it is connected and has no GPU"),)
    assert left(hand) == []


def test_a_host_in_maintenance_fails_without_a_machine(driver, hand):
    [host] = hand.names("HostSystem", "DC0_C0_H0")
    hand.task(host, "EnterMaintenanceMode_Task", 0, False)
    try:
        verdict = driver.acceptance("DC0_C0_H0")
    finally:
        hand.task(host, "ExitMaintenanceMode_Task", 0)

    assert (verdict.passed, "in maintenance" in verdict.checks[0][2]) == (False, True)


def test_where_all_is_in_use_nothing_could_be_tried(driver, hand, control):
    control.add_vm("all", "DC0_C0_H0", "nvidia_h100xm-80c")
    try:
        verdict = accepted(driver, "DC0_C0_H0")
    finally:
        control.remove_vm("all")

    assert not verdict.passed
    assert "gives it no GPU" in verdict.checks[0][2]
    assert left(hand) == []


def test_beside_others_there_is_room_for_a_small_one(driver, control):
    control.add_vm("some", "DC0_C0_H0", "nvidia_h100xm-3-40c")
    try:
        assert accepted(driver, "DC0_C0_H0").passed
    finally:
        control.remove_vm("some")


def test_a_template_that_cannot_be_used_is_named(settings):
    driver = VSphereDriver(replace(settings, templates={"ubuntu": "bare"}))
    verdict = driver.acceptance("DC0_C0_H0")
    driver.close()

    assert not verdict.passed
    assert "template bare cannot be used: its notes do not say" in verdict.checks[0][2]


def test_a_machine_of_its_name_that_is_not_ours_is_left_alone(driver, hand):
    with pytest.raises(TransientDriverError):
        driver.acceptance("DC0_C0_H0")
    while not left(hand):
        pass
    [name] = left(hand)
    [vm] = hand.names("VirtualMachine", name)
    driver.ground.set_attribute(vm, "somebody else's")
    with pytest.raises(DriverRejected, match="not ours"):
        driver.acceptance("DC0_C0_H0")
    driver.ground.set_attribute(vm, "")
    accepted(driver, "DC0_C0_H0")
    assert left(hand) == []


@pytest.mark.parametrize(
    "method", ["CloneVM_Task", "ReconfigVM_Task", "PowerOnVM_Task", "PowerOffVM_Task", "Destroy_Task"]
)
@pytest.mark.parametrize("how", ["lose", "fail"])
def test_whatever_goes_wrong_once_the_verdict_comes_and_nothing_stays(driver, hand, control, method, how):
    control.lose_answer(method) if how == "lose" else control.fail_task(method, "HostCommunication")

    verdict = accepted(driver, "DC0_C0_H0")

    assert verdict.passed, verdict
    assert left(hand) == []


def test_a_guest_that_says_nothing_fails_in_time(place, hand, control):
    control.boot_guests(boot=False)
    driver = VSphereDriver(settings_for(place, templates=TEMPLATES, access="guest"))
    for _ in range(12):
        with pytest.raises(TransientDriverError):
            driver.acceptance("DC0_C0_H0")
    late = datetime.now(UTC) + timedelta(seconds=acceptance.BOOT_S + 60)
    verdict = acceptance.run(driver.ground, "DC0_C0_H0", clock=lambda: late)
    driver.close()

    assert not verdict.passed
    assert verdict.checks[-1][:2] == ("its guest boots", False)
    assert left(hand) == []


@pytest.mark.parametrize(
    ("report", "passed", "words"),
    [
        (
            "GPU 0: NVIDIA H100XM-1-10C (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)",
            True,
            "NVIDIA H100XM-1-10C",
        ),
        ("NVIDIA-SMI has failed because it couldn't communicate", False, "has failed"),
    ],
)
def test_what_the_guests_driver_says_decides(place, hand, control, report, passed, words):
    driver = VSphereDriver(settings_for(place, templates=TEMPLATES, access="guest"))
    verdict: Any = None
    for _ in range(60):
        try:
            verdict = driver.acceptance("DC0_C0_H0")
            break
        except TransientDriverError:
            for name in left(hand):
                [vm] = hand.names("VirtualMachine", name)
                told = hand.client.get(vm, "runtime.powerState")
                if told is not None and told["runtime.powerState"] == "poweredOn":
                    control.set_guestinfo(vm.id, acceptance.REPORT, base64.b64encode(report.encode()).decode())
    driver.close()

    assert (verdict.passed, verdict.checks[-1][0]) == (passed, "its driver answers")
    assert words in verdict.checks[-1][2]
    assert left(hand) == []
