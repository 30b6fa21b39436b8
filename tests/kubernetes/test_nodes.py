"""What nodes and ResourceSlices tell: products, GPUs, layouts, who chooses the device, contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners.driver import Binding
from provisioners.kubernetes import nodes, slices
from provisioners.kubernetes.nodes import Strategy
from tests.kubernetes.gpu_objects import bare_node, every_partition, gpu_uuid, mig, node, resource_slice, whole


def read(raw: dict[str, Any], *devices: dict[str, Any], layouts: dict[str, Any] | None = None) -> nodes.Node:
    pools = slices.read([resource_slice("n1", list(devices))] if devices else [])
    return nodes.read(raw, pools.on("n1"), layouts=layouts)


def test_a_node_with_strategy_none_shows_whole_gpus_under_derived_ids() -> None:
    found = read(node(strategy="none"))

    assert (found.product, found.strategy, found.binding) == ("H100-80GB", Strategy.NONE, Binding.HOST)
    assert [(gpu.id, gpu.index, gpu.profiles) for gpu in found.gpus] == [("n1-gpu-0", 0, ()), ("n1-gpu-1", 1, ())]
    assert dict(found.carved) == {"": 2}
    assert (found.vcpu, found.memory_gib, found.problems) == (64, 512, ())


def test_single_counts_slices_in_the_label_and_the_gpus_behind_them_are_derived() -> None:
    found = read(
        node(product="NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", gpus=14, strategy="single", offers={"nvidia.com/gpu": 14})
    )

    assert found.product == "H100-80GB"
    assert [gpu.profiles for gpu in found.gpus] == [("1g.10gb",) * 7] * 2
    assert found.single == "1g.10gb"
    assert dict(found.carved) == {"1g.10gb": 14}
    assert found.problems == ()


def test_single_that_is_invalid_says_why_and_what_mends_it() -> None:
    found = read(node(product="NVIDIA-H100-80GB-HBM3-MIG-INVALID", gpus=0, strategy="single", offers={}))

    assert found.product == "H100-80GB"
    assert any("every GPU must be carved alike" in problem for problem in found.problems)


def test_mixed_is_carved_as_the_entry_says_where_the_counts_agree() -> None:
    layouts = {
        "acme": [
            {"devices": [0], "mig-enabled": True, "mig-devices": {"3g.40gb": 1, "1g.10gb": 4}},
            {"devices": [1], "mig-enabled": False},
        ]
    }
    raw = node(
        offers={"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 1, "nvidia.com/mig-1g.10gb": 4},
        labels={"nvidia.com/mig.config": "acme", "nvidia.com/mig.config.state": "success"},
    )

    found = read(raw, layouts=layouts)

    assert [gpu.profiles for gpu in found.gpus] == [("1g.10gb",) * 4 + ("3g.40gb",), ()]
    assert found.gpus[0].windows == (
        (0, 1, "1g.10gb"), (1, 1, "1g.10gb"), (2, 1, "1g.10gb"), (3, 1, "1g.10gb"), (4, 4, "3g.40gb"),
    )  # fmt: skip
    assert found.managed


def test_without_an_entry_the_counts_are_spread_over_the_gpus_that_are_not_whole() -> None:
    found = read(node(gpus=3, offers={"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 3, "nvidia.com/mig-1g.10gb": 1}))

    assert sorted(name for gpu in found.gpus for name in gpu.profiles or ()) == ["1g.10gb"] + ["3g.40gb"] * 3
    assert [gpu.profiles for gpu in found.gpus][2] == ()
    assert found.problems == ()


def test_an_entry_that_the_counts_contradict_is_not_believed() -> None:
    layouts = {"acme": [{"devices": "all", "mig-enabled": True, "mig-devices": {"1g.10gb": 7}}]}

    found = read(
        node(gpus=1, offers={"nvidia.com/mig-3g.40gb": 2}, labels={"nvidia.com/mig.config": "acme"}), layouts=layouts
    )

    assert [gpu.profiles for gpu in found.gpus] == [("3g.40gb", "3g.40gb")]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (node(gpus=1, offers={"nvidia.com/gpu": 1, "nvidia.com/mig-1g.10gb": 7}), "at once"),
        (node(gpus=1, offers={"nvidia.com/mig-3g.40gb": 3}), "fit no legal layout"),
        (node(gpus=1, strategy="none", offers={"nvidia.com/mig-1g.10gb": 7}), "with strategy none"),
        (node(gpus=1, offers={"nvidia.com/gpu": 3}), "offers 3 whole GPUs and has 1"),
        (node(gpus=2, offers={}), "has 2 GPUs and offers 0 whole and no MIG devices"),
        (node(gpus=2, offers={"nvidia.com/gpu": 1}, capacity={"nvidia.com/gpu": 2}), "1 of 2 nvidia.com/gpu"),
        (node(gpus=1, offers={"nvidia.com/gpu.shared": 4}), "no memory or fault isolation"),
        (node(labels={"nvidia.com/gpu.replicas": "4"}), "no memory or fault isolation"),
        (node(labels={"nvidia.com/mig.config": "x", "nvidia.com/mig.config.state": "failed"}), "could not carve"),
        (node(labels={"nvidia.com/mig.config": "x", "nvidia.com/mig.config.state": "pending"}), "at work on x"),
    ],
    ids=["whole and MIG", "too much", "none with MIG", "more than there are", "nothing offered", "unhealthy", "shared",
         "replicas", "failed", "pending"],
)  # fmt: skip
def test_what_contradicts_itself_is_said(raw: dict[str, Any], words: str) -> None:
    found = read(raw)

    assert any(words in problem for problem in found.problems), found.problems


def test_device_plugin_and_dra_on_the_same_node_are_a_contradiction() -> None:
    found = read(node(), whole("n1", 0), whole("n1", 1))

    assert found.binding is Binding.DEVICE
    assert any("by the device plugin and by DRA at once" in problem for problem in found.problems)


def test_published_whole_gpus_and_mig_devices_are_bound_by_device() -> None:
    found = read(
        bare_node(),
        whole("n1", 0),
        mig("n1", 1, "3g.40gb", 4, uuid="MIG-a", told="name"),
        mig("n1", 1, "1g.10gb", 2, uuid="MIG-b", told="capacity"),
    )

    assert (found.product, found.strategy, found.binding) == ("H100-80GB", Strategy.DRA, Binding.DEVICE)
    assert [(gpu.id, gpu.index, gpu.windows) for gpu in found.gpus] == [
        (gpu_uuid("n1", 0), 0, ()),
        (gpu_uuid("n1", 1), 1, ((2, 1, "1g.10gb"), (4, 4, "3g.40gb"))),
    ]
    assert found.problems == ()


def test_mig_devices_whose_place_nobody_tells_are_bound_by_gpu() -> None:
    found = read(bare_node(), mig("n1", 0, "3g.40gb", 4, uuid="MIG-a", told="never"))

    assert found.binding is Binding.GPU
    assert not found.gpus[0].trusted
    assert found.gpus[0].profiles == ("3g.40gb",)


def test_partitionable_gpus_are_bound_by_gpu_and_not_carved_yet() -> None:
    found = read(bare_node(), *every_partition("n1", 0), *every_partition("n1", 1))

    assert (found.binding, found.partitions) == (Binding.GPU, True)
    assert [(gpu.id, gpu.profiles) for gpu in found.gpus] == [(gpu_uuid("n1", 0), ()), (gpu_uuid("n1", 1), ())]
    assert dict(found.carved) == {}


def test_a_gpu_published_whole_and_carved_is_a_contradiction() -> None:
    found = read(bare_node(), whole("n1", 0), mig("n1", 0, "3g.40gb", 0, uuid="MIG-a"))

    assert any("published whole and carved at once" in problem for problem in found.problems)


def test_only_the_newest_generation_of_a_pool_counts_and_a_missing_slice_makes_it_incomplete() -> None:
    old = resource_slice("n1", [whole("n1", 0), whole("n1", 1)], generation=1)
    new = resource_slice("n1", [whole("n1", 0)], generation=2, count=2)

    pools = slices.read([old, new])

    assert [one.name for one in pools.on("n1")] == ["gpu-0"]
    assert pools.incomplete == ("gpu.nvidia.com/n1",)
    assert slices.read([new, resource_slice("n1", [], generation=2, count=2, part=1)]).incomplete == ()


def test_a_device_published_twice_is_told() -> None:
    twin = whole("n1", 0)
    renamed = {**whole("n1", 0), "name": "gpu-7"}

    assert slices.read([resource_slice("n1", [twin, twin])]).doubles == {"n1": ("gpu-0",)}
    assert slices.read([resource_slice("n1", [twin, renamed])]).doubles == {"n1": ("GPU-n1-0 as gpu-0 and gpu-7",)}


def test_a_tainted_device_marks_its_gpu() -> None:
    device = whole("n1", 0) | {"taints": [{"key": "xid", "value": "79", "effect": "NoExecute"}]}

    assert read(bare_node(), device).gpus[0].taint == "xid=79:NoExecute"


@pytest.mark.parametrize(
    ("resource", "profile"),
    [
        ("nvidia.com/mig-1g.10gb", "1g.10gb"),
        ("nvidia.com/mig-1g.10gb.me", "1g.10gb+me"),
        ("nvidia.com/mig-1g.24gb.me.all", "1g.24gb+me.all"),
        ("nvidia.com/mig-1g.24gb.gfx", "1g.24gb+gfx"),
        ("nvidia.com/mig-1g.24gb-me", "1g.24gb-me"),
        ("nvidia.com/mig-1g.10gb.shared", "1g.10gb"),
        ("nvidia.com/gpu", None),
    ],
)
def test_the_profile_of_a_resource(resource: str, profile: str | None) -> None:
    assert nodes.profile_of(resource) == profile


def test_a_node_that_is_not_ready_says_why_and_a_cordoned_one_is_told_apart() -> None:
    lost = read(node(ready=False))
    cordoned = read(node(cordoned=True))

    assert (lost.ready, lost.message) == (False, "it is not ready: kubelet stopped")
    assert (cordoned.ready, cordoned.cordoned) == (True, True)


@pytest.mark.parametrize(
    ("text", "gib"), [("512Gi", 512), ("524288Mi", 512), ("1073741824", 1), ("2T", 1862), ("nonsense", 0)]
)
def test_quantities(text: str, gib: int) -> None:
    assert nodes.gib(text) == gib


@pytest.mark.parametrize(
    ("labels", "is_single"),
    [
        ({"nvidia.com/mig.strategy": "single"}, True),
        ({"nvidia.com/mig.strategy": "single", "nvidia.com/mig.capable": "true"}, True),
        ({"nvidia.com/mig.strategy": "single", "nvidia.com/mig.capable": "false"}, False),
        ({"nvidia.com/mig.strategy": "mixed"}, False),
        ({}, False),
    ],
)
def test_only_nodes_of_strategy_single_that_can_be_carved_hand_parts_out_as_whole_gpus(
    labels: dict[str, str], is_single: bool
) -> None:
    assert nodes.is_single({"metadata": {"name": "n", "labels": labels}}) is is_single
