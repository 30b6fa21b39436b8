"""Persons, service accounts and their tokens. Everything that lasts belongs to the tenant, not to them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower

from tenants.models.fields import SlugField, WordField, choice_check, primary_key, slug_check
from tenants.states import PlatformRole, Role


class PersonManager(BaseUserManager["Person"]):
    """Looks people up by e-mail, as Django's authentication expects."""

    def get_by_natural_key(self, username: str | None) -> Person:
        """Return the person with this e-mail, whatever its case."""
        return self.get(email__iexact=username)


class Person(AbstractBaseUser):
    """A human being. Events name persons by id only, so that a name can be erased."""

    id = primary_key()
    email = models.EmailField(max_length=254)
    display_name = models.CharField(max_length=120)
    created_at = models.DateTimeField()
    left_at = models.DateTimeField(null=True, blank=True)
    is_active = models.BooleanField(default=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = ["display_name"]
    objects: ClassVar[PersonManager] = PersonManager()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(Lower("email"), name="person_email_unique"),
            models.CheckConstraint(condition=Q(left_at__isnull=True) | Q(is_active=False), name="person_left_inactive"),
        ]

    def __str__(self) -> str:
        """Return the display name."""
        return self.display_name

    def get_full_name(self) -> str:
        """Return the name that the admin console shows."""
        return self.display_name

    @property
    def is_staff(self) -> bool:
        """Whether the admin console may be opened: any platform role."""
        return self.is_active and self.platform_memberships.exists()

    def has_perm(self, perm: str, obj: object = None) -> bool:  # noqa: ARG002
        """Admin console is read-only for staff; writes go through operations."""
        return self.is_staff and ".view_" in perm

    def has_module_perms(self, app_label: str) -> bool:  # noqa: ARG002
        """Staff sees every module."""
        return self.is_staff


class PlatformMembership(models.Model):
    """One platform role of one person."""

    id = primary_key()
    person = models.ForeignKey(Person, on_delete=models.CASCADE, related_name="platform_memberships")
    role = WordField()
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["person", "role"], name="platform_membership_unique"),
            choice_check("platform_membership_role", "role", PlatformRole),
        ]


class ServiceAccount(models.Model):
    """A machine's principal inside one tenant, with a role, an accountable owner and an end."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="service_accounts")
    name = SlugField()
    role = models.SmallIntegerField()
    owner = models.ForeignKey(Person, on_delete=models.PROTECT, related_name="service_accounts")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    disabled_at = models.DateTimeField(null=True, blank=True)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["tenant", "name"], condition=Q(disabled_at__isnull=True), name="service_account_name_unique"
            ),
            slug_check("service_account_name"),
            models.CheckConstraint(
                condition=Q(role__in=[int(Role.VIEWER), int(Role.MEMBER)]), name="service_account_role"
            ),
        ]


class ApiToken(models.Model):
    """Hash of a token; the plain text is shown once, at creation. Belongs to a person or a service account."""

    id = primary_key()
    public_id = models.CharField(max_length=16, unique=True)
    digest = models.BinaryField(max_length=32)
    name = models.CharField(max_length=80)
    person = models.ForeignKey(Person, null=True, blank=True, on_delete=models.CASCADE, related_name="tokens")
    service_account = models.ForeignKey(
        ServiceAccount, null=True, blank=True, on_delete=models.CASCADE, related_name="tokens"
    )
    tenant = models.ForeignKey("tenants.Tenant", null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    """Set for service accounts; for a person's token it narrows the token to one tenant."""
    read_only = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(person__isnull=False, service_account__isnull=True)
                | Q(person__isnull=True, service_account__isnull=False),
                name="api_token_one_principal",
            ),
        ]
