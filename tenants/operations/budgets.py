"""A tenant's budget for each calendar month: what its owners want to be told about. It refuses nothing."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Budget, Tenant
from tenants.operations.guards import allow, expect_version, lock_path, locked
from tenants.operations.pricing import currency
from tenants.states import TenantStatus
from tenants.transactions import operation

MOST: Final = Decimal(10) ** 11


@operation
def set_budget(*, tenant: Tenant, amount: Decimal, actor: Actor, now: datetime, version: int | None = None) -> Budget:
    """Set what a tenant and all below it mean to spend in each calendar month (UTC), in the currency of all prices.

    Its owners are told at 80 and at 100 per cent. Raises `InvalidSpec`, `Conflict` for a closed tenant,
    `PreconditionFailed`.
    """
    allow(actor, tenant, "budgets.set")
    if not amount.is_finite() or not 0 < amount < MOST:
        raise InvalidSpec(f"A budget is an amount above 0 and below {MOST:f}.", field="amount", code="out-of-range")
    exact = amount.quantize(Decimal("0.01"))
    if exact != amount:
        raise InvalidSpec("A budget has at most 2 decimals.", field="amount", code="too-exact")
    lock_path(tenant.pk)
    if Tenant.objects.filter(pk=tenant.pk, status=TenantStatus.CLOSED.value).exists():
        raise Conflict("The tenant is closed.", code="tenant-closed")
    row = Budget.objects.select_for_update(no_key=True).filter(tenant=tenant).first()
    before = row.amount if row is not None else None
    if row is None:
        row = Budget(tenant=tenant, created_at=now, version=0)
    else:
        expect_version(row, version)
    row.amount, row.currency, row.author_id, row.looked_at = exact, currency(), actor.person_id, None
    row.version += 1
    row.save()
    desired.happened(
        row, "budget.set", actor=actor, at=now, nudge=False, amount=str(exact), currency=row.currency,
        before=str(before) if before is not None else None,
    )  # fmt: skip
    return row


@operation
def remove(*, budget: Budget, actor: Actor, now: datetime, version: int | None = None) -> Budget:
    """Take a budget away; nobody is told about spending any more. Raises `NotVisible`, `PreconditionFailed`."""
    allow(actor, budget.tenant, "budgets.remove")
    row = locked(budget, version)
    desired.happened(row, "budget.removed", actor=actor, at=now, nudge=False, amount=str(row.amount))
    row.delete()
    return budget
