"""Accounts: links that open one (invitation, first set-up, recovery), passwords people choose, what happened to them.

A link's secret is shown once, to whoever made it or by mail; the database keeps its digest and judges it. Who holds
one is nobody yet: an account is made as `auth`, a recovery is done as the person himself, whom the link proves.
Events name persons by id only and hold no secret, e-mail or address.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.hashers import make_password
from django.db import IntegrityError, connection

from tenants import desired, tokens, vault
from tenants.actor import AUTH, Actor, Kind
from tenants.errors import Conflict, Forbidden, NotVisible
from tenants.models import AccountLink, ApiToken, Membership, Person, PlatformMembership, Tenant
from tenants.models.account import LinkKind
from tenants.operations.guards import accountable, allow, clean_text, lock_path, locked
from tenants.operations.people import check_email, check_name, check_password, end_sessions
from tenants.states import PlatformRole, Role
from tenants.transactions import acting, operation, refresh_visibility

LASTS: Final = {
    LinkKind.INVITATION: timedelta(days=7),
    LinkKind.SET_UP: timedelta(days=1),
    LinkKind.RECOVERY: timedelta(days=1),
}
MOST_INVITATIONS: Final = 200
"""Open invitations of one tenant."""
HAPPENINGS: Final = frozenset(
    {
        "logged-in", "logged-out", "login-failed", "factor-failed", "factor-added", "factor-removed", "codes-made",
        "code-used", "identity-linked", "identity-unlinked", "sessions-ended",
    }
)  # fmt: skip
"""What the log-in pages tell of a person; each is the event `person.<word>`."""


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link just made, and its secret, which is shown now and never again."""

    row: AccountLink
    secret: str

    def __repr__(self) -> str:
        """Leave the secret out."""
        return f"NewLink({self.row.pk})"


@dataclass(frozen=True, slots=True)
class Link:
    """What the holder of a link may know of it."""

    id: UUID
    kind: LinkKind
    state: str
    """open, used, withdrawn, expired, or void: what it was made for does not hold any more."""
    email: str
    person_id: UUID | None
    tenant_name: str
    tenant_title: str
    role: Role | None
    forget_factors: bool
    expires_at: datetime
    account_there: bool
    """Whether somebody has an account with this e-mail."""

    @property
    def is_open(self) -> bool:
        """Whether it may be used now."""
        return self.state == "open"


# --- made ---------------------------------------------------------------------------------------------


@operation
def invite(*, tenant: Tenant, email: str, role: Role, actor: Actor, now: datetime) -> NewLink:
    """Invite somebody into a tenant, with or without an account. An open invitation of the same e-mail ends.

    Raises `InvalidSpec`, `Forbidden`, `Conflict` for a member or for too many open ones.
    """
    allow(actor, tenant, "members.create")
    lock_path(tenant.pk)
    email = check_email(email)
    if Membership.objects.filter(tenant=tenant, person__email__iexact=email).exists():
        raise Conflict("This person is a member already; change the role instead.", code="member-already")
    still_open = AccountLink.objects.filter(
        kind=LinkKind.INVITATION.value, tenant=tenant, used_at=None, withdrawn_at=None, expires_at__gt=now
    )
    _withdraw(still_open.filter(email__iexact=email), actor=actor, now=now)
    if still_open.count() >= MOST_INVITATIONS:
        msg = f"There are {MOST_INVITATIONS} open invitations already; withdraw some."
        raise Conflict(msg, code="too-many-invitations")
    made = _make(LinkKind.INVITATION, actor=actor, now=now, email=email, tenant=tenant, role=int(role))
    desired.happened(made.row, "invitation.made", actor=actor, at=now, nudge=False, role=role.word)
    return made


@operation
def withdraw(*, link: AccountLink, actor: Actor, now: datetime) -> None:
    """End an open invitation. Safe to repeat. Raises `NotVisible`, `Forbidden`."""
    row = locked(link)
    allow(actor, row.tenant, "members.delete")
    _withdraw([row], actor=actor, now=now)


