"""The doorbell on a real API server: what somebody changes is looked at within seconds, with no sweep and no snapshot.

Dispatcher, listeners and one worker run as in production, in threads of this process, on real time; the provider's
snapshot is put off, so that nothing but a ring can bring a row back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection

from controlplane.labs.kubernetes.faults import Fault, FaultProxy, What
from controlplane.labs.kubernetes.nodes import gpu_node
from provisioners import sweep
from provisioners.dispatcher import Dispatcher
from provisioners.driver import Kind, Ref
from provisioners.kubernetes import watching
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import marked, selector, uid_of
from provisioners.listening import Listening
from provisioners.passes import Engine
from provisioners.specs_from_rows import ref_of
from provisioners.sweep import Due
from tenants.models import Boundary, Endpoint, Provider
from tests.conformance.kubernetes_rig import settings_for
from tests.drive import FakeClock, fresh
from tests.kubernetes.worlds import World, connected, fresh_name, pause, worlds_cluster

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(400), pytest.mark.usefixtures("db"),
]  # fmt: skip

log = logging.getLogger(__name__)

PRODUCT = "H100-80GB"
NET = "networking.k8s.io/v1"
QUIET_S = 8.0
UNREADY_S = 2.0
RESTORED_S = 3.0


class RealClock(FakeClock):
    """Real time, which nobody moves."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)

    def move(self, seconds: float) -> None:
        del seconds


