"""Endpoints at zero: put to sleep by people or after a time without a request, woken by people or by a request.

At zero no replica runs and the address stays; the first request waits at its gateway until one does. Its units are
kept, and billed, or given back, and then waking queues for room like anything else. The passes do the rest.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tenants import access, desired
from tenants.actor import Actor
from tenants.errors import Conflict, Gone, InvalidSpec
from tenants.models import Endpoint, GatewayReplica, Provider
from tenants.operations import products
from tenants.operations.locking import locked_endpoint
from tenants.operations.rollouts import live_of, refuse_moving
from tenants.policies import ROUTES
from tenants.states import BoundaryKind, IdleUnits
from tenants.transactions import operation

CAPABILITY: Final = "zero"
LEAST_IDLE_S: Final = 60
LONGEST_IDLE_S: Final = 30 * 86400
LONGEST_WAIT_S: Final = 3600
BY_REQUEST: Final = "A request came."


@operation
def sleep(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Endpoint:
    """Let an endpoint go to zero now: running requests end first, the next one wakes it. Safe to repeat.

    Raises `Conflict` (`deleting`, `not-supported`, `not-ready`, `rollout-running`).
    """
    row = locked_endpoint(endpoint, "endpoints.sleep", actor, version)
    if row.slept_at is not None:
        return row
    _refuse_unable(row)
    refuse_moving(row)
    if live_of(row) is not None:
        msg = "Another revision is taking over; promote it or abort it first."
        raise Conflict(msg, code="rollout-running")
    if row.ready_at is None:
        msg = f"{row.name} has not been ready yet."
        raise Conflict(msg, code="not-ready")
    Endpoint.objects.filter(pk=row.pk).update(slept_at=now)
    row.slept_at = now
    desired.changed(row, "endpoint.slept", actor=actor, at=now, why="Somebody put it to sleep.", units=row.idle_units)
    products.touch_gateways([row.boundary_id], now=now)
    return row


@operation
def wake(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Endpoint:
    """Start the replicas of an endpoint at zero. Safe to repeat."""
    row = locked_endpoint(endpoint, "endpoints.wake", actor, version)
    _wake(row, why="Somebody woke it.", actor=actor, now=now)
    return row


@operation
def somebody_waits(*, gateway: UUID, endpoint: UUID, waiting: int, actor: Actor, now: datetime) -> None:
    """Wake an endpoint at zero for requests that wait at a gateway; nothing where it is awake or not the gateway's."""
    access.require_principal(actor, ROUTES["agents.wake"])
    at = GatewayReplica.objects.filter(pk=gateway, removed_at=None).first()
    if at is None:
        raise Gone
    found = Endpoint.objects.select_for_update(no_key=True).filter(
        pk=endpoint, boundary_id=at.boundary_id, released_at=None, deletion_requested_at=None
    )
    row = found.first()
    if row is not None and waiting > 0:
        _wake(row, why=BY_REQUEST, actor=actor, now=now)


def _wake(row: Endpoint, *, why: str, actor: Actor, now: datetime) -> None:
    if row.slept_at is None:
        return
    Endpoint.objects.filter(pk=row.pk).update(slept_at=None, woken_at=now)
    row.slept_at, row.woken_at = None, now
    desired.changed(row, "endpoint.woken", actor=actor, at=now, why=why)
    products.touch_gateways([row.boundary_id], now=now)


@operation
def set_idle(
    *,
    endpoint: Endpoint,
    after_s: int | None,
    units: IdleUnits,
    wait_s: int,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Endpoint:
    """Say after how long without a request it goes to zero (None: never), what becomes of its units, how long to wait.

    Raises `InvalidSpec`, `Conflict` (`deleting`, `not-supported`).
    """
    row = locked_endpoint(endpoint, "endpoints.set_idle", actor, version)
    if after_s is not None and not LEAST_IDLE_S <= after_s <= LONGEST_IDLE_S:
        msg = "It may be idle for 60 seconds to 30 days."
        raise InvalidSpec(msg, field="after_s")
    if not 1 <= wait_s <= LONGEST_WAIT_S:
        msg = "A request waits for 1 second to 1 hour."
        raise InvalidSpec(msg, field="wait_s")
    if after_s is not None:
        _refuse_unable(row)
    if units is IdleUnits.RELEASE and row.boundary is not None and (why := keeps_units(row.boundary.kind)):
        raise Conflict(why, code="not-supported")
    if (row.idle_after_s, row.idle_units, row.wake_wait_s) == (after_s, units.value, wait_s):
        return row
    Endpoint.objects.filter(pk=row.pk).update(idle_after_s=after_s, idle_units=units.value, wake_wait_s=wait_s)
    row.idle_after_s, row.idle_units, row.wake_wait_s = after_s, units.value, wait_s
    desired.changed(row, "endpoint.idle-set", actor=actor, at=now, after_s=after_s, units=units.value, wait_s=wait_s)
    products.touch_gateways([row.boundary_id], now=now)
    return row


def keeps_units(kind: str) -> str:
    """Return why units in a boundary of this kind are not given back at zero, `""` where they can be."""
    if kind != BoundaryKind.VM.value:
        return ""
    return (
        "The gateways of an endpoint in machines run in those machines: given back, nobody would be there to take the "
        "request that wakes it. At zero its model servers stop, and the machines stay."
    )


def refusal(kind: str, provider: Provider) -> str:
    """Return why an endpoint in a boundary of this kind at this provider cannot be at zero, `""` where it can."""
    del kind  # a provider that can, can in every kind of boundary that it makes
    if not provider.capabilities.get("features", {}).get(CAPABILITY):
        return f"The provider {provider.name} keeps no endpoint at zero."
    return ""


def _refuse_unable(row: Endpoint) -> None:
    if row.boundary is not None and (why := refusal(row.boundary.kind, row.boundary.provider)):
        raise Conflict(why, code="not-supported")


def deadline(row: Endpoint, last_use: datetime) -> datetime | None:
    """Return when an endpoint that was used last then goes to zero by itself, None for never."""
    return None if row.idle_after_s is None else last_use + timedelta(seconds=row.idle_after_s)
