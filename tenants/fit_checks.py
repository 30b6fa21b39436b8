"""What a model server really made room for, beside what was estimated for it. Pure.

A figure is compared only where it means the same on both sides: cache per token always, how many tokens fit and what
the weights take only where the server ran on the unit's own GPU. Nothing here changes an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from tenants.gpu_catalogue import UnknownProduct, UnknownProfile, product, profile
from tenants.models_catalogue import NoSuchQuantisation, Quantisation, UnknownModel, kv_tokens, model

CACHE_PER_TOKEN: Final = "kv_bytes_per_token"  # noqa: S105 - tokens of text
CACHE_TOKENS: Final = "kv_cache_tokens"
WEIGHTS: Final = "weights_bytes"


@dataclass(frozen=True, slots=True)
class Check:
    """One figure: as it was reported, and as it had been estimated."""

    figure: str
    reported: int
    estimated: int | None
    """None where there is no estimate that could be compared with it."""

    @property
    def off_by(self) -> Decimal | None:
        """Return by what part more was reported than estimated, 0.05 for 5 %; None without an estimate."""
        return None if not self.estimated else Decimal(self.reported - self.estimated) / self.estimated


def checks(
    engine: Mapping[str, Any], *, repository: str, arguments: Mapping[str, Any], gpu: str, mig_profile: str, gpus: int
) -> tuple[Check, ...]:
    """Return what a server reported (`EngineReport` as JSON) beside its estimates.

    `gpu`, `mig_profile`, `gpus`: the unit it runs for. A model or a product that nobody knows has no estimates.
    """
    estimates = _estimates(
        repository, arguments, gpu=gpu, mig_profile=mig_profile, gpus=gpus, own_gpu=not engine.get("runs_on")
    )
    tokens, in_bytes = engine.get(CACHE_TOKENS), engine.get("kv_cache_bytes")
    reported = {
        CACHE_TOKENS: tokens,
        CACHE_PER_TOKEN: in_bytes // tokens if tokens and in_bytes else None,
        WEIGHTS: engine.get(WEIGHTS),
    }
    return tuple(
        Check(figure, int(value), estimates.get(figure)) for figure, value in reported.items() if value is not None
    )


def _estimates(
    repository: str, arguments: Mapping[str, Any], *, gpu: str, mig_profile: str, gpus: int, own_gpu: bool
) -> dict[str, int]:
    try:
        known = model(repository)
    except UnknownModel:
        return {}
    kv_bits = 8 if str(arguments.get("kv_cache_dtype", "")).startswith("fp8") else 16
    found = {CACHE_PER_TOKEN: known.kv_bytes_per_token(kv_bits=kv_bits)}
    memory = _memory_gib(gpu, mig_profile)
    if own_gpu and memory is not None and gpus <= 1:
        utilisation = Decimal(str(arguments.get("gpu_memory_utilization", "0.92")))
        try:
            found[CACHE_TOKENS] = kv_tokens(known, memory, kv_bits=kv_bits, utilisation=utilisation)
            found[WEIGHTS] = known.weights[Quantisation.NATIVE]
        except (NoSuchQuantisation, KeyError):
            pass
    return found


def _memory_gib(gpu: str, mig_profile: str) -> Decimal | None:
    try:
        made = product(gpu)
        return profile(made, mig_profile).memory_gib_planning if mig_profile else Decimal(made.total_memory_gib)
    except (UnknownProduct, UnknownProfile):
        return None
