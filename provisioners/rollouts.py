"""Rollouts on their way: rows and what was seen → facts for `tenants.rollouts`, and its moves → rows.

Called in the endpoint's pass, in its open transaction and under the row's lock. Nothing here asks a provider: units are
as the last look showed them, requests as gateways reported them last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants.actor import SYSTEM
from tenants.canary_figures import LATENCY_MS, baseline, figures
from tenants.gateway_reports import gateways_of, shown
from tenants.models import Allocation, Endpoint, GatewayReplica, Rollout, Unit
from tenants.operations import rollouts
from tenants.rollouts import Course, Facts, UnitSeen, aborting, advance
from tenants.specs import AllocationSpec
from tenants.states import RolloutState, RolloutStrategy

FRESH: Final = timedelta(seconds=30)
"""A gateway silent for longer is not waited for."""
MOST_MOVES: Final = 12
SOON_S: Final = 0.5
"""Between looks while something is drained."""
LATER_S: Final = 2.0
"""While a replica starts; gateways' reports wake it meanwhile."""


def known_gateways(row: Endpoint) -> list[GatewayReplica]:
    """Return the same as `gateways_of`, read once for this row: as they were when its pass asked first."""
    if not hasattr(row, "gateways_read"):
        row.gateways_read = list(gateways_of(row))  # type: ignore[attr-defined]
    found: list[GatewayReplica] = row.gateways_read  # type: ignore[attr-defined]
    return found


# --- on its way -------------------------------------------------------------------------------------------


def go_on(row: Endpoint, live: Rollout, units: Sequence[Unit], *, now: datetime) -> None:
    """Make every move that is due; `units` are all that are held for the endpoint."""
    plan = rollouts.plan_of(live, in_machines=rollouts.in_machines(row))
    for _ in range(MOST_MOVES):
        gateways = list(gateways_of(row))  # anew: each move gives them another version to have
        course = rollouts.course_of(live)
        move = advance(course, plan, _facts(row, live, course, units, gateways, plan.new, now=now))
        if move is None:
            return
        if (move[0].state, move[0].step) != (course.state, course.step) or move[0].since != course.since:
            live.baseline = baseline(row.pk, gateways, plan.new)
        rollouts.follow(row, live, move, actor=SYSTEM, now=now)
        if live.ended_at is not None:
            return


def give_up(row: Endpoint, live: Rollout, why: str, *, now: datetime) -> None:
    """Go back to the old revision: the new one cannot be served at all."""
    course = rollouts.course_of(live)
    if course.state is not RolloutState.ABORTING:
        rollouts.follow(row, live, aborting(course, rollouts.plan_of(live), why, now=now), actor=SYSTEM, now=now)


def _facts(
    row: Endpoint,
    live: Rollout,
    course: Course,
    units: Sequence[Unit],
    gateways: Sequence[GatewayReplica],
    new: int,
    *,
    now: datetime,
) -> Facts:
    seen = {str(unit["unit"]): unit for unit in row.observed.get("units", ())}
    spec = AllocationSpec.from_json(row.allocation.spec)
    return Facts(
        now=now,
        replicas=len(spec.units),
        units=tuple(_unit(unit, seen.get(str(unit.pk), {}), row) for unit in units),
        quiet=_quiet(row, [unit.pk for unit in units], gateways, course, now=now),
        figures=figures(row.pk, gateways, live.baseline, new),
        bounds=LATENCY_MS,
    )


def _unit(unit: Unit, seen: Mapping[str, Any], row: Endpoint) -> UnitSeen:
    revision = seen.get("revision") or row.observed.get("revision")
    return UnitSeen(unit.pk, unit.index, revision, ready=bool(seen.get("ready") and seen.get("backend")))


def _quiet(
    row: Endpoint, units: Iterable[UUID], gateways: Iterable[GatewayReplica], course: Course, *, now: datetime
) -> frozenset[UUID]:
    """Return the units that no gateway sends anything to and that answer nothing, by reports about this moment's rules.

    A report is of use only when it is of the configuration that the gateway is to have now, and younger than the
    wait for it. Gateways that are silent, or are simulated and never enrol, are not waited for.
    """
    quiet = set(units)
    for replica in gateways:
        if replica.enrolled_at is None or replica.last_seen_at is None or replica.last_seen_at <= now - FRESH:
            continue
        body = replica.report if isinstance(replica.report, dict) else {}
        if int(body.get("config_version", 0)) < replica.config_version:
            return frozenset()
        busy = {
            UUID(str(backend["unit_uid"]))
            for backend in shown(replica, row.pk).get("backends", ())
            if backend.get("in_flight")
        }
        quiet -= busy
    stopping = {course.draining, course.leaving} - {None}
    # Only who is being drained can be quiet for good; when all are, it is everybody.
    return frozenset(quiet if course.state is RolloutState.DRAINING else quiet & stopping)


def all_quiet(row: Endpoint, units: Sequence[UUID], *, now: datetime) -> bool:
    """Whether no request runs at any of these units, by reports about what gateways are to serve now."""
    course = Course(RolloutState.DRAINING, now)
    return set(units) <= _quiet(row, units, gateways_of(row), course, now=now)


def last_use(row: Endpoint, *, now: datetime) -> datetime | None:
    """Return when somebody asked an endpoint for something last; None while it is not known: a gateway is silent."""
    latest: datetime | None = None
    gateways = list(gateways_of(row))
    for replica in gateways:
        if replica.enrolled_at is None or replica.last_seen_at is None or replica.last_seen_at <= now - FRESH:
            return None
        found = shown(replica, row.pk)
        if not found:
            return None
        asked, started = found.get("last_request_at"), replica.report.get("started_at")
        at = datetime.fromisoformat(str(asked or started))
        if found.get("in_flight") or found.get("waiting"):
            at = now
        latest = at if latest is None else max(latest, at)
    return latest


# --- when to look again -----------------------------------------------------------------------------------


def due_at(live: Rollout, *, now: datetime) -> datetime:
    """Return when a rollout is to be looked at again although nobody reports anything."""
    if live.draining is not None or live.leaving is not None or live.state == RolloutState.DRAINING.value:
        return now + timedelta(seconds=SOON_S)
    if live.state == RolloutState.STEPPING.value and live.unready_since is None:
        seconds = live.steps[live.step]["seconds"]
        if live.held_at is not None or seconds is None:
            return now + FRESH
        return min(max(live.since + timedelta(seconds=seconds), now), now + FRESH)
    return now + timedelta(seconds=LATER_S)


def is_canary(live: Rollout | None) -> bool:
    """Whether two revisions run beside each other, or are to."""
    return live is not None and live.strategy == RolloutStrategy.CANARY.value


def unit_of(row: Endpoint, unit: UUID) -> tuple[Allocation, Unit] | None:
    """Return a unit that is still held, with its allocation locked; None where it was given back already."""
    allocation = Allocation.objects.select_for_update(no_key=True).get(pk=row.allocation_id)
    found = Unit.objects.filter(pk=unit, allocation=allocation, released_at__isnull=True).first()
    return None if found is None else (allocation, found)
