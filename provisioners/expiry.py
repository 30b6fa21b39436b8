"""What time does to an allocation: warnings, grace, the end. Pure.

Trial and standard are warned 14, 7 and 1 days before their end, kept through grace, then reclaimed.
Production is never reclaimed by time: it becomes review overdue, and says so again each week.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tenants.states import ServiceClass

WARN_DAYS: Final = (14, 7, 1)
GRACE: Final[Mapping[ServiceClass, timedelta]] = {
    ServiceClass.TRIAL: timedelta(days=1),
    ServiceClass.STANDARD: timedelta(days=7),
}
ESCALATE_EVERY: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Life:
    """What of an allocation time looks at."""

    service_class: ServiceClass
    ready_at: datetime | None
    expires_at: datetime | None
    warned_days: int | None
    """Smallest number of days already warned about."""
    grace_until: datetime | None


@dataclass(frozen=True, slots=True)
class Running:
    """Nothing to say; look again at `next_at` (None: never by itself)."""

    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class Warn:
    """It ends in at most `days` days: say so once."""

    days: int
    next_at: datetime


@dataclass(frozen=True, slots=True)
class InGrace:
    """Its term is over; it is kept until `until` and can still be renewed."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Grace is over: it is deleted like any other."""


@dataclass(frozen=True, slots=True)
class ReviewOverdue:
    """Production past its end: people must decide. `week` counts from 0 and makes each reminder one of its own."""

    week: int
    next_at: datetime


Step = Running | Warn | InGrace | Reclaim | ReviewOverdue


def step(life: Life, now: datetime) -> Step:
    """Return what time asks for now; repeating it changes nothing."""
    end = life.expires_at
    if end is None:
        return Running(None)
    if now >= end:
        if life.service_class is ServiceClass.PRODUCTION:
            week = (now - end) // ESCALATE_EVERY
            return ReviewOverdue(week, end + (week + 1) * ESCALATE_EVERY)
        until = life.grace_until or end + GRACE[life.service_class]
        return Reclaim() if now >= until else InGrace(until)
    return _before_the_end(life, end, now)


def _before_the_end(life: Life, end: datetime, now: datetime) -> Step:
    term = end - life.ready_at if life.ready_at is not None else None
    # A threshold that lies before the beginning of the term was never a warning: nobody is warned at the start.
    thresholds = [days for days in WARN_DAYS if term is None or timedelta(days=days) < term]
    passed = [days for days in thresholds if now >= end - timedelta(days=days)]
    ahead = [end - timedelta(days=days) for days in thresholds if now < end - timedelta(days=days)]
    next_at = min([*ahead, end])
    if passed and (life.warned_days is None or min(passed) < life.warned_days):
        return Warn(min(passed), next_at)
    return Running(next_at)
