"""The endpoint pass: replicas of a revision on placed units, in a namespace or in VMs of its own.

Deleting goes keys off (with the asking) → drain → replicas gone, by exact look. Whatever a gateway must
know (backends that came or went, the end) bumps the configuration of the boundary's gateways. While one revision takes
over from another (`provisioners.rollouts`) each unit has the one that it is to run, and one unit more is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners import busy, gateways, granted_room, learning, lease, moves, plan, rollouts, zero
from provisioners.driver import (
    BoundaryKind,
    DriverError,
    EndpointSpec,
    Observed,
    Presence,
    Spec,
    Step,
    TransientDriverError,
    UnitSpec,
)
from provisioners.lease import Claim
from provisioners.passes import Engine, Prepared, Seen, Wait, in_transaction, say
from provisioners.product import ProductKind, in_vm
from provisioners.rollouts import FRESH, known_gateways
from provisioners.specs_from_rows import endpoint_spec, serving_spec
from provisioners.steps import indexed, split
from tenants import addresses, desired, usage
from tenants.actor import SYSTEM
from tenants.gateway_reports import gateways_of, shown
from tenants.models import Boundary, Endpoint, GatewayReplica, Revision, Rollout, Unit
from tenants.operations import moves as moving
from tenants.operations import rollouts as operations
from tenants.operations import surges
from tenants.operations.products import touch_gateways
from tenants.specs import AllocationSpec
from tenants.states import ConditionType, Reason, RolloutState, SuspensionDepth, condition_of

KEYS_OFF_WAIT: Final = timedelta(seconds=5)
"""So long a deletion waits for gateways that are there to take the configuration without its keys."""
DRAIN_LIMIT: Final = timedelta(seconds=30)
"""So long it waits for running requests."""
DRAIN_POLL_S: Final = 0.5
STARTING_POLL_S: Final = 1.0
STARTING_LIMIT: Final = timedelta(minutes=15)
"""So long a model server that starts is looked at every second; one that takes longer is looked at ever less often."""
LEAVING, RESTING, ROOM = "leaving", "resting", "room"
"""Chores of a pass (`EndpointKind.chores`)."""
SERVES: Final = "serves"
"""Where an endpoint's row remembers the number of the revision that served last."""


