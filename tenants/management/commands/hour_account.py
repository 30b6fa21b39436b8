"""`hour_account --from --to`: prove that every GPU and hour adds up. Exit 0 it does, 3 it does not."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants import hour_account
from tenants.actor import SYSTEM
from tenants.pricing import Use, money
from tenants.transactions import reading


class Command(BaseCommand):
    """Print the slot-hours of the estate by use, and every GPU whose account does not come out."""

    help = "Check billed + held unbilled + reserved + free + foreign + maintenance + fault = capacity. Exit 0 or 3."

    def add_arguments(self, parser: CommandParser) -> None:
        """`--from` and `--to` are RFC 3339 times; by default the last 24 hours."""
        parser.add_argument("--from", dest="start", default="")
        parser.add_argument("--to", dest="end", default="")
        parser.add_argument("--json", action="store_true")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Account as the system."""
        now = datetime.now(UTC)
        end = _moment(options["end"], "--to") if options["end"] else now
        start = _moment(options["start"], "--from") if options["start"] else end - timedelta(days=1)
        if end < start:
            raise CommandError("--to is before --from")
        with reading(SYSTEM):
            total = hour_account.of_estate(start, end, now=now)
        uses = {use.value: str(money(total.slot_hours(use))) for use in Use}
        capacity = str(money(total.capacity_slot_hours))
        if options["json"]:
            found = [{"device": m.short_id, "detail": m.detail} for m in total.mismatches]
            self.stdout.write(
                json.dumps(
                    {"gpu_hours": total.gpu_hours, "capacity": capacity, "uses": uses, "balanced": total.balanced}
                    | {"mismatches": found}
                )
            )
        else:
            for use, amount in uses.items():
                self.stdout.write(f"{use:14} {amount:>20} slot-hours")
            self.stdout.write(f"{'capacity':14} {capacity:>20} slot-hours over {total.gpu_hours} GPU-hours")
            for mismatch in total.mismatches:
                self.stdout.write(f"mismatch: {mismatch.short_id}: {mismatch.detail}")
            self.stdout.write("adds up exactly" if total.balanced else "does not add up")
        if not total.balanced:
            sys.exit(3)


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"{option}: give a time such as 2026-06-01T00:00Z") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
