"""Persons and their tokens: added, changed, suspended, erased; platform roles given and taken.

Events name persons by id only: neither name nor e-mail goes into one, so both can be erased and every event
stays as it is. Leaving is in `leavers`, membership of tenants in `members`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from django.contrib.auth import SESSION_KEY, hashers
from django.contrib.auth.password_validation import validate_password
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, connection, transaction

from tenants import desired, tokens
from tenants.actor import Actor
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible
from tenants.models import ApiToken, Person, PlatformMembership, Tenant
from tenants.operations import machine_access, namespace_access
from tenants.operations.guards import accountable, allow, clean_text, locked
from tenants.states import PlatformRole
from tenants.transactions import operation

ERASED: Final = "(erased)"


@operation
def create(
    *,
    email: str,
    display_name: str,
    actor: Actor,
    now: datetime,
    password: str = "",
    roles: Iterable[PlatformRole] = (),
) -> Person:
    """Add a person. Without a password he cannot log in until he has one. Raises `InvalidSpec`, `Conflict`."""
    allow(actor, None, "people.create")
    person = Person(email=check_email(email), display_name=check_name(display_name), created_at=now)
    if password:
        check_password(password, person)
        person.set_password(password)
    else:
        person.set_unusable_password()
    _save_unique(person, insert=True)
    desired.created(person, "person.created", actor=actor, at=now)
    granted = sorted(set(roles))
    if granted:
        allow(actor, None, "people.set_roles")
    for role in granted:
        PlatformMembership.objects.create(person=person, role=role.value, created_at=now)
    if granted:
        desired.happened(person, "person.roles-set", actor=actor, at=now, roles=[str(r) for r in granted])
    return person


@operation
def update(
    *, person: Person, actor: Actor, now: datetime, display_name: str | None = None, email: str | None = None
) -> Person:
    """Change name or e-mail; a person may change his own name. Raises `InvalidSpec`, `Conflict`, `Forbidden`."""
    own_name = actor.person_id == person.pk and email is None
    allow(actor, None, "people.update_own" if own_name else "people.update")
    row = locked(person)
    if display_name is not None:
        row.display_name = check_name(display_name)
    if email is not None:
        row.email = check_email(email)
    _save_unique(row, insert=False)
    changed = [field for field, value in (("display_name", display_name), ("email", email)) if value is not None]
    desired.happened(row, "person.changed", actor=actor, at=now, fields=changed)
    return row


@operation
def set_password(*, person: Person, new: str, actor: Actor, now: datetime, old: str | None = None) -> None:
    """Set a password: one's own with the old one, or another's as operator. Every session of it ends.

    Raises `Forbidden` for a wrong old password, `InvalidSpec` for a weak new one.
    """
    if actor.person_id == person.pk:
        allow(actor, None, "people.set_password")
        row = locked(person)
        if row.has_usable_password() and not hashers.check_password(old or "", row.password):
            msg = "The old password is wrong."
            raise Forbidden(msg, code="wrong-password")
    else:
        allow(actor, None, "people.update")
        row = locked(person)
    check_password(new, row)
    row.set_password(new)
    row.save(update_fields=["password"])
    desired.happened(row, "person.password-set", actor=actor, at=now, nudge=False)


@operation
def suspend(*, person: Person, reason: str, actor: Actor, now: datetime) -> Person:
    """Keep a person out until he is resumed: his sessions end, nothing of his opens, nothing of his is taken away."""
    allow(actor, None, "people.suspend")
    if actor.person_id == person.pk:
        msg = "You cannot suspend yourself."
        raise Conflict(msg, code="own-account")
    row = locked(person)
    if row.left_at is not None or not row.is_active:
        msg = "This person has left or is suspended already."
        raise Conflict(msg, code="not-active")
    keep_an_operator(row)
    theirs = list(Tenant.objects.filter(memberships__person=row).order_by("pk"))
    namespace_access.people_changed(theirs, now=now)
    machine_access.shut_out(row.pk, theirs, now=now)
    row.is_active = False
    row.save(update_fields=["is_active"])
    why = clean_text(reason, "reason", most=500)
    desired.happened(row, "person.suspended", actor=actor, at=now, reason=why, sessions=end_sessions(row))
    return row


@operation
def resume(*, person: Person, actor: Actor, now: datetime) -> Person:
    """Let a suspended person in again. Who left stays out."""
    allow(actor, None, "people.resume")
    row = locked(person)
    if row.left_at is not None or row.is_active:
        msg = "Only a suspended person can be resumed."
        raise Conflict(msg, code="not-suspended")
    row.is_active = True
    row.save(update_fields=["is_active"])
    namespace_access.people_changed(Tenant.objects.filter(memberships__person=row).order_by("pk"), now=now)
    desired.happened(row, "person.resumed", actor=actor, at=now)
    return row


@operation
def erase(*, person: Person, actor: Actor, now: datetime) -> Person:
    """Forget name and e-mail of somebody who left; events and decisions go on naming his id."""
    allow(actor, None, "people.erase")
    row = locked(person)
    if row.left_at is None:
        msg = "Only who has left can be erased."
        raise Conflict(msg, code="not-left")
    with connection.cursor() as cursor:  # while the row still has the e-mail by which links know him
        cursor.execute("SELECT account_forget(%s)", [row.pk])
    row.display_name = ERASED
    row.email = f"erased-{row.pk}@erased.invalid"
    row.set_unusable_password()
    row.save(update_fields=["display_name", "email", "password"])
    desired.happened(row, "person.erased", actor=actor, at=now)
    return row


@operation
def set_roles(*, person: Person, roles: Iterable[PlatformRole], actor: Actor, now: datetime) -> Person:
    """Make `roles` the platform roles of a person. Nobody changes his own; the last operator stays one.

    Raises `Forbidden`, `Conflict`.
    """
    allow(actor, None, "people.set_roles")
    if actor.person_id == person.pk:
        msg = "Another operator has to change your roles."
        raise Forbidden(msg, code="own-roles")
    wanted = set(roles)
    row = locked(person)
    if not row.is_active and wanted:
        msg = "This person has left or is suspended."
        raise Conflict(msg, code="not-active")
    if PlatformRole.OPERATOR not in wanted:
        keep_an_operator(row)
    have = {PlatformRole(m.role) for m in row.platform_memberships.all()}
    row.platform_memberships.filter(role__in=[r.value for r in have - wanted]).delete()
    for role in sorted(wanted - have):
        PlatformMembership.objects.create(person=row, role=role.value, created_at=now)
    if have != wanted:
        desired.happened(
            row, "person.roles-set", actor=actor, at=now,
            roles=sorted(str(r) for r in wanted), before=sorted(str(r) for r in have),
        )  # fmt: skip
    return row


# --- a person's own tokens ----------------------------------------------------------------------------


@operation
def issue_token(
    *,
    name: str,
    actor: Actor,
    now: datetime,
    tenant: Tenant | None = None,
    read_only: bool = False,
    expires_at: datetime | None = None,
) -> tokens.Issued:
    """Make a token of the caller's own, narrowed to one tenant if given. The plain text is shown once.

    A token that is narrowed or may only read makes only tokens that are as narrow. Raises `InvalidSpec`,
    `Conflict`, `Forbidden`.
    """
    allow(actor, None, "tokens.create")
    if actor.only_tenant is not None and (tenant is None or actor.only_tenant not in tenant.path):
        msg = "This token is narrowed to one tenant and makes only tokens of that tenant."
        raise Forbidden(msg, code="token-narrowed")
    person = locked(Person(pk=accountable(actor)))
    return tokens.issue_row(
        name=clean_text(name, "name", most=80, least=1),
        person=person,
        tenant=tenant,
        read_only=read_only,
        expires_at=expires_at,
        actor=actor,
        now=now,
    )


@operation
def revoke_token(*, token: ApiToken, actor: Actor, now: datetime, why: str = "revoked") -> ApiToken:
    """End a token: one's own, or any as operator; of a service account as owner of its tenant. Safe to repeat."""
    if token.person_id is not None and token.person_id == actor.person_id:
        allow(actor, None, "tokens.revoke")
    elif token.service_account_id is not None:
        allow(actor, token.tenant, "service-account-tokens.revoke")
    elif not actor.has(PlatformRole.OPERATOR):
        raise NotVisible
    tokens.revoke_rows(ApiToken.objects.filter(pk=token.pk), actor=actor, now=now, why=why)
    token.refresh_from_db()
    return token


