"""`python -m controlplane seed_demo`: the lived-in demo, once. Run it while no worker runs."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from controlplane.demo import handing, seed
from controlplane.demo.guard import RealProviders, refuse_beside_real_providers


class Command(BaseCommand):
    """Play thirty days of history, and hand the estates to the sandbox."""

    help = "Make the lived-in demo: simulated estates with thirty days of history. Changes nothing the second time."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take `--small`."""
        parser.add_argument("--small", action="store_true", help="fewer hosts and objects, three days: for tests")

    def handle(self, *args: Any, **options: Any) -> None:
        """Seed; says what was made."""
        if not settings.TENANTRY_SANDBOX_URL:
            msg = "the demo needs a sandbox: set TENANTRY_SANDBOX_URL and TENANTRY_SANDBOX_TOKEN"
            raise CommandError(msg)
        began = time.monotonic()
        url = settings.TENANTRY_SANDBOX_URL
        try:
            refuse_beside_real_providers()
            made = seed.seed(
                url=url,
                now=timezone.now(),
                small=options["small"],
                hand_over=lambda estates: handing.hand_over(estates, url=url, token=settings.TENANTRY_SANDBOX_TOKEN),
            )
        except (seed.DemoBroken, handing.HandingFailed, RealProviders) as error:
            raise CommandError(str(error)) from error
        if not made.estates:
            self.stdout.write("the demo's history is there already")
            return
        self.stdout.write(
            f"made {made.objects} objects and {made.hours} hours of usage on {len(made.estates)} simulated sites "
            f"in {time.monotonic() - began:.1f} s"
        )
