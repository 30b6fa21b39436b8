"""Rings of providers: gathered, kept within bounds, and turned into rows that are due, whoever holds them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from provisioners import lease, listening
from provisioners.driver import Driver, Kind, NotSupported, Ref, TransientDriverError
from provisioners.listening import BURST, GATHER_S, REFILL_S, SETTLE, Bell, Listening, nudge
from tenants.models import Allocation, Boundary, Endpoint, Provider
from tests import factories
from tests.conftest import NOW
from tests.drive import fresh

LATER = NOW + timedelta(minutes=5)
RUNG = (UUID(int=1), Ref(Kind.ENDPOINT, UUID(int=2), UUID(int=3)))


# --- the bell -----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bell(clock: Clock) -> Bell:
    return Bell(clock=clock)


def test_many_rings_of_one_object_in_a_moment_are_one(bell: Bell, clock: Clock) -> None:
    for _ in range(50):
        bell.ring(RUNG)
        clock.now += GATHER_S / 100
    assert bell.take() == []

    clock.now += GATHER_S

    assert bell.take() == [RUNG]
    assert bell.take() == []


def test_rings_of_different_objects_do_not_wait_for_each_other(bell: Bell, clock: Clock) -> None:
    others = [(UUID(int=1), Ref(Kind.ENDPOINT, UUID(int=n), UUID(int=3))) for n in range(10, 40)]
    for rung in others:
        bell.ring(rung)

    clock.now += GATHER_S

    assert sorted(bell.take(), key=str) == sorted(others, key=str)


def test_an_object_that_never_comes_to_rest_rings_ever_more_rarely_but_no_change_is_lost(
    bell: Bell, clock: Clock
) -> None:
    taken = 0
    for _ in range(600):  # two minutes of a change every 0.2 s
        bell.ring(RUNG)
        clock.now += GATHER_S
        taken += len(bell.take())

    assert BURST < taken <= BURST + 120 / REFILL_S + 1
    clock.now += 2 * REFILL_S
    assert len(bell.take()) == 1


def test_an_object_that_has_been_quiet_is_heard_at_once_again(bell: Bell, clock: Clock) -> None:
    for _ in range(BURST):
        bell.ring(RUNG)
        clock.now += GATHER_S
        assert bell.take() == [RUNG]
    clock.now += REFILL_S * BURST

    bell.ring(RUNG)
    clock.now += GATHER_S

    assert bell.take() == [RUNG]


def test_what_has_been_quiet_is_forgotten_when_there_is_much_to_remember(
    bell: Bell, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MOST_REMEMBERED", 5)
    for number in range(20):
        bell.ring((UUID(int=1), Ref(Kind.ENDPOINT, UUID(int=number), UUID(int=3))))
    clock.now += 2 * REFILL_S

    assert len(bell.take()) == 20
    assert bell._spent == {}


def test_whoever_waits_for_a_ring_is_woken_by_it() -> None:
    bell = Bell()
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.extend(bell.take(wait_s=30.0) or bell.take(wait_s=30.0)))
    waiting.start()

    bell.ring(RUNG)
    waiting.join(timeout=5)

    assert found == [RUNG]


# --- the rows -----------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(db: None) -> Endpoint:
    """An endpoint with nothing left to do."""
    tenant = factories.tenant()
    boundary = Boundary.objects.create(
        tenant=tenant, provider=factories.provider(), kind="namespace", created_at=NOW, finalizers=["provider"]
    )
    allocation = Allocation.objects.create(
        tenant=tenant,
        name="chat",
        product_kind="endpoint",
        spec={},
        demand={},
        duration_s=60,
        boundary=boundary,
        created_at=NOW,
    )
    return Endpoint.objects.create(tenant=tenant, name="chat", allocation=allocation, boundary=boundary, created_at=NOW)


def rings(row: Endpoint, *, provider: UUID | None = None) -> list[listening.Rung]:
    assert row.boundary is not None
    of = provider or row.boundary.provider_id
    return [
        (of, Ref(Kind.ENDPOINT, row.pk, row.tenant_id)),
        (of, Ref(Kind.BOUNDARY, row.boundary.pk, row.tenant_id)),
    ]


@pytest.mark.parametrize("due_at", [None, LATER], ids=["never", "later"])
def test_a_ring_makes_a_row_due_now(endpoint: Endpoint, due_at: Any) -> None:
    Endpoint.objects.update(due_at=due_at)
    Boundary.objects.update(due_at=due_at)

    assert nudge(rings(endpoint), NOW) == 2

    assert fresh(endpoint).due_at == NOW
    assert fresh(endpoint.boundary).due_at == NOW


def test_a_row_that_is_due_already_waits_no_longer_for_a_ring(endpoint: Endpoint) -> None:
    early = NOW - timedelta(seconds=30)
    Endpoint.objects.update(due_at=early)

    assert nudge(rings(endpoint)[:1], NOW) == 0

    assert fresh(endpoint).due_at == early


def test_a_released_row_a_strange_object_and_another_provider_ring_nobody(endpoint: Endpoint) -> None:
    elsewhere = factories.provider()
    assert nudge(rings(endpoint, provider=elsewhere.pk), NOW) == 0
    assert nudge([(endpoint.boundary.provider_id, Ref(Kind.ENDPOINT, uuid4(), uuid4()))], NOW) == 0  # type: ignore[union-attr]
    assert nudge([(endpoint.boundary.provider_id, Ref(Kind.LAYOUT, uuid4(), UUID(int=0)))], NOW) == 0  # type: ignore[union-attr]
    Endpoint.objects.update(deletion_requested_at=NOW, released_at=NOW, finalizers=[])

    assert nudge(rings(endpoint)[:1], NOW) == 0

    assert fresh(endpoint).due_at is None


def test_a_row_that_a_pass_is_at_is_looked_at_once_more_shortly_after(endpoint: Endpoint) -> None:
    Endpoint.objects.update(due_at=NOW)
    with lease.claim("endpoint", Endpoint, endpoint.pk, clock=lambda: NOW, ttl=timedelta(seconds=15)) as claimed:
        assert claimed is not None

        assert [nudge(rings(endpoint)[:1], NOW) for _ in range(3)] == [1, 0, 0]

        lease.hand_back(claimed, due_at=LATER)
    assert fresh(endpoint).due_at == NOW + SETTLE


# --- the listeners ------------------------------------------------------------------------------------


class Telling:
    """A driver whose provider tells what tests say."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.listeners = 0
        self.ended = 0

    def changes(self, stop: threading.Event) -> Iterator[Ref]:
        self.listeners += 1
        try:
            while not stop.is_set():
                with suppress(queue.Empty):
                    found = self.news.get(timeout=0.01)
                    if isinstance(found, Exception):
                        raise found
                    yield found
        finally:
            self.ended += 1


