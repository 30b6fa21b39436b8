"""Endpoints on a cluster over their whole life: a canary takes over, another aborts by itself, back, to zero and awake.

Passes, ledger and cluster are the real ones, pods are ready without a program; gateways are played by what they report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from controlplane.labs.kubernetes.nodes import Kind, gpu_node
from provisioners.driver import Power
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import EVERYTHING, UNIT_LABEL, dig, labels
from provisioners.sandbox import control
from tenants.models import Endpoint, Hold, Move, Provider, QuotaCharge, Unit
from tenants.operations import idling, moves, rollouts
from tenants.specs import GpuAsk, MoveAsk, RolloutAsk, RolloutStep
from tenants.states import BoundaryKind, IdleUnits, RolloutStrategy
from tests import factories
from tests.conformance.kubernetes_rig import RealClock, settings_for
from tests.conformance.specs import endpoint, finish, namespace_boundary, remove, unit
from tests.drive import fresh, inventory_of, is_gone, is_ready
from tests.drive import world as estate
from tests.kubernetes.worlds import World, connected, fresh_name, worlds_cluster
from tests.provisioners.test_rollouts import Stage

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.usefixtures("db"),
]  # fmt: skip

PRODUCT, PROFILE = "H100-80GB", "1g.10gb"
CANARY = RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(10, 5),))
MOST = 900
"""Sweeps; a few of them in each second, while the cluster does its part."""


class OnCluster(Stage):
    """An endpoint that serves from a cluster."""

    here: Any

    def drive(self, until: Any, *, most: int = MOST, step_s: float = 0.3) -> None:
        super().drive(until, most=most, step_s=step_s)

    def pods(self) -> dict[str, str]:
        """Return unit → the revision that its pod runs; pods that go are left out."""
        return {
            labels(pod)[UNIT_LABEL]: dig(pod, "metadata", "annotations", "tenantry.internal/revision")
            for pod in self.here.api.list("v1", "Pod", labels=EVERYTHING)
            if UNIT_LABEL in labels(pod) and not pod["metadata"].get("deletionTimestamp")
        }

    def secrets(self) -> int:
        """Return how many revisions have a Secret."""
        found = self.here.api.list("v1", "Secret", labels=f"tenantry.internal/uid={self.row.pk}")
        return len(found)

    def units(self) -> list[str]:
        return [
            str(pk)
            for pk in Unit.objects.filter(released_at__isnull=True).order_by("index").values_list("pk", flat=True)
        ]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    return worlds_cluster(request)


@pytest.fixture(params=[Kind.DEVICE_PLUGIN, Kind.STATIC], ids=["device-plugin", "dra"])
def stage(request: pytest.FixtureRequest, cluster: Any) -> Iterator[OnCluster]:
    node = gpu_node(
        fresh_name("courses"), PRODUCT, count=1, kind=request.param,
        layouts={0: tuple((PROFILE, start) for start in range(3))},
    )  # fmt: skip
    with connected(cluster, [node]) as world:
        features = dict(world.driver.capabilities().features)
        Provider.objects.filter(pk=world.provider.pk).update(
            capabilities={**world.provider.capabilities, "features": features}
        )
        row = world.ask(PRODUCT, PROFILE)
        world.drive(is_ready(row), most=MOST, step_s=0.3)
        here: Any = world  # a stage needs of a world what both have
        made = OnCluster(here, world.actor, row)
        made.enrol()
        yield made


def test_a_canary_takes_over_and_back_and_it_sleeps_and_wakes(stage: OnCluster) -> None:
    world: World = stage.here
    (first,) = stage.units()
    stage.revise(CANARY)
    stage.drive(stage.is_at("stepping"))
    beside = stage.pods()
    assert stage.weights() == {1: 90, 2: 10}
    assert (sorted(beside.values()), stage.secrets()) == (["1", "2"], 2)
    world.assert_same_counts()

    stage.drive(stage.is_at("done"))
    stage.drive(is_ready(stage.row))
    (second,) = stage.units()
    assert second != first
    assert (stage.pods(), stage.secrets()) == ({second: "2"}, 1)
    assert (stage.weights(), fresh(stage.row).observed["revision"]) == ({2: 100}, 2)
    assert beside[second] == "2"

    rollouts.rollback(endpoint=fresh(stage.row), actor=stage.actor, now=world.clock())
    assert stage.rollout.strategy == "canary"
    stage.drive(stage.is_at("done"))
    assert list(stage.pods().values()) == ["1"]
    assert Hold.objects.count() == 1
    assert set(stage.phases) == {"Ready"}

    for units, held in ((IdleUnits.KEEP, 1), (IdleUnits.RELEASE, 0)):
        idling.set_idle(
            endpoint=fresh(stage.row), after_s=None, units=units, wait_s=120, actor=stage.actor, now=world.clock()
        )
        idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=world.clock())
        stage.drive(lambda held=held: (fresh(stage.row).observed["power"], Hold.objects.count()) == ("off", held))
        waiting = stage.document().endpoints[0].waiting
        assert waiting is not None
        assert waiting.wakes
        assert (stage.pods(), [use for use in world.used() if use.unit]) == ({}, [])
        assert fresh(stage.row).address

        idling.wake(endpoint=fresh(stage.row), actor=stage.actor, now=world.clock())
        stage.drive(lambda: len(stage.document().endpoints[0].backends) == 1)
        stage.drive(lambda: stage.document().endpoints[0].waiting is None)
        assert list(stage.pods().values()) == ["1"]
        world.assert_same_counts()

    assert_gone(stage)


def test_a_bad_canary_aborts_by_itself_and_what_served_was_never_touched(stage: OnCluster) -> None:
    before = stage.pods()
    stage.revise(replace(CANARY, steps=(RolloutStep(10, 600),)))
    stage.drive(stage.is_at("stepping"))

    stage.counts = {1: (200, 0), 2: (25, 20)}
    stage.drive(stage.is_at("aborted"))

    assert stage.rollout.reason == "20 of its 25 requests failed (80%); at most 5% may."
    assert stage.pods() == before
    assert (Hold.objects.count(), set(stage.phases), stage.weights()) == (1, {"Ready"}, {1: 100})
    assert_gone(stage)


def test_a_canary_that_the_cluster_refuses_is_given_up_and_says_why(stage: OnCluster) -> None:
    world: World = stage.here
    before = stage.pods()
    image = "registry.elsewhere.example/vllm@sha256:" + "4" * 64
    serving = world.driver.settings
    world.driver._ground.settings = replace(serving, vllm_image=image, registries=serving.allowed_registries)

    stage.revise(CANARY)
    stage.drive(stage.is_at("aborted"))

    assert stage.rollout.reason
    assert stage.pods() == before
    assert (Hold.objects.count(), set(stage.phases)) == (1, {"Ready"})


# --- to another place -----------------------------------------------------------------------------


ZONE = "models.example.net"


@dataclass
class Moving:
    """An endpoint on a cluster behind a load balancer, and a simulated estate of machines beside it."""

    here: World
    row: Endpoint
    phases: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """The names that ExternalDNS is told by the cluster's Services, each time that they change."""

    def drive(self, until: Callable[[], bool]) -> None:
        def looked() -> bool:
            self._balance()
            self.phases.append(fresh(self.row).phase)
            names = self.names()
            if not self.told or names != self.told[-1]:
                self.told.append(names)
            return until()

        self.here.drive(looked, most=MOST, step_s=0.3)

    def _balance(self) -> None:
        """Give each load balancer an address, as its controller does."""
        api = self.here.api
        for one in api.list("v1", "Service", labels=EVERYTHING):
            if one["spec"]["type"] == "LoadBalancer" and not dig(one, "status", "loadBalancer", "ingress"):
                api.patch(
                    "v1", "Service", one["metadata"]["name"],
                    {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}},
                    namespace=one["metadata"]["namespace"], subresource="status",
                )  # fmt: skip

    def names(self) -> str:
        found = (
            one["metadata"].get("annotations", {}) for one in self.here.api.list("v1", "Service", labels=EVERYTHING)
        )
        return " ".join(
            f"{notes['external-dns.kubernetes.io/hostname']}={notes['external-dns.kubernetes.io/target']}"
            for notes in found
            if "external-dns.kubernetes.io/hostname" in notes
        )

    def move(self, ask: MoveAsk) -> None:
        moves.begin(endpoint=fresh(self.row), ask=ask, actor=self.here.actor, now=self.here.clock())
        self.drive(lambda: Move.objects.latest("created_at").state in {"done", "undone"})
        assert Move.objects.latest("created_at").state == "done", Move.objects.latest("created_at").reason
        self.drive(lambda: not Endpoint._base_manager.filter(stands_in_for__isnull=False, released_at=None).exists())


