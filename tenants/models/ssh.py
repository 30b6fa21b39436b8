"""Authorities that sign what lets people into machines by SSH, and the certificates that they signed."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import F, Q

from tenants.models.fields import primary_key


class SshAuthority(models.Model):
    """A tenant's own authority. A machine trusts the one that it was made with, for as long as it lives."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    public_key = models.CharField(max_length=200)
    """One line, as OpenSSH writes it, without a comment."""
    sealed = models.BinaryField()
    """The private key (`tenants.ssh_ca`)."""
    created_at = models.DateTimeField()
    retired_at = models.DateTimeField(null=True, blank=True)
    """From then on new machines get another one."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["tenant"], condition=Q(retired_at__isnull=True), name="ssh_authority_one_in_use"
            ),
        ]


class SshCertificate(models.Model):
    """One certificate as it was given out; the certificate itself is kept nowhere."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="+")
    machine = models.ForeignKey("tenants.Machine", on_delete=models.CASCADE, related_name="+")
    authority = models.ForeignKey(SshAuthority, on_delete=models.CASCADE, related_name="certificates")
    serial = models.BigIntegerField()
    """Random, positive; in the machine's log of logins."""
    principal_id = models.UUIDField()
    """The person or service account who asked for it."""
    person_id = models.UUIDField(null=True, blank=True)
    """The person who answers for it: it ends when he leaves."""
    fingerprint = models.CharField(max_length=64)
    """Of the key that it is for, as OpenSSH shows it (`SHA256:…`)."""
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["authority", "serial"], name="ssh_certificate_serial"),
            models.CheckConstraint(
                condition=Q(serial__gt=0, expires_at__gt=F("created_at")), name="ssh_certificate_sane"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["authority", "expires_at"], name="ssh_certificate_live"),
            models.Index(fields=["expires_at", "id"], name="ssh_certificate_age"),
            models.Index(fields=["person_id", "expires_at"], name="ssh_certificate_person"),
        ]
