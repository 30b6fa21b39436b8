"""`python -m controlplane dispatcher`: turn what is due into nudges until told to stop."""

from __future__ import annotations

import signal
from typing import Any, Final

from django.core.management.base import BaseCommand

from provisioners import (
    benchmarking,
    certifying,
    connections,
    dispatcher,
    examination,
    letting_in,
    listening,
    opening_consoles,
    outside,
    reading_logs,
    staging_models,
)

BESIDE: Final = (
    examination, certifying, letting_in, opening_consoles, listening, staging_models, reading_logs, benchmarking,
    outside,
)  # fmt: skip


class Command(BaseCommand):
    """Run the dispatcher in the foreground; SIGTERM and Ctrl-C end it cleanly."""

    help = "Publish nudges for what is due; run passes here while the broker is away."

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal comes."""
        running = dispatcher.default()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.stop.set())
        beside = tuple(each.beside(running.stop) for each in BESIDE)
        try:
            running.run()
            for thread in beside:
                thread.join(timeout=5)
        finally:
            connections.close_all()
