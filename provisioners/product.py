"""What the passes of endpoints, machines and namespaces share: placement, boundary, suspension, release.

A product waits until its allocation is placed and its boundary grants that allocation's room; then it walks
its own steps. Conditions that are its allocation's word (approval, placement, expiry) are copied from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from provisioners import granted_room, lease, outcome, plan, suspensions
from provisioners.driver import BoundaryKind, DriverError, NoCapacity, Observed, Power, Spec, UnitSpec
from provisioners.lease import Claim
from provisioners.passes import Engine, Prepared, Seen, Wait, in_transaction, say
from provisioners.specs_from_rows import ref_of, unit_specs
from provisioners.steps import split
from tenants import desired, ledger
from tenants.actor import SYSTEM
from tenants.models import Allocation, Boundary, Endpoint, Host, Machine, Namespace, Unit
from tenants.specs import AllocationSpec
from tenants.states import ConditionType, Reason, SuspensionDepth, condition_of

MIRRORED: Final = (ConditionType.APPROVED, ConditionType.PLACED, ConditionType.EXPIRING)
TAKES_ROOM: Final = frozenset({"vm.clone", "vm.power", "serving.replica"})
"""Steps that can find a host full; no room for anything else says nothing about a unit's place."""
BOUNDARY_RETRY_S: Final = 30.0
"""Only in case the boundary's own nudge is lost."""
Product = Endpoint | Machine | Namespace


@dataclass(frozen=True, slots=True)
class Facts:
    """What a product's pass was about."""

    mirrored: tuple[Mapping[str, Any], ...]
    boundary_ready: bool = False
    depth: SuspensionDepth | None = None
    units: tuple[Unit, ...] = ()
    wanted_off: bool = False
    """Its owner or a suspension wants it powered off."""
    size: int = 0
    """Which of its sizes the spec has (`Machine.resizes`)."""
    chores: frozenset[str] = frozenset()
    """What this pass may have to do beside its steps, under earlier locks than the row's (`ProductKind.chores`)."""


