"""GPUs that are handed to people on a real kube-apiserver: with a claim on the very device, or a whole node, or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from controlplane.labs.kubernetes import nodes, slices
from controlplane.labs.kubernetes.nodes import Kind
from provisioners.driver import Binding, DriverRejected, UnitSpec
from provisioners.kubernetes import admission
from provisioners.kubernetes.objects import Object
from tests.kubernetes.ground import Ground, eventually, pod

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def machines(kube_cluster: Cluster) -> Iterator[dict[str, nodes.Node]]:
    """Nodes of this module: two by device plugin, one by DRA."""
    tail = uuid4().hex[:6]
    made = {
        "whole": nodes.gpu_node(f"k-whole-{tail}", "L40S-48GB", count=2, strategy=nodes.Strategy.NONE),
        "shared": nodes.gpu_node(f"k-shared-{tail}", "L40S-48GB", count=2, strategy=nodes.Strategy.NONE),
        "dra": nodes.gpu_node(f"k-dra-{tail}", "H100-80GB", count=2, kind=Kind.WHOLE),
    }
    with kube_cluster.api() as api:
        for node in made.values():
            nodes.install(api, node)
            slices.publish(api, node)
        for one in slices.device_classes():
            api.apply(one)
        yield made
        for node in made.values():
            api.delete("v1", "Node", node.name)


def unit(node: nodes.Node, index: int, binding: Binding, devices: tuple[str, ...] = ()) -> UnitSpec:
    return UnitSpec(
        uid=uuid4(), index=index, host=node.name, product=node.product, profile="", gpu_count=1, binding=binding,
        devices=devices, starts=(0,) * len(devices), vcpu=2, memory_gib=8,
    )  # fmt: skip


def handed_out(ground: Ground, *units: UnitSpec) -> str:
    spec = ground.mine.handed_out(units=units)
    for step in ground.driver.steps(spec):
        ground.driver.start(step)
    config = ground.admin.get("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace)
    assert config is not None
    return str(config["data"].get(f"free.{spec.ref.uid}", ""))


@pytest.fixture(autouse=True)
def put_back(ground: Ground) -> Iterator[None]:
    yield
    assert handed_out(ground) == ""


def test_a_node_of_the_device_plugin_is_handed_out_whole_or_not_at_all(
    ground: Ground, machines: dict[str, nodes.Node]
) -> None:
    whole, shared = machines["whole"], machines["shared"]

    given = handed_out(ground, *(unit(whole, n, Binding.HOST) for n in range(2)), unit(shared, 2, Binding.HOST))

    assert given == f"{whole.name}|{GPU}|"


def test_people_use_the_claim_on_their_very_device_and_no_other(
    ground: Ground, machines: dict[str, nodes.Node]
) -> None:
    node = machines["dra"]
    devices = [
        device["attributes"]["uuid"]["string"]
        for one in slices.resource_slices(node)
        for device in one["spec"].get("devices", [])
    ]
    mine = unit(node, 0, Binding.DEVICE, (devices[1],))

    given = handed_out(ground, mine)

    host, resources, claim = given.split("|")
    made = ground.admin.get("resource.k8s.io/v1", "ResourceClaim", claim, ground.mine.namespace)
    assert (host, resources) == (node.name, "")
    assert made is not None
    assert devices[1] in str(made["spec"])

    member = ground.acting("member")

    def taken(name: str) -> Object | None:
        wanted: dict[str, Any] = {"resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}
        try:
            return member.apply(pod(ground.mine.namespace, **wanted), dry_run=True)
        except DriverRejected:
            return None

    found = eventually(lambda: taken(claim), what="admission hears of it")
    assert found["spec"]["nodeSelector"] == {"kubernetes.io/hostname": node.name}
    assert taken("somebody-elses") is None


def test_what_is_taken_back_leaves_no_claim_and_no_way_in(ground: Ground, machines: dict[str, nodes.Node]) -> None:
    handed_out(ground, *(unit(machines["whole"], n, Binding.HOST) for n in range(2)))
    spec = ground.mine.handed_out()

    ground.driver.start(ground.driver.steps(spec)[0].undoing())

    config = ground.admin.get("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace)
    assert config is not None
    assert [key for key in config["data"] if key.startswith("free.")] == []
    assert not ground.driver.observe(spec.ref).exists
