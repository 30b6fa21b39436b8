"""Allocations: ask for capacity, take it up when allowed, renew it, give it back.

`submit` is the one way in for bare allocations and for the products that own one; it runs in the
caller's operation. Lock order: tenant path (root first), host, devices, object, outbox, chain head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import connection
from django.db.models import F

from tenants import access, desired, ledger, no_room, usage
from tenants.actor import Actor
from tenants.claims import Claim, claim_many
from tenants.errors import Conflict, InvalidSpec, PreconditionFailed, QuotaExceeded
from tenants.feasibility import LockedPath, locked_path, options, validate
from tenants.gpu_catalogue import slices_of
from tenants.models import Allocation, Boundary, QuotaCharge, Tenant, Unit
from tenants.operations import quotas
from tenants.operations.placements import DEFAULT_KINDS, TAKEN_FIELDS, charge, kinds_of, place, product_model, wait
from tenants.policies import ROUTES
from tenants.quota import Span
from tenants.specs import AllocationSpec, BareAsk
from tenants.states import (
    ConditionType,
    OnShortage,
    Phase,
    ProductKind,
    Reason,
    ServiceClass,
    phase_of,
    set_condition,
)
from tenants.transactions import operation

BATCH_LIMIT: Final = 100
PRODUCT_DIMENSION: Final[Mapping[ProductKind, str]] = {
    ProductKind.ENDPOINT: "endpoints",
    ProductKind.MACHINE: "machines",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One allocation to make, whoever owns it."""

    name: str
    spec: AllocationSpec
    kind: ProductKind
    product_id: UUID | None = None
    labels: Mapping[str, str] | None = None
    description: str = ""
    managed_by: str = "api"
    is_second: bool = False
    """A second place of a product that counts already."""


def demand_of(ask: Ask) -> dict[str, int]:
    """Return dimension → amount of an ask, its product's own count included."""
    demand = ask.spec.demand(slices_of())
    dimension = None if ask.is_second else PRODUCT_DIMENSION.get(ask.kind)
    return {**demand, dimension: 1} if dimension else demand


@operation
def create(*, tenant: Tenant, ask: BareAsk, actor: Actor, now: datetime, managed_by: str = "api") -> Allocation:
    """Ask for capacity of a namespace boundary without a product.

    Raises `InvalidSpec`, `QuotaExceeded` (with `on_shortage` fail), `Conflict` for a live name.
    """
    access.check(actor, tenant, ROUTES["allocations.create"])
    plain = Ask(ask.name, ask.allocation, ProductKind.BARE, None, ask.labels, ask.description, managed_by)
    return submit(tenant=tenant, asks=[plain], actor=actor, now=now)[0]


@operation
def create_batch(
    *, tenant: Tenant, asks: Sequence[BareAsk], actor: Actor, now: datetime, managed_by: str = "api"
) -> list[Allocation]:
    """Ask for up to `BATCH_LIMIT` allocations at once: all pass the quota together, or nothing is changed."""
    access.check(actor, tenant, ROUTES["allocations.create_batch"])
    if not 1 <= len(asks) <= BATCH_LIMIT:
        msg = f"A batch holds 1 to {BATCH_LIMIT} allocations."
        raise InvalidSpec(msg, field="allocations")
    return submit(
        tenant=tenant,
        asks=[Ask(a.name, a.allocation, ProductKind.BARE, None, a.labels, a.description, managed_by) for a in asks],
        actor=actor,
        now=now,
    )


