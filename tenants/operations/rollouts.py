"""Another revision takes over: begun by who serves something else, then promoted, held, aborted, rolled back.

What happens on the way by itself is the endpoint's pass (`provisioners.rollouts`); the course is `tenants.rollouts`.
Lock order: tenant path, allocation, unit, host, boundary, endpoint, rollout.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.feasibility import locked_path
from tenants.models import Allocation, Endpoint, Provider, Revision, Rollout, Unit
from tenants.operations import products, surges
from tenants.operations.locking import locked_endpoint
from tenants.rollouts import Course, Move, Plan, aborting, promoting
from tenants.specs import RolloutAsk, RolloutLimits, RolloutStep
from tenants.states import BoundaryKind, RolloutState, RolloutStrategy
from tenants.transactions import operation

CAPABILITY: Final = "canary"
MOST_STEPS: Final = 10
LONGEST_STEP_S: Final = 7 * 86400
STRAIGHT: Final = RolloutAsk(RolloutStrategy.CANARY)
"""Beside the old one, and in its place as soon as it works: how one goes back unless something else is asked for."""


# --- between rows and courses ---------------------------------------------------------------------------


def live_of(endpoint: Endpoint) -> Rollout | None:
    """Return the rollout that an endpoint is in."""
    rows = Rollout.objects.select_related("before", "revision").filter(endpoint=endpoint, ended_at__isnull=True)
    return rows.first()


def plan_of(row: Rollout, *, in_machines: bool = False) -> Plan:
    """Return what was asked for; both revisions must be loaded. `in_machines`: the endpoint's boundary is of VMs."""
    return Plan(
        RolloutStrategy(row.strategy),
        row.before.number,
        row.revision.number,
        tuple(RolloutStep(**step) for step in row.steps),
        RolloutLimits(**row.limits),
        row.surge,
        stays=not in_machines,
    )


def in_machines(endpoint: Endpoint) -> bool:
    """Whether an endpoint's replicas run in machines of its own."""
    return endpoint.boundary is not None and endpoint.boundary.kind == BoundaryKind.VM.value


def course_of(row: Rollout) -> Course:
    """Return where a rollout is."""
    return Course(
        RolloutState(row.state),
        row.since,
        row.step,
        held=row.held_at is not None,
        on_new=frozenset(UUID(text) for text in row.on_new),
        draining=row.draining,
        leaving=row.leaving,
        unready_since=row.unready_since,
        reason=row.reason,
    )


def follow(endpoint: Endpoint, row: Rollout, move: Move, *, actor: Actor, now: datetime) -> None:
    """Store a move: the rollout, the revision that the endpoint should serve, the events, what gateways are told."""
    course, said = move
    row.state, row.since, row.step = course.state.value, course.since, course.step
    row.on_new = sorted(str(unit) for unit in course.on_new)
    row.draining, row.leaving = course.draining, course.leaving
    row.unready_since, row.reason = course.unready_since, course.reason
    row.held_at = row.held_at if course.held else None
    if course.state in {RolloutState.DONE, RolloutState.ABORTED}:
        row.ended_at = now
        if row.surge is not None:
            surges.stays(row.surge)
    row.save()
    serves = {RolloutState.PROMOTING: row.revision, RolloutState.ABORTING: row.before}.get(course.state)
    if serves is not None and endpoint.revision_id != serves.pk:
        Endpoint.objects.filter(pk=endpoint.pk).update(revision=serves)
        endpoint.revision = serves
    for one in said:
        desired.happened(endpoint, f"endpoint.{one.kind}", actor=actor, at=now, nudge=False, **one.data)
    products.touch_gateways([endpoint.boundary_id], now=now)


# --- begin ------------------------------------------------------------------------------------------------


def checked(ask: RolloutAsk) -> RolloutAsk:
    """Return an ask that makes sense. Raises `InvalidSpec`."""
    if ask.strategy is RolloutStrategy.RECREATE and (ask.steps or ask.must_have_room):
        msg = "Steps and a unit of its own belong to a canary; a recreate has none."
        raise InvalidSpec(msg, field="rollout.steps")
    if len(ask.steps) > MOST_STEPS:
        msg = f"A canary has at most {MOST_STEPS} steps."
        raise InvalidSpec(msg, field="rollout.steps")
    weights = [step.weight for step in ask.steps]
    if any(not 1 <= weight <= 100 for weight in weights) or weights != sorted(set(weights)):
        msg = "The weights of a canary's steps are percents from 1 to 100, each more than the one before."
        raise InvalidSpec(msg, field="rollout.steps")
    if any(step.seconds is not None and not 1 <= step.seconds <= LONGEST_STEP_S for step in ask.steps):
        msg = f"A step lasts 1 to {LONGEST_STEP_S} seconds, or until somebody promotes."
        raise InvalidSpec(msg, field="rollout.steps")
    rate = ask.limits.error_rate
    if rate is not None and not 0 <= rate < 1:
        msg = "The error rate is a share, from 0 to less than 1."
        raise InvalidSpec(msg, field="rollout.limits.error_rate")
    return ask


