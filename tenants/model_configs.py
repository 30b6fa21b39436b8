"""What a model's own `config.json` says, checked without fetching anything: may it be served, what does it take. Pure.

Asked before a model is offered that the catalogue does not know. It is refused where the server does not know its
architecture, where it brings code of its own, and where its weights are not safetensors: other formats run code when
they are read. From what is left follow the same figures as the catalogue has (`models_catalogue`), in the same form.
Where the configuration does not explain how much memory it takes, there are no figures, and people choose a size.

Sources: architectures, `data/vllm-architectures-0.32.0.json`; fields of `config.json`, Transformers' configurations
(`num_key_value_heads`, `head_dim`, `kv_lora_rank`, `num_experts_per_tok`, `quantization_config`, …).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files as resources
from types import MappingProxyType
from typing import Any, Final

from tenants.models_catalogue import GIB, ServedModelData, from_entry
from tenants.states import ModelTask

MOST_CONFIG_BYTES: Final = 100_000
MOST_FILES: Final = 2000
SAFE: Final = ".safetensors"
UNSAFE: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".gguf")
"""Weights in other forms; none of them is ever read."""
BYTES_OF: Final[Mapping[str, int]] = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1}
QUANTISED: Final = frozenset({"fp8", "awq", "gptq", "compressed-tensors", "mxfp4"})
"""`quantization_config.quant_method` that the server reads without further flags."""
GATED_FEED_FORWARD: Final = frozenset(
    {
        "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
        "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
        "Phi3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "SmolLM3ForCausalLM",
        "SeedOssForCausalLM", "Ministral3ForCausalLM",
    }
)  # fmt: skip
"""Architectures whose number of weights follows from the fields: attention, and three matrices that feed forward."""
WITHOUT_CACHE: Final = frozenset({"BertModel", "RobertaModel", "XLMRobertaModel", "NomicBertModel", "ModernBertModel"})
"""Encoders that keep nothing between tokens."""
OTHER_CACHE: Final = ("linear_attention", "mamba", "recurrent", "conv")
"""Words of `layer_types` whose layers keep something else than keys and values."""
_LARGEST: Final = 10_000_000


class ConfigRefused(ValueError):
    """A model that cannot be offered: the field to blame, and why in words for people."""

    def __init__(self, field: str, why: str) -> None:
        """Keep field and reason."""
        super().__init__(why)
        self.field = field


@dataclass(frozen=True, slots=True)
class Checked:
    """What a configuration says."""

    architecture: str
    task: ModelTask
    digest: str
    """SHA-256 of the configuration as it was given, keys in order."""
    geometry: Mapping[str, Any]
    """An entry as the catalogue has them; {} where the memory does not follow from what was given."""
    notes: tuple[str, ...]
    """What people should know, in words."""


def check(
    config: Any, *, repository: str, files: Mapping[str, int] | None = None, task: ModelTask | None = None
) -> Checked:
    """Return what a `config.json` says. Raises `ConfigRefused` for what is not served.

    `files`: path → bytes of what lies beside it at the commit, where that is known: then weights are what they weigh.
    `task`: for models that can do both; None takes what it is usually for.
    """
    if not isinstance(config, Mapping):
        raise ConfigRefused("config", "Give the JSON object that stands in the model's config.json.")
    try:
        text = json.dumps(config, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigRefused("config", "It holds something that is no JSON.") from error
    if len(text) > MOST_CONFIG_BYTES:
        raise ConfigRefused("config", f"A config.json has at most {MOST_CONFIG_BYTES} bytes.")
    _refuse_code(config)
    notes: list[str] = []
    architecture = _architecture(config)
    does = _task(architecture, task)
    weights = None if files is None else _weights(files, notes)
    inner = config.get("text_config")
    fields = {**config, **inner} if isinstance(inner, Mapping) else dict(config)
    geometry = _geometry(fields, architecture, repository, weights, notes)
    if not geometry:
        notes.append("The memory that it needs does not follow from this; its size has to be chosen by people.")
    return Checked(architecture, does, hashlib.sha256(text.encode()).hexdigest(), geometry, tuple(notes))


def facts_from(repository: str, geometry: Mapping[str, Any]) -> ServedModelData | None:
    """Return the figures of a stored geometry, None for none or for one that is no entry of ours."""
    if not geometry or "weights_bytes_native" not in geometry:
        return None
    try:
        return from_entry({**geometry, "id": repository})
    except (KeyError, TypeError):
        return None


# --- may it be served ------------------------------------------------------------------------------------


def _refuse_code(config: Mapping[str, Any]) -> None:
    for where in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        if where.get("auto_map") or where.get("custom_pipelines"):
            why = "It brings code of its own (auto_map), which is never run. Take one that the server knows by itself."
            raise ConfigRefused("config.auto_map", why)


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise ConfigRefused("config.architectures", "It does not say which architecture it has.")
    known = _known()
    found = next((name for name in named if name in known["generate"] or name in known["embed"]), None)
    if found is None:
        shown = ", ".join(str(name)[:60] for name in named[:3])
        raise ConfigRefused("config.architectures", f"{shown}: vLLM 0.32.0 serves no such architecture.")
    return str(found)


def _task(architecture: str, wanted: ModelTask | None) -> ModelTask:
    known = _known()
    can = [task for task in (ModelTask.GENERATE, ModelTask.EMBED) if architecture in known[task.value]]
    if wanted is not None and wanted not in can:
        raise ConfigRefused("task", f"{architecture} does not {wanted}; it can {', '.join(can)}.")
    return can[0] if wanted is None else wanted


def _weights(files: Mapping[str, Any], notes: list[str]) -> int:
    """Return the bytes of the weights that would be loaded. Raises `ConfigRefused` where none is safe."""
    if len(files) > MOST_FILES:
        raise ConfigRefused("files", f"At most {MOST_FILES} files.")
    for path, size in files.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ConfigRefused("files", f"{path[:80]}: say its size in bytes.")
    safe = {path: size for path, size in files.items() if path.lower().endswith(SAFE)}
    other = sorted(path for path in files if path.lower().endswith(UNSAFE))
    if not sum(safe.values()):
        had = f" It has {other[0][:80]}, which could run code when it is read." if other else ""
        raise ConfigRefused("files", f"It has no weights as safetensors, the only form that is loaded.{had}")
    if other:
        notes.append(f"{len(other)} files with weights in other forms are not loaded, as {_plain(other[0])}.")
    at_top = {path: size for path, size in safe.items() if "/" not in path}
    return sum((at_top or safe).values())


@cache
def _known() -> Mapping[str, frozenset[str]]:
    text = resources("tenants").joinpath("data", "vllm-architectures-0.32.0.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return MappingProxyType({kind: frozenset(document[kind]) for kind in ("generate", "embed")})


# --- what it takes -----------------------------------------------------------------------------------------


def _geometry(
    fields: Mapping[str, Any], architecture: str, repository: str, weights: int | None, notes: list[str]
) -> dict[str, Any]:
    """Return an entry of the catalogue; {} where something that it needs is not said."""
    method = _quantised(fields)
    layers = _number(fields, "num_hidden_layers", "n_layer")
    heads = _number(fields, "num_attention_heads", "n_head")
    hidden = _number(fields, "hidden_size", "n_embd", "d_model")
    vocab = _number(fields, "vocab_size")
    context = _number(fields, "max_position_embeddings", "n_positions", "max_seq_len")
    if None in (layers, heads, hidden, vocab, context) or architecture in WITHOUT_CACHE:
        return {}
    assert layers is not None and heads is not None and hidden is not None  # noqa: PT018 - just looked at
    assert vocab is not None and context is not None  # noqa: PT018
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and any(word in str(kind) for kind in kinds for word in OTHER_CACHE):
        notes.append("Some of its layers keep something else than keys and values.")
        return {}
    head_dim = _number(fields, "head_dim") or hidden // heads
    kv_heads = _number(fields, "num_key_value_heads") or heads
    rank = _number(fields, "kv_lora_rank")
    cache_16 = 2 * layers * ((rank + (_number(fields, "qk_rope_head_dim") or 0)) if rank else 2 * kv_heads * head_dim)
    dtype = _plain(str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16"))
    count = _Count(fields, layers=layers, hidden=hidden, vocab=vocab, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    if weights is None:
        if method or architecture not in GATED_FEED_FORWARD or count.feed_forward is None or dtype not in BYTES_OF:
            notes.append("Name its files with their sizes: then its weights are what they weigh.")
            return {}
        weights = count.total * BYTES_OF[dtype]
        notes.append("Its weights are computed from its fields; name its files with their sizes to have them exactly.")
    per_weight = BYTES_OF.get(dtype, 2)
    total = count.total if count.feed_forward is not None else max(weights // per_weight, 1)
    if not method and count.feed_forward is None:
        notes.append("How many weights it has is taken from what they weigh.")
    gib = float(round(Decimal(weights) / GIB, 3))
    return {
        "id": repository,
        "family": _plain(str(fields.get("model_type") or architecture)),
        "architecture_kind": "moe" if count.experts else "dense",
        "attention": "mla" if rank else "gqa",
        "layers": layers,
        "hidden_size": hidden,
        "attention_heads": heads,
        "kv_heads": None if rank else kv_heads,
        "head_dim": None if rank else head_dim,
        "intermediate_size": count.feed_forward or 4 * hidden,
        "moe_intermediate_size": count.feed_forward or 4 * hidden,
        "experts_per_token": count.at_work if count.experts else None,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "native_dtype": method or dtype,
        "params_total": total,
        "params_active": min(count.active, total) if count.feed_forward is not None else total,
        "weights_bytes_native": weights,
        "weights_gib_native": gib,
        "weights_gib_8bit_estimate": None,
        "weights_gib_4bit_estimate": None,
        "kv_bytes_per_token_16bit": cache_16,
        "kv_bytes_per_token_8bit": cache_16 // 2,
        "tensor_parallel_sizes": _splits(heads, 1 if rank else kv_heads),
        "source": "its config.json",
        "verified": False,
    }


@dataclass(frozen=True, slots=True)
class _Count:
    """Numbers of weights by the fields of a configuration."""

    fields: Mapping[str, Any]
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def experts(self) -> int:
        return _number(self.fields, "num_experts", "num_local_experts", "n_routed_experts") or 0

    @property
    def at_work(self) -> int:
        return _number(self.fields, "num_experts_per_tok", "experts_per_token", "moe_topk") or 1

    @property
    def feed_forward(self) -> int | None:
        """Width of the feed-forward part, of one expert where there are several."""
        names = ("moe_intermediate_size", "intermediate_size") if self.experts else ("intermediate_size",)
        return _number(self.fields, *names)

    @property
    def _of_experts(self) -> int:
        return self.layers * self.experts * 3 * self.hidden * (self.feed_forward or 0)

    @property
    def total(self) -> int:
        embedding = self.vocab * self.hidden * (1 if self.fields.get("tie_word_embeddings") else 2)
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        dense = 0 if self.experts else 3 * self.hidden * (self.feed_forward or 0)
        routing = self.hidden * self.experts
        layer = attention + dense + routing + 2 * self.hidden
        return embedding + self.layers * layer + self._of_experts + self.hidden

    @property
    def active(self) -> int:
        if not self.experts:
            return self.total
        return self.total - self._of_experts * (self.experts - min(self.at_work, self.experts)) // self.experts


def _quantised(fields: Mapping[str, Any]) -> str:
    given = fields.get("quantization_config")
    if not isinstance(given, Mapping):
        return ""
    method = str(given.get("quant_method", ""))
    if method not in QUANTISED:
        why = f"Weights of the form {method[:40]!r} are not served; known: {', '.join(sorted(QUANTISED))}."
        raise ConfigRefused("config.quantization_config", why)
    return method


def _number(fields: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of the fields that is there. Raises `ConfigRefused` for one that is no sensible number."""
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
            raise ConfigRefused(f"config.{name}", f"{name} is no number of this kind.")
        if value:
            return value
    return None


def _plain(text: str) -> str:
    """Return a text of somebody's as one that can be stored and shown."""
    return "".join(letter for letter in text[:60] if letter.isprintable())


def _splits(heads: int, kv_heads: int) -> list[int]:
    """Return over how many GPUs the heads can be shared out evenly; a head of the cache may stand on several."""
    return [n for n in (1, 2, 4, 8) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
