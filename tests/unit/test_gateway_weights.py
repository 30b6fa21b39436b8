"""Turns by weight: exact over a round, evenly spread, and nobody is flooded who comes or comes back."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from provisioners.gateway.protocol import Backend
from provisioners.gateway.weights import Turns


def backend(number: int, weight: int, revision: int = 1) -> Backend:
    return Backend(unit_uid=UUID(int=number), url=f"http://127.0.0.1:{number}/v1", revision=revision, weight=weight)


def chosen(turns: Turns, among: list[Backend], times: int) -> list[int]:
    return [turns.choose(among).unit_uid.int for _ in range(times)]


def test_a_tenth_is_every_tenth_request_and_not_ten_in_a_row() -> None:
    turns = Turns()

    picks = chosen(turns, [backend(1, 90), backend(2, 10)], 100)

    at = [position for position, unit in enumerate(picks) if unit == 2]
    assert len(at) == 10
    assert {later - earlier for earlier, later in pairwise(at)} == {10}


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_over_one_round_everybody_is_chosen_exactly_by_his_weight(weights: list[int]) -> None:
    turns, among = Turns(), [backend(number, weight) for number, weight in enumerate(weights, start=1)]

    for _ in range(2):
        picks = chosen(turns, among, sum(weights))
        assert [picks.count(number) for number in range(1, len(weights) + 1)] == weights


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=6), times=st.integers(1, 200))
def test_at_no_moment_is_anybody_further_from_his_share_than_the_others_together(
    weights: list[int], times: int
) -> None:
    turns, among = Turns(), [backend(number, weight) for number, weight in enumerate(weights, start=1)]

    picks = chosen(turns, among, times)

    for number, weight in enumerate(weights, start=1):
        due = times * weight / sum(weights)
        assert abs(picks.count(number) - due) <= len(weights)


def test_who_was_away_and_comes_back_gets_no_more_than_his_share() -> None:
    turns = Turns()
    both = [backend(1, 50), backend(2, 50)]
    chosen(turns, both, 11)

    turns.keep_only(both[:1])
    chosen(turns, both[:1], 1000)
    picks = chosen(turns, both, 10)

    assert 4 <= picks.count(2) <= 6


def test_a_replica_that_serves_another_revision_now_begins_anew() -> None:
    turns = Turns()
    chosen(turns, [backend(1, 1), backend(2, 99)], 98)

    turns.keep_only([backend(1, 50, revision=2), backend(2, 50)])
    picks = chosen(turns, [backend(1, 50, revision=2), backend(2, 50)], 10)

    assert 4 <= picks.count(1) <= 6
