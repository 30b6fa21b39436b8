"""Namespaces: a namespace boundary handed to people. Create, change, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tenants import access, desired
from tenants.actor import Actor
from tenants.models import Namespace, Tenant
from tenants.operations import products
from tenants.policies import ROUTES
from tenants.specs import NamespaceAsk
from tenants.states import ProductKind
from tenants.transactions import operation


@operation
def create(*, tenant: Tenant, ask: NamespaceAsk, actor: Actor, now: datetime, managed_by: str = "api") -> Namespace:
    """Ask for a namespace. Raises `InvalidSpec`, `QuotaExceeded`, `Conflict`."""
    access.check(actor, tenant, ROUTES["namespaces.create"])
    row = products.make(
        Namespace,
        tenant=tenant,
        name=ask.name,
        spec=ask.allocation,
        kind=ProductKind.NAMESPACE,
        labels=ask.labels,
        description=ask.description,
        managed_by=managed_by,
        actor=actor,
        now=now,
    )
    desired.created(row, "namespace.requested", actor=actor, at=now, name=row.name, phase=row.phase)
    return row


@operation
def update(
    *, namespace: Namespace, changes: dict[str, Any], actor: Actor, now: datetime, version: int | None = None
) -> Namespace:
    """Change labels or description."""
    return products.update(
        namespace, operation_id="namespaces.update", changes=changes, actor=actor, now=now, version=version
    )


@operation
def delete(*, namespace: Namespace, actor: Actor, now: datetime, version: int | None = None) -> Namespace:
    """Ask for the namespace to go, with everything in it."""
    return products.delete(namespace, operation_id="namespaces.delete", actor=actor, now=now, version=version)
