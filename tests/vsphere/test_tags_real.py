"""Tags on the lab's vCenter: on what is ours, off with it, and in no calls while nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from controlplane.labs.vsphere.control import Control, Rule
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import Kind, Ref
from provisioners.vsphere import tags
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.rest import RestClient
from provisioners.vsphere.settings import Settings
from tests.vsphere.ground import TENANT, boundary, clear, settings_for, walk
from tests.vsphere.test_machines_real import machine, run, vm_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim]


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    """With a folder of its own: what other tests have left is not ours here."""
    return settings_for(
        vcenter, tags=True, root_folder=f"tagged-{uuid4().hex[:8]}", templates={"ubuntu-24.04": "ubuntu-24.04-gpu"}
    )


@pytest.fixture
def drivers(settings: Settings, vcenter_control: Control) -> Iterator[Callable[..., VSphereDriver]]:
    made: list[VSphereDriver] = []

    def make(**more: object) -> VSphereDriver:
        made.append(VSphereDriver(replace(settings, **more)))
        return made[-1]

    yield make
    vcenter_control.clear()
    for driver in made:
        driver.close()


@pytest.fixture
def rest(settings: Settings) -> Iterator[RestClient]:
    made = RestClient(settings)
    yield made
    made.close()


def shown(rest: RestClient, settings: Settings) -> dict[str, set[str]]:
    """Return our tags → ids of the objects that carry them."""
    ours = tags.names_of(settings.root_folder, settings.datacenter)
    categories = [each for each in rest.get(tags.CATEGORY) if rest.get(f"{tags.CATEGORY}/id:{each}")["name"] in ours]
    found = {}
    for tag in rest.get(tags.TAG) or ():
        told = rest.get(f"{tags.TAG}/id:{tag}")
        if told["category_id"] in categories:
            objects = rest.post(f"{tags.ASSOCIATION}/id:{tag}", {}, action="list-attached-objects") or ()
            found[told["name"]] = {one["id"] for one in objects}
    return found


def test_what_is_ours_is_tagged_by_tenant_and_kind_and_the_tenants_tag_goes_with_its_last_object(
    drivers, rest, settings, vcenter_control
):
    driver, home = drivers(), boundary()
    walk(driver, home)
    spec = machine(home)
    assert run(driver, spec).errors == []

    seen = driver.snapshot()
    told = shown(rest, settings)

    vm = vm_of(driver, spec).ref.id
    assert seen.capabilities.features["tags"]
    assert set(told) == {str(TENANT), "machine", "boundary"}
    assert told["machine"] == {vm}
    assert len(told["boundary"]) >= 3  # folder, pools, port group
    assert told[str(TENANT)] == told["machine"] | told["boundary"]
    vcenter_control.forget_calls()
    driver.snapshot()
    assert not [name for name in vcenter_control.calls() if name.startswith("/rest")]

    run(driver, spec, deleting=True)
    clear(driver, home)
    driver.snapshot()

    assert shown(rest, settings) == {}


def test_two_workers_make_each_tag_once(drivers, rest, settings):
    driver, home = drivers(), boundary()
    walk(driver, home)
    for one in (driver, drivers()):
        one.snapshot()

    assert set(shown(rest, settings)) == {str(TENANT), "boundary"}
    clear(driver, home)
    driver.snapshot()


def test_a_rest_side_that_is_away_is_a_gap_and_stops_nothing(drivers, vcenter_control):
    driver, home = drivers(), boundary()
    walk(driver, home)
    vcenter_control.add(Rule("http", "/rest/com/vmware/cis/session", status=404))

    away = driver.snapshot()
    vcenter_control.clear()
    back = driver.snapshot()

    assert away.complete
    assert "no REST side" in away.capabilities.missing["tags"]
    assert not away.capabilities.features["tags"]
    assert back.capabilities.features["tags"]
    clear(driver, home)
    driver.snapshot()


def test_without_the_setting_nothing_is_tagged(drivers, vcenter_control):
    driver, home = drivers(tags=False), boundary()
    walk(driver, home)
    vcenter_control.forget_calls()

    seen = driver.snapshot()

    assert "tags" not in seen.capabilities.features
    assert not [name for name in vcenter_control.calls() if name.startswith("/rest")]
    clear(driver, home)


def test_what_should_carry_which_tag_is_worked_out_from_whose_it_is():

    vm, folder = MoRef("VirtualMachine", "vm-1"), MoRef("Folder", "group-1")
    owned = ((vm, Ref(Kind.MACHINE, uuid4(), TENANT)), (folder, Ref(Kind.BOUNDARY, uuid4(), TENANT)))

    assert tags.wanted(tags.names_of("ours", ""), owned) == {
        ("ours-tenant", str(TENANT)): {vm, folder},
        ("ours-kind", "machine"): {vm},
        ("ours-kind", "boundary"): {folder},
    }
