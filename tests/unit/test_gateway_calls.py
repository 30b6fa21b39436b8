"""Calls that have ended: what is settled at once, and what follows together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners.gateway.calls import Call, Ended
from provisioners.gateway.journal import Journal
from provisioners.gateway.paths import Route
from provisioners.gateway.protocol import Backend, EndpointConfig, RequestOutcome, TokenSource, UsageRecord
from provisioners.gateway.streams import Usage
from tests.gateway_lab import until

BACKEND = Backend(unit_uid=UUID(int=7), url="http://127.0.0.1:1/v1", revision=3)
ENDPOINT = EndpointConfig(uid=UUID(int=8), name="alpha", tenant=UUID(int=9), models=("alpha",))


def call(journal: Journal | None = None, **fields: Any) -> Call:
    """Return a call that a backend answered with 7 and 3 tokens."""
    grant: Any = SimpleNamespace(key_id="k1", endpoint=ENDPOINT)
    found = Call(uuid4().hex, Route.CHAT, grant, "alpha", False, 0.0, datetime.now(UTC), backend=BACKEND, status=200)
    if journal is not None:
        found.slot = journal.open(found.opening())
    found.usage, found.outcome = Usage(7, 3), RequestOutcome.COMPLETED
    for name, value in fields.items():
        setattr(found, name, value)
    return found


async def waiting(ended: Ended) -> int:
    return len(ended)


class Kept:
    """What was kept, write by write, and counted."""

    def __init__(self) -> None:
        self.writes: list[Sequence[UsageRecord]] = []
        self.counted: list[Call] = []

    def ended(self) -> Ended:
        return Ended(keep=self.writes.append, count=self.counted.append)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_the_records_of_a_burst_are_kept_together_soon(tmp_path: Path, kept: Kept) -> None:
    journal = Journal(tmp_path / "journal", slots=100)

    async def steps() -> None:
        ended = kept.ended()
        for _ in range(50):
            ended.add(call(journal))
        assert (len(ended), kept.writes) == (50, [])
        await until(lambda: waiting(ended), lambda count: count == 0)

    asyncio.run(steps())
    assert [len(write) for write in kept.writes] == [50]
    assert len(kept.counted) == 50
    assert list(Journal(tmp_path / "journal", slots=100).left()) == []


def test_a_kill_before_they_are_kept_leaves_how_each_one_ended_and_nothing_to_be_charged_again(
    tmp_path: Path, kept: Kept
) -> None:
    journal = Journal(tmp_path / "journal", slots=100)

    async def steps() -> None:
        ended = kept.ended()
        ended.add(call(journal))
        ended.add(call(journal, outcome=RequestOutcome.CLIENT_DROPPED, events=2, first_event_at=0.5, last_event_at=0.9))
        ended.add(call(journal, outcome=RequestOutcome.BACKEND_BROKE, usage=None, events=5))
        ended.add(call(journal, usage=None, status=400))

    asyncio.run(steps())
    left = [found for _, found in Journal(tmp_path / "journal", slots=100).left()]

    assert kept.writes == []
    assert sorted(
        (found.record.outcome.value, found.record.token_source.value, found.record.completion_tokens, found.charges)
        for found in left
    ) == sorted(
        [
            (RequestOutcome.COMPLETED.value, TokenSource.REPORTED.value, 3, ()),
            (RequestOutcome.CLIENT_DROPPED.value, TokenSource.LAST_SEEN.value, 3, ()),
            (RequestOutcome.BACKEND_BROKE.value, TokenSource.COUNTED.value, 5, ()),
            (RequestOutcome.COMPLETED.value, TokenSource.NONE.value, 0, ()),
        ]
    )


def test_a_call_that_has_no_place_in_the_journal_is_kept_at_once(kept: Kept) -> None:
    async def steps() -> None:
        ended = kept.ended()
        ended.add(call())
        assert len(ended) == 0

    asyncio.run(steps())
    assert [len(write) for write in kept.writes] == [1]


def test_a_call_whose_record_cannot_be_made_costs_the_others_nothing(kept: Kept) -> None:
    def count(one: Call) -> None:
        if one.status == 500:
            raise LookupError

    async def steps() -> None:
        ended = Ended(keep=kept.writes.append, count=count)
        ended._waiting.extend([call(), call(status=500), call()])
        ended.flush()

    asyncio.run(steps())
    assert [len(write) for write in kept.writes] == [2]
