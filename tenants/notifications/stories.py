"""From an event to stories: which tenant it is told in, to whom, and with what words and numbers.

Data holds names of the tenant's own objects, never of people (who can be erased) or of other tenants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tenants.models import (
    Allocation,
    ApiToken,
    Endpoint,
    Event,
    Finding,
    Host,
    Machine,
    Namespace,
    Notice,
    Provider,
    Request,
    ServiceAccount,
    Tenant,
    Webhook,
)
from tenants.notifications import audience
from tenants.notifications.registry import Audience, Kind
from tenants.states import PlatformRole, RequestKind, RequestState

PRODUCTS: Final[Mapping[str, Any]] = {"endpoint": Endpoint, "machine": Machine, "namespace": Namespace}
ASKS: Final[Mapping[str, str]] = {
    RequestKind.QUOTA.value: "more quota",
    RequestKind.TENANT.value: "a new tenant",
    RequestKind.JOIN.value: "to join",
    RequestKind.WRITE_OFF.value: "a write-off",
    RequestKind.MODEL.value: "a model of its own",
}
STATES: Final[Mapping[str, str]] = {
    RequestState.REDUCED.value: "approved in part",
    RequestState.EXPIRED.value: "ended: nobody decided in time",
}
NAMED: Final[Mapping[str, Any]] = {
    "provider": Provider,
    "host": Host,
    "service-account": ServiceAccount,
    "webhook": Webhook,
}


@dataclass(frozen=True, slots=True)
class Story:
    """One kind of news about one event, in one tenant (or none), for some people."""

    kind: Kind
    tenant: UUID | None
    people: set[UUID]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def personal(self) -> bool:
        """Whether people are told as those whom it concerns, whatever their roles in the tenant are."""
        return self.kind.audience in {Audience.REQUESTER, Audience.SUBJECT}


def of(event: Event, kind: Kind, *, now: datetime) -> Iterator[Story]:
    """Yield what an event tells under a kind: usually one story, one per touched tenant for work on hardware."""
    if event.object_kind == "host-plan":
        yield from _work_on_hardware(event, kind)
        return
    tenant = Tenant.objects.filter(pk=event.tenant_id).first() if event.tenant_id else None
    data: dict[str, Any] = {"tenant": tenant.name if tenant else "--", **_said(event)}
    subject = _subject(event)
    data |= _about(subject, event, tenant)
    people = _people(kind, event, subject, tenant, now=now)
    if not kind.self_too:
        people -= {event.person_id}
    yield Story(kind, tenant.pk if tenant else None, people, data)


def _said(event: Event) -> dict[str, Any]:
    """Return what the event itself says, under the names that sentences use."""
    said = event.data
    found: dict[str, Any] = {
        key: said[key] for key in ("days", "depth", "dimension", "amount", "role", "text", "device", "finding",
                                  "percent", "month", "spent", "currency")
        if said.get(key) is not None
    }  # fmt: skip
    why = said.get("message") or said.get("why") or said.get("reason") or said.get("detail")
    if why:
        found["why"] = str(why)[:500]
    if "roles" in said:
        found["roles"] = ", ".join(map(str, said["roles"])) or "none"
    if event.kind == "delegation.created":
        found |= {"starts": str(said["starts_at"])[:10], "ends": str(said["ends_at"])[:10]}
    if event.kind == "tenant.handover":
        found["count"] = sum(len(said.get(key, ())) for key in ("objects", "service_accounts", "disabled"))
    return found


def _subject(event: Event) -> Any:
    """Return the row the event is about, as far as stories need one; None when it is gone."""
    key = event.object_id
    if key is None:
        return None
    if event.object_kind == "request":
        return Request.objects.select_related("tenant").filter(pk=key).first()
    if event.object_kind == "allocation":
        row = Allocation.objects.filter(pk=key).first()
        model = PRODUCTS.get(row.product_kind) if row is not None else None
        product = model._base_manager.filter(allocation_id=row.pk).first() if model is not None and row else None
        return product or row
    if event.object_kind == "api-token":
        return ApiToken.objects.filter(pk=key).first()
    if event.object_kind == "finding":
        return Finding.objects.filter(pk=key).first()
    model = PRODUCTS.get(event.object_kind) or NAMED.get(event.object_kind)
    return model._base_manager.filter(pk=key).first() if model is not None else None


def _about(subject: Any, event: Event, tenant: Tenant | None) -> dict[str, Any]:
    if isinstance(subject, Request):
        page = f"/t/{tenant.name}/requests/{subject.short_id}" if tenant is not None else "/me"
        return {
            "request": subject.short_id,
            "ask": ASKS.get(subject.kind, subject.kind),
            "state": STATES.get(event.kind.partition(".")[2], event.kind.partition(".")[2]),
            "request_page": page,
        }
    found: dict[str, Any] = {"id": str(event.object_id)}
    if subject is not None and hasattr(subject, "name"):
        found["name"] = subject.name
    word = getattr(subject, "product_kind", None) or type(subject).__name__.lower()
    if word in PRODUCTS:
        found |= {"object": word, "noun": f"{word}s"}
    elif isinstance(subject, Allocation):
        found |= {"object": "allocation", "noun": "allocations"}
    return found


def _people(kind: Kind, event: Event, subject: Any, tenant: Tenant | None, *, now: datetime) -> set[UUID]:  # noqa: PLR0911 - a table
    path = tenant.path if tenant is not None else []
    match kind.audience:
        case Audience.REQUESTER:
            return audience.active([subject.requester_id]) if subject is not None else set()
        case Audience.DECIDERS:
            return audience.deciders(subject, now=now) if subject is not None else set()
        case Audience.THREAD:
            asked = audience.active([subject.requester_id]) if subject is not None else set()
            return asked | (audience.deciders(subject, now=now) if subject is not None else set())
        case Audience.OBJECT_OWNER:
            owner = getattr(subject, "owner_id", None)
            return (audience.active([owner]) if owner else set()) or audience.owners(path)
        case Audience.TENANT_OWNERS:
            return audience.owners(path)
        case Audience.TENANT_MEMBERS:
            return audience.members(path[-1:])
        case Audience.SUBTREE_MEMBERS:
            return audience.subtree(path[-1]) if path else set()
        case Audience.SUBJECT:
            return audience.active(_person_of(event, subject))
        case Audience.OPERATORS:
            return audience.with_role(PlatformRole.OPERATOR)


def _person_of(event: Event, subject: Any) -> list[UUID]:
    if event.object_kind == "person":
        found = event.object_id
    elif isinstance(subject, ApiToken):
        found = subject.person_id
    else:
        named = event.data.get("delegate" if event.kind == "delegation.created" else "person")
        found = UUID(str(named)) if named else None
    return [found] if found else []


def _work_on_hardware(event: Event, kind: Kind) -> Iterator[Story]:
    """Tell each touched tenant what its own notice says; the host and other tenants are not named."""
    if event.object_id is None:
        return
    rows = Notice.objects.filter(object_kind="host-plan", object_id=event.object_id).select_related("tenant")
    for notice in rows.order_by("tenant_id"):
        people = audience.members([notice.tenant_id]) or audience.owners(notice.tenant.path)
        yield Story(kind, notice.tenant_id, people, {"tenant": notice.tenant.name, "text": notice.text})
