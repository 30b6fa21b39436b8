"""The course of a move: every way it can go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tenants.moves import (
    DRAIN_LIMIT,
    UNREADY_LIMIT,
    Course,
    Facts,
    advance,
    cutting,
    leaving,
    may_give_up,
    may_take_over,
    undoing,
)
from tenants.states import MoveState

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
WATCH_S = 300
GOOD = Facts(NOW, works=True, stopped="", named=True, quiet=True)
ON_THE_WAY = [state for state in MoveState if state.value not in {"undoing", "done", "undone"}]


def at(state: MoveState, **more: object) -> Course:
    return replace(Course(state, NOW), **more)  # type: ignore[arg-type]


def walked(course: Course, facts: Facts, *, by_hand: bool = False) -> tuple[Course, list[str]]:
    said: list[str] = []
    while (step := advance(course, facts, by_hand=by_hand, watch_s=WATCH_S)) is not None:
        course, told = step
        said += [one.kind for one in told]
    return course, said


def test_all_being_well_it_goes_over_is_watched_and_leaves() -> None:
    watching, said = walked(at(MoveState.PREPARING), GOOD)
    later = replace(GOOD, now=NOW + timedelta(seconds=WATCH_S))
    left, more = walked(watching, later)

    assert (watching.state, watching.cut_at) == (MoveState.WATCHING, NOW)
    assert [*said, *more] == ["move-beside", "move-cut", "move-watching", "move-leaving"]
    assert left.state is MoveState.LEAVING
    assert may_take_over(left, later)
    assert not may_take_over(watching, later)


def test_nothing_goes_over_before_it_works_there_nor_by_itself_where_people_wanted_to_say_when() -> None:
    assert walked(at(MoveState.PREPARING), replace(GOOD, works=False))[0].state is MoveState.PREPARING
    beside = walked(at(MoveState.PREPARING), GOOD, by_hand=True)[0]

    assert beside.state is MoveState.BESIDE
    assert cutting(beside, now=NOW)[0].cut_at == NOW


def test_until_both_places_were_seen_to_know_it_is_not_watched() -> None:
    assert walked(at(MoveState.CUTTING), replace(GOOD, named=False))[0].state is MoveState.CUTTING


@pytest.mark.parametrize("state", ON_THE_WAY)
def test_a_place_that_will_never_do_is_given_up_wherever_the_move_is(state: MoveState) -> None:
    course, said = walked(at(state, cut_at=NOW), replace(GOOD, works=False, stopped="It cannot be made there."))

    assert (course.state, course.reason, said) == (MoveState.UNDOING, "It cannot be made there.", ["move-undoing"])
    assert may_give_up(course, replace(GOOD, stopped="so", named=False, quiet=False))


def test_a_new_place_that_fails_for_long_is_left_by_itself_and_one_that_comes_back_is_not() -> None:
    broken = replace(GOOD, works=False)
    watching, _ = walked(at(MoveState.WATCHING, cut_at=NOW), broken)
    back, _ = walked(watching, replace(GOOD, now=NOW + UNREADY_LIMIT / 2))
    gone, said = walked(watching, replace(broken, now=NOW + UNREADY_LIMIT))

    assert (watching.state, watching.unready_since) == (MoveState.WATCHING, NOW)
    assert (back.state, back.unready_since) == (MoveState.WATCHING, None)
    assert (gone.state, said) == (MoveState.UNDOING, ["move-undoing"])
    assert "has not worked there for 60 s" in gone.reason


def test_while_its_tenant_is_suspended_it_is_not_watched_and_the_watch_begins_anew_after_that() -> None:
    watching = at(MoveState.WATCHING, cut_at=NOW, unready_since=NOW)
    later = NOW + timedelta(days=1)

    held, said = walked(watching, replace(GOOD, works=False, held=True, now=later))
    resumed, _ = walked(held, replace(GOOD, now=later + timedelta(seconds=WATCH_S - 1)))
    left, _ = walked(held, replace(GOOD, now=later + timedelta(seconds=WATCH_S)))

    assert (held.state, held.since, held.unready_since, said) == (MoveState.WATCHING, later, None, [])
    assert (resumed.state, left.state) == (MoveState.WATCHING, MoveState.LEAVING)


def test_it_does_not_go_back_to_a_place_where_it_works_no_better() -> None:
    broken = replace(GOOD, works=False, works_before=False)
    watching, _ = walked(at(MoveState.WATCHING, cut_at=NOW), broken)
    nowhere, _ = walked(watching, replace(broken, now=NOW + 10 * UNREADY_LIMIT))
    at_the_old_one = replace(broken, works_before=True)
    soon, _ = walked(nowhere, replace(at_the_old_one, now=NOW + 10.5 * UNREADY_LIMIT))
    gone, _ = walked(nowhere, replace(at_the_old_one, now=NOW + 11 * UNREADY_LIMIT))

    assert [one.state.value for one in (nowhere, soon, gone)] == ["watching", "watching", "undoing"]


def test_a_place_is_given_up_only_when_nobody_asks_there_any_more_or_its_time_is_over() -> None:
    busy = replace(GOOD, quiet=False)
    late = replace(busy, now=NOW + DRAIN_LIMIT)
    left = leaving(at(MoveState.WATCHING, cut_at=NOW), now=NOW)[0]
    back = undoing(at(MoveState.WATCHING, cut_at=NOW), "so", now=NOW)[0]

    assert (may_take_over(left, busy), may_take_over(left, late)) == (False, True)
    assert (may_give_up(back, busy), may_give_up(back, late)) == (False, True)
    assert not may_give_up(back, replace(late, named=False))
    assert may_give_up(undoing(at(MoveState.PREPARING), "so", now=NOW)[0], replace(busy, named=False))


@pytest.mark.parametrize("state", [MoveState.UNDOING, MoveState.DONE, MoveState.UNDONE])
def test_what_is_over_does_not_go_on(state: MoveState) -> None:
    assert advance(at(state), replace(GOOD, stopped="so"), by_hand=False, watch_s=0) is None
