"""`python -m controlplane.labs.kubernetes`: build, start, show and stop lab clusters from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from controlplane.labs.kubernetes import build, definitions, furniture
from controlplane.labs.kubernetes.cluster import Cluster, existing
from controlplane.labs.kubernetes.devices import CHOICES
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.real_node import RealNode


def main(words: list[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with a reason on standard error."""
    given = _parser().parse_args(words)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


def _build(given: argparse.Namespace) -> int:
    built = build.ensure(build.CONTROL_PLANE + (build.REAL_NODE if given.node == "real" else ()))
    print("\n".join(str(folder) for folder in built.folders))
    return 0


def _up(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    cluster.start(tell=_tell)
    with cluster.api() as api:
        if given.crds:
            definitions.install(api, Path(given.crds))
        nodes = (furniture.SYSTEM_NODE,) if given.nodes == "none" else furniture.usual_nodes()
        furniture.furnish(api, nodes, extended_resource=given.extended_resource)
    if given.node == "real":
        RealNode(cluster).start(tell=_tell)
    return _status(given)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _down(given: argparse.Namespace) -> int:
    cluster = _cluster(given)
    ran = cluster.stop()
    if given.delete:
        cluster.delete()
    print(f"cluster {cluster.name} {'stopped' if ran else 'did not run'}{', data deleted' if given.delete else ''}")
    return 0


def _status(given: argparse.Namespace) -> int:
    clusters = [_cluster(given)] if given.name or given.folder else existing()
    states = [cluster.status() for cluster in clusters]
    if given.json:
        listed = [
            {"name": s.name, "url": s.url, "ready": s.ready, "folder": str(s.folder), "processes": dict(s.processes)}
            for s in states
        ]
        print(json.dumps(listed, indent=2))
    else:
        for cluster, state in zip(clusters, states, strict=True):
            word = "ready" if state.ready else "starting or broken" if state.runs else "stopped"
            print(f"{state.name}: {word}  {state.url}\n  kubeconfig {cluster.kubeconfig}")
            running = dict(state.processes) | RealNode(cluster).pids()
            print("  " + (", ".join(f"{name} {pid}" for name, pid in running.items()) or "no process"))
    return 0 if all(state.ready for state in states) else 1


def _cluster(given: argparse.Namespace) -> Cluster:
    folder = Path(given.folder) if given.folder else None
    return Cluster(
        given.name or "lab",
        folder=folder,
        pods=getattr(given, "pods", "played"),
        audit=getattr(given, "audit", False),
        player=_player(given),
    )


def _player(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments of the player that were asked for."""
    words = (("--choice", getattr(given, "choice", "")), ("--seed", getattr(given, "seed", None)))
    return tuple(str(word) for name, value in words if value not in {"", None} for word in (name, value))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controlplane.labs.kubernetes", description=__doc__)
    commands = parser.add_subparsers(required=True)
    builder = _add(commands, "build", _build, "build the programs that are missing")
    up = _add(commands, "up", _up, "build if need be, start, make nodes; repeat it safely")
    up.add_argument(
        "--pods",
        choices=("played", "ready"),
        default="played",
        help="who makes our pods ready: the player, or nobody has to",
    )
    up.add_argument("--nodes", choices=("usual", "none"), default="usual", help="GPU nodes of every kind, or none")
    up.add_argument("--choice", choices=CHOICES, help="which devices a device-plugin node gives (default: seeded)")
    up.add_argument("--seed", type=int, help="of what is chosen by lot")
    up.add_argument("--crds", help="folder of CustomResourceDefinitions to install")
    up.add_argument("--audit", action="store_true", help="write every request to logs/audit.jsonl")
    up.add_argument("--extended-resource", action="store_true", help="DRA's class of whole GPUs serves nvidia.com/gpu")
    for one, what in (
        (builder, "also those of the real node"),
        (up, "also a real node: kubelet and containerd (root)"),
    ):
        one.add_argument("--node", choices=("none", "real"), default="none", help=what)
    down = _add(commands, "down", _down, "stop")
    down.add_argument("--delete", action="store_true", help="and delete its data")
    _add(commands, "status", _status, "show what runs (all clusters without a name)")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--name", default="", help="name of the cluster (default: lab)")
    parser.add_argument("--folder", default="", help="its folder (default: below the state folder)")
    parser.add_argument("--json", action="store_true", help="status as JSON")
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
