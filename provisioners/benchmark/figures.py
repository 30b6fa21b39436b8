"""Times of single requests → figures of a load. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tenants.benchmarks import Result, Spread, Stopped


@dataclass(slots=True)
class Sample:
    """One request. Moments are seconds of one clock."""

    began: float
    first: float | None = None
    """When the first event with text came."""
    last: float | None = None
    """When the last one came."""
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """Seconds between two events with text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    """`""`: answered to its end."""


def percentile(values: Sequence[float], part: float) -> float | None:
    """Return the value that `part` (0 to 1) of all lie at or below, between neighbours evenly; None for none.

    As `numpy.percentile` does by default, and with it vLLM's own benchmark.
    """
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * part
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def spread(seconds: Sequence[float]) -> Spread:
    """Return times in milliseconds."""
    if not seconds:
        return Spread()
    shown = (sum(seconds) / len(seconds), percentile(seconds, 0.5), percentile(seconds, 0.99))
    return Spread(*(None if each is None else round(each * 1000, 3) for each in shown))


def result(samples: Sequence[Sample], *, stopped: Stopped) -> Result:
    """Return what samples say; those that are still running when it is stopped are none."""
    good = [each for each in samples if not each.error]
    if not samples:
        return Result(stopped=stopped)
    return Result(
        answered=len(good),
        failed=len(samples) - len(good),
        errors=dict(sorted(Counter(each.error for each in samples if each.error).items())),
        duration_s=round(max(each.ended for each in samples) - min(each.began for each in samples), 6),
        prompt_tokens=sum(each.prompt_tokens for each in good),
        completion_tokens=sum(each.completion_tokens for each in good),
        ttft_ms=spread([each.first - each.began for each in good if each.first is not None]),
        between_ms=spread([gap for each in good for gap in each.gaps]),
        request_ms=spread([each.ended - each.began for each in good]),
        stopped=stopped,
    )
