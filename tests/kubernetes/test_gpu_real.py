"""GPUs asked for on a real API server are given by the real scheduler: the very device or GPU that the ledger names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import Binding, NoCapacity, ObservedProvider
from provisioners.kubernetes import gpu
from tests.kubernetes.gpu_ground import Tenancy, driver_of, seen_of, until
from tests.kubernetes.gpu_objects import unit

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]


@pytest.fixture(scope="module")
def driver(kube_cluster: Any) -> Iterator[Any]:
    made = driver_of(kube_cluster)
    yield made
    made.close()


@pytest.fixture
def tenancy(kube_api: Any) -> Iterator[Tenancy]:
    made = Tenancy(kube_api)
    yield made
    made.end()


@pytest.fixture
def own(kube_api: Any) -> Iterator[Any]:
    """Make nodes of one's own, taken away after the test."""
    from controlplane.labs.kubernetes import nodes, slices

    made: list[Any] = []

    def install(
        product: str = "H100-80GB", *, count: int = 2, kind: Any = nodes.Kind.PARTITIONABLE, **more: Any
    ) -> str:
        node = nodes.gpu_node(f"t-{uuid4().hex[:8]}", product, count=count, kind=kind, **more)
        nodes.install(kube_api, node)
        slices.publish(kube_api, node)
        made.append(node)
        return str(node.name)

    yield install
    for node in made:
        for one in kube_api.list("resource.k8s.io/v1", "ResourceSlice"):
            if one["spec"].get("nodeName") == node.name:
                kube_api.delete("resource.k8s.io/v1", "ResourceSlice", one["metadata"]["name"])
        kube_api.delete("v1", "Node", node.name)


def ready(driver: Any, name: str) -> bool:
    node = driver.cluster.get("v1", "Node", name)
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))


def known(driver: Any, name: str) -> tuple[Any, Any]:
    seen = seen_of(driver)
    return seen.nodes[name], seen


def uses_of(shown: ObservedProvider, host: str) -> list[tuple[str, int | None, str, UUID | None]]:
    found = [use for use in shown.uses if use.host == host and use.size]
    return sorted((use.device, use.start, use.profile, use.unit) for use in found)


def test_with_partitions_the_gpu_is_the_one_named_and_the_start_is_read_back(
    driver: Any, tenancy: Tenancy, own: Any
) -> None:
    name = own()
    until(lambda: ready(driver, name))
    node, seen = known(driver, name)
    second = node.gpus[1].id
    ids = [uuid4(), uuid4()]

    for number, uid in enumerate(ids):
        one = replace(unit(name, binding=Binding.GPU, profile="3g.40gb", devices=(second,)), uid=uid)
        asked = gpu.request(one, node, name=f"u{number}", namespace=tenancy.name)
        tenancy.pod(f"p{number}", asked, uid)
        tenancy.bound(f"p{number}")

    node, seen = known(driver, name)
    pods = {pod["metadata"]["name"]: pod for pod in seen.pods[name]}
    given = [gpu.observed(uid, pods[f"p{n}"], node, seen.claims, seen.pools) for n, uid in enumerate(ids)]
    assert [len(one) for one in given] == [1, 1]
    assert {one[0].device for one in given} == {second}
    assert {one[0].start for one in given} == {0, 4}
    assert all(one[0].exact and one[0].profile == "3g.40gb" for one in given)
    shown = driver.snapshot()
    assert uses_of(shown, name) == sorted(
        (second, one[0].start, "3g.40gb", uid) for one, uid in zip(given, ids, strict=True)
    )
    gpus = next(host.gpus for host in shown.hosts if host.host == name)
    assert [(one.mode, one.layout_change) for one in gpus] == [("empty", "dynamic"), ("mig", "dynamic")]
    full = unit(name, binding=Binding.GPU, profile="1g.10gb", devices=(second,))
    with pytest.raises(NoCapacity, match=r"no 1g\.10gb left"):
        gpu.request(
            full, node, name="x", namespace="y", occupied=gpu.occupied(node, seen.pods[name], seen.claims, seen.pools)
        )


