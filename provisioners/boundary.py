"""The boundary pass: make what isolates a tenant on one provider, widen and narrow it, remove it when unused.

Its room is the sum of the placed units of the allocations that refer to it; which allocations it grants room
to stands in `observed["granted"]` after a pass has ended ready, and products wait for that. Invariants: it
goes only when no live allocation refers to it, and nothing inside it is removed by removing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Exists, OuterRef, Q

from provisioners import gateways, granted_room, lease, outcome, plan, suspensions
from provisioners.driver import BoundaryKind, BoundarySpec, Observed, Spec, Step
from provisioners.passes import Prepared, Wait
from provisioners.specs_from_rows import boundary_spec, ref_of
from tenants import certificates, desired, vlans
from tenants.actor import SYSTEM
from tenants.models import Allocation, Boundary, Endpoint, GatewayReplica, Machine, Membership, Namespace, Unit
from tenants.operations import placements
from tenants.states import ConditionType, ProductKind, Reason, Role
from tenants.vlan_ranges import vlan_ranges

KEPT = (
    "granted",
    granted_room.SIZES,
    granted_room.BESIDE,
    "suspended",
    certificates.ASKED,
    certificates.LAST,
    certificates.RUNNING,
    certificates.SHAKEN,
)
"""What of `observed` is not what a pass saw."""
VLAN_RETRY_S = 60.0
"""Between looks for a VLAN; one that is given back wakes who waits for it at once."""
PEOPLES = (ProductKind.BARE.value, ProductKind.NAMESPACE.value)
"""Kinds whose capacity people use by themselves: it is taken from them before its holds go."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a boundary's pass was about."""

    granted: tuple[str, ...]
    """Ids of the allocations that the spec has room for."""
    suspended: str
    sizes: Mapping[str, list[int]]
    """Allocation → vCPU and memory GiB that it has room for; of those whose units were resized."""
    beside: tuple[str, ...] = ()
    """Units beside others that the spec has room for."""
    beside_of: tuple[UUID, ...] = ()
    """Their allocations."""


