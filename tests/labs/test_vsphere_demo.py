"""What the demo calls left behind, and whose a GPU's window is."""

from __future__ import annotations

from types import SimpleNamespace

from controlplane.labs.vsphere import demo
from controlplane.labs.vsphere.control import GuestVm, HeldGpu, Window

UID = "00000000-0000-4000-8000-0000000000aa"
BEFORE = {
    "vms": ["ubuntu", "legacy"], "folders": ["vm", "vm"], "pools": ["Resources"], "portgroups": ["DC0_DVPG0"],
    "datastores": {"LocalDS_0": ["ubuntu"]},
}  # fmt: skip


def test_only_what_is_more_than_before_was_left_and_the_root_folder_may_stay():
    after = {
        "vms": ["legacy", "tn-vm-1", "ubuntu"], "folders": ["tenantry", "tn-bd-1", "vm", "vm", "vm"],
        "pools": ["Resources", "Resources"], "portgroups": [], "datastores": {"LocalDS_0": ["tn-vm-1", "ubuntu"]},
    }  # fmt: skip

    assert demo.differences(BEFORE, BEFORE) == []
    assert demo.differences(BEFORE, after) == [
        "vms: tn-vm-1", "folders: tn-bd-1", "folders: vm", "pools: Resources", "datastore LocalDS_0: tn-vm-1",
    ]  # fmt: skip


def test_windows_are_ours_by_the_name_of_the_vm_and_gpus_are_numbered_by_host():
    vms = [
        GuestVm("vm-1", f"tn-ep-{UID.replace('-', '')}-0", "", running=True, booted="1", info={}),
        GuestVm("vm-2", "legacy", "", running=True, booted="1", info={}),
    ]
    ours, other = Window("vm-1", "nvidia_h100xm-3-40c", 4, 4), Window("vm-2", "nvidia_h100xm-1-10c", 0, 1)
    gpus = [
        HeldGpu("H0", "0000:1b:00.0", "mig", (other,)), HeldGpu("H0", "0000:3b:00.0", "mig", (ours,)),
        HeldGpu("H1", "0000:1b:00.0", "", ()),
    ]  # fmt: skip
    control = SimpleNamespace(guests=lambda: vms, gpus=lambda: gpus)

    assert list(demo.held_by(control, UID)) == [("H0", 1, ours)]  # type: ignore[arg-type]
