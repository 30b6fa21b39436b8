"""What the gateways in front of an endpoint last reported of its revisions, and what they counted in a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from tenants.models import Endpoint, GatewayReplica
from tenants.rollouts import Figures


def gateways_of(row: Endpoint) -> QuerySet[GatewayReplica]:
    """Return the live gateways in front of an endpoint: its boundary's, or those in its VMs."""
    mine = Q(unit__isnull=True) | Q(unit__allocation_id=row.allocation_id)
    return GatewayReplica.objects.filter(mine, boundary_id=row.boundary_id or UUID(int=0), removed_at__isnull=True)


def shown(replica: GatewayReplica, endpoint: UUID) -> Mapping[str, Any]:
    """Return what a gateway last reported of an endpoint."""
    endpoints = replica.report.get("endpoints", ()) if isinstance(replica.report, dict) else ()
    return next((one for one in endpoints if one.get("uid") == str(endpoint)), {})


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


def figures(
    endpoint: UUID, gateways: Iterable[GatewayReplica], before: Mapping[str, Any], revision: int, *, buckets: int = 0
) -> Figures:
    """Return what all gateways counted of a revision since `before`; one that started anew since counts from zero.

    `buckets` is how many counts of latency are wanted: one more than gateways have bounds.
    """
    requests = errors = 0
    latency = [0] * buckets
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
