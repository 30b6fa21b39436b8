"""What placing an allocation writes: its place or why it has none, the boundary it goes into, and its product's word.

Plain functions; the caller has the rows' locks and its own transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tenants import desired, ledger, no_room
from tenants.actor import Actor
from tenants.models import Allocation, Boundary, QuotaCharge
from tenants.operations import quotas
from tenants.quota import Span
from tenants.specs import AllocationSpec
from tenants.states import BoundaryKind, ConditionType, ProductKind, Reason, phase_of, set_condition

TAKEN_FIELDS: Final = ("conditions", "phase", "queued_at", "boundary", "due_at", "observed")
DEFAULT_KINDS: Final[Mapping[ProductKind, tuple[BoundaryKind, ...]]] = {
    ProductKind.ENDPOINT: (BoundaryKind.NAMESPACE, BoundaryKind.VM),
    ProductKind.MACHINE: (BoundaryKind.VM,),
    ProductKind.NAMESPACE: (BoundaryKind.NAMESPACE,),
    ProductKind.BARE: (BoundaryKind.NAMESPACE,),
}


def kinds_of(kind: ProductKind, spec: AllocationSpec) -> tuple[BoundaryKind, ...]:
    """Return the kinds of boundary that an ask of a product may go into."""
    return (spec.where.kind,) if spec.where.kind is not None else DEFAULT_KINDS[kind]


def place(row: Allocation, spec: AllocationSpec, at: ledger.Placed, *, actor: Actor, now: datetime) -> None:
    """Give an allocation that was placed its boundary, and say so. Not saved."""
    row.queued_at = None
    row.boundary = boundary_for(row, spec, at, actor=actor, now=now)
    row.conditions = set_condition(
        row.conditions, ConditionType.PLACED, "True", Reason.DONE, "Its GPUs are held.", now=now,
        generation=row.generation,
    )  # fmt: skip
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.due_at = now


def wait(row: Allocation, why: no_room.NoRoom, *, now: datetime) -> None:
    """Say that an allocation has no place yet, and why; it keeps its turn. Not saved."""
    row.queued_at = row.queued_at or now
    row.conditions = set_condition(
        row.conditions, ConditionType.PLACED, "False", Reason.NO_CAPACITY, why.reason, now=now,
        generation=row.generation,
    )  # fmt: skip
    row.observed = {**row.observed, "why": why.data}
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.due_at = None


def boundary_for(row: Allocation, spec: AllocationSpec, at: ledger.Placed, *, actor: Actor, now: datetime) -> Boundary:
    """Find or make the tenant's boundary of this provider, kind and tier, and make it due."""
    found = (
        Boundary.objects.select_for_update(no_key=True)
        .filter(
            tenant_id=row.tenant_id,
            provider_id=at.provider,
            kind=at.kind.value,
            tier=spec.where.tier.value,
            deletion_requested_at__isnull=True,
        )
        .first()
    )
    if found is not None:
        desired.respecified(found, at=now)
        return found
    quotas.check_demand(row.tenant, {"boundaries": 1}, during=Span(now, None), now=now, actor=actor)
    made = Boundary.objects.create(
        tenant_id=row.tenant_id,
        provider_id=at.provider,
        kind=at.kind.value,
        tier=spec.where.tier.value,
        finalizers=["provider"],
        due_at=now,
        created_at=now,
    )
    QuotaCharge.objects.create(
        tenant_id=row.tenant_id, boundary=made, dimension="boundaries", amount=1, pending=False, created_at=now
    )
    desired.created(made, "boundary.requested", actor=actor, at=now, kind=made.kind, tier=made.tier)
    return made


def boundary_released(boundary: Boundary, *, now: datetime) -> None:
    """Give back what a boundary counted, when it is gone. Plain; called by its pass."""
    del now
    QuotaCharge.objects.filter(boundary=boundary).delete()


def tell_product(row: Allocation) -> None:
    """Give the product that owns an allocation its word on approval and placement at once, and make it due."""
    model = product_model(ProductKind(row.product_kind))
    if model is None:
        return
    said = {ConditionType.APPROVED.value, ConditionType.PLACED.value}
    for product in model._base_manager.select_for_update(no_key=True).filter(allocation=row, released_at__isnull=True):
        kept = [c for c in product.conditions if c["type"] not in said]
        product.conditions = sorted(
            [*kept, *(c for c in row.conditions if c["type"] in said)], key=lambda c: str(c["type"])
        )
        product.phase = phase_of(
            product.conditions, deleting=product.deletion_requested_at is not None, released=False
        ).value
        product.boundary = row.boundary
        product.due_at = row.due_at
        product.save(update_fields=["conditions", "phase", "boundary", "due_at"])


def product_model(kind: ProductKind) -> Any:
    """Return the model of a product kind, None for bare allocations."""
    from tenants.models import Endpoint, Machine, Namespace

    return {ProductKind.ENDPOINT: Endpoint, ProductKind.MACHINE: Machine, ProductKind.NAMESPACE: Namespace}.get(kind)


def say(row: Allocation, kind: ConditionType, reason: Reason, message: str, *, now: datetime) -> None:
    """Say that a condition is false, and the phase that follows. Not saved."""
    row.conditions = set_condition(row.conditions, kind, "False", reason, message, now=now, generation=row.generation)
    row.phase = phase_of(row.conditions, deleting=False, released=False).value


def charge(rows: Sequence[Allocation], *, now: datetime) -> None:
    """Count allocations against their quotas: pending while they wait for room."""
    QuotaCharge.objects.bulk_create(
        QuotaCharge(
            tenant_id=row.tenant_id,
            allocation=row,
            dimension=dimension,
            amount=amount,
            pending=row.queued_at is not None,
            created_at=now,
        )
        for row in rows
        for dimension, amount in row.demand.items()
    )
