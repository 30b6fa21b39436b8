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
from tenants.feasibility import LockedPath, locked_path, options, policy_of, validate
from tenants.gpu_catalogue import slices_of
from tenants.models import Allocation, Boundary, QuotaCharge, Suspension, Tenant, Unit
from tenants.operations import quotas
from tenants.policies import ROUTES
from tenants.quota import Span
from tenants.specs import AllocationSpec, BareAsk
from tenants.states import (
    BoundaryKind,
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
TAKEN_FIELDS: Final = ("conditions", "phase", "queued_at", "boundary", "due_at", "observed")
DEFAULT_KINDS: Final[Mapping[ProductKind, tuple[BoundaryKind, ...]]] = {
    ProductKind.ENDPOINT: (BoundaryKind.NAMESPACE, BoundaryKind.VM),
    ProductKind.MACHINE: (BoundaryKind.VM,),
    ProductKind.NAMESPACE: (BoundaryKind.NAMESPACE,),
    ProductKind.BARE: (BoundaryKind.NAMESPACE,),
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
        _charge(rows, now=now)
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


def _charge(rows: Sequence[Allocation], *, now: datetime) -> None:
    """Count allocations against their quotas: pending while they wait for room."""
    QuotaCharge.objects.bulk_create(
        QuotaCharge(
            tenant_id=row.tenant_id,
            allocation=row,
            dimension=dimension,
            amount=amount,
            pending=row.queued_at is not None,
            created_at=now,
        )
        for row in rows
        for dimension, amount in row.demand.items()
    )


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
            kinds = _kinds(ask.kind, ask.spec)
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
            _placed(row, ask.spec, answer, actor=actor, now=now)
        else:
            reason = answer or no_room.NoRoom("Others wait for the same room and were first.", {"queue": True})
            _wait(row, reason, now=now)
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


def _kinds(kind: ProductKind, spec: AllocationSpec) -> tuple[BoundaryKind, ...]:
    return (spec.where.kind,) if spec.where.kind is not None else DEFAULT_KINDS[kind]


def _placed(row: Allocation, spec: AllocationSpec, at: ledger.Placed, *, actor: Actor, now: datetime) -> None:
    row.queued_at = None
    row.boundary = boundary_for(row, spec, at, actor=actor, now=now)
    row.conditions = set_condition(
        row.conditions, ConditionType.PLACED, "True", Reason.DONE, "Its GPUs are held.", now=now,
        generation=row.generation,
    )  # fmt: skip
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.due_at = now


def _wait(row: Allocation, why: no_room.NoRoom, *, now: datetime) -> None:
    row.queued_at = row.queued_at or now
    row.conditions = set_condition(
        row.conditions, ConditionType.PLACED, "False", Reason.NO_CAPACITY, why.reason, now=now,
        generation=row.generation,
    )  # fmt: skip
    row.observed = {**row.observed, "why": why.data}
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.due_at = None


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


def boundary_for(row: Allocation, spec: AllocationSpec, at: ledger.Placed, *, actor: Actor, now: datetime) -> Boundary:
    """Find or make the tenant's boundary of this provider, kind and tier, and make it due."""
    found = (
        Boundary.objects.select_for_update(no_key=True)
        .filter(
            tenant_id=row.tenant_id,
            provider_id=at.provider,
            kind=at.kind.value,
            tier=spec.where.tier.value,
            deletion_requested_at__isnull=True,
        )
        .first()
    )
    if found is not None:
        desired.respecified(found, at=now)
        return found
    quotas.check_demand(row.tenant, {"boundaries": 1}, during=Span(now, None), now=now, actor=actor)
    made = Boundary.objects.create(
        tenant_id=row.tenant_id,
        provider_id=at.provider,
        kind=at.kind.value,
        tier=spec.where.tier.value,
        finalizers=["provider"],
        due_at=now,
        created_at=now,
    )
    QuotaCharge.objects.create(
        tenant_id=row.tenant_id, boundary=made, dimension="boundaries", amount=1, pending=False, created_at=now
    )
    desired.created(made, "boundary.requested", actor=actor, at=now, kind=made.kind, tier=made.tier)
    return made


def boundary_released(boundary: Boundary, *, now: datetime) -> None:
    """Give back what a boundary counted, when it is gone. Plain; called by its pass."""
    del now
    QuotaCharge.objects.filter(boundary=boundary).delete()


def admit(allocation: Allocation, *, actor: Actor, now: datetime) -> bool:
    """Try to take up an allocation that waits for quota, a decision or room. Plain; locks the tenant path first.

    Returns True when it is placed. Quota still short: it stays as it is, with the fresh reason.
    """
    tenant = allocation.tenant
    path = locked_path(tenant, spending=False)
    row = Allocation.objects.select_for_update(no_key=True).select_related("tenant").get(pk=allocation.pk)
    if row.deletion_requested_at is not None or row.released_at is not None:
        return False
    units = list(Unit.objects.filter(allocation=row, released_at__isnull=True).order_by("index"))
    if all(unit.host_id is not None for unit in units):
        return True
    spec = AllocationSpec.from_json(row.spec)
    kind = ProductKind(row.product_kind)
    if tenant.status != "active" or _suspended(tenant):
        return False
    if any(c["type"] == ConditionType.APPROVED for c in row.conditions):
        row.conditions = set_condition(
            row.conditions, ConditionType.APPROVED, "True", Reason.DONE, "Granted.", now=now, generation=row.generation
        )
    if not QuotaCharge.objects.filter(allocation=row).exists():
        try:
            quotas.check_demand(tenant, row.demand, during=Span(now, spec.term.ends_at(now)), now=now, actor=actor)
        except QuotaExceeded as error:
            _say(row, ConditionType.PLACED, Reason.OVER_QUOTA, error.detail, now=now)
            row.queued_at = row.queued_at or now
            row.save(update_fields=["conditions", "phase", "queued_at"])
            return False
        _charge([row], now=now)
    ways = _where_it_was(row) or options(tenant, spec, kinds=_kinds(kind, spec), policy=path.policy)
    outcome = claim_many([Claim(row, units, spec, ways)], now=now)
    answer = outcome[row.pk]
    if isinstance(answer, ledger.Placed):
        _placed(row, spec, answer, actor=actor, now=now)
    else:
        _wait(row, answer, now=now)
    tell_product(row)
    QuotaCharge.objects.filter(allocation=row).update(pending=row.queued_at is not None)
    row.save(update_fields=TAKEN_FIELDS)
    if isinstance(answer, ledger.Placed):
        desired.happened(row, "allocation.placed", actor=actor, at=now)
        return True
    return False


def _where_it_was(row: Allocation) -> tuple[ledger.Option, ...]:
    """Return the one place of an allocation whose product is there already and gave its units back for a while."""
    boundary = row.boundary
    if boundary is None or row.ready_at is None:
        return ()
    return (ledger.Option(BoundaryKind(boundary.kind), (boundary.provider_id,)),)


def rest(row: Allocation, *, now: datetime) -> None:
    """Give back all units of an allocation whose product needs none for a while, and count them no more. Plain.

    The row is locked, and nothing runs on the units by an exact look. It stays: `admit` takes it up again.
    """
    for unit in Unit.objects.filter(allocation=row, released_at__isnull=True).order_by("index"):
        ledger.release(unit, now=now)
    QuotaCharge.objects.filter(allocation=row).delete()
    row.conditions = set_condition(
        row.conditions, ConditionType.PLACED, "False", Reason.ASLEEP, "Its units are given back while it sleeps.",
        now=now, generation=row.generation,
    )  # fmt: skip
    row.phase = phase_of(row.conditions, deleting=False, released=False).value
    row.save(update_fields=["conditions", "phase"])
    if row.boundary_id is not None:
        found = Boundary.objects.select_for_update(no_key=True).filter(pk=row.boundary_id, released_at=None).first()
        if found is not None:
            granted = [pk for pk in found.observed.get("granted", ()) if pk != str(row.pk)]
            found.observed = {**found.observed, "granted": granted}
            found.save(update_fields=["observed"])
            desired.respecified(found, at=now)


def queue_again(row: Allocation, *, now: datetime) -> None:
    """Let an allocation that gave its units back wait for room again. Plain; the row is locked."""
    row.queued_at = row.queued_at or now
    _say(row, ConditionType.PLACED, Reason.NO_CAPACITY, "It wakes and waits for its units.", now=now)
    row.save(update_fields=["queued_at", "conditions", "phase"])


def provider_ids(row: Allocation, spec: AllocationSpec) -> frozenset[UUID]:
    """Return the providers that an allocation may be placed at, as its tenant's policy is now; locks nothing."""
    kinds = _kinds(ProductKind(row.product_kind), spec)
    ways = options(row.tenant, spec, kinds=kinds, policy=policy_of(row.tenant))
    return frozenset(provider for way in ways for provider in way.providers)


def tell_product(row: Allocation) -> None:
    """Give the product that owns an allocation its word on approval and placement at once, and make it due."""
    model = product_model(ProductKind(row.product_kind))
    if model is None:
        return
    said = {ConditionType.APPROVED.value, ConditionType.PLACED.value}
    for product in model._base_manager.select_for_update(no_key=True).filter(allocation=row, released_at__isnull=True):
        kept = [c for c in product.conditions if c["type"] not in said]
        product.conditions = sorted(
            [*kept, *(c for c in row.conditions if c["type"] in said)], key=lambda c: str(c["type"])
        )
        product.phase = phase_of(
            product.conditions, deleting=product.deletion_requested_at is not None, released=False
        ).value
        product.boundary = row.boundary
        product.due_at = row.due_at
        product.save(update_fields=["conditions", "phase", "boundary", "due_at"])


def product_model(kind: ProductKind) -> Any:
    """Return the model of a product kind, None for bare allocations."""
    from tenants.models import Endpoint, Machine, Namespace

    return {ProductKind.ENDPOINT: Endpoint, ProductKind.MACHINE: Machine, ProductKind.NAMESPACE: Namespace}.get(kind)


def _say(row: Allocation, kind: ConditionType, reason: Reason, message: str, *, now: datetime) -> None:
    row.conditions = set_condition(row.conditions, kind, "False", reason, message, now=now, generation=row.generation)
    row.phase = phase_of(row.conditions, deleting=False, released=False).value


def _suspended(tenant: Tenant) -> bool:
    return Suspension.objects.filter(tenant_id__in=tenant.path, ended_at__isnull=True).exists()


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
