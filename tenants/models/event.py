"""Events in hash chains, the outbox, and idempotency records.

Events are appended only by the SQL function `event_append`, in the transaction of the change; nobody
has the right to update or delete them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import WordField, primary_key


class Event(models.Model):
    """What happened, to what, by whom (opaque ids), chained by hash per tenant or on the platform chain."""

    id = primary_key()
    chain = models.UUIDField()
    """The tenant's id, or the nil UUID for the platform chain."""
    seq = models.BigIntegerField()
    at = models.DateTimeField()
    tenant_id = models.UUIDField(null=True)
    kind = models.CharField(max_length=80)
    object_kind = WordField()
    object_id = models.UUIDField(null=True)
    actor = models.CharField(max_length=80)
    """`person:<id>`, `service-account:<id>`, `agent:<id>`, `system`."""
    person_id = models.UUIDField(null=True)
    """The accountable person."""
    data = models.JSONField(default=dict)
    previous = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        constraints: ClassVar[list[Any]] = [models.UniqueConstraint(fields=["chain", "seq"], name="event_chain_seq")]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["object_id", "seq"], name="event_object"),
            models.Index(fields=["tenant_id", "at"], name="event_tenant_at"),
            models.Index(
                fields=["tenant_id", "object_id", "at"],
                condition=Q(kind="access.reviewed"),
                name="event_access_reviewed",
            ),
            models.Index(fields=["at", "id"], name="event_at"),
        ]


class ChainHead(models.Model):
    """Head of one chain; locked last of all."""

    chain = models.UUIDField(primary_key=True)
    seq = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64)


class Checkpoint(models.Model):
    """All heads at one minute, chained themselves."""

    id = primary_key()
    at = models.DateTimeField(unique=True)
    heads = models.JSONField()
    previous = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)


class Outbox(models.Model):
    """One row per object that has news; the dispatcher publishes a nudge for it. A hint, never state."""

    object_id = models.UUIDField(primary_key=True)
    object_kind = WordField()
    tenant_id = models.UUIDField(null=True)
    seq = models.BigIntegerField(default=1)
    """Counts changes; a nudge deletes the row only if no newer change came."""
    at = models.DateTimeField()
    published_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["at"], condition=models.Q(published_at__isnull=True), name="outbox_waiting"),
        ]


class IdempotencyRecord(models.Model):
    """Result of one POST under one key, written in the transaction of its operation."""

    id = primary_key()
    principal = models.CharField(max_length=80)
    key = models.CharField(max_length=200)
    body_hash = models.CharField(max_length=64)
    """SHA-256 over method, path and body."""
    result_kind = WordField(blank=True, default="")
    result_id = models.UUIDField(null=True)
    secret_sealed = models.BinaryField(null=True)
    """A secret shown once (key, token), envelope-encrypted, so that a lost answer can be repeated."""
    status = models.PositiveSmallIntegerField(default=201)
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["principal", "key"], name="idempotency_unique"),
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["created_at"], name="idempotency_created")]
