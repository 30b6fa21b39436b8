"""`plan=true` on a change: the operation runs in a transaction that is rolled back, and this is what it would do.

What is answered is what the operation itself did, not a second opinion of it: the object as it would look, the
windows it would hold, what it would count against each limit, and what it would cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from tenants import ledger, pricing
from tenants.api.serializers.base import Out
from tenants.models import Allocation, Tenant, Unit
from tenants.operations import quotas
from tenants.operations.pricing import all_prices
from tenants.specs import AllocationSpec
from tenants.states import Phase

WAIT_GOALS: Final = frozenset(phase.value for phase in Phase)


class Placement(Out):
    """One window that a unit would hold."""

    unit: int
    host: str
    product: str
    profile: str
    device: int
    start: int
    size: int


class QuotaEffect(Out):
    """One limit on the way and what the change does to its use."""

    tenant: str
    dimension: str
    limit: int
    used_before: int
    used_after: int


class CostEffect(Out):
    """What it costs, `null` where no price is set."""

    hourly: Decimal | None
    to_the_end: Decimal | None
    note: str


class PlanOut(Out):
    """What a change would do. Nothing was changed."""

    plan: bool
    operation: str
    outcome: dict[str, Any] | None
    """The object as the change would leave it."""
    placement: list[Placement]
    quota: list[QuotaEffect]
    cost: CostEffect | None


class RolledBack(Exception):
    """Carries a plan out of the transaction that it was made in."""

    def __init__(self, plan: PlanOut) -> None:
        super().__init__()
        self.plan = plan


def effects(operation_id: str, row: Any, outcome: Out | None, *, now: datetime) -> PlanOut:
    """Return what the operation did to `row`, inside its transaction."""
    allocations = allocations_of(row)
    created = operation_id.rpartition(".")[2].startswith("create")
    return PlanOut(
        plan=True,
        operation=operation_id,
        outcome=outcome.model_dump(mode="json") if outcome is not None else None,
        placement=placement_of(allocations),
        quota=_quota(allocations) if created else [],
        cost=_cost(allocations, now=now) if created and allocations else None,
    )


def allocations_of(row: Any) -> list[Allocation]:
    """Return the allocations behind a result: itself, a product's, or a batch's."""
    rows = row if isinstance(row, list) else [row]
    return [
        each if isinstance(each, Allocation) else each.allocation
        for each in rows
        if isinstance(each, Allocation) or isinstance(getattr(each, "allocation", None), Allocation)
    ]


def placement_of(allocations: Sequence[Allocation]) -> list[Placement]:
    """Return the windows that allocations hold now, by unit."""
    units = list(
        Unit.objects.filter(allocation__in=allocations, released_at__isnull=True).order_by("allocation_id", "index")
    )
    windows = ledger.windows_of([unit.pk for unit in units]) if units else {}
    return [
        Placement(
            unit=unit.index,
            host=window.host,
            product=window.product,
            profile=window.profile,
            device=window.device_index,
            start=window.start,
            size=window.size,
        )
        for unit in units
        for window in windows[unit.pk]
    ]


def cost_of(demand: Mapping[str, int], *, provider: str, site: str, start: datetime, end: datetime) -> CostEffect:
    """Return what a demand costs per hour and from `start` to `end`."""
    known = all_prices()
    exact = {dimension: Decimal(amount) for dimension, amount in demand.items()}
    try:
        hourly = known.hourly(exact, start, provider=provider, site=site)
        total = known.cost(exact, start, end, provider=provider, site=site).total
    except pricing.NoPrice as error:
        return CostEffect(hourly=None, to_the_end=None, note=f"{error}.")
    return CostEffect(hourly=hourly, to_the_end=total, note="")


def _quota(allocations: Sequence[Allocation]) -> list[QuotaEffect]:
    asked: dict[str, int] = {}
    for allocation in allocations:
        for dimension, amount in allocation.demand.items():
            asked[dimension] = asked.get(dimension, 0) + int(amount)
    if not asked:
        return []
    tenant = allocations[0].tenant
    return [
        QuotaEffect(
            tenant=level.tenant,
            dimension=dimension,
            limit=int(limit),
            used_before=int(used) - (asked[dimension] if charged else 0),
            used_after=int(used),
        )
        for level, dimension, limit, used, charged in _levels(tenant, sorted(asked), allocations)
    ]


def _levels(tenant: Tenant, dimensions: Sequence[str], allocations: Sequence[Allocation]) -> Any:
    charged = any(allocation.charges.exists() for allocation in allocations)
    for level in quotas.position(tenant, dimensions):
        for dimension in dimensions:
            if dimension in level.inherits:
                continue
            limit = sum((entry.amount for entry in level.limits if entry.dimension == dimension), start=0)
            yield level, dimension, limit, level.usage.of(dimension), charged


def _cost(allocations: Sequence[Allocation], *, now: datetime) -> CostEffect:
    first = allocations[0]
    provider = first.boundary.provider if first.boundary is not None else None
    demand: dict[str, int] = {}
    for allocation in allocations:
        for dimension, amount in allocation.demand.items():
            demand[dimension] = demand.get(dimension, 0) + int(amount)
    spec = AllocationSpec.from_json(first.spec)
    return cost_of(
        demand,
        provider=provider.name if provider else "",
        site=provider.site if provider else "",
        start=now,
        end=spec.term.ends_at(now),
    )
