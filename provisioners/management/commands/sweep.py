"""`python -m controlplane sweep`: run what is due, here, without broker or worker."""

from __future__ import annotations

import signal
import threading
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from provisioners import connections, sweep


class Command(BaseCommand):
    """Sweep once, or again and again with `--loop`."""

    help = "Run every pass that is due, in this process."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take `--loop`."""
        parser.add_argument("--loop", action="store_true", help="go on until SIGTERM or Ctrl-C")

    def handle(self, *args: Any, **options: Any) -> None:
        """Sweep, and leave nothing open at providers."""
        try:
            self._sweep(is_loop=options["loop"])
        finally:
            connections.close_all()

    def _sweep(self, *, is_loop: bool) -> None:
        engine = sweep.engine()
        if not is_loop:
            self.stdout.write(f"{sweep.sweep(engine)} passes")
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            made = sweep.sweep(engine, budget_s=settings.TENANTRY_SWEEP_S)
            stop.wait(0.2 if made else min(1.0, settings.TENANTRY_SWEEP_S))
