"""A hundred points of the crash table, drawn anew each time; the seed is printed, so that any run can be repeated."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.crash.databases import ROOT


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_a_hundred_sampled_crash_points_converge_and_leave_nothing() -> None:
    seed = random.SystemRandom().randrange(1_000_000)

    run = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--beyond", "--sample", "100", "--seed", str(seed), "--real", "1",
         "--jobs", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip

    assert run.returncode == 0, f"seed {seed}\n{run.stdout[-20_000:]}\n{run.stderr[-3_000:]}"
    assert "100 points in" in run.stdout
