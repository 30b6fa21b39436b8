"""What a host and its VMs say, read without a vCenter: products, readiness with remedies, places, contradictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from pyVmomi import vim

from provisioners.driver import Kind, Ref
from provisioners.vsphere import reading_hosts
from provisioners.vsphere.client import Found, MoRef
from provisioners.vsphere.reading_hosts import Gpu, Host, PciGpu
from provisioners.vsphere.reading_uses import Device, Vm, devices_of, uses_of

HOST = MoRef("HostSystem", "host-1")
H100 = "NVIDIA H100 80GB HBM3"
TYPES = ("nvidia_h100xm-1-10c", "nvidia_h100xm-3-40c", "nvidia_h100xm-80c", "nvidia_h100xm-40c")
NO_MIG = ("nvidia_h100xm-80c",)


def info(pci: str = "0000:1b:00.0", *vms: str, **more: Any) -> Any:
    told: dict[str, Any] = {
        "deviceName": H100, "vendorName": "NVIDIA Corporation", "pciId": pci, "graphicsType": "sharedDirect",
        "vgpuMode": "none", "memorySizeInKB": 83_886_080,
    }  # fmt: skip
    return vim.host.GraphicsInfo(**(told | more), vm=[vim.VirtualMachine(vm, None) for vm in vms])


def host(*infos: Any, types: Sequence[str] = TYPES, pci: Sequence[PciGpu] = (), **values: Any) -> Host:
    told: dict[str, Any] = {
        "name": "esx-1", "runtime.connectionState": "connected", "runtime.powerState": "poweredOn",
        "runtime.inMaintenanceMode": False, "summary.hardware.numCpuThreads": 64,
        "summary.hardware.memorySize": 512 << 30, "config.sharedPassthruGpuTypes": list(types),
        "config.graphicsInfo": list(infos),
    }  # fmt: skip
    return reading_hosts.read(Found(HOST, told | {key.replace("__", "."): one for key, one in values.items()}), pci)


def gpu(pci: str = "0000:1b:00.0", *vms: str, product: str = "H100-80GB", slots: int = 8) -> Gpu:
    refs = tuple(MoRef("VirtualMachine", vm) for vm in vms)
    return Gpu(f"esx-1/{pci}", pci, product, slots, passthrough=False, mode="none", vms=refs, has_mig=True)


def carrying(*gpus: Gpu, types: Sequence[str] = TYPES) -> Host:
    return Host(
        HOST, "esx-1", 64, 480, tuple(types), gpus, connected=True, in_maintenance=False, version="", problems=()
    )


def vm(name: str, *types: str, pci: str = "") -> Vm:
    devices = tuple(Device(type=one) for one in types) + ((Device(pci=pci),) if pci else ())
    return Vm(MoRef("VirtualMachine", name), name, 4, 4096, devices)


# --- readiness ------------------------------------------------------------------------------------


def test_a_host_that_is_ready_has_nothing_to_be_mended():
    seen = host(info())

    assert (seen.healthy, seen.problems, seen.memory_gib) == (True, (), 481)
    assert [(one.product, one.slots, one.has_mig) for one in seen.gpus] == [("H100-80GB", 8, True)]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (host(info(graphicsType="shared")), "graphics are shared, and vgpus need shared direct"),
        (host(info(), types=()), "offers no vgpu types: add the nvidia vgpu manager"),
        (host(info(), types=NO_MIG), "no mig-backed vgpu types, so only whole gpus"),
        (
            host(
                info(graphicsType="shared"),
                config__graphicsConfig=vim.host.GraphicsConfig(
                    hostDefaultGraphicsType="sharedDirect", sharedPassthruAssignmentPolicy="performance"
                ),
            ),
            "set and not in force: restart",
        ),
        (host(info(), runtime__connectionState="disconnected"), "connect it again"),
        (host(info(), runtime__connectionState="notResponding"), "does not respond"),
        (host(info(), runtime__powerState="standBy"), "standby"),
    ],
)
def test_what_is_not_ready_says_what_mends_it(seen, words):
    assert words in " ".join(seen.problems).lower()


def test_only_a_host_that_is_away_takes_no_vm_at_all():
    assert not host(info(), runtime__connectionState="disconnected").healthy
    assert not host(info(), runtime__powerState="standBy").healthy
    assert host(info(), types=()).healthy
    assert host(info(), runtime__inMaintenanceMode=True).in_maintenance


# --- products -------------------------------------------------------------------------------------


def test_a_product_comes_from_name_then_bus_then_types_and_never_from_a_guess():
    odd = info(deviceName="H100 (some new spelling)")

    assert host(odd).gpus[0].product == "H100-80GB"
    assert host(odd, types=("nvidia_l99-1-10c",)).gpus[0].product == "H100 (some new spelling)"
    both = (*TYPES, "grid_a100d-1-10c")
    assert host(odd, types=both).gpus[0].slots == 0
    on_bus = (PciGpu("0000:1b:00.0", "H200-141GB", passthrough=False),)
    assert host(odd, types=both, pci=on_bus).gpus[0].product == "H200-141GB"


def test_the_boards_own_display_is_no_gpu():
    assert host(info(deviceName="ASPEED Graphics", vendorName="ASPEED Technology")).gpus == ()


def test_a_gpu_for_passthrough_that_graphics_do_not_show_is_found_on_the_bus():
    seen = host(info(), pci=(PciGpu("0000:3b:00.0", "H100-80GB", passthrough=True),))

    assert [(one.pci, one.passthrough) for one in seen.gpus] == [("0000:1b:00.0", False), ("0000:3b:00.0", True)]
    assert host(pci=(PciGpu("0000:3b:00.0", "H100-80GB", passthrough=True),), types=()).problems == ()


def test_the_bus_is_read_with_signed_numbers():
    def device(pci: str, vendor: int, number: int, kind: int, name: str = "") -> Any:
        return vim.host.PciDevice(
            id=pci, classId=kind, bus=0, slot=0, function=0, vendorId=vendor, subVendorId=0, vendorName="",
            parentBridge="", deviceId=number, subDeviceId=0, deviceName=name,
        )  # fmt: skip

    values = {
        "hardware.pciDevice": [
            device("0000:1b:00.0", 0x10DE, 0x2330, 0x302),
            device("0000:3b:00.0", 0x10DE, 0x2331, 0x302, H100),
            device("0000:00:1f.0", -32634, 0x1234, 0x302),
            device("0000:1b:00.1", 0x10DE, 0x22A3, 0x680),
        ],
        "config.pciPassthruInfo": [
            vim.host.PciPassthruInfo(
                id="0000:3b:00.0", dependentDevice="", passthruEnabled=True, passthruCapable=True, passthruActive=True
            )
        ],
    }

    assert reading_hosts.pci_gpus(values) == (
        PciGpu("0000:1b:00.0", "H100-80GB", passthrough=False), PciGpu("0000:3b:00.0", "H100-80GB", passthrough=True),
    )  # fmt: skip


# --- places ---------------------------------------------------------------------------------------


def test_devices_are_read_by_their_backing():
    kind = vim.vm.device.VirtualPCIPassthrough
    devices = [
        kind(key=13002, backing=kind.DynamicBackingInfo(deviceName="", allowedDevice=[], assignedId="0000:3b:00.0")),
        kind(key=13000, backing=kind.VmiopBackingInfo(vgpu="nvidia_h100xm-1-10c")),
        vim.vm.device.VirtualE1000(key=4000),
        kind(
            key=13001,
            backing=kind.DeviceBackingInfo(
                deviceName="", id="0000:1b:00.0", deviceId="2330", systemId="", vendorId=4318
            ),
        ),
    ]

    assert devices_of(devices) == (
        Device(type="nvidia_h100xm-1-10c"), Device(pci="0000:1b:00.0"), Device(pci="0000:3b:00.0"),
    )  # fmt: skip


def test_where_the_host_does_not_tell_one_gpu_that_can_carry_it_is_exact_and_two_are_not():
    one, _ = uses_of(carrying(gpu()), [vm("a", "nvidia_h100xm-1-10c")])
    two, _ = uses_of(carrying(gpu(), gpu("0000:3b:00.0")), [vm("a", "nvidia_h100xm-1-10c")])
    mixed, _ = uses_of(carrying(gpu(), gpu("0000:3b:00.0", product="A100-80GB")), [vm("a", "nvidia_h100xm-1-10c")])

    assert [use.device for use in (*one, *two, *mixed)] == ["esx-1/0000:1b:00.0", "", "esx-1/0000:1b:00.0"]
    assert {(use.profile, use.size) for use in (*one, *two, *mixed)} == {("1g.10gb", 1)}


def test_devices_that_differ_stay_open_on_several_gpus():
    where = carrying(gpu("0000:1b:00.0", "a"), gpu("0000:3b:00.0", "a"))

    uses, _ = uses_of(where, [vm("a", "nvidia_h100xm-1-10c", "nvidia_h100xm-3-40c")])

    assert [(use.device, use.profile) for use in uses] == [("", "1g.10gb"), ("", "3g.40gb")]


def test_a_whole_gpu_of_ours_that_stays_in_mig_mode_is_a_whole_gpu():
    whole = replace(
        vm("a", "nvidia_h100xm-7-80c"), owner=Ref(Kind.MACHINE, uuid4(), uuid4()), unit=uuid4(), is_whole=True
    )

    mine, _ = uses_of(carrying(gpu("0000:1b:00.0", "a")), [whole])
    other, _ = uses_of(carrying(gpu("0000:1b:00.0", "a")), [vm("a", "nvidia_h100xm-7-80c")])

    assert [(use.profile, use.start, use.size) for use in (*mine, *other)] == [("", 0, 8), ("7g.80gb", 0, 8)]


def test_a_type_that_nothing_explains_takes_the_whole_gpu():
    uses, contradictions = uses_of(carrying(gpu("0000:1b:00.0", "a")), [vm("a", "nvidia_zz9-3-7c")])

    assert [(use.device, use.start, use.size, use.profile) for use in uses] == [("esx-1/0000:1b:00.0", 0, 8, "")]
    assert contradictions == ()


def test_a_vm_that_we_may_not_see_takes_the_gpu_that_the_host_shows_it_on():
    uses, _ = uses_of(carrying(gpu("0000:1b:00.0", "secret"), gpu("0000:3b:00.0")), [])

    assert [(use.device, use.size, use.ref) for use in uses] == [("esx-1/0000:1b:00.0", 8, None)]
    assert "may not see" in uses[0].name


def test_one_that_we_may_not_see_has_what_a_visible_neighbour_leaves_and_one_that_has_just_stopped_has_nothing():
    where = carrying(gpu("0000:1b:00.0", "a", "other"))

    hidden, _ = uses_of(where, [vm("a", "nvidia_h100xm-1-10c")])
    stopped, _ = uses_of(where, [vm("a", "nvidia_h100xm-1-10c")], {MoRef("VirtualMachine", "other")})

    assert [(use.size, use.profile) for use in hidden] == [(1, "1g.10gb"), (8, "")]
    assert [use.name for use in stopped] == ["a"]


def test_passthrough_is_where_its_device_is():
    direct = Gpu("esx-1/p", "p", "H100-80GB", 8, passthrough=True, mode="none", vms=())

    uses, _ = uses_of(carrying(gpu(), direct), [vm("a", pci="p")])

    assert [(use.device, use.start, use.size, use.profile) for use in uses] == [("esx-1/p", 0, 8, "")]


def test_ours_without_a_gpu_is_told_too():
    mine = Vm(MoRef("VirtualMachine", "a"), "a", 4, 4097, (), owner=Ref(Kind.MACHINE, uuid4(), uuid4()), unit=uuid4())

    uses, _ = uses_of(carrying(gpu()), [mine, vm("b"), vm("c")])

    assert [(use.name, use.size, use.vcpu, use.memory_gib) for use in uses] == [
        ("a", 0, 4, 5), ("other virtual machines", 0, 8, 8),
    ]  # fmt: skip


# --- contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (("nvidia_h100xm-1-10c", "nvidia_h100xm-80c"), "MIG-backed and whole"),
        (("nvidia_h100xm-80c", "nvidia_h100xm-80c"), "a whole device and another one"),
        (("nvidia_h100xm-3-40c",) * 3, "more MIG devices than fit"),
    ],
)
def test_what_cannot_be_on_one_gpu_is_named(types, words):
    names = [f"vm-{at}" for at in range(len(types))]
    where = carrying(gpu("0000:1b:00.0", *names))

    _, contradictions = uses_of(where, [vm(name, one) for name, one in zip(names, types, strict=True)])

    [said] = contradictions
    assert words in said
    assert "esx-1/0000:1b:00.0" in said


def test_what_fits_is_no_contradiction():
    where = carrying(gpu("0000:1b:00.0", "a", "b", "c"))

    _, contradictions = uses_of(
        where, [vm("a", "nvidia_h100xm-3-40c"), vm("b", "nvidia_h100xm-1-10c"), vm("c", "nvidia_h100xm-1-10c")]
    )

    assert contradictions == ()
