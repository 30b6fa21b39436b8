"""Members of a tenant: added, given another role, removed; a tenant never loses its last owner.

Whoever leaves a tenant leaves nothing behind that hangs on him: his service accounts there get another owner
or are disabled, his tokens narrowed to it end, and what he owned is listed for handover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection

from tenants import desired, tokens
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.models import (
    ApiToken,
    Endpoint,
    Machine,
    Membership,
    Namespace,
    Notice,
    Person,
    ServiceAccount,
    Tenant,
)
from tenants.operations import machine_access, namespace_access
from tenants.operations.guards import accountable, allow, lock_path, locked
from tenants.operations.people import active_person_by_email
from tenants.states import Role
from tenants.transactions import operation, refresh_visibility

OWNED: Final = (Endpoint, Machine, Namespace)
"""Products that name the person who asked for them."""
NOTICE_NAMES: Final = 20


@dataclass(frozen=True, slots=True)
class Handover:
    """What somebody left behind in one tenant, and who has it now."""

    tenant: str
    objects: tuple[dict[str, str], ...]
    """Kind, id and name of each product he owned."""
    service_accounts: tuple[str, ...]
    disabled: tuple[str, ...]
    """Service accounts nobody could take over."""
    to: UUID | None
    """Who took it over; None: it waits for an owner to hand it over."""


@operation
def add(*, tenant: Tenant, email: str, role: Role, actor: Actor, now: datetime) -> Membership:
    """Make the person with an e-mail a member. Raises `InvalidSpec` for an unknown one, `Conflict` for a member."""
    allow(actor, tenant, "members.create")
    lock_path(tenant.pk)
    return join(tenant, active_person_by_email(email), role, actor=actor, now=now)


def join(tenant: Tenant, person: Person, role: Role, *, actor: Actor, now: datetime) -> Membership:
    """Make somebody a member, in the caller's transaction. Raises `Conflict` if he is one."""
    if Membership.objects.filter(tenant=tenant, person_id=person.pk).exists():
        msg = "This person is a member already; change the role instead."
        raise Conflict(msg, code="member-already")
    row = Membership.objects.create(tenant=tenant, person_id=person.pk, role=int(role), created_at=now)
    refresh_visibility()
    namespace_access.people_changed([tenant], now=now)
    desired.created(row, "member.added", actor=actor, at=now, person=person.pk, role=role.word)
    return row


@operation
def change_role(
    *, membership: Membership, role: Role, actor: Actor, now: datetime, version: int | None = None
) -> Membership:
    """Give a member another role. Raises `Conflict` for the last owner."""
    allow(actor, _tenant(membership), "members.update")
    lock_path(membership.tenant_id)
    row = locked(membership, version)
    before = Role(row.role)
    if before is Role.OWNER and role is not Role.OWNER:
        keep_an_owner(row.tenant, row.person_id)
    row.role = int(role)
    row.save(update_fields=["role"])
    namespace_access.people_changed([row.tenant], now=now)
    if role < before:
        machine_access.shut_out(row.person_id, [row.tenant], now=now)
    desired.changed(
        row, "member.changed", actor=actor, at=now, person=row.person_id, role=role.word, before=before.word
    )
    return row


@operation
def pass_ownership(*, to: Membership, actor: Actor, now: datetime) -> Membership:
    """Make a member owner and the actor, who owns the tenant itself, a member: one step, never without an owner.

    Raises `Conflict` (`not-owner`) for an actor whose ownership comes from above, (`own-account`) for himself.
    """
    allow(actor, _tenant(to), "members.update")
    lock_path(to.tenant_id)
    heir = locked(to)
    if heir.person_id == actor.person_id:
        raise Conflict("You own it already; choose somebody else.", code="own-account")
    own = Membership.objects.select_for_update(no_key=True).filter(
        tenant_id=to.tenant_id, person_id=accountable(actor), role=int(Role.OWNER)
    ).first()  # fmt: skip
    if own is None:
        raise Conflict("You own this tenant through the one above it; nothing can be passed on.", code="not-owner")
    for row, role in ((heir, Role.OWNER), (own, Role.MEMBER)):
        before, row.role = Role(row.role), int(role)
        row.save(update_fields=["role"])
        desired.changed(
            row, "member.changed", actor=actor, at=now, person=row.person_id, role=role.word, before=before.word
        )
    return heir


@operation
def remove(
    *, membership: Membership, actor: Actor, now: datetime, version: int | None = None, successor: Person | None = None
) -> Handover:
    """Take somebody out of a tenant, or oneself. What he owned there goes to `successor`, else it is listed.

    Raises `Conflict` for the last owner, `InvalidSpec` for a successor who is no member.
    """
    own = actor.person_id == membership.person_id
    allow(actor, _tenant(membership), "members.leave" if own else "members.delete")
    lock_path(membership.tenant_id)
    row = locked(membership, version)
    tenant, person_id = row.tenant, row.person_id
    if Role(row.role) is Role.OWNER:
        keep_an_owner(tenant, person_id)
    namespace_access.people_changed([tenant], now=now)
    machine_access.shut_out(person_id, [tenant], now=now)
    desired.happened(row, "member.removed", actor=actor, at=now, person=person_id, role=Role(row.role).word)
    Membership.objects.filter(pk=row.pk).delete()
    tokens.revoke_rows(
        ApiToken.objects.filter(person_id=person_id, tenant=tenant), actor=actor, now=now, why="left the tenant"
    )
    return hand_over_things(tenant, person_id, successor=successor, actor=actor, now=now)


