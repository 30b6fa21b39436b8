"""Histograms of times: sums of parts tell what the whole tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.usage_times import BETWEEN_BOUNDS_US, TTFT_BOUNDS_MS, added, counted, quantile

TIMES = st.lists(st.integers(0, 100_000), max_size=50)


@given(TIMES, TIMES)
def test_the_sum_of_two_is_the_histogram_of_both(left: list[int], right: list[int]) -> None:
    both = counted([*left, *right], TTFT_BOUNDS_MS)

    assert added(counted(left, TTFT_BOUNDS_MS), counted(right, TTFT_BOUNDS_MS)) == both


@given(st.lists(st.integers(1, 80_000), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bounds_of_the_true_one(times: list[int], part: float) -> None:
    told = quantile(counted(times, TTFT_BOUNDS_MS), TTFT_BOUNDS_MS, part)

    true = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    upper = next(bound for bound in TTFT_BOUNDS_MS if true <= bound)
    lower = max((bound for bound in TTFT_BOUNDS_MS if bound < true), default=0)
    assert told is not None
    assert lower <= told <= upper


def test_none_is_none_and_what_is_beyond_is_at_least_the_last_bound() -> None:
    assert quantile([], TTFT_BOUNDS_MS, 0.5) is None
    assert quantile(counted([10**9], BETWEEN_BOUNDS_US), BETWEEN_BOUNDS_US, 0.99) == BETWEEN_BOUNDS_US[-1]


@pytest.mark.parametrize("bounds", [TTFT_BOUNDS_MS, BETWEEN_BOUNDS_US])
def test_bounds_rise(bounds: tuple[int, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
