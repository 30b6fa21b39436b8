"""The crash table: `python -m tests.crash [--on kubernetes|vsphere] [--sample N] [--seed S] [--jobs N] …`.

Prints every point that failed (all of them with `--verbose`), a summary by mode and instant, and how long it
took and whether that is within the limit of a whole table. Exit status 1 if any point failed, a step of the registry
was never come to, or `--limit-s` was given and it took longer.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import django

from tests import environment

LIMIT_S = 900
"""What a whole table may take on two cores; machines differ, so that more is told and not failed unless asked for."""
NEEDED_BYTES = 2 << 30
POINTS_A_COLLECTION = 25
_points_done = itertools.count(1)
_lab: Any = None
"""The lab of this process; jobs inherit it with the fork."""


def main() -> int:
    """Run the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument(
        "--on", choices=["sandbox", "kubernetes", "vsphere"], default="sandbox", help="where the points happen"
    )
    parser.add_argument("--sample", type=int, default=0, help="only so many points, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=None, help="points at once: 3, where a job has a lab of its own 2")
    parser.add_argument("--real", type=int, default=1, help="real Celery workers killed per instant; 0: none")
    parser.add_argument("--beyond", action="store_true", help="also workers that go on late, and rivals")
    parser.add_argument("--only", default="", help="only points whose line contains this")
    parser.add_argument("--scenario", default="", help="only scenarios whose name contains this")
    parser.add_argument("--verbose", action="store_true", help="print good points too")
    parser.add_argument("--limit-s", type=float, default=None, help="fail when it took longer than so many seconds")
    options = parser.parse_args()
    options.jobs = options.jobs or (3 if options.on == "sandbox" else 2)
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that server and folder go, too
    with tempfile.TemporaryDirectory(prefix="tenantry-crash-", dir=_parent(), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL may run as another user
        good = _run(folder, options)
    took_s = time.monotonic() - started
    limit_s, is_asked_for = (LIMIT_S, False) if options.limit_s is None else (options.limit_s, True)
    late = took_s > limit_s
    kept = "LONGER than" if late else "within"
    print(f"{took_s:.0f} s in all, {kept} the limit of {limit_s:g} s: {'all good' if good else 'FAILED'}")
    return 0 if good and not (late and is_asked_for) else 1


def _parent() -> str:
    """Return where databases are copied fastest: in memory, where there is enough of it."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > NEEDED_BYTES else "/tmp"


def _run(folder: Path, options: argparse.Namespace) -> bool:
    os.environ.update(
        {
            **environment.ENVIRONMENT,
            "DATABASE_WORKER_URL": _dsn(folder, "postgres", "-c role=cp_worker -c app.actor=system"),
            "DATABASE_URL": _dsn(folder, "cp_app", ""),
            "TENANTRY_INVENTORY_S": "3",
            "TENANTRY_SWEEP_S": "1",
            "TENANTRY_LEASE_TTL_S": "1",
        }
    )
    django.setup()
    if options.on == "kubernetes":
        from tests.crash import on_cluster

        return on_cluster.run(folder, options)
    if options.on == "vsphere":
        from tests.crash import on_vsphere

        return on_vsphere.run(folder, options)
    from provisioners.kinds import PASSES
    from tests.crash import databases, points, provider, scenarios, table
    from tests.crash.clock import Clocks

    global _lab  # noqa: PLW0603 - how forked jobs come to it
    clocks = Clocks()
    store = databases.Databases(folder)
    serving = provider.start(folder / "provider", clocks)
    try:
        store.start()
        lab = _lab = table.Lab(store, serving, clocks)
        lab.ground()
        lab.warm_up(scenarios.SCENARIOS[0])
        gc.collect()
        gc.freeze()
        chosen = [scenario for scenario in scenarios.SCENARIOS if options.scenario in scenario.name]
        if not chosen:
            print(f"no scenario's name contains {options.scenario!r}")
            return False
        failures = _record(lab, chosen, options)
        failures += _do(_drawn(_points(lab, chosen, options), options), options)
        missing = [] if options.scenario else points.unreached(lab.recordings.values(), list(PASSES))
        for step in missing:
            print(f"FAILED  no scenario comes to {step}")
        return not failures and not missing
    finally:
        serving.stop()
        store.stop()


def _dsn(folder: Path, role: str, options: str) -> str:
    extra = f"&options={quote(options)}" if options else ""
    return f"postgresql://{role}@/none?host={quote(str(folder / 'postgresql' / 'socket'), safe='')}&port=5432{extra}"


def _record(lab: Any, chosen: Sequence[Any], options: argparse.Namespace) -> int:
    """Prepare scenarios and run them undisturbed; return how many failed."""
    from tests.crash import report

    failures = 0
    with _jobs(options) as pool:
        names = [scenario.name for scenario in chosen]
        for scenario, (made, recording, length, outcomes) in zip(chosen, pool.imap(_recorded, names), strict=True):
            lab.templates[scenario.name] = made
            lab.recordings[scenario.name], lab.lengths[scenario.name] = recording, length
            for outcome in outcomes:
                failures += not outcome.good
                report.show(outcome, verbose=options.verbose)
    return failures


def _recorded(name: str) -> tuple[Any, Any, int, list[Any]]:
    from tests.crash import scenarios

    scenario = scenarios.by_name(name)
    _lab.prepare(scenario)
    outcomes = [_lab.record(scenario, variant) for variant in ("at once", "all tasks")]
    return _lab.templates[name], _lab.recordings[name], _lab.lengths[name], outcomes


def _jobs(options: argparse.Namespace) -> Any:
    """Return a pool of jobs forked from this process as it is now, each with a number of its own."""
    context = multiprocessing.get_context("fork")
    numbers = context.SimpleQueue()
    for number in range(1, options.jobs + 1):
        numbers.put(number)
    return context.Pool(options.jobs, _job, (numbers,))


def _points(lab: Any, chosen: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    from tests.crash import points

    found: list[Any] = []
    known: set[tuple[str, str]] = set()
    for scenario in chosen:
        recording = lab.recordings[scenario.name]
        found += points.kills(recording)
        found += points.stops(recording, scenario)
        found += points.faults(recording, scenario, known)
        found += [points.Point(scenario.name, "all tasks", "rivals", what=f"round {n}") for n in (1, 2)]
    return found + list(points.workers(list(lab.recordings.values()), options.real))


def _drawn(found: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    """Return the points to do: the table or (`--beyond`) all, or a sample of them with every real worker."""
    from tests.crash.points import BEYOND
    from tests.crash.report import line_of

    chosen = [point for point in found if options.only in line_of(point)]
    chosen = [point for point in chosen if options.beyond or point.mode not in BEYOND]
    if options.sample:
        real = [point for point in chosen if point.mode == "worker"]
        others = [point for point in chosen if point.mode != "worker"]
        chosen = real + random.Random(options.seed).sample(others, min(options.sample - len(real), len(others)))
    modes = Counter(point.mode for point in chosen)
    words = ", ".join(f"{count} {mode}" for mode, count in modes.items())
    print(f"{len(chosen)} of {len(found)} points: {words}", flush=True)
    return chosen


def _one(point: Any) -> Any:
    outcome = _lab.run(point)
    if next(_points_done) % POINTS_A_COLLECTION == 0:
        gc.collect()
    return outcome


def _job(numbers: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a job that is ended must not clean up what is its parent's
    gc.disable()  # a tenth of the time; `_one` collects now and then
    _lab.slot = numbers.get()


def _do(found: Sequence[Any], options: argparse.Namespace) -> int:
    """Do points in jobs forked from this process; print them; return how many failed."""
    from tests.crash import report

    summary = report.Summary(options.verbose)
    with _lab.databases.janitor(), _jobs(options) as pool:
        for outcome in pool.imap_unordered(_one, found):
            summary.add(outcome)
    summary.end()
    return summary.failed


if __name__ == "__main__":
    sys.exit(main())
