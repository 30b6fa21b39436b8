"""A model by its config.json alone: what is refused, and that the figures are those of the catalogue and of files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants import model_configs, models_catalogue
from tenants.model_configs import Checked, ConfigRefused, check, facts_from
from tenants.models_catalogue import Quantisation
from tenants.states import ModelTask

# As published by each repository; fields that say nothing about size are left out.
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "head_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
GIB = 2**30


def checked(config: Any, **more: Any) -> Checked:
    return check(config, repository="acme/model", **more)


def facts(config: Any, **more: Any) -> models_catalogue.ServedModelData:
    found = facts_from("acme/model", checked(config, **more).geometry)
    assert found is not None
    return found


# --- figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "known"),
    [(LLAMA_8B, "meta-llama/Llama-3.1-8B-Instruct"), (QWEN_30B_A3B, "Qwen/Qwen3-30B-A3B")],
)
def test_the_figures_of_a_configuration_are_those_that_people_have_written_down(
    config: dict[str, Any], known: str
) -> None:
    mine, theirs = facts(config), models_catalogue.model(known)

    assert mine.kv_bytes_per_token_16bit == theirs.kv_bytes_per_token_16bit
    assert mine.max_context == theirs.max_context
    assert (mine.layers, mine.hidden_size, mine.attention_heads, mine.kv_heads) == (
        theirs.layers, theirs.hidden_size, theirs.attention_heads, theirs.kv_heads,
    )  # fmt: skip
    assert mine.ffn_width == theirs.ffn_width
    for one, other in ((mine.params_total, theirs.params_total), (mine.params_active, theirs.params_active)):
        assert abs(one - other) / other < 0.001
    weights, written = mine.weights[Quantisation.NATIVE], theirs.weights[Quantisation.NATIVE]
    assert abs(weights - written) / written < 0.001


def test_the_weights_of_the_labs_model_are_computed_to_the_byte() -> None:
    # its model.safetensors has 1,117,600 bytes, of which 2,208 are the header
    assert facts(TINY).weights[Quantisation.NATIVE] == 1_117_600 - 2_208


def test_named_files_say_what_the_weights_weigh_and_others_than_safetensors_are_not_counted() -> None:
    found = checked(
        LLAMA_8B,
        files={"model-1.safetensors": 9 * GIB, "model-2.safetensors": 7 * GIB, "pytorch_model.bin": 16 * GIB,
               "original/consolidated.safetensors": 16 * GIB, "config.json": 900},
    )  # fmt: skip

    assert found.geometry["weights_bytes_native"] == 16 * GIB
    assert found.notes == ("1 files with weights in other forms are not loaded, as pytorch_model.bin.",)


def test_quantised_weights_weigh_what_their_files_do_and_are_not_guessed() -> None:
    quantised = {**LLAMA_8B, "quantization_config": {"quant_method": "awq", "bits": 4}}

    assert checked(quantised).geometry == {}
    named = checked(quantised, files={"model.safetensors": 5 * GIB})
    assert named.geometry["weights_bytes_native"] == 5 * GIB
    assert named.geometry["native_dtype"] == "awq"


def test_a_compressed_cache_and_the_text_part_of_a_model_of_pictures_are_read() -> None:
    mla = {**LLAMA_8B, "architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    seen = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {**TINY}, "vision_config": {}}

    assert facts(mla, files={"m.safetensors": GIB}).kv_bytes_per_token_16bit == 2 * 32 * (512 + 64)
    assert facts(mla, files={"m.safetensors": GIB}).attention == "mla"
    assert facts(seen, files={"m.safetensors": GIB}).layers == 2


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA_8B, "architectures": ["Qwen3NextForCausalLM"], "layer_types": ["linear_attention", "full_attention"]},
        {"architectures": ["BertModel"], **{k: v for k, v in TINY.items() if k != "architectures"}},
        {"architectures": ["MambaForCausalLM"], "vocab_size": 50000},
    ],
)
def test_where_the_memory_does_not_follow_there_are_no_figures_and_it_says_so(config: dict[str, Any]) -> None:
    found = checked(config, files={"model.safetensors": GIB})

    assert found.geometry == {}
    assert "has to be chosen by people" in found.notes[-1]


def test_a_model_is_split_only_where_its_heads_are_shared_out_evenly() -> None:
    odd = {**TINY, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}

    assert facts(odd).tensor_parallel_sizes == (1, 2)
    assert facts(LLAMA_8B).tensor_parallel_sizes == (1, 2, 4, 8)


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "more", "field", "says"),
    [
        ([], {}, "config", "JSON object"),
        ({}, {}, "config.architectures", "does not say"),
        ({**TINY, "architectures": ["EvilForCausalLM"]}, {}, "config.architectures", "serves no such"),
        ({**TINY, "auto_map": {"AutoModel": "evil.Model"}}, {}, "config.auto_map", "code of its own"),
        ({**TINY, "text_config": {"auto_map": {"AutoModel": "evil.Model"}}}, {}, "config.auto_map", "code of its own"),
        ({**TINY, "quantization_config": {"quant_method": "evil"}}, {}, "config.quantization_config", "not served"),
        ({**TINY, "num_hidden_layers": "2"}, {}, "config.num_hidden_layers", "no number"),
        ({**TINY, "hidden_size": -1}, {}, "config.hidden_size", "no number"),
        ({**TINY, "vocab_size": 10**12}, {}, "config.vocab_size", "no number"),
        (TINY, {"files": {"pytorch_model.bin": 5}}, "files", "could run code"),
        (TINY, {"files": {}}, "files", "no weights as safetensors"),
        (TINY, {"files": {"model.safetensors": -1}}, "files", "size in bytes"),
        ({**TINY, "x": "y" * 200_000}, {}, "config", "at most"),
        ({**TINY, "architectures": ["BertModel"]}, {"task": ModelTask.GENERATE}, "task", "does not generate"),
    ],
)
def test_what_is_not_served_is_refused_at_its_field(config: Any, more: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ConfigRefused, match=says) as refused:
        checked(config, **more)

    assert refused.value.field == field


def test_a_model_that_can_both_write_and_embed_does_what_is_asked() -> None:
    assert checked(TINY).task is ModelTask.GENERATE
    assert checked(TINY, task=ModelTask.EMBED).task is ModelTask.EMBED
    assert checked({"architectures": ["BertModel"]}).task is ModelTask.EMBED


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    turned = dict(reversed(list(TINY.items())))

    assert checked(TINY).digest == checked(turned).digest
    assert checked(TINY).digest != checked({**TINY, "vocab_size": 1025}).digest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*LLAMA_8B, "quantization_config", "text_config", "auto_map"]), JSON))
def test_whatever_stands_in_it_a_configuration_is_refused_or_understood(part: dict[str, Any]) -> None:
    try:
        found = checked({**LLAMA_8B, **part})
    except ConfigRefused:
        return
    assert "\\u0000" not in json.dumps([dict(found.geometry), found.notes])
    if found.geometry:
        assert facts_from("acme/model", found.geometry) is not None


def test_a_stored_geometry_of_another_shape_has_no_figures() -> None:
    assert facts_from("a/b", {}) is None
    assert facts_from("a/b", {"layers": 3}) is None
    assert facts_from("a/b", {"weights_bytes_native": 3}) is None
    assert model_configs.MOST_FILES == 2000
