"""What operators read of a vCenter beside its hosts: room, networks, drivers, and what is to be done about them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim

from provisioners.driver import Kind as RefKind
from provisioners.driver import Lot, Ref
from provisioners.vsphere import means
from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.network import Wiring, config_spec
from provisioners.vsphere.reading_hosts import Gpu, Host
from provisioners.vsphere.settings import Settings
from tests.vsphere.ground import TENANT

GIB = 2**30
SETTINGS = Settings("lab", "vc", "me", None, vlans=((1200, 1209),))  # type: ignore[arg-type]
SWITCH = Found(MoRef("VmwareDistributedVirtualSwitch", "dvs-1"), {"name": "DVS0"})


def store(name: str, free: int, size: int = 1000, **more: Any) -> Found:
    told = {"summary.capacity": size * GIB, "summary.freeSpace": free * GIB, "summary.type": "vmfs"}
    return Found(MoRef("Datastore", name), {"name": name, **told, "summary.accessible": True, **more})


def group(name: str, vlan: int) -> Found:
    spec = config_spec(Ref(RefKind.BOUNDARY, TENANT, TENANT), Wiring(vlan))
    on = vim.dvs.VmwareDistributedVirtualSwitch("dvs-1", None)
    values = {"name": name, "config.distributedVirtualSwitch": on, "config.defaultPortConfig": spec.defaultPortConfig}
    return Found(MoRef("DistributedVirtualPortgroup", name), values)


def host(name: str, *, types: tuple[str, ...] = ("nvidia_h100-1-10c",), problems: tuple[str, ...] = ()) -> Host:
    gpu = Gpu(f"{name}/1", "1", "H100-80GB", 7, False, "none", ())
    return Host(MoRef("HostSystem", name), name, 8, 64, types, (gpu,), True, False, "8.0.3", problems)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (store("ds", 500), ""),
        (store("ds", 60), "nearly full"),
        (store("ds", 500, **{"summary.accessible": False}), "cannot be reached"),
        (store("ds", 500, **{"summary.maintenanceMode": "inMaintenance"}), "in maintenance"),
    ],
)
def test_a_datastore_is_shown_with_its_room_and_what_to_do(one, words):
    [lot] = means.lots([one], [], [], [], {}, SETTINGS)

    assert (lot.kind, lot.words, lot.size_gib) == ("datastore", "VMFS", 1000)
    assert words in lot.problem
    assert bool(lot.problem) == bool(words)


def test_a_gib_more_or_less_is_the_same_room():
    said = {means.lots([store("ds", free, 10_000)], [], [], [], {}, SETTINGS) for free in (5001, 5050, 5099)}

    assert said == {(Lot("datastore", "ds", "VMFS", 5000, 10_000),)}


def test_datastores_that_are_not_offered_are_not_shown():
    settings = Settings("lab", "vc", "me", None, datastores=("b",))  # type: ignore[arg-type]

    assert [lot.name for lot in means.lots([store("a", 1), store("b", 500)], [], [], [], {}, settings)] == ["b"]


def test_switches_tell_how_many_vlans_are_left_and_networks_of_others_which_they_have():
    ours = [group(f"tn-bd-{number}", 1200 + number) for number in range(10)]
    groups = [*ours, group("theirs", 7), group("thief", 1203)]

    switch, *networks = means.lots([], [SWITCH], groups, [], {}, SETTINGS, ours=frozenset(one.ref for one in ours))

    assert switch.words == "12 port groups, 10 of them ours"
    assert switch.problem == "Of 10 VLANs 0 are left: give it more of them in the settings."
    assert [(lot.name, lot.words, bool(lot.problem)) for lot in networks] == [
        ("theirs", "VLAN 7", False), ("thief", "VLAN 1203", True),
    ]  # fmt: skip


def test_hosts_tell_version_driver_and_what_is_to_be_mended():
    ready, old = host("a"), host("b", types=(), problems=("It offers no vGPU types.",))

    told = means.lots([], [], [], [old, ready], {ready.ref: "550.54.16"}, SETTINGS)

    assert [lot.words for lot in told] == [
        "ESXi 8.0.3, vGPU manager 550.54.16, 1 vGPU types", "ESXi 8.0.3, vGPU manager none, 0 vGPU types",
    ]  # fmt: skip
    assert told[1].problem == "It offers no vGPU types."


def test_the_driver_is_the_package_of_its_vendor():
    def package(name: str, vendor: str, version: str) -> Any:
        return SimpleNamespace(name=name, vendor=vendor, version=version)

    found = [package("esx-base", "VMware", "8.0.3-0"), package("NVD-AIE_ESXi_8", "NVIDIA", "550.54.16-1OEM.800.1")]

    assert (means.driver_in(found), means.driver_in(found[:1])) == ("550.54.16", "")


def test_few_hosts_are_asked_at_a_look_and_each_one_seldom():
    asked: list[str] = []
    now = [0.0]
    packages = means.Packages(Ground(SETTINGS, client=None), clock=lambda: now[0])  # type: ignore[arg-type]
    packages._ask = lambda ref: asked.append(ref.id) or "1"  # type: ignore[assignment,func-returns-value]
    hosts = [host(f"h{number}") for number in range(6)]

    first, second = packages.of(hosts), packages.of(hosts)
    packages.of(hosts)
    now[0] = means.PACKAGES_S
    packages.of(hosts)

    assert (len(first), len(second), asked) == (4, 6, [f"h{n}" for n in (0, 1, 2, 3, 4, 5, 0, 1, 2, 3)])
