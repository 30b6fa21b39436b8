"""Evidence: who held which GPU window when, and what a tenant was at a moment, from what is only ever appended.

Windows come from usage records, which the ledger's functions write with each hold and which stay when it goes; people
from memberships, wound back by the events since. Reads only, in the caller's read block. A time is half open:
a window that ended at T was not held at T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import F, Q

from tenants.models import (
    Allocation,
    Decision,
    Event,
    Membership,
    Person,
    PlatformMembership,
    Request,
    Tenant,
    UsageRecord,
    UsageSubject,
)
from tenants.states import HoldKind, Role

MEMBER_EVENTS: Final = ("member.added", "member.changed", "member.removed")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a window was for."""

    kind: str
    name: str
    short_id: str


@dataclass(frozen=True, slots=True)
class HeldWindow:
    """One window of one GPU that a tenant held for a time."""

    tenant: str
    subject: Subject
    provider: str
    site: str
    host: str
    gpu: str
    """Short id of the device."""
    gpu_ref: str
    """The provider's stable id of it."""
    gpu_index: int
    product: str
    profile: str
    """`""`: the whole GPU."""
    start: int
    size: int
    held_from: datetime
    held_to: datetime | None
    """None: held still."""
    billable_from: datetime | None
    billable_to: datetime | None
    hold: UUID


@dataclass(frozen=True, slots=True)
class Member:
    """One person's role in a tenant at a moment."""

    tenant: str
    person: UUID
    role: str
    name: str
    """`""` where the person is gone or not visible."""


@dataclass(frozen=True, slots=True)
class AsOf:
    """What a tenant was at a moment."""

    at: datetime
    windows: tuple[HeldWindow, ...]
    members: tuple[Member, ...]

    def slots_by_product(self) -> dict[str, int]:
        """Return product → placement slots held together."""
        found: dict[str, int] = {}
        for window in self.windows:
            found[window.product] = found.get(window.product, 0) + window.size
        return dict(sorted(found.items()))


def tree(tenant: Tenant, *, children: bool) -> dict[UUID, str]:
    """Return id → name of a tenant and, with `children`, of all below it as far as the actor may see."""
    rows = Tenant.objects.filter(path__contains=[tenant.pk]) if children else Tenant.objects.filter(pk=tenant.pk)
    return dict(rows.order_by("path").values_list("pk", "name"))


def as_of(tenant: Tenant, at: datetime, *, children: bool = True) -> AsOf:
    """Return what a tenant (and all below it) held at a moment and who belonged to it; a constant number of queries."""
    names = tree(tenant, children=children)
    held = Q(held_from__lte=at) & (Q(held_to__isnull=True) | Q(held_to__gt=at))
    return AsOf(at, tuple(_windows(names, held)), tuple(members_at(names, at)))


def windows_over(names: Mapping[UUID, str], start: datetime, end: datetime) -> Iterator[HeldWindow]:
    """Yield every window that tenants (id → name) held at any moment of [start, end), by its beginning."""
    met = Q(held_from__lt=end) & (Q(held_to__isnull=True) | Q(held_to__gt=start)) & ~Q(held_to=F("held_from"))
    return _windows(names, met)


def _windows(names: Mapping[UUID, str], condition: Q) -> Iterator[HeldWindow]:
    rows = list(
        UsageRecord.objects.filter(condition, kind=HoldKind.TENANT.value, tenant_id__in=list(names))
        .select_related("device__host", "provider")
        .order_by("held_from", "device__number", "start", "pk")
    )
    subjects = subjects_of({row.allocation_id for row in rows if row.allocation_id is not None})
    for row in rows:
        assert row.tenant_id is not None
        yield HeldWindow(
            tenant=names[row.tenant_id],
            subject=subjects.get(row.allocation_id, Subject("", "", "")) if row.allocation_id else Subject("", "", ""),
            provider=row.provider.name,
            site=row.provider.site,
            host=row.device.host.name,
            gpu=row.device.short_id,
            gpu_ref=row.device.provider_ref,
            gpu_index=row.device.index,
            product=row.device.product,
            profile=row.profile,
            start=row.start,
            size=row.size,
            held_from=row.held_from,
            held_to=row.held_to,
            billable_from=row.billable_from,
            billable_to=row.billable_to,
            hold=row.hold_id,
        )


