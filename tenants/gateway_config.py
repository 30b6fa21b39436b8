"""Versions of gateways' configurations: whatever changes what a gateway must know raises its version, here.

Plain functions, called in the transaction of the change: keys, endpoints, suspensions, backends. Nothing is
sent from here; a gateway asks (`/agent/v1/config`) and is told within half a second. A version only rises.
Gateway rows are locked after everything else, the chain head included, and by id.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db import connection


def bump(boundary_ids: Iterable[UUID], now: datetime) -> int:
    """Raise the version of every live gateway of these boundaries; returns how many there were."""
    del now
    return _raise("boundary_id = ANY (%s)", list(boundary_ids))


def bump_gateways(gateways: Iterable[UUID]) -> int:
    """Raise the version of these gateways, as far as they live; returns how many there were."""
    return _raise("id = ANY (%s)", list(gateways))


def _raise(condition: str, ids: list[UUID]) -> int:
    if not ids:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE tenants_gatewayreplica SET config_version = config_version + 1 WHERE id IN ("  # noqa: S608 - ours
            f"SELECT id FROM tenants_gatewayreplica WHERE {condition} AND removed_at IS NULL "
            "ORDER BY id FOR NO KEY UPDATE)",
            [ids],
        )
        return int(cursor.rowcount)