def test_it_moves_to_machines_and_back_and_dns_is_told_only_where_its_name_leads_here(cluster: Any) -> None:
    beside = estate()  # simulated machines, whose estate names endpoints as well
    control.change_settings(beside.estate, {"names": True})
    Provider.objects.filter(pk=beside.provider.pk).update(
        capabilities=inventory_of(beside.estate), config={"zone": ZONE}
    )
    chosen = replace(
        settings_for(cluster), slug="worlds", access="load-balancer", zone=ZONE, dns_records="external-dns"
    )
    node = gpu_node(fresh_name("courses"), PRODUCT, count=1, layouts={0: ((PROFILE, 0),)})
    with connected(cluster, [node], clock=beside.clock, driver=KubernetesDriver(chosen)) as world:
        world.others[beside.provider.pk] = beside.engine.driver_of(beside.provider)
        Provider.objects.filter(pk=world.provider.pk).update(
            capabilities={**world.provider.capabilities, "features": dict(world.driver.capabilities().features)},
            config={"zone": ZONE},
        )
        factories.set_limit(world.tenant, "gpu.A100-80GB.slices", 100)
        moving = Moving(world, world.ask(PRODUCT, PROFILE))
        moving.drive(is_ready(moving.row))
        before = fresh(moving.row)
        named = f"{before.name}.{before.tenant.name}.{ZONE}"
        moving.phases.clear()

        moving.move(MoveAsk(BoundaryKind.VM, gpu=GpuAsk("A100-80GB"), watch_s=5))
        there = fresh(moving.row)
        on_cluster = [pod for pod in world.api.list("v1", "Pod", labels=EVERYTHING) if UNIT_LABEL in labels(pod)]
        moving.move(MoveAsk(BoundaryKind.NAMESPACE, gpu=GpuAsk(PRODUCT, PROFILE), watch_s=5))

        back = fresh(moving.row)
        assert before.address == back.address == f"http://{named}/v1"
        assert (there.boundary.kind, back.boundary.kind) == ("vm", "namespace")
        assert on_cluster == []
        assert moving.told == ["", f"{named}=203.0.113.7", "", f"{named}=203.0.113.7"]
        assert set(moving.phases) == {"Ready"}
        world.delete(back)
        moving.drive(is_gone(back, back.allocation, back.boundary))
        assert Hold.objects.count() == 0