def subjects_of(allocations: Iterable[UUID]) -> dict[UUID, Subject]:
    """Return allocation → what it is for, also of those whose rows are purged."""
    wanted = list(allocations)
    found = {
        row.allocation_id: Subject(row.kind, row.name, row.short_id)
        for row in UsageSubject.objects.filter(pk__in=wanted)
    }
    live = Allocation.objects.filter(pk__in=wanted).values_list("pk", "product_kind", "name", "short_id")
    return found | {key: Subject(kind, name, short) for key, kind, name, short in live}


def members_at(names: Mapping[UUID, str], at: datetime) -> list[Member]:
    """Return who belonged to tenants (id → name) at a moment: today's memberships, wound back by the events since."""
    roles: dict[tuple[UUID, UUID], str] = {
        (row.tenant_id, row.person_id): Role(row.role).word
        for row in Membership.objects.filter(tenant_id__in=list(names))
    }
    since = Event.objects.filter(chain__in=list(names), kind__in=MEMBER_EVENTS, at__gt=at).order_by("-at", "-seq")
    for event in since:
        if event.tenant_id is not None and "person" in event.data:
            _undo(roles, (event.tenant_id, UUID(str(event.data["person"]))), event)
    known = dict(Person.objects.filter(pk__in={person for _, person in roles}).values_list("pk", "display_name"))
    found = [Member(names[tenant], person, role, known.get(person, "")) for (tenant, person), role in roles.items()]
    return sorted(found, key=lambda one: (one.tenant, one.name, one.person.int))


def _undo(roles: dict[tuple[UUID, UUID], str], key: tuple[UUID, UUID], event: Event) -> None:
    if event.kind == "member.added":
        roles.pop(key, None)
    elif event.kind == "member.changed":
        roles[key] = str(event.data.get("before", ""))
    else:
        roles[key] = str(event.data.get("role", ""))


def platform_people() -> list[dict[str, str]]:
    """Return who has which platform role today."""
    rows = PlatformMembership.objects.select_related("person").order_by("role", "person__display_name")
    return [{"person": str(row.person_id), "name": row.person.display_name, "role": row.role} for row in rows]


def decisions_over(names: Mapping[UUID, str], start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    """Yield the requests of tenants that were filed or decided in [start, end), with every decision and its proof."""
    met = Q(created_at__gte=start, created_at__lt=end) | Q(
        decisions__created_at__gte=start, decisions__created_at__lt=end
    )
    rows = (
        Request.objects.filter(met, tenant_id__in=list(names))
        .distinct()
        .order_by("created_at", "pk")
        .prefetch_related("stages", "decisions")
    )
    for row in rows:
        assert row.tenant_id is not None
        yield {
            "request": row.short_id,
            "id": str(row.pk),
            "tenant": names[row.tenant_id],
            "kind": row.kind,
            "state": row.state,
            "requester": str(row.requester_id),
            "reason": row.reason,
            "payload": row.payload,
            "version": row.version,
            "filed_at": row.created_at,
            "decided_at": row.decided_at,
            "outcome": row.outcome,
            "stages": [
                {"order": stage.order, "decider": stage.decider, "done_at": stage.done_at}
                for stage in sorted(row.stages.all(), key=lambda stage: stage.order)
            ],
            "decisions": [_decision(one) for one in sorted(row.decisions.all(), key=lambda one: one.created_at)],
        }


def _decision(row: Decision) -> dict[str, Any]:
    return {
        "at": row.created_at,
        "verdict": row.verdict,
        "version": row.request_version,
        "decider": str(row.decider_id) if row.decider_id else None,
        "on_behalf_of": str(row.on_behalf_of_id) if row.on_behalf_of_id else None,
        "rule": str(row.rule_id) if row.rule_id else None,
        "granted": row.granted,
        "reason": row.reason,
        "proof": row.proof,
    }


def names_of(people: Sequence[UUID]) -> dict[UUID, str]:
    """Return person → display name, as far as the actor may see."""
    return dict(Person.objects.filter(pk__in=people).values_list("pk", "display_name"))
