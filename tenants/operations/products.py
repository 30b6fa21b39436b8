"""What endpoints, machines and namespaces share: make with an allocation, change, delete."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from tenants import access, desired
from tenants.actor import Actor
from tenants.errors import InvalidSpec
from tenants.models import Allocation, Endpoint, Machine, Namespace, Tenant
from tenants.operations.allocations import Ask, expect_version, request_deletion, submit
from tenants.policies import ROUTES
from tenants.specs import AllocationSpec
from tenants.states import ConditionType, ProductKind, Reason, phase_of, set_condition

Product = Endpoint | Machine | Namespace
R = TypeVar("R", Endpoint, Machine, Namespace)

MAX_LABELS = 32
CHANGEABLE = frozenset({"labels", "description"})


def make(
    model: type[R],
    *,
    tenant: Tenant,
    name: str,
    spec: AllocationSpec,
    kind: ProductKind,
    labels: Mapping[str, str],
    description: str,
    managed_by: str,
    actor: Actor,
    now: datetime,
    **columns: Any,
) -> R:
    """Submit the allocation and insert the product that owns it, in the caller's operation."""
    product_id = uuid4()
    ask = Ask(name, spec, kind, product_id, labels, description, managed_by)
    allocation = submit(tenant=tenant, asks=[ask], actor=actor, now=now)[0]
    row = model(
        id=product_id,
        tenant=tenant,
        name=name,
        description=description,
        labels=dict(labels),
        managed_by=managed_by,
        allocation=allocation,
        boundary=allocation.boundary,
        owner_id=actor.person_id,
        finalizers=["provider"],
        created_at=now,
        **columns,
    )
    _mirror(row, allocation, now=now)
    row.save(force_insert=True)
    return row


def _mirror(row: Product, allocation: Allocation, *, now: datetime) -> None:
    """Start a product with its allocation's word on approval and placement, so that its phase is true at once."""
    row.conditions = [c for c in allocation.conditions if c["type"] in {ConditionType.APPROVED, ConditionType.PLACED}]
    if allocation.boundary_id is not None:
        row.conditions = set_condition(
            row.conditions, ConditionType.READY, "False", Reason.WAITING_FOR_BOUNDARY, "Its boundary is being built.",
            now=now, generation=row.generation,
        )  # fmt: skip
        row.due_at = now
    row.phase = phase_of(row.conditions, deleting=False, released=False).value


def update(
    row: R, *, operation_id: str, changes: Mapping[str, Any], actor: Actor, now: datetime, version: int | None
) -> R:
    """Change labels and description of a product. Plain; the row is locked here."""
    model = type(row)
    fresh = model.objects.select_for_update(no_key=True).select_related("tenant", "allocation").get(pk=row.pk)
    access.check(actor, fresh.tenant, ROUTES[operation_id])
    expect_version(fresh, version)
    unknown = set(changes) - CHANGEABLE
    if unknown:
        field = min(unknown)
        msg = f"{field} cannot be changed this way."
        raise InvalidSpec(msg, field=field)
    for key, value in changes.items():
        setattr(fresh, key, value)
    fresh.save(update_fields=list(changes))
    desired.changed(fresh, f"{desired.kind_of(fresh)}.updated", actor=actor, at=now, changed=sorted(changes))
    return fresh


def delete(row: R, *, operation_id: str, actor: Actor, now: datetime, version: int | None) -> R:
    """Ask for a product and its allocation to go. Keys stop with the same transaction's configuration bump."""
    model = type(row)
    fresh = model.objects.select_for_update(no_key=True).select_related("tenant", "allocation").get(pk=row.pk)
    access.check(actor, fresh.tenant, ROUTES[operation_id])
    expect_version(fresh, version)
    kind = desired.kind_of(fresh)
    if request_deletion(fresh, actor=actor, now=now, kind=f"{kind}.deletion-requested"):
        request_deletion(fresh.allocation, actor=actor, now=now, kind="allocation.deletion-requested")
        touch_gateways([fresh.boundary_id], now=now)
    return fresh


def touch_gateways(boundaries: list[UUID | None], *, now: datetime) -> None:
    """Give the gateways of boundaries a new configuration version, so that they fetch what changed."""
    from tenants import gateway_config

    wanted = [b for b in boundaries if b is not None]
    if wanted:
        gateway_config.bump(wanted, now=now)
