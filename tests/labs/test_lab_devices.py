"""True layouts, the lab's choice of devices, and mig-parted's files."""

from __future__ import annotations

import asyncio
import random

import pytest

from controlplane.labs.kubernetes import devices, mig_manager
from controlplane.labs.kubernetes.carving import (
    BadLayout,
    Gpu,
    NodeTruth,
    Slot,
    Window,
    double_use,
    from_node,
    place,
    published,
    slots_of,
)
from controlplane.labs.kubernetes.devices import Devices, choose
from controlplane.labs.kubernetes.furniture import usual_nodes
from controlplane.labs.kubernetes.ground import AdmissionRefused
from controlplane.labs.kubernetes.nodes import Kind, allocatable, as_object

H100 = "H100-80GB"
ONES = tuple(Window(start, 1, "1g.10gb") for start in range(7))


def truth(**held):
    return NodeTruth("mixed", [Gpu(H100), Gpu(H100, mig=True, windows=ONES)], held)


def lab(folder, policy="first", seed=0):
    found = Devices(None, folder, policy=policy, seed=seed)  # type: ignore[arg-type]  # no claim is read here
    found.truths.setdefault("node-1", truth())
    return found


def asks(uid, resource="nvidia.com/mig-1g.10gb", count=1):
    limits = {"cpu": "1", resource: str(count)}
    return {
        "metadata": {"uid": uid, "name": uid, "namespace": "n"},
        "spec": {"nodeName": "node-1", "containers": [{"resources": {"limits": limits}}]},
    }


def admit(found, pod):
    asyncio.run(found.admit(pod))


def test_windows_lie_where_a_gpu_can_have_them():
    assert place(H100, {"3g.40gb": 2}) == (Window(0, 4, "3g.40gb"), Window(4, 4, "3g.40gb"))
    assert place(H100, {"4g.40gb": 1, "2g.20gb": 1, "1g.10gb": 1}) == (
        Window(0, 4, "4g.40gb"), Window(4, 2, "2g.20gb"), Window(6, 1, "1g.10gb"),
    )  # fmt: skip
    for counts in ({"3g.40gb": 3}, {"4g.40gb": 2}, {"1g.10gb": 8}, {"1g.10gb+me": 2}, {"9g.90gb": 1}):
        with pytest.raises(BadLayout):
            place(H100, counts)


def test_a_layout_is_found_for_every_node_that_the_lab_makes_and_publishes_the_same_counts():
    checked = 0
    for node in usual_nodes():
        if node.kind is Kind.DEVICE_PLUGIN and node.gpus:
            found = from_node(as_object(node))
            assert published(found, node.strategy) == allocatable(node), node.name
            checked += 1

    assert checked == 3


def test_strategies_publish_what_the_device_plugin_publishes():
    gpus = [Gpu(H100, mig=True, windows=ONES), Gpu(H100)]

    assert {name: len(slots) for name, slots in slots_of(gpus, "mixed").items()} == {
        "nvidia.com/mig-1g.10gb": 7, "nvidia.com/gpu": 1,
    }  # fmt: skip
    assert slots_of(gpus, "single") == {}
    assert published([gpus[0], gpus[0]], "single") == {"nvidia.com/gpu": 14}


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("first", [Slot(1, 0, 1, "1g.10gb"), Slot(1, 1, 1, "1g.10gb")]),
        ("adversarial", [Slot(1, 6, 1, "1g.10gb"), Slot(1, 5, 1, "1g.10gb")]),
    ],
)
def test_a_policy_chooses(policy, chosen):
    held = truth()

    found = choose(held.free("nvidia.com/mig-1g.10gb"), 2, policy=policy, dice=random.Random(1), truth=held)

    assert found == chosen


def test_each_pod_gets_its_own_device_and_the_one_too_many_is_refused(tmp_path):
    found = lab(tmp_path, "seeded", seed=7)

    for number in range(7):
        admit(found, asks(f"p{number}"))
    with pytest.raises(AdmissionRefused) as refused:
        admit(found, asks("p7"))

    assert refused.value.reason == "UnexpectedAdmissionError"
    assert str(refused.value) == (
        "Allocate failed due to requested number of devices unavailable for nvidia.com/mig-1g.10gb. "
        "Requested: 1, Available: 0, which is unexpected"
    )
    there = devices.truths(tmp_path)["node-1"]
    assert sorted(slot.start for held in there.held.values() for _, slot in held) == list(range(7))
    assert "node node-1 publishes more nvidia.com/mig-1g.10gb than it has" in devices.violations(tmp_path)


def test_a_device_comes_back_with_its_pod_and_a_new_player_knows_who_has_what(tmp_path):
    first = lab(tmp_path)
    admit(first, asks("a"))
    admit(first, asks("b"))

    second = lab(tmp_path)
    admit(second, asks("a"))
    second.released("b")
    admit(second, asks("c", count=6))

    held = devices.truths(tmp_path)["node-1"].held
    assert {uid: len(slots) for uid, slots in held.items()} == {"a": 1, "c": 6}
    assert devices.violations(tmp_path) == []


def test_the_same_seed_chooses_the_same():
    held = truth()
    free = held.free("nvidia.com/mig-1g.10gb")

    runs = [choose(free, 7, policy="seeded", dice=random.Random(3), truth=held) for _ in range(2)]

    assert runs[0] == runs[1]
    assert runs[0] != sorted(runs[0])


def test_double_use_and_vanished_devices_are_seen():
    shared = truth(
        a=[("r", Slot(1, 0, 1, "1g.10gb"))], b=[("r", Slot(1, 0, 1, "1g.10gb"))], c=[("r", Slot(0, 0, 4, "3g.40gb"))]
    )

    found = double_use([("node-1", shared)])

    assert len(found) == 2
    assert "pods a and b share" in found[0]
    assert "does not exist any more" in found[1]


# --- the MIG manager's files --------------------------------------------------------------------------

CONFIG = """
version: v1
mig-configs:
  all-disabled:
  - {devices: all, mig-enabled: false}
  acme-1:
  - devices: [0]
    mig-enabled: true
    mig-devices: {"3g.40gb": 1, "1g.10gb": 3}
  broken:
  - {devices: [0], mig-enabled: true, mig-devices: {"4g.40gb": 2}}
  elsewhere:
  - {devices: [9], mig-enabled: false}
"""


def test_an_entry_says_what_the_gpus_that_it_lists_are_to_be():
    gpus = truth().gpus

    wanted = mig_manager.layouts(CONFIG, "acme-1", gpus)

    assert wanted.keys() == {0}
    assert [window.profile for window in wanted[0].windows] == ["3g.40gb", "1g.10gb", "1g.10gb", "1g.10gb"]
    assert mig_manager.differing(gpus, wanted).keys() == {0}
    assert mig_manager.differing(gpus, mig_manager.layouts(CONFIG, "all-disabled", gpus)).keys() == {1}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("acme-2", "selected mig-config not present: acme-2"),
        ("broken", "has no room for 2 × 4g.40gb"),
        ("elsewhere", "invalid device index: 9"),
    ],
)
def test_a_wrong_entry_is_refused(entry, words):
    with pytest.raises(mig_manager.BadEntry, match=words):
        mig_manager.layouts(CONFIG, entry, truth().gpus)
