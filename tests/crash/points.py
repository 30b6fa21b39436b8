"""The points of the table: what was recorded, times what can go wrong. Pure.

Steps and instants come from recordings of undisturbed runs, so a new step appears by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from provisioners.instants import Instant
from provisioners.sandbox.faults import ERRORS
from provisioners.steps import REGISTRY, split
from tests.crash.scenarios import Scenario

CONCLUDES: Final = ".conclude"
IN_TRANSACTION: Final = Instant.BEFORE_COMMIT
"""A process that stands still here holds the row's lock: nobody can pass it, so it is only ever killed here."""
AFTER_THE_CALL: Final = frozenset({Instant.AFTER_CALL.value, Instant.BEFORE_COMMIT.value, Instant.AFTER_COMMIT.value})
"""Where it matters whether the provider is done or only at work."""
DONE_AND_LOST: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "answer lost": ("lost-answer", {}),
    "hangs before": ("hang", {"seconds": 1.0}),
    "hangs after": ("hang", {"seconds": 1.0, "after_effect": True}),
    "slow": ("slow", {"seconds": 0.05}),
    "takes long": ("delay", {"seconds": 3.0}),
    "task forgotten": ("forget", {}),
    "task forgotten and lost": ("forget", {"lying": True}),
}
"""What a provider does to a call beside failing: words → (effect, options)."""
READS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "fails": ("fail", {"error": "transient"}),
    "fails five times": ("fail", {"error": "transient", "times": 5}),
    "answer lost": ("lost-answer", {}),
    "hangs": ("hang", {"seconds": 1.0}),
}
LISTS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "list has duplicates": ("duplicates", {"times": 3}),
    "list is stale": ("stale", {"times": 3}),
    "list is stale and says complete": ("stale", {"times": 3, "lying": True}),
}
BEYOND: Final = frozenset({"zombie", "late", "nudges", "rivals"})
"""Modes in which nobody dies and nothing errs: a worker stands still while others go on, or two do the same at once.

They come with `--beyond`, and in samples of it: the table is who dies where, what errs, what is sent twice or undone.
"""
UNDO_ERRORS: Final = frozenset({"transient", "rejected"})
"""A removal that fails in its task is tried again whatever the class: one of each side stands for all."""
STOPPING: Final = frozenset({"rejected", "not-supported"})
"""Errors that stop an object until its spec changes; a removal is tried again all the same."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An undisturbed run of a scenario."""

    scenario: str
    trace: tuple[tuple[str, str, int], ...]
    """(step or `<kind>.conclude`, instant, number of the sweep), in order."""
    sweeps: int
    begun: Mapping[str, int]
    """`<object> <call> begun` → how often, at the provider."""
    changes: tuple[tuple[str, str], ...] = ()
    """(step, method) of each call that changed something at the provider, where that is heard; in order."""

    def steps(self) -> list[str]:
        """Return the steps, each once, in order."""
        return list(dict.fromkeys(step for step, _, _ in self.trace if not step.endswith(CONCLUDES)))


