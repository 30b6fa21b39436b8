"""VLANs of boundaries: taken once, of the ranges that the provider may give; given back when the boundary is gone.

A row is the taking. Takers at one provider go one after the other; the database refuses two rows for one VLAN, and
takes the row away with the boundary's release, however that comes about (trigger `vlan_given_back`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.db import connection

from tenants.models import Boundary, Vlan

_TAKE = """
    INSERT INTO tenants_vlan (id, provider_id, number, boundary_id, tenant_id, taken_at)
    SELECT %(id)s, %(provider)s, n, %(boundary)s, %(tenant)s, %(now)s
    FROM unnest(%(first)s::int[], %(last)s::int[]) AS r(first, last), generate_series(r.first, r.last) AS n
    WHERE NOT EXISTS (SELECT 1 FROM tenants_vlan v WHERE v.provider_id = %(provider)s AND v.number = n)
    ORDER BY n LIMIT 1 RETURNING number"""


def of(boundary: Boundary) -> int | None:
    """Return the VLAN that a boundary has, None without one."""
    return Vlan.objects.filter(boundary_id=boundary.pk).values_list("number", flat=True).first()


def take(boundary: Boundary, ranges: Sequence[tuple[int, int]], *, now: datetime) -> int | None:
    """Return the VLAN of a boundary, taken now if it has none; None when all of the ranges are taken.

    One that it has stays its own, whatever the ranges say now. Needs a transaction.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtext('tenantry vlans'), hashtext(%s))", [str(boundary.provider_id)]
        )
        has = of(boundary)
        if has is not None:
            return has
        values: dict[str, Any] = {
            "id": uuid4(),
            "provider": boundary.provider_id,
            "boundary": boundary.pk,
            "tenant": boundary.tenant_id,
            "now": now,
            "first": [first for first, _last in ranges],
            "last": [last for _first, last in ranges],
        }
        cursor.execute(_TAKE, values)
        row = cursor.fetchone()
    return None if row is None else int(row[0])


def counted(boundary: Boundary) -> int:
    """Return how many VLANs of a boundary's provider are taken."""
    return Vlan.objects.filter(provider_id=boundary.provider_id).count()