@operation
def recover(*, person: Person, reason: str, forget_factors: bool, actor: Actor, now: datetime) -> NewLink:
    """Make a link by which a person who is locked out chooses a new password; earlier ones end.

    With `forget_factors` his second factors and passkeys go when he uses it. Nobody recovers himself. Raises
    `Forbidden`, `Conflict`, `InvalidSpec`.
    """
    allow(actor, None, "people.update")
    if actor.person_id == person.pk:
        raise Forbidden("Another operator has to recover your account.", code="own-account")
    row = locked(person)
    if not row.is_active:
        raise Conflict("This person has left or is suspended.", code="not-active")
    earlier = AccountLink.objects.filter(kind=LinkKind.RECOVERY.value, person=row, used_at=None, withdrawn_at=None)
    earlier.update(withdrawn_at=now)
    made = _make(
        LinkKind.RECOVERY,
        actor=actor,
        now=now,
        person=row,
        forget_factors=forget_factors,
        reason=clean_text(reason, "reason", most=500, least=3),
    )
    desired.happened(
        row, "person.recovery-made", actor=actor, at=now, nudge=False, forget_factors=forget_factors,
        reason=made.row.reason, link=made.row.pk,
    )  # fmt: skip
    return made


@operation
def first_link(*, actor: Actor, now: datetime) -> NewLink | None:
    """Make the link of the first set-up, None once there is an operator. Earlier ones end. For the system only."""
    if actor.kind is not Kind.SYSTEM:
        raise Forbidden
    if PlatformMembership.objects.filter(role=PlatformRole.OPERATOR.value, person__is_active=True).exists():
        return None
    AccountLink.objects.filter(kind=LinkKind.SET_UP.value, used_at=None, withdrawn_at=None).update(withdrawn_at=now)
    made = _make(LinkKind.SET_UP, actor=actor, now=now)
    desired.happened(made.row, "installation.link-made", actor=actor, at=now, nudge=False)
    return made


# --- used ---------------------------------------------------------------------------------------------


def look(secret: str, *, now: datetime) -> Link:
    """Return what a link is and whether it is open. Opens its own transaction. Raises `NotVisible`."""
    with acting(AUTH), connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, kind, state, email, person_id, coalesce(tenant_name, ''), coalesce(tenant_title, ''), role, "
            "forget_factors, expires_at, account_there FROM account_link_look(%s, %s)",
            [vault.digest(secret), now],
        )
        row = cursor.fetchone()
    if row is None:
        raise NotVisible
    key, kind, state, email, person_id, name, title, role, forget, until, there = row
    return Link(
        key, LinkKind(kind), state, email, person_id, name, title, Role(role) if role else None, forget, until, there
    )


@operation
def open_account(*, secret: str, name: str, password: str, actor: Actor, now: datetime, email: str = "") -> UUID:
    """Make the account an invitation or the first set-up is for, as `auth`, and return its person.

    Without a password (he comes through an identity provider) none is set. `email` is for the set-up only: an
    invitation names its own. Raises `Forbidden`, `InvalidSpec`, `Conflict` (`link-closed`, `email-taken`).
    """
    if actor.kind is not Kind.AUTH:
        raise Forbidden
    display_name = check_name(name)
    if email:
        email = check_email(email)
    if password:
        check_password(password, Person(email=email, display_name=display_name))
    try:
        used = _accept(secret, now=now, email=email, name=display_name, password=make_password(password or None))
    except IntegrityError as error:
        msg = "Somebody has this e-mail already: log in instead."
        raise Conflict(msg, code="email-taken", field="email") from error
    himself = as_person(used.person_id)
    desired.created(Person(pk=used.person_id), "person.created", actor=himself, at=now, link=used.link_id)
    _came_in(used, himself, now=now)
    return used.person_id


@operation
def join(*, secret: str, actor: Actor, now: datetime) -> None:
    """Accept an invitation with the account one has. Raises `Conflict` (`link-closed`): over, or for somebody else."""
    accountable(actor)
    used = _accept(secret, now=now)
    refresh_visibility()
    _came_in(used, actor, now=now)


@operation
def finish_recovery(*, secret: str, password: str, actor: Actor, now: datetime) -> None:
    """Set the password of a recovery's person, who is the actor; sessions and tokens end, factors as the link says.

    Raises `Conflict` (`link-closed`), `InvalidSpec` for a weak password.
    """
    used = _accept(secret, now=now)
    row = locked(Person(pk=accountable(actor)))
    _set_password(row, password)
    ended = tokens.revoke_rows(ApiToken.objects.filter(person=row), actor=actor, now=now, why="account recovered")
    sessions = end_sessions(row)
    if used.forget_factors:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM mfa_authenticator WHERE user_id = %s", [row.pk])
    desired.happened(
        row, "person.recovered", actor=actor, at=now, nudge=False, link=used.link_id, tokens=ended, sessions=sessions,
        factors_forgotten=used.forget_factors,
    )  # fmt: skip


