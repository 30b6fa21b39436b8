"""Reports of model servers beside estimates: only what means the same on both sides is compared."""

from __future__ import annotations

from decimal import Decimal

from tenants import fit_checks
from tenants.fit_checks import Check
from tenants.models_catalogue import model

LLAMA = model("meta-llama/Llama-3.1-8B-Instruct")
UNIT = {"gpu": "H100-80GB", "mig_profile": "", "gpus": 1}


def test_on_its_own_gpu_the_cache_the_weights_and_the_bytes_per_token_are_compared() -> None:
    per_token = LLAMA.kv_bytes_per_token_16bit
    engine = {"kv_cache_tokens": 400_000, "kv_cache_bytes": 400_000 * per_token, "weights_bytes": 16_060_522_496}

    found = {check.figure: check for check in fit_checks.checks(engine, model=LLAMA, arguments={}, **UNIT)}  # type: ignore[arg-type]

    assert found["kv_bytes_per_token"].estimated == found["kv_bytes_per_token"].reported == per_token
    assert found["kv_bytes_per_token"].off_by == 0
    assert found["weights_bytes"].off_by is not None
    assert abs(found["weights_bytes"].off_by) < Decimal("0.01")
    assert found["kv_cache_tokens"].estimated is not None


def test_where_the_gpu_is_simulated_only_the_bytes_per_token_have_an_estimate() -> None:
    engine = {"kv_cache_tokens": 8192, "kv_cache_bytes": 2**30, "runs_on": "this machine's CPU"}

    found = fit_checks.checks(engine, model=LLAMA, arguments={}, **UNIT)  # type: ignore[arg-type]

    assert found == (Check("kv_cache_tokens", 8192, None), Check("kv_bytes_per_token", 131072, 131072))


def test_a_cache_of_eight_bits_is_estimated_as_such_and_half_of_the_bytes_is_minus_a_half() -> None:
    engine = {"kv_cache_tokens": 1000, "kv_cache_bytes": 1000 * 65536, "runs_on": "a CPU"}

    fp8 = fit_checks.checks(engine, model=LLAMA, arguments={"kv_cache_dtype": "fp8"}, **UNIT)  # type: ignore[arg-type]
    auto = fit_checks.checks(engine, model=LLAMA, arguments={}, **UNIT)  # type: ignore[arg-type]

    assert fp8[1].off_by == 0
    assert auto[1].off_by == Decimal("-0.5")


def test_what_nobody_knows_is_shown_without_an_estimate_and_what_was_not_said_not_at_all() -> None:
    engine = {"kv_cache_tokens": 10, "kv_cache_bytes": None, "weights_bytes": None}

    found = fit_checks.checks(engine, model=None, arguments={}, **UNIT)  # type: ignore[arg-type]

    assert found == (Check("kv_cache_tokens", 10, None),)
    assert found[0].off_by is None
