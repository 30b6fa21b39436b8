"""How an endpoint goes to another boundary: the course of a move, one step at a time. Pure.

    preparing ─► beside ─► cutting ─► watching ─► leaving ─► done
        └──────────┴──────────┴──────────┴─► undoing ─► undone

A stand-in builds it in the other boundary while it goes on where it is. Once it works at both (`beside`) its name goes
over, by itself or when somebody says so; both stay while that is watched, so it is undone by giving the name back.
Then the endpoint takes the new place over, and the stand-in goes with the old one. Invariants: a place is given up only
when its gateways show that nobody asks there, or their time is over; whoever has the name works, or has for longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from tenants.states import MoveState

UNREADY_LIMIT: Final = timedelta(seconds=60)
"""So long it may not work at the new place before the name goes back by itself."""
DRAIN_LIMIT: Final = timedelta(seconds=120)
"""So long requests at the place that is given up may take to end."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where it is; all that changes on the way."""

    state: MoveState
    since: datetime
    cut_at: datetime | None = None
    unready_since: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so now."""

    now: datetime
    works: bool
    """At the new place."""
    stopped: str
    """Why it will never work there, in words; `""` while it may."""
    named: bool
    """Whether both places were seen to have, or not to have, the name as it is wanted."""
    quiet: bool
    """Whether nobody asks at the place that is to be given up."""
    held: bool = False
    """Whether its tenant is suspended, so that it works nowhere."""
    works_before: bool = True
    """At the old place; where it does not, going back is no help."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that happened on the way: an event of the endpoint."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


Step = tuple[Course, tuple[Said, ...]]


def advance(course: Course, facts: Facts, *, by_hand: bool, watch_s: int) -> Step | None:
    """Return the next step, None while there is nothing but to wait. Called again until there is none."""
    if course.state in {MoveState.UNDOING, MoveState.DONE, MoveState.UNDONE}:
        return None
    if facts.stopped:
        return undoing(course, facts.stopped, now=facts.now)
    match course.state:
        case MoveState.PREPARING:
            return _to(course, MoveState.BESIDE, facts.now, "move-beside") if facts.works else None
        case MoveState.BESIDE:
            return cutting(course, now=facts.now) if facts.works and not by_hand else None
        case MoveState.CUTTING:
            return _to(course, MoveState.WATCHING, facts.now, "move-watching") if facts.named else None
        case MoveState.WATCHING:
            return _watched(course, facts, watch_s)
        case _:
            return None


def cutting(course: Course, *, now: datetime) -> Step:
    """Return the step by which the name goes over."""
    onward, said = _to(course, MoveState.CUTTING, now, "move-cut")
    return replace(onward, cut_at=now), said


def leaving(course: Course, *, now: datetime) -> Step:
    """Return the step by which the old place is given up."""
    return _to(course, MoveState.LEAVING, now, "move-leaving")


def undoing(course: Course, reason: str, *, now: datetime) -> Step:
    """Return the step back; the name goes back first, if it went."""
    back = replace(course, state=MoveState.UNDOING, since=now, unready_since=None, reason=reason[:500])
    return back, (Said("move-undoing", {"why": back.reason}),)


def may_take_over(course: Course, facts: Facts) -> bool:
    """Whether the endpoint may take the new place over and give up the old one."""
    return course.state is MoveState.LEAVING and _is_empty(course, facts)


def may_give_up(course: Course, facts: Facts) -> bool:
    """Whether the new place of a move that is undone may go."""
    if course.state is not MoveState.UNDOING:
        return False
    return course.cut_at is None or bool(facts.stopped) or (facts.named and _is_empty(course, facts))


def _is_empty(course: Course, facts: Facts) -> bool:
    return facts.quiet or facts.now >= course.since + DRAIN_LIMIT


def _watched(course: Course, facts: Facts, watch_s: int) -> Step | None:
    if facts.held:  # nothing can be watched: it begins anew when the suspension ends
        anew = replace(course, since=facts.now, unready_since=None)
        return None if anew == course else (anew, ())
    if facts.works:
        if course.unready_since is not None:
            return replace(course, unready_since=None), ()
        over = facts.now >= course.since + timedelta(seconds=watch_s)
        return leaving(course, now=facts.now) if over else None
    if course.unready_since is None or not facts.works_before:
        anew = replace(course, unready_since=facts.now)
        return None if anew == course else (anew, ())
    if facts.now >= course.unready_since + UNREADY_LIMIT:
        seconds = UNREADY_LIMIT // timedelta(seconds=1)
        return undoing(course, f"It has not worked there for {seconds} s.", now=facts.now)
    return None


def _to(course: Course, state: MoveState, now: datetime, kind: str) -> Step:
    return replace(course, state=state, since=now, unready_since=None), (Said(kind),)
