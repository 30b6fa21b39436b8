"""A credential that a person asked for: answered by a worker within seconds, sealed, gone after two minutes."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import primary_key


class NamespaceCredential(models.Model):
    """What lets one person into one namespace for a while, between the asking and the reading."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    namespace = models.ForeignKey("tenants.Namespace", on_delete=models.CASCADE, related_name="+")
    person_id = models.UUIDField()
    """Who asked, and who alone reads it."""
    seconds = models.PositiveIntegerField()
    """How long it is to last."""
    asked_at = models.DateTimeField()
    answered_at = models.DateTimeField(null=True, blank=True)
    sealed = models.BinaryField(null=True)
    """JSON: token, and the two kinds of kubeconfig."""
    expires_at = models.DateTimeField(null=True, blank=True)
    error = models.CharField(max_length=300, blank=True, default="")
    """Why there is none, in words for the person."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(sealed__isnull=True) | Q(answered_at__isnull=False, expires_at__isnull=False, error=""),
                name="namespace_credential_answered",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["asked_at"], condition=Q(answered_at__isnull=True), name="namespace_credential_asked"),
            models.Index(fields=["asked_at", "id"], name="namespace_credential_age"),
        ]


class MachineConsole(models.Model):
    """One person's way to the console of one machine, between the asking and the reading."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    machine = models.ForeignKey("tenants.Machine", on_delete=models.CASCADE, related_name="+")
    person_id = models.UUIDField()
    """Who asked, and who alone reads it."""
    asked_at = models.DateTimeField()
    answered_at = models.DateTimeField(null=True, blank=True)
    sealed = models.BinaryField(null=True)
    """JSON: address with the ticket in it, and the fingerprint of the certificate there."""
    expires_at = models.DateTimeField(null=True, blank=True)
    simulated = models.BooleanField(default=False)
    error = models.CharField(max_length=300, blank=True, default="")
    """Why there is none, in words for the person."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(sealed__isnull=True) | Q(answered_at__isnull=False, expires_at__isnull=False, error=""),
                name="machine_console_answered",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["asked_at"], condition=Q(answered_at__isnull=True), name="machine_console_asked"),
            models.Index(fields=["asked_at", "id"], name="machine_console_age"),
        ]
