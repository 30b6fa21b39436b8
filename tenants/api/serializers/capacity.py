"""Shapes of what is asked for and held: units, where, term; allocations and boundaries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from tenants import gpu_catalogue
from tenants.api.serializers.base import (
    Change,
    Condition,
    In,
    LabelledQuery,
    Labels,
    ManagedBy,
    Moment,
    Name,
    Out,
    PageQuery,
    absent,
    text,
    word,
)
from tenants.certificates import Stored
from tenants.models import Allocation, Boundary, Tenant, Unit
from tenants.specs import MOST_MEMORY_GIB, MOST_VCPU, AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk, Where
from tenants.states import BoundaryKind, OnShortage, Phase, Priority, ProductKind, ServiceClass, Tier

ProductId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,39}$"),
    Field(
        description="GPU product of the catalogue.",
        json_schema_extra={"enum": [product.id for product in gpu_catalogue.products()]},
    ),
]
DIMENSIONS = [
    *gpu_catalogue.PLAIN_DIMENSIONS,
    *(gpu_catalogue.slices_dimension(product.id) for product in gpu_catalogue.products()),
    *(f"gpu.{product.id}.{profile.name}" for product in gpu_catalogue.products() for profile in product.profiles),
]
"""Every dimension of a quota."""
Dimension = Annotated[str, StringConstraints(max_length=80), WithJsonSchema({"type": "string", "enum": DIMENSIONS})]
ProfileName = Annotated[str, StringConstraints(pattern=r"^([0-9a-z][0-9a-z.+-]{0,39})?$")]


class GpuIn(In):
    """A MIG window (`profile`) or whole GPUs (`count`)."""

    product: ProductId
    profile: ProfileName = Field("", description="MIG profile such as `1g.10gb`; empty: whole GPUs.")
    count: Annotated[int, Field(ge=1, le=16)] = 1


class UnitIn(In):
    """What one replica, machine or share needs on one host."""

    gpu: GpuIn
    vcpu: Annotated[int, Field(ge=1, le=MOST_VCPU)] = 8
    memory_gib: Annotated[int, Field(ge=1, le=MOST_MEMORY_GIB)] = 64
    spread_group: Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]{1,40})?$")] = Field(
        "", description="Units of one group go to different hosts."
    )

    def ask(self) -> UnitAsk:
        """Return the domain's shape."""
        gpu = GpuAsk(self.gpu.product, self.gpu.profile, self.gpu.count)
        return UnitAsk(gpu, self.vcpu, self.memory_gib, self.spread_group)


