"""Crash points of the Kubernetes driver: a process is killed at its n-th write to the cluster, another one goes on.

A point is (write, instant): SIGKILL just before the request leaves, or just after its answer came and before anybody
could note it. The walk is a boundary with its gateway and an endpoint on one MIG device, made and removed; whoever
goes on knows the specs and nothing else. Every point ends with what was wanted there once, on the device that was
wanted, a second look that writes nothing, and nothing left after the removal. Database and ledger are not part of
it: `python -m tests.crash --on kubernetes` kills passes at every instant of theirs; here it is between two writes.

TENANTRY_CRASH_POINTS says how many points are drawn (default 12, about twenty seconds each), TENANTRY_CRASH_SEED which.
"""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from uuid import uuid4

import pytest

from tests.conformance.kubernetes_rig import KubernetesRig, ready_cluster
from tests.conformance.specs import endpoint, finish, namespace_boundary, remove, unit
from tests.crash import children
from tests.crash.children import fork

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.crash, pytest.mark.timeout(1800)]

PATIENCE_S = 300.0
"""A whole walk waits for a real scheduler, several times."""
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Point:
    """Where a process is killed."""

    write: int
    instant: str


class Walk:
    """One life of a boundary and an endpoint."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.boundary = namespace_boundary(uuid4())
        self.endpoint = endpoint(self.boundary, unit(start=3))

    def make(self, rig):
        finish(rig, self.boundary)
        finish(rig, self.endpoint)

    def take_away(self, rig):
        remove(rig, self.endpoint)
        remove(rig, self.boundary)

    def child(self, say, point):
        """Make and take away in this process, which dies at the point; says how many writes it has made."""
        rig = KubernetesRig(self.cluster)
        writes = _Writes(rig, say, point)
        self.make(rig)
        say({"made": writes.count})
        self.take_away(rig)
        return {"writes": writes.count}


class _Writes:
    """Counts the writes of a rig's driver and kills its process at one of them."""

    def __init__(self, rig, say=None, point=None):
        self.count = 0
        send = rig.driver.cluster._send

        def counted(purpose, method, path, query=None, *rest, **options):
            if method == "GET" or "dryRun=All" in str(query) or (query or {}).get("dryRun") or _asks(path):
                return send(purpose, method, path, query, *rest, **options)
            self.count += 1
            here = point is not None and point.write == self.count
            if here and point.instant == BEFORE:
                say({"killed": f"{BEFORE} {method} {path}"})
                os.kill(os.getpid(), signal.SIGKILL)
            answer = send(purpose, method, path, query, *rest, **options)
            if here:
                say({"killed": f"{AFTER} {method} {path}"})
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        rig.driver.cluster._send = counted


def _asks(path):
    """Whether a POST only asks something."""
    return "accessreviews" in path or "selfsubject" in path


def go_on(walk, *, removing):
    """Go on where a killed process stopped, and return what is wrong."""
    rig = KubernetesRig(walk.cluster)
    wrong = []
    try:
        if not removing:
            walk.make(rig)
            uses = [use for use in rig.truth() if use["unit"]]
            wanted = [("node-a", "node-a-gpu-0", 3, str(walk.endpoint.units[0].uid))]
            seen = [(use["host"], use["device"], use["start"], use["unit"]) for use in uses]
            if seen != wanted:
                wrong.append(f"in use: {seen}, wanted: {wanted}")
            writes = _Writes(rig)
            walk.make(rig)
            if writes.count:
                wrong.append(f"a second look made {writes.count} writes")
        walk.take_away(rig)
        rig._await(lambda: not rig.truth())
        wrong += [f"left: {line}" for line in rig.leftovers()]
    finally:
        rig.driver.close()
        rig.api.close()
    return wrong


def test_a_process_killed_at_any_write_leaves_nothing_double_and_nothing_behind(request, monkeypatch):
    monkeypatch.setattr(children, "PATIENCE_S", PATIENCE_S)
    cluster = ready_cluster(request)
    KubernetesRig(cluster).close()
    for _ in range(2):  # the first one also brings what belongs to the cluster up to date
        whole = Walk(cluster)
        first = fork(lambda say, walk=whole: walk.child(say, None))
        total = first.answer()["writes"]
        made = first.lines()[0]["made"]
        first.end()
    seed = int(os.environ.get("TENANTRY_CRASH_SEED", random.SystemRandom().randrange(10**6)))
    every = [Point(write, instant) for write in range(1, total + 1) for instant in (BEFORE, AFTER)]
    most = int(os.environ.get("TENANTRY_CRASH_POINTS", "12"))
    points = random.Random(seed).sample(every, min(most, len(every)))

    failed = {}
    for point in points:
        walk = Walk(cluster)
        child = fork(lambda say, walk=walk, point=point: walk.child(say, point))
        where = child.killed()["killed"]
        removing = any("made" in line for line in child.lines())
        child.end()
        assert removing == (point.write > made)
        wrong = go_on(walk, removing=removing)
        print(f"{'FAILED' if wrong else 'ok':6} {point.write:3} {where[:120]}", flush=True)
        if wrong:
            failed[where] = wrong

    print(f"{len(points)} of {len(every)} points, seed {seed}")
    assert failed == {}
