"""Threads beside the dispatcher that look for something to do: what one waits for keeps nothing else waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.db import connection

from tenants.errors import DependencyDown

log = logging.getLogger(__name__)


def start(
    name: str,
    look: Callable[[], object],
    stop: threading.Event,
    *,
    pause_s: float,
    waits: str,
) -> threading.Thread:
    """Start the thread that looks every `pause_s` until `stop` is set; whatever goes wrong is logged and tried again.

    `waits` is what waits, in words, while the database does not answer. Each thread keeps its connection: to open one
    costs more than ten looks.
    """

    def run() -> None:
        try:
            while not stop.wait(pause_s):
                try:
                    look()
                except DependencyDown:
                    log.warning("%s: the database does not answer; %s", name, waits)
                except Exception:  # one look's trouble must not end the thread: the others' turns come
                    log.exception("%s failed", name)
        finally:
            connection.close()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
