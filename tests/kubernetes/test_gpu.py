"""What a unit's pod asks a node for, what is refused, and what pods and claims are read to have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioners.driver import Binding, DriverRejected, NoCapacity, UnitSpec
from provisioners.kubernetes import gpu, nodes, slices
from provisioners.kubernetes.nodes import Node
from provisioners.kubernetes.slices import Pools
from tests.kubernetes.gpu_objects import (
    BOUNDARY,
    UNIT,
    bare_node,
    claim,
    every_partition,
    gpu_uuid,
    mig,
    node,
    pod,
    resource_slice,
    unit,
    whole,
)

NO_POOLS = slices.read([])


def dra(*devices: dict[str, Any]) -> tuple[Node, Pools]:
    pools = slices.read([resource_slice("n1", list(devices))])
    return nodes.read(bare_node(), pools.on("n1")), pools


def asked(one: UnitSpec, at: Node, occupied: gpu.Occupied | None = None) -> gpu.Request:
    return gpu.request(one, at, name="ep-0", namespace=BOUNDARY.name, occupied=occupied)


def expressions(request: gpu.Request) -> list[str]:
    (made,) = request.claims
    return [one["exactly"]["selectors"][0]["cel"]["expression"] for one in made["spec"]["devices"]["requests"]]


PARENT = gpu_uuid("n1", 1)


def test_with_the_device_plugin_the_profile_s_resource_is_asked_for_on_that_node() -> None:
    found = asked(unit(), nodes.read(node(offers={"nvidia.com/mig-1g.10gb": 7}, gpus=1)))

    assert found.resources == {"nvidia.com/mig-1g.10gb": "1"}
    assert found.node_selector == {"kubernetes.io/hostname": "n1"}
    assert (found.claims, found.pod_claims, found.container_claims) == ((), (), ())
    assert found.tolerations[0]["key"] == "nvidia.com/gpu"


def test_with_strategy_single_the_slice_is_called_a_gpu() -> None:
    raw = node(product="NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", gpus=7, strategy="single", offers={"nvidia.com/gpu": 7})

    assert asked(unit(), nodes.read(raw)).resources == {"nvidia.com/gpu": "1"}
    with pytest.raises(NoCapacity):
        asked(unit(profile="", count=1), nodes.read(raw))


def test_whole_gpus_are_asked_for_by_number() -> None:
    found = asked(unit(profile="", count=2), nodes.read(node(strategy="none", gpus=4)))

    assert found.resources == {"nvidia.com/gpu": "2"}


def test_a_published_device_is_asked_for_by_uuid() -> None:
    at, _ = dra(mig("n1", 1, "1g.10gb", 2, uuid="MIG-b"), mig("n1", 1, "1g.10gb", 3, uuid="MIG-c"))
    one = unit(binding=Binding.DEVICE, devices=(PARENT,), starts=(3,))

    found = asked(one, at)

    assert expressions(found) == [
        (
            "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'mig' && "
            "device.attributes['gpu.nvidia.com'].uuid == 'MIG-c'"
        )
    ]
    (made,) = found.claims
    assert made["metadata"]["namespace"] == BOUNDARY.name
    assert made["metadata"]["labels"] == {"tenantry.internal/unit": str(UNIT)}
    assert found.pod_claims == ({"name": "gpu", "resourceClaimName": made["metadata"]["name"]},)
    assert found.resources == {}


def test_a_gpu_that_is_carved_on_demand_is_asked_for_by_parent_and_profile() -> None:
    at, _ = dra(*every_partition("n1", 0), *every_partition("n1", 1))

    (expression,) = expressions(asked(unit(binding=Binding.GPU, profile="2g.20gb", devices=(PARENT,)), at))

    assert f".parentUUID == '{PARENT}'" in expression
    assert ".profile == '2g.20gb'" in expression


def test_each_of_several_gpus_is_a_request_of_one_claim() -> None:
    at, _ = dra(whole("n1", 0), whole("n1", 1))
    one = unit(binding=Binding.DEVICE, profile="", count=2, devices=(PARENT, gpu_uuid("n1", 0)), starts=(0, 0))

    found = asked(one, at)

    (made,) = found.claims
    assert [request["name"] for request in made["spec"]["devices"]["requests"]] == ["gpu-0", "gpu-1"]
    assert [PARENT in text for text in expressions(found)] == [True, False]


def test_another_placement_is_another_claim_and_the_same_one_is_the_same() -> None:
    at, _ = dra(*every_partition("n1", 0), *every_partition("n1", 1))
    one = unit(binding=Binding.GPU, devices=(PARENT,))
    moved = replace(one, devices=(gpu_uuid("n1", 0),))
    guessed = replace(one, starts=(5,))

    names = [asked(each, at).claims[0]["metadata"]["name"] for each in (one, moved, guessed)]

    assert names[0] == names[2] != names[1]


HALF = unit(binding=Binding.DEVICE, profile="3g.40gb", devices=(PARENT,), starts=(4,))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(HALF, starts=(2,)),
        replace(HALF, profile="9g.99gb"),
        replace(HALF, product="A100-80GB"),
        replace(HALF, devices=("GPU-elsewhere",)),
        replace(HALF, devices=()),
        replace(HALF, binding=Binding.HOST),
        replace(HALF, host="n2"),
    ],
    ids=["start", "profile", "product", "device", "no device", "binding", "node"],
)
def test_what_can_never_be_is_rejected(wrong: UnitSpec) -> None:
    at, _ = dra(mig("n1", 1, "3g.40gb", 4, uuid="MIG-a"))

    with pytest.raises(DriverRejected):
        asked(wrong, at)


def test_what_is_not_carved_there_now_has_no_capacity() -> None:
    at, _ = dra(mig("n1", 1, "3g.40gb", 4, uuid="MIG-a"))

    with pytest.raises(NoCapacity, match=r"no MIG device 3g\.40gb at 0"):
        asked(replace(HALF, starts=(0,)), at)
    with pytest.raises(NoCapacity, match="not offered whole"):
        asked(unit(binding=Binding.DEVICE, profile="", count=1, devices=(PARENT,), starts=(0,)), at)
    with pytest.raises(NoCapacity, match=r"offers 0 of 2g\.20gb"):
        asked(unit(profile="2g.20gb"), nodes.read(node(offers={"nvidia.com/mig-1g.10gb": 7}, gpus=1)))


def test_what_others_have_has_no_capacity_and_ones_own_is_no_obstacle() -> None:
    at, pools = dra(mig("n1", 1, "3g.40gb", 4, uuid="MIG-a"))
    taken = claim("c", devices=["gpu-1-mig-3g40gb-9-4"])
    claims = {(BOUNDARY.name, "c"): taken}

    with pytest.raises(NoCapacity, match="in use"):
        asked(HALF, at, gpu.occupied(at, (), claims, pools))
    asked(HALF, at, gpu.occupied(at, (), claims, pools, but=UNIT))


def test_partitions_that_overlap_what_is_given_do_not_count_as_room() -> None:
    at, pools = dra(*every_partition("n1", 1))
    claims = {("x", "c"): claim("c", namespace="x", ours=False, devices=["gpu-1-mig-3g40gb-9-4"])}
    one = unit(binding=Binding.GPU, profile="3g.40gb", devices=(PARENT,))
    used = gpu.occupied(at, (), claims, pools)

    asked(one, at, used)
    with pytest.raises(NoCapacity):
        asked(replace(one, profile="7g.80gb"), at, used)
    with pytest.raises(NoCapacity):
        asked(replace(one, profile="", gpu_count=1), at, used)


def test_a_tainted_device_has_no_capacity() -> None:
    device = mig("n1", 1, "3g.40gb", 4, uuid="MIG-a") | {"taints": [{"key": "xid", "effect": "NoSchedule"}]}
    at, _ = dra(device)

    with pytest.raises(NoCapacity, match="tainted"):
        asked(HALF, at)


def test_text_that_is_no_id_never_reaches_an_expression() -> None:
    at, _ = dra(mig("n1", 1, "3g.40gb", 4, uuid="MIG-a' || true || '"))

    with pytest.raises(DriverRejected, match="no id of a device"):
        asked(HALF, at)


def test_a_unit_without_a_gpu_is_only_pinned() -> None:
    assert asked(replace(unit(), product="", profile=""), nodes.read(node())) == gpu.Request(
        {"kubernetes.io/hostname": "n1"}
    )


# --- reading back ---------------------------------------------------------------------------------


def test_what_a_claim_was_given_is_the_very_device() -> None:
    at, pools = dra(*every_partition("n1", 0), *every_partition("n1", 1))
    claims = {(BOUNDARY.name, "c"): claim("c", devices=["gpu-1-mig-2g20gb-14-2"], pods=["p"])}

    (found,) = gpu.observed(UNIT, pod("p", claims=["c"]), at, claims, pools, backend="http://b/v1")

    assert (found.host, found.device, found.start, found.profile, found.exact, found.backend) == (
        "n1", PARENT, 2, "2g.20gb", True, "http://b/v1",
    )  # fmt: skip


def test_a_device_that_is_not_published_any_more_is_read_from_its_name() -> None:
    at, _ = dra(whole("n1", 0), mig("n1", 1, "3g.40gb", 4, uuid="MIG-a"))
    claims = {(BOUNDARY.name, "c"): claim("c", devices=["gpu-1-mig-1g10gb-19-6"], pods=["p"])}

    (found,) = gpu.observed(UNIT, pod("p", claims=["c"]), at, claims, NO_POOLS)

    assert (found.device, found.start, found.profile) == (PARENT, 6, "1g.10gb")


def test_the_kubelet_s_choice_is_unknown_unless_it_reports_it_or_there_is_one_gpu() -> None:
    two = nodes.read(node(offers={"nvidia.com/mig-1g.10gb": 14}))
    alone = nodes.read(node(offers={"nvidia.com/mig-1g.10gb": 7}, gpus=1))
    resources = {"nvidia.com/mig-1g.10gb": "1"}
    told = [{"name": "nvidia.com/mig-1g.10gb", "resources": [{"resourceID": "gpu-1-mig-1g10gb-19-4"}]}]
    bare = [{"name": "nvidia.com/mig-1g.10gb", "resources": [{"resourceID": "MIG-0f1e2d"}]}]

    def read(at: Node, report: list[Any] | None) -> tuple[str, int | None, bool]:
        status = {"containerStatuses": [{"name": "vllm", "allocatedResourcesStatus": report}]} if report else {}
        (found,) = gpu.observed(UNIT, pod("p", resources=resources, status=status), at, {}, NO_POOLS)
        return found.device, found.start, found.exact

    assert read(two, None) == ("", None, False)
    assert read(two, told) == ("n1-gpu-1", 4, True)
    assert read(two, bare) == ("", None, False)
    assert read(alone, None) == ("n1-gpu-0", None, False)


def test_what_the_kubelet_reports_is_read_as_its_device_plugin_calls_it() -> None:
    told = [
        {"name": "nvidia.com/mig-1g.10gb", "resources": [{"resourceID": "MIG-0f1e2d", "health": "Healthy"}]},
        {"name": "claim:gpus/one", "resources": [{"resourceID": "gpu.nvidia.com/n1/gpu-0"}]},
    ]
    status = {"containerStatuses": [{"name": "vllm", "allocatedResourcesStatus": told}, {"name": "other"}]}

    assert gpu.reported(pod("p", status=status)) == {"nvidia.com/mig-1g.10gb": ("MIG-0f1e2d",)}
    assert gpu.reported(pod("p")) == {}


def test_a_pod_without_node_or_that_has_ended_has_nothing() -> None:
    at = nodes.read(node())

    assert gpu.observed(UNIT, None, None, {}, NO_POOLS) == ()
    assert gpu.observed(UNIT, pod("p", on=""), at, {}, NO_POOLS) == ()
    assert gpu.observed(UNIT, pod("p", phase="Failed", resources={"nvidia.com/gpu": "1"}), at, {}, NO_POOLS) == ()


def test_an_extended_resource_that_dra_serves_is_counted_once() -> None:
    at, pools = dra(whole("n1", 0))
    status = {"extendedResourceClaimStatus": {"resourceClaimName": "made", "requestMappings": []}}
    one = pod("p", resources={"nvidia.com/gpu": "1"}, status=status)
    claims = {(BOUNDARY.name, "made"): claim("made", devices=["gpu-0"], pods=["p"], ours=False)}

    found = gpu.taken_by(one, at, claims, pools)

    assert [(taken.device, taken.start, taken.exact) for taken in found] == [(gpu_uuid("n1", 0), 0, True)]


def test_a_pod_s_room_counts_containers_sidecars_and_init_containers_as_the_scheduler_does() -> None:
    one = pod("p", resources={"nvidia.com/gpu": "1"})
    one["spec"]["initContainers"] = [
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
        {"name": "first", "resources": {"requests": {"cpu": "6", "nvidia.com/gpu": "2"}}},
    ]
    one["spec"]["overhead"] = {"cpu": "250m"}

    found = gpu.pod_resources(one)

    assert str(found["cpu"]) == "6.750"
    assert gpu.gpu_resources(one) == {"nvidia.com/gpu": 2}
