"""`python -m controlplane.labs.vllm`: install vLLM for CPU and its small model, say where they are, take them away."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from controlplane.labs.errors import LabError
from controlplane.labs.vllm import build


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with a reason on standard error."""
    given = _parser().parse_args(words)
    command: Callable[[], int] = given.command
    try:
        return command()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


def _build() -> int:
    build.ensure()
    return _status()


def _status() -> int:
    print(json.dumps({name: str(value) for name, value in asdict(build.installed()).items()}, indent=1))
    return 0


def _remove() -> int:
    build.remove()
    print(f"removed from {build.folder()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controlplane.labs.vllm", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, command, words in (
        ("build", _build, "install what is missing (6 GB the first time)"),
        ("status", _status, "say where it is"),
        ("remove", _remove, "delete it"),
    ):
        commands.add_parser(name, help=words).set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
