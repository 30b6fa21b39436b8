"""What a model server really made room for, beside what was estimated for it. Pure.

A figure is compared only where it means the same on both sides: cache per token always, how many tokens fit and what
the weights take only where the server ran on the unit's own GPU. Estimates are those of `fit` as they are without any
correction, so that the difference shows; what it comes to for the next estimate is `fit_corrections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from tenants import fit_corrections
from tenants.fit import UTILISATION, Estimate, estimate_of, kv_bytes_per_token
from tenants.fit_corrections import Measured
from tenants.gpu_catalogue import UnknownProduct, UnknownProfile
from tenants.models_catalogue import NoSuchQuantisation, Quantisation, ServedModelData

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
    engine: Mapping[str, Any],
    *,
    model: ServedModelData | None,
    arguments: Mapping[str, Any],
    gpu: str,
    mig_profile: str,
    gpus: int,
    quantisation: Quantisation = Quantisation.NATIVE,
) -> tuple[Check, ...]:
    """Return what a server reported (`EngineReport` as JSON) beside its estimates.

    `gpu`, `mig_profile`, `gpus`: the unit it runs for. A model (None) or a product that nobody knows has no estimates.
    """
    estimate = _estimate(model, arguments, gpu, mig_profile, gpus, quantisation)
    estimates: dict[str, int] = {}
    if model is not None:
        estimates[CACHE_PER_TOKEN] = kv_bytes_per_token(model, devices=max(gpus, 1), kv_bits=_kv_bits(arguments))
    if estimate is not None and not engine.get("runs_on"):
        estimates |= {CACHE_TOKENS: estimate.cache_tokens, WEIGHTS: estimate.weights_bytes}
    tokens, in_bytes = engine.get(CACHE_TOKENS), engine.get("kv_cache_bytes")
    reported = {
        CACHE_TOKENS: tokens,
        CACHE_PER_TOKEN: in_bytes // tokens if tokens and in_bytes else None,
        WEIGHTS: engine.get(WEIGHTS),
    }
    return tuple(
        Check(figure, int(value), estimates.get(figure)) for figure, value in reported.items() if value is not None
    )


def measured(
    engine: Mapping[str, Any],
    *,
    model: ServedModelData | None,
    arguments: Mapping[str, Any],
    gpu: str,
    mig_profile: str,
    gpus: int,
    quantisation: Quantisation = Quantisation.NATIVE,
) -> Measured:
    """Return what a start teaches about the estimate that `fit` makes of this model on this size; see `checks`."""
    found = _estimate(model, arguments, gpu, mig_profile, gpus, quantisation)
    token = None
    if model is not None:
        token = kv_bytes_per_token(model, devices=max(gpus, 1), kv_bits=_kv_bits(arguments))
    return fit_corrections.measured(
        engine,
        arguments,
        token_estimated=token,
        fixed_estimated=None if found is None else found.fixed_bytes,
        budget_bytes=None if found is None else found.budget_bytes,
    )


def _estimate(
    model: ServedModelData | None,
    arguments: Mapping[str, Any],
    gpu: str,
    mig_profile: str,
    gpus: int,
    quantisation: Quantisation,
) -> Estimate | None:
    if model is None:
        return None
    try:
        return estimate_of(
            model,
            product=gpu,
            profile=mig_profile,
            gpus=max(gpus, 1),
            utilisation=Decimal(str(arguments.get("gpu_memory_utilization", UTILISATION))),
            quantisation=quantisation,
            kv_bits=_kv_bits(arguments),
        )
    except (NoSuchQuantisation, UnknownProduct, UnknownProfile):
        return None


def _kv_bits(arguments: Mapping[str, Any]) -> int:
    return 8 if str(arguments.get("kv_cache_dtype", "")).startswith("fp8") else 16