def eventually(is_so: Callable[[], bool], *, within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not within {within_s} s"
        threading.Event().wait(0.01)


class Drivers:
    """Which driver each provider has."""

    def __init__(self) -> None:
        self.of: dict[UUID, Any] = {}
        self.asked: list[UUID] = []

    def __call__(self, provider: Provider) -> Driver:
        self.asked.append(provider.pk)
        found = self.of[provider.pk]
        if isinstance(found, Exception):
            raise found
        made: Driver = found
        return made


@pytest.fixture
def drivers() -> Drivers:
    return Drivers()


@pytest.fixture
def all_ears(drivers: Drivers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr(listening, "PAUSE_S", 0.01)
    made = Listening(clock=timezone.now, driver_of=drivers)
    yield made
    made.close()


def told(row: Endpoint, here: Listening) -> bool:
    """Answer what rang; whether the endpoint is due."""
    nudge(here.bell.take(), NOW)
    return bool(fresh(row).due_at == NOW)


def test_a_change_at_a_provider_makes_its_row_due(endpoint: Endpoint, drivers: Drivers, all_ears: Listening) -> None:
    assert endpoint.boundary is not None
    telling = drivers.of[endpoint.boundary.provider_id] = Telling()
    all_ears.follow()

    telling.news.put(Ref(Kind.ENDPOINT, endpoint.pk, endpoint.tenant_id))

    eventually(lambda: told(endpoint, all_ears))
    assert all_ears.listened_to() == {endpoint.boundary.provider_id}


def test_listeners_follow_providers_that_come_change_and_go(
    endpoint: Endpoint, drivers: Drivers, all_ears: Listening
) -> None:
    assert endpoint.boundary is not None
    first = endpoint.boundary.provider
    tellings = drivers.of[first.pk] = Telling()
    all_ears.follow()
    eventually(lambda: tellings.listeners == 1)

    second = factories.provider()
    other = drivers.of[second.pk] = Telling()
    all_ears.follow()
    eventually(lambda: other.listeners == 1)
    assert (tellings.listeners, tellings.ended) == (1, 0)

    Provider.objects.filter(pk=first.pk).update(version=first.version + 1)
    all_ears.follow()
    eventually(lambda: (tellings.listeners, tellings.ended) == (2, 1))

    Provider.objects.filter(pk=first.pk).update(enabled=False)
    Provider.objects.filter(pk=second.pk).update(deletion_requested_at=NOW, released_at=NOW, finalizers=[])
    all_ears.follow()
    eventually(lambda: (tellings.ended, other.ended) == (2, 1))
    assert all_ears.listened_to() == frozenset()


def test_a_provider_that_tells_nothing_is_left_to_the_sweeps(
    endpoint: Endpoint, drivers: Drivers, all_ears: Listening
) -> None:
    assert endpoint.boundary is not None
    silent, deaf = endpoint.boundary.provider_id, factories.provider().pk
    drivers.of = {silent: object(), deaf: NotSupported("no driver")}

    for _ in range(3):
        all_ears.follow()
        eventually(lambda: not all_ears.listened_to())

    assert sorted(drivers.asked) == sorted([silent, deaf])


def test_a_provider_that_cannot_be_listened_to_is_told_of_once_and_tried_again(
    endpoint: Endpoint, drivers: Drivers, all_ears: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    assert endpoint.boundary is not None
    pk = endpoint.boundary.provider_id
    drivers.of[pk] = TransientDriverError("its credential is missing")
    with caplog.at_level(logging.WARNING):
        all_ears.follow()
        eventually(lambda: len(drivers.asked) >= 4)

        telling = drivers.of[pk] = Telling()
        eventually(lambda: telling.listeners == 1)

    assert [record.getMessage() for record in caplog.records] == [
        "a provider is not listened to: its credential is missing"
    ]


def test_a_driver_that_fails_by_a_bug_is_listened_to_again(
    endpoint: Endpoint, drivers: Drivers, all_ears: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    assert endpoint.boundary is not None
    telling = drivers.of[endpoint.boundary.provider_id] = Telling()
    all_ears.follow()
    telling.news.put(KeyError("kind"))

    eventually(lambda: telling.listeners == 2)

    assert "listening to a provider failed" in caplog.text


def test_it_runs_beside_the_dispatcher_and_ends_with_it(endpoint: Endpoint, drivers: Drivers) -> None:
    assert endpoint.boundary is not None
    telling = drivers.of[endpoint.boundary.provider_id] = Telling()
    here = Listening(driver_of=drivers)
    stop = threading.Event()
    thread = threading.Thread(target=here.run, args=(stop,), daemon=True)
    thread.start()

    telling.news.put(Ref(Kind.ENDPOINT, endpoint.pk, endpoint.tenant_id))
    eventually(lambda: fresh(endpoint).due_at is not None)

    began = time.monotonic()
    stop.set()
    thread.join(timeout=5)
    assert time.monotonic() - began < 1.5
    assert (telling.listeners, telling.ended) == (1, 1)
    assert here.rows_nudged == 1