@dataclass(slots=True)
class Plane:
    """Dispatcher, worker and listeners at work on a world."""

    world: World
    passes: list[tuple[str, UUID, float]] = field(default_factory=list)
    """(Kind, row, when it was looked at on the monotonic clock)."""
    listening: Listening | None = None
    _work: queue.SimpleQueue[Due | None] = field(default_factory=queue.SimpleQueue)

    @contextmanager
    def at_work(self, *, ears: bool) -> Iterator[None]:
        """Run it, with or without listeners."""
        stop = threading.Event()
        engine = Engine(clock=self.world.clock, driver_of=lambda _: self.world.driver)
        dispatcher = Dispatcher(engine, self._send, stop=stop)
        threads = [
            threading.Thread(target=self._dispatch, args=(dispatcher,)),
            threading.Thread(target=self._worker, args=(engine,)),
        ]
        if ears:
            self.listening = Listening(driver_of=lambda _: self.world.driver)
            threads.append(threading.Thread(target=self.listening.run, args=(stop,)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            self._work.put(None)
            for thread in threads:
                thread.join(timeout=20)
            assert not any(thread.is_alive() for thread in threads)

    @staticmethod
    def _dispatch(dispatcher: Dispatcher) -> None:
        try:
            dispatcher.run()
        finally:
            connection.close()

    def _send(self, items: Sequence[Due]) -> None:
        for item in items:
            self._work.put(item)

    def _worker(self, engine: Engine) -> None:
        try:
            while (item := self._work.get()) is not None:
                for _ in range(sweep.reconcile(item.kind, item.pk, engine=engine)):
                    self.passes.append((item.kind, item.pk, time.monotonic()))
        finally:
            connection.close()

    def counts(self, since: float = 0.0) -> Counter[str]:
        """Return the passes by kind."""
        return Counter(kind for kind, _, at in self.passes if at >= since)

    def no_snapshots(self) -> None:
        """Put the provider's snapshot off: only a ring brings a row back."""
        Provider.objects.update(due_at=self.world.clock() + timedelta(days=1))

    def settle(self) -> None:
        """Wait until nothing has been looked at for two seconds."""
        began = time.monotonic()

        def rests() -> bool:
            return time.monotonic() - max([began, *(at for _, _, at in self.passes[-1:])]) > 2.0

        self.world.eventually(rests, "it comes to rest")

    def within(self, is_so: Callable[[], bool], limit_s: float, what: str) -> float:
        """Return after how many seconds something is so."""
        began = time.monotonic()
        while not is_so():
            assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {what}\n{self.world.explain()}"
            pause(0.02)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    return worlds_cluster(request)


@pytest.fixture
def plane(cluster: Any) -> Iterator[Plane]:
    with connected(cluster, (gpu_node(fresh_name("plugin"), PRODUCT, count=2),), clock=RealClock()) as world:
        yield Plane(world)


def build(plane: Plane) -> tuple[Endpoint, float]:
    """Build an endpoint; return it and how long that took."""
    plane.no_snapshots()
    row = plane.world.ask(PRODUCT)
    took = plane.within(lambda: fresh(row).phase == "Ready", 180.0, "it is ready")
    plane.settle()
    return fresh(row), took


def set_ready(plane: Plane, row: Any, status: str) -> None:
    """Let the one pod of an endpoint be ready or not, as its kubelet would."""
    (pod,) = plane.world.api.list("v1", "Pod", labels=selector(ref_of(row)))
    conditions = [{"type": kind, "status": status} for kind in ("Ready", "ContainersReady")]
    plane.world.api.patch(
        "v1", "Pod", pod["metadata"]["name"], {"status": {"conditions": conditions}},
        namespace=pod["metadata"]["namespace"], how="strategic", subresource="status",
    )  # fmt: skip


def test_what_changes_in_a_cluster_is_mended_at_once_and_what_rests_is_left_alone(plane: Plane) -> None:
    with plane.at_work(ears=True):
        row, took = build(plane)
        log.info("built in %.1f s: %s", took, dict(plane.counts()))
        api, driver = plane.world.api, plane.world.driver
        namespace = ref_of(Boundary.objects.get()).name

        # at rest
        began, reads, writes = time.monotonic(), driver.cluster.reads, driver.cluster.writes
        pause(QUIET_S)
        assert plane.counts(began) == {}
        assert (driver.cluster.reads, driver.cluster.writes) == (reads, writes)

        # a pod that is not ready any more, and is again
        began = time.monotonic()
        set_ready(plane, row, "False")
        looked = plane.within(lambda: plane.counts(began)["endpoint"] > 0, UNREADY_S, "its endpoint is looked at")
        log.info("looked at %.2f s after its pod was unready", looked)
        plane.within(lambda: fresh(row).phase != "Ready", RESTORED_S, "it is not ready")
        set_ready(plane, row, "True")
        log.info(
            "ready %.2f s after its pod was", plane.within(lambda: fresh(row).phase == "Ready", 10.0, "it is ready")
        )

        # a policy that somebody deletes
        plane.settle()
        policy = api.get(NET, "NetworkPolicy", "tenantry-default-deny", namespace)
        assert policy is not None
        began = time.monotonic()
        api.delete(NET, "NetworkPolicy", "tenantry-default-deny", namespace)

        def is_back() -> bool:
            found = api.get(NET, "NetworkPolicy", "tenantry-default-deny", namespace)
            return found is not None and uid_of(found) != uid_of(policy)

        log.info("back %.2f s after it was deleted", plane.within(is_back, RESTORED_S, "the policy is back"))

        # and rest again
        plane.settle()
        log.info("passes for that: %s", dict(plane.counts(began)))
        assert 1 <= plane.counts(began)["boundary"] <= 4


def test_building_an_endpoint_costs_few_passes_more_than_without_listening(plane: Plane) -> None:
    found = {}
    for ears in (False, True):
        began = time.monotonic()
        with plane.at_work(ears=ears):
            row, took = build(plane)
            found[ears] = plane.counts(began)
            log.info("ears %s: ready after %.1f s, %s", ears, took, dict(found[ears]))
            began = time.monotonic()
            plane.world.delete(row)
            plane.world.eventually(lambda: not Boundary.objects.filter(released_at=None).exists(), "and its boundary")
            plane.settle()
            log.info("gone: %s", dict(plane.counts(began)))

    for kind in ("boundary", "endpoint"):
        assert found[True][kind] <= 2 * found[False][kind] + 4, found


# --- the streams by themselves ------------------------------------------------------------------------


@dataclass
class Ears:
    """Listens to a cluster in a thread and keeps what rang."""

    cluster: Cluster
    stop: threading.Event = field(default_factory=threading.Event)
    rung: list[Ref] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def end(self) -> float:
        """Stop; return how long that took, threads of its streams included."""
        began = time.monotonic()
        self.stop.set()
        self.thread.join(timeout=5)
        eventually(lambda: not self._streams(), "its threads end", within_s=5.0)
        self.cluster.close()
        return time.monotonic() - began

    @staticmethod
    def _streams() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("watch-lab-")]

    def _run(self) -> None:
        for ref in watching.changes(self.cluster, self.stop, name="lab", timing=watching.Timing(pause_s=0.1)):
            self.rung.append(ref)


@pytest.fixture
def place(cluster: Any) -> Iterator[tuple[Cluster, Ref]]:
    """A namespace with our mark, and whose it is."""
    ref = Ref(Kind.BOUNDARY, uuid4(), uuid4())
    admin = Cluster(settings_for(cluster))
    made = admin.apply(ours(ref, "v1", "Namespace", ref.name))
    yield admin, ref
    admin.delete("v1", "Namespace", ref.name, uid=uid_of(made))
    admin.close()


def ours(ref: Ref, api: str, kind: str, name: str, namespace: str = "", **body: Any) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    obj = {"apiVersion": api, "kind": kind, "metadata": metadata, **body}
    return marked(obj, ref, step="namespace.policies", want="w")


def eventually(is_so: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        pause(0.02)


def test_streams_that_are_cut_refused_or_too_old_tell_all_the_same(cluster: Any, place: tuple[Cluster, Ref]) -> None:
    admin, ref = place
    with FaultProxy(cluster.url, cluster.folder / "pki") as proxy:
        cut = Fault(What.CUT, path="networkpolicies.*watch=true", times=2)
        proxy.add(
            cut,
            Fault(What.REFUSE, path="networkpolicies.*watch=true", status=410, times=2),
            Fault(What.REFUSE, path="networkpolicies.*watch=true", status=429, seconds=1, times=1),
        )
        through = Cluster(replace(settings_for(cluster), url=proxy.url))
        ears = Ears(through)
        eventually(lambda: cut.met > 0, "it has read its first list")

        made = admin.apply(ours(ref, NET, "NetworkPolicy", "one", ref.name, spec={"podSelector": {}}))
        eventually(lambda: ref in ears.rung, "a new policy rings")
        pause(0.5)
        ears.rung.clear()
        admin.delete(NET, "NetworkPolicy", "one", ref.name, uid=uid_of(made))
        eventually(lambda: ref in ears.rung, "a policy that is gone rings")

        assert ears.end() < 1.0


def test_a_server_that_goes_away_is_told_of_once_and_heard_again(
    cluster: Any, place: tuple[Cluster, Ref], caplog: pytest.LogCaptureFixture
) -> None:
    admin, ref = place
    with FaultProxy(cluster.url, cluster.folder / "pki") as proxy:
        proxy.add(Fault(What.CUT, times=-1))
        through = Cluster(replace(settings_for(cluster), url=proxy.url))
        with caplog.at_level(logging.WARNING, logger=watching.__name__):
            ears = Ears(through)
            eventually(lambda: "are not heard" in caplog.text, "it is told")
            pause(0.5)
            proxy.clear()
            eventually(lambda: "are heard again" in caplog.text, "it is back", within_s=60.0)
        admin.apply(ours(ref, "v1", "ConfigMap", "one", ref.name, data={}))
        eventually(lambda: ref in ears.rung, "a change rings", within_s=60.0)

        ears.end()
    assert [record.getMessage().partition(",")[0] for record in caplog.records if record.name == watching.__name__] == [
        "changes in lab are not heard", "changes in lab are heard again",
    ]  # fmt: skip


def test_of_a_secret_no_value_comes(place: tuple[Cluster, Ref]) -> None:
    admin, ref = place
    since = admin.list("v1", "Secret", bare=True).resource_version
    admin.apply(ours(ref, "v1", "Secret", "one", ref.name, stringData={"key": "hidden"}))
    events = list(admin.watch("v1", "Secret", since=since, labels="tenantry.internal/uid", timeout_s=2, bare=True))

    assert [(what, obj["kind"]) for what, obj in events if what != "BOOKMARK"] == [("ADDED", "Secret")]
    assert "data" not in events[0][1]
