"""The last hours of the demo's endpoints by the minute, so that their charts show something. Invented, as is all of it.

What an hour was reported to have served is spread over its minutes and adds up to it again; what model servers are
seen to do follows from that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tenants.endpoint_minutes import MINUTE, Look, MinuteLine, minute_of
from tenants.operations.agents import UsageLine
from tenants.usage_times import TTFT_BOUNDS_MS, counted

HOUR: Final = timedelta(hours=1)
STREAM_TOKENS_S: Final = 45.0
"""What one request is written at, about."""
MOST_TIMES: Final = 120
"""Of one minute: more times say nothing more about a median."""
SLOTS: Final = 14
"""Requests that fill the KV cache, about."""


def spread(
    lines: Sequence[UsageLine], *, since: datetime, until: datetime, shown_from: datetime, dice: random.Random
) -> list[MinuteLine]:
    """Return the minutes of hours that served from `since` to `until`, as far as they are shown. Pure but for the dice.

    All minutes of a line add up to it.
    """
    return [
        minute
        for line in lines
        if line.hour + HOUR > shown_from
        for minute in _of_hour(line, max(line.hour, minute_of(since)), min(line.hour + HOUR, until), dice)
        if minute.minute >= minute_of(shown_from)
    ]


def _of_hour(line: UsageLine, first: datetime, end: datetime, dice: random.Random) -> Iterator[MinuteLine]:
    count = max(1, -(-(end - first) // MINUTE))
    weights = [dice.uniform(0.5, 1.5) for _ in range(count)]
    whole, reached = sum(weights), 0.0
    before = (0, 0, 0, 0)
    for at, weight in enumerate(weights):
        reached += weight
        so_far = tuple(
            round(total * reached / whole)
            for total in (line.requests, line.errors, line.prompt_tokens, line.completion_tokens)
        )
        requests, errors, prompts, written = (now - then for now, then in zip(so_far, before, strict=True))
        before = (so_far[0], so_far[1], so_far[2], so_far[3])
        busy = written / 60 / STREAM_TOKENS_S
        times = (int(dice.lognormvariate(4.1 + 0.05 * busy, 0.35)) for _ in range(min(MOST_TIMES, requests)))
        yield MinuteLine(
            line.endpoint, first + at * MINUTE, requests, errors, prompts, written,
            tuple(counted(times, TTFT_BOUNDS_MS)),
        )  # fmt: skip


def looks(lines: Sequence[MinuteLine], dice: random.Random) -> list[tuple[UUID, datetime, Look]]:
    """Return what model servers are seen to do in such minutes. Pure but for the dice."""
    found = []
    for line in lines:
        busy = line.completion_tokens / 60 / STREAM_TOKENS_S
        running = round(busy * dice.uniform(0.8, 1.6) + 0.3)
        queued = max(0, running - SLOTS) + (1 if running > SLOTS / 2 and dice.random() < 0.3 else 0)
        cache = min(0.97, running / SLOTS * dice.uniform(0.7, 1.0))
        hits = round(line.prompt_tokens * dice.uniform(0.28, 0.46))
        found.append((line.endpoint, line.minute, Look(running, queued, round(cache, 3), line.prompt_tokens, hits)))
    return found
