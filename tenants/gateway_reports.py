"""The gateways in front of an endpoint, and what they last reported of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from tenants.models import Endpoint, GatewayReplica


def gateways_of(row: Endpoint) -> QuerySet[GatewayReplica]:
    """Return the live gateways in front of an endpoint: its boundary's, or those in its VMs."""
    mine = Q(unit__isnull=True) | Q(unit__allocation_id=row.allocation_id)
    return GatewayReplica.objects.filter(mine, boundary_id=row.boundary_id or UUID(int=0), removed_at__isnull=True)


def shown(replica: GatewayReplica, endpoint: UUID) -> Mapping[str, Any]:
    """Return what a gateway last reported of an endpoint."""
    endpoints = replica.report.get("endpoints", ()) if isinstance(replica.report, dict) else ()
    return next((one for one in endpoints if one.get("uid") == str(endpoint)), {})
