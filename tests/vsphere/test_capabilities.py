"""What is made of what a vCenter answers: gaps with the line that mends them, rights by name; templates one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim

from provisioners.driver import Secret
from provisioners.vsphere import capabilities, templates
from provisioners.vsphere.capabilities import Facts
from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.privileges import Place, Right
from provisioners.vsphere.reading_hosts import NO_MIG, Gpu, Host
from provisioners.vsphere.settings import Settings

ABOUT = {"full_name": "VMware vCenter Server 8.0.3", "version": "8.0.3", "api_version": "8.0.3.0", "instance_uuid": "x"}
SETTINGS = Settings(
    "vc", "vc", "svc", Secret("p"), vlans=((1200, 1299),), templates={"ubuntu-24.04": "ubuntu-24.04-gpu"}
)
GPU = Gpu("esx-1/p", "p", "H100-80GB", 8, passthrough=False, mode="none", vms=(), has_mig=True)


def host(name: str = "esx-1", *problems: str, gpus: tuple[Gpu, ...] = (GPU,)) -> Host:
    ref = MoRef("HostSystem", name)
    return Host(ref, name, 64, 480, (), gpus, connected=True, in_maintenance=False, version="", problems=problems)


def values(**more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": "ubuntu-24.04-gpu", "config.template": True, "config.firmware": "efi", "config.version": "vmx-20",
        "config.guestId": "ubuntu64Guest", "config.annotation": "Ubuntu with cloud-init, guest driver 580",
        "config.hardware.device": [vim.vm.device.VirtualVmxnet3(key=4000)],
    }  # fmt: skip
    return told | {key.replace("__", "."): one for key, one in more.items()}


FOUND = {"ubuntu-24.04-gpu": (Found(MoRef("VirtualMachine", "vm-1"), values()),)}
GOOD = Facts(ABOUT, hosts=(host(),), templates=FOUND)


def test_a_vcenter_that_has_everything_lacks_nothing():
    seen = capabilities.assess(GOOD, SETTINGS)

    assert seen.missing == {"move": capabilities.NO_MOVES}
    assert {name for name, has in seen.features.items() if not has} == {"layout-change", "cluster", "move"}
    assert (seen.simulated, seen.version) == (False, "VMware vCenter Server 8.0.3 (API 8.0.3.0)")


@pytest.mark.parametrize(
    ("facts", "settings", "name", "words"),
    [
        (replace(GOOD, about=ABOUT | {"api_version": "7.0.3.0"}), SETTINGS, "version", "older than 8.0"),
        (replace(GOOD, has_switch=False), SETTINGS, "networks", "no distributed switch"),
        (GOOD, replace(SETTINGS, vlans=()), "networks", "No range of VLANs"),
        (replace(GOOD, missing_datastores=("fast",)), SETTINGS, "datastores", "no datastore fast"),
        (GOOD, replace(SETTINGS, templates={}), "templates", "No template is named"),
        (replace(GOOD, templates={"gone": ()}), SETTINGS, "templates", "shows no template gone"),
        (replace(GOOD, hosts=(host(gpus=()),)), SETTINGS, "gpu-hosts", "No host shows a GPU"),
        (replace(GOOD, hosts=(host("a", "Mend it."), host("b"))), SETTINGS, "gpu-hosts", "a: Mend it."),
        (replace(GOOD, hosts=(host("a", NO_MIG),)), SETTINGS, "mig", "only whole GPUs"),
    ],
)
def test_a_gap_comes_with_the_line_that_mends_it(facts, settings, name, words):
    seen = capabilities.assess(facts, settings)

    assert list(seen.missing) == [name, "move"]
    assert words in seen.missing[name]
    assert seen.features.get(name, False) is False


def test_a_right_is_named_with_where_and_what_for():
    browse = Right(Place.DATASTORES, "Datastore.Browse")
    names = ("ds-1", "ds-2", "ds-3", "ds-4", "ds-5")

    seen = capabilities.assess(replace(GOOD, lacking={browse: names}), SETTINGS)

    assert {name: text for name, text in seen.missing.items() if name.startswith("right:")} == {
        "right:Datastore.Browse on datastores": (
            "Needed to find what was left behind; missing on ds-1, ds-2, ds-3 and 2 more. See deploy/vcenter-role.md."
        )
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config__template": False}, "is a virtual machine and no template"),
        ({"config__firmware": "bios"}, "need EFI"),
        ({"config__guestId": "windows2022srvNext_64Guest"}, "not set to a Linux"),
        ({"config__annotation": "Ubuntu"}, "do not say that cloud-init"),
        ({"config__annotation": "no cloud-init in here"}, "do not say that cloud-init"),
        ({"config__annotation": None}, "do not say that cloud-init"),
        ({"config__hardware__device": []}, "no network card"),
        (
            {"config__hardware__device": [
                vim.vm.device.VirtualE1000(key=4000), vim.vm.device.VirtualPCIPassthrough(key=13000)
            ]},
            "take it out",
        ),
    ],
)  # fmt: skip
def test_a_template_that_cannot_become_a_machine_says_why(more, words):
    [said] = templates.faults(values(**more))

    assert words in said


def test_without_a_gpu_bios_will_do():
    assert templates.faults(values(config__firmware="bios"), with_gpu=False) == ()


def test_an_old_template_is_told_to_be_upgraded():
    found = Found(MoRef("VirtualMachine", "vm-1"), values(config__version="vmx-13"))

    assert "version is 13; upgrade it to 17" in templates.gaps("it", [found])[0]
    assert templates.gaps("it", [Found(found.ref, values())]) == ()


def test_of_several_templates_with_a_name_the_oldest_counts():
    copy = Found(MoRef("VirtualMachine", "vm-1000"), values(config__firmware="bios"))

    assert templates.gaps("it", [copy, *FOUND["ubuntu-24.04-gpu"]]) == ()
