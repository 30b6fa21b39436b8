"""Reports of the doctor: those that people ask for at once, one by itself every few minutes. One process at a time.

Runs beside the dispatcher, which needs no broker: what is ill must not keep the doctor away. A process that dies
leaves its report open, and another one takes it up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import metadata
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.utils import timezone
from django.utils.module_loading import import_string

from provisioners import lease, lookout
from tenants import doctor
from tenants.actor import SYSTEM
from tenants.doctor import Result, State
from tenants.models import SystemReport
from tenants.transactions import acting

log = logging.getLogger(__name__)

EVERY: Final = timedelta(minutes=5)
"""Between reports that nobody asked for."""
THOROUGH_EVERY: Final = timedelta(hours=6)
KEPT: Final = timedelta(days=7)
PAUSE_S: Final = 2.0
BROKER_S: Final = 3.0
_LOCK: Final = 0x7E4A_0002

Clock = Callable[[], datetime]


def release() -> str:
    """Return the release that this process runs, `--` where it was not installed as a package."""
    try:
        return metadata.version("tenantry")
    except metadata.PackageNotFoundError:
        return "--"


def broker() -> Result:
    """Say whether the broker takes a connection; never its address's user and password."""
    app = import_string(settings.TENANTRY_CELERY_APP)
    url = urlsplit(app.conf.broker_url or "")
    where = f"{url.scheme}://{url.hostname or ''}{f':{url.port}' if url.port else ''}"
    started = time.monotonic()
    try:
        with app.connection_for_write(connect_timeout=BROKER_S) as made:
            made.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_S)
    except Exception as error:  # noqa: BLE001 - a broker raises anything at all
        return Result("broker", State.WARN, {"word": "away", "where": where, "error": type(error).__name__})
    return Result(
        "broker", State.OK, {"word": "there", "where": where, "ms": round((time.monotonic() - started) * 1000)}
    )


def answer(clock: Clock) -> int:
    """Write the report that was asked for, or the one that is due by itself; return how many were written."""
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        row = cursor.fetchone()
        report = _next(clock()) if row and row[0] else None
    if report is None:
        return 0
    started = time.monotonic()
    results = doctor.examine(now=clock(), thorough=report.thorough, outside={"broker": broker})
    with acting(SYSTEM):
        SystemReport.objects.filter(pk=report.pk, done_at__isnull=True).update(
            done_at=clock(),
            took_ms=round((time.monotonic() - started) * 1000),
            worker=lease.owner_name(),
            release=release(),
            results=[result.as_json() for result in results],
        )
        SystemReport.objects.filter(asked_at__lt=clock() - KEPT).delete()
    return 1


def _next(now: datetime) -> SystemReport | None:
    """Return the report that waits, a new one where it is time for it, None otherwise."""
    waiting = SystemReport.objects.filter(done_at__isnull=True).order_by("asked_at", "pk").first()
    if waiting is not None:
        return waiting
    done = SystemReport.objects.filter(done_at__isnull=False)
    if done.filter(done_at__gt=now - EVERY).exists():
        return None
    thorough = not done.filter(thorough=True, done_at__gt=now - THOROUGH_EVERY).exists()
    return SystemReport.objects.create(asked_at=now, thorough=thorough)


def beside(stop: threading.Event, *, clock: Clock = timezone.now) -> threading.Thread:
    """Start the thread that answers until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start("doctor", lambda: answer(clock), stop, pause_s=PAUSE_S, waits="the doctor waits")
