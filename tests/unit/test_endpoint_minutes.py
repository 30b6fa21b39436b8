"""Usage by the minute: parts that are exactly the whole; what was looked up in caches since the last report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from provisioners.agent_api.usage import spread
from tenants.endpoint_minutes import Look, Minute, looks_of, minute_of, summed

START = datetime(2026, 3, 1, 12, 0, 20, tzinfo=UTC)


@given(st.integers(0, 10**9), st.integers(0, 4_000_000))
def test_the_minutes_of_an_answer_are_exactly_its_tokens(tokens: int, took_ms: int) -> None:
    end = START + timedelta(milliseconds=took_ms)

    parts = spread(tokens, START, end)

    assert sum(part for _, part in parts) == tokens
    assert all(part > 0 and minute_of(at) == at for at, part in parts)
    assert [at for at, _ in parts] == sorted({at for at, _ in parts})
    assert all(minute_of(START) <= at <= end for at, _ in parts)


def test_tokens_are_told_where_they_were_written() -> None:
    parts = spread(1000, START, START + timedelta(seconds=100))

    assert [part for _, part in parts] == [400, 600]


UNIT, ENDPOINT = str(uuid4()), uuid4()


def body(*, waiting: int = 0, **said: object) -> dict[str, object]:
    return {"endpoints": [{"uid": str(ENDPOINT), "waiting": waiting, "backends": [{"unit_uid": UNIT, **said}]}]}


def test_a_caches_counts_are_those_since_the_report_before() -> None:
    first = body(running=1, queued=0, kv_cache=0.1, prefix_queries=5000, prefix_hits=4000)
    second = body(running=2, queued=3, kv_cache=0.2, prefix_queries=5100, prefix_hits=4050, waiting=4)
    anew = body(running=0, queued=0, kv_cache=0.0, prefix_queries=7, prefix_hits=2)

    assert looks_of({}, first)[ENDPOINT] == Look(1, 0, 0.1, 0, 0)
    assert looks_of(first, second)[ENDPOINT] == Look(2, 7, 0.2, 100, 50)
    assert looks_of(second, anew)[ENDPOINT] == Look(0, 0, 0.0, 7, 2)


def test_what_a_server_does_not_say_is_not_nought() -> None:
    assert looks_of({}, body())[ENDPOINT] == Look()
    assert looks_of({}, {"endpoints": [{"uid": str(ENDPOINT), "backends": []}]})[ENDPOINT] == Look()


def test_minutes_add_up_and_a_minute_that_goes_on_counts_as_what_has_passed() -> None:
    full = Minute(START, is_known=True, requests=6, completion_tokens=600, running=3, kv_cache=0.5)
    now = Minute(START, seconds=30.0, is_known=True, requests=3, completion_tokens=300, running=1, prefix_queries=8)

    whole = summed([full, now, Minute(START)])

    assert (whole.requests, whole.completion_tokens, whole.seconds) == (9, 900, 150.0)
    assert (whole.running, whole.kv_cache, whole.prefix_queries, whole.hit_rate) == (3, 0.5, 8, None)
    assert (full.tokens_s, now.tokens_s, Minute(START).tokens_s) == (10.0, 10.0, None)
