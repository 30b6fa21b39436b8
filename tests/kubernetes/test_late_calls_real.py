"""Calls of ours that reach a real API server when what they are for has long been deleted: nothing of them stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from controlplane.labs.kubernetes.faults import Fault, FaultProxy, What
from controlplane.labs.kubernetes.nodes import Kind, gpu_node
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import name_of
from tenants.models import Boundary, Endpoint, Finding
from tests.conformance.kubernetes_rig import settings_for
from tests.kubernetes.worlds import World, connected, fresh_name, worlds_cluster

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.slow, pytest.mark.timeout(400),
    pytest.mark.usefixtures("db"),
]  # fmt: skip

PRODUCT = "H100-80GB"
PROFILE = "1g.10gb"
REALLY = "(?!.*dryRun)"
"""In an expression of a path with its query: not a dry run."""
LOOKS = 6
"""Snapshots until all is gone: two to be sure that nobody owns it, one or two to ask for its end, one to see it."""
OF_BOUNDARY = {
    "the namespace": f"/api/v1/namespaces/tn-bd-[^/?]+[?]{REALLY}",
    "default-deny": f"/networkpolicies/tenantry-default-deny[?]{REALLY}",
    "the quota": f"/resourcequotas/tenantry[?]{REALLY}",
    "an allow": f"/networkpolicies/tenantry-gateway-in[?]{REALLY}",
    "a binding": f"/rolebindings/tenantry-member[?]{REALLY}",
    "the gateway": f"/deployments/tn-gateway[?]{REALLY}",
}
OF_ENDPOINT = {
    "keys": f"/secrets/tn-ep-[^/?]+[?]{REALLY}",
    "a claim": f"/resourceclaims/tn-ep-[^/?]+[?]{REALLY}",
    "a replica": f"/deployments/tn-ep-[^/?]+[?]{REALLY}",
    "a replica's service": f"/services/tn-ep-[^/?]+-0[?]{REALLY}",
    "the address": f"/services/tn-ep-[0-9a-f]+[?]{REALLY}",
}


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    return worlds_cluster(request)


@dataclass(slots=True)
class Late:
    """A world whose driver is behind a network that holds calls back."""

    world: World
    network: FaultProxy

    def hold(self, path: str) -> Fault:
        """Let the next call to a path be held, and its caller cut off."""
        held = Fault(What.HOLD, method="PATCH", path=path)
        self.network.add(held)
        return held

    def comes_late(self) -> int:
        """Let it through, and sweep as long as it may take to clear up; return the status of its answer."""
        (status,) = self.network.release()
        for _ in range(LOOKS):
            self.world.look()  # not waiting for pods: a late replica's waits for a claim that is gone

        def is_over() -> bool:
            self.world.look()
            return self.world.pods_settled() and not open_findings()

        self.world.eventually(is_over, "what came late goes")
        return status


@pytest.fixture
def late(cluster: Any) -> Iterator[Late]:
    carved = {0: tuple((PROFILE, start) for start in range(3))}
    node = gpu_node(fresh_name("dra"), PRODUCT, count=1, kind=Kind.STATIC, layouts=carved)
    with FaultProxy(cluster.url, cluster.folder / "pki") as network:
        driver = KubernetesDriver(replace(settings_for(cluster), slug="worlds", url=network.url))
        with connected(cluster, [node], driver=driver) as world:
            yield Late(world, network)


def open_findings() -> list[str]:
    return [f"{one.kind}: {one.detail}" for one in Finding.objects.filter(resolved_at__isnull=True)]


@pytest.mark.parametrize("what", OF_BOUNDARY)
def test_what_comes_after_the_end_of_a_boundary_leaves_nothing_of_it(late: Late, what: str) -> None:
    world, held = late.world, late.hold(OF_BOUNDARY[what])
    row = world.ask(PRODUCT, PROFILE)
    world.drive(lambda: held.met == 1)
    world.delete(row)
    world.drive(lambda: not Boundary.objects.filter(released_at__isnull=True).exists())

    status = late.comes_late()

    assert (status < 300) is (what == "the namespace"), "only a namespace can be made where there is none"
    assert world.marked() == []
    assert open_findings() == []


@pytest.mark.parametrize("what", OF_ENDPOINT)
def test_what_comes_after_the_end_of_an_endpoint_leaves_nothing_of_it_and_its_neighbour_alone(
    late: Late, what: str
) -> None:
    world = late.world
    neighbour = world.ask(PRODUCT, PROFILE)
    world.drive(lambda: world.ready() == 1)
    world.look()
    before = {(one["kind"], name_of(one)) for one in world.marked() if one["kind"] != "Pod"}
    held = late.hold(OF_ENDPOINT[what])
    row = world.ask(PRODUCT, PROFILE)
    world.drive(lambda: held.met == 1)
    world.delete(row)
    world.drive(lambda: not Endpoint.objects.filter(pk=row.pk, released_at__isnull=True).exists())

    status = late.comes_late()

    assert status in {200, 201, 403}  # 403: the quota has shrunk with what was given back
    assert {(one["kind"], name_of(one)) for one in world.marked() if one["kind"] != "Pod"} == before
    assert Endpoint.objects.get(pk=neighbour.pk).phase == "Ready"
    assert world.contradictions() == []
    world.assert_very_devices()
