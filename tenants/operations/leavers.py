"""A person leaves: everything that opens something ends in one transaction, what he owned is handed over.

Sessions, tokens, memberships and platform roles end; service accounts get another accountable owner or are
disabled; delegations and requests that hang on him end. Nothing that belongs to a tenant stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.db.models import Q

from tenants import desired, tokens
from tenants.actor import Actor, Kind
from tenants.errors import Conflict, InvalidSpec
from tenants.models import ApiToken, Delegation, Membership, Person, PlatformMembership, Request, ServiceAccount, Tenant
from tenants.operations import machine_access, members, namespace_access
from tenants.operations.guards import allow, lock_paths, locked
from tenants.operations.members import OWNED, Handover
from tenants.operations.people import end_sessions, keep_an_operator
from tenants.states import RequestKind, RequestState, Role
from tenants.transactions import operation, refresh_visibility

STAYING_REQUESTS: Final = frozenset({RequestKind.QUOTA.value, RequestKind.MODEL.value})
"""Asked for the tenant, not for himself: they stay open when he goes."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What ended with a person."""

    person: Person
    handovers: tuple[Handover, ...]
    sessions: int
    tokens: int
    delegations: int
    requests_withdrawn: int


@operation
def leave(*, person: Person, actor: Actor, now: datetime, successor: Person | None = None) -> Departure:
    """Let a person go: by himself or by an operator. `successor` takes what he owned, and his last ownerships.

    Raises `Conflict`: `last-owner` with the tenants that would have nobody, `last-operator`, `left`.
    """
    if actor.kind is Kind.PERSON and actor.person_id == person.pk:
        allow(actor, None, "people.update_own")
    else:
        allow(actor, None, "people.leave")
    tenants = _tenants_of(person)
    lock_paths(tenants)
    row = locked(person)
    if row.left_at is not None:
        msg = "This person has left already."
        raise Conflict(msg, code="left")
    heir = _active(successor, row) if successor is not None else None
    keep_an_operator(row)
    _pass_on_ownership(row, heir, actor=actor, now=now)

    namespace_access.people_changed(tenants, now=now)
    machine_access.shut_out(row.pk, tenants, now=now)
    sessions = end_sessions(row)
    ended = tokens.revoke_rows(ApiToken.objects.filter(person=row), actor=actor, now=now, why="its person left")
    for membership in Membership.objects.filter(person=row).select_related("tenant").order_by("tenant_id"):
        role = Role(membership.role).word
        desired.happened(membership, "member.removed", actor=actor, at=now, person=row.pk, role=role, why="left")
        Membership.objects.filter(pk=membership.pk).delete()
    row.is_active, row.left_at = False, now
    row.save(update_fields=["is_active", "left_at"])
    handovers = []
    for tenant in sorted(tenants, key=lambda t: str(t.pk)):
        taker = heir if heir is not None and _may_take(tenant, heir) else None
        handovers.append(members.hand_over_things(tenant, row.pk, successor=taker, actor=actor, now=now))
    delegations = _end_delegations(row, now=now)
    withdrawn = _withdraw_requests(row, actor=actor, now=now)
    PlatformMembership.objects.filter(person=row).delete()
    desired.happened(
        row, "person.left", actor=actor, at=now, sessions=sessions, tokens=ended, delegations=delegations,
        requests_withdrawn=withdrawn, tenants=[str(t.pk) for t in tenants],
        successor=heir.pk if heir is not None else None,
    )  # fmt: skip
    return Departure(row, tuple(handovers), sessions, ended, delegations, withdrawn)


def _tenants_of(person: Person) -> list[Tenant]:
    """Return the tenants in which anything hangs on a person."""
    wanted = Q(memberships__person=person) | Q(
        pk__in=ServiceAccount.objects.filter(owner=person, disabled_at__isnull=True).values("tenant")
    )
    for model in OWNED:
        wanted |= Q(pk__in=model._base_manager.filter(owner=person, released_at__isnull=True).values("tenant"))
    return list(Tenant.objects.filter(wanted).distinct())


def _active(successor: Person, leaver: Person) -> Person:
    found = Person.objects.filter(pk=successor.pk, is_active=True).first()
    if found is None or found.pk == leaver.pk:
        msg = "The successor must be somebody else who is active."
        raise InvalidSpec(msg, field="successor", code="not-active")
    return found


def _pass_on_ownership(person: Person, heir: Person | None, *, actor: Actor, now: datetime) -> None:
    """Make the successor owner where nobody else is one; without a successor refuse, naming the tenants."""
    alone = [
        m.tenant
        for m in Membership.objects.filter(person=person, role=int(Role.OWNER)).select_related("tenant")
        if members.other_owners(m.tenant, person.pk) == 0
    ]
    if alone and heir is None:
        names = sorted(tenant.name for tenant in alone)
        msg = f"The last owner cannot go without a successor: {', '.join(names)}."
        raise Conflict(msg, code="last-owner", tenants=names)
    for tenant in alone:
        assert heir is not None
        row, made = Membership.objects.get_or_create(
            tenant=tenant, person=heir, defaults={"role": int(Role.OWNER), "created_at": now}
        )
        if made:
            desired.created(row, "member.added", actor=actor, at=now, person=heir.pk, role="owner", why="successor")
        else:
            Membership.objects.filter(pk=row.pk).update(role=int(Role.OWNER))
            desired.changed(row, "member.changed", actor=actor, at=now, person=heir.pk, role="owner", why="successor")
    if alone:
        refresh_visibility()


def _may_take(tenant: Tenant, heir: Person) -> bool:
    return Membership.objects.filter(tenant_id__in=tenant.path, person=heir, role__gte=int(Role.MEMBER)).exists()


def _end_delegations(person: Person, *, now: datetime) -> int:
    rows = Delegation.objects.filter(Q(person=person) | Q(delegate=person), ends_at__gt=now)
    ended = rows.filter(starts_at__lt=now).update(ends_at=now)
    return ended + rows.filter(starts_at__gte=now).delete()[0]


def _withdraw_requests(person: Person, *, actor: Actor, now: datetime) -> int:
    """What he asked for himself ends with him; what he asked for a tenant stays open."""
    rows: Sequence[Request] = list(
        Request.objects.select_for_update(no_key=True, of=("self",))
        .filter(requester=person, state=RequestState.SUBMITTED.value)
        .exclude(kind__in=STAYING_REQUESTS)
        .order_by("pk")
    )
    for row in rows:
        Request.objects.filter(pk=row.pk).update(
            state=RequestState.WITHDRAWN.value, decided_at=now, outcome={"why": "its requester left"}
        )
        desired.changed(row, "request.withdrawn", actor=actor, at=now, why="its requester left")
    return len(rows)
