"""Whether a caller can tell from the time of a refusal what is wrong with his key: by medians, in a process of its own.

The same measurement as `python -m tests.benchmarks.key_refusals`, with the numbers of the promise: 2,000 tries of each
kind, interleaved in a new order each round. What the machine does meanwhile disturbs a round of all kinds alike; a
median that differs by chance does not do so three times, one that differs for a reason does.
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from tests.benchmarks import key_refusals
from tests.gateway_lab import Lab

TRIES = 2000
WITHIN = 1.05
MEASUREMENTS = 3


async def measured(folder: Path) -> tuple[dict[str, float], set[bytes]]:
    """Return kind of bad key → median of its times in µs, and the different answers."""
    async with Lab(folder) as lab:
        kinds = await key_refusals.prepared(lab)
        times, said = await key_refusals.measured(lab, kinds, TRIES)
    return {kind: statistics.median(found) / 1000 for kind, found in times.items()}, set().union(*said.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_bad_key_is_told_from_another_by_its_answer_or_its_time(tmp_path: Path) -> None:
    spreads = []
    for number in range(MEASUREMENTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        medians, answers = asyncio.run(measured(folder))
        assert set(medians) == {"no key", "mistyped", "wrong", "unknown", "revoked", "expired", "foreign"}
        assert len(answers) == 1
        spreads.append(max(medians.values()) / min(medians.values()))
        if spreads[-1] <= WITHIN:
            break

    assert min(spreads) <= WITHIN, f"medians differ by {spreads}"
