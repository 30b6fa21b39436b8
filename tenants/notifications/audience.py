"""Who is told: from a relation to persons, read as they are when the event is made into notifications.

Called by the worker, which sees all rows. Only active people are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from tenants import approval
from tenants.models import Delegation, Membership, Person, PlatformMembership, Request, Tenant
from tenants.states import PlatformRole, RequestKind, RequestState, Role


def owners(path: Sequence[UUID], *, but: UUID | None = None) -> set[UUID]:
    """Return the owners of the deepest tenant of a path (root first) that has any, apart from one person."""
    for tenant in reversed(path):
        found = {each for each in members([tenant], least=Role.OWNER) if each != but}
        if found:
            return found
    return set()


def members(tenants: Iterable[UUID], *, least: Role = Role.MEMBER) -> set[UUID]:
    """Return the active people with at least this role directly on one of the tenants."""
    rows = Membership.objects.filter(tenant_id__in=list(tenants), role__gte=int(least), person__is_active=True)
    return set(rows.values_list("person_id", flat=True))


def subtree(tenant: UUID) -> set[UUID]:
    """Return members and owners of a tenant and of all below it."""
    return members(Tenant.objects.filter(path__contains=[tenant]).values_list("pk", flat=True))


def with_role(role: PlatformRole) -> set[UUID]:
    """Return the active people with a platform role."""
    rows = PlatformMembership.objects.filter(role=role.value, person__is_active=True)
    return set(rows.values_list("person_id", flat=True))


def active(people: Iterable[UUID]) -> set[UUID]:
    """Return those of the people who are active."""
    return set(Person.objects.filter(pk__in=list(people), is_active=True).values_list("pk", flat=True))


def deciders(request: Request, *, now: datetime) -> set[UUID]:
    """Return who may decide the request's present stage, and their delegates of now; nobody once it is decided."""
    if request.state != RequestState.SUBMITTED.value:
        return set()
    stage = request.stages.filter(done_at__isnull=True).order_by("order").first()
    if stage is None:
        return set()
    path: Sequence[UUID] = request.tenant.path if request.tenant is not None else []
    if stage.decider == approval.PLATFORM_APPROVER:
        found = with_role(PlatformRole.APPROVER)
    elif stage.decider == approval.PARENT_OWNER and request.kind != RequestKind.TENANT.value:
        found = owners(path[:-1], but=request.requester_id)
    else:
        found = owners(path, but=request.requester_id)
    found.discard(request.requester_id)
    return (found | _delegates(found, path, now=now)) - {request.requester_id}


def _delegates(of: set[UUID], path: Sequence[UUID], *, now: datetime) -> set[UUID]:
    """Return who stands in for these people now and can see a request of this path himself."""
    rows = Delegation.objects.filter(
        person_id__in=of, starts_at__lte=now, ends_at__gt=now, delegate__is_active=True
    ).values_list("delegate_id", flat=True)
    asked = set(rows)
    if not asked:
        return set()
    seeing = set(PlatformMembership.objects.filter(person_id__in=asked).values_list("person_id", flat=True)) | set(
        Membership.objects.filter(person_id__in=asked, tenant_id__in=list(path)).values_list("person_id", flat=True)
    )
    return asked & seeing
