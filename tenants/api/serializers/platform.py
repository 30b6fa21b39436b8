"""Shapes of the platform's own objects: providers, hosts, devices, findings, plans, models, prices, catalogue."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from tenants import finding_actions, pricing
from tenants.api.serializers.base import Change, Condition, In, Moment, Name, Out, PageQuery, absent, line, text, word
from tenants.api.serializers.capacity import DIMENSIONS, ProductId
from tenants.api.serializers.layouts import LayoutOut
from tenants.api.serializers.models import ModelPayload
from tenants.gpu_catalogue import Product, Profile
from tenants.models import Finding, GpuDevice, Host, HostPlan, PriceList, Provider, ServedModel
from tenants.states import Binding, HostState, ModelTask, Phase

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]


INSIDE = frozenset({"lots", "missing"})
"""What a provider tells of itself to platform roles only."""


class ProviderOut(Out):
    """One vCenter, one Kubernetes cluster or one sandbox estate. Credentials are never shown."""

    id: str
    short_id: str
    name: str
    kind: str
    site: str
    enabled: bool
    healthy: bool
    capabilities: dict[str, Any]
    config: dict[str, Any] | None
    """For platform roles only."""
    phase: Phase
    conditions: list[Condition]
    test: dict[str, Any] | None
    """What the last test found, for platform roles only; `asked_at` while one waits for a worker."""
    snapshot_at: datetime | None
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: Provider, *, inside: bool) -> ProviderOut:
        """Return a provider; `inside` shows what only platform roles may see."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            name=row.name,
            kind=row.kind,
            site=row.site,
            enabled=row.enabled,
            healthy=row.healthy,
            # names of datastores, networks, library items and policies are no tenant's business
            capabilities={key: told for key, told in row.capabilities.items() if inside or key not in INSIDE},
            config=row.config if inside else None,
            phase=Phase(row.phase),
            conditions=[Condition.model_validate(each) for each in row.conditions] if inside else [],
            test=_tested(row) if inside else None,
            snapshot_at=row.snapshot_at,
            created_at=row.created_at,
            version=row.version,
        )


def _tested(row: Provider) -> dict[str, Any] | None:
    """Return a provider's last test, and when another was asked for."""
    found = dict(row.observed.get("test", {}))
    if "test_asked" in row.observed:
        found["asked_at"] = row.observed["test_asked"]["at"]
    return found or None


class ProviderQuery(PageQuery):
    """Filters of providers."""

    kind: word() = ""  # type: ignore[valid-type]
    site: word() = ""  # type: ignore[valid-type]


class HostOut(Out):
    """A hypervisor host or a node."""

    id: str
    short_id: str
    provider: str
    name: str
    state: HostState
    binding: Binding
    gpu_product: str
    healthy: bool
    placeable: bool
    message: str
    total_vcpu: int
    free_vcpu: int
    total_memory_gib: int
    free_memory_gib: int
    gpu_count: int
    empty_gpus: int
    acceptance: dict[str, Any]
    seen_at: datetime | None
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: Host) -> HostOut:
        """Return a host; its provider must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            provider=row.provider.name,
            name=row.name,
            state=HostState(row.state),
            binding=Binding(row.binding),
            gpu_product=row.gpu_product,
            healthy=row.healthy,
            placeable=row.placeable,
            message=row.message,
            total_vcpu=row.total_vcpu,
            free_vcpu=row.free_vcpu,
            total_memory_gib=row.total_memory_gib,
            free_memory_gib=row.free_memory_gib,
            gpu_count=row.gpu_count,
            empty_gpus=row.empty_gpus,
            acceptance=row.acceptance,
            seen_at=row.seen_at,
            created_at=row.created_at,
            version=row.version,
        )


class HostQuery(PageQuery):
    """Filters of hosts."""

    provider: word() = ""  # type: ignore[valid-type]
    state: HostState | None = None
    name: word(200) = ""  # type: ignore[valid-type]
    product: word() = ""  # type: ignore[valid-type]


class DeviceOut(Out):
    """One physical GPU and what is free of it now."""

    id: str
    short_id: str
    number: int
    provider: str
    host: str
    index: int
    product: str
    slots: int
    free: int
    """Bit i set: slot i is free."""
    mode: str
    layout_change: str
    healthy: bool
    placeable: bool
    message: str
    removed_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: GpuDevice) -> DeviceOut:
        """Return a device; host and provider must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            number=row.number,
            provider=row.provider.name,
            host=row.host.name,
            index=row.index,
            product=row.product,
            slots=row.slots,
            free=row.free,
            mode=row.mode,
            layout_change=row.layout_change,
            healthy=row.healthy,
            placeable=row.placeable,
            message=row.message,
            removed_at=row.removed_at,
            created_at=row.created_at,
        )


