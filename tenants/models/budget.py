"""What a tenant means to spend in a calendar month; a wish that is watched, never a limit."""

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
