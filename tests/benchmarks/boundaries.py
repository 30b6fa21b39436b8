"""Boundaries on a real API server of the lab: how many a minute, in how many calls, what looking at them costs.

    python -m tests.benchmarks.boundaries [--boundaries 500] [--threads 4] [--folder FOLDER]

Starts a cluster of its own (pods become ready by themselves) unless `--folder` names one that runs. Boundaries are made
by the driver alone: one look, then step after step. Then nothing changes, and a sweep's look at the cluster must show
each of them as before, with no changing call. Single readings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from controlplane.labs.kubernetes import build
from controlplane.labs.kubernetes.cluster import Cluster
from provisioners.driver import BoundarySpec, Ref
from provisioners.kubernetes.driver import KubernetesDriver
from tests.conformance.kubernetes_rig import furnish, settings_for
from tests.conformance.specs import namespace_boundary

MOST_READS = 3
"""Per boundary, for a whole sweep in which nothing changed."""
NOT_BUILT = "the Kubernetes lab is not built; mend: python -m controlplane.labs.kubernetes build"
REST_S = 120.0
"""So long the cluster may go on by itself (quotas counted, gateways started) after the last step."""


def main() -> int:
    """Run the bench; 1 where a converged sweep costs more than it may, or nothing could be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--boundaries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if not build.is_built():
        print(f"not measured: {build.why_not_here() or NOT_BUILT}")
        return 1
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
    cluster = driver.cluster
    specs = [namespace_boundary(uuid4()) for _ in range(boundaries)]
    driver.capabilities()
    reads, writes, began = cluster.reads, cluster.writes, time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda spec: make(driver, spec), specs))
    took_s = time.perf_counter() - began
    reads, writes = cluster.reads - reads, cluster.writes - writes
    print(
        f"{boundaries} boundaries made in {took_s:.1f} s by {threads} threads: {60 * boundaries / took_s:.0f} a minute"
    )
    each = (reads + writes) / boundaries
    print(f"{each:.1f} calls per boundary, {writes / boundaries:.1f} of them changing")

    before = at_rest(driver)
    reads, writes, began = cluster.reads, cluster.writes, time.perf_counter()
    after = fingerprints(driver)
    took_s = time.perf_counter() - began
    reads, writes = cluster.reads - reads, cluster.writes - writes
    differ = sum(before.get(ref) != fingerprint for ref, fingerprint in after.items())
    print(f"a converged look at all: {took_s:.2f} s, {reads} reads ({reads / boundaries:.2f} per boundary)")
    print(
        f"changing calls: {writes}; boundaries shown: {len(after)}; of those that passes must look at again: {differ}"
    )

    bad = writes > 0 or reads >= MOST_READS * boundaries or len(after) < boundaries or differ > 0
    reads, began = cluster.reads, time.perf_counter()
    some = specs[:: max(1, boundaries // 20)]
    unlike = sum(not is_as_wanted(driver, spec) for spec in some)
    took_s = (time.perf_counter() - began) / len(some)
    look = (cluster.reads - reads) / len(some)
    print(f"an exact look at one: {took_s:.2f} s, {look:.1f} reads; {unlike} not as wanted")
    looks = len(driver.steps(some[0]))
    print(f"with the look that a pass takes after each step: {each + looks * look:.0f} calls per boundary")
    return int(bad or unlike > 0)


def fingerprints(driver: KubernetesDriver) -> dict[Ref, str]:
    """Return what a sweep compares of each object."""
    return {one.ref: one.fingerprint for one in driver.snapshot().objects}


def at_rest(driver: KubernetesDriver) -> dict[Ref, str]:
    """Look until nothing moves any more; return the last look."""
    before, end = fingerprints(driver), time.monotonic() + REST_S
    while time.monotonic() < end:
        threading.Event().wait(2)
        after = fingerprints(driver)
        if after == before:
            break
        before = after
    return before


def is_as_wanted(driver: KubernetesDriver, spec: BoundarySpec) -> bool:
    """Whether an exact look finds every part as its step wants it."""
    seen = driver.observe(spec.ref)
    return all(seen.part(step.name).have == step.want for step in driver.steps(spec))


def make(driver: KubernetesDriver, spec: BoundarySpec) -> None:
    """Start every step of a boundary, as passes do one after another."""
    driver.observe(spec.ref)
    for step in driver.steps(spec):
        driver.start(step)


if __name__ == "__main__":
    sys.exit(main())
