"""The fit function: what serves a model for so many people, what it costs, and why a smaller one does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import fit, gpu_catalogue, models_catalogue
from tenants.fit import CannotServe, Rank, Shortage
from tenants.gpu_catalogue import UnknownProduct
from tenants.models_catalogue import GIB, NoSuchQuantisation, Quantisation
from tenants.pricing import Price, PriceList
from tenants.serving_arguments import checked_arguments

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LLAMA = models_catalogue.model("meta-llama/Llama-3.1-8B-Instruct")
PRICES = PriceList(
    tuple(
        Price(item, Decimal(amount), NOW)
        for item, amount in {
            "gpu.H100-80GB.slices": "0.40",
            "gpu.A100-80GB.slices": "0.25",
            "gpu.L40S-48GB.slices": "1.20",
            "vcpu": "0.02",
            "memory_gib": "0.003",
        }.items()
    )
)
EVERY_PRODUCT = [product.id for product in gpu_catalogue.products()]
asks = {
    "model": st.sampled_from(models_catalogue.models()),
    "users": st.integers(1, 400),
    "context": st.integers(1, 40_000),
    "products": st.lists(st.sampled_from(EVERY_PRODUCT), min_size=1, max_size=6, unique=True),
}


def choose(model=LLAMA, *, users=8, context_tokens=8192, products=("H100-80GB",), prices=PRICES, **more):
    context_tokens = min(context_tokens, model.max_context)
    return fit.choose(
        model, users=users, context_tokens=context_tokens, products=products, prices=prices, at=NOW, **more
    )


def test_eight_users_of_llama_8b_take_half_an_h100():
    found = choose()

    best = found.offers[0]
    assert (best.size.profile, best.size.count, best.size.slices) == ("3g.40gb", 1, 4)
    assert best.weights_bytes == 16_060_522_496
    assert best.kv_bytes == 8 * 8192 * 131_072 == 8 * GIB
    assert best.most_users == 19
    assert best.unit.gpu.profile == "3g.40gb"
    assert (best.unit.vcpu, best.unit.memory_gib) == (8, 32)
    assert dict(best.arguments) == {"max_model_len": 8192, "max_num_seqs": 8}
    assert best.estimated
    assert best.price_hour == 4 * Decimal("0.40") + 8 * Decimal("0.02") + 32 * Decimal("0.003") == Decimal("1.856")
    million = best.price_hour * 10**6 / (best.estimated_tokens_s * 3600)
    assert best.estimated_price_million_tokens == round(million, 2)


def test_the_reason_names_the_missing_number_and_what_would_fit_instead():
    found = choose()

    smaller = found.why_not_smaller
    assert (smaller.size.profile, smaller.shortage) == ("2g.20gb", Shortage.CACHE)
    assert (smaller.users, smaller.most_users, smaller.longest_context) == (8, 1, 1536)
    assert smaller.sentence == (
        "H100-80GB 2g.20gb is 6.4 GiB short of the cache for 8 × 8,192 tokens. "
        "It has room for 1 of them, or all of them with 1,536 tokens."
    )
    by_name = {one.size.name: one for one in found.refused}
    assert by_name["H100-80GB 1g.10gb"].shortage is Shortage.WEIGHTS
    assert by_name["H100-80GB 1g.10gb"].sentence == (
        "H100-80GB 1g.10gb is 7.5 GiB short of the weights and the runtime alone."
    )
    assert choose(users=8, context_tokens=1536).best.size.slices == 2


def test_the_cheapest_comes_first_then_the_roomier_then_the_faster_then_by_price():
    found = choose(products=["H100-80GB", "A100-80GB", "L40S-48GB"])

    ranks = [offer.rank for offer in found.offers]
    assert ranks[:3] == [Rank.CHEAPEST, Rank.ROOMIER, Rank.FASTER]
    assert set(ranks[3:]) == {Rank.ALSO}
    cheapest, roomier, faster = found.offers[:3]
    assert cheapest.price_hour == min(offer.price_hour for offer in found.offers)
    assert roomier.most_users >= 2 * cheapest.most_users
    assert faster.estimated_tokens_s_per_user >= 1.5 * roomier.estimated_tokens_s_per_user
    rest = [offer.price_hour for offer in found.offers[3:]]
    assert rest == sorted(rest)


def test_without_prices_the_least_memory_comes_first_and_costs_are_unknown():
    best = choose(prices=PriceList()).best

    assert best.size.profile == "3g.40gb"
    assert best.price_hour is None
    assert best.estimated_price_million_tokens is None


def test_a_model_too_big_for_one_gpu_takes_several_of_one_host():
    model = models_catalogue.model("meta-llama/Llama-3.3-70B-Instruct")

    best = choose(model, users=8).best

    assert (best.size.profile, best.size.count) == ("", 4)
    assert best.unit.gpu.count == 4
    assert best.size.name == "4 × H100-80GB"
    assert best.free_bytes > 0


def test_more_gpus_than_the_model_can_be_split_over_are_refused_by_name():
    model = models_catalogue.model("microsoft/phi-4")

    refused = {one.size.count: one for one in choose(model, products=["L4-24GB"]).refused}

    assert refused[4].shortage is Shortage.SPLIT
    assert refused[4].sentence == "4 × L4-24GB: this model does not run on 4 GPUs together."


def test_old_and_foreign_gpus_are_refused_with_their_reason():
    found = choose(products=["T4-16GB", "MI300X-192GB"])

    assert found.best is None
    assert {one.sentence for one in found.refused if one.size.count == 1} == {
        "T4-16GB is too old: compute capability 7.5, needed is 8.0.",
        "MI300X-192GB is not made by NVIDIA, and the runtime here needs that.",
    }
    assert found.sentence.startswith("Nothing here fits. ")


def test_windows_whose_starts_are_inferred_are_offered_only_after_a_matching_report():
    assert {offer.size.profile for offer in choose(products=["H200-141GB"]).offers} == {""}
    assert "1g.35gb" in {o.size.profile for o in choose(products=["H200-141GB"], reported=["H200-141GB"]).offers}


def test_a_window_of_unknown_memory_is_not_offered():
    found = choose(products=["B200-180GB"], reported=["B200-180GB"])

    unknown = [one for one in found.refused if one.shortage is Shortage.UNKNOWN_MEMORY]
    assert [one.size.profile for one in unknown] == ["4g.90gb", "3g.90gb"]


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        ({"users": 0}, "at least one user"),
        ({"context_tokens": 0}, "up to 131,072 tokens, not 0"),
    ],
)
def test_what_cannot_be_served_at_all_is_refused(ask, problem):
    with pytest.raises(CannotServe, match=problem):
        choose(**ask)


def test_unknown_products_and_forms_are_named():
    with pytest.raises(UnknownProduct):
        choose(products=["H1000"])
    with pytest.raises(NoSuchQuantisation, match="known: native, 4bit"):
        choose(models_catalogue.model("openai/gpt-oss-20b"), quantisation=Quantisation.EIGHT_BIT)


def test_every_product_has_a_speed_with_its_source():
    document = json.loads(files("tenants").joinpath("data", "gpu-speeds.json").read_text(encoding="utf-8"))

    assert [entry["id"] for entry in document["products"]] == EVERY_PRODUCT
    assert all(entry["source"] and isinstance(entry["verified"], bool) for entry in document["products"])
    assert all(entry["memory_bandwidth_gb_s"] > 0 < entry["dense_16bit_tflops"] for entry in document["products"])


@settings(max_examples=60, deadline=None)
@given(**asks, more=st.integers(1, 400))
def test_more_users_never_choose_a_smaller_size(model, users, context, products, more):
    few = choose(model, users=users, context_tokens=context, products=products).best
    many = choose(model, users=users + more, context_tokens=context, products=products).best

    if few is None:
        assert many is None
    elif many is not None:
        assert many.most_users >= few.most_users
        assert (many.size == few.size) or (few.most_users < users + more)


@settings(max_examples=60, deadline=None)
@given(**asks, more=st.integers(1, 40_000))
def test_a_longer_context_never_raises_the_number_of_users(model, users, context, products, more):
    short = {o.size: o for o in choose(model, users=users, context_tokens=context, products=products).offers}
    long = choose(model, users=users, context_tokens=context + more, products=products).offers

    for offer in long:
        assert offer.size in short
        assert offer.most_users <= short[offer.size].most_users


@settings(max_examples=60, deadline=None)
@given(**asks)
def test_an_offer_holds_weights_and_cache_and_can_be_ordered(model, users, context, products):
    found = choose(model, users=users, context_tokens=context, products=products, reported=products)

    for offer in found.offers:
        assert offer.weights_bytes + offer.kv_bytes + offer.overhead_bytes <= offer.memory_bytes
        assert offer.free_bytes >= 0
        assert offer.most_users >= users
        assert offer.unit.memory_gib * GIB >= offer.weights_bytes
        assert checked_arguments(offer.arguments) == dict(offer.arguments)
        assert offer.estimated_tokens_s >= offer.estimated_tokens_s_per_user >= 1
        gpu_catalogue.profile(offer.unit.gpu.product, offer.unit.gpu.profile)


@settings(max_examples=60, deadline=None)
@given(**asks)
def test_a_refusal_names_the_number_that_is_missing(model, users, context, products):
    found = choose(model, users=users, context_tokens=context, products=products)

    assert len(found.offers) + len(found.refused) == len({o.size for o in (*found.offers, *found.refused)})
    for one in found.refused:
        if one.shortage in {Shortage.WEIGHTS, Shortage.CACHE, Shortage.CAPABILITY}:
            assert one.missing == one.needed - one.available > 0
        if one.shortage is Shortage.CACHE:
            assert one.most_users < users
            assert f"{one.most_users} of them" in one.sentence
        if one.longest_context:
            again = choose(model, users=users, context_tokens=one.longest_context, products=products)
            assert one.size in {offer.size for offer in again.offers}
