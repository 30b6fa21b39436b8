"""Quotas: what a tenant may hold, checked against what its whole tree holds; limits set and removed.

The arithmetic is `tenants.quota`'s. Limits and use of a path come from the SQL function `quota_position`,
which sums over tenants that the caller may not see; who holds what is named only as far as he may.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import connection

from tenants import desired, gateway_config, quota
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, QuotaExceeded
from tenants.gpu_catalogue import TOKEN_DIMENSIONS, BadDimension, is_optional, parse_dimension
from tenants.models import Boundary, Quota, Request, Tenant
from tenants.operations.guards import allow, expect_version, lock_path, locked
from tenants.states import PlatformRole
from tenants.transactions import operation

MOST: Final = 10**12
"""Largest limit: exact in JSON and far from the edge of a bigint."""
HOLDERS_SHOWN: Final = 10


# --- reading ----------------------------------------------------------------------------------------


def path_limits(tenant: Tenant, dimensions: Sequence[str], *, endings: bool = False) -> tuple[quota.TenantLimits, ...]:
    """Return limits and use of a tenant's path, root first; `tenant` in them is the id as text.

    `endings` adds when use is promised to end: it counts at limits that end, and in answers about a shortage.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tenant_id, dimension, amount, inherit, until, used, pending FROM quota_position(%s, %s) "
            "ORDER BY depth, dimension, until NULLS FIRST",
            [tenant.pk, list(dimensions)],
        )
        rows = cursor.fetchall()
        ends = []
        if endings:
            cursor.execute(
                "SELECT tenant_id, dimension, at, amount FROM quota_endings(%s, %s) ORDER BY at",
                [tenant.pk, list(dimensions)],
            )
            ends = cursor.fetchall()
    levels: dict[UUID, list[tuple[Any, ...]]] = {}
    for row in rows:
        levels.setdefault(row[0], []).append(row)
    return tuple(
        quota.TenantLimits(
            tenant=str(tenant_id),
            limits=tuple(
                quota.Limit(str(tenant_id), row[1], row[2], row[4])
                for row in level
                if row[2] is not None and not row[3]
            ),
            inherits=frozenset(row[1] for row in level if row[3]),
            usage=quota.Usage(
                held={row[1]: row[5] for row in level if row[5]},
                pending={row[1]: row[6] for row in level if row[6]},
                endings=tuple(quota.Ending(e[1], e[2], e[3]) for e in ends if e[0] == tenant_id),
            ),
        )
        for tenant_id, level in levels.items()
    )


def dimensions_of(tenant: Tenant) -> list[str]:
    """Return every dimension that a limit or a use on the tenant's path speaks of, sorted."""
    limited = Quota.objects.filter(tenant_id__in=tenant.path).values_list("dimension", flat=True)
    return sorted({*limited, *_charged(tenant)})


