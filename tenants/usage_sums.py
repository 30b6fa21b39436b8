"""Sums of what is billed, from the records themselves: GPU slices, vCPU, memory, storage, tokens.

The same facts as `tenants.costs` (which gives the lines of one tenant), grouped by the database. Reads only, in the
caller's read block; one statement each, however much there is. `tenants.billed` is what pages ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.db import connection

from tenants.operations.pricing import TOKEN


@dataclass(frozen=True, slots=True)
class Piece:
    """A time [lo, hi) whose sums are told apart from others by `since`."""

    lo: datetime
    hi: datetime
    since: datetime


@dataclass(frozen=True, slots=True)
class BilledSum:
    """What one tenant itself was billed of one item at one provider."""

    tenant: UUID
    provider: UUID
    item: str
    since: datetime
    quantity: Decimal
    """Unit-seconds, exact to the microsecond; of tokens their number."""


_QUERY: Final = """
WITH billed AS (SELECT * FROM (<records>) AS record WHERE lo < hi),
piece AS (
  SELECT lo, hi, since FROM unnest(%(lows)s::timestamptz[], %(highs)s::timestamptz[], %(sinces)s::timestamptz[])
    AS s(lo, hi, since)
),
unit AS (
  SELECT g.tenant_id, g.provider_id, g.allocation_id, g.unit_id, lower(x.during) AS lo, upper(x.during) AS hi
  FROM (SELECT tenant_id, provider_id, allocation_id, unit_id, range_agg(tstzrange(lo, hi)) AS spans
        FROM billed WHERE unit_id IS NOT NULL GROUP BY 1, 2, 3, 4) g, unnest(g.spans) AS x(during)
),
former AS (
  SELECT z.unit_id, coalesce(lag(z.until) OVER w, '-infinity') AS since, z.until, z.vcpu, z.memory_gib
  FROM tenants_unitsize z
  WHERE z.until > %(start)s::timestamptz AND (%(tenants)s::uuid[] IS NULL OR z.tenant_id = ANY (%(tenants)s::uuid[]))
    AND (%(allocations)s::uuid[] IS NULL OR z.allocation_id = ANY (%(allocations)s::uuid[]))
  WINDOW w AS (PARTITION BY z.unit_id ORDER BY z.until)
),
resized AS (SELECT unit_id, max(until) AS since FROM former GROUP BY 1),
sized AS (
  SELECT n.tenant_id, n.provider_id, greatest(n.lo, f.since) AS lo, least(n.hi, f.until) AS hi, f.vcpu, f.memory_gib
  FROM unit n JOIN former f ON f.unit_id = n.unit_id AND f.since < n.hi AND f.until > n.lo
  UNION ALL
  SELECT n.tenant_id, n.provider_id, greatest(n.lo, r.since), n.hi,
         coalesce(u.vcpu, (k.units -> n.unit_id::text ->> 0)::integer, 0),
         coalesce(u.memory_gib, (k.units -> n.unit_id::text ->> 1)::integer, 0)
  FROM unit n LEFT JOIN resized r ON r.unit_id = n.unit_id LEFT JOIN tenants_unit u ON u.id = n.unit_id
  LEFT JOIN tenants_usagesubject k ON u.id IS NULL AND k.allocation_id = n.allocation_id
  WHERE r.since IS NULL OR r.since < n.hi
),
whole AS (
  SELECT g.tenant_id, g.provider_id, g.allocation_id, lower(x.during) AS lo, upper(x.during) AS hi
  FROM (SELECT tenant_id, provider_id, allocation_id, range_agg(tstzrange(lo, hi)) AS spans
        FROM billed GROUP BY 1, 2, 3) g, unnest(g.spans) AS x(during)
),
used AS (
  SELECT b.tenant_id, b.provider_id, 'gpu.' || d.product || '.slices' AS item, b.size::numeric AS amount, b.lo, b.hi
  FROM billed b JOIN tenants_gpudevice d ON d.id = b.device_id
  UNION ALL
  SELECT z.tenant_id, z.provider_id, x.item, x.amount::numeric, z.lo, z.hi
  FROM sized z CROSS JOIN LATERAL (VALUES ('vcpu', z.vcpu), ('memory_gib', z.memory_gib)) AS x(item, amount)
  WHERE x.amount > 0
  UNION ALL
  SELECT w.tenant_id, w.provider_id, 'storage_gib', x.amount, w.lo, w.hi
  FROM whole w LEFT JOIN tenants_allocation a ON a.id = w.allocation_id
  LEFT JOIN tenants_usagesubject k ON a.id IS NULL AND k.allocation_id = w.allocation_id
  CROSS JOIN LATERAL (SELECT coalesce((a.spec ->> 'storage_gib')::numeric, k.storage_gib, 0) AS amount) x
  WHERE x.amount > 0
)
SELECT u.tenant_id, u.provider_id, u.item, s.since,
       sum(u.amount * extract(epoch FROM least(u.hi, s.hi) - greatest(u.lo, s.lo)))