@dataclass(frozen=True, slots=True)
class Point:
    """One cell: where, and what goes wrong there."""

    scenario: str
    variant: str
    """`at once`, `task` or `all tasks`: see `scenarios.settings_of`."""
    mode: str
    """`kill`, `worker`, `zombie`, `nudges`, `twice`, `late`, `against`, `fault`, `rivals`: see `table.py`."""
    step: str = ""
    instant: str = ""
    nth: int = 1
    what: str = ""
    """Which fault, which opposite."""
    effect: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def words(self) -> str:
        """Return how the table calls it."""
        nth = f" (#{self.nth})" if self.nth > 1 else ""
        return " ".join(filter(None, (self.mode, self.what, self.instant))) + nth


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a point."""

    point: Point
    problems: tuple[str, ...]
    sweeps: int
    """After the lease's end (or, for faults, in all)."""
    allowed: int
    ms: float
    explain: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether all held."""
        return not self.problems


def kills(recording: Recording) -> Iterator[Point]:
    """Every (step, instant) that a run passes; what it passes often is killed the first and the last time."""
    times = Counter((step, instant) for step, instant, _ in recording.trace)
    for (step, instant), count in times.items():
        for nth in sorted({1, count}):
            yield Point(recording.scenario, "at once", "kill", step, instant, nth)
            if instant in AFTER_THE_CALL and not step.endswith(CONCLUDES):
                yield Point(recording.scenario, "task", "kill", step, instant, nth)


def stops(recording: Recording, scenario: Scenario) -> Iterator[Point]:
    """Every (step, instant) outside a transaction: stopped while others go on, nudge, or want the opposite."""
    for step, instant in dict.fromkeys((step, instant) for step, instant, _ in recording.trace):
        if instant == Instant.AFTER_INTENT.value:
            yield Point(recording.scenario, "at once", "twice", step)
            yield Point(recording.scenario, "task", "twice", step)
            yield Point(recording.scenario, "task", "late", step)
            if scenario.verb == "create":
                yield Point(recording.scenario, "task", "late", step, what="deleted meanwhile")
        if instant in {IN_TRANSACTION.value, Instant.BEFORE_INTENT.value} or step.endswith(CONCLUDES):
            continue
        yield Point(recording.scenario, "task", "zombie", step, instant)
        if instant in {Instant.AFTER_INTENT.value, Instant.AFTER_CALL.value}:
            if instant == Instant.AFTER_CALL.value:
                yield Point(recording.scenario, "task", "nudges", step, instant)
            for opposite in scenario.opposite:
                yield Point(recording.scenario, "task", "against", step, instant, what=opposite.word)


def faults(recording: Recording, scenario: Scenario, known: set[tuple[str, str]]) -> Iterator[Point]:
    """Each step × each error at the call and in its task, × each way of losing an answer; reads and lists.

    Steps of `known` (the same step of the same kind of boundary, made, changed or removed in another scenario) are
    left out, and new ones added.
    """
    for step in recording.steps():
        place = (step, f"{scenario.name.partition('/')[2].partition(' ')[0]} {scenario.verb}")
        if place in known or (scenario.faulty is not None and step not in scenario.faulty):
            continue
        known.add(place)
        call = step if step.startswith("undo:") else f"start:{step}"
        for error in ERRORS:
            yield _fault(recording, call, f"{error} at the call", "fail", error=error)
            if not step.startswith("undo:") or error in UNDO_ERRORS:
                yield _fault(recording, call, f"{error} in the task", "task-fail", error=error)
        for words, (effect, options) in DONE_AND_LOST.items():
            yield _fault(recording, call, words, effect, **options)
    if scenario.verb == "change":
        return
    for call in ("observe", "poll"):
        for words, (effect, options) in READS.items():
            yield _fault(recording, call, words, effect, **options)
    for words, (effect, options) in {**READS, **LISTS}.items():
        yield _fault(recording, "snapshot", words, effect, **options)


def _fault(recording: Recording, call: str, words: str, effect: str, **options: Any) -> Point:
    variant = "all tasks" if call in {"observe", "poll", "snapshot"} else "task"
    return Point(recording.scenario, variant, "fault", call, what=words, effect=effect, options=options)


ELSEWHERE = frozenset({"vm.configure"})
"""Steps that the sandbox's driver has not: its VMs are cloned as they should be. `--on vsphere` comes to them."""


def unreached(recordings: Iterable[Recording], kinds: Sequence[str]) -> list[str]:
    """Return steps of the registry, and their undoing, that no scenario came to.

    A step counts as far as some pass drives objects of its kind; layouts of GPUs have no pass.
    """
    reached = {step for recording in recordings for step in recording.steps()}
    bare = {("undo:" if step.startswith("undo:") else "") + split(step.removeprefix("undo:"))[0] for step in reached}
    driven = {name: entry for name, entry in REGISTRY.items() if name not in ELSEWHERE}
    wanted = [name for name, entry in driven.items() if {str(kind) for kind in entry.kinds} & set(kinds)]
    return sorted(word for name in wanted for word in (name, f"undo:{name}") if word not in bare)


def workers(recordings: Sequence[Recording], each: int) -> Iterator[Point]:
    """Per instant `each` points at which a real Celery worker is killed, spread over scenarios and steps."""
    cells: dict[str, list[tuple[Recording, str]]] = {instant.value: [] for instant in Instant}
    for recording in recordings:
        for step, instant in dict.fromkeys((step, instant) for step, instant, _ in recording.trace):
            if not step.endswith(CONCLUDES):
                cells[instant].append((recording, step))
    for number, (instant, found) in enumerate(cells.items()):
        for turn in range(min(each, len(found))):
            # Evenly apart, and elsewhere for each instant: all products and both directions come up.
            recording, step = found[(turn * len(found) // each + number * 17) % len(found)]
            yield Point(recording.scenario, "at once", "worker", step, instant)
