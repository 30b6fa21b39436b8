"""The course of a rollout: every way it can go, played on units that obey it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tenants.rollouts import (
    DRAIN_LIMIT,
    SCALE,
    START_LIMIT,
    UNREADY_LIMIT,
    Course,
    Facts,
    Figures,
    Plan,
    UnitSeen,
    aborting,
    advance,
    judged,
    promoting,
    weights,
)
from tenants.specs import RolloutLimits, RolloutStep
from tenants.states import RolloutState, RolloutStrategy

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
SURGE = UUID(int=99)
BOUNDS = (100, 200, 400)
TWO_STEPS = (RolloutStep(10, 60), RolloutStep(50, 60))


@dataclass
class Played:
    """Units that do at once what the course wants of them, and a clock."""

    plan: Plan
    course: Course
    replicas: int
    units: dict[UUID, int] = field(default_factory=dict)
    """Unit → revision that it runs."""
    now: datetime = NOW
    quiet: bool = True
    broken: set[int] = field(default_factory=set)
    """Revisions whose replicas do not work."""
    figures: Figures = field(default_factory=Figures)
    said: list[str] = field(default_factory=list)
    fewest: int = 99
    """Replicas that worked and got requests, at the worst moment."""

    def facts(self) -> Facts:
        seen = tuple(
            UnitSeen(unit, at, revision, ready=revision not in self.broken)
            for at, (unit, revision) in enumerate(sorted(self.units.items()))
        )
        quiet = frozenset(self.units) if self.quiet else frozenset()
        return Facts(self.now, self.replicas, seen, quiet, self.figures, BOUNDS)

    def go(self, seconds: float = 0) -> RolloutState:
        """Make every move that is due after so long, obeyed one after the other; return the state."""
        self.now += timedelta(seconds=seconds)
        for _ in range(50):
            move = advance(self.course, self.plan, self.facts())
            if move is not None:
                self.take(move)
            else:
                return self.course.state
        raise AssertionError(f"it does not come to rest: {self.course}")

    def take(self, move: tuple[Course, tuple[object, ...]]) -> None:
        self.course = move[0]
        self.said += [one.kind for one in move[1]]  # type: ignore[attr-defined]
        ready = [unit for unit, revision in self.units.items() if revision not in self.broken]
        given = weights(self.course, self.plan, ready)
        self.fewest = min(self.fewest, sum(weight > 0 for weight in given.values()))
        if self.course.leaving is not None:
            self.units.pop(self.course.leaving, None)
        for unit in self.units:
            self.units[unit] = self.plan.new if unit in self.course.on_new else self.plan.old


def canary(replicas: int, *steps: RolloutStep, stays: bool = True) -> Played:
    plan = Plan(RolloutStrategy.CANARY, 1, 2, steps, RolloutLimits(), SURGE, stays=stays)
    course = Course(RolloutState.PREPARING, NOW, on_new=frozenset({SURGE}))
    units = {UUID(int=number): 1 for number in range(1, replicas + 1)}
    return Played(plan, course, replicas, {**units, SURGE: 2})


def recreate(replicas: int) -> Played:
    plan = Plan(RolloutStrategy.RECREATE, 1, 2, (), RolloutLimits(), None)
    units = {UUID(int=number): 1 for number in range(1, replicas + 1)}
    return Played(plan, Course(RolloutState.DRAINING, NOW), replicas, units)


@pytest.mark.parametrize("stays", [True, False], ids=["the-unit-beside-stays", "it-leaves"])
@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_a_canary_goes_through_its_steps_and_takes_over_with_no_replica_less_than_there_should_be(
    replicas: int, *, stays: bool
) -> None:
    played = canary(replicas, *TWO_STEPS, stays=stays)

    states = [played.go(), played.go(59), played.go(1), played.go(60)]

    assert states == [RolloutState.STEPPING, RolloutState.STEPPING, RolloutState.STEPPING, RolloutState.DONE]
    assert played.said == ["rollout-step", "rollout-step", "rollout-promoted", "rollout-done"]
    assert sorted(played.units.values()) == [2] * replicas
    assert (SURGE in played.units) is stays
    assert played.fewest >= replicas


@pytest.mark.parametrize("stays", [True, False], ids=["the-unit-beside-stays", "it-leaves"])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("turned", [0, 1, 2])
def test_aborted_anywhere_it_ends_as_it_began(replicas: int, turned: int, *, stays: bool) -> None:
    played = canary(replicas, *TWO_STEPS, stays=stays)
    played.go()
    if turned:
        played.take(promoting(played.course, played.plan, now=played.now))
        for _ in range(turned * 2):
            move = advance(played.course, played.plan, played.facts())
            if move is not None and played.course.leaving is None:
                played.take(move)
    if played.course.state is RolloutState.DONE:
        return

    played.take(aborting(played.course, played.plan, "why", now=played.now))
    state = played.go()

    assert state is RolloutState.ABORTED
    assert sorted(played.units.values()) == [1] * replicas
    assert stays or SURGE not in played.units
    assert played.said[-2:] == ["rollout-aborting", "rollout-aborted"]


def test_a_step_without_an_end_and_one_that_is_held_wait_for_people() -> None:
    played = canary(1, RolloutStep(10, 60), RolloutStep(50, None))
    played.go()

    played.course = replace(played.course, held=True)
    held = played.go(3600)
    played.course = replace(played.course, held=False)
    onward = (played.go(), played.course.step, played.go(86400), played.course.step)

    assert held is RolloutState.STEPPING
    assert onward == (RolloutState.STEPPING, 1, RolloutState.STEPPING, 1)


def test_errors_abort_it_whether_it_is_held_or_not() -> None:
    played = canary(1, *TWO_STEPS)
    played.go()
    played.course = replace(played.course, held=True)

    played.figures = Figures(19, 19)
    too_few = played.go(1)
    played.figures = Figures(20, 2)
    state = played.go(1)

    assert (too_few, state) == (RolloutState.STEPPING, RolloutState.ABORTED)
    assert played.course.reason == "2 of its 20 requests failed (10%); at most 5% may."
    assert played.units == {UUID(int=1): 1}


def test_a_replica_that_does_not_come_up_or_goes_down_aborts_it_after_a_while() -> None:
    late, down = canary(1, *TWO_STEPS), canary(1, *TWO_STEPS)
    late.broken = {2}
    waiting = late.go()

    down.go()
    down.broken = {2}
    at_first = (down.go(1), down.go((UNREADY_LIMIT - timedelta(seconds=1)).total_seconds()))
    afterwards = down.go(1)

    assert (waiting, late.go(START_LIMIT.total_seconds())) == (RolloutState.PREPARING, RolloutState.ABORTED)
    assert at_first == (RolloutState.STEPPING, RolloutState.STEPPING)
    assert afterwards is RolloutState.ABORTED
    assert down.course.reason == "Its replica has not worked for 60 s."


def test_what_comes_back_in_time_goes_on() -> None:
    played = canary(1, *TWO_STEPS)
    played.go()

    played.broken = {2}
    played.go(30)
    played.broken = set()
    played.go(10)
    played.broken = {2}

    assert played.go(59) is RolloutState.STEPPING


def test_nobody_is_stopped_before_he_is_quiet_or_his_time_is_over() -> None:
    played = canary(1)
    played.quiet = False

    draining = played.go()
    still = (played.course.draining, played.go((DRAIN_LIMIT - timedelta(seconds=1)).total_seconds()))
    over = played.go(1)

    assert (draining, over) == (RolloutState.PROMOTING, RolloutState.DONE)
    assert still == (UUID(int=1), RolloutState.PROMOTING)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_recreate_drains_stops_and_starts_and_goes_back_the_same_way(replicas: int) -> None:
    played, back = recreate(replicas), recreate(replicas)

    state = played.go()
    back.broken = {2}
    stuck = back.go()
    back.take(aborting(back.course, back.plan, "why", now=back.now))

    assert state is RolloutState.DONE
    assert list(played.units.values()) == [2] * replicas
    assert (stuck, back.go()) == (RolloutState.PROMOTING, RolloutState.ABORTED)
    assert list(back.units.values()) == [1] * replicas


def test_weights_are_the_share_whatever_the_number_of_replicas() -> None:
    played = canary(3, RolloutStep(10, 60))
    played.go()

    given = weights(played.course, played.plan, list(played.units))

    assert given[SURGE] == 10 * SCALE
    assert {given[UUID(int=number)] for number in (1, 2, 3)} == {90 * SCALE // 3}


def test_while_one_of_the_two_does_not_work_the_other_gets_all() -> None:
    played = canary(1, RolloutStep(100, 60))
    played.go()

    old, new = UUID(int=1), SURGE

    assert weights(played.course, played.plan, [old, new]) == {old: 0, new: 100 * SCALE}
    assert weights(played.course, played.plan, [old]) == {old: 100 * SCALE}
    assert weights(played.course, played.plan, [new]) == {new: 100 * SCALE}


@pytest.mark.parametrize(
    ("figures", "limits", "why"),
    [
        (Figures(19, 19), RolloutLimits(), ""),
        (Figures(20, 1), RolloutLimits(), ""),
        (Figures(100, 100), RolloutLimits(error_rate=None), ""),
        (Figures(100, 0, (0, 0, 94, 6)), RolloutLimits(latency_ms=400), "6 of its 100 answers took longer than 400 ms"),
        (Figures(100, 0, (0, 0, 94, 6)), RolloutLimits(latency_ms=401), ""),
        (Figures(100, 0, (0, 0, 95, 5)), RolloutLimits(latency_ms=400), ""),
        (Figures(100, 0, (0, 0, 100, 0)), RolloutLimits(latency_ms=200), "100 of its 100 answers took longer"),
        (Figures(100, 0, (100, 0, 0, 0)), RolloutLimits(latency_ms=1), ""),
    ],
)
def test_a_revision_is_judged_by_what_is_sure(figures: Figures, limits: RolloutLimits, why: str) -> None:
    assert judged(figures, limits, BOUNDS).startswith(why)
    assert bool(judged(figures, limits, BOUNDS)) is bool(why)
