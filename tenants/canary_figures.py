"""What gateways counted of a revision that is tried out, since its step began: what it is judged by, and people see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from tenants.gateway_reports import gateways_of, shown
from tenants.models import GatewayReplica, Rollout
from tenants.rollouts import Figures, slow_answers
from tenants.specs import RolloutLimits

LATENCY_MS: Final = (25, 50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 30_000, 60_000)
"""Upper bounds of what gateways count answers by; they have the same (`provisioners.gateway.protocol`)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a revision stands at its present step."""

    requests: int
    needed: int
    """So many before anything is concluded."""
    errors: int
    most_error_share: float | None
    slow: int
    """Answers that surely took longer than they may."""
    answers: int
    most_ms: int | None

    @property
    def is_judged(self) -> bool:
        """Whether enough was seen of it."""
        return self.requests >= self.needed


def standing(live: Rollout) -> Standing:
    """Return how a rollout's new revision stands; reads its gateways. Its endpoint and revisions must be loaded."""
    limits = RolloutLimits(**live.limits)
    gateways = list(gateways_of(live.endpoint))
    found = figures(live.endpoint_id, gateways, live.baseline, live.revision.number)
    return Standing(
        requests=found.requests,
        needed=max(1, limits.min_requests),
        errors=found.errors,
        most_error_share=limits.error_rate,
        slow=0 if limits.latency_ms is None else slow_answers(found, limits.latency_ms, LATENCY_MS),
        answers=sum(found.latency),
        most_ms=limits.latency_ms,
    )


def _counts(replica: GatewayReplica, endpoint: UUID, revision: int) -> dict[str, Any]:
    """Return one gateway's counts of a revision since it started; none count as zero."""
    found: Mapping[str, Any] = next(
        (one for one in shown(replica, endpoint).get("revisions", ()) if one.get("revision") == revision), {}
    )
    return {
        "started_at": str(replica.report.get("started_at", "")) if isinstance(replica.report, dict) else "",
        "requests": int(found.get("requests", 0)),
        "errors": int(found.get("errors", 0)),
        "latency": [int(count) for count in found.get("latency", ())],
    }


def baseline(endpoint: UUID, gateways: Iterable[GatewayReplica], revision: int) -> dict[str, Any]:
    """Return gateway → its counts now, to be taken off later ones."""
    return {str(replica.pk): _counts(replica, endpoint, revision) for replica in gateways}


def figures(endpoint: UUID, gateways: Iterable[GatewayReplica], before: Mapping[str, Any], revision: int) -> Figures:
    """Return what all gateways counted of a revision since `before`; one that started anew since counts from zero."""
    requests = errors = 0
    latency = [0] * (len(LATENCY_MS) + 1)
    for replica in gateways:
        now = _counts(replica, endpoint, revision)
        base = before.get(str(replica.pk), {})
        if base.get("started_at") != now["started_at"]:
            base = {}
        requests += max(0, now["requests"] - int(base.get("requests", 0)))
        errors += max(0, now["errors"] - int(base.get("errors", 0)))
        less = [*base.get("latency", ()), *[0] * len(latency)]
        for at, count in enumerate(now["latency"][: len(latency)]):
            latency[at] += max(0, count - int(less[at]))
    return Figures(requests, errors, tuple(latency))