def test_where_devices_are_published_it_is_the_very_device(driver: Any, tenancy: Tenancy, own: Any) -> None:
    from controlplane.labs.kubernetes.nodes import Kind

    name = own(kind=Kind.STATIC, layouts={0: tuple(("1g.10gb", start) for start in range(7))})
    until(lambda: ready(driver, name))
    node, _ = known(driver, name)
    uid = uuid4()
    one = replace(unit(name, binding=Binding.DEVICE, devices=(node.gpus[0].id,), starts=(5,)), uid=uid)

    tenancy.pod("p", gpu.request(one, node, name="u", namespace=tenancy.name), uid)
    tenancy.bound("p")

    assert uses_of(driver.snapshot(), name) == [(node.gpus[0].id, 5, "1g.10gb", uid)]
    other = replace(one, starts=(5,), uid=uuid4())
    node, seen = known(driver, name)
    used = gpu.occupied(node, seen.pods[name], seen.claims, seen.pools)
    with pytest.raises(NoCapacity, match="in use"):
        gpu.request(other, node, name="v", namespace=tenancy.name, occupied=used)


def test_two_whole_gpus_are_the_two_that_are_named(driver: Any, tenancy: Tenancy, own: Any) -> None:
    from controlplane.labs.kubernetes.nodes import Kind

    name = own(kind=Kind.WHOLE, count=4)
    until(lambda: ready(driver, name))
    node, _ = known(driver, name)
    wanted = (node.gpus[3].id, node.gpus[1].id)
    one = unit(name, binding=Binding.DEVICE, profile="", devices=wanted, starts=(0, 0), count=2)

    tenancy.pod("p", gpu.request(one, node, name="u", namespace=tenancy.name), one.uid)
    tenancy.bound("p")

    assert uses_of(driver.snapshot(), name) == sorted((device, 0, "", one.uid) for device in wanted)


def test_with_the_device_plugin_counts_are_equal_and_the_device_stays_unknown(
    driver: Any, tenancy: Tenancy, kube_namespace: str, own: Any
) -> None:
    from controlplane.labs.kubernetes.nodes import Kind

    name = own(kind=Kind.DEVICE_PLUGIN, layouts={0: (("3g.40gb", 0), ("3g.40gb", 4))})
    until(lambda: ready(driver, name))
    node, _ = known(driver, name)
    one = unit(name, profile="3g.40gb")
    asked = gpu.request(one, node, name="u", namespace=tenancy.name)

    tenancy.pod("ours", asked, one.uid)
    tenancy.pod("theirs", asked, namespace=kube_namespace)
    tenancy.bound("ours")
    tenancy.bound("theirs", kube_namespace)

    shown = driver.snapshot()
    uses = [use for use in shown.uses if use.host == name and use.size]
    assert sorted((use.unit is None, use.device, use.start, use.size, use.profile) for use in uses) == [
        (False, "", None, 4, "3g.40gb"),
        (True, "", None, 4, "3g.40gb"),
    ]
    node, seen = known(driver, name)
    with pytest.raises(NoCapacity, match="0 of 2"):
        gpu.request(
            one,
            node,
            name="v",
            namespace=tenancy.name,
            occupied=gpu.occupied(node, seen.pods[name], seen.claims, seen.pools),
        )


def test_a_forged_mark_outside_our_namespaces_is_foreign_use(
    driver: Any, tenancy: Tenancy, kube_namespace: str, own: Any
) -> None:
    name = own()
    until(lambda: ready(driver, name))
    node, _ = known(driver, name)
    one = unit(name, binding=Binding.GPU, profile="1g.10gb", devices=(node.gpus[0].id,))

    tenancy.pod("p", gpu.request(one, node, name="u", namespace=kube_namespace), one.uid, namespace=kube_namespace)
    tenancy.bound("p", kube_namespace)

    (use,) = [use for use in driver.snapshot().uses if use.host == name and use.size]
    assert (use.ref, use.unit, use.name) == (None, None, f"{kube_namespace}/p")


def test_the_number_of_lists_does_not_grow(driver: Any, tenancy: Tenancy, own: Any) -> None:
    driver.snapshot()
    before = driver.cluster.reads
    driver.snapshot()
    few = driver.cluster.reads - before

    for _ in range(3):
        own()
    before = driver.cluster.reads
    driver.snapshot()

    assert driver.cluster.reads - before == few
