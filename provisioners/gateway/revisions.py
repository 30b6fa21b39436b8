"""What came of the requests that each revision of an endpoint got, as a rollout is judged by it.

Counts belong to (endpoint, revision), only rise, and begin with the process: whoever reads two reports takes the
difference. Tries count, not requests: one that a replica failed and another one answered is the first one's error,
although its caller never saw it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from provisioners.gateway.protocol import LATENCY_MS, EndpointConfig, RevisionReport


@dataclass(slots=True)
class Counts:
    """Of one revision."""

    requests: int = 0
    errors: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_MS) + 1))


@dataclass(slots=True)
class Tallies:
    """Of all endpoints that a gateway serves."""

    _counts: dict[tuple[UUID, int], Counts] = field(default_factory=dict)
    _last: dict[UUID, datetime] = field(default_factory=dict)

    def asked(self, endpoint: UUID) -> None:
        """Note that somebody with a good key asks."""
        self._last[endpoint] = datetime.now(UTC)

    def failed(self, endpoint: UUID, revision: int) -> None:
        """Count a try that got no whole answer."""
        counts = self._of(endpoint, revision)
        counts.requests += 1
        counts.errors += 1

    def answered(self, endpoint: UUID, revision: int, *, status: int, after_s: float | None) -> None:
        """Count a try that was answered; `after_s` is None where it is not known how soon."""
        counts = self._of(endpoint, revision)
        counts.requests += 1
        counts.errors += status >= 500
        if after_s is not None:
            counts.latency[bisect_left(LATENCY_MS, after_s * 1000)] += 1

    def _of(self, endpoint: UUID, revision: int) -> Counts:
        return self._counts.setdefault((endpoint, revision), Counts())

    def report(self, endpoint: UUID) -> tuple[RevisionReport, ...]:
        """Return what is known of an endpoint, by revision."""
        return tuple(
            RevisionReport(
                revision=revision, requests=counts.requests, errors=counts.errors, latency=tuple(counts.latency)
            )
            for (uid, revision), counts in sorted(self._counts.items(), key=lambda item: item[0][1])
            if uid == endpoint
        )

    def last_request_at(self, endpoint: UUID) -> datetime | None:
        """Return when somebody asked last."""
        return self._last.get(endpoint)

    def keep_only(self, endpoints: Iterable[EndpointConfig]) -> None:
        """Forget endpoints that are gone. Revisions stay: one that is away for a moment goes on counting."""
        named = {endpoint.uid for endpoint in endpoints}
        self._counts = {key: counts for key, counts in self._counts.items() if key[0] in named}
        self._last = {uid: at for uid, at in self._last.items() if uid in named}
