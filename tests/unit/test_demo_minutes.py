"""The demo's last hours by the minute: they add up to what was reported, and no more than that is shown."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

from controlplane.demo import minutes
from tenants.operations.agents import UsageLine

HOUR = datetime(2026, 4, 1, 9, tzinfo=UTC)
CHAT = UUID(int=7)
LINE = UsageLine(CHAT, "key", 1, HOUR, 600, 7, 252_000, 108_000)


def spread(**changed: datetime) -> list[minutes.MinuteLine]:
    asked = {"since": HOUR, "until": HOUR + timedelta(hours=1), "shown_from": HOUR} | changed
    return minutes.spread([LINE], dice=random.Random(1), **asked)


def test_the_minutes_of_an_hour_add_up_to_it() -> None:
    found = spread()

    assert [line.minute for line in found] == [HOUR + timedelta(minutes=n) for n in range(60)]
    assert sum(line.requests for line in found) == 600
    assert sum(line.errors for line in found) == 7
    assert sum(line.prompt_tokens for line in found) == 252_000
    assert sum(line.completion_tokens for line in found) == 108_000
    assert all(sum(line.ttft_counts) == line.requests for line in found)


def test_what_served_only_the_end_of_an_hour_has_no_minutes_before() -> None:
    found = spread(since=HOUR + timedelta(minutes=45, seconds=20), until=HOUR + timedelta(minutes=50))

    assert [line.minute.minute for line in found] == [45, 46, 47, 48, 49]
    assert sum(line.requests for line in found) == 600


def test_of_an_hour_that_is_shown_in_part_only_that_part_is_kept() -> None:
    found = spread(shown_from=HOUR + timedelta(minutes=30))

    assert len(found) == 30
    assert 200 < sum(line.requests for line in found) < 400


def test_looks_follow_from_what_was_written() -> None:
    lines = spread()

    looks = minutes.looks(lines, random.Random(2))

    assert [(endpoint, minute) for endpoint, minute, _look in looks] == [(CHAT, line.minute) for line in lines]
    assert all(0 <= (look.kv_cache or 0) <= 0.97 for _e, _m, look in looks)
    assert all((look.prefix_hits or 0) <= (look.prefix_queries or 0) for _e, _m, look in looks)
