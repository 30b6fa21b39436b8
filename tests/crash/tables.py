"""What tables of lives have in common: record each life, draw points, live them in forked jobs, count."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import random
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from provisioners.steps import split
from tests.crash import report
from tests.crash.lives import UNDISTURBED, Lab, Life, lives_of, points_of
from tests.crash.points import Outcome, Point

_lab: Any = None
"""The lab of this process; jobs inherit it with the fork."""


def run(lab: Lab, products: Iterable[str], wanted: Collection[str], options: argparse.Namespace) -> bool:
    """Do the points of some products; return whether all held and every wanted step was come to."""
    global _lab  # noqa: PLW0603 - how forked jobs come to it
    _lab = lab
    every = list(products)
    chosen_ones = [product for product in every if options.scenario in product]
    summary = report.Summary(options.verbose)
    started = time.monotonic()
    for product in chosen_ones:
        for outcome in lab.record(product):
            report.show(outcome, verbose=options.verbose)
            if not outcome.good:
                return False
    print(f"{len(lab.recordings)} stages recorded in {time.monotonic() - started:.0f} s", flush=True)
    found = [point for recording in lab.recordings.values() for point in points_of(recording, lab.where)]
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
    done = sum(count for (mode, _), count in summary.counts.items() if mode != UNDISTURBED)
    if done != len(chosen):
        print(f"FAILED  {len(chosen) - done} points were not done")
    missing = _unreached(lab, wanted) if chosen_ones == every else []
    for step in missing:
        print(f"FAILED  no life comes to {step}")
    return not summary.failed and not missing and done == len(chosen)


def _drawn(found: Sequence[Point], options: argparse.Namespace) -> list[Point]:
    chosen = [point for point in found if options.only in report.line_of(point)]
    if options.sample and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    return chosen


def _unreached(lab: Lab, wanted: Collection[str]) -> list[str]:
    """Return the steps, and their undoing, that no life came to."""
    reached = {step for recording in lab.recordings.values() for step in recording.steps()}
    bare = {("undo:" if step.startswith("undo:") else "") + split(step.removeprefix("undo:"))[0] for step in reached}
    return sorted(word for word in wanted if word not in bare)


def _jobs(count: int) -> Any:
    """Return a pool of jobs forked from this process as it is now, each with a provider and a clock of its own."""
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
