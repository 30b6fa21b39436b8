"""One line on each request of an inbox: fits, over what, stale, impossible. A handful of queries for all together.

An estimate from limits and free room of this moment; the page of one request shows the exact forecast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.db.models import Max, Sum
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.kernel import asks
from tenants import geometry, gpu_catalogue
from tenants.models import GpuDevice, Host, Provider, Request, Tenant
from tenants.specs import AllocationSpec, Where
from tenants.states import RequestKind

FITS: Final = "fits"
OVER: Final = "over"
WAITS: Final = "waits"
STALE: Final = "stale"
IMPOSSIBLE: Final = "impossible"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes of approving, in one line."""

    key: str
    sentence: str

    @property
    def tone(self) -> str:
        """Return the tone of its badge."""
        return {FITS: "ok", OVER: "warn", WAITS: "info", STALE: "warn", IMPOSSIBLE: "bad"}[self.key]

    @property
    def icon(self) -> str:
        """Return its icon."""
        return {FITS: "check", OVER: "gauge", WAITS: "hourglass", STALE: "clock", IMPOSSIBLE: "octagon-x"}[self.key]

    @property
    def word(self) -> str:
        """Return it in one word."""
        return {
            FITS: _("Fits"), OVER: _("Over"), WAITS: _("Would wait"), STALE: _("Stale"), IMPOSSIBLE: _("Impossible"),
        }[self.key]  # fmt: skip


@dataclass(slots=True)
class _Level:
    """One dimension of one tenant of a path."""

    limit: int = 0
    is_limited: bool = False
    inherits: bool = False
    used: int = 0


