"""All tenants as an operator sees them: the tree, what each holds and costs, who owns it, and what is risky about it.

Reads only, in the caller's read block; the number of queries does not depend on how many tenants there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

from django.db.models import Q, Sum

from tenants import billed, gpu_catalogue, second_factors
from tenants.models import Host, Membership, Quota, QuotaCharge, Suspension, Tenant
from tenants.states import HostState, Role, TenantStatus

NEAR: Final = Decimal("0.9")
"""A limit that is used so far is near."""


class RiskKind(StrEnum):
    """What can be risky about a tenant, worst first."""

    NOBODY = "nobody"
    OVER = "over"
    SUSPENDED = "suspended"
    SUSPENDED_ABOVE = "suspended-above"
    NEAR_LIMIT = "near-limit"
    OVER_COMMITTED = "over-committed"
    NO_FACTOR = "no-factor"
    ONE_OWNER = "one-owner"
    NO_LIMIT = "no-limit"


ORDER: Final = {kind: place for place, kind in enumerate(RiskKind)}


@dataclass(frozen=True, slots=True)
class Risk:
    """One risk, with the figures of its sentence."""

    kind: RiskKind
    dimension: str = ""
    count: int = 0
    """Used, promised, owners: what the kind is about."""
    of: int = 0
    """The limit, or all owners."""


@dataclass(slots=True)
class Standing:
    """One tenant with everything that hangs on it. Use and cost include the tenants below."""

    tenant: Tenant
    limits: Mapping[str, int] = field(default_factory=dict)
    """Dimension → own limit in force now, parts that end included."""
    inherits: frozenset[str] = frozenset()
    used: dict[str, int] = field(default_factory=dict)
    """Dimension → held and waiting."""
    cost: Decimal = Decimal(0)
    """This UTC month so far."""
    own_owners: tuple[UUID, ...] = ()
    owners: frozenset[UUID] = frozenset()
    """Active owners, those of the tenants above included."""
    without_factor: frozenset[UUID] = frozenset()
    """Own owners without a second factor."""
    suspension: Suspension | None = None
    suspended_above: str = ""
    """Name of a suspended tenant above."""
    children: list[UUID] = field(default_factory=list)
    risks: tuple[Risk, ...] = ()

    @property
    def depth(self) -> int:
        """Return 0 for a root."""
        return len(self.tenant.path) - 1


def read(*, now: datetime, only: Tenant | None = None) -> list[Standing]:
    """Return all tenants in the order of the tree, siblings by name; or one with all below it."""
    rows = Tenant.objects.order_by("name")
    if only is not None:
        rows = rows.filter(Q(path__contains=[only.pk]) | Q(pk__in=only.path))
    found = {row.pk: Standing(row) for row in rows}
    for each in found.values():
        parent = found.get(each.tenant.parent_id) if each.tenant.parent_id is not None else None
        if parent is not None:
            parent.children.append(each.tenant.pk)
    within = {"tenant__in": list(found)} if only is not None else {}
    _limits(found, within, now=now)
    _use(found, only)
    _owners(found, within)
    _suspensions(found, within)
    start, end = billed.this_month(now)
    costs = billed.by_tenant(start, end, now=now, tenants=list(found) if only is not None else None)
    for key, amount in costs.items():
        for step in found[key].tenant.path if key in found else ():
            if step in found:
                found[step].cost += amount
    for each in found.values():
        each.risks = tuple(sorted(_risks(each, found), key=lambda risk: (ORDER[risk.kind], risk.dimension)))
    ordered = list(_walk(found, [each for each in found.values() if each.tenant.parent_id not in found]))
    return [each for each in ordered if only is None or only.pk in each.tenant.path]


def _walk(found: Mapping[UUID, Standing], level: Iterable[Standing]) -> Iterable[Standing]:
    for each in level:
        yield each
        yield from _walk(found, (found[child] for child in each.children))


def _limits(found: Mapping[UUID, Standing], within: Mapping[str, object], *, now: datetime) -> None:
    rows = Quota.objects.filter(Q(until=None) | Q(until__gt=now), **within)
    limits: dict[UUID, dict[str, int]] = {}
    inherits: dict[UUID, set[str]] = {}
    for tenant, dimension, amount, inherit in rows.values_list("tenant_id", "dimension", "amount", "inherit"):
        if inherit:
            inherits.setdefault(tenant, set()).add(dimension)
        else:
            own = limits.setdefault(tenant, {})
            own[dimension] = own.get(dimension, 0) + int(amount)
    for key, each in found.items():
        each.limits = limits.get(key, {})
        each.inherits = frozenset(inherits.get(key, ()))


def _use(found: Mapping[UUID, Standing], only: Tenant | None) -> None:
    rows = QuotaCharge.objects.all()
    if only is not None:
        rows = rows.filter(tenant__path__contains=[only.pk])
    for tenant, dimension, amount in rows.values_list("tenant_id", "dimension").annotate(total=Sum("amount")):
        for step in found[tenant].tenant.path if tenant in found else ():
            if step in found:
                used = found[step].used
                used[dimension] = used.get(dimension, 0) + int(amount)


def _owners(found: Mapping[UUID, Standing], within: Mapping[str, object]) -> None:
    rows = Membership.objects.filter(role=int(Role.OWNER), person__is_active=True, **within)
    owners: dict[UUID, list[UUID]] = {}
    for tenant, person in rows.order_by("created_at", "pk").values_list("tenant_id", "person_id"):
        owners.setdefault(tenant, []).append(person)
    safe = second_factors.having({person for people in owners.values() for person in people})
    for key, each in found.items():
        each.own_owners = tuple(owners.get(key, ()))
        each.owners = frozenset(person for step in each.tenant.path for person in owners.get(step, ()))
        each.without_factor = frozenset(each.own_owners) - safe


def _suspensions(found: Mapping[UUID, Standing], within: Mapping[str, object]) -> None:
    live = {row.tenant_id: row for row in Suspension.objects.filter(ended_at=None, **within)}
    for key, each in found.items():
        each.suspension = live.get(key)
        above = next((step for step in reversed(each.tenant.path[:-1]) if step in live and step in found), None)
        each.suspended_above = found[above].tenant.name if above is not None else ""


# --- risks --------------------------------------------------------------------------------------------------


def _risks(each: Standing, found: Mapping[UUID, Standing]) -> Iterable[Risk]:
    if each.tenant.status == TenantStatus.CLOSED.value:
        return
    if each.suspension is not None:
        yield Risk(RiskKind.SUSPENDED)
    elif each.suspended_above:
        yield Risk(RiskKind.SUSPENDED_ABOVE)
    if not each.owners:
        yield Risk(RiskKind.NOBODY)
    elif len(each.owners) == 1:
        yield Risk(RiskKind.ONE_OWNER, count=1, of=1)
    if each.without_factor:
        yield Risk(RiskKind.NO_FACTOR, count=len(each.without_factor), of=len(each.own_owners))
    if not each.limits and not each.inherits:
        yield Risk(RiskKind.NO_LIMIT)
    for dimension, limit in each.limits.items():
        used = each.used.get(dimension, 0)
        if used > limit:
            yield Risk(RiskKind.OVER, dimension, used, limit)
        elif limit and Decimal(used) / limit >= NEAR:
            yield Risk(RiskKind.NEAR_LIMIT, dimension, used, limit)
        promised = promised_below(each, found, dimension)
        if promised > limit:
            yield Risk(RiskKind.OVER_COMMITTED, dimension, promised, limit)


def promised_below(each: Standing, found: Mapping[UUID, Standing], dimension: str) -> int:
    """Return the sum of the limits that the tenants right below have of their own; who inherits is promised nothing."""
    below = [found[child] for child in each.children]
    return sum(child.limits.get(dimension, 0) for child in below if child.tenant.status != TenantStatus.CLOSED.value)


@dataclass(frozen=True, slots=True)
class Promise:
    """What root tenants are promised of one GPU product, and what there is, in slots."""

    product: str
    promised: int
    used: int
    capacity: int


def promises(standings: Sequence[Standing]) -> list[Promise]:
    """Return for each GPU product what all roots together may use, what is used, and what hosts have."""
    counted = (
        Host.objects.exclude(state=HostState.REMOVED.value)
        .exclude(gpu_product="")
        .order_by()
        .values_list("gpu_product")
        .annotate(gpus=Sum("gpu_count"))
    )
    capacity = {product: int(gpus or 0) * _slices(product) for product, gpus in counted}
    roots = [each for each in standings if each.depth == 0 and each.tenant.status != TenantStatus.CLOSED.value]
    found = []
    for product in sorted(capacity):
        dimension = f"gpu.{product}.slices"
        found.append(
            Promise(
                product,
                sum(root.limits.get(dimension, 0) for root in roots),
                sum(root.used.get(dimension, 0) for root in roots),
                capacity[product],
            )
        )
    return found


def _slices(product: str) -> int:
    try:
        return gpu_catalogue.product(product).slices
    except gpu_catalogue.UnknownProduct:
        return 1
