"""An endpoint from minute to minute over the last hours: what gateways counted and what they saw at each look.

Written in the transaction of a batch or a report (`tenants.operations.agents`); an idle look of a minute that was
looked at already writes nothing. For people's eyes: nothing is billed or decided by it, and housekeeping forgets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from django.db import connection

from tenants.models import Endpoint, EndpointMinute, GatewayReplica
from tenants.usage_times import TTFT_BOUNDS_MS, added, quantile

N = TypeVar("N", int, float)

KEPT: Final = timedelta(hours=6)
MINUTE: Final = timedelta(minutes=1)
MINUTES: Final = KEPT // MINUTE
LEAST_SO_FAR_S: Final = 15.0
"""Of the minute that goes on: what was counted in its first seconds is no rate yet."""
_SUMS: Final = ("requests", "errors", "prompt_tokens", "completion_tokens")
_ADDED: Final = (
    "CASE WHEN cardinality(u.ttft_counts) = 0 THEN excluded.ttft_counts "
    "WHEN cardinality(excluded.ttft_counts) = 0 THEN u.ttft_counts "
    "ELSE (SELECT array_agg(a + b ORDER BY i) "
    "FROM unnest(u.ttft_counts, excluded.ttft_counts) WITH ORDINALITY AS t(a, b, i)) END"
)
_SAID: Final = """
    INSERT INTO tenants_endpointminute AS u
      (id, tenant_id, endpoint_id, gateway_id, minute, running, queued, kv_cache, prefix_queries, prefix_hits)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (endpoint_id, minute, gateway_id) DO UPDATE SET
      running = greatest(u.running, excluded.running), queued = greatest(u.queued, excluded.queued),
      kv_cache = greatest(u.kv_cache, excluded.kv_cache),
      prefix_queries = coalesce(u.prefix_queries + excluded.prefix_queries, excluded.prefix_queries, u.prefix_queries),
      prefix_hits = coalesce(u.prefix_hits + excluded.prefix_hits, excluded.prefix_hits, u.prefix_hits)
    WHERE excluded.running > coalesce(u.running, -1) OR excluded.queued > coalesce(u.queued, -1)
      OR excluded.kv_cache > coalesce(u.kv_cache, -1) OR excluded.prefix_queries > 0
      OR (u.prefix_queries IS NULL AND excluded.prefix_queries IS NOT NULL)
"""


def minute_of(at: datetime) -> datetime:
    """Return when the minute began that holds a moment."""
    return at.replace(second=0, microsecond=0)


# --- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MinuteLine:
    """What one batch counted of one endpoint in one minute."""

    endpoint: UUID
    minute: datetime
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What one report says of one endpoint's model servers, all together; None: none of them says it."""

    running: int | None = None
    queued: int | None = None
    kv_cache: float | None = None
    prefix_queries: int | None = None
    """Since the report before, as are the hits."""
    prefix_hits: int | None = None


def count(gateway: GatewayReplica, lines: Iterable[MinuteLine], *, now: datetime) -> None:
    """Add what a batch counted; what is older than what is kept is left out. In the caller's transaction."""
    first = minute_of(now - KEPT)
    fresh = sorted(
        (line for line in lines if line.minute >= first), key=lambda line: (line.endpoint, line.minute)
    )  # one order for all: two batches never wait for each other in a ring
    if not fresh:
        return
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tenants_endpointminute AS u (id, tenant_id, endpoint_id, gateway_id, minute, "  # noqa: S608 - ours
            f"{', '.join(_SUMS)}, ttft_counts) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (endpoint_id, minute, gateway_id) DO UPDATE SET "
            + ", ".join(f"{name} = u.{name} + excluded.{name}" for name in _SUMS)
            + f", ttft_counts = {_ADDED}",
            [
                [
                    uuid4(), gateway.tenant_id, line.endpoint, gateway.pk, line.minute,
                    *(getattr(line, name) for name in _SUMS), list(line.ttft_counts),
                ]
                for line in fresh
            ],
        )  # fmt: skip


def looked(gateway: GatewayReplica, body: Mapping[str, Any], *, now: datetime) -> None:
    """Keep what a report says of load; `gateway` still has the report before. In the caller's transaction."""
    looks = looks_of(gateway.report, body)
    mine = Endpoint.objects.filter(pk__in=list(looks), boundary_id=gateway.boundary_id, released_at=None)
    keep(gateway, [(pk, minute_of(now), looks[pk]) for pk in sorted(mine.values_list("pk", flat=True))])


