"""Boundaries on a real API server of the lab: how many a minute, in how many calls, what looking at them costs.

    python -m tests.benchmarks.boundaries [--boundaries 500] [--threads 4] [--folder FOLDER]

Starts a cluster of its own (pods become ready by themselves) unless `--folder` names one that runs. Boundaries are made
step after step, as passes do, by the driver alone. Then nothing changes, and one snapshot must show all of them with
no changing call. Single readings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from controlplane.labs.kubernetes import build
from controlplane.labs.kubernetes.cluster import Cluster
from provisioners.driver import BoundarySpec
from provisioners.kubernetes.driver import KubernetesDriver
from tests.conformance.kubernetes_rig import furnish, settings_for
from tests.conformance.specs import namespace_boundary

MOST_READS = 3
"""Per boundary, for a whole sweep in which nothing changed."""


def main() -> int:
    """Run the bench; 1 where a converged sweep costs more than it may."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--boundaries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if why := build.why_not_here():
        print(f"left out: {why}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="tenantry-bench-"))
    cluster = Cluster("bench", folder=folder / "bench", pods="ready")
    if given.folder is not None:
        cluster = Cluster(given.folder.name, folder=given.folder)
    else:
        cluster.start()
    try:
        furnish(cluster)
        return measure(KubernetesDriver(settings_for(cluster)), given.boundaries, given.threads)
    finally:
        if given.folder is None:
            cluster.delete()
        shutil.rmtree(folder, ignore_errors=True)


def measure(driver: KubernetesDriver, boundaries: int, threads: int) -> int:
    """Make, look at and print; the namespaces stay."""
    specs = [namespace_boundary(uuid4()) for _ in range(boundaries)]
    driver.capabilities()
    calls = driver.cluster.reads + driver.cluster.writes
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda spec: make(driver, spec), specs))
    took_s = time.perf_counter() - began
    made = driver.cluster.reads + driver.cluster.writes - calls
    print(
        f"{boundaries} boundaries made in {took_s:.1f} s by {threads} threads: {60 * boundaries / took_s:.0f} a minute"
    )
    print(f"{made / boundaries:.1f} calls per boundary, {driver.cluster.writes / boundaries:.1f} of them changing")

    before = {one.ref: one.fingerprint for one in driver.snapshot().objects}
    reads, writes = driver.cluster.reads, driver.cluster.writes
    began = time.perf_counter()
    after = {one.ref: one.fingerprint for one in driver.snapshot().objects}
    took_s = time.perf_counter() - began
    reads, writes = driver.cluster.reads - reads, driver.cluster.writes - writes
    differ = sum(before.get(ref) != fingerprint for ref, fingerprint in after.items())
    print(f"a converged look at all: {took_s:.2f} s, {reads} reads ({reads / boundaries:.2f} per boundary)")
    print(f"changing calls: {writes}; boundaries shown: {len(after)}; fingerprints that differ: {differ}")
    return int(writes > 0 or reads > MOST_READS * boundaries or len(after) < boundaries)


def make(driver: KubernetesDriver, spec: BoundarySpec) -> None:
    """Start every step of a boundary, as passes do one after another."""
    driver.observe(spec.ref)
    for step in driver.steps(spec):
        driver.start(step)


if __name__ == "__main__":
    sys.exit(main())
