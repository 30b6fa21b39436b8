"""What the labs' walks have in common: saying what is simulated, people who log in, an end in words and a status."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from controlplane.cli.client import Client
from controlplane.cli.failures import CliError
from controlplane.cli.walk import Timeline, WalkFailed, log_in
from controlplane.labs.errors import LabError

People = dict[str, Client]
FAILURES: Final = (WalkFailed, CliError, LabError, OSError, ValueError, KeyError, subprocess.SubprocessError)


def main(
    module: str,
    description: str | None,
    arguments: Sequence[str],
    *,
    told: str,
    walks: Callable[[People, Timeline], Mapping[str, float]],
    stop: Callable[[], object],
) -> int:
    """Walk, or with `--stop` stop what a walk has started; return the exit status.

    `told` says what is simulated; `walks` returns the seconds from submit to the first use by title.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--stop", action="store_true")
    if parser.parse_args(arguments).stop:
        stop()
        return 0
    logins = Path(os.environ["TENANTRY_STATE_DIR"]) / "demo-logins.json"
    return _walk(os.environ["TENANTRY_PUBLIC_URL"], logins, told, walks)


def _walk(url: str, logins: Path, told: str, walks: Callable[[People, Timeline], Mapping[str, float]]) -> int:
    timeline = Timeline(Console(highlight=False, soft_wrap=True))
    people: People = {}
    try:
        timeline.plain(told, style="yellow")
        people = log_in(url, json.loads(logins.read_text(encoding="utf-8")))
        took = walks(people, timeline)
    except FAILURES as error:
        timeline.say("walk", f"FAILED: {type(error).__name__}: {error}", style="bold red")
        return 1
    finally:
        for client in people.values():
            client.close()
    timeline.plain()
    for title, seconds in took.items():
        timeline.plain(f"{title}: {seconds:.1f} s from submit to first use", style="bold green")
    return 0