# --- plain ------------------------------------------------------------------------------------------


def active_person_by_email(email: str) -> Person:
    """Return the active person with an e-mail, whom the caller need not see yet. Raises `InvalidSpec`.

    Only his id is known until he shares a tenant with the caller.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT person_for_email(%s)", [email.strip()])
        row = cursor.fetchone()
    if row is None or row[0] is None:
        msg = "Nobody with this e-mail has an account; an operator can add one."
        raise InvalidSpec(msg, field="email", code="unknown-person")
    return Person(pk=row[0])


def end_sessions(person: Person) -> int:
    """Delete every session of a person; returns how many. Django keeps whose it is inside the row only."""
    keys = [s.session_key for s in Session.objects.iterator() if s.get_decoded().get(SESSION_KEY) == str(person.pk)]
    return Session.objects.filter(session_key__in=keys).delete()[0]


def keep_an_operator(person: Person) -> None:
    """Raise `Conflict` if this is the last active operator; locks the operators' rows."""
    holders = list(
        PlatformMembership.objects.select_for_update(no_key=True)
        .filter(role=PlatformRole.OPERATOR.value, person__is_active=True)
        .order_by("pk")
        .values_list("person_id", flat=True)
    )
    if holders == [person.pk]:
        msg = "This is the last operator; make somebody else one first."
        raise Conflict(msg, code="last-operator")


def _save_unique(person: Person, *, insert: bool) -> None:
    try:
        with transaction.atomic():
            person.save(force_insert=insert)
    except IntegrityError as error:
        msg = "Somebody has this e-mail already."
        raise Conflict(msg, code="email-taken", field="email") from error


def check_email(text: str) -> str:
    """Return an e-mail as stored. Raises `InvalidSpec`."""
    value = text.strip()
    try:
        validate_email(value)
    except ValidationError as error:
        msg = "This is no e-mail address."
        raise InvalidSpec(msg, field="email") from error
    if value.lower().endswith("@erased.invalid"):
        msg = "This domain is ours for people whose names were erased."
        raise InvalidSpec(msg, field="email")
    return value


def check_name(text: str) -> str:
    """Return a display name as stored. Raises `InvalidSpec`."""
    return clean_text(text, "display_name", most=120, least=1)


def check_password(password: str, person: Person) -> None:
    """Raise `InvalidSpec` for a password that is too weak."""
    try:
        validate_password(password, person)
    except ValidationError as error:
        raise InvalidSpec(" ".join(error.messages), field="password", code="weak-password") from error