@operation
def choose_password(*, new: str, how: str, actor: Actor, now: datetime) -> None:
    """Set one's own password after the page proved who asks (`how`: changed, set, reset). Sessions of it end.

    Raises `InvalidSpec` for a weak one, `NotVisible` once the person is suspended.
    """
    row = locked(Person(pk=accountable(actor)))
    if not row.is_active:
        raise NotVisible
    _set_password(row, new)
    desired.happened(row, "person.password-set", actor=actor, at=now, nudge=False, how=how)


def record(happening: str, *, person_id: UUID, actor: Actor, now: datetime, **data: Any) -> None:
    """Append the event `person.<happening>`, in the open transaction or in one of its own."""
    if happening not in HAPPENINGS:
        msg = f"no account event {happening!r}"
        raise ValueError(msg)
    if connection.in_atomic_block:
        _record(happening, person_id, actor, now, data)
    else:
        with acting(actor):
            _record(happening, person_id, actor, now, data)


def as_person(person_id: UUID) -> Actor:
    """Return the actor of a person somebody just proved to be, for his own things only: no roles are read."""
    return Actor(Kind.PERSON, person_id, person_id)


# --- plain --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Used:
    link_id: UUID
    kind: str
    person_id: UUID
    membership_id: UUID | None
    """None when he was a member already."""
    tenant_id: UUID | None
    role: int | None
    forget_factors: bool


def _make(kind: LinkKind, *, actor: Actor, now: datetime, **values: Any) -> NewLink:
    secret = secrets.token_urlsafe(32)
    row = AccountLink.objects.create(
        kind=kind.value,
        digest=vault.digest(secret),
        created_by_id=actor.person_id,
        created_at=now,
        expires_at=now + LASTS[kind],
        **values,
    )
    return NewLink(row, secret)


def _withdraw(rows: Iterable[AccountLink], *, actor: Actor, now: datetime) -> None:
    for row in rows:
        ended = AccountLink.objects.filter(pk=row.pk, used_at=None, withdrawn_at=None).update(withdrawn_at=now)
        if ended:
            desired.happened(row, "invitation.withdrawn", actor=actor, at=now, nudge=False)


def _accept(secret: str, *, now: datetime, email: str = "", name: str = "", password: str = "") -> _Used:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT link_id, kind, used_by, membership, tenant_id, role, forget_factors "
            "FROM account_link_accept(%s, %s, %s, %s, %s)",
            [vault.digest(secret), now, email, name, password],
        )
        row = cursor.fetchone()
    if row is None:
        raise Conflict("This link does not open anything any more, or it is for somebody else.", code="link-closed")
    return _Used(*row)


def _came_in(used: _Used, actor: Actor, *, now: datetime) -> None:
    """Say what a link gave: a membership, or the first operator's role."""
    if used.kind == LinkKind.SET_UP.value:
        roles = [str(PlatformRole.OPERATOR)]
        person = Person(pk=used.person_id)
        desired.happened(person, "person.roles-set", actor=actor, at=now, roles=roles, link=used.link_id)
        return
    link = AccountLink(pk=used.link_id, tenant_id=used.tenant_id)
    desired.happened(link, "invitation.accepted", actor=actor, at=now, nudge=False)
    if used.membership_id is not None and used.tenant_id is not None and used.role is not None:
        row = Membership(pk=used.membership_id, tenant_id=used.tenant_id)
        word = Role(used.role).word
        desired.created(row, "member.added", actor=actor, at=now, person=used.person_id, role=word, link=used.link_id)


def _set_password(row: Person, password: str) -> None:
    check_password(password, row)
    row.set_password(password)
    row.save(update_fields=["password"])


def _record(happening: str, person_id: UUID, actor: Actor, now: datetime, data: dict[str, Any]) -> None:
    desired.happened(Person(pk=person_id), f"person.{happening}", actor=actor, at=now, nudge=False, **data)
