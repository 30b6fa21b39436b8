"""A node's MIG layout changed through the MIG manager of the lab: made, failed, hung, lost, in use, two at once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import Done, DriverRejected, Handle, LayoutChange, NotSupported, Presence, TransientDriverError
from provisioners.kubernetes import gpu, layout
from provisioners.kubernetes.layout import Layouts, Timing
from tests.kubernetes.gpu_ground import Tenancy, driver_of, seen_of, until
from tests.kubernetes.gpu_objects import unit

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]

SCRIPT = "lab.tenantry.internal/mig-script"
SEVEN = tuple((start, 1, "1g.10gb") for start in range(7))
HALVES = ((0, 4, "3g.40gb"), (4, 4, "3g.40gb"))
CONFIG_LABEL = "nvidia.com/mig.config"


@pytest.fixture(scope="module")
def driver(kube_cluster: Any) -> Iterator[Any]:
    """The driver, and a GPU operator whose policy names our layouts."""
    made = driver_of(kube_cluster)
    with kube_cluster.api() as api:
        if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "clusterpolicies.nvidia.com") is None:
            api.create(POLICY_DEFINITION)

        def policy() -> Any:
            made.cluster.forget_discovery()
            return made.cluster.apply(POLICY)

        until(lambda: quietly(policy))
    yield made
    with kube_cluster.api() as api:  # else the managers of every node on this cluster would read our layouts
        api.delete("nvidia.com/v1", "ClusterPolicy", POLICY["metadata"]["name"])
    made.close()


def quietly(act: Any) -> Any:
    try:
        return act()
    except (NotSupported, TransientDriverError):
        return None


POLICY_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "clusterpolicies.nvidia.com"},
    "spec": {
        "group": "nvidia.com",
        "names": {"kind": "ClusterPolicy", "plural": "clusterpolicies", "singular": "clusterpolicy"},
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
POLICY = {
    "apiVersion": "nvidia.com/v1",
    "kind": "ClusterPolicy",
    "metadata": {"name": "cluster-policy"},
    "spec": {"mig": {"strategy": "mixed"}, "migManager": {"enabled": True, "config": {"name": layout.CONFIG_MAP}}},
}


class Managed:
    """One node of two GPUs: the first in seven, the second whole."""

    def __init__(self, api: Any, folder: Any, driver: Any) -> None:
        from controlplane.labs.kubernetes import devices, nodes

        self.api, self.driver = api, driver
        self.name = f"mig-{uuid4().hex[:6]}"
        cut = {0: tuple((name, start) for start, _, name in SEVEN)}
        made = nodes.gpu_node(self.name, "H100-80GB", count=2, layouts=cut)
        devices.write_truth(folder, [made])
        nodes.install(api, made)
        until(lambda: self.condition() == "True")

    @property
    def first(self) -> str:
        return f"{self.name}-gpu-0"

    @property
    def second(self) -> str:
        return f"{self.name}-gpu-1"

    def condition(self) -> str:
        found = self.raw()["status"].get("conditions") or ()
        return next((one["status"] for one in found if one["type"] == "Ready"), "")

    def raw(self) -> Any:
        return self.api.get("v1", "Node", self.name)

    def cordoned(self) -> bool:
        return bool(self.raw()["spec"].get("unschedulable"))

    def offers(self) -> dict[str, int]:
        found = self.raw()["status"]["allocatable"]
        return {
            name.removeprefix("nvidia.com/"): int(count)
            for name, count in found.items()
            if name.startswith("nvidia.com/") and int(count)
        }

    def script(self, word: str) -> None:
        self.api.patch("v1", "Node", self.name, {"metadata": {"annotations": {SCRIPT: word or None}}})

    def change(self, first: Any = HALVES, second: Any = (), *, evict: bool = False) -> LayoutChange:
        return LayoutChange(self.name, self.first, first, beside=((self.second, second),), evict=evict)


@pytest.fixture
def managed(kube_api: Any, kube_cluster: Any, driver: Any) -> Iterator[Managed]:
    made = Managed(kube_api, kube_cluster.folder, driver)
    yield made
    kube_api.delete("v1", "Node", made.name)


@pytest.fixture
def tenancy(kube_api: Any) -> Iterator[Tenancy]:
    made = Tenancy(kube_api)
    yield made
    made.end()


def finished(driver: Any, handle: Handle | Done, *, within_s: float = 110.0) -> Any:
    """Poll a change to its end; whoever is told to look again looks again."""
    assert isinstance(handle, Handle)

    def look() -> Any:
        answer = quietly(lambda: driver.poll(handle))
        return answer if answer is not None and answer.state != "running" else None

    return until(look, within_s=within_s)


def begun(driver: Any, change: LayoutChange) -> Handle:
    handle = driver.start(driver.layout_steps(change)[0])
    assert isinstance(handle, Handle)
    return handle


def test_a_layout_is_made_compared_and_the_node_takes_pods_again(driver: Any, managed: Managed) -> None:
    steps = driver.layout_steps(managed.change())
    handle = driver.start(steps[0])

    assert managed.cordoned()
    assert driver.observe(steps[0].ref).part("layout.apply").presence is Presence.CHANGING
    assert driver.observe(steps[0].ref).part("layout.apply").handle == handle.value
    host = next(host for host in driver.snapshot().hosts if host.host == managed.name)
    assert host.in_maintenance
    answer = finished(driver, handle)
    assert (answer.state, answer.error) == ("done", None)

    assert managed.offers() == {"gpu": 1, "mig-3g.40gb": 2}
    assert not managed.cordoned()
    for step in steps:
        part = driver.observe(step.ref).part("layout.apply")
        assert (part.presence, part.have) == (Presence.PRESENT, step.want)
        assert driver.start(step) == Done()
    assert driver.poll(handle).state == "done"
    gpus = next(host for host in driver.snapshot().hosts if host.host == managed.name).gpus
    assert [sorted(name for _, _, name in one.windows) for one in gpus] == [["3g.40gb", "3g.40gb"], []]


def test_what_is_known_gpu_by_gpu_lets_one_be_changed_alone(driver: Any, managed: Managed) -> None:
    with pytest.raises(NotSupported, match="change all in one go"):
        driver.start(driver.layout_steps(LayoutChange(managed.name, managed.second, HALVES))[0])
    answer = finished(driver, begun(driver, managed.change(HALVES, SEVEN)))
    assert (answer.state, answer.error) == ("done", None)

    only = LayoutChange(managed.name, managed.second, ((0, 8, "7g.80gb"),))
    answer = finished(driver, begun(driver, only))
    assert (answer.state, answer.error) == ("done", None)

    assert managed.offers() == {"mig-3g.40gb": 2, "mig-7g.80gb": 1}


def test_a_change_that_fails_is_rolled_back_and_said(driver: Any, managed: Managed) -> None:
    managed.script("fail")
    handle = begun(driver, managed.change())
    until(
        lambda: (
            quietly(lambda: driver.poll(handle))
            and "-back" in managed.raw()["metadata"]["labels"].get(CONFIG_LABEL, "")
        )
    )
    managed.script("")

    answer = finished(driver, handle)

    assert answer.state == "failed"
    assert "the MIG manager failed" in answer.error.detail
    assert "It has its old layout." in answer.error.detail
    assert managed.offers() == {"gpu": 1, "mig-1g.10gb": 7}
    assert not managed.cordoned()
    assert driver.poll(handle).error.detail == answer.error.detail


def test_a_manager_that_stays_pending_is_given_up_and_the_old_layout_named_again(driver: Any, managed: Managed) -> None:
    managed.script("hang")
    short = Layouts(driver.cluster, now=lambda: datetime.now(UTC), timing=Timing(8, 20, 6, 30, 40))
    handle = short.start(driver.layout_steps(managed.change())[0])
    assert isinstance(handle, Handle)
    until(
        lambda: (
            quietly(lambda: short.poll(handle)) and "-back" in managed.raw()["metadata"]["labels"].get(CONFIG_LABEL, "")
        )
    )
    managed.script("")

    answer = finished(short, handle)

    assert answer.state == "failed"
    assert "still says pending" in answer.error.detail
    assert managed.offers() == {"gpu": 1, "mig-1g.10gb": 7}
    assert not managed.cordoned()


def test_a_node_that_is_lost_half_way_stays_cordoned_and_is_a_contradiction(driver: Any, managed: Managed) -> None:
    managed.script("lose")
    short = Layouts(driver.cluster, now=lambda: datetime.now(UTC), timing=Timing(8, 20, 6, 6, 6))
    handle = short.start(driver.layout_steps(managed.change())[0])

    answer = finished(short, handle)

    assert answer.state == "failed"
    assert "It stays cordoned." in answer.error.detail
    assert managed.cordoned()
    host = next(host for host in driver.snapshot().hosts if host.host == managed.name)
    assert any("stays cordoned" in text for text in host.contradictions)
    assert host.in_maintenance
    part = driver.observe(driver.layout_steps(managed.change())[0].ref).part("layout.apply")
    assert part.presence is Presence.FAILED


def test_a_gpu_in_use_is_not_carved_and_nobody_is_touched(driver: Any, managed: Managed, tenancy: Tenancy) -> None:
    uid = uuid4()
    node = seen_of(driver).nodes[managed.name]
    tenancy.pod("p", gpu.request(unit(managed.name), node, name="u", namespace=tenancy.name), uid)
    tenancy.bound("p")

    with pytest.raises(TransientDriverError, match="is in use by"):
        driver.start(driver.layout_steps(managed.change())[0])

    assert not managed.cordoned()
    assert managed.offers() == {"gpu": 1, "mig-1g.10gb": 7}


def test_who_was_told_is_evicted_first(driver: Any, managed: Managed, tenancy: Tenancy) -> None:
    node = seen_of(driver).nodes[managed.name]
    tenancy.pod("p", gpu.request(unit(managed.name), node, name="u", namespace=tenancy.name), uuid4())
    tenancy.bound("p")

    answer = finished(driver, begun(driver, managed.change(evict=True)))

    assert (answer.state, answer.error) == ("done", None)
    assert tenancy.api.get("v1", "Pod", "p", tenancy.name) is None
    assert managed.offers() == {"gpu": 1, "mig-3g.40gb": 2}


def test_a_pod_that_its_budget_keeps_ends_the_change_with_its_name(
    driver: Any, managed: Managed, tenancy: Tenancy
) -> None:
    node = seen_of(driver).nodes[managed.name]
    tenancy.pod("p", gpu.request(unit(managed.name), node, name="u", namespace=tenancy.name))
    # A pod that does not run yet may always be evicted, and a budget that was not counted yet keeps nothing.
    until(lambda: tenancy.bound("p")["status"].get("phase") == "Running")
    tenancy.api.create(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "keep", "namespace": tenancy.name},
            "spec": {"maxUnavailable": 0, "selector": {}},
        }
    )
    until(lambda: tenancy.api.get("policy/v1", "PodDisruptionBudget", "keep", tenancy.name).get("status"))
    short = Layouts(driver.cluster, now=lambda: datetime.now(UTC), timing=Timing(2, 5, 10, 10, 10))
    handle = short.start(driver.layout_steps(managed.change(evict=True))[0])

    answer = finished(short, handle)

    assert answer.state == "failed"
    assert f"{tenancy.name}/p did not leave it in time" in answer.error.detail
    assert tenancy.api.get("v1", "Pod", "p", tenancy.name) is not None
    assert not managed.cordoned()
    assert CONFIG_LABEL not in managed.raw()["metadata"]["labels"]


def test_of_two_plans_at_once_one_waits(driver: Any, managed: Managed) -> None:
    handle = begun(driver, managed.change())

    with pytest.raises(TransientDriverError, match="another layout change"):
        driver.start(driver.layout_steps(managed.change(SEVEN, SEVEN))[0])
    assert driver.start(driver.layout_steps(managed.change())[1]) == handle
    answer = finished(driver, handle)
    assert (answer.state, answer.error) == ("done", None)


def test_what_cannot_be_is_refused_before_anything_is_touched(driver: Any, managed: Managed) -> None:
    overlapping = LayoutChange(managed.name, managed.first, ((0, 4, "4g.40gb"), (2, 2, "2g.20gb")))

    with pytest.raises(DriverRejected):
        driver.start(driver.layout_steps(overlapping)[0])
    with pytest.raises(DriverRejected):
        driver.start(driver.layout_steps(LayoutChange(managed.name, "nothing", HALVES))[0])
    with pytest.raises(NotSupported):
        driver.start(driver.layout_steps(LayoutChange("l40s-none", "l40s-none-gpu-0", HALVES))[0])
    with pytest.raises(DriverRejected):
        driver.start(driver.layout_steps(LayoutChange("nowhere", "x", HALVES))[0])

    assert not managed.cordoned()


def test_a_cordon_of_others_stays(driver: Any, managed: Managed) -> None:
    managed.api.patch("v1", "Node", managed.name, {"spec": {"unschedulable": True}})

    answer = finished(driver, begun(driver, managed.change()))
    assert (answer.state, answer.error) == ("done", None)

    assert managed.cordoned()
