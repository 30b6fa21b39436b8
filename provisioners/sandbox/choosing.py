"""How a simulated provider chooses a device where it, not we, chooses: one policy each. Pure.

`adversarial` always takes the window that costs the most future options, which is what a ledger that
assumes the worst must survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

Draw = Callable[[], Random]
"""Gives a generator that depends on the estate's seed and on how often it was asked."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One window that could be taken."""

    device: str
    index: int
    """Number of the GPU on its host."""
    start: int
    used: int
    """Slots in use on the GPU before."""
    lost: int
    """Slots of legal windows that would stop being free."""


def _first(candidates: Sequence[Candidate], _draw: Draw) -> Candidate:
    return min(candidates, key=lambda candidate: (candidate.index, candidate.start))


def _spread(candidates: Sequence[Candidate], _draw: Draw) -> Candidate:
    return min(candidates, key=lambda candidate: (candidate.used, candidate.index, candidate.start))


def _random(candidates: Sequence[Candidate], draw: Draw) -> Candidate:
    return draw().choice(candidates)


def _adversarial(candidates: Sequence[Candidate], draw: Draw) -> Candidate:
    worst = max(candidate.lost for candidate in candidates)
    return draw().choice([candidate for candidate in candidates if candidate.lost == worst])


POLICIES: Final[Mapping[str, Callable[[Sequence[Candidate], Draw], Candidate]]] = {
    "first": _first,
    "spread": _spread,
    "random": _random,
    "adversarial": _adversarial,
}


def choose(policy: str, candidates: Sequence[Candidate], draw: Draw) -> Candidate:
    """Return one of `candidates` (at least one). Raises `LookupError` for an unknown policy."""
    return POLICIES[policy](candidates, draw)