def claim_beside(endpoint: Endpoint, ask: RolloutAsk, *, actor: Actor, now: datetime) -> Unit | str | None:
    """Take the unit that a canary needs, before the endpoint is locked; the tenant's path is locked already.

    Returns the unit, why there is none, or None where none is asked for. Raises `Conflict` (`not-supported`,
    `no-room`).
    """
    checked(ask)
    if ask.strategy is not RolloutStrategy.CANARY:
        return None
    allocation = (
        Allocation.objects.select_for_update(no_key=True, of=("self",))
        .select_related("tenant", "boundary__provider")
        .get(pk=endpoint.allocation_id)
    )
    boundary = allocation.boundary
    units = Unit.objects.filter(allocation=allocation, released_at__isnull=True)
    if endpoint.slept_at is not None:
        return "It sleeps, so nothing runs that another revision could run beside."
    if boundary is None or any(unit.host_id is None for unit in units):
        return "It has no place yet, so nothing runs that another revision could run beside."
    if (why := refusal(boundary.kind, boundary.provider)) != "":
        raise Conflict(why, code="not-supported")
    if allocation.deletion_requested_at is not None:
        return "It is being deleted."
    if Rollout.objects.filter(endpoint=endpoint, ended_at__isnull=True).exists():
        return None  # told as what it is once the endpoint is locked
    claimed = surges.claim(allocation, actor=actor, now=now)
    if isinstance(claimed, str) and ask.must_have_room:
        raise Conflict(claimed, code="no-room")
    return claimed


def refusal(kind: str, provider: Provider) -> str:
    """Return why there can be no canary in a boundary of this kind at this provider, `""` where there can be one."""
    del kind  # a provider that can, can in every kind of boundary that it makes
    if not provider.capabilities.get("features", {}).get(CAPABILITY):
        return (
            f"The provider {provider.name} runs no two revisions of an endpoint beside each other. Roll out with the "
            "strategy recreate."
        )
    return ""


def refuse_moving(row: Endpoint) -> None:
    """Raise `Conflict` (`move-running`) for an endpoint that is on its way to another boundary."""
    if row.moving_to_id is not None:
        msg = "It is moving to another place; wait for the end of that, or undo it: one change at a time."
        raise Conflict(msg, code="move-running")


def begin(
    row: Endpoint,
    revision: Revision,
    ask: RolloutAsk,
    beside: Unit | str | None,
    *,
    actor: Actor,
    now: datetime,
) -> Rollout | None:
    """Let a revision of a locked endpoint take over, in the caller's operation; `beside` is `claim_beside`'s answer.

    None where nothing runs yet that could make way: it is simply what serves. Raises `Conflict` (`rollout-running`).
    """
    refuse_moving(row)
    live = live_of(row)
    if live is not None and live.strategy == RolloutStrategy.CANARY.value:
        msg = (
            f"Revision {live.revision.number} is taking over already; promote it or abort it first: one revision at a "
            "time."
        )
        raise Conflict(msg, code="rollout-running", revision=live.revision.number)
    before = row.revision
    if live is not None:  # a recreate that is overtaken; what really runs is found by looking
        reason = f"Revision {revision.number} was asked for instead."
        ended = replace(course_of(live), state=RolloutState.ABORTED, since=now, reason=reason)
        follow(row, live, (ended, ()), actor=actor, now=now)
        before = live.before
    if before is None or before.pk == revision.pk:
        _serve(row, revision)
        return None
    surge = beside if isinstance(beside, Unit) else None
    units = Unit.objects.filter(allocation_id=row.allocation_id, released_at__isnull=True).values_list("pk", flat=True)
    if surge is not None:
        state, on_new = RolloutState.PREPARING, [surge.pk]
    elif row.boundary is not None and row.ready_at is not None:
        state, on_new = RolloutState.DRAINING, []
    else:  # nothing serves yet
        state, on_new = RolloutState.PROMOTING, list(units)
    note = f"{beside} So the old replicas stop before the new ones start." if isinstance(beside, str) else ""
    made = Rollout.objects.create(
        tenant_id=row.tenant_id,
        endpoint=row,
        before=before,
        revision=revision,
        strategy=(RolloutStrategy.CANARY if surge is not None else RolloutStrategy.RECREATE).value,
        note=note[:500],
        steps=[asdict(step) for step in ask.steps] if surge is not None else [],
        limits=asdict(ask.limits),
        state=state.value,
        since=now,
        surge=None if surge is None else surge.pk,
        on_new=sorted(str(unit) for unit in on_new),
        author_id=actor.person_id,
        created_at=now,
    )
    if surge is None:
        _serve(row, revision)
    desired.happened(
        row, "endpoint.rollout-began", actor=actor, at=now, nudge=False, revision=revision.number,
        before=before.number, strategy=made.strategy, note=made.note, steps=made.steps,
    )  # fmt: skip
    return made


def _serve(row: Endpoint, revision: Revision) -> None:
    row.revision = revision
    row.save(update_fields=["revision"])


# --- on the way -------------------------------------------------------------------------------------------


