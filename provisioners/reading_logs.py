"""Answering people who want to read the log of what serves their endpoint: its last lines, read at the provider.

Runs beside the dispatcher, in a thread of its own: a provider that hangs keeps nothing else waiting. Two processes that
answer the same asking read twice; the second answer is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.utils import timezone

from provisioners import connections, lookout
from provisioners.driver import Driver, DriverError
from provisioners.specs_from_rows import ref_of
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import EndpointLog, Provider
from tenants.operations import endpoint_logs
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.3
AT_ONCE: Final = 20


def answer(clock: Callable[[], datetime], *, driver_of: Callable[[Provider], Driver] = connections.driver_of) -> int:
    """Answer who asked, oldest first; return how many were answered."""
    with acting(SYSTEM):
        endpoint_logs.purge(clock())
        waiting = list(
            EndpointLog.objects.filter(answered_at__isnull=True)
            .select_related("endpoint__boundary__provider", "endpoint__tenant")
            .order_by("asked_at", "pk")[:AT_ONCE]
        )
    for row in waiting:
        try:
            lines, error = _read(row, driver_of), ""
        except DependencyDown:
            raise
        except DriverError as trouble:
            lines, error = [], f"It could not be read: {trouble.detail}."
        except Exception:  # one asking's trouble is not the others'
            log.exception("a log could not be read")
            lines, error = [], "It could not be read. Ask an operator to look at the log of the dispatcher."
        endpoint_logs.answered(log=row, lines=lines, error=error, actor=SYSTEM, now=clock())
    return len(waiting)


def _read(row: EndpointLog, driver_of: Callable[[Provider], Driver]) -> list[tuple[str, str, str]]:
    boundary = row.endpoint.boundary
    assert boundary is not None  # without one nobody could ask
    driver = driver_of(boundary.provider)
    return [(line.at, line.source, line.text) for line in driver.logs(ref_of(row.endpoint), since="", tail=row.tail)]


def beside(stop: threading.Event, *, clock: Callable[[], datetime] = timezone.now) -> threading.Thread:
    """Start the thread that reads logs until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start("reading-logs", lambda: answer(clock), stop, pause_s=PAUSE_S, waits="no log is read")
