"""Models that can be served: geometry, weights and cache per token, and the memory that follows from them.

Pure data, read once from `data/models.json`, where each entry names its source. A pinned commit is not part of
it: an operator pins one when he offers a model. Which profile of which GPU serves a model is `fit.py`'s work;
this only counts bytes. Activation and run-time overheads are estimates and say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

GIB: Final = 2**30
MIB: Final = 2**20

BIG_DEVICE_GIB: Final = 70
"""From this memory on vLLM takes larger defaults and more CUDA graphs."""
NON_TORCH: Final = 35 * GIB // 100
CUDA_GRAPHS_SMALL: Final = 4 * GIB // 10
CUDA_GRAPHS_BIG: Final = GIB
REDUNDANCY_BUFFER: Final = 150 * MIB
"""Rules of thumb for vLLM 0.32 (the buffer is its constant); replaced by measured values where there are some."""


class UnknownModel(LookupError):
    """No model of the catalogue has this id or alias."""


class NoSuchQuantisation(LookupError):
    """The catalogue has no figure for the weights of this model in this form."""


class Quantisation(StrEnum):
    """Form of the weights."""

    NATIVE = "native"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"


@dataclass(frozen=True, slots=True)
class ServedModelData:
    """One model as published; bytes are for one whole replica."""

    id: str
    """Repository of the weights."""
    aliases: tuple[str, ...]
    family: str
    architecture_kind: str
    """`dense` or `moe`."""
    attention: str
    """`gqa` or `mla`."""
    layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int | None
    head_dim: int | None
    ffn_width: int
    """Width of the feed-forward part that works on one token (all active experts together)."""
    vocab_size: int
    max_context: int
    """Tokens."""
    native_dtype: str
    params_total: int
    params_active: int
    weights: Mapping[Quantisation, int]
    """Bytes; 8 and 4 bit are estimates of the source, rounded up; forms without a figure are missing."""
    kv_bytes_per_token_16bit: int
    kv_bytes_per_token_8bit: int
    tensor_parallel_sizes: tuple[int, ...]
    """On whole GPUs; on a MIG device only 1."""
    gated: str
    note: str
    source: str
    verified: bool

    def kv_bytes_per_token(self, *, kv_bits: int = 16) -> int:
        """Return cache bytes per token (an upper bound where layers slide). Raises `ValueError` but for 8 and 16."""
        if kv_bits not in {8, 16}:
            raise ValueError("the cache has 8 or 16 bits per element")
        return self.kv_bytes_per_token_16bit if kv_bits == 16 else self.kv_bytes_per_token_8bit


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What serving takes, in bytes, part by part."""

    weights: int
    kv_cache: int
    activation: int
    """Estimated."""
    runtime: int
    """CUDA context, graphs and the buffer of the runtime; estimated."""

    @property
    def total(self) -> int:
        """Return the sum in bytes."""
        return self.weights + self.kv_cache + self.activation + self.runtime

    def device_gib(self, *, utilisation: Decimal = Decimal("0.92")) -> Decimal:
        """Return the least device memory in GiB, rounded up to 0.01, if the runtime takes `utilisation` of it.

        0.92 is the default of vLLM 0.32. Raises `ValueError` outside (0, 1].
        """
        if not 0 < utilisation <= 1:
            raise ValueError("utilisation is a share of the device, above 0 and at most 1")
        return (Decimal(self.total) / GIB / utilisation).quantize(Decimal("0.01"), rounding=ROUND_CEILING)


def models() -> tuple[ServedModelData, ...]:
    """Return every model, in the order of the source."""
    return tuple(_catalogue().values())


def model(name: str) -> ServedModelData:
    """Return a model by repository id or alias. Raises `UnknownModel`."""
    found = _catalogue().get(name) or next((m for m in _catalogue().values() if name in m.aliases), None)
    if found is None:
        msg = f"no model is called {name!r}"
        raise UnknownModel(msg)
    return found


def memory_need(
    of: ServedModelData,
    *,
    context: int,
    sequences: int,
    quantisation: Quantisation = Quantisation.NATIVE,
    kv_bits: int = 16,
    big_device: bool = False,
) -> MemoryNeed:
    """Return what `sequences` requests of `context` tokens each take at once on one device.

    `big_device`: it has `BIG_DEVICE_GIB` or more, so the runtime's defaults are larger. Weights and cache are
    exact as far as the source is; activation and run time are estimates. Raises `NoSuchQuantisation`, and
    `ValueError` for a context beyond the model's, a number below 1, or a cache of other than 8 or 16 bits.
    """
    if not 1 <= context <= of.max_context:
        msg = f"{of.id} takes contexts of 1 to {of.max_context} tokens, not {context}"
        raise ValueError(msg)
    if sequences < 1:
        raise ValueError("at least one sequence")
    return MemoryNeed(
        weights=_weights(of, quantisation),
        kv_cache=of.kv_bytes_per_token(kv_bits=kv_bits) * context * sequences,
        activation=_activation(of, big_device=big_device),
        runtime=_runtime(big_device=big_device),
    )


