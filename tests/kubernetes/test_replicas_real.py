"""Two control planes on one cluster whose network fails in the middle of work: nothing double, nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlplane.labs.kubernetes.demo import provider_config
from controlplane.labs.kubernetes.faults import Fault, FaultProxy, What
from controlplane.labs.kubernetes.nodes import Kind, gpu_node
from provisioners.driver import Secret
from provisioners.kubernetes.driver import KubernetesDriver, make
from provisioners.kubernetes.objects import EVERYTHING, UNIT_LABEL, labels
from tenants.models import Endpoint, Provider
from tests.crash.world import next_due
from tests.drive import FakeClock
from tests.kubernetes.replica import Replica
from tests.kubernetes.worlds import World, connected, fresh_name, pause, worlds_cluster

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.usefixtures("db"),
]  # fmt: skip

PRODUCT = "H100-80GB"
TTL_S = 6.0
ALLOWED = 2
"""Sweeps to the end once the network is back, pods having the time they need in between."""
REMOVALS = 3
"""Further ones where something is removed: each step of a removal waits for the one before."""


class RunningClock(FakeClock):
    """Real time, as the replicas have it, moved on by hand."""

    def __init__(self) -> None:
        super().__init__(now=datetime.now(UTC))
        self.skipped = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def move(self, seconds: float) -> None:
        self.skipped += timedelta(seconds=seconds)


@dataclass(slots=True)
class Pair:
    """A world that two replicas work on, each behind a network of its own."""

    world: World
    networks: tuple[FaultProxy, FaultProxy]
    replicas: tuple[Replica, Replica]

    def watch(self, until: Any, *, within_s: float = 300.0) -> None:
        """Wait for a condition; nothing may be double at any time on the way."""

        def look() -> bool:
            self.world.assert_nothing_double()
            assert all(count == 1 for count in self.deployments().values())
            return bool(until())

        said = [replica.said() for replica in self.replicas]
        self.world.eventually(look, f"\n{said}", within_s=within_s)

    def deployments(self) -> dict[str, int]:
        """Return unit → number of Deployments."""
        found: dict[str, int] = {}
        for one in self.world.api.list("apps/v1", "Deployment", labels=EVERYTHING):
            if unit := labels(one).get(UNIT_LABEL, ""):
                found[unit] = found.get(unit, 0) + 1
        return found

    def heal(self) -> None:
        """End all trouble of the network."""
        for network in self.networks:
            network.clear()

    def finish(self) -> int:
        """Take over from replicas that are gone, after their leases; return the sweeps that it took to rest."""
        self.world.clock.move(TTL_S + 1)
        Provider.objects.update(breaker_failures=0, breaker_open_until=None)  # the network is back; its pause is over
        for count in range(1, 20):
            self.world.sweep()
            if self.world.at_rest():
                return count
            self.world.eventually(self.world.pods_settled, "pods come and go", within_s=180)
            later = next_due()
            if later is not None and later > self.world.clock():
                self.world.clock.move((later - self.world.clock()).total_seconds() + 0.01)
        raise AssertionError(self.world.explain())


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    return worlds_cluster(request)


@pytest.fixture
def pair(cluster: Any, tmp_path: Path) -> Iterator[Pair]:
    carved = {0: tuple(("1g.10gb", start) for start in range(4))}
    nodes = (
        gpu_node(fresh_name("plugin"), PRODUCT, count=1, layouts=carved),
        gpu_node(fresh_name("dra"), PRODUCT, count=1, kind=Kind.STATIC, layouts=carved),
    )
    config = provider_config(cluster) | {"access": "cluster"}
    driver = make(config, {"token": Secret(cluster.admin_token)})
    assert isinstance(driver, KubernetesDriver)
    with ExitStack() as stack:
        world = stack.enter_context(connected(cluster, nodes, clock=RunningClock(), driver=driver))
        world.ask(PRODUCT, "1g.10gb")  # what fails below is the work on endpoints: their boundary is there
        world.drive(lambda: world.ready() == 1, most=3000, step_s=0.0)
        networks = [stack.enter_context(FaultProxy(cluster.url, cluster.folder / "pki")) for _ in range(2)]
        replicas = []
        for number, network in enumerate(networks):
            behind = config | {"url": network.url}
            log = tmp_path / f"replica-{number}.log"
            replicas.append(Replica(behind, cluster.admin_token, ttl_s=TTL_S, log=log))
            stack.callback(replicas[-1].kill)
        for replica in replicas:
            replica.await_ready()
        yield Pair(world, (networks[0], networks[1]), (replicas[0], replicas[1]))


def test_a_network_that_fails_in_mid_work_leaves_nothing_double_and_nothing_lost(pair: Pair) -> None:
    world, (one, other) = pair.world, pair.networks
    one.add(
        Fault(What.LOSE, method="POST|PATCH|PUT", times=4, after=2),
        Fault(What.TRUNCATE, method="GET", times=3, after=5),
        Fault(What.DELAY, method="PATCH", times=2, seconds=TTL_S + 1),
    )
    other.add(
        Fault(What.REFUSE, status=429, seconds=1, times=3, after=4),
        Fault(What.REFUSE, status=500, method="PATCH|POST", times=2),
        Fault(What.REFUSE, status=503, times=2, after=10),
        Fault(What.LOSE, method="PATCH", path="deployments", times=2),
    )

    rows = [world.ask(PRODUCT, "1g.10gb") for _ in range(5)]
    pair.watch(lambda: len(pair.deployments()) >= 3)
    one.add(Fault(What.CUT, times=-1))
    for row in rows[:2]:
        world.delete(row)
    pair.watch(lambda: world.ready() >= 2)
    other.add(Fault(What.CUT, times=-1))
    pause(TTL_S)
    pair.heal()
    for replica in pair.replicas:
        replica.kill()
    sweeps = pair.finish()

    assert sweeps <= ALLOWED + REMOVALS
    assert world.ready() == 4
    world.look()
    world.look()
    assert world.contradictions() == []
    world.assert_same_counts()
    world.assert_very_devices()


def test_two_replicas_that_are_cut_off_in_turns_do_all_of_the_work_between_them(pair: Pair) -> None:
    world = pair.world
    rows = [world.ask(PRODUCT, "1g.10gb") for _ in range(4)]
    for turn in range(4):
        pair.networks[turn % 2].clear()
        pair.networks[(turn + 1) % 2].add(Fault(What.CUT, times=-1))
        pair.watch(lambda: True)
        pause(1.0)

    pair.heal()
    pair.watch(lambda: world.ready() == 5)
    for row in rows:
        world.delete(row)
    pair.networks[0].add(Fault(What.LOSE, method="DELETE", times=4))
    pair.networks[1].add(Fault(What.LOSE, method="DELETE", times=4), Fault(What.CUT, method="DELETE", times=2))
    pair.watch(lambda: Endpoint.objects.filter(released_at__isnull=True).count() == 1)
    for replica in pair.replicas:
        replica.end()
    world.look()
    world.look()

    assert len(world.held("tenant")) == len(world.used()) == 1
    assert world.contradictions() == []


def test_a_call_that_comes_late_from_a_replica_that_lost_its_lease_changes_nothing(pair: Pair) -> None:
    world, (one, _), (first, second) = pair.world, pair.networks, pair.replicas
    second.process.send_signal(signal.SIGSTOP)
    late = Fault(What.DELAY, method="PATCH", path="deployments/(?!tn-gateway)", times=1, seconds=4 * TTL_S)
    one.add(late)

    world.ask(PRODUCT, "1g.10gb")
    pair.watch(lambda: late.met == 1)
    first.process.send_signal(signal.SIGSTOP)
    second.process.send_signal(signal.SIGCONT)
    pair.watch(lambda: world.ready() == 2)
    pause(4 * TTL_S)
    first.process.send_signal(signal.SIGCONT)
    pair.watch(lambda: world.ready() == 2)
    for replica in pair.replicas:
        replica.end()
    world.look()
    world.look()

    assert world.contradictions() == []
    world.assert_same_counts()
    world.assert_very_devices()