# --- volumes --------------------------------------------------------------------------------------


def test_volumes_of_replicas_at_zero_go_with_the_room_for_them_and_come_back_with_it(cluster: Any) -> None:
    driver = KubernetesDriver(replace(settings_for(cluster), cache_gib=5))
    rig: Any = SimpleNamespace(driver=driver, clock=RealClock())
    boundary = namespace_boundary(uuid4())
    spec = replace(endpoint(boundary, unit(0), unit(1, start=1)), power=Power.OFF)
    narrow = replace(boundary, vcpu=0, memory_gib=0, storage_gib=0, gpu_resources={})

    def volumes() -> int:
        return len(driver.cluster.list("v1", "PersistentVolumeClaim", namespace=boundary.ref.name).items)

    try:
        finish(rig, boundary)
        finish(rig, spec)
        before = volumes()
        finish(rig, narrow)
        narrowed = volumes()
        finish(rig, boundary)
        finish(rig, spec)
        after = volumes()
        for one in (spec, boundary):
            remove(rig, one)
    finally:
        driver.close()

    assert (before, narrowed, after) == (2, 1, 2)


def assert_gone(stage: OnCluster) -> None:
    row = fresh(stage.row)
    stage.here.delete(row)
    stage.drive(is_gone(row, row.allocation, row.boundary))
    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)
    assert not Endpoint.objects.filter(released_at__isnull=True).exists()
    stage.here.eventually(lambda: stage.here.contradictions() == [], "nothing is left")