def kv_tokens(
    of: ServedModelData,
    device_gib: Decimal,
    *,
    quantisation: Quantisation = Quantisation.NATIVE,
    kv_bits: int = 16,
    utilisation: Decimal = Decimal("0.92"),
) -> int:
    """Return how many tokens of cache fit on a device, over all requests; 0 if not even the weights do.

    Raises `NoSuchQuantisation`, and `ValueError` for a cache of other than 8 or 16 bits.
    """
    big = device_gib >= BIG_DEVICE_GIB
    fixed = _weights(of, quantisation) + _activation(of, big_device=big) + _runtime(big_device=big)
    room = int(device_gib * GIB * utilisation) - fixed
    return max(room // of.kv_bytes_per_token(kv_bits=kv_bits), 0)


def _weights(of: ServedModelData, quantisation: Quantisation) -> int:
    try:
        return of.weights[quantisation]
    except KeyError:
        msg = f"no figure for the {quantisation} weights of {of.id}; known: {', '.join(of.weights)}"
        raise NoSuchQuantisation(msg) from None


def _activation(of: ServedModelData, *, big_device: bool) -> int:
    # Peak of one profiling step with vLLM's default batch: tokens through the widest layer, logits for all sequences.
    tokens, sequences = (8192, 1024) if big_device else (2048, 256)
    return tokens * (2 * of.ffn_width + 4 * of.hidden_size) * 2 + sequences * of.vocab_size * 12


def _runtime(*, big_device: bool) -> int:
    return NON_TORCH + REDUNDANCY_BUFFER + (CUDA_GRAPHS_BIG if big_device else CUDA_GRAPHS_SMALL)


@cache
def _catalogue() -> Mapping[str, ServedModelData]:
    text = files("tenants").joinpath("data", "models.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return MappingProxyType({entry["id"]: from_entry(entry) for entry in document["models"]})


def from_entry(entry: Mapping[str, Any]) -> ServedModelData:
    """Return a model from an entry as the source has them. Raises `KeyError` for one that lacks something."""
    experts = entry.get("experts_per_token")
    return ServedModelData(
        id=entry["id"],
        aliases=tuple(entry.get("aliases", ())),
        family=entry["family"],
        architecture_kind=entry["architecture_kind"],
        attention=entry["attention"],
        layers=entry["layers"],
        hidden_size=entry["hidden_size"],
        attention_heads=entry["attention_heads"],
        kv_heads=entry["kv_heads"],
        head_dim=entry["head_dim"],
        ffn_width=entry["moe_intermediate_size"] * experts if experts else entry["intermediate_size"],
        vocab_size=entry["vocab_size"],
        max_context=entry["max_position_embeddings"],
        native_dtype=entry["native_dtype"],
        params_total=entry["params_total"],
        params_active=entry["params_active"],
        weights=MappingProxyType(dict(_weights_of(entry))),
        kv_bytes_per_token_16bit=entry["kv_bytes_per_token_16bit"],
        kv_bytes_per_token_8bit=entry["kv_bytes_per_token_8bit"],
        tensor_parallel_sizes=tuple(entry["tensor_parallel_sizes"]),
        gated=entry.get("gated_on_hub", ""),
        note=entry.get("note", ""),
        source=entry["source"],
        verified=entry["verified"],
    )


def _weights_of(entry: Mapping[str, Any]) -> list[tuple[Quantisation, int]]:
    figures = {
        Quantisation.NATIVE: entry["weights_gib_native"],
        Quantisation.EIGHT_BIT: entry["weights_gib_8bit_estimate"],
        Quantisation.FOUR_BIT: entry["weights_gib_4bit_estimate"],
    }
    found = [
        (form, int((Decimal(gib) * GIB).to_integral_value(rounding=ROUND_CEILING)))
        for form, gib in figures.items()
        if gib is not None
    ]
    # A model published in 4 or 8 bit has the same figure twice; the exact one then stands for both.
    exact, native = entry["weights_bytes_native"], entry["weights_gib_native"]
    return [(form, exact if exact and figures[form] == native else size) for form, size in found]