@dataclass(slots=True)
class _Facts:
    """What all verdicts are made from."""

    positions: dict[tuple[UUID, UUID], dict[str, _Level]] = field(default_factory=dict)
    """(tenant of the request, tenant of its path) → dimension → level."""
    names: dict[UUID, str] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    """Product → slots of all open hosts."""
    rooms: list[tuple[str, Provider, int, int]] = field(default_factory=list)
    """(product, provider, its empty GPUs, those of its host with most)."""

    def empty(self, product: str, where: Where) -> tuple[int, int]:
        """Return the empty GPUs of one provider that may be meant, and of its best host: the largest of each."""
        found = [
            (empty, most)
            for name, provider, empty, most in self.rooms
            if name == product
            and where.site in {"", provider.site}
            and where.provider in {"", provider.name}
            and (where.kind is None or where.kind.value in provider.capabilities.get("boundary_kinds", []))
        ]
        return max((one for one, _most in found), default=0), max((most for _empty, most in found), default=0)

    masks: dict[str, set[int]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Names of tenants that exist."""


def of(rows: Sequence[Request], *, now: datetime) -> dict[UUID, Verdict]:
    """Return request → verdict; tenant and allocation of the rows must be loaded."""
    facts = _facts(rows, now=now)
    return {row.pk: _verdict(row, facts, now=now) for row in rows}


def _verdict(row: Request, facts: _Facts, *, now: datetime) -> Verdict:
    return _stale(row, facts, now=now) or _impossible(row, facts) or _over(row, facts) or _waits(row, facts)


def _stale(row: Request, facts: _Facts, *, now: datetime) -> Verdict | None:
    end = asks.until_of(row.payload)
    if end is not None and end <= now:
        return Verdict(STALE, _("The time it was asked for is over."))
    allocation = row.allocation
    if allocation is not None and (allocation.deletion_requested_at or allocation.released_at):
        return Verdict(STALE, _("What waited for it is gone."))
    if row.kind == RequestKind.TENANT.value and row.payload.get("name") in facts.taken:
        return Verdict(STALE, _("The name %(name)s is taken meanwhile.") % {"name": row.payload["name"]})
    return None


def _impossible(row: Request, facts: _Facts) -> Verdict | None:
    if row.tenant is not None and row.tenant.status in {"closing", "closed"}:
        return Verdict(IMPOSSIBLE, _("%(tenant)s is being closed.") % {"tenant": row.tenant.name})
    for name, count in _wanted(row).items():
        product = _product(name)
        if product is None:
            continue
        slots = facts.slots.get(product, 0)
        if not slots:
            return Verdict(IMPOSSIBLE, _("No open host has a %(product)s.") % {"product": product})
        if name.endswith(".slices") and count > slots:
            text = _("%(asked)s asked, all hosts together have %(slots)s.")
            given = {"asked": asks.amount(name, count), "slots": numbers.number(slots)}
            return Verdict(IMPOSSIBLE, text % given)
    return None


def _over(row: Request, facts: _Facts) -> Verdict | None:
    tenant = row.tenant
    if row.kind != RequestKind.QUOTA.value or tenant is None:
        return None
    above: Mapping[str, Mapping[str, int]] = row.payload.get("ancestors") or {}
    own: Mapping[str, int] = row.payload.get("limits") or {}
    own_limits = facts.positions.get((tenant.pk, tenant.pk), {})
    for key in tenant.path:
        levels = facts.positions.get((tenant.pk, key), {})
        name = facts.names.get(key, _("another tenant"))
        granted = own if key == tenant.pk else above.get(name, {})
        for dimension, level in levels.items():
            if level.inherits or (gpu_catalogue.is_optional(dimension) and not level.is_limited):
                continue
            limit = level.limit + int(granted.get(dimension, 0))
            if row.allocation is not None:
                short = level.used + int(row.allocation.demand.get(dimension, 0)) - limit
            elif key != tenant.pk and dimension in own and dimension in own_limits:
                short = own_limits[dimension].limit + int(own[dimension]) - limit
            else:
                continue
            if short > 0:
                given = {"tenant": name, "what": asks.amount(dimension, short)}
                return Verdict(OVER, _("Over the limit of %(tenant)s: %(what)s missing there.") % given)
    return None


def _waits(row: Request, facts: _Facts) -> Verdict:
    if row.kind != RequestKind.QUOTA.value:
        return Verdict(FITS, _("Nothing stands against it."))
    if row.allocation is None:
        return Verdict(FITS, _("Within every limit above."))
    whole: Counter[str] = Counter()
    spec = AllocationSpec.from_json(row.allocation.spec)
    for unit in spec.units:
        if unit.gpu is None:
            continue
        if not unit.gpu.profile:
            whole[unit.gpu.product] += unit.gpu.count
            empty, most = facts.empty(unit.gpu.product, spec.where)
            if whole[unit.gpu.product] > empty or unit.gpu.count > most:
                text = _("%(n)s whole %(product)s are not free now: it would wait for room.")
                given = {"n": numbers.number(whole[unit.gpu.product]), "product": unit.gpu.product}
                return Verdict(WAITS, text % given)
        elif not geometry.fits_anywhere(unit.gpu.product, unit.gpu.profile, facts.masks.get(unit.gpu.product, set())):
            size = f"{unit.gpu.product} {unit.gpu.profile}".strip()
            return Verdict(WAITS, _("No %(size)s is free now: it would wait for room.") % {"size": size})
    return Verdict(FITS, _("Fits now."))


# --- facts: a constant number of queries ----------------------------------------------------------------


def _facts(rows: Sequence[Request], *, now: datetime) -> _Facts:
    facts = _Facts()
    tenants = {row.tenant.pk: row.tenant for row in rows if row.tenant is not None}
    path = {key for tenant in tenants.values() for key in tenant.path}
    wished = {str(row.payload.get("name")) for row in rows if row.kind == RequestKind.TENANT.value}
    facts.names = dict(Tenant.objects.filter(pk__in=path).values_list("pk", "name"))
    facts.taken = set(Tenant.objects.filter(name__in=wished).values_list("name", flat=True))
    dimensions = sorted({name for row in rows for name in _wanted(row)})
    _read_positions(facts, list(tenants), dimensions, now=now)
    products = sorted({found for name in dimensions if (found := _product(name)) is not None})
    held = Host.objects.filter(gpu_product__in=products, state="open").values_list("gpu_product", "provider_id")
    counted = held.annotate(gpus=Sum("gpu_count"), empty=Sum("empty_gpus"), most=Max("empty_gpus")).order_by()
    providers = Provider.objects.in_bulk()
    for name, key, gpus, empty, most in counted:
        facts.slots[name] = facts.slots.get(name, 0) + int(gpus or 0) * gpu_catalogue.product(name).slices
        facts.rooms.append((name, providers[key], int(empty or 0), int(most or 0)))
    free = GpuDevice.objects.filter(product__in=products, placeable=True).values_list("product", "free").distinct()
    for name, mask in free.order_by():
        facts.masks.setdefault(name, set()).add(mask)
    return facts


def _read_positions(facts: _Facts, tenants: list[UUID], dimensions: list[str], *, now: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT t.id, q.tenant_id, q.dimension, q.amount, q.inherit, q.until, q.used, q.pending "
            "FROM unnest(%s::uuid[]) AS t(id) CROSS JOIN LATERAL quota_position(t.id, %s::text[]) AS q",
            [tenants, dimensions],
        )
        for asker, tenant, dimension, amount, inherit, until, used, pending in cursor.fetchall():
            level = facts.positions.setdefault((asker, tenant), {}).setdefault(dimension, _Level())
            level.used = int((used or 0) + (pending or 0))
            if amount is None:
                continue
            level.inherits = level.inherits or bool(inherit)
            if not inherit and (until is None or until > now):
                level.limit += int(amount)
                level.is_limited = True


def _wanted(row: Request) -> dict[str, Any]:
    if row.allocation is not None:
        return {name: int(count) for name, count in row.allocation.demand.items()}
    return asks.all_limits(row.payload)


def _product(dimension: str) -> str | None:
    """Return the GPU product of a dimension, None for one that is no GPU."""
    try:
        parsed = gpu_catalogue.parse_dimension(dimension)
    except gpu_catalogue.BadDimension:
        return None
    return parsed.product if isinstance(parsed, gpu_catalogue.GpuDimension) else None
