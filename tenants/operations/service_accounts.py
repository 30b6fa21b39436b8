"""Service accounts: a machine's principal inside one tenant, with a role, an accountable owner and an end."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.db import IntegrityError, transaction

from tenants import desired, tokens
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Person, ServiceAccount, Tenant
from tenants.models.fields import slug_validator
from tenants.operations import machine_access, members
from tenants.operations.guards import accountable, allow, clean_text, lock_path, locked
from tenants.states import Role
from tenants.transactions import operation


@operation
def create(
    *,
    tenant: Tenant,
    name: str,
    role: Role,
    actor: Actor,
    now: datetime,
    owner: Person | None = None,
    expires_at: datetime | None = None,
) -> ServiceAccount:
    """Add a service account; `owner` (the caller by default) answers for it.

    Raises `InvalidSpec` for a name, role, owner or end that cannot be, `Conflict` for a live name.
    """
    allow(actor, tenant, "service-accounts.create")
    if not slug_validator.regex.fullmatch(name):  # type: ignore[union-attr]  # compiled by us
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field="name")
    _check(role, expires_at, now)
    lock_path(tenant.pk)
    owner_id = accountable(actor) if owner is None else _member(tenant, owner)
    row = ServiceAccount(
        tenant=tenant, name=name, role=int(role), owner_id=owner_id, created_at=now, expires_at=expires_at
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        msg = f"A service account {name} exists already in this tenant."
        raise Conflict(msg, code="name-taken", name=name) from error
    desired.created(
        row, "service-account.created", actor=actor, at=now, name=name, role=role.word, owner=owner_id,
        expires_at=expires_at,
    )  # fmt: skip
    return row


@operation
def update(
    *,
    account: ServiceAccount,
    actor: Actor,
    now: datetime,
    version: int | None = None,
    role: Role | None = None,
    owner: Person | None = None,
    expires_at: datetime | None = None,
) -> ServiceAccount:
    """Change role, accountable owner or end; what is not given stays. Raises `InvalidSpec`, `Conflict`."""
    allow(actor, account.tenant, "service-accounts.update")
    _check(role or Role.VIEWER, expires_at, now)
    lock_path(account.tenant_id)
    row = _live(account, version)
    fields = []
    if role is not None:
        if role < row.role:
            machine_access.end(row.pk, now=now)
        row.role = int(role)
        fields.append("role")
    if owner is not None:
        row.owner_id = _member(row.tenant, owner)
        fields.append("owner")
    if expires_at is not None:
        row.expires_at = expires_at
        fields.append("expires_at")
    row.save(update_fields=fields)
    desired.changed(
        row, "service-account.changed", actor=actor, at=now, role=Role(row.role).word, owner=row.owner_id,
        expires_at=row.expires_at,
    )  # fmt: skip
    return row


@operation
def disable(*, account: ServiceAccount, actor: Actor, now: datetime, version: int | None = None) -> ServiceAccount:
    """End a service account for good, and its tokens with it. Its name may be used again."""
    allow(actor, account.tenant, "service-accounts.disable")
    lock_path(account.tenant_id)
    row = _live(account, version)
    row.disabled_at = now
    row.save(update_fields=["disabled_at"])
    tokens.revoke_rows(row.tokens.all(), actor=actor, now=now, why="service account disabled")
    machine_access.end(row.pk, now=now)
    desired.changed(row, "service-account.disabled", actor=actor, at=now, why="asked")
    return row


@operation
def issue_token(
    *,
    account: ServiceAccount,
    name: str,
    actor: Actor,
    now: datetime,
    read_only: bool = False,
    expires_at: datetime | None = None,
) -> tokens.Issued:
    """Make a token of a service account; the plain text is shown once. It never outlives its account."""
    allow(actor, account.tenant, "service-account-tokens.create")
    lock_path(account.tenant_id)
    row = _live(account, None)
    ends = [end for end in (expires_at, row.expires_at) if end is not None]
    return tokens.issue_row(
        name=clean_text(name, "name", most=80, least=1),
        service_account=row,
        read_only=read_only,
        expires_at=min(ends) if ends else None,
        actor=actor,
        now=now,
    )


def _live(account: ServiceAccount, version: int | None) -> ServiceAccount:
    row = locked(account, version)
    if row.disabled_at is not None:
        msg = "This service account is disabled."
        raise Conflict(msg, code="disabled")
    return row


def _check(role: Role, expires_at: datetime | None, now: datetime) -> None:
    if role is Role.OWNER:
        msg = "A service account is a viewer or a member: owners are people."
        raise InvalidSpec(msg, field="role")
    if expires_at is not None and expires_at <= now:
        msg = "This time is over already."
        raise InvalidSpec(msg, field="expires_at")


def _member(tenant: Tenant, owner: Person) -> UUID:
    if not members.is_member(tenant, owner.pk):
        msg = "The owner must be a member of this tenant."
        raise InvalidSpec(msg, field="owner", code="not-a-member")
    return owner.pk
