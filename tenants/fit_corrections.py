"""What starts of real model servers say about the estimates: two factors for each model on each size. Pure.

One factor is for the cache of a token, one for all that does not grow with requests (weights, activation, run time).
Each is the median of the last starts, so that one odd start changes little, and is kept within bounds: beyond them a
figure says more about a start than about an estimate. Arguments that change the figures themselves (other weights, no
graphs, larger batches) teach nothing about them.

Invariants: a correction depends on measurements alone, not on earlier corrections; without measurements there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

MOST_STARTS: Final = 9
"""The last so many count; an odd number has a middle."""
TOKEN_BOUNDS: Final = (Decimal("0.25"), Decimal(2))
"""Models whose layers slide take much less than the upper bound that is estimated for them."""
FIXED_BOUNDS: Final = (Decimal("0.8"), Decimal("1.5"))
"""Weights are known well, so there is little to be wrong about."""
STEP: Final = Decimal("0.001")
OTHER_FIXED: Final = frozenset({"quantization", "enforce_eager", "max_num_batched_tokens"})
"""Arguments with which weights and run time are others than those estimated."""


@dataclass(frozen=True, slots=True)
class SizeKey:
    """On what a model is corrected: one thing that can be bought."""

    product: str
    profile: str
    """MIG profile, `""` for whole GPUs."""
    gpus: int
    """1 with a profile."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one start reported beside what had been estimated; bytes on each device, None where nothing compares."""

    token_estimated: int | None
    token_reported: int | None
    fixed_estimated: int | None
    fixed_reported: int | None

    @property
    def teaches(self) -> bool:
        """Whether anything of it can be compared."""
        return self.token is not None or self.fixed is not None

    @property
    def token(self) -> Decimal | None:
        """Return reported through estimated cache of a token."""
        return _ratio(self.token_reported, self.token_estimated)

    @property
    def fixed(self) -> Decimal | None:
        """Return reported through estimated bytes that do not grow with requests."""
        return _ratio(self.fixed_reported, self.fixed_estimated)


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors by which the next estimate is multiplied; 1 leaves it as it is."""

    token: Decimal
    fixed: Decimal
    starts: int
    """So many starts stand behind it, at most `MOST_STARTS`."""
    is_bounded: bool = False
    """Whether what was measured lies beyond the bounds, so that less is corrected than was seen."""

    @property
    def changes(self) -> bool:
        """Whether anything comes out otherwise with it."""
        return self.token != 1 or self.fixed != 1

    def token_bytes(self, estimated: int) -> int:
        """Return the corrected cache of a token on each device, rounded up."""
        return _times(estimated, self.token)

    def fixed_bytes(self, estimated: int) -> int:
        """Return corrected weights, activation and run time on each device, rounded up."""
        return _times(estimated, self.fixed)

    @property
    def sentence(self) -> str:
        """Return it in words for people."""
        starts = "1 measured start" if self.starts == 1 else f"{self.starts} measured starts"
        if not self.changes:
            return f"Borne out by {starts}."
        parts = [
            f"{what} × {factor.normalize():f}"
            for what, factor in (("cache", self.token), ("weights and runtime", self.fixed))
            if factor != 1
        ]
        bounded = "; more was measured than is believed" if self.is_bounded else ""
        return f"Corrected by {starts}: {', '.join(parts)}{bounded}."


Corrections = Mapping[SizeKey, Correction]


def measured(
    engine: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    token_estimated: int | None,
    fixed_estimated: int | None,
    budget_bytes: int | None,
) -> Measured:
    """Return what a server's report (`EngineReport` as JSON) says beside its estimates, all on each device.

    `budget_bytes`: what the server was told that it may use; what of it is no cache is taken by the rest. None where it
    did not run on the unit's own GPU: then only the cache of a token compares.
    """
    tokens, in_bytes = engine.get("kv_cache_tokens"), engine.get("kv_cache_bytes")
    if not tokens:
        return Measured(None, None, None, None)
    other_token = arguments.get("dtype") == "float32" and "kv_cache_dtype" not in arguments
    token = None if other_token or token_estimated is None or not in_bytes else int(in_bytes) // int(tokens)
    if not in_bytes:  # a server on a GPU tells its tokens alone
        in_bytes = int(tokens) * (token_estimated or 0)
    is_own = not engine.get("runs_on") and budget_bytes is not None and fixed_estimated is not None
    compares = is_own and not OTHER_FIXED & arguments.keys() and arguments.get("dtype") != "float32"
    fixed = budget_bytes - int(in_bytes) if compares and in_bytes and budget_bytes is not None else None
    if fixed is not None and fixed <= 0:  # it took more than it was told that it may: no figure of ours explains that
        fixed = None
    return Measured(
        token_estimated if token is not None else None, token, fixed_estimated if fixed is not None else None, fixed
    )


def correction(measurements: Sequence[Measured]) -> Correction | None:
    """Return what measurements, the latest first, make of the estimates; None for none that teaches anything."""
    last = [one for one in measurements if one.teaches][:MOST_STARTS]
    if not last:
        return None
    token, token_bounded = _factor([one.token for one in last], TOKEN_BOUNDS)
    fixed, fixed_bounded = _factor([one.fixed for one in last], FIXED_BOUNDS)
    return Correction(token, fixed, len(last), token_bounded or fixed_bounded)


def _factor(ratios: Sequence[Decimal | None], bounds: tuple[Decimal, Decimal]) -> tuple[Decimal, bool]:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return Decimal(1), False
    middle = Decimal(statistics.median(known)).quantize(STEP, rounding=ROUND_HALF_EVEN)
    kept = min(max(middle, bounds[0]), bounds[1])
    return kept, kept != middle


def _ratio(reported: int | None, estimated: int | None) -> Decimal | None:
    return None if not reported or not estimated else Decimal(reported) / Decimal(estimated)


def _times(amount: int, factor: Decimal) -> int:
    return math.ceil(amount * factor)