def submit(*, tenant: Tenant, asks: Sequence[Ask], actor: Actor, now: datetime) -> list[Allocation]:
    """Store asks and take what fits, in the caller's transaction. All asks pass the quota together or none.

    Raises `InvalidSpec`, `QuotaExceeded`, `Conflict`.
    """
    path = locked_path(tenant)
    for number, ask in enumerate(asks):
        prefix = f"allocations[{number}]." if len(asks) > 1 else ""
        validate(ask.spec, path=path, kinds=DEFAULT_KINDS[ask.kind], now=now, field_prefix=prefix)
    _refuse_live_names(tenant, asks)
    shortage: QuotaExceeded | None = None
    total: dict[str, int] = {}
    for ask in asks:
        for dimension, amount in demand_of(ask).items():
            total[dimension] = total.get(dimension, 0) + amount
    longest = max((ask.spec.term.ends_at(now) for ask in asks), default=None)
    try:
        quotas.check_demand(tenant, total, during=Span(now, longest), now=now, actor=actor)
    except QuotaExceeded as error:
        if len(asks) != 1 or asks[0].spec.on_shortage is OnShortage.FAIL:
            raise
        shortage = error
    rows, units = _insert(tenant, asks, actor=actor, now=now)
    if shortage is None:
        _take(tenant, path, rows, units, asks, actor=actor, now=now)
        charge(rows, now=now)
    else:
        _hold_back(rows[0], asks[0], shortage, actor=actor, now=now)
    desired.created_many(
        rows,
        "allocation.requested",
        actor=actor,
        at=now,
        data=[{"demand": row.demand, "phase": str(row.phase), "name": row.name} for row in rows],
    )
    return rows


def _refuse_live_names(tenant: Tenant, asks: Sequence[Ask]) -> None:
    names = [ask.name for ask in asks]
    if len(set(names)) != len(names):
        msg = "Two allocations of one batch have the same name."
        raise InvalidSpec(msg, field="allocations")
    taken = (
        Allocation.objects.filter(
            tenant=tenant, product_kind=asks[0].kind.value, name__in=names, released_at__isnull=True
        )
        .values_list("name", flat=True)
        .first()
    )
    if taken is not None:
        msg = f"{taken} exists already in this tenant; choose another name or change that one."
        raise Conflict(msg, code="name-taken", name=taken)


def _insert(
    tenant: Tenant, asks: Sequence[Ask], *, actor: Actor, now: datetime
) -> tuple[list[Allocation], dict[UUID, list[Unit]]]:
    """Insert allocations and their units; returns the rows and allocation id → units, by index."""
    rows = [
        Allocation(
            id=uuid4(),
            tenant=tenant,
            name=ask.name,
            product_kind=ask.kind.value,
            product_id=ask.product_id,
            spec=ask.spec.as_json(),
            demand=demand_of(ask),
            priority=ask.spec.term.priority.value,
            service_class=ask.spec.term.service_class.value,
            on_shortage=ask.spec.on_shortage.value,
            duration_s=ask.spec.term.duration_s,
            not_after=ask.spec.term.not_after,
            requester_id=actor.person_id,
            labels=dict(ask.labels or {}),
            description=ask.description,
            managed_by=ask.managed_by,
            finalizers=["holds"],
            phase=Phase.WAITING.value,
            due_at=now,
            created_at=now,
        )
        for ask in asks
    ]
    Allocation.objects.bulk_create(rows)
    units = [
        Unit(
            id=uuid4(),
            tenant=tenant,
            allocation=row,
            index=index,
            role="machine" if ask.kind is ProductKind.MACHINE else "replica",
            product=unit.gpu.product if unit.gpu else "",
            profile=unit.gpu.profile if unit.gpu else "",
            gpu_count=(unit.gpu.count if not unit.gpu.profile else 0) if unit.gpu else 0,
            vcpu=unit.vcpu,
            memory_gib=unit.memory_gib,
            spread_group=unit.spread_group,
        )
        for row, ask in zip(rows, asks, strict=True)
        for index, unit in enumerate(ask.spec.units)
    ]
    Unit.objects.bulk_create(units)
    by_row: dict[UUID, list[Unit]] = {row.pk: [] for row in rows}
    for unit in units:
        by_row[unit.allocation_id].append(unit)
    return rows, by_row