class WhereIn(In):
    """Where it may run; empty means anywhere the tenant's policy allows."""

    provider: Annotated[str, StringConstraints(pattern=r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$")] = ""
    site: Annotated[str, StringConstraints(pattern=r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$")] = ""
    kind: BoundaryKind | None = None
    tier: Tier = Tier.SHARED

    def ask(self) -> Where:
        """Return the domain's shape."""
        return Where(self.provider, self.site, self.kind, self.tier)


class TermIn(In):
    """How long: counted from the first Ready, never past `not_after`."""

    duration_s: Annotated[int, Field(ge=60, le=5 * 366 * 86400)] = 30 * 86400
    not_after: Moment | None = None
    service_class: ServiceClass = ServiceClass.STANDARD
    priority: Priority = Priority.STANDARD

    def ask(self) -> Term:
        """Return the domain's shape."""
        return Term(self.duration_s, self.not_after, self.service_class, self.priority)


class CapacityIn(In):
    """What every product asks for besides its units."""

    where: WhereIn = WhereIn()
    term: TermIn = TermIn()
    on_shortage: OnShortage = Field(
        OnShortage.FAIL, description="Over quota: refuse, file the request for what is missing, or wait."
    )
    storage_gib: Annotated[int, Field(ge=0, le=1_048_576)] = 0

    def capacity(self, units: list[UnitIn], *, gang: bool = True) -> AllocationSpec:
        """Return the domain's shape."""
        return AllocationSpec(
            units=tuple(unit.ask() for unit in units),
            where=self.where.ask(),
            term=self.term.ask(),
            on_shortage=self.on_shortage,
            storage_gib=self.storage_gib,
            gang=gang,
        )


class AllocationIn(CapacityIn):
    """GPU capacity of a namespace boundary without a product."""

    name: Name
    units: Annotated[list[UnitIn], Field(min_length=1, max_length=64)]
    gang: bool = Field(True, description="All units or none.")
    labels: Labels = {}
    description: text(500) = ""  # type: ignore[valid-type]
    managed_by: ManagedBy = "api"

    def ask(self) -> BareAsk:
        """Return the domain's shape."""
        return BareAsk(self.name, self.capacity(self.units, gang=self.gang), self.labels, self.description)


class BatchIn(In):
    """Up to 100 allocations: all pass the quota together, or nothing is changed."""

    allocations: Annotated[list[AllocationIn], Field(min_length=1, max_length=100)]


class RenewIn(In):
    """A new term from now."""

    duration_s: Annotated[int, Field(ge=60, le=5 * 366 * 86400)]


class LabelledIn(Change):
    """Labels and description; what is left out stays."""

    labels: Labels = absent()
    description: text(500) = absent()  # type: ignore[valid-type]

    def changes(self) -> dict[str, Any]:
        """Return what to change."""
        return dict(self.model_dump(exclude_unset=True))


class UnitOut(Out):
    """One unit and where it is placed."""

    index: int
    product: str
    profile: str
    gpu_count: int
    vcpu: int
    memory_gib: int
    spread_group: str
    host: str | None
    placed_at: datetime | None

    @classmethod
    def of(cls, row: Unit) -> UnitOut:
        """Return a unit; its host must be loaded."""
        return cls(
            index=row.index,
            product=row.product,
            profile=row.profile,
            gpu_count=row.gpu_count,
            vcpu=row.vcpu,
            memory_gib=row.memory_gib,
            spread_group=row.spread_group,
            host=row.host.name if row.host is not None else None,
            placed_at=row.placed_at,
        )


class ReconciledOut(Out):
    """What every object that passes build has."""

    id: str
    short_id: str
    name: str
    tenant: str
    tenant_id: str
    phase: Phase
    conditions: list[Condition]
    generation: int
    observed_generation: int
    version: int
    created_at: datetime
    ready_at: datetime | None
    deletion_requested_at: datetime | None
    released_at: datetime | None


def reconciled(row: Any, tenant: Tenant, *, name: str = "") -> dict[str, Any]:
    """Return the fields of `ReconciledOut` of a row."""
    return {
        "id": str(row.pk),
        "short_id": row.short_id,
        "name": name or row.name,
        "tenant": tenant.name,
        "tenant_id": str(tenant.pk),
        "phase": row.phase,
        "conditions": [Condition.model_validate(each) for each in row.conditions],
        "generation": row.generation,
        "observed_generation": row.observed_generation,
        "version": row.version,
        "created_at": row.created_at,
        "ready_at": row.ready_at,
        "deletion_requested_at": row.deletion_requested_at,
        "released_at": row.released_at,
    }


class AllocationOut(ReconciledOut):
    """GPU capacity of a boundary and its units."""

    product_kind: ProductKind
    product_id: str | None
    boundary: str | None
    provider: str | None
    demand: dict[str, int]
    spec: dict[str, Any]
    priority: Priority
    service_class: ServiceClass
    on_shortage: OnShortage
    duration_s: int
    not_after: datetime | None
    expires_at: datetime | None
    grace_until: datetime | None
    queued_at: datetime | None
    labels: dict[str, str]
    description: str
    managed_by: str
    units: list[UnitOut]

    @classmethod
    def of(cls, row: Allocation) -> AllocationOut:
        """Return an allocation; tenant, boundary with provider, and units with hosts must be loaded."""
        return cls(
            **reconciled(row, row.tenant),
            product_kind=ProductKind(row.product_kind),
            product_id=str(row.product_id) if row.product_id else None,
            boundary=row.boundary.short_id if row.boundary is not None else None,
            provider=row.boundary.provider.name if row.boundary is not None else None,
            demand={key: int(value) for key, value in row.demand.items()},
            spec=row.spec,
            priority=Priority(row.priority),
            service_class=ServiceClass(row.service_class),
            on_shortage=OnShortage(row.on_shortage),
            duration_s=row.duration_s,
            not_after=row.not_after,
            expires_at=row.expires_at,
            grace_until=row.grace_until,
            queued_at=row.queued_at,
            labels=row.labels,
            description=row.description,
            managed_by=row.managed_by,
            units=[UnitOut.of(unit) for unit in row.units.all() if unit.released_at is None],
        )


class BatchOut(Out):
    """The allocations of a batch, in the order they were asked for."""

    allocations: list[AllocationOut]


class AllocationQuery(LabelledQuery):
    """Filters of allocations."""

    product_kind: ProductKind | None = None


class BoundaryOut(ReconciledOut):
    """What isolates a tenant on one provider."""

    provider: str
    kind: BoundaryKind
    tier: Tier
    address: str

    @classmethod
    def of(cls, row: Boundary) -> BoundaryOut:
        """Return a boundary; tenant and provider must be loaded."""
        return cls(
            **reconciled(row, row.tenant, name=row.short_id),
            provider=row.provider.name,
            kind=BoundaryKind(row.kind),
            tier=Tier(row.tier),
            address=row.address,
        )


class CertificateCheckOut(Out):
    """One check of a certificate."""

    key: str
    title: str
    outcome: Literal["passed", "failed", "withheld", "unknown"]
    seen: str


class CertificateOut(Out):
    """What was tried against a boundary, and what held. `hash` is its event's, number `seq` of the tenant's chain."""

    boundary: str
    at: Moment
    passed: bool
    simulated: bool
    version: str
    took_ms: int
    checks: list[CertificateCheckOut]
    unshown: list[str]
    seq: int
    hash: str

    @classmethod
    def of(cls, stored: Stored, boundary: Boundary) -> CertificateOut:
        """Return a certificate."""
        return cls(
            boundary=boundary.short_id,
            at=stored.at,
            passed=stored.passed,
            simulated=stored.simulated,
            version=stored.version,
            took_ms=stored.took_ms,
            checks=[
                CertificateCheckOut.model_validate(
                    {"key": one.key, "title": one.title, "outcome": one.outcome, "seen": one.seen}
                )
                for one in stored.checks
            ],
            unshown=list(stored.unshown),
            seq=stored.seq,
            hash=stored.hash,
        )


class BoundaryQuery(PageQuery):
    """Filters of boundaries."""

    phase: Phase | None = None
    kind: BoundaryKind | None = None
    provider: word() = ""  # type: ignore[valid-type]
    tenant: word() = ""  # type: ignore[valid-type]
    live: bool | None = None


Power = Literal["on", "off"]


class ExplainOut(Out):
    """Why an object is as it is: conditions in words, what runs, where it is, what comes next."""

    kind: str
    id: str
    short_id: str
    name: str
    phase: Phase
    why: str
    reason: str
    next_step: str
    conditions: list[Condition]
    running_step: dict[str, Any] | None
    timeline: list[dict[str, Any]]
    at: str
    placement: list[dict[str, Any]] | None = None
    waiting: dict[str, Any] | None = None
    ends: dict[str, Any] | None = None
    requests: list[dict[str, Any]] | None = None
    boundary: dict[str, Any] | None = None
