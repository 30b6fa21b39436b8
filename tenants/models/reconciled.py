"""What every row driven by passes carries, and the intent rows that make unknown outcomes harmless.

Passes write only through the guarded apply (`provisioners.lease`): `WHERE pk AND lease_epoch`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models

from tenants.models.fields import WordField, choice_check, primary_key
from tenants.states import Phase


class Reconciled(models.Model):
    """Generation, conditions, lease and finalizers of a row that passes move towards its spec."""

    generation = models.PositiveIntegerField(default=1)
    observed_generation = models.PositiveIntegerField(default=0)
    conditions = models.JSONField(default=list, blank=True)
    phase = WordField(default=Phase.PROVISIONING, db_index=False)
    due_at = models.DateTimeField(null=True, blank=True)
    """When the next pass is due; null = nothing to do until something changes."""
    failures = models.PositiveIntegerField(default=0)
    """Passes in a row that ended in an error; drives the backoff."""
    lease_owner = models.CharField(max_length=80, blank=True, default="")
    lease_epoch = models.BigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    fingerprint = models.CharField(max_length=64, blank=True, default="")
    """The provider's fingerprint of the object at the last complete pass; an unchanged one needs no pass."""
    observed = models.JSONField(default=dict, blank=True)
    """What was last seen, for people and for queries; never input of a decision about freeing."""
    deletion_requested_at = models.DateTimeField(null=True, blank=True)
    finalizers = ArrayField(models.CharField(max_length=40), default=list, blank=True)
    released_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)
    """First time it was Ready."""

    class Meta:
        abstract = True


def reconciled_constraints(prefix: str) -> list[models.BaseConstraint]:
    """Return the checks every reconciled table has."""
    return [
        choice_check(f"{prefix}_phase", "phase", Phase),
        models.CheckConstraint(
            condition=models.Q(released_at__isnull=True) | models.Q(deletion_requested_at__isnull=False),
            name=f"{prefix}_released_asked",
        ),
        models.CheckConstraint(
            condition=models.Q(released_at__isnull=True) | models.Q(finalizers__len=0),
            name=f"{prefix}_released_clean",
        ),
    ]


def reconciled_indexes(prefix: str) -> list[models.Index]:
    """Return the index the sweep reads."""
    return [
        models.Index(
            fields=["due_at"],
            condition=models.Q(released_at__isnull=True, due_at__isnull=False),
            name=f"{prefix}_due",
        )
    ]


class Intent(models.Model):
    """A step that is about to be or was started; committed before the call, settled by looking."""

    id = primary_key()
    object_kind = WordField()
    object_id = models.UUIDField()
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    step = models.CharField(max_length=80)
    key = models.CharField(max_length=200)
    undo = models.BooleanField(default=False)
    epoch = models.BigIntegerField()
    attempt = models.PositiveIntegerField(default=1)
    handle = models.TextField(blank=True, default="")
    started_at = models.DateTimeField()
    deadline_at = models.DateTimeField()
    settled_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=40, blank=True, default="")
    error = models.JSONField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["object_kind", "object_id"],
                condition=models.Q(settled_at__isnull=True),
                name="intent_one_open",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["object_kind", "object_id", "started_at"], name="intent_object"),
        ]