def _charged(tenant: Tenant) -> list[str]:
    """Return every dimension charged below a tenant, from one step in the index to the next, not from row to row."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT found.dimension FROM tenants_tenant t CROSS JOIN LATERAL ("
            "  WITH RECURSIVE step(dimension) AS ("
            "    SELECT min(c.dimension) FROM tenants_quotacharge c WHERE c.tenant_id = t.id"
            "    UNION ALL"
            "    SELECT (SELECT min(c.dimension) FROM tenants_quotacharge c"
            "            WHERE c.tenant_id = t.id AND c.dimension > step.dimension)"
            "    FROM step WHERE step.dimension IS NOT NULL"
            "  ) SELECT step.dimension FROM step WHERE step.dimension IS NOT NULL"
            ") AS found WHERE t.path @> ARRAY[%s::uuid]",
            [tenant.pk],
        )
        return [str(dimension) for (dimension,) in cursor.fetchall()]


def position(tenant: Tenant, dimensions: Sequence[str] | None = None) -> tuple[quota.TenantLimits, ...]:
    """Return limits and use of a tenant's path, root first, by tenant name; all dimensions by default.

    Without the promised ends of use: only a check asks for them. Raises `InvalidSpec` for a dimension that is none.
    """
    for dimension in dimensions or ():
        parsed(dimension)
    names = _names(tenant)
    levels = path_limits(tenant, dimensions if dimensions is not None else dimensions_of(tenant))
    return tuple(replace(level, tenant=names.get(level.tenant, "another tenant")) for level in levels)


def parsed(dimension: str, field: str = "dimension") -> str:
    """Return the dimension if it exists. Raises `InvalidSpec`."""
    try:
        parse_dimension(dimension)
    except BadDimension as error:
        raise InvalidSpec(str(error), field=field, code="unknown-dimension") from error
    return dimension


def _names(tenant: Tenant) -> dict[str, str]:
    return {str(pk): name for pk, name in Tenant.objects.filter(pk__in=tenant.path).values_list("pk", "name")}


# --- checking ---------------------------------------------------------------------------------------


def check_demand(
    tenant: Tenant,
    demand: Mapping[str, int],
    *,
    during: quota.Span,
    now: datetime,
    actor: Actor,
    renewing: Mapping[str, int] | None = None,
) -> quota.Verdict:
    """Check a demand against every limit of the tenant and its ancestors, over its whole time.

    The caller holds the locks of the tenant path. `renewing` is counted already and must fit again. Raises
    `QuotaExceeded`; its data names limit, use, holders as far as the caller may see, missing amount, earliest
    time, and a ready-made request for exactly the missing amounts.
    """
    del actor  # row-level security of the open transaction decides what he may see
    again = {dimension: amount for dimension, amount in (renewing or {}).items() if amount}
    asked: dict[str, int] = {dimension: amount for dimension, amount in demand.items() if amount}
    for dimension, amount in again.items():
        asked[dimension] = asked.get(dimension, 0) + amount
    if not asked:
        return quota.Verdict(during=during, lines=(), shortages=(), earliest=None)
    path = [_without(level, again) for level in path_limits(tenant, sorted(asked))]
    verdict = quota.check(path, demand=asked, during=during)
    if verdict.fits:
        return verdict
    path = [_without(level, again) for level in path_limits(tenant, sorted(asked), endings=True)]
    verdict = quota.check(path, demand=asked, during=during)
    if verdict.fits:  # a limit that ends meanwhile, and the use that was granted with it ends, too
        return verdict
    raise _exceeded(tenant, verdict, now=now)


def _without(level: quota.TenantLimits, counted: Mapping[str, int]) -> quota.TenantLimits:
    """Take out of a level's use what is asked again."""
    if not counted:
        return level
    usage = level.usage
    held = {d: max(0, amount - counted.get(d, 0)) for d, amount in usage.held.items()}
    pending = {
        d: max(0, amount - max(0, counted.get(d, 0) - usage.held.get(d, 0))) for d, amount in usage.pending.items()
    }
    # Whose use ends when is not told apart here: the earliest ends are taken out, so that never too much seems to end.
    left, endings = dict(counted), []
    for ending in sorted(usage.endings, key=lambda each: each.at):
        taken = min(left.get(ending.dimension, 0), int(ending.amount))
        left[ending.dimension] = left.get(ending.dimension, 0) - taken
        if ending.amount > taken:
            endings.append(replace(ending, amount=ending.amount - taken))
    return replace(level, usage=replace(usage, held=held, pending=pending, endings=tuple(endings)))


def _exceeded(tenant: Tenant, verdict: quota.Verdict, *, now: datetime) -> QuotaExceeded:
    names = _names(tenant)
    ids = {str(pk): pk for pk in tenant.path}
    shortages = [
        {
            "tenant": names.get(short.tenant, "another tenant"),
            "dimension": short.dimension,
            "limit": short.limit,
            "used": short.used,
            "asked": short.demanded,
            "missing": short.missing,
            "since": short.since.isoformat(),
            "earliest": short.earliest.isoformat() if short.earliest else None,
            "held_by": holders(ids[short.tenant], short.dimension, int(short.used)),
        }
        for short in verdict.shortages
    ]
    first = verdict.shortages[0]
    until = verdict.offered_until
    if until is not None:
        detail = (
            f"The limit of {first.dimension} of {names.get(first.tenant, 'another tenant')} ends on "
            f"{until.isoformat()}: ask for a term until then, or for a longer limit."
        )
    else:
        detail = replace(first, tenant=names.get(first.tenant, "another tenant")).sentence() + "."
        more = len({(s.tenant, s.dimension) for s in verdict.shortages}) - 1
        detail += f" {more} more limit{'s are' if more > 1 else ' is'} too small." if more else ""
    return QuotaExceeded(
        detail,
        shortages=shortages,
        earliest=verdict.earliest.isoformat() if verdict.earliest else None,
        offered_until=until.isoformat() if until else None,
        request=ready_made(tenant, verdict, names),
        at=now.isoformat(),
    )