FROM used u JOIN piece s ON s.lo < u.hi AND s.hi > u.lo
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
"""A unit's vCPU and memory count once however many GPUs it has, and go on without a gap where it is moved; each time
by the size of that time (`UnitSize`, of which those that ended before the time say nothing). What was purged is known
by `UsageSubject`."""
_BILLED: Final = """
  SELECT r.tenant_id, r.provider_id, r.allocation_id, r.unit_id, r.size, r.device_id,
         greatest(r.held_from, r.billable_from, %(start)s::timestamptz) AS lo,
         least(r.held_to, r.billable_to, %(end)s::timestamptz) AS hi
  FROM tenants_usagerecord r
  WHERE r.allocation_id IS NOT NULL AND r.tenant_id IS NOT NULL AND r.billable_from IS NOT NULL
    AND (%(tenants)s::uuid[] IS NULL OR r.tenant_id = ANY (%(tenants)s::uuid[]))
    AND (%(allocations)s::uuid[] IS NULL OR r.allocation_id = ANY (%(allocations)s::uuid[]))
    AND r.held_from < %(end)s::timestamptz AND (r.held_to IS NULL OR r.held_to > %(start)s::timestamptz)
"""
_TO_COME: Final = """
  SELECT r.tenant_id, r.provider_id, r.allocation_id, r.unit_id, r.size, r.device_id, %(start)s::timestamptz AS lo,
         least(r.held_to, r.billable_to, a.expires_at, %(end)s::timestamptz) AS hi
  FROM tenants_usagerecord r JOIN tenants_allocation a ON a.id = r.allocation_id
  WHERE r.tenant_id IS NOT NULL AND r.billable_from <= %(start)s::timestamptz
    AND r.held_from <= %(start)s::timestamptz AND (r.held_to IS NULL OR r.held_to > %(start)s::timestamptz)
    AND (%(tenants)s::uuid[] IS NULL OR r.tenant_id = ANY (%(tenants)s::uuid[]))
    AND (%(allocations)s::uuid[] IS NULL OR r.allocation_id = ANY (%(allocations)s::uuid[]))
"""
_TOKENS: Final = """
SELECT u.tenant_id, b.provider_id, u.since, sum(u.tokens)
FROM (
  SELECT e.tenant_id, e.endpoint_id, s.since, sum(e.prompt_tokens + e.completion_tokens) AS tokens
  FROM tenants_endpointusage e
  JOIN unnest(%(lows)s::timestamptz[], %(highs)s::timestamptz[], %(sinces)s::timestamptz[]) AS s(lo, hi, since)
    ON e.hour >= s.lo AND e.hour < s.hi
  WHERE e.hour >= %(start)s::timestamptz AND e.hour < %(end)s::timestamptz
    AND (%(tenants)s::uuid[] IS NULL OR e.tenant_id = ANY (%(tenants)s::uuid[]))
  GROUP BY 1, 2, 3
) AS u
JOIN tenants_endpoint p ON p.id = u.endpoint_id JOIN tenants_boundary b ON b.id = p.boundary_id
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
"""Summed by endpoint first: a third less time than joining each hour."""


def capacity(
    pieces: Sequence[Piece], *, tenants: Sequence[UUID] | None, allocations: Sequence[UUID] | None = None
) -> list[BilledSum]:
    """Return what was billed by time in each piece; of all tenants and objects that the caller sees, or of these."""
    return _capacity(_BILLED, pieces, tenants, allocations)


def to_come(
    pieces: Sequence[Piece], *, tenants: Sequence[UUID] | None, allocations: Sequence[UUID] | None = None
) -> list[BilledSum]:
    """Return what is billed where the pieces begin, gone on with to the end of each object or of the pieces."""
    return _capacity(_TO_COME, pieces, tenants, allocations)


def _capacity(
    records: str, pieces: Sequence[Piece], tenants: Sequence[UUID] | None, allocations: Sequence[UUID] | None
) -> list[BilledSum]:
    if not pieces:
        return []
    values = _values(pieces, tenants) | {"allocations": list(allocations) if allocations is not None else None}
    with connection.cursor() as cursor:
        cursor.execute(_QUERY.replace("<records>", records), values)
        return [BilledSum(tenant, provider, item, since, n) for tenant, provider, item, since, n in cursor.fetchall()]


def tokens(pieces: Sequence[Piece], *, tenants: Sequence[UUID] | None) -> list[BilledSum]:
    """Return what was counted of tokens in each piece; an hour belongs to the piece in which it begins."""
    if not pieces:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_TOKENS, _values(pieces, tenants))
        return [
            BilledSum(tenant, provider, TOKEN, since, Decimal(n)) for tenant, provider, since, n in cursor.fetchall()
        ]


def _values(pieces: Sequence[Piece], tenants: Sequence[UUID] | None) -> dict[str, Any]:
    return {
        "lows": [piece.lo for piece in pieces],
        "highs": [piece.hi for piece in pieces],
        "sinces": [piece.since for piece in pieces],
        "start": min(piece.lo for piece in pieces),
        "end": max(piece.hi for piece in pieces),
        "tenants": list(tenants) if tenants is not None else None,
    }
