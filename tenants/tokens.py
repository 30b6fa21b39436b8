"""Tokens: issued (shown once), found, revoked, and turned into the actor they stand for.

A token belongs to a person or a service account; only its digest is stored. Whatever is wrong with one
(unknown, wrong secret, expired, revoked, its person left or is suspended, its account is disabled), the
answer is the same `Unauthenticated` after the same look.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet

from tenants import credentials, desired, vault
from tenants.actor import AUTH, Actor, Kind
from tenants.errors import Conflict, InvalidSpec, NotVisible, Unauthenticated
from tenants.models import ApiToken, Membership, Person, PlatformMembership, ServiceAccount, Tenant
from tenants.states import PlatformRole, Role
from tenants.transactions import acting

USED_EVERY: Final = timedelta(minutes=1)
"""`last_used_at` moves at most this often, so that reads do not become writes."""
MOST_TOKENS: Final = 100
"""Live tokens of one person or service account."""
_NOBODY: Final = bytes(32)
"""Digest that an unknown id is compared with; no secret hashes to it."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A token just made, and its plain text, which is shown now and never again."""

    row: ApiToken
    plain: str

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"Issued({self.row.public_id!r})"


# --- who comes --------------------------------------------------------------------------------------


def resolve(header: str, *, now: datetime) -> Actor:
    """Return the actor of an `Authorization` header (`Bearer tnt_…`). Opens its own transaction.

    Raises `Unauthenticated`.
    """
    scheme, _, plain = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        shown = credentials.parse(plain.strip())
    except credentials.MalformedSecret as error:
        raise Unauthenticated from error
    with acting(AUTH):
        row = ApiToken.objects.filter(public_id=shown.id).select_related("person").first()
        known = vault.same(row.digest if row is not None else _NOBODY, shown.digest)
        actor: Actor | None = None
        if row is None:
            _read_as_if_known()
        else:
            actor = _actor_of_token(row, now=now)
        if row is None or not known or actor is None or not _lives(row, now):
            raise Unauthenticated
        if row.last_used_at is None or row.last_used_at <= now - USED_EVERY:
            ApiToken.objects.filter(
                Q(last_used_at__isnull=True) | Q(last_used_at__lte=now - USED_EVERY), pk=row.pk
            ).update(last_used_at=now)
    return actor


def _lives(row: ApiToken, now: datetime) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


def _read_as_if_known() -> None:
    """Do the same reads as for a person's token, so that an unknown id takes as long."""
    list(Membership.objects.filter(person_id=UUID(int=0)))
    list(PlatformMembership.objects.filter(person_id=UUID(int=0)))


def _actor_of_token(row: ApiToken, *, now: datetime) -> Actor | None:
    if row.person is not None:
        return actor_of(row.person, token=row)
    account = ServiceAccount.objects.filter(tokens=row).select_related("owner").first()
    if (
        account is None
        or account.disabled_at is not None
        or (account.expires_at is not None and account.expires_at <= now)
        or not account.owner.is_active
    ):
        return None
    return Actor(
        Kind.SERVICE_ACCOUNT,
        account.pk,
        account.owner_id,
        tenant_roles={account.tenant_id: Role(account.role)},
        token_id=row.pk,
        only_tenant=account.tenant_id,
        read_only=row.read_only,
        name=account.name,
    )


def actor_of(person: Person, *, token: ApiToken | None = None) -> Actor | None:
    """Return the actor of a person with the roles of now, inside an open transaction; None if he is not active."""
    roles = Membership.objects.filter(person=person).values_list("tenant_id", "role")
    platform = PlatformMembership.objects.filter(person=person).values_list("role", flat=True)
    actor = Actor(
        Kind.PERSON,
        person.pk,
        person.pk,
        tenant_roles={tenant: Role(role) for tenant, role in roles},
        platform_roles=frozenset(PlatformRole(role) for role in platform),
        token_id=token.pk if token is not None else None,
        only_tenant=token.tenant_id if token is not None else None,
        read_only=token.read_only if token is not None else False,
        name=person.display_name,
    )
    return actor if person.is_active and person.left_at is None else None


# --- plain functions, inside the caller's transaction ------------------------------------------------


def issue_row(
    *,
    name: str,
    person: Person | None = None,
    service_account: ServiceAccount | None = None,
    tenant: Tenant | None = None,
    read_only: bool = False,
    expires_at: datetime | None = None,
    actor: Actor,
    now: datetime,
) -> Issued:
    """Make a token. Raises `InvalidSpec` for an end that is over, `Conflict` for too many live ones."""
    if expires_at is not None and expires_at <= now:
        msg = "This time is over already."
        raise InvalidSpec(msg, field="expires_at")
    live = ApiToken.objects.filter(
        Q(expires_at__isnull=True) | Q(expires_at__gt=now),
        person=person,
        service_account=service_account,
        revoked_at__isnull=True,
    )
    if live.count() >= MOST_TOKENS:
        msg = f"There are {MOST_TOKENS} live tokens already; revoke some."
        raise Conflict(msg, code="too-many-tokens")
    made = credentials.make(settings.TENANTRY_ENVIRONMENT)
    row = ApiToken.objects.create(
        public_id=made.id,
        digest=made.digest,
        name=name,
        person=person,
        service_account=service_account,
        tenant=service_account.tenant if service_account is not None else tenant,
        read_only=read_only,
        created_at=now,
        expires_at=expires_at,
    )
    desired.happened(
        row, "token.issued", actor=actor, at=now, nudge=False, name=name, read_only=read_only, expires_at=expires_at
    )
    return Issued(row, made.plain)


def revoke_rows(rows: QuerySet[ApiToken], *, actor: Actor, now: datetime, why: str) -> int:
    """Revoke every live token among `rows`; returns how many. From the next request on they open nothing."""
    found = list(rows.select_for_update(no_key=True).filter(revoked_at__isnull=True).order_by("pk"))
    ApiToken.objects.filter(pk__in=[row.pk for row in found]).update(revoked_at=now)
    for row in found:
        desired.happened(row, "token.revoked", actor=actor, at=now, nudge=False, name=row.name, why=why)
    return len(found)


def named(rows: QuerySet[ApiToken], key: str) -> ApiToken:
    """Return the token with this id or public id. Raises `NotVisible`."""
    try:
        found = rows.filter(pk=UUID(key)).first()
    except ValueError:
        found = rows.filter(public_id=key).first()
    if found is None:
        raise NotVisible
    return found


def of_text(text: str) -> str | None:
    """Return the public id of the first well-formed token or key in a pasted text (*leaked?*), None without one."""
    for match in credentials.FINDER.finditer(text):
        try:
            return credentials.parse(match[0]).id
        except credentials.MalformedSecret:
            continue
    return None