class DeviceQuery(PageQuery):
    """Filters of devices."""

    provider: word() = ""  # type: ignore[valid-type]
    host: word() = ""  # type: ignore[valid-type]
    product: word() = ""  # type: ignore[valid-type]
    healthy: bool | None = None


class FindingActionOut(Out):
    """What may be done about an open finding, or why not: exactly one of `text` and `reason` is there."""

    action: str
    text: str
    reason: str


class FindingOut(Out):
    """Something that does not fit together and needs a person."""

    id: str
    short_id: str
    kind: str
    provider: str | None
    host: str | None
    subject: str
    detail: str
    data: dict[str, Any]
    blocks_placement: bool
    first_seen_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    resolution: str
    actions: list[FindingActionOut]
    version: int

    @classmethod
    def of(cls, row: Finding) -> FindingOut:
        """Return a finding; provider and host must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            kind=row.kind,
            provider=row.provider.name if row.provider else None,
            host=row.host.name if row.host else None,
            subject=row.subject,
            detail=row.detail,
            data=row.data,
            blocks_placement=row.blocks_placement,
            first_seen_at=row.first_seen_at,
            last_seen_at=row.last_seen_at,
            resolved_at=row.resolved_at,
            resolution=row.resolution,
            actions=[
                FindingActionOut(action=one.action, text=one.text, reason=one.reason)
                for one in (finding_actions.choices(row) if row.resolved_at is None else ())
            ],
            version=row.version,
        )


class FindingQuery(PageQuery):
    """Filters of findings."""

    kind: word() = ""  # type: ignore[valid-type]
    provider: word() = ""  # type: ignore[valid-type]
    open: bool | None = None


class PlanQuery(PageQuery):
    """Filters of host plans."""

    host: word() = ""  # type: ignore[valid-type]
    state: Literal["running", "done", "cancelled", "failed"] | None = None


class HostPlanOut(Out):
    """Work on one host: who is touched, what moves where, what only stops, when."""

    id: str
    short_id: str
    host: str
    kind: str
    state: str
    phase: Phase
    reason: str
    starts_at: datetime
    ends_at: datetime | None
    touched: list[dict[str, Any]]
    stage: str
    """Of a running layout change: `drain`, `carve`, `compare`, `restore`; empty otherwise."""
    waits_for: list[str]
    """What stands in the way of a layout change, in sentences."""
    why: str
    """Why a layout change failed or was taken back."""
    layout: LayoutOut | None
    """Of a layout change: what each GPU is carved into, before and after."""
    conditions: list[Condition]
    author: str
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: HostPlan) -> HostPlanOut:
        """Return a plan; its host must be loaded."""
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            host=row.host.name,
            kind=row.kind,
            state=row.state,
            phase=Phase(row.phase),
            reason=row.reason,
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            touched=row.touched,
            stage=str(row.observed.get("stage", "drain")) if row.layout and row.state == "running" else "",
            waits_for=list(row.observed.get("waits_for", [])),
            why=str(row.observed.get("why", "")),
            layout=LayoutOut.of(row.layout),
            conditions=[Condition.model_validate(each) for each in row.conditions],
            author=str(row.author),
            created_at=row.created_at,
            version=row.version,
        )


class ServedModelOut(Out):
    """A model of the catalogue, pinned to a commit."""

    id: str
    name: str
    repository: str
    commit: str
    licence: str
    gating: str
    source: str
    task: ModelTask
    tenant: str | None
    quantisation: str
    geometry: dict[str, Any]
    config_digest: str
    enabled: bool
    created_at: datetime
    version: int

    @classmethod
    def of(cls, row: ServedModel) -> ServedModelOut:
        """Return a served model; its tenant must be loaded."""
        return cls(
            id=str(row.pk),
            name=row.name,
            repository=row.repository,
            commit=row.commit,
            licence=row.licence,
            gating=row.gating,
            source=row.source,
            task=ModelTask(row.task),
            tenant=row.tenant.name if row.tenant is not None else None,
            quantisation=row.quantisation,
            geometry=row.geometry,
            config_digest=row.config_digest,
            enabled=row.enabled,
            created_at=row.created_at,
            version=row.version,
        )


class ServedModelQuery(PageQuery):
    """Filters of served models."""

    enabled: bool | None = None


class ServedModelIn(ModelPayload):
    """A model to serve, at a pinned commit."""


class ServedModelChangeIn(Change):
    """What to change of a served model; repository and commit never change."""

    enabled: bool = absent()
    licence: line(0, 80) = absent()  # type: ignore[valid-type]
    gating: line(0, 120) = absent()  # type: ignore[valid-type]


class PriceOut(Out):
    """One rate."""

    item: str
    amount: Decimal


class PriceListOut(Out):
    """Prices that hold from a date on."""

    id: str
    name: str
    provider: str | None
    site: str
    currency: str
    valid_from: datetime
    created_at: datetime
    prices: list[PriceOut]

    @classmethod
    def of(cls, row: PriceList) -> PriceListOut:
        """Return a price list; provider and prices must be loaded."""
        return cls(
            id=str(row.pk),
            name=row.name,
            provider=row.provider.name if row.provider else None,
            site=row.site,
            currency=row.currency,
            valid_from=row.valid_from,
            created_at=row.created_at,
            prices=[PriceOut(item=price.item, amount=price.amount) for price in row.prices.all()],
        )


PricedItem = Annotated[
    str,
    StringConstraints(max_length=80),
    WithJsonSchema({"type": "string", "enum": ["token", *(name for name in DIMENSIONS if pricing.is_priced(name))]}),
]
Amount = Annotated[
    str,
    StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?$"),
    Field(description="An exact decimal number as text."),
]


class PriceListIn(In):
    """Prices that hold from a date on; never changed backwards."""

    name: line(most=80)  # type: ignore[valid-type]
    valid_from: Moment
    prices: Annotated[
        dict[PricedItem, Amount],
        Field(min_length=1, max_length=100),
    ]
    provider: Name | None = None
    site: Annotated[str, StringConstraints(pattern=r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$")] = ""
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = "EUR"


class ProfileOut(Out):
    """One kind of window of a GPU product."""

    name: str
    kind: str
    slices: int
    starts: list[int]
    compute_slices: int | None
    memory_gib: Decimal | None
    max_instances: int
    sold: bool

    @classmethod
    def of(cls, profile: Profile, *, sold: bool) -> ProfileOut:
        """Return a profile."""
        return cls(
            name=profile.name,
            kind=profile.kind,
            slices=profile.size,
            starts=list(profile.starts),
            compute_slices=profile.compute_slices,
            memory_gib=profile.memory_gib_planning,
            max_instances=profile.max_instances,
            sold=sold,
        )


class GpuProductOut(Out):
    """One GPU model as sold."""

    id: ProductId
    vendor: str
    architecture: str
    memory_gib: Decimal
    slices: int
    verified: bool
    source: str
    profiles: list[ProfileOut]

    @classmethod
    def of(cls, product: Product) -> GpuProductOut:
        """Return a product."""
        sold = {profile.name for profile in product.placeable}
        return cls(
            id=product.id,
            vendor=product.vendor,
            architecture=product.architecture,
            memory_gib=product.total_memory_gib,
            slices=product.slices,
            verified=product.verified,
            source=product.source,
            profiles=[ProfileOut.of(profile, sold=profile.name in sold) for profile in product.profiles],
        )


class CatalogueOut(Out):
    """Every GPU product."""

    items: list[GpuProductOut]


class MachineImageOut(Out):
    """One image of which machines can be made."""

    name: str = Field(description="Its slug: what `image` of a machine is.")


class MachineImagesOut(Out):
    """Every image of which machines can be made somewhere now."""

    items: list[MachineImageOut]


class PlanReasonIn(In):
    """Why, in a few words."""

    reason: line(3, 500)  # type: ignore[valid-type]


class DrainIn(In):
    """Why, and when: nothing is moved or stopped before `starts_at`."""

    reason: line(3, 500)  # type: ignore[valid-type]
    starts_at: Moment | None = Field(None, description="End of the notice; now if left out.")
    ends_at: Moment | None = None


class MaintenanceIn(In):
    """Why, and until when."""

    reason: line(3, 500)  # type: ignore[valid-type]
    ends_at: Moment | None = None


class DrainPreviewOut(Out):
    """What a drain would touch at this moment."""

    host: str
    name: str
    state: HostState
    touched: list[dict[str, Any]]
    tenants: list[str]
    move: int
    no_room: int
    wait: int


class ResolveIn(In):
    """What to do about a finding."""

    action: Literal["ignore", "repair", "delete", "adopt"]
    reason: line(3, 300)  # type: ignore[valid-type]


class ProviderIn(In):
    """A new provider; its credentials are set one by one afterwards."""

    name: Name
    kind: Slug
    site: Slug
    config: dict[str, Any] = {}


class ProviderChangeIn(Change):
    """What to change of a provider."""

    site: Slug = absent()
    config: dict[str, Any] = absent()


class CredentialIn(In):
    """A secret; it is stored encrypted and never shown."""

    value: text(20000, least=1)  # type: ignore[valid-type]
