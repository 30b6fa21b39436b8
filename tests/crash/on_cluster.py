"""`python -m tests.crash --on kubernetes`: the table on clusters of the lab, one per job."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from provisioners.steps import REGISTRY
from tests.crash import cluster, tables
from tests.crash.clock import Clocks
from tests.crash.databases import Databases
from tests.crash.lives import LIVES, Lab


def run(folder: Path, options: argparse.Namespace) -> bool:
    """Run the table; return whether all points held and every step of a namespace was come to."""
    with ExitStack() as stack:
        store = Databases(folder)
        stack.callback(store.stop)
        store.start()
        lab = Lab(store, Clocks(), _clusters(folder, options.jobs, stack))
        lab.ground()
        mine = [name for name in REGISTRY if name.split(".")[0] in {"namespace", "serving", "access"}]
        wanted = ["layout.apply", *(word for name in mine for word in (name, f"undo:{name}"))]
        return tables.run(lab, LIVES, wanted, options)


def _clusters(folder: Path, count: int, stack: ExitStack) -> list[LabCluster]:
    """Return so many furnished clusters, which end with `stack`.

    TENANTRY_CRASH_CLUSTERS=FOLDER,… takes those that run there, started as `cluster.PLAYER` says, and leaves them so.
    """
    folders = [Path(text) for text in os.environ.get("TENANTRY_CRASH_CLUSTERS", "").split(",") if text]
    found = [LabCluster(one.name, folder=one, player=cluster.PLAYER) for one in folders[:count]]
    for number in range(count - len(found)):
        found.append(LabCluster(f"crash-{number}", folder=folder / f"c{number}", player=cluster.PLAYER))
        stack.callback(found[-1].delete)
        found[-1].start()
    for one in found:
        cluster.furnish(one)
    return found
