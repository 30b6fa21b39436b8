"""Nudges: at most one per object and 100 in all, lost ones sent again, and a broker that raises or blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from provisioners import dispatcher, sweep
from provisioners.dispatcher import MOST_IN_FLIGHT, Dispatcher
from provisioners.sweep import Due
from tenants.models import Endpoint, Outbox
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
from tests import factories
from tests.drive import World, fresh, world

pytestmark = pytest.mark.usefixtures("db")


class Broker:
    """Keeps what is sent; can be made to raise or to block."""

    def __init__(self) -> None:
        self.sent: list[Due] = []
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def __call__(self, items: Sequence[Due]) -> None:
        self.open.wait()
        if self.error is not None:
            raise self.error
        self.sent.extend(items)


@pytest.fixture
def here() -> World:
    return world()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def dispatching(here: World, broker: Broker) -> Iterator[Dispatcher]:
    made = Dispatcher(here.engine, broker)
    yield made
    broker.open.set()
    made.stop.set()
    made.away_since, made.help_until = None, float("-inf")
    for thread in made._local:
        thread.join(timeout=10)
    made._pool.shutdown(wait=True)


@pytest.fixture
def rows(here: World) -> list[Any]:
    tenant = factories.tenant()
    factories.generous(tenant)
    actor = factories.actor(factories.member(tenant))
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1)
    asks = [BareAsk(f"a-{n}", AllocationSpec(units=(unit,))) for n in range(3)]
    return allocations.create_batch(tenant=tenant, asks=asks, actor=actor, now=here.clock())


def test_each_object_that_is_due_is_nudged_once(dispatching: Dispatcher, broker: Broker, rows: list[Any]) -> None:
    assert Outbox.objects.count() == 4

    for _ in range(3):
        dispatching.tick()

    assert sorted((item.kind, item.pk) for item in broker.sent) == sorted(
        [("boundary", rows[0].boundary_id), *(("allocation", row.pk) for row in rows)]
    )
    assert Outbox.objects.count() == 0


def test_an_object_that_somebody_had_in_between_is_nudged_again(
    here: World, dispatching: Dispatcher, broker: Broker, rows: list[Any]
) -> None:
    dispatching.tick()
    first = len(broker.sent)
    type(rows[0]).objects.filter(pk=rows[0].pk).update(lease_epoch=7)

    dispatching.tick()

    assert broker.sent[first:] == [Due("allocation", rows[0].pk, 7)]


def test_a_nudge_that_nobody_took_is_sent_again(
    dispatching: Dispatcher, broker: Broker, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatching.tick()
    sent = len(broker.sent)
    monkeypatch.setattr(dispatcher, "LOST_S", -1.0)
    monkeypatch.setattr(dispatcher, "LOCAL_THREADS", 0)

    dispatching.tick()

    assert len(broker.sent) == 2 * sent


def test_while_nobody_takes_messages_passes_run_here(
    dispatching: Dispatcher, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatching.tick()
    monkeypatch.setattr(dispatcher, "LOST_S", -1.0)

    dispatching.tick()
    waiting = threading.Event()
    for _ in range(400):
        if all(fresh(row).phase == "Ready" for row in rows) or waiting.wait(0.05):
            break

    assert [fresh(row).phase for row in rows] == ["Ready"] * 3


def test_no_more_than_a_hundred_are_in_flight(
    dispatching: Dispatcher, broker: Broker, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "MOST_IN_FLIGHT", 2)

    for _ in range(3):
        dispatching.tick()

    assert MOST_IN_FLIGHT == 100
    assert len(broker.sent) == 2


@pytest.mark.parametrize("trouble", ["raises", "blocks"])
def test_while_the_broker_is_away_passes_run_here_and_nothing_is_lost(
    here: World,
    dispatching: Dispatcher,
    broker: Broker,
    rows: list[Any],
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "PUBLISH_S", 0.1)
    if trouble == "raises":
        broker.error = OSError("the broker's folder is a plain file")
    else:
        broker.open.clear()

    dispatching.tick()
    waiting = threading.Event()
    for _ in range(400):
        if all(fresh(row).phase == "Ready" for row in rows) or waiting.wait(0.05):
            break

    assert [fresh(row).phase for row in rows] == ["Ready"] * 3
    assert broker.sent == []
    starts = [line.text for line in here.estate.state.logs if line.text.startswith("start:")]
    assert len(starts) == len(set(starts))


def test_the_broker_is_used_again_when_it_is_back(
    here: World, dispatching: Dispatcher, broker: Broker, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "LOCAL_THREADS", 0)
    monkeypatch.setattr(dispatcher, "RETRY_S", 0.0)
    broker.error = OSError("gone")
    dispatching.tick()
    assert dispatching.away_since is not None

    broker.error = None
    for _ in range(4):
        dispatching.scanned_at = float("-inf")
        dispatching.tick()

    assert dispatching.away_since is None
    assert {(item.kind, item.pk) for item in broker.sent} == {(item.kind, item.pk) for item in sweep.due(here.clock())}


def test_a_message_repeated_six_times_is_one_pass(here: World, rows: list[Any]) -> None:
    made = [sweep.reconcile("boundary", rows[0].boundary_id, engine=here.engine) for _ in range(6)]

    assert made == [1, 0, 0, 0, 0, 0]
    assert Endpoint.objects.count() == 0