class BoundaryKindPass(outcome.ProviderKind):
    """Boundaries, of kind `namespace` and `vm`."""

    word = "boundary"
    model = Boundary

    def prepare(self, row: Boundary, *, now: datetime) -> Prepared:
        """Read what the boundary must hold; ask for its own end when nothing refers to it."""
        if row.deletion_requested_at is None and not live(row.pk):
            row.deletion_requested_at = now
            row.save(update_fields=["deletion_requested_at"])
            desired.happened(row, "boundary.unused", actor=SYSTEM, at=now, nudge=False)
        if row.deletion_requested_at is not None:
            return Prepared(deleting=True, provider=row.provider, ref=ref_of(row))
        if outcome.stopped(row):
            return Prepared(deleting=False)
        vlan = vlan_of(row, now=now) if row.kind == BoundaryKind.VM.value else None
        if isinstance(vlan, Wait):
            return Prepared(deleting=False, wait=vlan)
        gateway = gateways.of_boundary(row, now=now) if row.kind == BoundaryKind.NAMESPACE.value else None
        spec, facts = self._wanted(row, gateway, vlan=vlan, now=now)
        granted_room.lower(row, facts.sizes)
        late = gateway is not None and gateways.too_late(gateway, now=now)
        stale = frozenset({"namespace.gateway"} if late else ())
        return Prepared(deleting=False, provider=row.provider, ref=spec.ref, spec=spec, facts=facts, stale=stale)

    def _wanted(
        self, row: Boundary, gateway: GatewayReplica | None, *, vlan: int | None, now: datetime
    ) -> tuple[BoundarySpec, Facts]:
        allocations = granting(row.pk)
        units = list(
            Unit.objects.filter(allocation__in=allocations, released_at__isnull=True, host__isnull=False).order_by(
                "allocation_id", "index"
            )
        )
        rooms = granted_room.needed(units)
        depth = suspensions.deepest(row.tenant.path, now=now)
        spec = boundary_spec(
            row,
            allocations=allocations,
            units=units,
            gateway=None if gateway is None else gateways.spec_of(gateway),
            access=machines_group(row) if row.kind == BoundaryKind.VM.value else people_of(row),
            depth=depth,
            vlan=vlan,
            rooms=rooms,
        )
        granted = tuple(sorted(str(a.pk) for a in allocations))
        return spec, Facts(
            granted,
            "" if depth is None else depth.value,
            granted_room.sizes(units, rooms),
            beside=granted_room.beside(units),
            beside_of=granted_room.allocations_beside(units),
        )

    def arm(self, row: Boundary, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """Make the one-time token of a gateway about to start."""
        if not step.name.endswith(".gateway") or not isinstance(prepared.spec, BoundarySpec):
            return None
        replica = gateways.of_boundary(row, now=now)
        return replace(prepared.spec, gateway=gateways.spec_of(replica, gateways.arm(replica, now=now)))

    def fields(self) -> list[str]:
        """Return the boundary's own columns."""
        return ["address"]

    def looked(self, row: Boundary, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Keep where its gateway answers; tell its endpoints when that moves."""
        kept = {name: row.observed[name] for name in KEPT if name in row.observed}
        row.observed = {**outcome.seen_as_json(observed), **kept}
        if row.address != observed.address and not prepared.deleting:
            row.address = observed.address
            Endpoint._base_manager.filter(boundary_id=row.pk, released_at__isnull=True).update(due_at=now)

    def still_works(self, row: Boundary, observed: Observed) -> bool:
        """A boundary that is being widened or narrowed goes on isolating what is in it."""
        return row.ready_at is not None and bool(observed.parts) and all(part.ready for part in observed.parts)

    def readiness(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        """A boundary can be used when all of it is there."""
        del row, observed, prepared
        return "" if action.ready else action.why

    def became_ready(self, row: Boundary, prepared: Prepared, *, now: datetime) -> None:
        """Say what it grants now, and wake what waited for that."""
        facts = prepared.facts
        assert isinstance(facts, Facts)
        suspensions.tell(row, facts.suspended, now=now)
        before, sizes = set(row.observed.get("granted", ())), row.observed.get(granted_room.SIZES, {})
        row.observed = {**row.observed, "granted": list(facts.granted), "suspended": facts.suspended}
        resized = {pk for pk, size in facts.sizes.items() if sizes.get(pk) != size}
        if facts.sizes or sizes:
            row.observed = {**row.observed, granted_room.SIZES: dict(facts.sizes)}
        if facts.beside or granted_room.BESIDE in row.observed:
            if set(facts.beside) - set(row.observed.get(granted_room.BESIDE, ())):
                resized |= {str(pk) for pk in facts.beside_of}
            row.observed = {**row.observed, granted_room.BESIDE: list(facts.beside)}
        changed = [UUID(pk) for pk in sorted((before ^ set(facts.granted)) | resized)]
        if changed:
            wake(changed, now=now)

    def gone(self, row: Boundary, prepared: Prepared, *, now: datetime) -> None:
        """Give back what it counted; wake what waited for its end."""
        del prepared
        row.address = ""
        placements.boundary_released(row, now=now)
        gateways.removed(row.pk, units=None, now=now)
        if vlans.of(row) is not None:  # free when this row's release is committed
            for other in without_vlan(row.provider_id):
                lease.nudge(other, at=now)
        waiting = Allocation.objects.filter(boundary_id=row.pk, released_at__isnull=True).values_list("pk", flat=True)
        wake(list(waiting), now=now)


def vlan_of(row: Boundary, *, now: datetime) -> int | Wait | None:
    """Return the VLAN of a VM boundary, taken now if need be; None where its provider has none to give."""
    told = row.provider.config.get("vlans")
    has = vlans.of(row)
    if has is not None or not told:
        return has
    try:
        taken = vlans.take(row, vlan_ranges(told), now=now)
    except ValueError as error:
        message = f"Setting vlans of provider {row.provider.name}: {error}."
        return Wait(ConditionType.PROVISIONED, Reason.PROVIDER_ERROR, message, VLAN_RETRY_S)
    if taken is not None:
        return taken
    message = (
        f"All {vlans.counted(row)} VLANs of provider {row.provider.name} are taken. Give it more (setting vlans), "
        "or let boundaries go that nobody needs."
    )
    return Wait(ConditionType.PROVISIONED, Reason.NO_CAPACITY, message, VLAN_RETRY_S)


def without_vlan(provider: UUID) -> list[Boundary]:
    """Return the VM boundaries of a provider that have no VLAN, in the order in which rows are locked."""
    rows = Boundary.objects.filter(provider_id=provider, kind=BoundaryKind.VM.value, vlan__isnull=True)
    return list(rows.filter(released_at__isnull=True, deletion_requested_at__isnull=True).order_by("pk"))


def wake(allocations: list[UUID], *, now: datetime) -> None:
    """Make allocations and their products due. Lock order: allocations before products."""
    for row in Allocation.objects.filter(pk__in=allocations, released_at__isnull=True).order_by("pk"):
        lease.nudge(row, at=now)
    for model in (Endpoint, Machine, Namespace):
        for product in model._base_manager.filter(allocation_id__in=allocations, released_at__isnull=True):
            lease.nudge(product, at=now)


def live(boundary: UUID) -> bool:
    """Whether anything still needs a boundary: an allocation that is not given back.

    One of people's own capacity that is being given back needs it no more once its product is gone: the
    boundary goes first, then its holds.
    """
    rows = Allocation.objects.filter(boundary_id=boundary, released_at__isnull=True)
    leaving = Q(deletion_requested_at__isnull=False, product_kind__in=PEOPLES)
    if rows.exclude(leaving).exists():
        return True
    return any(
        model._base_manager.filter(boundary_id=boundary, released_at__isnull=True).exists()
        for model in (Endpoint, Machine, Namespace)
    )


def granting(boundary: UUID) -> list[Allocation]:
    """Return the allocations that a boundary must have room for, oldest first: not those that hold nothing now.

    People's own capacity goes with the asking for its deletion; a replica's room stays until it is gone.
    """
    rows = Allocation.objects.filter(boundary_id=boundary, released_at__isnull=True)
    leaving = Q(deletion_requested_at__isnull=False, product_kind__in=PEOPLES)
    placed = Unit.objects.filter(allocation=OuterRef("pk"), host__isnull=False)
    return list(rows.exclude(leaving).filter(Exists(placed)).order_by("created_at", "pk"))


def people_of(row: Boundary) -> tuple[tuple[str, str], ...]:
    """Return (opaque person id, role) of those who have direct access: only where a namespace was handed out."""
    handed_out = Namespace.objects.filter(
        boundary_id=row.pk, released_at__isnull=True, deletion_requested_at__isnull=True
    ).exists()
    if not handed_out:
        return ()
    members = Membership.objects.filter(tenant_id__in=row.tenant.path, person__is_active=True)
    roles: dict[str, int] = {}
    for person, role in members.values_list("person_id", "role"):
        roles[str(person)] = max(role, roles.get(str(person), 0))
    return tuple(sorted((person, Role(role).word) for person, role in roles.items()))


def machines_group(row: Boundary) -> tuple[tuple[str, str], ...]:
    """Return the tenant itself, whose group a provider of VMs may know, where people have a machine; else nobody.

    Who is in that group is the affair of whoever keeps it.
    """
    machines = Machine.objects.filter(boundary_id=row.pk, released_at__isnull=True, deletion_requested_at__isnull=True)
    return ((str(row.tenant_id), Role.MEMBER.word),) if machines.exists() else ()


PASS = BoundaryKindPass()
