"""Links that open an account: invitations, the first set-up of an installation, recovery by an operator.

A link is a secret shown once; only its digest lies here. Each works once, for a time, and is judged in the
database (`account_link_look`, `account_link_accept`), so nothing opens that was withdrawn meanwhile.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import WordField, choice_check, primary_key
from tenants.states import Role


class LinkKind(StrEnum):
    """What a link is for."""

    INVITATION = "invitation"
    """Makes its e-mail's person a member of a tenant, and the account if there is none."""
    SET_UP = "set-up"
    """Makes the first operator of an installation that has none."""
    RECOVERY = "recovery"
    """Lets a person who cannot log in choose a new password."""


class AccountLink(models.Model):
    """One link, never changed but for its end."""

    id = primary_key()
    kind = WordField()
    digest = models.BinaryField(max_length=32, unique=True)
    """SHA-256 of the secret."""
    email = models.EmailField(max_length=254, blank=True, default="")
    """Whom an invitation is for; nobody else may use it."""
    person = models.ForeignKey("tenants.Person", null=True, on_delete=models.CASCADE, related_name="+")
    """Whose account a recovery opens."""
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    role = models.SmallIntegerField(null=True)
    """Role in the tenant, of an invitation."""
    forget_factors = models.BooleanField(default=False)
    """Whether a recovery takes second factors and passkeys away too."""
    reason = models.CharField(max_length=500, blank=True, default="")
    created_by = models.ForeignKey("tenants.Person", null=True, on_delete=models.CASCADE, related_name="+")
    """Null: made by a command of the installation."""
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    used_by = models.ForeignKey("tenants.Person", null=True, on_delete=models.CASCADE, related_name="+")
    withdrawn_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            choice_check("account_link_kind", "kind", LinkKind),
            models.CheckConstraint(
                condition=(
                    Q(kind="invitation", tenant__isnull=False, role__in=[int(role) for role in Role], person=None)
                    & ~Q(email="")
                )
                | Q(kind="set-up", tenant=None, role=None, person=None)
                | Q(kind="recovery", tenant=None, role=None, person__isnull=False),
                name="account_link_whole",
            ),
            models.CheckConstraint(
                condition=Q(used_at__isnull=True) | Q(withdrawn_at__isnull=True), name="account_link_one_end"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "created_at"], name="account_link_tenant"),
            models.Index(fields=["person"], name="account_link_person"),
        ]
