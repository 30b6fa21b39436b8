"""`python -m tests.crash --on kubernetes`: the table on clusters of the lab, one per job."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from provisioners.steps import REGISTRY, split
from tests.crash import cluster, report
from tests.crash.clock import Clocks
from tests.crash.databases import Databases
from tests.crash.lives import LIVES, Lab, Life, lives_of, points_of
from tests.crash.points import Outcome, Point

_lab: Any = None
"""The lab of this process; jobs inherit it with the fork."""


def run(folder: Path, options: argparse.Namespace) -> bool:
    """Run the table; return whether all points held and every step of a namespace was come to."""
    global _lab  # noqa: PLW0603 - how forked jobs come to it
    with ExitStack() as stack:
        store = Databases(folder)
        stack.callback(store.stop)
        store.start()
        clusters = _clusters(folder, options.jobs, stack)
        lab = _lab = Lab(store, Clocks(), clusters)
        lab.ground()
        products = [product for product in LIVES if options.scenario in product]
        summary = report.Summary(options.verbose)
        started = time.monotonic()
        for product in products:
            for outcome in lab.record(product):
                report.show(outcome, verbose=options.verbose)
                if not outcome.good:
                    return False
        print(f"{len(lab.recordings)} stages recorded in {time.monotonic() - started:.0f} s", flush=True)
        found = [point for recording in lab.recordings.values() for point in points_of(recording)]
        chosen = _drawn(found, options)
        lives = lives_of(chosen)
        print(f"{len(chosen)} of {len(found)} points in {len(lives)} lives", flush=True)
        gc.collect()
        gc.freeze()
        try:
            with _jobs(options.jobs) as pool:
                for outcomes in pool.imap_unordered(_live, lives):
                    for outcome in outcomes:
                        summary.add(outcome)
        finally:
            summary.end()  # also of a run that is cut short
        done = sum(count for (mode, _), count in summary.counts.items() if mode == "kill")
        if done != len(chosen):
            print(f"FAILED  {len(chosen) - done} points were not done")
        missing = _unreached(lab) if products == list(LIVES) else []
        for step in missing:
            print(f"FAILED  no life comes to {step}")
        return not summary.failed and not missing and done == len(chosen)


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


def _drawn(found: Sequence[Point], options: argparse.Namespace) -> list[Point]:
    chosen = [point for point in found if options.only in report.line_of(point)]
    if options.sample and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    return chosen


def _unreached(lab: Lab) -> list[str]:
    """Return the steps of namespaces, and their undoing, that no life came to."""
    reached = {step for recording in lab.recordings.values() for step in recording.steps()}
    bare = {("undo:" if step.startswith("undo:") else "") + split(step.removeprefix("undo:"))[0] for step in reached}
    mine = [name for name in REGISTRY if name.split(".")[0] in {"namespace", "serving", "access"}]
    wanted = ["layout.apply", *(word for name in mine for word in (name, f"undo:{name}"))]
    return sorted(word for word in wanted if word not in bare)


def _jobs(count: int) -> Any:
    """Return a pool of jobs forked from this process as it is now, each with a cluster and a clock of its own."""
    context = multiprocessing.get_context("fork")
    numbers = context.SimpleQueue()
    for number in range(count):
        numbers.put(number)
    return context.Pool(count, _job, (numbers,))


def _job(numbers: Any) -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a job that is ended must not clean up what is its parent's
    _lab.slot = numbers.get()


def _live(life: Life) -> list[Outcome]:
    outcomes: list[Outcome] = _lab.live(life)
    return outcomes
