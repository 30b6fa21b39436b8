"""Plans over hosts (drain, repair, return, layout change) and notices to people."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import WordField, primary_key, short_id
from tenants.models.reconciled import Reconciled, reconciled_constraints, reconciled_indexes


class HostPlan(Reconciled):
    """Work on one host as a plan: who is touched, what moves where, what only stops, when."""

    id = primary_key()
    short_id = short_id("pl")
    host = models.ForeignKey("tenants.Host", on_delete=models.PROTECT, related_name="plans")
    kind = WordField(default="drain")
    """`drain`, `repair`, `return`, `layout`."""
    state = WordField(default="running")
    """`running`, `done`, `cancelled`; `failed` where a layout could not be changed."""
    reason = models.CharField(max_length=500)
    starts_at = models.DateTimeField()
    """Notice ends here: nothing is moved or stopped before."""
    ends_at = models.DateTimeField(null=True, blank=True)
    touched = models.JSONField(default=list)
    """One entry per unit: tenant, object, what happens (`move`, `stop`), where to, state."""
    layout = models.JSONField(default=dict, blank=True, db_default=models.Value({}, models.JSONField()))
    """Of a layout change: `layout_plans.Wish` as JSON; `{}` for any other plan."""
    author = models.UUIDField()
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["host"], condition=Q(state="running"), name="host_plan_one_running"),
            models.CheckConstraint(
                condition=Q(state__in=["running", "done", "cancelled"]) | Q(kind="layout", state="failed"),
                name="host_plan_state",
            ),
            models.CheckConstraint(
                condition=Q(kind="layout") & ~Q(layout={}) | Q(kind__in=["drain", "repair", "return"], layout={}),
                name="host_plan_layout",
            ),
            *reconciled_constraints("host_plan"),
        ]
        indexes: ClassVar[list[models.Index]] = [*reconciled_indexes("host_plan")]


class Notice(models.Model):
    """Something a tenant's people must know: a drain, an expiry, a handover."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=60)
    object_kind = WordField(blank=True, default="")
    object_id = models.UUIDField(null=True)
    text = models.CharField(max_length=1000)
    at = models.DateTimeField()
    key = models.CharField(max_length=200, unique=True)
    """Makes the same notice once."""