def _take(  # rows, units and asks belong together
    tenant: Tenant,
    path: LockedPath,
    rows: Sequence[Allocation],
    units: Mapping[UUID, Sequence[Unit]],
    asks: Sequence[Ask],
    *,
    actor: Actor,
    now: datetime,
) -> None:
    """Place what fits now; the rest waits in the queue with its reason."""
    ways: dict[tuple[Any, ...], tuple[ledger.Option, ...]] = {}
    for ask in asks:
        if (ask.spec.where, ask.kind) not in ways:
            kinds = kinds_of(ask.kind, ask.spec)
            ways[ask.spec.where, ask.kind] = options(tenant, ask.spec, kinds=kinds, policy=path.policy)
    claims = [
        Claim(row, units[row.pk], ask.spec, ways[ask.spec.where, ask.kind])
        for row, ask in zip(rows, asks, strict=True)
        if not _ahead_in_queue(row, ask)
    ]
    outcome = claim_many(claims, now=now)
    for row, ask in zip(rows, asks, strict=True):
        answer = outcome.get(row.pk)
        if isinstance(answer, ledger.Placed):
            place(row, ask.spec, answer, actor=actor, now=now)
        else:
            reason = answer or no_room.NoRoom("Others wait for the same room and were first.", {"queue": True})
            wait(row, reason, now=now)
    if len(rows) == 1:
        rows[0].save(update_fields=TAKEN_FIELDS)
    else:
        Allocation.objects.bulk_update(rows, TAKEN_FIELDS)


def _ahead_in_queue(row: Allocation, ask: Ask) -> bool:
    """First in, first out by fit: whoever waits for the same kind of room goes first; the queue pass sees to it."""
    gpus = [unit.gpu for unit in ask.spec.units if unit.gpu is not None]
    if not gpus:
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_queue_ahead(%s, %s, %s, %s)",
            [gpus[0].product, gpus[0].profile, 0 if gpus[0].profile else gpus[0].count, [row.pk]],
        )
        answer = cursor.fetchone()
    return bool(answer and answer[0])


def _hold_back(row: Allocation, ask: Ask, shortage: QuotaExceeded, *, actor: Actor, now: datetime) -> None:
    """Over quota: wait for it, or ask people for exactly the missing amount, in this transaction."""
    if ask.spec.on_shortage is OnShortage.REQUEST:
        row.conditions = set_condition(
            row.conditions, ConditionType.APPROVED, "False", Reason.AWAITING_DECISION, shortage.detail, now=now,
            generation=row.generation,
        )  # fmt: skip
        row.due_at = None
    else:
        row.conditions = set_condition(
            row.conditions, ConditionType.PLACED, "False", Reason.OVER_QUOTA, shortage.detail, now=now,
            generation=row.generation,
        )  # fmt: skip
        row.queued_at = now
        row.due_at = None
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.save(update_fields=["conditions", "phase", "queued_at", "due_at"])
    if ask.spec.on_shortage is OnShortage.REQUEST:
        from tenants.operations import requests

        requests.submit_for_shortage(row, shortage, actor=actor, now=now)
        row.refresh_from_db()  # a rule may have approved it and taken it up at once; its product is made from this row


def expect_version(row: Any, version: int | None) -> None:
    """Raise `PreconditionFailed` when the caller read another version."""
    if version is not None and row.version != version:
        raise PreconditionFailed(expected=version, present=row.version)


@operation
def release(*, allocation: Allocation, actor: Actor, now: datetime, version: int | None = None) -> Allocation:
    """Ask for a bare allocation to be given back. Its holds go when its use is seen to be gone.

    Raises `Conflict` for an allocation that a product owns: delete the product.
    """
    row = Allocation.objects.select_for_update(no_key=True).select_related("tenant").get(pk=allocation.pk)
    access.check(actor, row.tenant, ROUTES["allocations.delete"])
    expect_version(row, version)
    if row.product_kind != ProductKind.BARE.value:
        msg = f"This belongs to the {row.product_kind} {row.name}; delete that."
        raise Conflict(msg, code="owned-by-product", kind=row.product_kind)
    request_deletion(row, actor=actor, now=now, kind="allocation.deletion-requested")
    return row


def request_deletion(row: Any, *, actor: Actor, now: datetime, kind: str) -> bool:
    """Mark a reconciled row for deletion; False when it was marked before. An allocation stops being billed."""
    if row.deletion_requested_at is not None:
        return False
    row.deletion_requested_at = now
    row.phase = Phase.DELETING.value
    fields = ["deletion_requested_at", "phase"]
    if isinstance(row, Allocation):
        row.queued_at = None
        fields.append("queued_at")
        usage.deletion_asked(row, now=now)
    row.save(update_fields=fields)
    desired.changed(row, kind, actor=actor, at=now)
    return True