@operation
def hand_over(*, tenant: Tenant, person_id: UUID, to: Person, actor: Actor, now: datetime) -> Handover:
    """Give what somebody owns in a tenant to another member. Raises `InvalidSpec` if he is none, `NotVisible`."""
    allow(actor, tenant, "members.hand_over")
    lock_path(tenant.pk)
    if not _owned(tenant, person_id) and not _accounts(tenant, person_id):
        raise NotVisible
    return hand_over_things(tenant, person_id, successor=to, actor=actor, now=now)


# --- plain ------------------------------------------------------------------------------------------


def _tenant(membership: Membership) -> Tenant:
    """Return the tenant of a membership. Raises `NotVisible` to somebody who was taken out of it meanwhile."""
    try:
        return membership.tenant
    except Tenant.DoesNotExist:
        raise NotVisible from None


def keep_an_owner(tenant: Tenant, person_id: UUID) -> None:
    """Raise `Conflict` if nobody else owns the tenant, on its whole path. The caller holds the path's locks."""
    if other_owners(tenant, person_id) == 0:
        msg = f"This is the last owner of {tenant.name}; make somebody else one first."
        raise Conflict(msg, code="last-owner", tenant=tenant.name)


def other_owners(tenant: Tenant, person_id: UUID) -> int:
    """Return how many active owners a tenant has on its path, apart from one person."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_owners(%s, %s)", [tenant.pk, person_id])
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def hand_over_things(
    tenant: Tenant, person_id: UUID, *, successor: Person | None, actor: Actor, now: datetime
) -> Handover:
    """Hand over, in one tenant, what hangs on a person who has no role there any more (or gives it away).

    Service accounts must have an accountable owner at once: the successor, else the tenant's longest-serving
    owner, else they are disabled. Products wait, listed in a notice, unless there is a successor.
    """
    if successor is not None and not is_member(tenant, successor.pk):
        msg = "The successor is no member of this tenant."
        raise InvalidSpec(msg, field="successor", code="not-a-member")
    heir = successor.pk if successor is not None else _first_owner(tenant, person_id)
    moved, disabled = [], []
    for account in _accounts(tenant, person_id):
        if heir is None:
            account.disabled_at = now
            account.save(update_fields=["disabled_at"])
            tokens.revoke_rows(account.tokens.all(), actor=actor, now=now, why="service account disabled")
            machine_access.end(account.pk, now=now)
            desired.changed(account, "service-account.disabled", actor=actor, at=now, why="its owner left")
            disabled.append(account.name)
        else:
            account.owner_id = heir
            account.save(update_fields=["owner"])
            desired.changed(account, "service-account.handed-over", actor=actor, at=now, to=heir)
            moved.append(account.name)
    owned = _owned(tenant, person_id)
    objects = tuple({"kind": desired.kind_of(row), "id": str(row.pk), "name": row.name} for row in owned)
    if successor is not None:
        for row in owned:
            type(row)._base_manager.filter(pk=row.pk).update(owner_id=successor.pk)
            desired.happened(row, f"{desired.kind_of(row)}.handed-over", actor=actor, at=now, to=successor.pk)
    elif objects:
        _notify(tenant, person_id, objects, now=now)
    if objects or moved or disabled:
        desired.happened(
            tenant, "tenant.handover", actor=actor, at=now, person=person_id, objects=list(objects),
            service_accounts=moved, disabled=disabled, to=successor.pk if successor is not None else None,
        )  # fmt: skip
    return Handover(
        tenant=tenant.name,
        objects=objects,
        service_accounts=tuple(moved),
        disabled=tuple(disabled),
        to=successor.pk if successor is not None else None,
    )


def is_member(tenant: Tenant, person_id: UUID) -> bool:
    """Whether somebody active may change things in a tenant, by a role on its path that the caller sees."""
    return Membership.objects.filter(
        tenant_id__in=tenant.path, person_id=person_id, role__gte=int(Role.MEMBER), person__is_active=True
    ).exists()


def _first_owner(tenant: Tenant, except_for: UUID) -> UUID | None:
    """Return the owner on the path who has been one longest, nearest tenant first, as far as the caller sees."""
    for step in reversed(tenant.path):
        found: UUID | None = (
            Membership.objects.filter(tenant_id=step, role=int(Role.OWNER), person__is_active=True)
            .exclude(person_id=except_for)
            .order_by("created_at", "pk")
            .values_list("person_id", flat=True)
            .first()
        )
        if found is not None:
            return found
    return None


def _accounts(tenant: Tenant, person_id: UUID) -> list[ServiceAccount]:
    return list(
        ServiceAccount.objects.select_for_update(no_key=True)
        .filter(tenant=tenant, owner_id=person_id, disabled_at__isnull=True)
        .order_by("pk")
    )


def _owned(tenant: Tenant, person_id: UUID) -> Sequence[Endpoint | Machine | Namespace]:
    found: list[Endpoint | Machine | Namespace] = []
    for model in OWNED:
        found += model._base_manager.filter(tenant=tenant, owner_id=person_id, released_at__isnull=True).order_by(
            "name"
        )
    return found


def _notify(tenant: Tenant, person_id: UUID, objects: Sequence[dict[str, str]], *, now: datetime) -> None:
    names = ", ".join(f"{item['kind']} {item['name']}" for item in objects[:NOTICE_NAMES])
    more = len(objects) - NOTICE_NAMES
    names += f" and {more} more" if more > 0 else ""
    Notice.objects.get_or_create(
        key=f"handover:{tenant.pk}:{person_id}:{now.isoformat()}",
        defaults={
            "tenant": tenant,
            "kind": "handover",
            "object_kind": "person",
            "object_id": person_id,
            "text": f"A member left. Give what he owned to somebody else: {names}."[:1000],
            "at": now,
        },
    )
