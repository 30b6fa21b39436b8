"""A hundred points of the crash table on vCenters of the lab, drawn anew each time; the seed is printed."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.crash.databases import ROOT

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.crash, pytest.mark.timeout(1000)]


@pytest.mark.usefixtures("vsphere_program")
def test_a_hundred_sampled_crash_points_on_a_vcenter_converge_and_leave_nothing() -> None:
    seed = random.SystemRandom().randrange(1_000_000)

    run = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--on", "vsphere", "--sample", "100", "--seed", str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=950, check=False,
    )  # fmt: skip

    assert run.returncode == 0, f"seed {seed}\n{run.stdout[-20_000:]}\n{run.stderr[-3_000:]}"
    assert "100 of " in run.stdout
