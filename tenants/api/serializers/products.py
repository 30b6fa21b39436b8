"""What the shapes of the three products share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tenants.api.serializers.base import Labels, ManagedBy, text
from tenants.api.serializers.capacity import CapacityIn, ReconciledOut, UnitOut, reconciled
from tenants.models import (
    Endpoint,
    Machine,
    Namespace,
)


class ProductIn(CapacityIn):
    """What every product has."""

    labels: Labels = {}
    description: text(500) = ""  # type: ignore[valid-type]
    managed_by: ManagedBy = "api"


class ProductOut(ReconciledOut):
    """What every product shows."""

    description: str
    labels: dict[str, str]
    managed_by: str
    owner: str | None
    """Id of the person who asked for it."""
    allocation: str
    boundary: str | None
    provider: str | None
    spec: dict[str, Any]
    """What was asked for: units, where, term, on_shortage."""
    units: list[UnitOut]
    expires_at: datetime | None
    observed: dict[str, Any]


def product(row: Endpoint | Machine | Namespace) -> dict[str, Any]:
    """Return the fields of `ProductOut`; tenant, allocation with units and hosts, boundary must be loaded."""
    return {
        **reconciled(row, row.tenant),
        "description": row.description,
        "labels": row.labels,
        "managed_by": row.managed_by,
        "owner": str(row.owner_id) if row.owner_id else None,
        "allocation": row.allocation.short_id,
        "boundary": row.boundary.short_id if row.boundary is not None else None,
        "provider": row.boundary.provider.name if row.boundary is not None else None,
        "spec": row.allocation.spec,
        "units": [UnitOut.of(unit) for unit in row.allocation.units.all() if unit.released_at is None],
        "expires_at": row.allocation.expires_at,
        "observed": row.observed,
    }
