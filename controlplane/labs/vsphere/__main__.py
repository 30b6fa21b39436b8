"""`python -m controlplane.labs.vsphere`: build, start, show and stop lab vCenters from a terminal."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from controlplane.labs.errors import LabError
from controlplane.labs.vsphere import build, guests, worlds
from controlplane.labs.vsphere.vcenter import VCenter, existing


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with a reason on standard error."""
    given = _parser().parse_args(words)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


def _build(_: argparse.Namespace) -> int:
    print("\n".join(str(folder) for folder in build.ensure().folders))
    return 0


def _up(given: argparse.Namespace) -> int:
    world = replace(worlds.usual(), policy=worlds.Policy(given.policy), seed=given.seed)
    vcenter = _vcenter(given, world)
    vcenter.start(tell=lambda text: print(text, file=sys.stderr, flush=True))
    if given.guests:
        guests.start(vcenter)
    return _status(given)


def _guests(given: argparse.Namespace) -> int:
    vcenter = _vcenter(given)
    if not vcenter.status().ready:
        raise LabError(f"vCenter {vcenter.name} does not run")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    guests.play(vcenter)
    return 0


def _down(given: argparse.Namespace) -> int:
    vcenter = _vcenter(given)
    ran = vcenter.stop()
    if given.delete:
        vcenter.delete()
    print(f"vCenter {vcenter.name} {'stopped' if ran else 'did not run'}{', data deleted' if given.delete else ''}")
    return 0


def _status(given: argparse.Namespace) -> int:
    found = [_vcenter(given)] if given.name or given.folder else existing()
    states = [one.status() for one in found]
    if given.json:
        listed = [
            {
                "name": one.name,
                "url": state.url,
                "ready": state.ready,
                "pid": state.pid,
                "folder": str(one.folder),
                "ca_file": str(one.ca_file),
                "user": one.user,
                "password_file": str(one.password_file),
            }
            for one, state in zip(found, states, strict=True)
        ]
        print(json.dumps(listed, indent=2))
    else:
        for one, state in zip(found, states, strict=True):
            word = "ready" if state.ready else "starting or broken" if state.pid else "stopped"
            print(f"{state.name}: {word}  {state.url}  {f'pid {state.pid}' if state.pid else 'no process'}")
            print(f"  CA file   {one.ca_file}\n  user      {one.user}\n  password  {one.password_file}")
    return 0 if all(state.ready for state in states) else 1


def _vcenter(given: argparse.Namespace, world: worlds.World | None = None) -> VCenter:
    return VCenter(given.name or "lab", folder=Path(given.folder) if given.folder else None, world=world)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controlplane.labs.vsphere", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add(commands, "build", _build, "build the program if it is missing")
    up = _add(commands, "up", _up, "build if need be and start; repeat it safely")
    up.add_argument(
        "--policy",
        choices=[one.value for one in worlds.Policy],
        default=worlds.Policy.FIRST.value,
        help="how hosts choose GPU and start at power-on",
    )
    up.add_argument("--guests", action="store_true", help="also play what runs in endpoint machines, in a process")
    up.add_argument("--seed", type=int, default=1, help="of what is chosen by lot")
    _add(commands, "guests", _guests, "play what runs in endpoint machines, here, until Ctrl-C")
    down = _add(commands, "down", _down, "stop: its objects are gone then")
    down.add_argument("--delete", action="store_true", help="and delete its logins and logs")
    _add(commands, "status", _status, "show what runs (all vCenters without a name)")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--name", default="", help="name of the vCenter (default: lab)")
    parser.add_argument("--folder", default="", help="its folder (default: below the state folder)")
    parser.add_argument("--json", action="store_true", help="status as JSON")
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
