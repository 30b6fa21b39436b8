"""Rollouts and endpoints at zero as the real gateway program serves them, under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Self

import pytest

from provisioners.gateway.protocol import LATENCY_MS, EndpointConfig, EndpointReport, RevisionReport, Waiting
from tests.gateway_lab import Lab, Model, event_of, scenario, until

CALLERS = 8


class Load:
    """Callers that ask one after the other until told to end, and what they were answered."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.statuses: Counter[int] = Counter()
        self._going = True
        self._callers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._ask()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._going = False
        await asyncio.gather(*self._callers)

    async def _ask(self) -> None:
        while self._going:
            status, _, _ = await self.lab.ask()
            self.statuses[status] += 1

    async def more(self, requests: int) -> None:
        wanted = self.statuses.total() + requests

        async def look() -> int:
            return self.statuses.total()

        await until(look, lambda total: total >= wanted, within_s=60)


def both(lab: Lab, old: Model, new: Model, *, share: int, **fields: Any) -> EndpointConfig:
    return lab.endpoint(old.backend(weight=100 - share, revision=1), new.backend(weight=share, revision=2), **fields)


async def serving(lab: Lab, *endpoints: EndpointConfig) -> None:
    lab.control.publish(*endpoints)
    await lab.healthy(state="serving", config_version=lab.control.version)


def shown(lab: Lab) -> EndpointReport | None:
    """Return what the gateway reported last of its endpoint."""
    return next(iter(lab.control.reports[-1].endpoints), None) if lab.control.reports else None


async def waiting(lab: Lab, wanted: int) -> None:
    async def look() -> int | None:
        found = shown(lab)
        return None if found is None else found.waiting

    await until(look, lambda number: number == wanted)


async def reported(lab: Lab, revision: int, good: Any) -> RevisionReport:
    async def look() -> RevisionReport | None:
        found = shown(lab)
        return next((one for one in found.revisions if one.revision == revision), None) if found else None

    found = await until(look, lambda one: one is not None and good(one))
    assert found is not None
    return found


@scenario
async def test_each_step_of_a_canary_gets_exactly_its_share_and_nobody_is_failed(lab: Lab) -> None:
    new = await lab.model_beside("new")
    lab.control.publish(lab.endpoint())
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    async with Load(lab) as load:
        for share in (10, 50, 100):
            await serving(lab, both(lab, lab.model, new, share=share))
            old_before, new_before = len(lab.model.seen), len(new.seen)
            await load.more(200)
            old_got, new_got = len(lab.model.seen) - old_before, len(new.seen) - new_before
            # the callers' last requests of the step before may be on their way
            assert abs(new_got - (old_got + new_got) * share / 100) <= CALLERS + 2
        await serving(lab, lab.endpoint(new.backend(revision=2)))
        await load.more(20)

    assert set(load.statuses) == {200}


@scenario
async def test_a_bad_canary_fails_its_own_share_only_and_its_errors_are_reported(lab: Lab) -> None:
    bad = await lab.model_beside("bad")
    bad.status = 500
    lab.control.publish(both(lab, lab.model, bad, share=10))
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    async with Load(lab) as load:
        await load.more(200)
        await serving(lab, lab.endpoint(lab.model.backend(revision=1)))  # as its abort does
        await load.more(100)

    assert set(load.statuses) == {200, 500}
    assert load.statuses[500] == len(bad.seen)
    found = await reported(lab, 2, lambda one: one.requests == len(bad.seen))
    assert found.errors == found.requests == sum(found.latency)
    assert len(found.latency) == len(LATENCY_MS) + 1
    kept = await reported(lab, 1, lambda one: one.requests == len(lab.model.seen))
    assert kept.errors == 0


@scenario
async def test_a_canary_that_cannot_be_reached_fails_nobody_and_counts_as_errors(lab: Lab) -> None:
    gone = await lab.model_beside("gone")
    lab.control.publish(both(lab, lab.model, gone, share=50))
    await gone.stop()
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    async with Load(lab) as load:
        await load.more(50)

    assert set(load.statuses) == {200}
    found = await reported(lab, 2, lambda one: one.requests >= 1)
    assert found.errors == found.requests


