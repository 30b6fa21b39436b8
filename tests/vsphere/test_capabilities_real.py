"""What the lab's vCenter can do, asked of it: templates as they are, rights object by object, and in few calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import TransientDriverError
from provisioners.vsphere import storage_policies
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import AccessDenied
from tests.vsphere.ground import settings_for

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

GOOD, OLD = "ubuntu-24.04-gpu", "legacy-bios"


@pytest.fixture
def drivers(vcenter: VCenter, vcenter_control) -> Iterator:
    made = []

    def make(**more) -> VSphereDriver:
        made.append(VSphereDriver(settings_for(vcenter, **more)))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


def test_the_lab_is_told_as_it_is(drivers):
    seen = drivers(templates={"ubuntu-24.04": GOOD, "old": OLD}, datastores=("LocalDS_0", "gone")).capabilities()

    assert seen.simulated
    assert f"{OLD}: it starts by BIOS" in seen.missing["templates"]
    assert f"{OLD}: its notes do not say that cloud-init" in seen.missing["templates"]
    assert f"{GOOD}: it" not in seen.missing["templates"]
    assert seen.missing["datastores"] == "vCenter shows no datastore gone."
    assert not any(name.startswith("right:") for name in seen.missing)
    assert "networks" not in seen.missing
    assert seen.features["gpu-hosts"]


def test_calls_do_not_grow_with_hosts_or_datastores(drivers, vcenter_control):
    driver = drivers(templates={"ubuntu-24.04": GOOD})
    driver.capabilities()
    vcenter_control.forget_calls()
    driver.capabilities()

    assert sum(vcenter_control.calls().values()) <= 10, vcenter_control.calls()
    assert vcenter_control.calls()["HasPrivilegeOnEntities"] == 1


def test_each_missing_right_is_named_with_the_object(drivers, vcenter_control):
    vcenter_control.deny("Datastore.Browse", "Authorization.ModifyRoles", "Host.Config.Maintenance")
    try:
        missing = drivers().capabilities().missing
        with_groups = drivers(tenant_group="CORP\\t-{tenant}").capabilities().missing
    finally:
        vcenter_control.deny()

    rights = {name: text for name, text in missing.items() if name.startswith("right:")}
    assert set(rights) == {"right:Datastore.Browse on datastores", "right:Host.Config.Maintenance on hosts"}
    assert "missing on LocalDS_0." in rights["right:Datastore.Browse on datastores"]
    assert "DC0_C0_H0, DC0_C0_H1, DC0_C0_H2 and 2 more" in rights["right:Host.Config.Maintenance on hosts"]
    assert "right:Authorization.ModifyRoles on the vCenter itself" in with_groups


def test_a_setting_that_names_nothing_is_refused_by_its_field(drivers):
    for field, words in (
        ({"clusters": ("X",)}, "no cluster X"),
        ({"dvs": "X"}, "dvs: .* X"),
        ({"datacenter": "X"}, "X"),
    ):
        with pytest.raises(TransientDriverError, match=words):
            drivers(**field).capabilities()


def test_what_our_account_may_not_even_ask_is_denied(drivers, vcenter_control):
    driver = drivers()
    driver.capabilities()
    vcenter_control.fail_call("HasPrivilegeOnEntities", "NoPermission")
    with pytest.raises(AccessDenied):
        driver.capabilities()


# --- storage policies -----------------------------------------------------------------------------


def test_a_storage_policy_is_looked_for_and_the_missing_one_named(drivers):
    there = storage_policies.policies(drivers().client)
    one, name = next(iter(there.items()))

    assert "storage-policy" not in drivers(storage_policy=one).capabilities().missing
    assert (
        "no storage policy with the id gone. It has: "
        in drivers(storage_policy="gone").capabilities().missing["storage-policy"]
    )
    told = drivers(storage_policy=name.upper()).capabilities().missing["storage-policy"]
    assert told.endswith(f"the one that is called so has the id {one}.")


def test_a_policy_service_that_does_not_answer_is_said_and_stops_nothing(drivers, vcenter_control):
    vcenter_control.answer("PbmQueryProfile", 503, count=0)

    seen = drivers(storage_policy="some", templates={"ubuntu-24.04": GOOD}).capabilities()

    assert "could not be asked" in seen.missing["storage-policy"]
    assert seen.images == {"ubuntu-24.04"}
