"""The roll-up of what is billed: by day while it is over, and what goes on at its end. Derived, never a source.

`UsageRecord` and `EndpointUsage` are the truth. A change of either leaves a `UsageChange` in its own transaction
(triggers of migration `0021_usage_days`), so that a reader knows what the roll-up has not seen. `tenants.usage_days`
writes it, `tenants.billed` reads it, `ledger audit` compares it with what it was made from.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models

from tenants.models.fields import primary_key


class UsageRollup(models.Model):
    """How far one tenant's usage is rolled up."""

    tenant = models.OneToOneField("tenants.Tenant", primary_key=True, on_delete=models.CASCADE, related_name="+")
    through = models.DateTimeField()
    """Everything before is in `UsageDay`; a full hour."""
    ends = models.DateTimeField()
    """End of its month: so far `UsageStanding.to_come` looks ahead."""


class UsageDay(models.Model):
    """What one tenant itself was billed of one item at one provider on one UTC day, at most up to `through`."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="+")
    day = models.DateField()
    item = models.CharField(max_length=80)
    quantity = models.DecimalField(max_digits=30, decimal_places=6)
    """Unit-seconds; of tokens their number."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["tenant", "day", "provider", "item"], name="usage_day_unique"),
        ]


class UsageStanding(models.Model):
    """What was being billed at `through`, and what of it is to come until the next change of price or `ends`."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="+")
    item = models.CharField(max_length=80)
    since = models.DateTimeField()
    """`through`, or the moment of a price list that is published already."""
    amount = models.DecimalField(max_digits=30, decimal_places=6)
    """Slices, vCPUs, GiB at `through`; 0 in the later rows."""
    to_come = models.DecimalField(max_digits=30, decimal_places=6)
    """Unit-seconds from `since` on, each to its own end."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["tenant", "provider", "item", "since"], name="usage_standing_unique"),
        ]


class UsageChange(models.Model):
    """Something billed changed from a moment on; kept until the roll-up has passed it."""

    id = models.BigAutoField(primary_key=True)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    allocation_id = models.UUIDField(null=True)
    """None for tokens of an hour that was over."""
    at = models.DateTimeField()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["tenant", "at"], name="usage_change_tenant")]