@operation
def promote(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Rollout:
    """Let the new revision take over now, whatever its steps say. Raises `Conflict` (`no-rollout`, `not-ready`)."""
    row, live = _live(endpoint, "endpoints.promote", actor, version)
    if live.state != RolloutState.STEPPING.value:
        raise Conflict(_not_now(live, "promoted"), code="not-ready")
    follow(
        row,
        live,
        promoting(course_of(live), plan_of(live, in_machines=in_machines(row)), now=now),
        actor=actor,
        now=now,
    )
    desired.changed(row, "endpoint.rollout-promote-asked", actor=actor, at=now, revision=live.revision.number)
    return live


@operation
def hold(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Rollout:
    """Keep a canary at its step until it is resumed, promoted or aborted; it is judged all the same."""
    row, live = _live(endpoint, "endpoints.hold", actor, version)
    if live.state not in {RolloutState.PREPARING.value, RolloutState.STEPPING.value}:
        raise Conflict(_not_now(live, "held"), code="not-ready")
    if live.held_at is None:
        live.held_at = now
        live.save(update_fields=["held_at"])
        desired.changed(row, "endpoint.rollout-held", actor=actor, at=now, revision=live.revision.number)
    return live


@operation
def resume(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Rollout:
    """Let a canary that is held go on; its step begins anew."""
    row, live = _live(endpoint, "endpoints.resume", actor, version)
    if live.held_at is not None:
        live.held_at, live.since = None, now
        live.save(update_fields=["held_at", "since"])
        desired.changed(row, "endpoint.rollout-resumed", actor=actor, at=now, revision=live.revision.number)
    return live


@operation
def abort(*, endpoint: Endpoint, reason: str = "", actor: Actor, now: datetime, version: int | None = None) -> Rollout:
    """Go back to the revision that served before, wherever the rollout is. Safe to repeat."""
    row, live = _live(endpoint, "endpoints.abort", actor, version)
    if live.state != RolloutState.ABORTING.value:
        why = reason or "Somebody aborted it."
        follow(
            row,
            live,
            aborting(course_of(live), plan_of(live, in_machines=in_machines(row)), why, now=now),
            actor=actor,
            now=now,
        )
        desired.changed(row, "endpoint.rollout-abort-asked", actor=actor, at=now, revision=live.revision.number)
    return live


@operation
def rollback(
    *,
    endpoint: Endpoint,
    number: int | None = None,
    ask: RolloutAsk = STRAIGHT,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Endpoint:
    """Serve an earlier revision again, by default the one before; it takes over as any other does.

    By default beside the present one if there is room. Raises `Conflict` (`rollout-running`, `no-revision-before`,
    `not-supported`, `no-room`), `InvalidSpec`.
    """
    locked_path(endpoint.tenant)
    if (
        ask is STRAIGHT
        and endpoint.boundary is not None
        and refusal(endpoint.boundary.kind, endpoint.boundary.provider)
    ):
        ask = RolloutAsk()
    beside = claim_beside(endpoint, ask, actor=actor, now=now)
    row = locked_endpoint(endpoint, "endpoints.rollback", actor, version)
    refuse_moving(row)
    present = row.revision
    if present is None:
        msg = f"{row.name} serves nothing yet."
        raise Conflict(msg, code="no-revision-before")
    target = _target(row, present, number)
    begin(row, target, ask, beside, actor=actor, now=now)
    desired.changed(row, "endpoint.rolled-back", actor=actor, at=now, revision=target.number, before=present.number)
    products.touch_gateways([row.boundary_id], now=now)
    return row


def _target(row: Endpoint, present: Revision, number: int | None) -> Revision:
    if number is None:
        done = Rollout.objects.filter(endpoint=row, state=RolloutState.DONE.value, revision=present)
        last = done.select_related("before").order_by("-created_at").first()
        found = (
            last.before
            if last is not None
            else Revision.objects.filter(endpoint=row, number__lt=present.number).order_by("-number").first()
        )
        if found is None:
            msg = f"{row.name} has served no other revision before."
            raise Conflict(msg, code="no-revision-before")
        return found
    target = Revision.objects.filter(endpoint=row, number=number).first()
    if target is None:
        msg = f"{row.name} has no revision {number}."
        raise InvalidSpec(msg, field="revision", code="unknown-revision")
    if target.pk == present.pk:
        msg = f"{row.name} serves revision {number} already."
        raise Conflict(msg, code="serves-already")
    return target


def _live(endpoint: Endpoint, operation_id: str, actor: Actor, version: int | None) -> tuple[Endpoint, Rollout]:
    row = locked_endpoint(endpoint, operation_id, actor, version)
    live = live_of(row)
    if live is None:
        msg = f"No revision is taking over at {row.name}."
        raise Conflict(msg, code="no-rollout")
    return row, live


def _not_now(live: Rollout, word: str) -> str:
    states = {
        RolloutState.DRAINING: "its old replicas are ending their requests",
        RolloutState.PREPARING: "its first replica does not work yet",
        RolloutState.PROMOTING: "it is taking over already",
        RolloutState.ABORTING: "it is being aborted",
        RolloutState.STEPPING: "it gets its share of the requests",
    }
    return f"Revision {live.revision.number} cannot be {word} now: {states[RolloutState(live.state)]}."
