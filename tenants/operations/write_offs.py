"""Writing off what a provider that will not come back holds: by an operator, approved by a second person.

The one way in which holds end without being seen gone. The provider must be switched off first, so that
nothing is placed on windows that may still be in use; should it come back, inventory finds what runs there as
foreign use and keeps its windows.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import F

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Allocation, GatewayReplica, Intent, Provider, Reconciled
from tenants.operations import allocations, placements
from tenants.states import ConditionType, Phase, ProductKind, Reason, set_condition


def check(allocation: Allocation) -> Provider:
    """Return the provider that an allocation is lost with. Raises `Conflict` where nothing is lost."""
    boundary = allocation.boundary
    if allocation.released_at is not None or boundary is None:
        msg = "Only an allocation that stands on a provider can be written off."
        raise Conflict(msg, code="not-placed")
    if boundary.provider.enabled:
        msg = f"{boundary.provider.name} is switched on: switch it off before what it holds is written off."
        raise Conflict(msg, code="provider-enabled", provider=boundary.provider.name)
    return boundary.provider


def apply(allocation: Allocation, *, actor: Actor, now: datetime) -> dict[str, Any]:
    """Release an allocation, its product, and its boundary if nothing else lives there. Plain; path locked."""
    row = Allocation.objects.select_for_update(no_key=True, of=("self",)).get(pk=allocation.pk)
    provider = check(row)
    boundary = row.boundary
    assert boundary is not None
    allocations.request_deletion(row, actor=actor, now=now, kind="allocation.deletion-requested")
    model = placements.product_model(ProductKind(row.product_kind))
    for product in model.objects.filter(allocation=row, released_at__isnull=True) if model is not None else ():
        allocations.request_deletion(product, actor=actor, now=now, kind=f"{desired.kind_of(product)}.written-off")
        _released(product, now=now)
    windows = row.units.filter(host__isnull=False).count()
    allocations.finish(row, now=now)
    row.refresh_from_db()
    _released(row, now=now)
    desired.happened(row, "allocation.written-off", actor=actor, at=now, provider=provider.pk, units=windows)
    alone = not Allocation.objects.filter(boundary=boundary, released_at__isnull=True).exists()
    if alone and boundary.released_at is None:
        allocations.request_deletion(boundary, actor=actor, now=now, kind="boundary.written-off")
        GatewayReplica.objects.filter(boundary=boundary, removed_at__isnull=True).update(removed_at=now)
        _released(boundary, now=now)
        placements.boundary_released(boundary, now=now)
    return {"allocation": str(row.pk), "units": windows, "boundary_released": alone}


def _released(row: Reconciled, *, now: datetime) -> None:
    """Release a row at once, and fence whoever is working on it."""
    conditions = set_condition(
        row.conditions, ConditionType.DELETED, "True", Reason.WRITTEN_OFF, "Written off with its provider.", now=now,
        generation=row.generation,
    )  # fmt: skip
    type(row)._base_manager.filter(pk=row.pk).update(
        conditions=conditions, phase=Phase.RELEASED.value, finalizers=[], released_at=now, due_at=None,
        lease_epoch=F("lease_epoch") + 1, lease_owner="", lease_expires_at=None,
    )  # fmt: skip
    Intent.objects.filter(object_id=row.pk, settled_at__isnull=True).update(settled_at=now, outcome="written-off")