@pytest.mark.slow
@scenario
async def test_a_drained_replica_ends_its_streams_and_gets_nothing_new(lab: Lab) -> None:
    new = await lab.model_beside("new")
    lab.control.publish(lab.endpoint())
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    async with lab.stream() as stream:
        await lab.model.go.put(event_of(choices=[{"delta": {"content": "a"}}]))
        assert await stream.content.readline() == event_of(choices=[{"delta": {"content": "a"}}]).splitlines(True)[0]
        await serving(lab, both(lab, lab.model, new, share=100))
        for _ in range(20):
            assert (await lab.ask())[0] == 200

        async def in_flight() -> dict[int, int]:
            found = shown(lab)
            names = {lab.model.unit_uid: 1, new.unit_uid: 2}
            return {names[one.unit_uid]: one.in_flight for one in found.backends} if found else {}

        assert await until(in_flight, lambda seen: len(seen) == 2 and seen[1] == 1) == {1: 1, 2: 0}
        await lab.model.go.put(b"")
        rest = await stream.content.read()
        await until(in_flight, lambda seen: seen == {1: 0, 2: 0})

    assert rest.endswith(b"data: [DONE]\n\n")
    assert (len(lab.model.seen), len(new.seen)) == (1, 20)


@scenario
async def test_requests_to_an_endpoint_at_zero_wait_and_are_all_answered_once_it_is_awake(lab: Lab) -> None:
    lab.control.publish(lab.asleep())
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    asking = [asyncio.create_task(lab.ask()) for _ in range(30)]
    await asyncio.wait_for(lab.control.woken.wait(), 15)
    assert not any(one.done() for one in asking)
    lab.control.publish(lab.endpoint())
    answers = await asyncio.gather(*asking)

    assert {status for status, _, _ in answers} == {200}
    assert {one.endpoint_uid for one in lab.control.wakes} == {lab.endpoint_uid}
    assert len(lab.model.seen) == 30


@pytest.mark.slow
@scenario
async def test_beyond_the_limit_and_the_time_they_are_told_when_to_come_again(lab: Lab) -> None:
    lab.control.publish(lab.asleep(limit=2, timeout_s=2))
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    answers = await asyncio.gather(*(lab.ask() for _ in range(5)))

    told = Counter((status, body["error"]["code"]) for status, body, _ in answers)
    assert told == {(503, "too_many_waiting"): 3, (503, "still_starting"): 2}
    assert all(int(headers["Retry-After"]) >= 1 for _, _, headers in answers)


@pytest.mark.slow
@scenario
async def test_who_leaves_waits_no_more_and_a_key_that_was_revoked_meanwhile_opens_nothing(lab: Lab) -> None:
    lab.control.publish(lab.asleep(limit=1))
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)

    leaving = asyncio.create_task(lab.ask())
    await asyncio.wait_for(lab.control.woken.wait(), 15)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    await waiting(lab, 0)
    staying = asyncio.create_task(lab.ask())
    await waiting(lab, 1)
    lab.control.publish(lab.endpoint(keys=()))
    status, _, _ = await staying

    assert status == 401
    assert lab.model.seen == []


@scenario
async def test_while_the_control_plane_is_away_they_wait_and_it_is_told_when_it_is_back(lab: Lab) -> None:
    lab.control.publish(lab.asleep())
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)
    await lab.control.stop()

    asking = asyncio.create_task(lab.ask())
    await lab.healthy(in_flight=1)
    await lab.control.start()
    await asyncio.wait_for(lab.control.woken.wait(), 30)
    lab.control.publish(lab.endpoint())

    assert (await asking)[0] == 200


@scenario
async def test_while_replicas_make_way_requests_wait_and_nobody_is_told(lab: Lab) -> None:
    lab.control.publish(lab.endpoint())
    await lab.spawn()
    await lab.healthy(state="serving", config_version=1)
    new = await lab.model_beside("new")

    async with Load(lab) as load:
        await load.more(20)
        held = lab.endpoint().model_copy(update={"backends": (), "waiting": Waiting(timeout_s=30)})
        await serving(lab, held)
        await waiting(lab, CALLERS)
        await lab.model.stop()
        await serving(lab, lab.endpoint(new.backend(revision=2)))
        await load.more(20)

    assert set(load.statuses) == {200}
    assert lab.control.wakes == []
