"""What is only read: events, usage, notices, checkpoints; and limits with their use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet

from tenants import access
from tenants.actor import Actor
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.records import (
    CheckpointOut,
    EventOut,
    EventQuery,
    LevelOut,
    NoticeOut,
    PositionOut,
    PositionQuery,
    QuotaIn,
    QuotaOut,
    RecordQuery,
    UsageOut,
    UsageQuery,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.api.views.filters import named, of_tenant
from tenants.errors import InvalidSpec
from tenants.models import Checkpoint, Event, Notice, Quota, Tenant, UsageRecord
from tenants.operations import quotas
from tenants.quota import TenantLimits, limit_at

EventPage = page_of(EventOut)
UsagePage = page_of(UsageOut)
NoticePage = page_of(NoticeOut)
CheckpointPage = page_of(CheckpointOut)
QuotaPage = page_of(QuotaOut)


def visible_events(actor: Actor, tenant: Tenant | None) -> QuerySet[Event]:
    """Return the events the actor may see: of his tenants, and of the platform to platform roles."""
    if tenant is not None:
        return Event.objects.filter(tenant_id=tenant.pk)
    if actor.sees_all:
        return Event.objects.all()
    return Event.objects.filter(tenant_id__in=access.tenants(actor).values("pk"))


class Events(ApiView):
    """Events, of one tenant or of all that the caller sees."""

    def rows(self, call: Call) -> QuerySet[Event]:
        """Return the events the actor may see."""
        return visible_events(call.actor, call.tenant)

    def show(self, row: Event, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return an event."""
        return EventOut.of(row)

    @reads("events.list", answers=EventPage, query=EventQuery)
    def get(self, call: Call) -> Page:
        """List events: what happened, to what, by whom."""
        query: EventQuery = call.query
        rows = self.rows(call)
        if query.kind:
            rows = rows.filter(Q(kind=query.kind) | Q(kind__startswith=f"{query.kind}."))
        if query.object_kind:
            rows = rows.filter(object_kind=query.object_kind)
        if query.object_id:
            rows = rows.filter(object_id=_uuid(query.object_id, "object_id"))
        if query.tenant and call.tenant is None:
            rows = rows.filter(tenant_id__in=access.tenants(call.actor).filter(named(query.tenant, "")).values("pk"))
        if query.since is not None:
            rows = rows.filter(at__gte=query.since)
        if query.until is not None:
            rows = rows.filter(at__lt=query.until)
        return self.page(call, rows, EventPage, at="at")


class Usage(ApiView):
    """Usage records, of one tenant or of all that the caller sees."""

    def rows(self, call: Call) -> QuerySet[UsageRecord]:
        """Return the records the actor may see."""
        return access.scoped(UsageRecord, call.actor, tenant=call.tenant).select_related("provider", "device")

    def show(self, row: UsageRecord, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a record."""
        return UsageOut.of(row)

    @reads("usage.list", answers=UsagePage, query=UsageQuery)
    def get(self, call: Call) -> Page:
        """List usage: what was held, and what of it is billed."""
        query: UsageQuery = call.query
        rows = of_tenant(self.rows(call), call)
        if query.allocation:
            rows = rows.filter(allocation_id=_uuid(query.allocation, "allocation"))
        if query.open is not None:
            rows = rows.filter(held_to__isnull=query.open)
        return self.page(call, rows, UsagePage, at="held_from")


class Notices(ApiView):
    """Notices, of one tenant or of all that the caller sees."""

    def rows(self, call: Call) -> QuerySet[Notice]:
        """Return the notices the actor may see."""
        return access.scoped(Notice, call.actor, tenant=call.tenant).select_related("tenant")

    def show(self, row: Notice, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a notice."""
        return NoticeOut.of(row)

    @reads("notices.list", answers=NoticePage, query=RecordQuery)
    def get(self, call: Call) -> Page:
        """List notices: drains, expiries, handovers."""
        return self.page(call, of_tenant(self.rows(call), call), NoticePage, at="at")


class Checkpoints(ApiView):
    """Checkpoints of the event chains."""

    def show(self, row: Checkpoint, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a checkpoint."""
        return CheckpointOut.of(row)

    @reads("checkpoints.list", answers=CheckpointPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List checkpoints."""
        return self.page(call, Checkpoint.objects.all(), CheckpointPage, at="at")


class QuotaView(ApiView):
    """Limits of one tenant."""

    def rows(self, call: Call) -> QuerySet[Quota]:
        """Return the tenant's limits."""
        return access.scoped(Quota, call.actor, tenant=call.tenant).select_related("tenant")

    def show(self, row: Quota, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a limit."""
        return QuotaOut.of(row)


class Quotas(QuotaView):
    """Limits of one tenant."""

    @reads("quotas.list", answers=QuotaPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List the tenant's own limits."""
        return self.page(call, self.rows(call), QuotaPage)

    @writes("quotas.set", body=QuotaIn, answers=QuotaOut)
    def put(self, call: Call) -> Any:
        """Set the limit of a dimension: the lasting one, or one more that ends at `until`."""
        body: QuotaIn = call.body
        return quotas.set_limit(
            tenant=call.home,
            dimension=body.dimension,
            amount=body.amount,
            inherit=body.inherit,
            until=body.until,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class QuotaItem(QuotaView):
    """One limit."""

    key = "quota"

    def find(self, call: Call) -> Any:
        """Return the limit with this id."""
        return access.find(self.rows(call), call.path["quota"])

    @reads("quotas.read", answers=QuotaOut)
    def get(self, call: Call) -> Any:
        """Read a limit."""
        return call.target

    @writes("quotas.remove", answers=None, versioned=True)
    def delete(self, call: Call) -> Any:
        """Remove a limit: the dimension is zero again. Nothing held is taken away."""
        return quotas.remove(row=call.target, actor=call.actor, now=call.now, version=call.version)


class Position(ApiView):
    """Limits and use on the tenant's path."""

    @reads("quotas.position", answers=PositionOut, query=PositionQuery)
    def get(self, call: Call) -> Out:
        """Say what is limited, held and pending, from the root down to the tenant."""
        wanted = [call.query.dimension] if call.query.dimension else None
        now = datetime.now(UTC)
        return PositionOut(
            levels=[each for level in quotas.position(call.home, wanted) for each in _levels(level, now)]
        )


def _levels(level: TenantLimits, now: datetime) -> list[LevelOut]:
    spoken = {limit.dimension for limit in level.limits} | level.inherits
    return [
        LevelOut(
            tenant=level.tenant,
            dimension=dimension,
            limit=int(limit_at(level, dimension, now)),
            inherits=dimension in level.inherits,
            held=int(level.usage.held.get(dimension, 0)),
            pending=int(level.usage.pending.get(dimension, 0)),
        )
        for dimension in sorted(spoken | {*level.usage.held, *level.usage.pending})
    ]


def _uuid(word: str, field: str) -> UUID:
    try:
        return UUID(word)
    except ValueError as error:
        raise InvalidSpec("is no id", field=field) from error