def keep(gateway: GatewayReplica, looks: Sequence[tuple[UUID, datetime, Look]]) -> None:
    """Keep looks, each of (endpoint, minute); of several in a minute the most. In the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.executemany(
            _SAID,
            [
                [
                    uuid4(), gateway.tenant_id, endpoint, gateway.pk, minute, one.running, one.queued, one.kv_cache,
                    one.prefix_queries, one.prefix_hits,
                ]
                for endpoint, minute, one in looks
            ],
        )  # fmt: skip


def looks_of(before: Mapping[str, Any], body: Mapping[str, Any]) -> dict[UUID, Look]:
    """Return endpoint → what a report says of its load, with what was looked up since the report before. Pure.

    A model server that counts less than before has started anew: what it counts now is what came since.
    """
    earlier = {
        str(backend["unit_uid"]): backend
        for endpoint in before.get("endpoints", ())
        for backend in endpoint.get("backends", ())
    }
    return {UUID(str(one["uid"])): _look(one, earlier) for one in body.get("endpoints", ())}


def _look(endpoint: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> Look:
    backends: Sequence[Mapping[str, Any]] = endpoint.get("backends", ())
    running = [one["running"] for one in backends if one.get("running") is not None]
    queued = [one["queued"] for one in backends if one.get("queued") is not None]
    cache = [one["kv_cache"] for one in backends if one.get("kv_cache") is not None]
    waiting = int(endpoint.get("waiting", 0))
    since = [one for one in (_since(backend, earlier) for backend in backends) if one is not None]
    return Look(
        sum(running) if running else None,
        sum(queued) + waiting if queued or waiting else None,
        max(cache) if cache else None,
        sum(one[0] for one in since) if since else None,
        sum(one[1] for one in since) if since else None,
    )


def _since(backend: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return (looked up, found) of one server's prefix cache since the report before; None where it cannot be known."""
    queries, hits = backend.get("prefix_queries"), backend.get("prefix_hits")
    before = earlier.get(str(backend["unit_uid"]), {})
    if queries is None or hits is None:
        return None
    asked, found = before.get("prefix_queries"), before.get("prefix_hits")
    if asked is None or found is None:
        return 0, 0  # its first word: it may have counted for days
    if queries < asked or hits < found:
        asked = found = 0
    return queries - asked, min(hits - found, queries - asked)


# --- reading ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Minute:
    """One minute of an endpoint, all its gateways together."""

    at: datetime
    seconds: float = 60.0
    """So much of it has passed."""
    is_known: bool = False
    """Whether any gateway was heard of it."""
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_counts: Sequence[int] = field(default_factory=list)
    running: int | None = None
    queued: int | None = None
    kv_cache: float | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None

    def add(self, row: EndpointMinute) -> None:
        """Add one gateway's."""
        self.is_known = True
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(row, name))
        self.ttft_counts = added(self.ttft_counts, row.ttft_counts)
        self.kv_cache = _most(self.kv_cache, row.kv_cache)
        for name in ("running", "queued", "prefix_queries", "prefix_hits"):
            value = getattr(row, name)
            if value is not None:
                setattr(self, name, (getattr(self, name) or 0) + value)

    @property
    def tokens_s(self) -> float | None:
        """Return how many tokens were written a second; None where nobody was heard."""
        return self.completion_tokens / max(self.seconds, LEAST_SO_FAR_S) if self.is_known else None

    @property
    def read_s(self) -> float | None:
        """Return how many tokens of prompts were read a second; None where nobody was heard."""
        return self.prompt_tokens / max(self.seconds, LEAST_SO_FAR_S) if self.is_known else None

    def ttft_s(self, part: float) -> float | None:
        """Return the time to the first token that `part` of the streams kept; None without a stream."""
        found = quantile(self.ttft_counts, TTFT_BOUNDS_MS, part)
        return None if found is None else found / 1000

    @property
    def hit_rate(self) -> float | None:
        """Return which share of prompts' tokens was in prefix caches; None where nothing was looked up."""
        return None if not self.prefix_queries or self.prefix_hits is None else self.prefix_hits / self.prefix_queries


def history(endpoint: Endpoint, *, minutes: int, now: datetime) -> list[Minute]:
    """Return the last minutes, the oldest first and the present one last, without gaps. In a read block."""
    last = minute_of(now)
    first = last - MINUTE * (min(max(minutes, 1), MINUTES) - 1)
    found = {first + MINUTE * n: Minute(first + MINUTE * n) for n in range((last - first) // MINUTE + 1)}
    found[last].seconds = max(0.0, (now - last).total_seconds())
    rows = EndpointMinute.objects.filter(
        tenant_id=endpoint.tenant_id, endpoint_id=endpoint.pk, minute__gte=first, minute__lte=last
    )
    for row in rows.order_by("minute").iterator(chunk_size=2000):
        found[row.minute].add(row)
    return list(found.values())


def summed(found: Sequence[Minute]) -> Minute:
    """Return several minutes as one; of peaks the highest, of one that goes on as much as has passed."""
    whole = Minute(found[0].at, seconds=0.0)
    for each in found:
        whole.seconds += each.seconds
        whole.is_known = whole.is_known or each.is_known
        for name in _SUMS:
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        whole.ttft_counts = added(whole.ttft_counts, each.ttft_counts)
        for name in ("running", "queued", "kv_cache"):
            setattr(whole, name, _most(getattr(whole, name), getattr(each, name)))
        for name in ("prefix_queries", "prefix_hits"):
            value = getattr(each, name)
            if value is not None:
                setattr(whole, name, (getattr(whole, name) or 0) + value)
    return whole


def _most(left: N | None, right: N | None) -> N | None:
    return right if left is None else left if right is None else max(left, right)
