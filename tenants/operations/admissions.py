"""Allocations that wait: taken up when there is quota and room, at rest while their product needs no units.

Plain functions, called by passes and decisions. Lock order: tenant path (root first), host, devices, object.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from tenants import desired, ledger
from tenants.actor import Actor
from tenants.claims import Claim, claim_many
from tenants.errors import QuotaExceeded
from tenants.feasibility import locked_path, options, policy_of
from tenants.models import Allocation, Boundary, QuotaCharge, Suspension, Tenant, Unit
from tenants.operations import quotas
from tenants.operations.placements import TAKEN_FIELDS, charge, kinds_of, place, say, tell_product, wait
from tenants.quota import Span
from tenants.specs import AllocationSpec
from tenants.states import BoundaryKind, ConditionType, ProductKind, Reason, phase_of, set_condition


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
            say(row, ConditionType.PLACED, Reason.OVER_QUOTA, error.detail, now=now)
            row.queued_at = row.queued_at or now
            row.save(update_fields=["conditions", "phase", "queued_at"])
            return False
        charge([row], now=now)
    ways = _where_it_was(row) or options(tenant, spec, kinds=kinds_of(kind, spec), policy=path.policy)
    outcome = claim_many([Claim(row, units, spec, ways)], now=now)
    answer = outcome[row.pk]
    if isinstance(answer, ledger.Placed):
        place(row, spec, answer, actor=actor, now=now)
    else:
        wait(row, answer, now=now)
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
    say(row, ConditionType.PLACED, Reason.NO_CAPACITY, "It wakes and waits for its units.", now=now)
    row.save(update_fields=["queued_at", "conditions", "phase"])


def provider_ids(row: Allocation, spec: AllocationSpec) -> frozenset[UUID]:
    """Return the providers that an allocation may be placed at, as its tenant's policy is now; locks nothing."""
    kinds = kinds_of(ProductKind(row.product_kind), spec)
    ways = options(row.tenant, spec, kinds=kinds, policy=policy_of(row.tenant))
    return frozenset(provider for way in ways for provider in way.providers)


def _suspended(tenant: Tenant) -> bool:
    return Suspension.objects.filter(tenant_id__in=tenant.path, ended_at__isnull=True).exists()
