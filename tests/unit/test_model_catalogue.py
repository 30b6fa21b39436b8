"""The catalogue of served models: its figures agree with each other and with the published estimator."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tenants import models_catalogue as catalogue
from tenants.models_catalogue import GIB, Quantisation, kv_tokens, memory_need

EVERY_MODEL = pytest.mark.parametrize("model", catalogue.models(), ids=lambda m: m.id)


@EVERY_MODEL
def test_the_cache_per_token_follows_from_the_geometry(model):
    if model.attention == "gqa":
        assert model.kv_bytes_per_token_16bit == 2 * model.layers * model.kv_heads * model.head_dim * 2
    assert model.kv_bytes_per_token(kv_bits=8) * 2 == model.kv_bytes_per_token(kv_bits=16)


@EVERY_MODEL
def test_smaller_forms_of_the_weights_are_not_larger(model):
    sizes = [model.weights[form] for form in Quantisation if form in model.weights]

    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 0 for size in sizes)
    assert Quantisation.NATIVE in model.weights


@EVERY_MODEL
def test_every_id_and_alias_finds_its_model(model):
    for name in (model.id, *model.aliases):
        assert catalogue.model(name) is model


def test_there_is_no_guessing_of_names():
    with pytest.raises(catalogue.UnknownModel, match="no model is called"):
        catalogue.model("Llama-3.1-8B")


def test_llama_8b_has_its_published_size():
    model = catalogue.model("meta-llama/Llama-3.1-8B-Instruct")

    assert model.weights[Quantisation.NATIVE] == 16_060_522_496
    assert model.max_context == 131_072
    assert model.kv_bytes_per_token() == 131_072
    assert model.tensor_parallel_sizes == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("name", "form", "gib", "thousands"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", Quantisation.NATIVE, "9.5", 166),
        ("meta-llama/Llama-3.1-8B-Instruct", Quantisation.NATIVE, "9.5", 0),
        ("meta-llama/Llama-3.1-8B-Instruct", Quantisation.NATIVE, "39.25", 161),
        ("meta-llama/Llama-3.1-8B-Instruct", Quantisation.EIGHT_BIT, "19.5", 65),
        ("meta-llama/Llama-3.1-8B-Instruct", Quantisation.NATIVE, "78.5", 439),
        ("Qwen/Qwen3-30B-A3B", Quantisation.EIGHT_BIT, "39.25", 62),
        ("openai/gpt-oss-20b", Quantisation.NATIVE, "16.0", 6),
    ],
)
def test_cache_room_agrees_with_the_published_table(name, form, gib, thousands):
    tokens = kv_tokens(catalogue.model(name), Decimal(gib), quantisation=form)

    assert abs(tokens / 1000 - thousands) < 1


def test_the_need_adds_up_and_a_device_of_that_size_has_exactly_room_for_it():
    model = catalogue.model("meta-llama/Llama-3.1-8B-Instruct")

    need = memory_need(model, context=8192, sequences=4)

    assert need.kv_cache == 4 * 8192 * 131_072 == 4 * GIB
    assert need.total == need.weights + need.kv_cache + need.activation + need.runtime
    assert need.device_gib() == Decimal("22.17")  # (14.957 + 4 + 0.539 + 0.896) / 0.92
    assert kv_tokens(model, need.device_gib()) >= 4 * 8192
    assert kv_tokens(model, need.device_gib() - Decimal("0.02")) < 4 * 8192


@EVERY_MODEL
def test_cache_room_and_need_are_inverse_to_each_other(model):
    context = min(model.max_context, 4096)

    for big in (False, True):
        need = memory_need(model, context=context, sequences=3, kv_bits=8, big_device=big)
        if (need.device_gib() >= catalogue.BIG_DEVICE_GIB) == big:
            assert kv_tokens(model, need.device_gib(), kv_bits=8) >= 3 * context


def test_what_cannot_be_served_so_is_refused_by_name():
    model = catalogue.model("openai/gpt-oss-20b")

    with pytest.raises(catalogue.NoSuchQuantisation, match="8bit weights of openai/gpt-oss-20b; known: native, 4bit"):
        memory_need(model, context=1, sequences=1, quantisation=Quantisation.EIGHT_BIT)
    with pytest.raises(ValueError, match="contexts of 1 to 131072 tokens, not 131073"):
        memory_need(model, context=131_073, sequences=1)
    with pytest.raises(ValueError, match="at least one sequence"):
        memory_need(model, context=1, sequences=0)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        memory_need(model, context=1, sequences=1, kv_bits=4)
    with pytest.raises(ValueError, match="share of the device"):
        memory_need(model, context=1, sequences=1).device_gib(utilisation=Decimal(0))
