"""Boundaries, allocations, their units and what they count against quotas."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import SlugField, WordField, choice_check, primary_key, short_id, slug_check
from tenants.models.reconciled import Reconciled, reconciled_constraints, reconciled_indexes
from tenants.states import BoundaryKind, OnShortage, Priority, ProductKind, ServiceClass, Tier


class Boundary(Reconciled):
    """What isolates a tenant on one provider; found or made by itself, gone when nothing uses it."""

    id = primary_key()
    short_id = short_id("bd")
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="boundaries")
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="boundaries")
    kind = WordField()
    tier = WordField(default=Tier.SHARED)
    address = models.CharField(max_length=300, blank=True, default="")
    """Base URL of the gateway as the driver reports it (namespace boundaries)."""
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        verbose_name_plural = "boundaries"
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["tenant", "provider", "kind", "tier"],
                condition=Q(deletion_requested_at__isnull=True),
                name="boundary_one_per_tier",
            ),
            choice_check("boundary_kind", "kind", BoundaryKind),
            choice_check("boundary_tier", "tier", Tier),
            *reconciled_constraints("boundary"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            *reconciled_indexes("boundary"),
            models.Index(fields=["tenant", "created_at", "id"], name="boundary_tenant_created"),
        ]


class Allocation(Reconciled):
    """GPU capacity of a boundary: a list of units, each with at most one placement."""

    id = primary_key()
    short_id = short_id("al")
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="allocations")
    name = SlugField()
    product_kind = WordField(default=ProductKind.BARE)
    product_id = models.UUIDField(null=True, blank=True)
    boundary = models.ForeignKey(Boundary, null=True, blank=True, on_delete=models.PROTECT, related_name="allocations")
    spec = models.JSONField()
    demand = models.JSONField()
    """Dimension → amount, as charged."""
    priority = WordField(default=Priority.STANDARD)
    service_class = WordField(default=ServiceClass.STANDARD)
    on_shortage = WordField(default=OnShortage.FAIL)
    duration_s = models.PositiveBigIntegerField()
    not_after = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    """Set at the first Ready."""
    warned_days = models.SmallIntegerField(null=True, blank=True)
    """Smallest number of days left that was already warned about."""
    grace_until = models.DateTimeField(null=True, blank=True)
    queued_at = models.DateTimeField(null=True, blank=True)
    """Since when it waits for room; first in, first out by fit."""
    requester = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    labels = models.JSONField(default=dict, blank=True)
    description = models.CharField(max_length=500, blank=True, default="")
    managed_by = models.CharField(max_length=16, default="api")
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["tenant", "product_kind", "name"],
                condition=Q(released_at__isnull=True),
                name="allocation_name_live",
            ),
            slug_check("allocation_name"),
            choice_check("allocation_priority", "priority", Priority),
            choice_check("allocation_service_class", "service_class", ServiceClass),
            choice_check("allocation_on_shortage", "on_shortage", OnShortage),
            choice_check("allocation_product_kind", "product_kind", ProductKind),
            *reconciled_constraints("allocation"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            *reconciled_indexes("allocation"),
            models.Index(fields=["tenant", "created_at", "id"], name="allocation_tenant_created"),
            models.Index(fields=["created_at", "id"], name="allocation_created"),
            models.Index(
                fields=["queued_at", "id"],
                condition=Q(queued_at__isnull=False, released_at__isnull=True),
                name="allocation_queue",
            ),
            models.Index(
                fields=["expires_at"],
                condition=Q(expires_at__isnull=False, released_at__isnull=True),
                name="allocation_expiry",
            ),
        ]


class Unit(models.Model):
    """One replica's share of an allocation; its holds say where it is placed."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    allocation = models.ForeignKey(Allocation, on_delete=models.PROTECT, related_name="units")
    index = models.SmallIntegerField()
    role = models.CharField(max_length=16, default="replica")
    product = models.CharField(max_length=40, blank=True, default="")
    profile = models.CharField(max_length=40, blank=True, default="")
    gpu_count = models.SmallIntegerField(default=0)
    """Whole GPUs (0 with a profile)."""
    vcpu = models.IntegerField(default=0)
    memory_gib = models.IntegerField(default=0)
    sized_at = models.DateTimeField(null=True, blank=True)
    """Since when it has this size, null: from its beginning. What it had before stands in `UnitSize`."""
    spread_group = models.CharField(max_length=40, blank=True, default="")
    host = models.ForeignKey("tenants.Host", null=True, blank=True, on_delete=models.PROTECT, related_name="units")
    """Set while it is placed."""
    placed_at = models.DateTimeField(null=True, blank=True)
    released_at = models.DateTimeField(null=True, blank=True)
    avoid_hosts = models.JSONField(default=list, blank=True)
    """Ids of hosts that refused it; cleared when it is placed elsewhere for good."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["allocation", "index"], condition=Q(released_at__isnull=True), name="unit_index_live"
            ),
            models.CheckConstraint(
                condition=Q(profile="") | Q(gpu_count=0, product__gt=""), name="unit_profile_or_whole"
            ),
            models.CheckConstraint(
                condition=Q(released_at__isnull=True) | Q(host__isnull=True), name="unit_released_unplaced"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["host"], condition=Q(host__isnull=False), name="unit_host"),
            models.Index(
                fields=["product", "profile"], condition=Q(released_at__isnull=True, product__gt=""), name="unit_asked"
            ),
        ]


class QuotaCharge(models.Model):
    """What one allocation or boundary counts in one dimension; usage is the sum of these rows, never a counter."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    allocation = models.ForeignKey(Allocation, null=True, on_delete=models.CASCADE, related_name="charges")
    boundary = models.ForeignKey(Boundary, null=True, on_delete=models.CASCADE, related_name="charges")
    dimension = models.CharField(max_length=80)
    amount = models.BigIntegerField()
    pending = models.BooleanField(default=False)
    """Waiting for room: within quota, not billed."""
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["allocation", "dimension"], name="quota_charge_unique"),
            models.UniqueConstraint(fields=["boundary", "dimension"], name="quota_charge_boundary"),
            models.CheckConstraint(
                condition=Q(allocation__isnull=False, boundary__isnull=True)
                | Q(allocation__isnull=True, boundary__isnull=False),
                name="quota_charge_one_owner",
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="quota_charge_amount"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "dimension"], include=["amount", "pending"], name="quota_charge_sum"),
        ]
