"""Verifying a tenant's trail of events: does each follow from the one before, and is the last one the head?

Reads only, in the caller's read block, and only what row-level security shows: a member verifies his own tenant's
chain by himself. The checkpoints over all chains are the auditors' (`audit verify`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection

from tenants.models import ChainHead

MOST: Final = 4_000
"""Events verified at once; each costs one SHA-256 in the database, about 20 µs."""
MOST_FAULTS: Final = 20

_QUERY: Final = """
WITH part AS (
  SELECT e.*, lag(e.hash) OVER w AS before, lag(e.seq) OVER w AS before_seq
  FROM tenants_event e WHERE e.chain = %(chain)s AND e.seq > %(after)s AND e.seq <= %(end)s
  WINDOW w AS (ORDER BY e.seq)
)
SELECT count(*), min(seq), max(seq), min(at), max(at), (array_agg(hash ORDER BY seq DESC))[1],
       array_agg(seq ORDER BY seq) FILTER (WHERE
         hash <> event_hash(previous, chain, seq, at, tenant_id, kind, object_kind, object_id, actor, person_id, data)
         OR CASE WHEN before IS NULL THEN seq = 1 AND previous <> repeat('0', 64)
                 ELSE before <> previous OR seq <> before_seq + 1 END)
FROM part
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at and what did not fit."""

    events: int
    first: int
    """Number of the first event looked at, 0 where there is none."""
    last: int
    since: datetime | None
    until: datetime | None
    head: str
    """Hash of the last event: written down elsewhere, it proves later that nothing before it was changed."""
    faults: tuple[int, ...]
    """Numbers of events that do not follow from the one before, or whose hash is not that of their content."""
    head_fits: bool
    """Whether the chain ends where its head says."""

    @property
    def whole(self) -> bool:
        """Whether everything fits."""
        return self.head_fits and not self.faults


def verify(chain: UUID, *, most: int = MOST, upto: int | None = None) -> Verified:
    """Work out the hashes of the newest `most` events of a chain again, and compare them with what is kept.

    With `upto`, of those up to that number; `head` and `head_fits` are then about the last of them.
    """
    head = ChainHead.objects.filter(chain=chain).first()
    newest = head.seq if head is not None else 0
    end = newest if upto is None else max(0, min(upto, newest))
    after = max(0, end - most)
    with connection.cursor() as cursor:
        cursor.execute(_QUERY, {"chain": chain, "after": after, "end": end})
        count, first, last, since, until, found, faults = cursor.fetchone() or (0, *[None] * 6)
    at_head = end == newest and head is not None and end > 0
    return Verified(
        events=int(count),
        first=int(first or 0),
        last=int(last or 0),
        since=since,
        until=until,
        head=str(found or ""),
        faults=tuple(faults or ())[:MOST_FAULTS],
        head_fits=int(count) == end - after
        and int(last or 0) == end
        and (not at_head or (head is not None and head.hash == found)),
    )
