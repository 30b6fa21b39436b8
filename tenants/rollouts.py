"""How another revision takes over at an endpoint: the course of a rollout, one move at a time. Pure.

    recreate:  draining ──────────────► promoting ──► done
    canary:    preparing ─► stepping ─► promoting ──► done
                   └───────────┴────────────┴───────► aborting ─► aborted

Old units follow one by one, drained, then made anew, and the unit claimed beside stays: the last old one is given back.
In machines (`Plan.stays` is false) all follow and the one beside goes: the address leads to a machine of theirs. Going
back is the same way. Invariants: never fewer replicas that work than there should be, and one unit more at most; none
is made anew or given back before it was drained or its time is over; a step ends by itself only if it was judged good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants.specs import RolloutLimits, RolloutStep
from tenants.states import RolloutState, RolloutStrategy

DRAIN_LIMIT: Final = timedelta(seconds=120)
"""So long requests that run may take to end before their replica stops."""
START_LIMIT: Final = timedelta(hours=1)
"""So long a new revision may take until its first replica works."""
UNREADY_LIMIT: Final = timedelta(seconds=60)
"""So long it may not work while it should."""
SLOW_SHARE: Final = 0.05
"""Of its answers may take longer than the limit."""
SCALE: Final = 1000
"""Weights are shares times this, so that a share can be split among many units."""


@dataclass(frozen=True, slots=True)
class UnitSeen:
    """One unit as it was last seen."""

    unit: UUID
    index: int
    revision: int | None
    """That its replica runs."""
    ready: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """What gateways counted of a revision."""

    requests: int = 0
    errors: int = 0
    latency: tuple[int, ...] = ()
    """Answers by how long they took; one more than there are bounds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for; it does not change on the way."""

    strategy: RolloutStrategy
    old: int
    new: int
    """Numbers of the two revisions."""
    steps: tuple[RolloutStep, ...]
    limits: RolloutLimits
    surge: UUID | None
    stays: bool = True
    """Whether the unit claimed beside stays in the place of an old one."""


@dataclass(frozen=True, slots=True)
class Course:
    """Where it is; all that changes on the way."""

    state: RolloutState
    since: datetime
    step: int = 0
    held: bool = False
    on_new: frozenset[UUID] = frozenset()
    draining: UUID | None = None
    leaving: UUID | None = None
    unready_since: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so now."""

    now: datetime
    replicas: int
    """How many the endpoint should have."""
    units: tuple[UnitSeen, ...]
    """All that are held for it, by index."""
    quiet: frozenset[UUID]
    """Units that get no requests and have none."""
    figures: Figures
    """Of the new revision since the step began."""
    bounds: tuple[int, ...] = ()
    """Upper bounds of the counts of latency, in ms."""


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that happened on the way: an event of the endpoint."""

    kind: str
    data: Mapping[str, Any]


Move = tuple[Course, tuple[Said, ...]]


def advance(course: Course, plan: Plan, facts: Facts) -> Move | None:
    """Return the next move, None while there is nothing but to wait. Called again until there is none."""
    match course.state:
        case RolloutState.DRAINING:
            return _drained(course, plan, facts)
        case RolloutState.PREPARING:
            return _prepared(course, plan, facts)
        case RolloutState.STEPPING:
            return _stepped(course, plan, facts)
        case RolloutState.PROMOTING | RolloutState.ABORTING:
            return _turned(course, plan, facts)
        case _:
            return None


def aborting(course: Course, plan: Plan, reason: str, *, now: datetime) -> Move:
    """Return the move back to the old revision; what it recreated goes back at once, as nothing else serves."""
    on_new = frozenset() if plan.strategy is RolloutStrategy.RECREATE else course.on_new
    back = replace(
        course, state=RolloutState.ABORTING, since=now, held=False, on_new=on_new, draining=None, unready_since=None,
        reason=reason[:500],
    )  # fmt: skip
    return back, (Said("rollout-aborting", {"revision": plan.new, "before": plan.old, "why": back.reason}),)


def promoting(course: Course, plan: Plan, *, now: datetime) -> Move:
    """Return the move by which the new revision takes over."""
    onward = replace(course, state=RolloutState.PROMOTING, since=now, held=False, unready_since=None)
    return onward, (Said("rollout-promoted", {"revision": plan.new, "before": plan.old}),)


def judged(figures: Figures, limits: RolloutLimits, bounds: Sequence[int]) -> str:
    """Return why a revision is not good enough, in words; `""` where it is, or too little was seen of it."""
    if figures.requests < max(1, limits.min_requests):
        return ""
    rate = figures.errors / figures.requests
    if limits.error_rate is not None and rate > limits.error_rate:
        return (
            f"{figures.errors} of its {figures.requests} requests failed ({rate:.0%}); "
            f"at most {limits.error_rate:.0%} may."
        )
    if limits.latency_ms is not None and (answers := sum(figures.latency)):
        slow = slow_answers(figures, limits.latency_ms, bounds)
        if slow / answers > SLOW_SHARE:
            return (
                f"{slow} of its {answers} answers took longer than {limits.latency_ms} ms ({slow / answers:.0%}); "
                f"at most {SLOW_SHARE:.0%} may."
            )
    return ""


def slow_answers(figures: Figures, latency_ms: int, bounds: Sequence[int]) -> int:
    """Return how many answers took longer than `latency_ms`: of what lies in the count around it nothing is known."""
    return sum(count for count, floor in zip(figures.latency, (0, *bounds), strict=False) if floor >= latency_ms)


def weights(course: Course, plan: Plan, ready: Sequence[UUID]) -> dict[UUID, int]:
    """Return unit → weight of its replica among those that are ready; 0 gets nothing."""
    new = [unit for unit in ready if unit in course.on_new]
    old = [unit for unit in ready if unit not in course.on_new]
    stopping = {course.draining, course.leaving}
    match course.state:
        case RolloutState.DRAINING:
            return dict.fromkeys(ready, 0)
        case RolloutState.PREPARING:
            return {**_split(100, old), **dict.fromkeys(new, 0)}
        case RolloutState.STEPPING:
            share = plan.steps[course.step].weight
            if not old or not new:  # one of them does not work now: the other one has to
                return _split(100, [*old, *new])
            return {**_split(100 - share, old), **_split(share, new)}
        case RolloutState.ABORTING:
            staying = [unit for unit in old if unit not in stopping] or [unit for unit in new if unit not in stopping]
        case _:
            staying = [unit for unit in ready if unit not in stopping]
    return {unit: SCALE if unit in staying else 0 for unit in ready}


def _split(share: int, among: Sequence[UUID]) -> dict[UUID, int]:
    return {unit: max(1, share * SCALE // len(among)) if share else 0 for unit in among}


# --- one state each -------------------------------------------------------------------------------------


def _drained(course: Course, plan: Plan, facts: Facts) -> Move | None:
    if facts.now < course.since + DRAIN_LIMIT and not {one.unit for one in facts.units} <= facts.quiet:
        return None
    onward, said = promoting(course, plan, now=facts.now)
    return replace(onward, on_new=frozenset(one.unit for one in facts.units)), said


def _prepared(course: Course, plan: Plan, facts: Facts) -> Move | None:
    if _works(plan.surge, plan.new, facts):
        return _begin(replace(course, step=-1), plan, facts)
    if facts.now >= course.since + START_LIMIT:
        hours = START_LIMIT // timedelta(hours=1)
        return aborting(course, plan, f"It did not work within {hours} hour.", now=facts.now)
    return None


def _begin(course: Course, plan: Plan, facts: Facts) -> Move:
    """Begin the next step; after the last one it takes over."""
    number = course.step + 1
    if number >= len(plan.steps):
        return promoting(replace(course, step=max(0, course.step)), plan, now=facts.now)
    step = plan.steps[number]
    onward = replace(course, state=RolloutState.STEPPING, since=facts.now, step=number, unready_since=None)
    told = {
        "revision": plan.new, "weight": step.weight, "seconds": step.seconds, "step": number + 1,
        "steps": len(plan.steps),
    }  # fmt: skip
    return onward, (Said("rollout-step", told),)


def _stepped(course: Course, plan: Plan, facts: Facts) -> Move | None:
    why = judged(facts.figures, plan.limits, facts.bounds)
    if why:
        return aborting(course, plan, why, now=facts.now)
    if not _works(plan.surge, plan.new, facts):
        if course.unready_since is None:
            return replace(course, unready_since=facts.now), ()
        if facts.now >= course.unready_since + UNREADY_LIMIT:
            seconds = UNREADY_LIMIT // timedelta(seconds=1)
            return aborting(course, plan, f"Its replica has not worked for {seconds} s.", now=facts.now)
        return None
    if course.unready_since is not None:
        return replace(course, unready_since=None), ()
    lasts_s = plan.steps[course.step].seconds
    if course.held or lasts_s is None or facts.now < course.since + timedelta(seconds=lasts_s):
        return None
    return _begin(course, plan, facts)


def _turned(course: Course, plan: Plan, facts: Facts) -> Move | None:
    forward = course.state is RolloutState.PROMOTING
    wanted = plan.new if forward else plan.old
    held = {one.unit for one in facts.units}
    if course.leaving is not None:  # until it is seen to be gone and was given back
        return None if course.leaving in held else (replace(course, leaving=None, since=facts.now), ())
    right = [one for one in facts.units if (one.unit in course.on_new) is forward]
    wrong = [one for one in facts.units if (one.unit in course.on_new) is not forward]
    work = [one for one in right if one.ready and one.revision == wanted]
    if course.draining is not None:
        return _emptied(course, plan, facts, right, forward=forward)
    if not wrong and len(right) <= facts.replicas:
        return _ended(course, plan, facts, forward=forward) if len(work) == len(right) else None
    if len(work) < len(right) and facts.now < course.since + START_LIMIT:
        return None  # those that were made anew come up first
    # The unit claimed beside is the one to go when there is nothing to keep of it, else the one that stays.
    candidates = wrong or right
    goes_first = not forward if plan.stays else not wrong
    first = [one for one in candidates if (one.unit == plan.surge) is goes_first] or candidates
    return replace(course, draining=first[0].unit, since=facts.now), ()


def _emptied(course: Course, plan: Plan, facts: Facts, right: Sequence[UnitSeen], *, forward: bool) -> Move | None:
    """Give a drained unit back where enough others are right already, else let it follow them."""
    unit = course.draining
    assert unit is not None
    present = unit in {one.unit for one in facts.units}
    if present and unit not in facts.quiet and facts.now < course.since + DRAIN_LIMIT:
        return None
    onward = replace(course, draining=None, since=facts.now)
    may_leave = plan.stays or unit == plan.surge
    if may_leave and len([one for one in right if one.unit != unit]) >= facts.replicas:
        return replace(onward, leaving=unit, on_new=course.on_new - {unit}), ()
    return replace(onward, on_new=course.on_new | {unit} if forward else course.on_new - {unit}), ()


def _ended(course: Course, plan: Plan, facts: Facts, *, forward: bool) -> Move:
    if forward:
        done = replace(course, state=RolloutState.DONE, since=facts.now)
        return done, (Said("rollout-done", {"revision": plan.new, "before": plan.old}),)
    back = replace(course, state=RolloutState.ABORTED, since=facts.now)
    told = {"revision": plan.new, "before": plan.old, "why": course.reason}
    return back, (Said("rollout-aborted", told),)


def _works(unit: UUID | None, revision: int, facts: Facts) -> bool:
    return any(one.unit == unit and one.ready and one.revision == revision for one in facts.units)
