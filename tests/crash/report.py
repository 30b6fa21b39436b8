"""What the table prints: each point that failed, a summary by mode and instant, how long it took."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.crash.points import Outcome, Point


def line_of(point: Point) -> str:
    """Return a point's words as the table shows them."""
    return f"{point.scenario:38} {point.variant:9} {point.step:26} {point.words}"


def show(outcome: Outcome, *, verbose: bool) -> None:
    """Print one outcome; a good one only if `verbose`."""
    if outcome.good and not verbose:
        return
    word = "ok     " if outcome.good else "FAILED "
    sweeps = f"{outcome.sweeps:3}/{outcome.allowed:<3}"
    print(f"{word} {line_of(outcome.point):115} {sweeps} {outcome.ms:6.0f} ms", flush=True)
    for problem in outcome.problems:
        print(f"          {problem}")
    if not outcome.good:
        for line in outcome.explain:
            print(f"            | {line}", flush=True)


@dataclass(slots=True)
class Summary:
    """Counts outcomes as they come, and prints them."""

    verbose: bool
    started: float = field(default_factory=time.monotonic)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many points failed."""
        return sum(self.bad.values())

    def add(self, outcome: Outcome) -> None:
        """Count one and print it."""
        show(outcome, verbose=self.verbose)
        key = (outcome.point.mode, outcome.point.instant)
        self.counts[key] += 1
        self.bad[key] += not outcome.good
        self.times.append(outcome.ms)
        if len(self.times) % 250 == 0:
            print(f"… {len(self.times)} points in {time.monotonic() - self.started:.0f} s", flush=True)

    def end(self) -> None:
        """Print the whole."""
        print(f"\n{'mode':10} {'instant':15} {'points':>7} {'failed':>7}")
        for (mode, instant), count in sorted(self.counts.items()):
            print(f"{mode:10} {instant:15} {count:7} {self.bad[mode, instant]:7}")
        if self.times:
            print(
                f"{len(self.times)} points in {time.monotonic() - self.started:.0f} s, "
                f"{sum(self.times) / len(self.times):.0f} ms each, the slowest {max(self.times):.0f} ms, "
                f"{self.failed} failed"
            )
            spent = resource.getrusage(resource.RUSAGE_CHILDREN)
            print(f"{spent.ru_utime + spent.ru_stime:.0f} s of processor time, the database's not counted")
