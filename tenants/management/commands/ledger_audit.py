"""`ledger audit`: compare holds, masks, counters, quotas and usage. Exit 0 clean, 3 findings."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from tenants import audit
from tenants.actor import SYSTEM
from tenants.transactions import reading


class Command(BaseCommand):
    """Print every contradiction of the ledger."""

    help = "Compare holds, masks, counters, quotas and usage. Exit 0 clean, 3 findings."
    checks = audit.LEDGER

    def add_arguments(self, parser: CommandParser) -> None:
        """`--json` prints one object per finding."""
        parser.add_argument("--json", action="store_true")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Run the checks as the system."""
        with reading(SYSTEM):
            found = audit.findings(self.checks)
        for finding in found:
            self.stdout.write(
                json.dumps({"check": finding.check, "subject": finding.subject, "detail": finding.detail})
                if options["json"]
                else f"{finding.check}: {finding.subject}: {finding.detail}"
            )
        if not options["json"]:
            self.stdout.write(f"{len(self.checks)} checks, {len(found)} findings")
        if found:
            sys.exit(3)
