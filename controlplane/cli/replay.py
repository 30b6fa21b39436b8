"""Feeds a trace through REST: creates each allocation when it comes, gives it back when it goes, follows all.

A person's token needs the role of member on every tenant of the replay. Requests go out in order of arrival, `clients`
at once; one that could not be sent in time is sent late and counted as such, never dropped.
"""

from __future__ import annotations

import heapq
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from controlplane.cli.cells import why
from controlplane.cli.client import Client, Json
from controlplane.cli.failures import ApiProblem, CliError
from provisioners.sandbox.traces import TraceRequest

LATE_S: Final = 1.0
"""A request sent so long after its time counts as late."""
LOOK_EVERY_S: Final = 5.0
LIVES_LONGER_S: Final = 30 * 86400
"""Term of each allocation: longer than any replay, so that only the trace ends it."""
_NO_LABEL: Final = re.compile(r"[^a-z0-9-]+")


@dataclass(slots=True)
class Fate:
    """What became of one request."""

    request: TraceRequest
    tenant: str
    name: str
    product: str
    identity: str = ""
    phase: str = ""
    reason: str = ""
    sent_late_s: float = 0.0
    answered_in_s: float = 0.0
    waited_s: float | None = None
    """From the answer to the first Ready, as the control plane saw it."""
    deletion_asked: bool = False


@dataclass(slots=True)
class Report:
    """What a replay showed."""

    fates: Sequence[Fate]
    took_s: float

    @property
    def unexplained(self) -> list[Fate]:
        """Requests that are neither ready, released (or on the way), refused with a reason, nor waiting with one."""
        good = {"Ready", "Released", "Deleting"}
        return [
            fate
            for fate in self.fates
            if fate.phase not in good and not (fate.phase in {"Waiting", "Refused"} and fate.reason not in ("", "-"))
        ]

    def as_json(self) -> Json:
        """Return the figures: counts by end, throughput, answers and waits in seconds, reasons."""
        answers = [fate.answered_in_s for fate in self.fates if fate.identity]
        waits = [fate.waited_s for fate in self.fates if fate.waited_s is not None]
        return {
            "requests": len(self.fates),
            "ended": dict(Counter(fate.phase for fate in self.fates).most_common()),
            "sent_late": sum(fate.sent_late_s > LATE_S for fate in self.fates),
            "took_s": round(self.took_s, 1),
            "per_second": round(len(self.fates) / max(self.took_s, 0.001), 2),
            "answer_s": quantiles(answers),
            "until_ready_s": quantiles(waits),
            "reasons": dict(
                Counter(fate.reason for fate in self.fates if fate.phase in {"Waiting", "Refused"}).most_common(10)
            ),
            "unexplained": [f"{fate.tenant}/{fate.name}: {fate.phase}" for fate in self.unexplained[:20]],
        }


def quantiles(values: Sequence[float]) -> Mapping[str, float]:
    """Return count, median, 90th and 99th percentile and maximum of seconds."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p90": at(0.9),
        "p99": at(0.99),
        "max": round(ordered[-1], 3),
    }


def body_of(request: TraceRequest, *, name: str, product: str) -> Json:
    """Return the allocation that stands for a pod: one unit, its GPU part, vCPU and memory as in the trace."""
    gpu = {"product": product, "profile": request.profile, "count": 1 if request.profile else request.gpu_count}
    return {
        "name": name,
        "units": [{"gpu": gpu, "vcpu": request.vcpu, "memory_gib": request.memory_gib}],
        "term": {"duration_s": LIVES_LONGER_S},
        "labels": {"replay": "openb"},
        "managed_by": "cli",
    }


def label_of(name: str) -> str:
    """Return a DNS label of at most 40 characters made of a trace's name."""
    plain = _NO_LABEL.sub("-", name.lower()).strip("-")[:40].rstrip("-")
    return plain if plain[:1].isalpha() else f"p-{plain}"[:40]


def schedule(requests: Sequence[TraceRequest]) -> Iterator[tuple[float, str, int]]:
    """Yield (second, "create" or "delete", number of the request) in order of time; creations first."""
    moves = [(request.arrives_s, 0, number) for number, request in enumerate(requests)]
    moves += [(request.leaves_s, 1, number) for number, request in enumerate(requests)]
    heapq.heapify(moves)
    while moves:
        at, kind, number = heapq.heappop(moves)
        yield at, ("create", "delete")[kind], number


