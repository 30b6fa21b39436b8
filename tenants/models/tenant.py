"""Tenants, memberships and suspensions."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from tenants.models.fields import SlugField, WordField, choice_check, primary_key, short_id, slug_check
from tenants.states import Role, StockVisibility, SuspensionDepth, TenantStatus

MAX_DEPTH = 3


class Tenant(models.Model):
    """The unit of isolation, quota and membership; up to three levels."""

    id = primary_key()
    short_id = short_id("tn")
    name = SlugField(unique=True)
    display_name = models.CharField(max_length=120)
    description = models.CharField(max_length=500, blank=True, default="")
    parent = models.ForeignKey("self", null=True, blank=True, on_delete=models.PROTECT, related_name="children")
    path = ArrayField(models.UUIDField(), size=MAX_DEPTH)
    """Ids from the root to this tenant, itself included."""
    status = WordField(default=TenantStatus.ACTIVE)
    policy = models.JSONField(default=dict, blank=True)
    """Narrowing rules by key (`tenants.policy.KEYS`, and `approvals`); absent = inherited."""
    stock_visibility = WordField(default=StockVisibility.BANDS)
    labels = models.JSONField(default=dict, blank=True)
    managed_by = models.CharField(max_length=16, default="api")
    created_at = models.DateTimeField()
    closed_at = models.DateTimeField(null=True, blank=True)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            slug_check("tenant_name"),
            choice_check("tenant_status", "status", TenantStatus),
            choice_check("tenant_stock_visibility", "stock_visibility", StockVisibility),
            models.CheckConstraint(condition=Q(path__len__gte=1) & Q(path__len__lte=MAX_DEPTH), name="tenant_depth"),
            models.CheckConstraint(condition=~Q(parent=F("id")), name="tenant_not_own_parent"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["created_at", "id"], name="tenant_created"),
        ]

    def __str__(self) -> str:
        """Return the name."""
        return str(self.name)


class Membership(models.Model):
    """One person's role in one tenant."""

    id = primary_key()
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    person = models.ForeignKey("tenants.Person", on_delete=models.CASCADE, related_name="memberships")
    role = models.SmallIntegerField()
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["tenant", "person"], name="membership_unique"),
            models.CheckConstraint(condition=Q(role__in=[int(r) for r in Role]), name="membership_role"),
        ]


class Suspension(models.Model):
    """Desired state: a tenant is held at a depth until it is ended or its end comes."""

    id = primary_key()
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="suspensions")
    depth = WordField()
    reason = models.CharField(max_length=500)
    author = models.UUIDField()
    """Opaque id of the person who did it."""
    created_at = models.DateTimeField()
    until = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            choice_check("suspension_depth", "depth", SuspensionDepth),
            models.UniqueConstraint(fields=["tenant"], condition=Q(ended_at__isnull=True), name="suspension_one_live"),
        ]
