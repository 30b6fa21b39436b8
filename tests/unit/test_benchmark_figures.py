"""Figures of a load: percentiles as vLLM's own benchmark has them, samples into a result, bounds of an ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioners.benchmark.figures import Sample, percentile, result, spread
from tenants.benchmarks import BOUNDS, Load, Result, Spread, Stopped
from tenants.errors import InvalidSpec


def test_percentiles_lie_between_neighbours_evenly() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([float(n) for n in range(101)], 0.99) == pytest.approx(99.0)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_a_percentile_is_never_outside_of_what_was_measured(times: list[int]) -> None:
    values = [float(time) for time in times]

    found = [percentile(values, part) for part in (0.0, 0.5, 0.99, 1.0)]

    assert found == sorted(found, key=lambda value: value or 0.0)
    assert (found[0], found[-1]) == (min(values), max(values))


def test_samples_make_a_result_and_those_that_failed_have_no_times() -> None:
    samples = [
        Sample(10.0, 10.2, 10.4, 10.5, [0.1, 0.1], 100, 3),
        Sample(10.0, 10.4, 10.4, 11.0, [], 90, 1),
        Sample(10.5, ended=12.0, error="503"),
        Sample(10.5, ended=12.0, error="503"),
    ]

    found = result(samples, stopped=Stopped.NOT)

    assert (found.answered, found.failed, found.errors, found.duration_s) == (2, 2, {"503": 2}, 2.0)
    assert (found.prompt_tokens, found.completion_tokens) == (190, 4)
    assert (found.requests_s, found.written_s, found.tokens_s) == (1.0, 2.0, 97.0)
    assert found.ttft_ms == Spread(300.0, 300.0, 398.0)
    assert found.between_ms == Spread(100.0, 100.0, 100.0)
    assert found.request_ms.p50 == 750.0
    assert Result.of(found.as_json()) == found


def test_of_nothing_there_is_no_figure() -> None:
    empty = result([], stopped=Stopped.CANCELLED)

    assert (empty.answered, empty.written_s, empty.ttft_ms) == (0, None, Spread())
    assert spread([]) == Spread()
    assert Result.of({}) is None


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_load_beyond_a_bound_is_refused_at_its_field(name: str) -> None:
    least, most = BOUNDS[name]
    small = Load(1, 1, 1, 1)

    for value in (least - 1, most + 1):
        with pytest.raises(InvalidSpec) as caught:
            Load(**{**small.as_json(), name: value}).check()
        assert caught.value.field == name


def test_a_load_has_so_many_tokens_at_most_and_its_key_a_few_more() -> None:
    with pytest.raises(InvalidSpec, match="at most 5000000"):
        Load(2000, 4000, 1000, 4).check()

    load = Load(100, 512, 128, 8)
    load.check()
    assert load.tokens == 64_000
    assert load.tokens < load.most_tokens < 4 * load.tokens
    assert Load.of(load.as_json()) == load
