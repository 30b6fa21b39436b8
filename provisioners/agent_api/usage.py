"""A batch of usage as a gateway sends it → sums by key, revision and hour, and by minute for charts. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners.gateway.protocol import BadDocument, RequestOutcome, UsageBatch, UsageRecord
from tenants.endpoint_minutes import MINUTE, MinuteLine, minute_of
from tenants.operations.agents import UsageLine, UsageTotals
from tenants.usage_times import BETWEEN_BOUNDS_US, TTFT_BOUNDS_MS, added, counted

MOST_TOKENS: Final = 100_000_000
"""Tokens of one request; beyond it the record is nonsense, not work."""
MOST_REVISION: Final = 2**31 - 1
LONGEST_MS: Final = 7 * 86_400_000
"""Longest time of one request that is believed; as µs, the longest between two tokens (10 minutes)."""
_BROKEN: Final = frozenset({RequestOutcome.BACKEND_BROKE, RequestOutcome.GATEWAY_DIED})
"""Errors whatever the status was that the answer began with."""
LONGEST_SPREAD: Final = timedelta(hours=1)
"""The tokens of an answer that took longer are told in its last hour."""
_UNIT: Final = timedelta(microseconds=1)
OLDEST: Final = timedelta(days=366)
"""Usage from before that is a clock that was never set; it counts in the oldest hour."""


def summed(batch: UsageBatch, *, now: datetime) -> UsageTotals:
    """Return a batch's sums. Times beyond `now` are a fast clock's and count as now. Raises `BadDocument`."""
    lines: dict[tuple[UUID, str, int, datetime], UsageLine] = {}
    minutes: dict[tuple[UUID, datetime], MinuteLine] = {}
    used: dict[str, datetime] = {}
    for record in batch.records:
        _check(record)
        started = min(max(record.started_at, now - OLDEST), now).astimezone(UTC)
        ended = _ended(started, record.duration_ms, now)
        hour = started.replace(minute=0, second=0, microsecond=0)
        key = (record.endpoint_uid, record.key_id, record.revision or 0, hour)
        line = lines.get(key) or UsageLine(*key, 0, 0, 0, 0)
        lines[key] = replace(
            line,
            requests=line.requests + 1,
            errors=line.errors + (record.status >= 500 or record.outcome in _BROKEN),
            prompt_tokens=line.prompt_tokens + record.prompt_tokens,
            completion_tokens=line.completion_tokens + record.completion_tokens,
            duration_ms=line.duration_ms + min(record.duration_ms, LONGEST_MS),
            **_times(line, record),
        )
        used[record.key_id] = max(ended, used.get(record.key_id, ended))
        _tell_minutes(minutes, record, started, ended)
    return UsageTotals(batch.id, tuple(lines.values()), used, tuple(minutes.values()))


def _tell_minutes(
    minutes: dict[tuple[UUID, datetime], MinuteLine], record: UsageRecord, started: datetime, ended: datetime
) -> None:
    """Add a record to its minutes: the request where it ended, its answer's tokens evenly where they were written."""
    first_ms = min(record.ttft_ms or 0, record.duration_ms, LONGEST_MS)
    first = min(started + timedelta(milliseconds=first_ms), ended)

    def line(at: datetime) -> MinuteLine:
        return minutes.get((record.endpoint_uid, at)) or MinuteLine(record.endpoint_uid, at)

    def keep(changed: MinuteLine) -> None:
        minutes[record.endpoint_uid, changed.minute] = changed

    last = line(minute_of(ended))
    is_error = record.status >= 500 or record.outcome in _BROKEN
    keep(replace(last, requests=last.requests + 1, errors=last.errors + is_error))
    begun = line(minute_of(first))
    told = () if record.ttft_ms is None else counted([min(record.ttft_ms, LONGEST_MS)], TTFT_BOUNDS_MS)
    keep(
        replace(
            begun,
            prompt_tokens=begun.prompt_tokens + record.prompt_tokens,
            ttft_counts=tuple(added(begun.ttft_counts, told)),
        )
    )
    for at, tokens in spread(record.completion_tokens, max(first, ended - LONGEST_SPREAD), ended):
        written = line(at)
        keep(replace(written, completion_tokens=written.completion_tokens + tokens))


def spread(tokens: int, start: datetime, end: datetime) -> list[tuple[datetime, int]]:
    """Return minute → its part of tokens that were written evenly from `start` to `end`; the parts are exactly all."""
    found = []
    whole = max(1, (end - start) // _UNIT)
    at, told = minute_of(start), 0
    while at < end - MINUTE:
        at += MINUTE
        upto = tokens * ((at - start) // _UNIT) // whole
        found.append((at - MINUTE, upto - told))
        told = upto
    return [each for each in [*found, (at, tokens - told)] if each[1]]


def _times(line: UsageLine, record: UsageRecord) -> dict[str, Any]:
    """Return what a record adds to a line's times, with what is there."""
    found: dict[str, Any] = {}
    if record.ttft_ms is not None:
        ttft = min(record.ttft_ms, LONGEST_MS)
        found["ttft_ms"] = line.ttft_ms + ttft
        found["ttft_counts"] = tuple(added(line.ttft_counts, counted([ttft], TTFT_BOUNDS_MS)))
    gaps = record.completion_tokens - 1
    if record.itl_us is not None and gaps > 0:
        between = min(record.itl_us, LONGEST_MS)
        found["between_us"] = line.between_us + between * gaps
        found["gaps"] = line.gaps + gaps
        found["between_counts"] = tuple(added(line.between_counts, counted([between], BETWEEN_BOUNDS_US)))
    return found


def _ended(started: datetime, duration_ms: int, now: datetime) -> datetime:
    longest_ms = (now - started) // timedelta(milliseconds=1)
    return started + timedelta(milliseconds=min(duration_ms, longest_ms))


def _check(record: UsageRecord) -> None:
    if max(record.prompt_tokens, record.completion_tokens) > MOST_TOKENS:
        message = f"a record counts more than {MOST_TOKENS} tokens"
        raise BadDocument(message)
    if record.revision is not None and not 0 <= record.revision <= MOST_REVISION:
        message = "a record names a revision that cannot be"
        raise BadDocument(message)
    if "\x00" in record.key_id:
        message = "a record's key id holds a NUL"
        raise BadDocument(message)
