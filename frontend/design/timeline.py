"""The timeline: what is done, what runs, how long it usually takes, and why it is slower than that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from django.utils.translation import gettext as _

from frontend.design.numbers import duration


class StepState(StrEnum):
    """State of one step."""

    TODO = "todo"
    RUNNING = "running"
    WAITING = "waiting"
    """Begun, and waits for a person or for room."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step. Seconds are floats; None is unknown."""

    label: str
    state: StepState
    elapsed_s: float | None = None
    median_s: float | None = None
    p90_s: float | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    retries: int = 0
    message: str = ""
    """What it does or why it stands, in plain words."""
    slower_because: str = ""
    error: str = ""
    """Raw words of the provider."""
    next_step: str = ""
    help_url: str = ""
    share: int | None = None
    """How much of it is done, 0 to 100, where that is counted and not only timed."""

    @property
    def is_slow(self) -> bool:
        """Whether it has taken longer than nine of ten."""
        return self.elapsed_s is not None and self.p90_s is not None and self.elapsed_s > self.p90_s

    @property
    def usual(self) -> str:
        """What is usual, in words; empty when nothing is known."""
        if self.median_s is None:
            return ""
        if self.p90_s is None or duration(self.p90_s) == duration(self.median_s):
            return _("usually %(median)s") % {"median": duration(self.median_s)}
        return _("usually %(median)s, at most %(p90)s for nine of ten") % {
            "median": duration(self.median_s), "p90": duration(self.p90_s),
        }  # fmt: skip

    @property
    def progress(self) -> int:
        """Elapsed against what nine of ten need, 0 to 100; what takes longer stays at 97 until it is done."""
        limit = self.p90_s or self.median_s
        if self.state is StepState.DONE:
            return 100
        if self.share is not None:
            return self.share
        if not limit or self.elapsed_s is None:
            return 0
        return min(97, int(self.elapsed_s / limit * 100))

    @property
    def icon(self) -> str:
        """Icon of the state."""
        return {
            StepState.TODO: "circle-dashed", StepState.RUNNING: "loader-circle", StepState.WAITING: "hourglass",
            StepState.DONE: "check", StepState.FAILED: "x", StepState.SKIPPED: "minus",
        }[self.state]  # fmt: skip

    @property
    def word(self) -> str:
        """Word of the state."""
        return {
            StepState.TODO: _("to do"), StepState.RUNNING: _("running"), StepState.WAITING: _("waiting"),
            StepState.DONE: _("done"), StepState.FAILED: _("failed"), StepState.SKIPPED: _("left out"),
        }[self.state]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timeline:
    """All steps of one object on its way. `state` is building, ready or failed: title and favicon show it."""

    state: str
    steps: Sequence[TimelineStep]
    started_at: datetime | None = None
    ended_at: datetime | None = None
    total_s: float | None = None
    """Elapsed so far, or in all when ended."""
    usual_s: float | None = None
    usual_of: str = ""
    """What the usual times were measured on, e.g. "42 endpoints of this size on sandbox-a in 90 days"."""
    headline: str = ""
    note: str = ""

    @property
    def done(self) -> int:
        """Number of steps that are done."""
        return sum(step.state is StepState.DONE for step in self.steps)

    @property
    def is_waiting(self) -> bool:
        """Whether nothing moves until a person decides or room is there."""
        states = {step.state for step in self.steps}
        return StepState.WAITING in states and StepState.RUNNING not in states

    @property
    def title(self) -> str:
        """One line: what is going on."""
        if self.headline:
            return self.headline
        if self.state == "ready":
            return _("Ready after %(span)s") % {"span": duration(self.total_s)}
        if self.state == "failed":
            failed = next((step for step in self.steps if step.state is StepState.FAILED), None)
            return _("Stopped at “%(step)s”") % {"step": failed.label} if failed else _("Stopped")
        now = next((step for step in self.steps if step.state in {StepState.RUNNING, StepState.WAITING}), None)
        return now.label if now else _("About to start")
