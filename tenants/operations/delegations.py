"""Delegations: somebody decides in another's place between two dates, where he himself can see the request."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tenants import desired
from tenants.actor import Actor
from tenants.errors import InvalidSpec, NotVisible
from tenants.models import Delegation, Person
from tenants.operations.guards import accountable, allow
from tenants.transactions import operation

LONGEST: Final = timedelta(days=366)


@operation
def create(*, delegate: Person, starts_at: datetime, ends_at: datetime, actor: Actor, now: datetime) -> Delegation:
    """Let `delegate` decide in the caller's place for a time. It passes on no role and no delegation of others.

    Raises `InvalidSpec`.
    """
    allow(actor, None, "delegations.create")
    person = accountable(actor)
    if delegate.pk == person:
        raise InvalidSpec("Name somebody else.", field="delegate")
    if not Person.objects.filter(pk=delegate.pk, is_active=True).exists():
        raise InvalidSpec("The delegate must be somebody active whom you can see.", field="delegate", code="not-active")
    if ends_at <= starts_at or ends_at <= now:
        raise InvalidSpec("It must end after it starts, and later than now.", field="ends_at")
    if ends_at - starts_at > LONGEST:
        raise InvalidSpec(f"It lasts at most {LONGEST.days} days.", field="ends_at")
    row = Delegation.objects.create(
        person_id=person, delegate_id=delegate.pk, starts_at=starts_at, ends_at=ends_at, created_at=now
    )
    desired.happened(
        row, "delegation.created", actor=actor, at=now, nudge=False, delegate=delegate.pk, starts_at=starts_at,
        ends_at=ends_at,
    )  # fmt: skip
    return row


@operation
def end(*, delegation: Delegation, actor: Actor, now: datetime) -> None:
    """End one's own delegation now; one that has not begun is gone. Raises `NotVisible` for another's."""
    allow(actor, None, "delegations.end")
    row = (
        Delegation.objects.select_for_update(no_key=True)
        .filter(pk=delegation.pk, person_id=accountable(actor), ends_at__gt=now)
        .first()
    )
    if row is None:
        raise NotVisible
    desired.happened(row, "delegation.ended", actor=actor, at=now, nudge=False, delegate=row.delegate_id)
    if row.starts_at >= now:
        row.delete()
    else:
        Delegation.objects.filter(pk=row.pk).update(ends_at=now)
