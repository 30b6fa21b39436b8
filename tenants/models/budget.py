"""What a tenant means to spend in a calendar month, which is watched; and the parts of budgets that gateways have."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import primary_key


class Budget(models.Model):
    """The monthly budget of a tenant and all below it. Nothing is refused or stopped by it."""

    id = primary_key()
    tenant = models.OneToOneField("tenants.Tenant", on_delete=models.CASCADE, related_name="budget")
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    currency = models.CharField(max_length=3)
    """That of all prices when it was set."""
    author_id = models.UUIDField(null=True)
    """Opaque id of the accountable person."""
    created_at = models.DateTimeField()
    looked_at = models.DateTimeField(null=True)
    """When the month's spend was last compared with it; null after it was set."""
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(condition=Q(amount__gt=0), name="budget_amount"),
            models.CheckConstraint(condition=Q(currency__regex="^[A-Z]{3}$"), name="budget_currency"),
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["looked_at"], name="budget_looked_at")]


class BudgetLease(models.Model):
    """One gateway's part of one budget in one period: it lets requests through within it, whether we are there or not.

    Budgets are named as the protocol names them (`tenant:tokens`, `key:<id>:money`). Parts are counted as used until
    the period ends; of a gateway that is gone for a while only what it said it had spent.
    """

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    gateway = models.ForeignKey("tenants.GatewayReplica", on_delete=models.CASCADE, related_name="+")
    budget = models.CharField(max_length=60)
    period_start = models.DateTimeField()
    granted = models.BigIntegerField()
    """Tokens, or billionths of the currency; all of the period together."""
    spent = models.BigIntegerField(default=0)
    """Of it, as the gateway said last."""
    memory = models.UUIDField(null=True, blank=True)
    """What the gateway keeps its parts in; another one knows nothing of what was spent from this."""
    lost = models.BigIntegerField(default=0, db_default=0)
    """Parts that went with an earlier memory: counted as spent, since nobody can say what of them was."""
    short = models.BooleanField(default=False, db_default=False)
    """Whether it got less than it needed: others then keep nothing that they do not need."""
    updated_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["gateway", "budget", "period_start"], name="budget_lease_unique"),
            models.CheckConstraint(
                condition=Q(granted__gte=0) & Q(spent__gte=0) & Q(lost__gte=0), name="budget_lease_amounts"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "budget", "period_start"], name="budget_lease_tenant"),
            models.Index(fields=["period_start"], name="budget_lease_period"),
        ]
