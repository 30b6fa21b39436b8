"""What simulated nodes publish, against what the device plugin, GFD and NVIDIA's DRA driver publish."""

from __future__ import annotations

import itertools
import json

import pytest

from controlplane.labs.kubernetes import catalogue, furniture, nodes, slices
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.nodes import Kind, Node, Strategy, gpu_node

ONES = tuple(("1g.10gb", start) for start in range(7))
H100 = "H100-80GB"
ATTRIBUTES_OF_MIG = {
    "type",
    "profile",
    "parentUUID",
    "productName",
    "brand",
    "architecture",
    "cudaComputeCapability",
    "driverVersion",
    "cudaDriverVersion",
    "addressingMode",
    "resource.kubernetes.io/pciBusID",
    "resource.kubernetes.io/pcieRoot",
}
CAPACITIES = {"memory", "multiprocessors", "copyEngines", "decoders", "encoders", "jpegEngines", "ofaEngines"}


def test_mixed_counts_whole_gpus_and_each_profile_by_its_own_name():
    node = gpu_node("n", H100, count=3, layouts={0: ONES, 1: (("3g.40gb", 4), ("1g.10gb+me", 0))})

    assert nodes.allocatable(node) == {
        "nvidia.com/gpu": 1,
        "nvidia.com/mig-1g.10gb": 7,
        "nvidia.com/mig-1g.10gb.me": 1,
        "nvidia.com/mig-3g.40gb": 1,
    }
    said = nodes.labels(node)
    assert said["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert said["nvidia.com/gpu.count"] == "3"
    assert said["nvidia.com/mig-1g.10gb.count"] == "7"
    assert said["nvidia.com/mig-3g.40gb.memory"] == "40448"
    assert said["nvidia.com/mig-1g.10gb.me.product"] == "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me"


def test_mixed_publishes_no_whole_gpu_where_all_are_in_mig_mode():
    node = gpu_node("n", H100, count=2, layouts={0: ONES, 1: ()})

    assert nodes.allocatable(node) == {"nvidia.com/mig-1g.10gb": 7}
    assert nodes.labels(node)["nvidia.com/gpu.replicas"] == "0"


def test_single_counts_mig_devices_as_gpus():
    node = gpu_node("n", "A100-80GB", count=2, strategy=Strategy.SINGLE, layouts={0: ONES, 1: ONES})

    assert nodes.allocatable(node) == {"nvidia.com/gpu": 14}
    said = nodes.labels(node)
    assert said["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"
    assert (said["nvidia.com/gpu.count"], said["nvidia.com/gpu.slices.gi"]) == ("14", "1")


@pytest.mark.parametrize(
    "layouts",
    [{0: ONES}, {0: ONES, 1: ()}, {0: ONES, 1: (("3g.40gb", 0),)}],
    ids=["not all", "one empty", "two profiles"],
)
def test_single_is_invalid_unless_all_gpus_have_the_same_profile(layouts):
    node = gpu_node("n", "A100-80GB", count=2, strategy=Strategy.SINGLE, layouts=layouts)

    assert nodes.allocatable(node) == {}
    assert nodes.labels(node)["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB-MIG-INVALID"
    assert nodes.labels(node)["nvidia.com/gpu.count"] == "0"


def test_single_without_mig_is_like_none():
    node = gpu_node("n", "A100-80GB", count=2, strategy=Strategy.SINGLE)

    assert nodes.allocatable(node) == {"nvidia.com/gpu": 2}
    assert nodes.labels(node)["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB"


def test_none_counts_gpus_and_names_no_strategy():
    node = gpu_node("n", "L40S-48GB", count=4, strategy=Strategy.NONE)

    assert nodes.allocatable(node) == {"nvidia.com/gpu": 4}
    said = nodes.labels(node)
    assert "nvidia.com/mig.strategy" not in said
    assert (said["nvidia.com/mig.capable"], said["nvidia.com/gpu.family"]) == ("false", "ada-lovelace")


@pytest.mark.parametrize(
    "layout", [(("1g.10gb", 7),), (("3g.40gb", 2),), (("3g.40gb", 0), ("1g.10gb", 3)), (("9g.90gb", 0),)]
)
def test_a_layout_that_no_gpu_can_have_is_refused(layout):
    with pytest.raises(LabError):
        gpu_node("n", H100, count=1, layouts={0: layout})


def test_partitions_carry_no_uuid_and_only_the_attributes_of_the_driver():
    made = slices.resource_slices(gpu_node("n", H100, count=1, kind=Kind.PARTITIONABLE))

    devices = [device for one in made for device in one["spec"].get("devices", ())]
    migs = [device for device in devices if device["attributes"]["type"] == {"string": "mig"}]
    assert len(devices) == 26
    assert all(set(device["attributes"]) == ATTRIBUTES_OF_MIG for device in migs)
    assert all(set(device["capacity"]) == CAPACITIES for device in migs)
    assert {device["name"] for device in migs} >= {
        "gpu-0-mig-1g10gb-19-6",
        "gpu-0-mig-1g10gb-me-20-0",
        "gpu-0-mig-3g40gb-9-4",
    }


def test_counters_stand_in_slices_of_their_own_and_every_pool_is_complete():
    made = slices.resource_slices(gpu_node("n", H100, count=9, kind=Kind.PARTITIONABLE))

    assert all(("sharedCounters" in one["spec"]) != ("devices" in one["spec"]) for one in made)
    assert {one["spec"]["pool"]["resourceSliceCount"] for one in made} == {len(made)}
    assert max(len(one["spec"].get("devices", ())) for one in made) <= 64
    assert [len(one["spec"]["sharedCounters"]) for one in made if "sharedCounters" in one["spec"]] == [8, 1]


@pytest.mark.parametrize("product", [H100, "A100-80GB"])
def test_counters_allow_a_set_of_partitions_exactly_when_their_windows_do_not_overlap(product):
    node = gpu_node("n", product, count=1, kind=Kind.PARTITIONABLE)
    shared, *rest = slices.resource_slices(node)
    room = amounts(shared["spec"]["sharedCounters"][0]["counters"])
    parts = [
        device
        for one in rest
        for device in one["spec"]["devices"]
        if device["attributes"].get("profile", {}).get("string", "+me").endswith("+me") is False
    ]

    for first, second in itertools.combinations(parts, 2):
        one, two = (amounts(device["consumesCounters"][0]["counters"]) for device in (first, second))
        fits = all(one.get(name, 0) + two.get(name, 0) <= room[name] for name in one | two)
        windows = [{name for name in part if name.startswith("memory-slice")} for part in (one, two)]
        assert fits is not bool(windows[0] & windows[1]), (first["name"], second["name"])


def amounts(counters: dict[str, dict[str, str]]) -> dict[str, int]:
    return {name: int(counter["value"]) for name, counter in counters.items()}


@pytest.mark.parametrize("product", [H100, "A100-80GB"])
def test_every_maximal_layout_of_the_catalogue_fits_the_counters(product):
    model = catalogue.model(product)
    node = gpu_node("n", product, count=1, kind=Kind.PARTITIONABLE)
    room = amounts(slices.resource_slices(node)[0]["spec"]["sharedCounters"][0]["counters"])
    tried = 0
    for layout in _maximal_layouts():
        taken = dict.fromkeys(room, 0)
        for name, count in layout.items():
            for counter, amount in slices._amounts(model.profiles[name]).items():
                taken[{"copyEngines": "copy-engines"}.get(counter, counter.replace("Engines", "-engines"))] += (
                    amount * count
                )
        assert all(taken[name] <= room[name] for name in room), layout
        tried += 1
    assert tried == 28


def _maximal_layouts() -> list[dict[str, int]]:
    found = catalogue._catalogue()["maximal_layouts"]
    return next(layouts for name, layouts in found.items() if name.startswith("7-slice"))


def test_static_mig_devices_are_published_with_a_uuid_that_changes_with_each_carving():
    node = gpu_node("n", H100, count=2, kind=Kind.STATIC, layouts={0: (("3g.40gb", 4),), 1: ()})

    (made,) = slices.resource_slices(node)
    (device,) = made["spec"]["devices"]  # GPU 1 is in MIG mode without devices: stranded
    (again,) = slices.resource_slices(node.carved({0: (("3g.40gb", 4),)}))[0]["spec"]["devices"]

    assert set(device["attributes"]) == ATTRIBUTES_OF_MIG | {"uuid"}
    assert device["attributes"]["parentUUID"] == again["attributes"]["parentUUID"] == {"string": node.gpus[0].uuid("n")}
    assert device["attributes"]["uuid"] != again["attributes"]["uuid"]


def test_a_dra_node_has_no_resources_of_a_device_plugin():
    for kind in (Kind.PARTITIONABLE, Kind.STATIC, Kind.WHOLE):
        node = gpu_node("n", H100, count=1, kind=kind)
        assert nodes.allocatable(node) == {}
        assert nodes.labels(node) == {"nvidia.com/gpu.present": "true"}


def test_every_node_says_that_it_is_simulated():
    for node in furniture.usual_nodes():
        meta = nodes.as_object(node)["metadata"]
        assert meta["labels"]["lab.tenantry.internal/simulated"] == "true"
        assert meta["annotations"] == {"kwok.x-k8s.io/node": "fake", "lab.tenantry.internal/simulated": "true"}


def test_label_values_are_legal():
    for node in furniture.usual_nodes():
        for name, value in nodes.labels(node).items():
            assert len(value) <= 63, name
            assert "+" not in value + name, name


def test_a_cpu_node_publishes_nothing_of_gpus():
    assert "nvidia" not in json.dumps(nodes.as_object(Node("system-0", kind=Kind.CPU)))
