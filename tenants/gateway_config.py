"""Which version of its configuration a gateway should have.

Plain functions of the caller's transaction; the configuration itself is rendered from rows when a gateway
asks for it (`provisioners.agent_api`), whose long poll looks at the version every half second.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db.models import F

from tenants.models import GatewayReplica


def bump(boundaries: Iterable[UUID], *, now: datetime) -> int:
    """Ask the gateways of boundaries to fetch their configuration anew; return how many there are."""
    del now
    rows = GatewayReplica.objects.filter(boundary_id__in=list(boundaries), removed_at__isnull=True)
    return rows.update(config_version=F("config_version") + 1)
