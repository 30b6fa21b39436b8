"""Making isolation certificates: those that people ask for at once, the rest each day and after every repair.

Runs beside the dispatcher, which needs no broker. One boundary is claimed in a short transaction, tried outside of any,
and stored in another; a process that dies leaves a claim that another one takes over after two minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from django.utils import timezone

from provisioners import connections, lookout
from provisioners.driver import Certifies, Driver, DriverError
from provisioners.specs_from_rows import ref_of
from tenants import certificates
from tenants.actor import SYSTEM
from tenants.models import Boundary, Provider
from tenants.operations import boundaries
from tenants.states import BoundaryKind
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 2.0
ROUND: Final = timedelta(seconds=30)
"""Between looks for boundaries that nobody asked about."""
CLAIMED_FOR: Final = timedelta(minutes=2)
AGAIN_AFTER: Final = timedelta(minutes=10)
"""After a try that could not even begin."""

Clock = Callable[[], datetime]


def claim(now: datetime, *, asked_only: bool) -> Boundary | None:
    """Return a boundary that wants a certificate, claimed for this process, None where none does."""
    with acting(SYSTEM):
        rows = Boundary.objects.filter(
            kind=BoundaryKind.NAMESPACE.value,
            released_at__isnull=True,
            deletion_requested_at__isnull=True,
            ready_at__isnull=False,
            provider__enabled=True,
        ).select_related("provider", "tenant")
        if asked_only:
            rows = rows.filter(observed__has_key=certificates.ASKED)
        for row in rows.order_by("pk"):
            if not certificates.is_due(row, now=now) or _is_claimed(row, now):
                continue
            locked = Boundary.objects.select_for_update(no_key=True, skip_locked=True).filter(pk=row.pk).first()
            if locked is None or _is_claimed(locked, now):
                continue
            locked.observed = {**locked.observed, certificates.RUNNING: {"until": (now + CLAIMED_FOR).isoformat()}}
            locked.save(update_fields=["observed"])
            return row
    return None


def _is_claimed(row: Boundary, now: datetime) -> bool:
    running = row.observed.get(certificates.RUNNING)
    return running is not None and datetime.fromisoformat(str(running["until"])) > now


def answer(
    clock: Clock, *, asked_only: bool = False, driver_of: Callable[[Provider], Driver] = connections.driver_of
) -> int:
    """Make one certificate that is wanted; return how many were made."""
    row = claim(clock(), asked_only=asked_only)
    if row is None:
        return 0
    started = time.monotonic()
    try:
        driver = driver_of(row.provider)
        made = driver.certify(ref_of(row)) if isinstance(driver, Certifies) else None
    except DriverError as error:
        log.warning("boundary %s could not be certified: %s", row.short_id, error.detail)
        made = None
    if made is None:
        _later(row, clock())
        return 0
    boundaries.certified(
        boundary=row,
        checks=[(check.key, check.title, check.outcome, check.seen) for check in made.checks],
        passed=made.passed,
        facts={
            "version": made.version,
            "unshown": list(made.unshown),
            "simulated": made.simulated,
            "took_ms": round((time.monotonic() - started) * 1000),
        },
        actor=SYSTEM,
        now=clock(),
    )
    return 1


def _later(row: Boundary, now: datetime) -> None:
    """Leave a boundary alone for a while."""
    with acting(SYSTEM):
        locked = Boundary.objects.select_for_update(no_key=True).get(pk=row.pk)
        locked.observed = {**locked.observed, certificates.RUNNING: {"until": (now + AGAIN_AFTER).isoformat()}}
        locked.save(update_fields=["observed"])


def beside(stop: threading.Event, *, clock: Clock = timezone.now) -> threading.Thread:
    """Start the thread that certifies until `stop` is set; whatever goes wrong is logged and tried again."""
    looked_at: list[datetime] = []

    def look() -> None:
        now = clock()
        whole = not looked_at or now - looked_at[0] > ROUND
        if not answer(clock, asked_only=not whole) and whole:
            looked_at[:] = [now]

    return lookout.start("certifying", look, stop, pause_s=PAUSE_S, waits="certificates wait")
