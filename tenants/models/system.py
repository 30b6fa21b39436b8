"""Reports of the doctor: what was found when the control plane looked at itself."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import primary_key


class SystemReport(models.Model):
    """One look at database, passes, outbox, notifications, providers, broker and books. Asked for, then answered."""

    id = primary_key()
    asked_by = models.UUIDField(null=True)
    """The person who asked; null: due by itself."""
    asked_at = models.DateTimeField()
    thorough = models.BooleanField(default=False)
    """With the books: ledger, event chains and checkpoints are recomputed."""
    done_at = models.DateTimeField(null=True, blank=True)
    took_ms = models.PositiveIntegerField(null=True, blank=True)
    worker = models.CharField(max_length=80, blank=True, default="")
    """Host and process that looked."""
    release = models.CharField(max_length=40, blank=True, default="")
    """Release that this process runs."""
    results = models.JSONField(default=list, blank=True)
    """List of {code, state, data}; words for them are `tenants.doctor.CHECKS`."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(done_at__isnull=True) | Q(worker__gt="", took_ms__isnull=False), name="system_report_done"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["asked_at", "id"], condition=Q(done_at__isnull=True), name="system_report_asked"),
            models.Index(fields=["done_at"], condition=Q(done_at__isnull=False), name="system_report_done_at"),
        ]
