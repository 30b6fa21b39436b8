"""Access reviews: an owner looked at a way in and keeps it. Recorded as an event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tenants import desired
from tenants.actor import Actor
from tenants.errors import InvalidSpec
from tenants.models import ApiToken, EndpointKey, Membership, ServiceAccount, Tenant
from tenants.operations.guards import allow
from tenants.transactions import operation

REVIEWED: Final = "access.reviewed"
"""Kind of the event; its object is what was looked at."""
MOST: Final = 1000
WayIn = Membership | ServiceAccount | ApiToken | EndpointKey


@operation
def keep(*, tenant: Tenant, ways: Sequence[WayIn], actor: Actor, now: datetime) -> int:
    """Record that these ways into a tenant were looked at and stay; returns how many. Raises `InvalidSpec`."""
    allow(actor, tenant, "members.update")
    if not 1 <= len(ways) <= MOST:
        raise InvalidSpec(f"Review 1 to {MOST} lines at once.", field="ways")
    if any(way.tenant_id != tenant.pk for way in ways):
        raise InvalidSpec("This belongs to another tenant.", field="ways")
    for way in sorted(ways, key=lambda each: str(each.pk)):
        desired.happened(way, REVIEWED, actor=actor, at=now, nudge=False, verdict="keep")
    return len(ways)
