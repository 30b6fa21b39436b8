"""What starts make of estimates: a median within bounds, only of what means the same on both sides."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants import fit, fit_checks, fit_corrections
from tenants.fit_corrections import Correction, Measured, SizeKey, correction
from tenants.models_catalogue import GIB, model
from tenants.pricing import PriceList

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LLAMA = model("meta-llama/Llama-3.1-8B-Instruct")
HALF = SizeKey("H100-80GB", "3g.40gb", 1)


def start(token: float = 1.0, fixed: float | None = None) -> Measured:
    return Measured(1000, round(1000 * token), *((None, None) if fixed is None else (10_000, round(10_000 * fixed))))


def choose(corrections=None, **asked):  # type: ignore[no-untyped-def]
    given = {"users": 8, "context_tokens": 8192, "products": ["H100-80GB"], "prices": PriceList(), "at": NOW, **asked}
    return fit.choose(LLAMA, corrections=corrections, **given)  # type: ignore[arg-type]


# --- the factors --------------------------------------------------------------------------------------


def test_one_odd_start_among_many_changes_nothing() -> None:
    made = correction([start(1.02, 1.1), start(1.9, 1.49), start(1.02, 1.1)])

    assert made == Correction(Decimal("1.020"), Decimal("1.100"), 3)
    assert made.sentence == "Corrected by 3 measured starts: cache × 1.02, weights and runtime × 1.1."


def test_only_the_last_nine_starts_count() -> None:
    made = correction([*[start(1.0)] * 9, *[start(1.5)] * 20])

    assert made == Correction(Decimal(1), Decimal(1), 9)
    assert made.sentence == "Borne out by 9 measured starts."


@given(st.lists(st.tuples(st.floats(0.001, 50), st.floats(0.001, 50)), min_size=1, max_size=20))
def test_no_measurement_moves_an_estimate_beyond_its_bounds(ratios: list[tuple[float, float]]) -> None:
    made = correction([Measured(10**6, max(1, int(t * 10**6)), 10**6, max(1, int(f * 10**6))) for t, f in ratios])

    assert made is not None
    assert Decimal("0.25") <= made.token <= 2
    assert Decimal("0.8") <= made.fixed <= Decimal("1.5")


def test_what_lies_beyond_the_bounds_is_said() -> None:
    made = correction([start(1.0, 3.0)])

    assert made is not None
    assert (made.fixed, made.is_bounded) == (Decimal("1.5"), True)
    assert made.sentence.endswith("weights and runtime × 1.5; more was measured than is believed.")


def test_without_anything_that_compares_there_is_no_correction() -> None:
    assert correction([]) is None
    assert correction([Measured(None, None, None, None)]) is None


# --- what a start teaches -----------------------------------------------------------------------------

UNIT = {"gpu": "H100-80GB", "mig_profile": "3g.40gb", "gpus": 1}
ESTIMATE = fit.estimate_of(LLAMA, product="H100-80GB", profile="3g.40gb", gpus=1)
assert ESTIMATE is not None
PER_TOKEN = LLAMA.kv_bytes_per_token_16bit


def measured(engine, **arguments):  # type: ignore[no-untyped-def]
    return fit_checks.measured(engine, model=LLAMA, arguments=arguments, **UNIT)  # type: ignore[arg-type]


def test_on_its_own_gpu_what_is_no_cache_is_compared_with_weights_and_runtime() -> None:
    assert ESTIMATE is not None
    tokens = (ESTIMATE.budget_bytes - ESTIMATE.fixed_bytes - GIB) // PER_TOKEN

    found = measured({"kv_cache_tokens": tokens, "kv_cache_bytes": tokens * PER_TOKEN})

    assert (found.token_reported, found.token_estimated) == (PER_TOKEN, PER_TOKEN)
    assert found.fixed_estimated == ESTIMATE.fixed_bytes
    assert found.fixed_reported == ESTIMATE.budget_bytes - tokens * PER_TOKEN
    assert abs(found.fixed_reported - ESTIMATE.fixed_bytes - GIB) < PER_TOKEN


def test_a_server_that_tells_only_its_tokens_teaches_the_rest_alone() -> None:
    found = measured({"kv_cache_tokens": 100_000, "kv_cache_bytes": None})

    assert found.token is None
    assert found.fixed_reported is not None


def test_where_the_gpu_is_simulated_only_the_cache_of_a_token_teaches() -> None:
    found = measured({"kv_cache_tokens": 100, "kv_cache_bytes": 100 * PER_TOKEN, "runs_on": "a CPU"})

    assert found.token == 1
    assert found.fixed is None


@pytest.mark.parametrize(
    "arguments", [{"quantization": "fp8"}, {"enforce_eager": True}, {"max_num_batched_tokens": 32768}]
)
def test_arguments_that_change_weights_or_runtime_teach_nothing_about_them(arguments) -> None:  # type: ignore[no-untyped-def]
    found = measured({"kv_cache_tokens": 100_000, "kv_cache_bytes": 100_000 * PER_TOKEN}, **arguments)

    assert found.token == 1
    assert found.fixed is None


def test_an_unknown_model_teaches_nothing() -> None:
    engine = {"kv_cache_tokens": 100, "kv_cache_bytes": 100}

    assert not fit_checks.measured(engine, model=None, arguments={}, **UNIT).teaches  # type: ignore[arg-type]


# --- the next estimate --------------------------------------------------------------------------------


def test_the_next_estimate_takes_what_was_measured_and_says_so() -> None:
    plain = choose().best
    corrected = choose({HALF: Correction(Decimal("1.25"), Decimal("1.1"), 2)}).best

    assert plain is not None
    assert corrected is not None
    assert (plain.size.profile, corrected.size.profile) == ("3g.40gb", "3g.40gb")
    assert corrected.kv_bytes == plain.kv_bytes * 5 // 4
    fixed = plain.weights_bytes + plain.overhead_bytes
    assert corrected.weights_bytes + corrected.overhead_bytes - fixed * 11 // 10 in {0, 1}
    assert corrected.most_users < plain.most_users
    assert corrected.sentence.endswith("Corrected by 2 measured starts: cache × 1.25, weights and runtime × 1.1.")


def test_a_size_that_turned_out_too_small_is_offered_no_more_and_the_reason_is_said() -> None:
    found = choose({HALF: Correction(Decimal(2), Decimal("1.5"), 5, is_bounded=True)}, users=16)

    assert found.best is not None
    assert found.best.size.profile != "3g.40gb"
    refused = next(one for one in found.refused if one.size.profile == "3g.40gb")
    assert "Corrected by 5 measured starts" in refused.sentence


def test_other_sizes_are_not_touched_and_without_corrections_nothing_changes() -> None:
    other = {SizeKey("H100-80GB", "7g.80gb", 1): Correction(Decimal(2), Decimal("1.5"), 5)}

    assert choose(other).best == choose().best == choose({}).best
    assert fit_corrections.MOST_STARTS % 2 == 1