class ProductKind(outcome.ProviderKind):
    """A product; subclasses say what its spec is."""

    model: type[Product]

    def spec(
        self,
        row: Any,
        boundary: Boundary,
        rows: Sequence[Unit],
        units: tuple[UnitSpec, ...],
        depth: SuspensionDepth | None,
        *,
        now: datetime,
    ) -> Spec | Wait:
        """Return the spec of a placed product in a boundary that has room for it."""
        raise NotImplementedError

    def chores(self, row: Any) -> frozenset[str]:
        """Return what a pass may have to do in `before_conclude`, as far as its beginning shows; by default nothing."""
        del row
        return frozenset()

    def resting(self, row: Any) -> Wait | None:
        """Return what to say of a product that holds nothing now and is not meant to; by default none."""
        del row
        return None

    def usable(self, row: Any, units: list[Unit], *, now: datetime) -> list[Unit]:
        """Return those of its units, by index, that are to run something now; by default all."""
        del row, now
        return units

    def stale(self, row: Any, *, now: datetime) -> frozenset[str]:
        """Return the parts that will never work as they are; by default none."""
        del row, now
        return frozenset()

    def kept(self, row: Any) -> Mapping[str, str]:
        """Return the parts that hold what nobody can make anew, with the want last seen there; by default none."""
        del row
        return {}

    def drained(self, row: Any, *, now: datetime) -> Wait | None:
        """Return what a deletion still waits for before anything is removed; by default nothing."""
        del row, now
        return None

    def complete(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Keep what is true once all steps are done, whether or not everything works; by default nothing."""
        del row, prepared, now

    # --- prepare ---------------------------------------------------------------------------------------

    def prepare(self, row: Any, *, now: datetime) -> Prepared:
        """Read placement, boundary and suspension; build the spec when all is there."""
        allocation = row.allocation
        facts = Facts(tuple(c for c in allocation.conditions if c["type"] in MIRRORED))
        if row.deletion_requested_at is not None:
            return self._prepare_leaving(row, facts, now=now)
        if outcome.stopped(row):
            return Prepared(deleting=False, facts=facts)
        facts = replace(facts, chores=self.chores(row))
        if (resting := self.resting(row)) is not None:
            return Prepared(deleting=False, wait=resting, facts=facts)
        held = list(Unit.objects.filter(allocation=allocation, released_at__isnull=True).order_by("index"))
        units = self.usable(row, held, now=now)
        boundary = row.boundary
        if boundary is None or any(unit.host_id is None for unit in units):
            return Prepared(deleting=False, wait=_for_placement(allocation), facts=facts)
        if not granted_room.covers(boundary, allocation, units):
            if boundary.due_at is None and boundary.lease_expires_at is None:
                lease.nudge(boundary, at=now)
            return Prepared(deleting=False, wait=_for_boundary(boundary), facts=facts)
        depth = suspensions.deepest(row.tenant.path, now=now)
        facts = replace(facts, boundary_ready=True, depth=depth, units=tuple(units))
        specs = unit_specs(
            units,
            Host.objects.in_bulk([unit.host_id for unit in units]),
            ledger.windows_of([unit.pk for unit in units]),
        )
        try:
            spec = self.spec(row, boundary, units, specs, depth, now=now)
        except DriverError as error:
            return Prepared(deleting=False, facts=facts, refused=error)
        if isinstance(spec, Wait):
            return Prepared(deleting=False, wait=spec, facts=facts)
        wanted_off = getattr(spec, "power", None) is Power.OFF or getattr(spec, "asleep", False)
        return Prepared(
            deleting=False,
            provider=boundary.provider,
            ref=spec.ref,
            spec=spec,
            facts=replace(facts, wanted_off=wanted_off, size=getattr(row, "resizes", 0)),
            stale=self.stale(row, now=now),
            kept=self.kept(row),
        )

    def _prepare_leaving(self, row: Any, facts: Facts, *, now: datetime) -> Prepared:
        if row.boundary is None:
            return Prepared(deleting=True, facts=facts)
        wait = self.drained(row, now=now)
        if wait is not None:
            return Prepared(deleting=True, wait=wait, facts=facts)
        return Prepared(deleting=True, provider=row.boundary.provider, ref=ref_of(row), facts=facts)

    # --- conclude --------------------------------------------------------------------------------------

    def conclude(self, row: Any, prepared: Prepared, seen: Seen, *, engine: Engine, now: datetime) -> datetime | None:
        """Copy the allocation's word, then tell what was seen."""
        facts = prepared.facts
        assert isinstance(facts, Facts)
        row.conditions = [c for c in row.conditions if c["type"] not in MIRRORED] + [dict(c) for c in facts.mirrored]
        if facts.boundary_ready:
            say(row, ConditionType.BOUNDARY_READY, "True", Reason.DONE, "Its boundary is there.", now=now)
        due_at = super().conclude(row, prepared, seen, engine=engine, now=now)
        row.conditions = sorted(row.conditions, key=lambda c: str(c["type"]))
        return due_at

    def looked(self, row: Any, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Store what an exact look showed, each unit with whether it works."""
        del now
        index_of = {unit.pk: unit.index for unit in prepared.facts.units}
        row.observed = {**row.observed, **outcome.seen_as_json(observed, index_of=index_of)}

    def readiness(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        """Return what is missing; what is switched off because it should be is not usable, and says so."""
        del row, observed
        if not action.ready:
            return action.why
        return "It is switched off." if prepared.facts.wanted_off else ""

    def became_ready(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Say what suspension was applied; wake the allocation at the first ready."""
        self._tell_suspension(row, prepared, now=now)
        if row.ready_at == now or row.allocation.ready_at is None:
            lease.nudge(row.allocation, at=now)

    def _tell_suspension(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        depth = prepared.facts.depth
        suspensions.tell(row, "" if depth is None else depth.value, now=now)

    def _settled(
        self, row: Any, action: plan.Nothing, prepared: Prepared, seen: Seen, engine: Engine, *, now: datetime
    ) -> datetime | None:
        due_at = super()._settled(row, action, prepared, seen, engine, now=now)
        self._tell_suspension(row, prepared, now=now)
        if action.complete:
            self.complete(row, prepared, now=now)
        if prepared.facts.wanted_off and action.complete:
            say(row, ConditionType.READY, "False", Reason.BY_OWNER, "It is switched off.", now=now)
            say(row, ConditionType.HEALTHY, "True", Reason.DONE, "", now=now)
            return None
        return due_at

    def gone(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Wake the allocation, which gives the holds back."""
        del prepared
        lease.nudge(row.allocation, at=now)

    # --- a host that has no room after all ----------------------------------------------------------------

    def before_conclude(self, claim: Claim, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Move a unit that the provider refused to another host: new hold, old one released, one transaction.

        Only a unit that an exact look shows as not running is moved. Its host's lock comes before the row's.
        """
        if not isinstance(seen.error, NoCapacity) or prepared.deleting or not seen.step:
            return
        facts = prepared.facts
        bare, number = split(seen.step)
        if bare not in TAKES_ROOM:
            return
        index = number or 0
        unit = next((unit for unit in facts.units if unit.index == index), None)
        if unit is None or unit.host_id is None or seen.observed is None or runs(seen.observed, index):
            return

        def move() -> bool:
            fresh = Unit.objects.select_related("allocation").get(pk=unit.pk)
            if fresh.host_id != unit.host_id:
                return False
            spec = AllocationSpec.from_json(fresh.allocation.spec)
            moved: bool = ledger.replace(fresh, spec, avoid=[], now=now)
            row = claim.lock()
            if moved:
                desired.happened(
                    row, f"{self.word}.unit-moved", actor=SYSTEM, at=now, nudge=False,
                    unit=fresh.pk, index=index, before=unit.host_id, after=fresh.host_id, why="NoCapacity",
                )  # fmt: skip
            return moved

        seen.moved = in_transaction(move)

    def no_capacity(self, row: Any, seen: Seen, engine: Engine, *, now: datetime) -> datetime:
        """Go on at once where the unit was moved, slowly where there is no room anywhere."""
        if seen.moved:
            say(row, ConditionType.READY, "False", Reason.REPLACING, "Its place had no room; it is moved.", now=now)
            return now
        return engine.after(outcome.NO_ROOM_S, now)


def runs(observed: Observed, index: int) -> bool:
    """Whether a look leaves it possible that a unit runs; only what is surely off or absent may be moved."""
    parts = [part for part in observed.parts if (split(part.step)[1] or 0) == index]
    working = [part for part in parts if split(part.step)[0] in {"vm.power", "serving.replica"}]
    return bool(working) and observed.power is not Power.OFF


def _for_placement(allocation: Allocation) -> Wait:
    placed = condition_of(allocation.conditions, ConditionType.PLACED)
    message = str(placed["message"]) if placed is not None else "It waits for its GPUs."
    return Wait(ConditionType.READY, Reason.WAITING_FOR_PLACEMENT, message, None)


def _for_boundary(boundary: Boundary) -> Wait:
    ready = condition_of(boundary.conditions, ConditionType.READY)
    message = str(ready["message"]) if ready is not None and ready["message"] else "Its boundary is being built."
    return Wait(ConditionType.BOUNDARY_READY, Reason.WAITING_FOR_BOUNDARY, message, BOUNDARY_RETRY_S)


def in_vm(boundary: Boundary) -> bool:
    """Whether a boundary's workloads are VMs."""
    return str(boundary.kind) == BoundaryKind.VM.value
