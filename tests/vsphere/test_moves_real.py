"""Machines that run where they should not: the ledger's word moves them, nobody else's does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import plan
from provisioners.driver import BoundarySpec, MachineSpec
from provisioners.vsphere.driver import VSphereDriver
from tests.vsphere.ground import boundary, clear, settings_for, walk
from tests.vsphere.test_machines_real import machine, run, unit, up, vm_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim]


@pytest.fixture
def driver(vcenter: VCenter, vcenter_control: Control) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings_for(vcenter, templates={"ubuntu-24.04": "ubuntu-24.04-gpu"}))
    yield made
    vcenter_control.clear()
    made.close()


@pytest.fixture
def home(driver: VSphereDriver) -> Iterator[BoundarySpec]:
    made = boundary()
    walk(driver, made)
    yield made
    clear(driver, made)


@pytest.fixture
def spec(driver: VSphereDriver, home: BoundarySpec) -> Iterator[MachineSpec]:
    made = machine(home, unit("DC0_C0_H0"))
    yield made
    assert run(driver, made, deleting=True).end == plan.Forget()


def test_a_running_machine_that_is_placed_anew_is_switched_off_moved_and_switched_on(driver, spec):
    up(driver, spec)
    before = vm_of(driver, spec)

    seen = up(driver, replace(spec, unit=replace(spec.unit, host="DC0_C0_H1")))

    after = vm_of(driver, spec)
    assert {one.host for one in seen.units} == {"DC0_C0_H1"}
    assert (after.ref, after.have.instance_uuid, after.is_on) == (before.ref, before.have.instance_uuid, True)
    assert not any(part.message for part in seen.parts)