@operation
def renew(
    *,
    allocation: Allocation,
    duration_s: int,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Allocation:
    """Give an allocation a new term of `duration_s` from now; also the undo within grace.

    Raises `InvalidSpec` (policy, limits that end sooner), `Conflict` once it is being deleted.
    """
    tenant = allocation.tenant
    path = locked_path(tenant)
    row = Allocation.objects.select_for_update(no_key=True).get(pk=allocation.pk)
    access.check(actor, tenant, ROUTES["allocations.renew"])
    expect_version(row, version)
    if row.deletion_requested_at is not None:
        msg = "It is being given back already; ask for a new one."
        raise Conflict(msg, code="deleting")
    longest = path.policy.longest_s
    if longest is not None and duration_s > longest:
        msg = f"The longest term here is {longest} s."
        raise InvalidSpec(msg, field="duration_s", code="policy-forbids", longest_s=longest)
    end = now + timedelta(seconds=duration_s)
    if row.not_after is not None:
        end = min(end, row.not_after)
    if row.expires_at is not None and end < row.expires_at:
        msg = "A renewal may not shorten the term; delete it instead."
        raise InvalidSpec(msg, field="duration_s")
    _refuse_ended_limits(tenant, row, end, actor=actor, now=now)
    row.duration_s = duration_s
    row.warned_days = None
    row.grace_until = None
    if row.ready_at is not None:
        row.expires_at = end
    row.conditions = [c for c in row.conditions if c["type"] != ConditionType.EXPIRING]
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.save(update_fields=["duration_s", "warned_days", "grace_until", "expires_at", "conditions", "phase"])
    desired.changed(row, "allocation.renewed", actor=actor, at=now, until=end)
    model = product_model(ProductKind(row.product_kind))
    if model is not None:
        for product in model.objects.filter(allocation=row):
            product.conditions = [c for c in product.conditions if c["type"] != ConditionType.EXPIRING]
            product.phase = phase_of(
                product.conditions, deleting=product.deletion_requested_at is not None, released=False
            ).value
            product.save(update_fields=["conditions", "phase"])
            desired.nudge_now(product, at=now)
    return row


def _refuse_ended_limits(tenant: Tenant, row: Allocation, end: datetime, *, actor: Actor, now: datetime) -> None:
    """What it already counts must still be within every limit at its new end: limits may have dates."""
    quotas.check_demand(
        tenant, dict.fromkeys(row.demand, 0), during=Span(now, end), now=now, actor=actor, renewing=row.demand
    )


@operation
def set_service_class(
    *, allocation: Allocation, service_class: ServiceClass, actor: Actor, now: datetime, version: int | None = None
) -> Allocation:
    """Change what happens at the end of the term."""
    row = Allocation.objects.select_for_update(no_key=True).select_related("tenant").get(pk=allocation.pk)
    access.check(actor, row.tenant, ROUTES["allocations.renew"])
    expect_version(row, version)
    row.service_class = service_class.value
    row.save(update_fields=["service_class"])
    desired.changed(row, "allocation.class-changed", actor=actor, at=now, service_class=service_class.value)
    return row


def finish(row: Allocation, *, now: datetime) -> None:
    """Release every unit, the charges and the row, once its use is seen to be gone. Plain; called by its pass."""
    for unit in Unit.objects.filter(allocation=row, released_at__isnull=True).order_by("index"):
        ledger.release(unit, now=now)
        Unit.objects.filter(pk=unit.pk).update(released_at=now)
    QuotaCharge.objects.filter(allocation=row).delete()
    Allocation.objects.filter(pk=row.pk).update(
        released_at=now,
        finalizers=[],
        phase=Phase.RELEASED.value,
        due_at=None,
        queued_at=None,
        version=F("version") + 1,
    )
    if row.boundary_id is not None:
        Boundary.objects.filter(pk=row.boundary_id, released_at__isnull=True).update(
            due_at=now, generation=F("generation") + 1
        )


def pending_of(tenant: Tenant) -> int:
    """Return how many allocations of a tenant wait."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM tenants_allocation WHERE tenant_id = %s AND queued_at IS NOT NULL", [tenant.pk]
        )
        row = cursor.fetchone()
    return int(row[0]) if row else 0