def ready_made(tenant: Tenant, verdict: quota.Verdict, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the request for exactly what is missing: kind, tenant, payload as `requests.submit` takes it."""
    limits: dict[str, int] = {}
    above: dict[str, dict[str, int]] = {}
    until: datetime | None = None
    for ask in verdict.request():
        until = ask.until
        if ask.tenant == str(tenant.pk):
            limits[ask.dimension] = int(ask.amount)
        else:
            above.setdefault(names.get(ask.tenant, ask.tenant), {})[ask.dimension] = int(ask.amount)
    return {
        "kind": "quota",
        "tenant": tenant.name,
        "payload": {
            "mode": "add",
            "limits": limits,
            "ancestors": above,
            "until": until.isoformat() if until else None,
        },
    }


def holders(tenant_id: UUID, dimension: str, used: int) -> list[dict[str, Any]]:
    """Return who holds a dimension below a tenant: what the actor may see by name, the rest as another tenant."""
    most, seen = largest(tenant_id, dimension, most=HOLDERS_SHOWN)
    shown: list[dict[str, Any]] = [
        {"tenant": each.tenant, "name": each.name, "kind": each.kind or "boundary", "amount": each.amount}
        for each in most
    ]
    rest = used - seen
    more = seen - sum(each.amount for each in most)
    if more:
        shown.append({"tenant": tenant_id, "name": "", "kind": "others", "amount": more})
    if rest > 0:
        shown.append({"tenant": "another tenant", "name": "", "kind": "", "amount": rest})
    return shown


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds so much of a dimension: an allocation, or all isolations of a tenant together."""

    tenant: str
    name: str
    """Of the allocation; `""` for isolations."""
    kind: str
    """Of the product, `""` for isolations."""
    amount: int


_LARGEST: Final = """
WITH charge AS (
  SELECT c.id, c.tenant_id, c.allocation_id, c.amount FROM tenants_tenant s
  JOIN tenants_quotacharge c ON c.tenant_id = s.id AND c.dimension = %(dimension)s
  WHERE s.path @> ARRAY[%(tenant)s::uuid]
),
most AS (
  (SELECT tenant_id, allocation_id, amount FROM charge WHERE allocation_id IS NOT NULL
   ORDER BY amount DESC, id LIMIT %(most)s)
  UNION ALL
  SELECT tenant_id, NULL, sum(amount) FROM charge WHERE allocation_id IS NULL GROUP BY 1
)
SELECT t.name, a.name, a.product_kind, m.amount, (SELECT sum(amount) FROM charge)
FROM most m JOIN tenants_tenant t ON t.id = m.tenant_id LEFT JOIN tenants_allocation a ON a.id = m.allocation_id
ORDER BY m.amount DESC, t.name, a.name NULLS LAST LIMIT %(most)s
"""
"""An allocation has one charge of a dimension, so the largest are found before anything is looked up beside them."""


def largest(tenant_id: UUID, dimension: str, *, most: int) -> tuple[list[Holder], int]:
    """Return who holds most of a dimension below a tenant, and what all hold: as far as the actor may see."""
    with connection.cursor() as cursor:
        cursor.execute(_LARGEST, {"tenant": tenant_id, "dimension": dimension, "most": most})
        rows = cursor.fetchall()
    found = [Holder(tenant, name or "", kind or "", int(amount)) for tenant, name, kind, amount, _all in rows]
    return found, int(rows[0][4]) if rows else 0


# --- changing ---------------------------------------------------------------------------------------


@operation
def set_limit(
    *,
    tenant: Tenant,
    dimension: str,
    amount: int = 0,
    inherit: bool = False,
    until: datetime | None = None,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Quota:
    """Set the limit of a tenant in a dimension: the lasting one, or one more that ends at `until`.

    Nothing that is held is taken away by a smaller limit. An owner of the parent stays within the parent's own
    limit. Raises `InvalidSpec`, `Forbidden`, `PreconditionFailed`.
    """
    allow(actor, tenant, "quotas.set")
    lock_path(tenant.pk)
    return _put(tenant, dimension, amount, inherit=inherit, until=until, actor=actor, now=now, version=version)


@operation
def set_limits(
    *,
    tenant: Tenant,
    limits: Mapping[str, int | None],
    actor: Actor,
    now: datetime,
    inherit: Collection[str] = (),
    versions: Mapping[str, int] | None = None,
) -> list[str]:
    """Set several lasting limits at once, all or none; None removes one, `inherit` names those of the tenant above.

    `versions` are those of the limits as they were shown (0: there was none). Returns the dimensions that changed.
    Raises as `set_limit`, naming the dimension in the field: `amount.<dimension>`.
    """
    allow(actor, tenant, "quotas.set")
    lock_path(tenant.pk)
    changed = []
    rows = {row.dimension: row for row in Quota.objects.filter(tenant=tenant, until=None)}
    for dimension in sorted({*limits, *inherit}):
        row, amount = rows.get(dimension), limits.get(dimension)
        version = versions.get(dimension) if versions is not None else None
        if version is not None:
            expect_version(row or Quota(version=0), version)
        inherits = dimension in inherit
        if amount is None and not inherits:
            if row is not None:
                _take_away(row, actor=actor, now=now)
                changed.append(dimension)
            continue
        if row is not None and row.inherit == inherits and (inherits or row.amount == amount):
            continue
        try:
            _put(tenant, dimension, amount or 0, inherit=inherits, until=None, actor=actor, now=now)
        except InvalidSpec as error:
            field = f"amount.{dimension}"
            raise InvalidSpec(error.detail, field=field, code=error.specific_code, **error.data) from error
        changed.append(dimension)
    return changed


def _put(
    tenant: Tenant,
    dimension: str,
    amount: int,
    *,
    inherit: bool,
    until: datetime | None,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Quota:
    """Set one limit; the caller may, and holds the tenant path."""
    parsed(dimension)
    _check_amount(amount, "amount")
    if until is not None and until <= now:
        msg = "This time is over already."
        raise InvalidSpec(msg, field="until")
    if inherit and tenant.parent_id is None:
        msg = "A tenant without a parent has nothing to inherit from."
        raise InvalidSpec(msg, field="inherit")
    if inherit and until is not None:
        msg = "Inheriting has no end; remove it instead."
        raise InvalidSpec(msg, field="until")
    if not inherit and not actor.has(PlatformRole.OPERATOR):
        _within_parent(tenant, dimension, amount, now=now)
    row = Quota.objects.select_for_update(no_key=True).filter(tenant=tenant, dimension=dimension, until=until).first()
    if row is None:
        if version is not None:
            expect_version(Quota(version=0), version)
        row = Quota.objects.create(
            tenant=tenant, dimension=dimension, amount=amount, inherit=inherit, until=until, created_at=now
        )
        desired.created(
            row, "quota.set", actor=actor, at=now, dimension=dimension, amount=amount, inherit=inherit, until=until
        )
        _tell_gateways(tenant, dimension, now=now)
        return row
    expect_version(row, version)
    before = row.amount
    row.amount, row.inherit = amount, inherit
    row.save(update_fields=["amount", "inherit"])
    desired.changed(
        row, "quota.set", actor=actor, at=now, dimension=dimension, amount=amount, before=before, inherit=inherit,
        until=until,
    )  # fmt: skip
    _tell_gateways(tenant, dimension, now=now)
    return row


@operation
def remove(*, row: Quota, actor: Actor, now: datetime, version: int | None = None) -> None:
    """Remove one limit: the dimension is zero again unless another limit of it stands. Nothing held is taken away."""
    allow(actor, row.tenant, "quotas.remove")
    lock_path(row.tenant_id)
    _take_away(locked(row, version), actor=actor, now=now)


def _take_away(row: Quota, *, actor: Actor, now: datetime) -> None:
    desired.happened(
        row, "quota.removed", actor=actor, at=now, dimension=row.dimension, amount=row.amount, until=row.until
    )
    row.delete()
    _tell_gateways(row.tenant, row.dimension, now=now)


def _tell_gateways(tenant: Tenant, dimension: str, *, now: datetime) -> None:
    """Have gateways below look again where they keep the limit."""
    if dimension in TOKEN_DIMENSIONS:
        boundaries = Boundary.objects.filter(tenant__path__contains=[tenant.pk], released_at__isnull=True)
        gateway_config.bump(list(boundaries.values_list("pk", flat=True)), now=now)


def raise_limit(
    tenant: Tenant,
    dimension: str,
    amount: int,
    *,
    mode: str,
    until: datetime | None,
    request: Request | None,
    actor: Actor,
    now: datetime,
) -> Quota:
    """Grant what was asked: add `amount` to the lasting limit, or set it; with `until`, one more limit that ends then.

    Plain; the caller holds the tenant path. Limits of one tenant add up while they last. Raises `InvalidSpec`
    where the tenant inherits: its own limit would replace the larger one above.
    """
    rows = list(Quota.objects.select_for_update(no_key=True).filter(tenant=tenant, dimension=dimension))
    if any(row.inherit for row in rows):
        msg = f"{tenant.name} inherits {dimension}: raise the limit above it."
        raise InvalidSpec(msg, field="limits", code="inherits")
    row = next((r for r in rows if r.until == until), None)
    total = amount if mode == "set" or row is None else row.amount + amount
    if mode == "set" and until is not None:
        msg = "A limit that ends is added to the lasting one; it cannot replace it."
        raise InvalidSpec(msg, field="mode")
    _check_amount(total, "limits")
    if row is None:
        row = Quota.objects.create(
            tenant=tenant, dimension=dimension, amount=total, until=until, granted_by=request, created_at=now
        )
        kind = "quota.granted"
        desired.created(row, kind, actor=actor, at=now, dimension=dimension, amount=total, before=0, until=until)
        _tell_gateways(tenant, dimension, now=now)
        return row
    before, row.amount = row.amount, total
    row.granted_by = request
    row.save(update_fields=["amount", "granted_by"])
    desired.changed(
        row, "quota.granted", actor=actor, at=now, dimension=dimension, amount=total, before=before, until=until
    )
    _tell_gateways(tenant, dimension, now=now)
    return row


def _check_amount(amount: int, field: str) -> None:
    if isinstance(amount, bool) or not 0 <= amount <= MOST:
        msg = f"A limit is a whole number from 0 to {MOST}."
        raise InvalidSpec(msg, field=field, code="out-of-range")


def _within_parent(tenant: Tenant, dimension: str, amount: int, *, now: datetime) -> None:
    """An owner of the parent may give a child what the parent itself has, no more."""
    levels = path_limits(tenant, [dimension])[:-1]
    if levels and is_optional(dimension):
        bound = [quota.limit_at(level, dimension, now) for level in levels if level.limits]
        if bound and amount > min(bound):
            msg = f"The limit of {dimension} above is {min(bound)}; a child cannot get more."
            raise InvalidSpec(msg, field="amount", code="beyond-parent", limit=min(bound))
        return
    own = next(
        (level for level in reversed(levels) if dimension not in level.inherits),
        None,
    )
    if own is None:
        msg = "Only a platform operator sets the limits of a tenant without a parent."
        raise Conflict(msg, code="no-parent")
    most = quota.limit_at(own, dimension, now)
    if amount > most:
        msg = f"The parent's own limit of {dimension} is {most}; a child cannot get more."
        raise InvalidSpec(msg, field="amount", code="beyond-parent", limit=most)