class EndpointKind(ProductKind):
    """Endpoints, in both kinds of boundaries."""

    word = "endpoint"
    model = Endpoint

    def chores(self, row: Endpoint) -> frozenset[str]:
        """Return whether a rollout's unit may leave, units may be given back for a while, or are to be asked for."""
        found = set()
        if row.slept_at is not None and zero.gives_back(row):
            found.add(RESTING)
        if zero.is_waking(row):
            found.add(ROOM)
        if _rolling(row) is not None:
            found.add(LEAVING)
        if moves.is_moving(row):
            found.add(moves.CHORE)
        return frozenset(found)

    def prepare(self, row: Endpoint, *, now: datetime) -> Prepared:
        """Read what is wanted; one that goes while it moves has its new place given up first."""
        prepared = super().prepare(row, now=now)
        if prepared.deleting and moves.is_moving(row):
            return replace(prepared, facts=replace(prepared.facts, chores=frozenset({moves.CHORE})))
        return prepared

    def resting(self, row: Endpoint) -> Wait | None:
        """Return what an endpoint at zero says whose units were given back."""
        if row.slept_at is None or Unit.objects.filter(allocation_id=row.allocation_id, host__isnull=False).exists():
            return None
        return Wait(ConditionType.READY, Reason.ASLEEP, zero.GIVEN_BACK, None)

    def usable(self, row: Endpoint, units: list[Unit], *, now: datetime) -> list[Unit]:
        """Go on with a rollout; a unit that is to go runs nothing more, one beside nothing before it has its room."""
        live = _rolling(row)
        if live is None:
            return units
        rollouts.go_on(row, live, units, now=now)
        boundary = row.boundary
        waiting = [] if boundary is None else granted_room.without_room(boundary, units)
        if waiting and boundary is not None and boundary.due_at is None and boundary.lease_expires_at is None:
            lease.nudge(boundary, at=now)
        gone = live.leaving if live.ended_at is None else None
        return [unit for unit in units if unit.pk != gone and unit not in waiting]

    def spec(
        self,
        row: Endpoint,
        boundary: Boundary,
        rows: Sequence[Unit],
        units: tuple[UnitSpec, ...],
        depth: SuspensionDepth | None,
        *,
        now: datetime,
    ) -> Spec | Wait:
        """Return the spec of the wanted revision. Raises `NotSupported`, `DriverRejected` for what cannot be served."""
        if row.revision_id is None or not units:
            return Wait(ConditionType.READY, Reason.WAITING_FOR_PLACEMENT, "It has nothing to serve yet.", None)
        live = _rolling(row)
        if rollouts.is_canary(live):
            self._try_rendering(row, boundary, live, units, now=now)
        revision = Revision.objects.select_related("model").get(pk=row.revision_id)
        other, on_other = _beside(live, revision, units)
        replicas = gateways.of_units(boundary, rows, now=now) if in_vm(boundary) else []
        return endpoint_spec(
            row,
            boundary,
            revision,
            units=units,
            gateways=tuple(gateways.spec_of(replica) for replica in replicas),
            depth=depth,
            beside=other,
            on_beside=on_other,
            at_zero=row.slept_at is not None and zero.may_stop(row, now=now),
            named=moving.is_named(row, moves.live_of(row)),
        )

    def _try_rendering(
        self, row: Endpoint, boundary: Boundary, live: Rollout | None, units: Sequence[UnitSpec], *, now: datetime
    ) -> None:
        """Give a rollout up whose revision cannot be served here at all; what serves must not wait for it."""
        assert live is not None
        try:
            revision = Revision.objects.select_related("model").get(pk=live.revision_id)
            serving_spec(row, revision, units[0], BoundaryKind(boundary.kind))
        except DriverError as error:
            rollouts.give_up(row, live, error.detail, now=now)

    def arm(self, row: Endpoint, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """Make the one-time token of a VM's gateway about to start."""
        del row
        bare, index = split(step.name)
        if bare != "vm.gateway" or not isinstance(prepared.spec, EndpointSpec):
            return None
        uid = next(unit.uid for unit in prepared.spec.units if unit.index == index)
        replica = GatewayReplica.objects.get(pk=uid)
        armed = gateways.spec_of(replica, gateways.arm(replica, now=now))
        others = tuple(gateway for gateway in prepared.spec.gateways if gateway.uid != uid)
        return replace(prepared.spec, gateways=(*others, armed))

    def stale(self, row: Endpoint, *, now: datetime) -> frozenset[str]:
        """Return the gateways in its VMs whose token ran out before they enrolled."""
        mine = gateways_of(row).filter(unit__isnull=False).select_related("unit")
        return frozenset(
            indexed("vm.gateway", replica.unit.index)
            for replica in mine
            if replica.unit is not None and gateways.too_late(replica, now=now)
        )

    # --- rollouts -------------------------------------------------------------------------------------------

    def before_conclude(self, claim: Claim, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Give back a unit that a rollout needs no more, or those of an endpoint at zero, once nothing runs there."""
        super().before_conclude(claim, prepared, seen, now=now)
        chores = prepared.facts.chores
        if moves.CHORE in chores:
            moves.before_conclude(claim.pk, deleting=prepared.deleting, now=now)
        if prepared.deleting:
            return
        if ROOM in chores:
            zero.ask_for_room(claim.pk, now=now)
        if seen.observed is None:
            return
        observed = seen.observed

        def give_back() -> None:
            live = Rollout.objects.filter(endpoint_id=claim.pk, ended_at__isnull=True, leaving__isnull=False).first()
            if live is None or live.leaving is None:
                return
            found = rollouts.unit_of(Endpoint.objects.get(pk=claim.pk), live.leaving)
            if found is None:
                return
            allocation, unit = found
            if any((split(part.step)[1] or 0) == unit.index for part in observed.parts if "[" in part.step):
                return
            surges.give_back(allocation, unit, now=now)
            assert allocation.boundary_id is not None
            gateways.removed(allocation.boundary_id, units=[unit.pk], now=now)  # one that went with its machine
            row = claim.lock()
            desired.happened(
                row, "endpoint.unit-given-back", actor=SYSTEM, at=now, nudge=False, unit=unit.pk, index=unit.index
            )

        if LEAVING in chores:
            in_transaction(give_back)
        if RESTING in chores:
            zero.give_back(claim, observed, now=now)

    def conclude(self, row: Any, prepared: Prepared, seen: Seen, *, engine: Engine, now: datetime) -> datetime | None:
        """Tell what was seen; go on with a rollout, or back from one whose revision the provider does not take."""
        live = row.rolling = None if row.deletion_requested_at is not None else operations.live_of(row)
        if live is None:
            due_at = super().conclude(row, prepared, seen, engine=engine, now=now)
            is_moving = moves.is_moving(row) or row.stands_in_for_id is not None
            due_at = zero.told(row, prepared, seen, due_at, is_rolling=is_moving, now=now)
            if row.deletion_requested_at is not None:
                return due_at
            return _sooner(busy.told(row, due_at, now=now), moves.go_on(row, now=now) if is_moving else None)
        if rollouts.is_canary(live) and (why := _refused(seen, live, prepared)):
            rollouts.give_up(row, live, why, now=now)
            return now
        due_at = super().conclude(row, prepared, seen, engine=engine, now=now)
        before = _stage(live)
        held = Unit.objects.filter(allocation_id=row.allocation_id, released_at__isnull=True).order_by("index")
        rollouts.go_on(row, live, list(held), now=now)
        if _stage(live) != before:
            return now
        due_at = zero.told(row, prepared, seen, due_at, is_rolling=True, now=now)
        if prepared.refused is not None or prepared.provider is None:
            return due_at  # nothing can be done before somebody changes something
        return min(rollouts.due_at(live, now=now), due_at or datetime.max.replace(tzinfo=UTC))

    def fields(self) -> list[str]:
        """Return the endpoint's own columns."""
        return ["address", "reachable_from", "slept_at"]

    def looked(self, row: Endpoint, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Keep address and backends; tell the gateways when those change."""
        before, told = _routes(row.observed), learning.engines(row.observed)
        super().looked(row, observed, prepared, now=now)
        row.observed = learning.with_gateways(row, observed)
        if observed.address:  # the address is a contract: a gateway that is away for a while does not take it
            host = prepared.spec.host if isinstance(prepared.spec, EndpointSpec) else ""
            row.address = addresses.published(observed.address, observed.reachable_from, host)
            row.reachable_from = observed.reachable_from
            row.observed = {**row.observed, addresses.LEADS_TO: observed.address}
        if _routes(row.observed) != before:
            touch_gateways([row.boundary_id], now=now)
        new = {unit: engine for unit, engine in learning.engines(row.observed).items() if told.get(unit) != engine}
        if new:
            learning.from_starts(row, new, observed, now=now)

    def readiness(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        """An endpoint can be used when its replicas work and its address is known."""
        live = _rolling(row)
        if rollouts.is_canary(live) and observed.address and _enough_work(row):
            return ""  # one that comes or goes beside those that serve is no trouble of theirs
        missing = self._missing(row, observed, action, prepared)
        before = row.observed.get(SERVES)
        if not missing or before is None or not isinstance(prepared.spec, EndpointSpec):
            return missing
        wanted = prepared.spec.serving.revision
        if wanted == before:
            return missing
        # Nothing is held beside the units of the endpoint, so the old replica makes way for the new one.
        return f"Revision {wanted} takes over; revision {before} stopped first, as no room is held for both: {missing}"

    def _missing(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        missing = super().readiness(row, observed, action, prepared)
        if missing:
            return missing
        if not observed.address:
            return "Its address is not known yet: the gateway has not come up."
        return self._missing_at_gateways(row)

    def _missing_at_gateways(self, row: Endpoint) -> str:
        """Return what the gateways in front of it say: not up to date (before it is ready), or no way to a replica.

        Simulated gateways never enrol and are not asked; a provider's word that a real one has is no proof.
        """
        ready = condition_of(row.conditions, ConditionType.READY)
        must = row.boundary is not None and row.boundary.provider.kind in gateways.KINDS_THAT_SHOW_THE_MACHINE
        for replica in known_gateways(row):
            if replica.enrolled_at is None:
                if must:
                    return "Its gateway has not enrolled."
                continue
            if missing := _no_certificate(replica):
                return missing
            behind = replica.reported_version < replica.config_version
            if behind and (ready is None or ready["status"] != "True"):
                return "Its gateway is taking the configuration."
            for backend in shown(replica, row.served_id).get("backends", ()):
                if backend.get("reachable") is False:
                    return f"Its gateway does not reach a replica. {backend.get('message', '')}".strip()
        return ""

    def look_again(self, began: datetime, now: datetime, engine: Engine) -> datetime:
        """Look every second while a model server starts: somebody waits for its first token."""
        patient = super().look_again(began, now, engine)
        return patient if now >= began + STARTING_LIMIT else min(patient, engine.after(STARTING_POLL_S, now))

    def still_works(self, row: Endpoint, observed: Observed) -> bool:
        """Whether at least one replica serves behind a published address."""
        if zero.is_waking(row):
            return False  # what was at zero a moment ago is all there, and answers nobody yet
        published = observed.part("serving.service").presence is Presence.PRESENT and bool(observed.address)
        if not published or _is_unknown(row):
            return False
        return any(
            part.presence is Presence.PRESENT and part.ready and split(part.step)[0] == "serving.replica"
            for part in observed.parts
        )

    def became_ready(self, row: Endpoint, prepared: Prepared, *, now: datetime) -> None:
        """Say that it serves."""
        super().became_ready(row, prepared, now=now)
        usage.units_ready(row.allocation, _working(row), now=now)
        say(row, ConditionType.SERVING, "True", Reason.DONE, "", now=now)
        if isinstance(prepared.spec, EndpointSpec):
            row.observed = {**row.observed, SERVES: prepared.spec.serving.revision}
        zero.is_awake(row, now=now)

    def drained(self, row: Endpoint, *, now: datetime) -> Wait | None:
        """Wait, for a bounded time, until gateways refuse the keys and running requests have ended."""
        asked = row.deletion_requested_at
        assert asked is not None
        if now >= asked + DRAIN_LIMIT:
            return None
        in_flight = 0
        for replica in gateways_of(row).filter(last_seen_at__gt=now - FRESH):
            if replica.reported_version < replica.config_version and now < asked + KEYS_OFF_WAIT:
                return _draining("Its keys are being switched off.")
            in_flight += int(shown(replica, row.served_id).get("in_flight", 0))
        if in_flight:
            return _draining(f"{in_flight} running requests are being finished.")
        return None

    def gone(self, row: Endpoint, prepared: Prepared, *, now: datetime) -> None:
        """End the gateways of its VMs, and take it out of the configuration of the others."""
        super().gone(row, prepared, now=now)
        row.address = ""
        Rollout.objects.filter(endpoint=row, ended_at__isnull=True).update(
            state=RolloutState.ABORTED.value, ended_at=now, reason="The endpoint was deleted."
        )
        if row.boundary_id is not None:
            units = list(Unit.objects.filter(allocation_id=row.allocation_id).values_list("pk", flat=True))
            gateways.removed(row.boundary_id, units=units, now=now)
            touch_gateways([row.boundary_id], now=now)


def _is_unknown(row: Endpoint) -> bool:
    """Whether no gateway knows yet of replicas that came up; once they work, news reach all gateways on the way."""
    ready = condition_of(row.conditions, ConditionType.READY)
    if ready is not None and ready["status"] == "True":
        return False
    enrolled = [replica for replica in known_gateways(row) if replica.enrolled_at is not None]
    return bool(enrolled) and all(replica.reported_version < replica.config_version for replica in enrolled)


def _rolling(row: Endpoint) -> Rollout | None:
    """Return the rollout that an endpoint is in, as it was read once for this row."""
    if not hasattr(row, "rolling"):
        row.rolling = operations.live_of(row)  # type: ignore[attr-defined]
    live: Rollout | None = row.rolling  # type: ignore[attr-defined]
    return live


def _beside(
    live: Rollout | None, serves: Revision, units: Sequence[UnitSpec]
) -> tuple[Revision | None, frozenset[UUID]]:
    """Return the other revision of a rollout, and the units that are to run it instead of what serves."""
    if live is None or live.ended_at is not None:
        return None, frozenset()
    on_new = {UUID(text) for text in live.on_new}
    is_new = serves.pk == live.revision_id
    on_other = frozenset(unit.uid for unit in units if (unit.uid in on_new) is not is_new)
    if not on_other:
        return None, on_other
    other = live.before_id if is_new else live.revision_id
    return Revision.objects.select_related("model").get(pk=other), on_other


def _refused(seen: Seen, live: Rollout, prepared: Prepared) -> str:
    """Return what the provider has against the new revision's replica, `""` where it has nothing or may take it yet."""
    error = seen.error
    if error is None or isinstance(error, TransientDriverError) or seen.moved or not seen.step:
        return ""
    bare, index = split(seen.step)
    unit = next((unit for unit in prepared.facts.units if unit.index == index), None)
    is_new = unit is not None and str(unit.pk) in live.on_new
    if bare.startswith("vm."):  # its machine, where the unit beside is one
        return error.detail if unit is not None and unit.pk == live.surge else ""
    return error.detail if is_new and bare == "serving.replica" else ""


def _stage(live: Rollout) -> tuple[object, ...]:
    return (live.state, live.step, live.draining, live.leaving, tuple(live.on_new), live.ended_at)


def _sooner(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(filter(None, (one, other)), default=None)


def _working(row: Endpoint) -> set[UUID]:
    """Return the units whose replicas work, as the last look showed them."""
    return {UUID(str(unit["unit"])) for unit in row.observed.get("units", ()) if unit["ready"] and unit["backend"]}


def _enough_work(row: Endpoint) -> bool:
    """Whether as many replicas work as it should have, whichever they are."""
    return len(_working(row)) >= len(AllocationSpec.from_json(row.allocation.spec).units)


def _no_certificate(replica: GatewayReplica) -> str:
    """Return why a gateway has no certificate for callers, `""` where it has one or needs none from here.

    One that is to be renewed and cannot be is still good for a while: the look from outside tells of it.
    """
    told = replica.report.get("certificate")
    if not told or told.get("version"):
        return ""
    if not told.get("trouble"):
        return "Its gateway is getting its certificate."
    return f"Its gateway has no certificate yet: {told['trouble']}"


def _draining(message: str) -> Wait:
    return Wait(ConditionType.DELETED, Reason.STEP_RUNNING, message, DRAIN_POLL_S)


def _routes(observed: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a gateway routes by: the backends of units that work, and the revision they serve."""
    units = observed.get("units", ())
    working = sorted(
        (str(unit["unit"]), str(unit["backend"]), unit.get("revision", 0), str(unit.get("gateway", "")))
        for unit in units
        if unit["backend"] and unit["ready"]
    )
    return (working, observed.get("revision") if working else None)


PASS = EndpointKind()
