"""How fast answers came: times counted by fixed bounds, so that sums of any hours still tell medians and 99 in 100.

Pure. A histogram is a list of counts, one for each bound and one for what is beyond the last; an empty list is none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

TTFT_BOUNDS_MS: Final = (
    *(10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 500, 750),
    *(1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 20_000, 40_000, 80_000),
)
"""Upper bounds (inclusive) of the time from a request to its first event."""
BETWEEN_BOUNDS_US: Final = (
    *(1_000, 2_000, 5_000, 7_500, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 75_000),
    *(100_000, 150_000, 200_000, 300_000, 500_000, 1_000_000, 5_000_000),
)
"""Upper bounds (inclusive) of one stream's mean time between two tokens."""


def counted(times: Iterable[int], bounds: Sequence[int]) -> list[int]:
    """Return the histogram of `times`; `[]` for none."""
    counts = [0] * (len(bounds) + 1)
    for time in times:
        counts[bisect_left(bounds, time)] += 1
    return counts if any(counts) else []


def added(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Return the sum of two histograms of the same bounds."""
    if not left or not right:
        return list(left or right)
    return [one + other for one, other in zip(left, right, strict=True)]


def quantile(counts: Sequence[int], bounds: Sequence[int], part: float) -> float | None:
    """Return the time that `part` (0 to 1) of all lie at or below, spread evenly within a bound; None for none.

    What is beyond the last bound counts as that bound: the answer is then "at least".
    """
    whole = sum(counts)
    if not whole:
        return None
    rank = part * whole
    for at, reached in enumerate(accumulate(counts)):
        if reached >= rank and counts[at]:
            if at == len(bounds):
                break
            lower = bounds[at - 1] if at else 0
            return lower + (bounds[at] - lower) * (1 - (reached - rank) / counts[at])
    return float(bounds[-1])
