"""Isolation certificates of boundaries: asked for, due, and read back from the events that hold them.

A certificate is an event (`boundary.certified`) with every check in it: dated, in the tenant's hash chain, never
changed. `Boundary.observed` holds only what tells whether another one is due.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants.models import Boundary, Event
from tenants.states import BoundaryKind, ConditionType, condition_of

CERTIFIED: Final = "boundary.certified"
ASKED: Final = "certificate_asked"
"""Entry of `observed`: somebody waits for one."""
LAST: Final = "certificate"
"""Entry of `observed`: when the last one was made and how it ended."""
RUNNING: Final = "certificate_running"
"""Entry of `observed`: since when a worker is at it."""
SHAKEN: Final = "certificate_shaken"
"""Entry of `observed`: what isolates everybody at its provider was changed by others and put back since then."""
EVERY: Final = timedelta(hours=24)
"""Between certificates that nobody asked for."""
FEATURE: Final = "certificate"
"""Name of the capability at a provider."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check as it was stored."""

    key: str
    title: str
    outcome: str
    seen: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A certificate, read back."""

    boundary: UUID
    at: datetime
    passed: bool
    simulated: bool
    version: str
    took_ms: int
    checks: tuple[Check, ...]
    unshown: tuple[str, ...]
    seq: int
    hash: str
    """Of its event, in the tenant's chain."""

    def count(self, outcome: str) -> int:
        """Return how many checks ended so."""
        return sum(check.outcome == outcome for check in self.checks)


def history(boundary: UUID, *, most: int = 10) -> Sequence[Stored]:
    """Return the newest certificates of a boundary, newest first; in the caller's read block, by his rights."""
    rows = Event.objects.filter(object_id=boundary, kind=CERTIFIED).order_by("-seq")[:most]
    return [_stored(row) for row in rows]


def latest(boundary: UUID) -> Stored | None:
    """Return the newest certificate of a boundary, None where there is none yet."""
    return next(iter(history(boundary, most=1)), None)


def _stored(row: Event) -> Stored:
    data: Mapping[str, Any] = row.data
    assert row.object_id is not None
    return Stored(
        boundary=row.object_id,
        at=row.at,
        passed=bool(data["passed"]),
        simulated=bool(data["simulated"]),
        version=str(data["version"]),
        took_ms=int(data["took_ms"]),
        checks=tuple(Check(*each) for each in data["checks"]),
        unshown=tuple(data["unshown"]),
        seq=row.seq,
        hash=row.hash,
    )


def can_be(row: Boundary) -> bool:
    """Whether a boundary can be certified at all; its provider must be loaded."""
    return (
        row.kind == BoundaryKind.NAMESPACE.value
        and row.deletion_requested_at is None
        and bool((row.provider.capabilities.get("features") or {}).get(FEATURE))
    )


def is_due(row: Boundary, *, now: datetime) -> bool:
    """Whether a boundary wants another one.

    Asked for, never made, a day old, or anything was made since that isolates it alone or with others.
    """
    if row.ready_at is None or not can_be(row):
        return False
    last: Mapping[str, Any] | None = row.observed.get(LAST)
    if ASKED in row.observed or SHAKEN in row.observed or last is None:
        return True
    made = datetime.fromisoformat(str(last["at"]))
    if now - made > EVERY:
        return True
    built = condition_of(row.conditions, ConditionType.PROVISIONED)
    # What a pass repaired or changed since then was not looked at: after drift it is tried again.
    return built is not None and built["status"] == "True" and made < _when(built)


def _when(condition: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(condition["last_transition_at"]))
