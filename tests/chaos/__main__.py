"""`python -m tests.chaos [broker|redis|postgres|outage|blackout|kills|all] [--short] [--away S]`: take parts away.

Each scenario starts an installation of its own in a temporary folder, hurts it, and prints a table of what was
looked at. Exit status 1 if any line failed. The folder of a scenario that broke is kept, with its logs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.chaos import blackout, broker, database, facts, kills, outage
from tests.chaos.facts import Row
from tests.chaos.stack import ChaosFailed

Scenario = Callable[..., list[Row]]
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "broker": broker.folder,
    "redis": broker.redis,
    "postgres": database.crashes,
    "outage": outage.without_control_plane,
    "blackout": blackout.everything_away,
    "kills": kills.at_random,
}


def main() -> int:
    """Run what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("scenario", nargs="?", default="all", choices=[*SCENARIOS, "all"])
    parser.add_argument("--short", action="store_true", help="fewer and shorter disturbances")
    parser.add_argument("--away", type=float, metavar="S", help="seconds that a blackout lasts, instead of 300")
    asked = parser.parse_args()
    names = list(SCENARIOS) if asked.scenario == "all" else [asked.scenario]
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()
        print(f"{name} …", flush=True)
        try:
            more = {"away_s": asked.away} if name == "blackout" else {}
            made = SCENARIOS[name](short=asked.short, **more)
        except ChaosFailed as failure:
            made = [Row(name, "broke off", str(failure)[:400], ok=False)]
        rows += [*made, Row(name, "time taken", f"{time.monotonic() - began:.0f} s", ok=True)]
    return 1 if facts.show(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