@dataclass
class Feeder:
    """One replay."""

    client: Client
    tenants: Sequence[str]
    products: tuple[str, ...]
    clients: int = 8
    tell: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Any] = field(default_factory=lambda: threading.Event().wait)
    stop_after_s: float = float("inf")
    """Moves after this second are left out: pods that outlive the trace's window keep running."""

    def run(self, requests: Sequence[TraceRequest], *, settle_s: float) -> Report:
        """Send everything at its time, follow it to the end of `settle_s`, and report."""
        run_name = f"{time.time():.0f}"
        fates = [
            Fate(request, self.tenants[request.tenant], label_of(request.name), self._product(number, request))
            for number, request in enumerate(requests)
        ]
        last_arrival = max(request.arrives_s for request in requests)
        began = self.clock()
        with ThreadPoolExecutor(self.clients) as pool:
            futures: dict[int, Any] = {}
            for at, verb, number in schedule(requests):
                if at > min(last_arrival, self.stop_after_s):
                    break
                if (ahead := began + at - self.clock()) > 0:
                    self.pause(ahead)
                if verb == "create":
                    futures[number] = pool.submit(self._create, fates[number], began + at, run_name)
                else:  # after its creation, whatever order the pool takes them in
                    pool.submit(self._delete_after, futures[number], fates[number])
                if number % 100 == 99 and verb == "create":
                    self.tell(f"{self.clock() - began:6.1f} s  {number + 1} of {len(requests)} sent")
        took = self.clock() - began
        self._settle(fates, settle_s)
        return Report(fates, took)

    def _product(self, number: int, request: TraceRequest) -> str:
        return self.products[(request.tenant + number) % len(self.products)]

    def _create(self, fate: Fate, due: float, run_name: str) -> None:
        began = self.clock()
        fate.sent_late_s = max(0.0, began - due)
        key = str(uuid5(NAMESPACE_URL, f"replay/{run_name}/{fate.tenant}/{fate.name}"))
        body = body_of(fate.request, name=fate.name, product=fate.product)
        try:
            made = self.client.post(f"/tenants/{fate.tenant}/allocations", body, key=key).body
        except ApiProblem as problem:
            fate.phase = "Refused" if problem.status < 500 else "Lost"
            fate.reason = f"{problem.status} {problem.code}"
        except CliError as error:
            fate.phase, fate.reason = "Lost", error.message
        else:
            fate.identity, fate.phase = made["id"], made["phase"]
        fate.answered_in_s = self.clock() - began

    def _delete_after(self, created: Any, fate: Fate) -> None:
        created.result()
        if not fate.identity:
            return
        path = f"/tenants/{fate.tenant}/allocations/{fate.identity}"
        for _ in range(5):  # a pass may change the version between our look and our word
            present = self.client.find(path)
            if present is None or present["deletion_requested_at"]:
                return
            try:
                self.client.delete(path, version=present["version"])
            except ApiProblem as problem:
                if problem.status != 412:
                    fate.reason = f"{problem.status} {problem.code} on delete"
                    return
            except CliError as error:
                fate.reason = error.message
                return
            else:
                fate.deletion_asked = True
                return

    def _settle(self, fates: Sequence[Fate], settle_s: float) -> None:
        """Read all until none is on its way any more, or the time is over."""
        end = self.clock() + settle_s
        while True:
            moving = self._look(fates)
            self.tell(f"{moving} on their way")
            if not moving or self.clock() >= end:
                return
            self.pause(LOOK_EVERY_S)

    def _look(self, fates: Sequence[Fate]) -> int:
        known = {fate.identity: fate for fate in fates if fate.identity}
        for tenant in sorted({fate.tenant for fate in fates}):
            for item in self.client.items(f"/tenants/{tenant}/allocations", label=["replay=openb"]):
                fate = known.get(item["id"])
                if fate is None:
                    continue
                fate.phase = item["phase"]
                fate.reason = why(item["conditions"])
                if item["ready_at"]:
                    fate.waited_s = _seconds_between(item["created_at"], item["ready_at"])
        return sum(fate.phase in {"Provisioning", "Deleting"} for fate in fates if fate.identity)


def _seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()
