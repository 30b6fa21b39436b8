"""Which replica takes the next request, and what is known of each one.

Knowledge outlives a change of configuration: it belongs to (unit, address). A backend that could not be
reached is left alone for a moment, unless there is no other. Choice among the rest is by weight, in smooth turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from provisioners.gateway.engine import Load
from provisioners.gateway.protocol import Backend, BackendReport, EndpointConfig, EndpointReport
from provisioners.gateway.revisions import Tallies
from provisioners.gateway.weights import Turns

REST_S: Final = 2.0
"""How long an unreachable backend is left alone."""


@dataclass(slots=True)
class Health:
    """What the gateway has seen of one backend since it started."""

    reachable: bool | None = None
    message: str = ""
    resting_until: float = 0.0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    load: Load | None = None
    """What its model server said of itself at the last look."""
    hop_key: str = field(default="", repr=False)
    """The key that it took last."""


@dataclass(slots=True)
class Backends:
    """Health of all backends, and the choice among those of an endpoint."""

    clock: Callable[[], float] = time.monotonic
    tallies: Tallies = field(default_factory=Tallies)
    _turns: dict[UUID, Turns] = field(default_factory=dict)
    _known: dict[tuple[UUID, str], Health] = field(default_factory=dict)

    def health(self, backend: Backend) -> Health:
        """Return the (mutable) health of `backend`."""
        key = (backend.unit_uid, backend.url)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Health()
        return found

    def choose(self, endpoint: EndpointConfig, *, tried: Collection[UUID] = ()) -> Backend | None:
        """Pick a backend of `endpoint` by weight, None where none is left.

        Those that are `tried` are out; resting ones are taken only when there is nobody else.
        """
        open_ = [b for b in endpoint.backends if b.weight > 0 and b.unit_uid not in tried]
        if len(open_) > 1:
            now = self.clock()
            rested = [b for b in open_ if self.health(b).resting_until <= now]
            open_ = rested or open_
        if len(open_) <= 1:
            return open_[0] if open_ else None
        return self._turns.setdefault(endpoint.uid, Turns()).choose(open_)

    def hop_keys(self, endpoint: EndpointConfig, backend: Backend) -> tuple[str, ...]:
        """Return the keys to try at a backend of `endpoint`, the likeliest first; `""` is to show none."""
        last = self.health(backend).hop_key
        return tuple(sorted(endpoint.hop_keys, key=lambda key: key != last)) or ("",)

    def reached(self, backend: Backend) -> None:
        """Note that `backend` answered."""
        health = self.health(backend)
        health.reachable, health.message, health.resting_until = True, "", 0.0

    def failed(self, backend: Backend, message: str) -> None:
        """Note that `backend` could not be reached or broke off; `message` holds no secret."""
        health = self.health(backend)
        health.reachable, health.message = False, message[:300]
        health.failures += 1
        health.resting_until = self.clock() + REST_S

    def keep_only(self, endpoints: Iterable[EndpointConfig]) -> None:
        """Forget backends that no endpoint names and no request uses."""
        endpoints = tuple(endpoints)
        self.tallies.keep_only(endpoints)
        kept = {endpoint.uid: self._turns.get(endpoint.uid, Turns()) for endpoint in endpoints}
        for endpoint in endpoints:
            kept[endpoint.uid].keep_only(endpoint.backends)
        self._turns = kept
        named = {(b.unit_uid, b.url) for endpoint in endpoints for b in endpoint.backends}
        for key, health in tuple(self._known.items()):
            if key not in named and health.in_flight == 0:
                del self._known[key]

    def report(self, endpoint: EndpointConfig, *, waiting: int = 0) -> EndpointReport:
        """Say how `endpoint` and its backends are; `waiting`: who waits for one."""
        reports = []
        for backend in endpoint.backends:
            health = self.health(backend)
            reports.append(
                BackendReport(
                    unit_uid=backend.unit_uid,
                    reachable=health.reachable,
                    message=health.message,
                    in_flight=health.in_flight,
                    requests=health.requests,
                    failures=health.failures,
                    running=health.load.running if health.load is not None else None,
                    queued=health.load.waiting if health.load is not None else None,
                    kv_cache=health.load.kv_cache if health.load is not None else None,
                    prefix_queries=health.load.prefix_queries if health.load is not None else None,
                    prefix_hits=health.load.prefix_hits if health.load is not None else None,
                    cache_tokens=health.load.cache_tokens if health.load is not None else None,
                )
            )
        return EndpointReport(
            uid=endpoint.uid,
            state=endpoint.state,
            in_flight=sum(report.in_flight for report in reports),
            backends=tuple(reports),
            revisions=self.tallies.report(endpoint.uid),
            waiting=waiting,
            last_request_at=self.tallies.last_request_at(endpoint.uid),
        )
