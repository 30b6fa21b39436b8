"""Shapes of what is only read: events, usage, notices, checkpoints; limits and their use; found objects."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from tenants.api.serializers.base import Bound, IdWord, In, Moment, Out, PageQuery, word
from tenants.api.serializers.capacity import Dimension
from tenants.models import Checkpoint, Event, Notice, Quota, UsageRecord
from tenants.states import HoldKind


class EventOut(Out):
    """What happened, to what, by whom."""

    id: str
    chain: str
    seq: int
    at: datetime
    tenant_id: str | None
    kind: str
    object_kind: str
    object_id: str | None
    actor: str
    person_id: str | None
    data: dict[str, Any]
    hash: str

    @classmethod
    def of(cls, row: Event) -> EventOut:
        """Return an event."""
        return cls(
            id=str(row.pk),
            chain=str(row.chain),
            seq=row.seq,
            at=row.at,
            tenant_id=str(row.tenant_id) if row.tenant_id else None,
            kind=row.kind,
            object_kind=row.object_kind,
            object_id=str(row.object_id) if row.object_id else None,
            actor=row.actor,
            person_id=str(row.person_id) if row.person_id else None,
            data=row.data,
            hash=row.hash,
        )


class EventQuery(PageQuery):
    """Filters of events."""

    kind: word(80) = Field("", description="Kind, or the part of it before the dot.")  # type: ignore[valid-type]
    object_kind: word(80) = ""  # type: ignore[valid-type]
    object_id: IdWord = ""
    tenant: word() = ""  # type: ignore[valid-type]
    since: Bound | None = None
    until: Bound | None = None


class UsageOut(Out):
    """What was held and what of it is billed."""

    id: str
    tenant_id: str | None
    allocation_id: str | None
    provider: str
    product: str
    profile: str
    start: int
    size: int
    kind: HoldKind
    vcpu: int
    memory_gib: int
    held_from: datetime
    held_to: datetime | None
    billable_from: datetime | None
    billable_to: datetime | None
    rule: str

    @classmethod
    def of(cls, row: UsageRecord) -> UsageOut:
        """Return a usage record; provider and device must be loaded."""
        return cls(
            id=str(row.pk),
            tenant_id=str(row.tenant_id) if row.tenant_id else None,
            allocation_id=str(row.allocation_id) if row.allocation_id else None,
            provider=row.provider.name,
            product=row.device.product,
            profile=row.profile,
            start=row.start,
            size=row.size,
            kind=HoldKind(row.kind),
            vcpu=row.vcpu,
            memory_gib=row.memory_gib,
            held_from=row.held_from,
            held_to=row.held_to,
            billable_from=row.billable_from,
            billable_to=row.billable_to,
            rule=row.rule,
        )


class UsageQuery(PageQuery):
    """Filters of usage records."""

    tenant: word() = ""  # type: ignore[valid-type]
    allocation: IdWord = ""
    open: bool | None = Field(None, description="true: what is still held.")


class NoticeOut(Out):
    """Something a tenant's people must know."""

    id: str
    tenant: str
    kind: str
    object_kind: str
    object_id: str | None
    text: str
    at: datetime

    @classmethod
    def of(cls, row: Notice) -> NoticeOut:
        """Return a notice; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            kind=row.kind,
            object_kind=row.object_kind,
            object_id=str(row.object_id) if row.object_id else None,
            text=row.text,
            at=row.at,
        )


class RecordQuery(PageQuery):
    """Filters of notices."""

    tenant: word() = ""  # type: ignore[valid-type]


class CheckpointOut(Out):
    """All heads of the event chains at one moment."""

    id: str
    at: datetime
    heads: dict[str, Any]
    previous: str
    hash: str

    @classmethod
    def of(cls, row: Checkpoint) -> CheckpointOut:
        """Return a checkpoint."""
        return cls(id=str(row.pk), at=row.at, heads=row.heads, previous=row.previous, hash=row.hash)


class FoundOut(Out):
    """What a short id stands for."""

    kind: str
    id: str
    short_id: str
    name: str
    tenant: str | None
    address: str


class QuotaIn(In):
    """A limit."""

    dimension: Dimension
    amount: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    inherit: bool = Field(False, description="The nearest limit above is this tenant's too.")
    until: Moment | None = Field(None, description="One more limit that ends then, added to the lasting one.")


class QuotaOut(Out):
    """One limit of one tenant."""

    id: str
    tenant: str
    dimension: str
    amount: int
    inherit: bool
    until: datetime | None
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: Quota) -> QuotaOut:
        """Return a limit; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            tenant=row.tenant.name,
            dimension=row.dimension,
            amount=row.amount,
            inherit=row.inherit,
            until=row.until,
            created_at=row.created_at,
            version=row.version,
        )


class LevelOut(Out):
    """Limit and use of one dimension at one tenant of the path."""

    tenant: str
    dimension: str
    limit: int
    inherits: bool
    held: int
    pending: int


class PositionOut(Out):
    """Limits and use from the root down to the tenant."""

    levels: list[LevelOut]


class PositionQuery(PageQuery):
    """Which dimension."""

    dimension: Dimension | None = None
