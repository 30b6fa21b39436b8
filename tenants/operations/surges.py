"""A unit beside those of an endpoint, for as long as another revision takes over: claimed, counted, given back.

It is a hold of the ledger like any other: within quota, charged, billed from when it works, on the same provider and in
the same boundary. Plain functions in the caller's transaction. Lock order: tenant path, allocation, unit, host,
boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F

from tenants import desired, ledger
from tenants.actor import Actor
from tenants.errors import QuotaExceeded
from tenants.gpu_catalogue import slices_of
from tenants.models import Allocation, Boundary, QuotaCharge, Unit
from tenants.operations import quotas
from tenants.quota import Span
from tenants.specs import AllocationSpec
from tenants.states import BoundaryKind

ROLE = "surge"


class _NoRoom(Exception):
    """Leaves the savepoint."""


def claim(allocation: Allocation, *, actor: Actor, now: datetime) -> Unit | str:
    """Take one more unit like those of a placed allocation, or return why not, in words; the allocation is locked."""
    boundary = allocation.boundary
    assert boundary is not None
    spec = AllocationSpec.from_json(allocation.spec)
    demand = AllocationSpec(units=spec.units[:1]).demand(slices_of())
    end = allocation.expires_at or now + timedelta(seconds=allocation.duration_s)
    try:
        quotas.check_demand(allocation.tenant, demand, during=Span(now, max(end, now)), now=now, actor=actor)
    except QuotaExceeded as error:
        return f"There is no quota for a unit beside: {error.detail}"
    unit = _unlike(allocation, spec)
    if _others_wait(allocation, unit):
        return "There is no room for a unit beside: others wait for the same room and were first."
    option = ledger.Option(BoundaryKind(boundary.kind), (boundary.provider_id,))
    try:
        with transaction.atomic():
            unit.save(force_insert=True)
            answer = ledger.place(allocation, [unit], spec, now=now, options=[option])
            if not isinstance(answer, ledger.Placed):
                raise _NoRoom(answer.reason)  # noqa: TRY301 - leaves the savepoint
    except _NoRoom as error:
        return f"There is no room for a unit beside: {error}"
    _count(allocation, demand, sign=1)
    desired.respecified(boundary, at=now)
    return unit


def _unlike(allocation: Allocation, spec: AllocationSpec) -> Unit:
    """Return a unit like the first, of a number that none has; not stored yet."""
    live = list(Unit.objects.filter(allocation=allocation, released_at__isnull=True))
    taken = {unit.index for unit in live}
    asked = spec.units[0]
    apart = {str(unit.host_id) for unit in live if asked.spread_group and unit.spread_group == asked.spread_group}
    return Unit(
        tenant_id=allocation.tenant_id,
        allocation=allocation,
        index=next(number for number in range(len(taken) + 1) if number not in taken),
        role=ROLE,
        product=asked.gpu.product if asked.gpu else "",
        profile=asked.gpu.profile if asked.gpu else "",
        gpu_count=(asked.gpu.count if not asked.gpu.profile else 0) if asked.gpu else 0,
        vcpu=asked.vcpu,
        memory_gib=asked.memory_gib,
        spread_group=asked.spread_group,
        avoid_hosts=sorted(apart),
    )


def _others_wait(allocation: Allocation, unit: Unit) -> bool:
    """Whether somebody waits for the same kind of room: a unit beside overtakes nobody."""
    if not unit.product:
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_queue_ahead(%s, %s, %s, %s)",
            [unit.product, unit.profile, unit.gpu_count, [allocation.pk]],
        )
        answer = cursor.fetchone()
    return bool(answer and answer[0])


def give_back(allocation: Allocation, unit: Unit, *, now: datetime) -> None:
    """Release one unit of an allocation that is seen to run nothing, and count it no more. Safe to repeat."""
    if Unit.objects.filter(pk=unit.pk, released_at__isnull=True).exists():
        ledger.release(unit, now=now)
        Unit.objects.filter(pk=unit.pk).update(released_at=now)
        demand = AllocationSpec(units=AllocationSpec.from_json(allocation.spec).units[:1]).demand(slices_of())
        _count(allocation, demand, sign=-1)
        rows = Boundary.objects.filter(allocations=allocation, released_at__isnull=True)
        boundary = rows.first()
        if boundary is not None:
            desired.respecified(boundary, at=now)


def stays(unit: UUID) -> None:
    """Make the unit that was claimed beside one of the endpoint's own."""
    Unit.objects.filter(pk=unit, role=ROLE, released_at__isnull=True).update(role="replica")


def _count(allocation: Allocation, demand: Mapping[str, int], *, sign: int) -> None:
    counted = {name: amount + sign * demand.get(name, 0) for name, amount in allocation.demand.items()}
    Allocation.objects.filter(pk=allocation.pk).update(demand=counted)
    allocation.demand = counted
    for dimension, amount in demand.items():
        charges = QuotaCharge.objects.filter(allocation=allocation, dimension=dimension)
        charges.update(amount=F("amount") + sign * amount)
