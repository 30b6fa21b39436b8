"""An endpoint goes to another boundary: asked for, cut over, finished, undone.

What happens on the way by itself is the endpoint's pass (`provisioners.moves`); the course is `tenants.moves`. The
other place is an endpoint of its own that people do not see (`Endpoint.stands_in_for`), with an allocation of its own:
within quota, charged, billed from when it works. Lock order: tenant path, host, boundary, allocations, endpoints, move.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import uuid4

from tenants import access, desired
from tenants.actor import SYSTEM, Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.feasibility import locked_path
from tenants.models import Allocation, Boundary, Endpoint, Intent, Move, Provider, QuotaCharge, Rollout
from tenants.moves import Course, Step, cutting, leaving, undoing
from tenants.operations import allocations, products
from tenants.operations.allocations import request_deletion
from tenants.operations.locking import locked_endpoint
from tenants.policies import ROUTES
from tenants.specs import AllocationSpec, MoveAsk
from tenants.states import MOVE_CUT, MOVE_FINAL, ConditionType, MoveState, ProductKind, condition_of, phase_of
from tenants.transactions import operation

CAPABILITY: Final = "move"
LONGEST_WATCH_S: Final = 7 * 86400
DELETED: Final = "The endpoint was deleted."
TERM_FIELDS: Final = ("expires_at", "warned_days", "grace_until", "duration_s", "not_after")
"""What an allocation that is taken over has from the one before: the move is no renewal."""


# --- between rows and courses ---------------------------------------------------------------------------


def live_of(endpoint: Endpoint) -> Move | None:
    """Return the move that an endpoint is in."""
    return Move.objects.filter(endpoint_id=endpoint.served_id, ended_at__isnull=True).first()


def course_of(row: Move) -> Course:
    """Return where a move is."""
    return Course(MoveState(row.state), row.since, row.cut_at, row.unready_since, row.reason)


def is_named(place: Endpoint, live: Move | None) -> bool:
    """Whether a place of an endpoint is to have its name, `live` being the move that it is in."""
    if live is None:
        return place.stands_in_for_id is None
    return (live.state in MOVE_CUT) is (place.stands_in_for_id is not None)


def follow(row: Move, step: Step, *, actor: Actor, now: datetime) -> None:
    """Store a step; places that are to have the name, or not to have it any more, become due, and gateways are told."""
    course, said = step
    moved = (course.state in MOVE_CUT) is not (row.state in MOVE_CUT)
    row.state, row.since, row.cut_at = course.state.value, course.since, course.cut_at
    row.unready_since, row.reason = course.unready_since, course.reason
    row.ended_at = now if course.state in MOVE_FINAL else None
    row.save()
    endpoint = row.endpoint
    for one in said:
        desired.happened(endpoint, f"endpoint.{one.kind}", actor=actor, at=now, nudge=False, **one.data)
    if not said:
        return
    places = [endpoint, *([] if row.stand_in is None else [row.stand_in])]
    if moved:
        for place in places:
            desired.respecified(place, at=now)
    products.touch_gateways([place.boundary_id for place in places], now=now)


# --- asked for ------------------------------------------------------------------------------------------


@operation
def begin(*, endpoint: Endpoint, ask: MoveAsk, actor: Actor, now: datetime, version: int | None = None) -> Move:
    """Build an endpoint a second time in another boundary, to go there.

    Raises `InvalidSpec`, `QuotaExceeded`, `Conflict` (`move-running`, `rollout-running`, `not-ready`, `not-supported`,
    `moves-nowhere`, `deleting`).
    """
    access.check(actor, endpoint.tenant, ROUTES["endpoints.move"])
    if not 0 <= ask.watch_s <= LONGEST_WATCH_S:
        msg = "Both places stay for 0 seconds to 7 days."
        raise InvalidSpec(msg, field="watch_s")
    locked_path(endpoint.tenant)
    before = Endpoint.objects.select_related("allocation", "boundary__provider").get(pk=endpoint.pk)
    _refuse(before)
    spec = _spec(AllocationSpec.from_json(before.allocation.spec), ask)
    name = f"{before.name[:30].rstrip('-')}-move-{uuid4().hex[:4]}"
    allocation = allocations.submit(
        tenant=before.tenant,
        asks=[
            allocations.Ask(
                name,
                spec,
                ProductKind.ENDPOINT,
                before.pk,
                before.labels,
                before.description,
                before.managed_by,
                is_second=True,
            )
        ],
        actor=actor,
        now=now,
    )[0]
    _refuse_place(before, allocation.boundary)
    row = locked_endpoint(endpoint, "endpoints.move", actor, version)
    _refuse(row)
    stand_in = _stand_in(row, allocation, name, now=now)
    made = Move.objects.create(
        tenant_id=row.tenant_id,
        endpoint=row,
        stand_in=stand_in,
        source=place_of(row.boundary),
        target={"kind": ask.kind.value, "provider": ask.provider, "site": ask.site} | place_of(allocation.boundary),
        by_hand=ask.by_hand,
        watch_s=ask.watch_s,
        state=MoveState.PREPARING.value,
        since=now,
        author_id=actor.person_id,
        created_at=now,
    )
    Endpoint.objects.filter(pk=row.pk).update(moving_to=stand_in)
    desired.changed(
        row, "endpoint.move-began", actor=actor, at=now, source=made.source, target=made.target, by_hand=made.by_hand,
    )  # fmt: skip
    return made


def place_of(boundary: Boundary | None) -> dict[str, str]:
    """Return what is said of a place; nothing before there is one."""
    if boundary is None:
        return {}
    return {"kind": boundary.kind, "provider": boundary.provider.name, "site": boundary.provider.site}


def refusal(provider: Provider) -> str:
    """Return why no endpoint can move to or from a provider, `""` where it can."""
    if provider.capabilities.get("features", {}).get(CAPABILITY):
        return ""
    return (
        f"The provider {provider.name} gives endpoints no address that could follow them to another place. Make a new "
        "endpoint there, and change the address with your callers."
    )


def apart(source: Provider, target: Provider) -> str:
    """Return why an endpoint cannot move between two providers that can both let one go, `""` where it can."""
    here, there = (str(one.config.get("zone") or "").strip(".").lower() for one in (source, target))
    if here == there:
        return ""
    return (
        f"The endpoint's address would change: those of {source.name} end in {here or 'no zone'}, those of "
        f"{target.name} end in {there or 'no zone'}. Give both providers the same zone."
    )


def _refuse(row: Endpoint) -> None:
    """Raise `Conflict` unless an endpoint can begin to move now."""
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    if Endpoint._base_manager.filter(stands_in_for=row, released_at__isnull=True).exists():
        msg = f"{row.name} is moving already, or its last move is still being cleared up."
        raise Conflict(msg, code="move-running")
    if Rollout.objects.filter(endpoint=row, ended_at__isnull=True).exists():
        msg = "Another revision is taking over; wait for its end, or abort it."
        raise Conflict(msg, code="rollout-running")
    ready = condition_of(row.conditions, ConditionType.READY)
    if row.boundary is None or row.slept_at is not None or ready is None or ready["status"] != "True":
        msg = f"{row.name} does not work now, so there is nothing to compare the other place with; wait, or wake it."
        raise Conflict(msg, code="not-ready")
    if why := refusal(row.boundary.provider):
        raise Conflict(why, code="not-supported")


def _refuse_place(row: Endpoint, boundary: Boundary | None) -> None:
    if boundary is None:
        return
    if boundary.pk == row.boundary_id:
        msg = f"{row.name} is there already."
        raise Conflict(msg, code="moves-nowhere")
    assert row.boundary is not None  # it works somewhere
    if why := refusal(boundary.provider) or apart(row.boundary.provider, boundary.provider):
        raise Conflict(why, code="not-supported")


def _spec(present: AllocationSpec, ask: MoveAsk) -> AllocationSpec:
    """Return what is to be held at the other place: as many replicas, of the same size but for the GPU."""
    units = tuple(unit if ask.gpu is None else replace(unit, gpu=ask.gpu) for unit in present.units)
    where = replace(present.where, kind=ask.kind, provider=ask.provider, site=ask.site)
    return replace(present, units=units, where=where)


def _stand_in(row: Endpoint, allocation: Allocation, name: str, *, now: datetime) -> Endpoint:
    said = {ConditionType.APPROVED, ConditionType.PLACED}
    made = Endpoint(
        id=uuid4(),
        tenant_id=row.tenant_id,
        name=name,
        managed_by=row.managed_by,
        allocation=allocation,
        boundary=allocation.boundary,
        owner_id=row.owner_id,
        revision=row.revision,
        wake_wait_s=row.wake_wait_s,
        stands_in_for=row,
        finalizers=["provider"],
        created_at=now,
        due_at=now,
        conditions=[one for one in allocation.conditions if one["type"] in said],
    )
    made.phase = phase_of(made.conditions, deleting=False, released=False).value
    made.save(force_insert=True)
    return made


# --- on the way -----------------------------------------------------------------------------------------


@operation
def cut_over(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Move:
    """Let the name go over now. Raises `Conflict` (`no-move`, `not-ready`)."""
    live = _live(endpoint, "endpoints.cut_over", actor, version)
    if live.state in MOVE_CUT:
        return live
    if live.state != MoveState.BESIDE.value:
        raise Conflict(_not_now(live, "cut over"), code="not-ready")
    follow(live, cutting(course_of(live), now=now), actor=actor, now=now)
    return live


@operation
def finish(*, endpoint: Endpoint, actor: Actor, now: datetime, version: int | None = None) -> Move:
    """Give the old place up now, however long it was to stay. Raises `Conflict` (`no-move`, `not-ready`)."""
    live = _live(endpoint, "endpoints.finish_move", actor, version)
    if live.state == MoveState.LEAVING.value:
        return live
    if live.state != MoveState.WATCHING.value:
        raise Conflict(_not_now(live, "finished"), code="not-ready")
    follow(live, leaving(course_of(live), now=now), actor=actor, now=now)
    desired.nudge_now(live.endpoint, at=now)
    return live


@operation
def undo(*, endpoint: Endpoint, reason: str = "", actor: Actor, now: datetime, version: int | None = None) -> Move:
    """Go back to the old place, wherever the move is but for its last moments. Safe to repeat.

    Raises `Conflict` (`no-move`, `not-ready`).
    """
    live = _live(endpoint, "endpoints.undo_move", actor, version)
    if live.state == MoveState.LEAVING.value:
        raise Conflict(_not_now(live, "undone"), code="not-ready")
    if live.state != MoveState.UNDOING.value:
        follow(live, undoing(course_of(live), reason or "Somebody undid it.", now=now), actor=actor, now=now)
        desired.nudge_now(live.endpoint, at=now)
    return live


def _live(endpoint: Endpoint, operation_id: str, actor: Actor, version: int | None) -> Move:
    row = locked_endpoint(endpoint, operation_id, actor, version)
    live = Move.objects.select_related("endpoint", "stand_in").filter(endpoint=row, ended_at__isnull=True).first()
    if live is None:
        msg = f"{row.name} is not moving."
        raise Conflict(msg, code="no-move")
    return live


def _not_now(live: Move, word: str) -> str:
    states = {
        MoveState.PREPARING: "it does not work at the new place yet",
        MoveState.BESIDE: "its address has not gone over yet",
        MoveState.CUTTING: "its address is just going over",
        MoveState.WATCHING: "its address is at the new place",
        MoveState.LEAVING: "its old place is being given up; move it back instead",
        MoveState.UNDOING: "it is being undone",
    }
    return f"The move cannot be {word} now: {states[MoveState(live.state)]}."


# --- the end --------------------------------------------------------------------------------------------


def take_over(move: Move, *, now: datetime) -> bool:
    """Let an endpoint take its new place over, and its stand-in the old one, which goes. Plain.

    False while a pass or a step is on its way at either: what that finds out would be about the other place. Both rows'
    leases are fenced, so nothing of a pass that began before is stored.
    """
    row, other, old, new = _both(move)
    if other is None or new is None or other.deletion_requested_at is not None or row.deletion_requested_at is not None:
        return False
    if other.lease_expires_at is not None and other.lease_expires_at > now:
        return False
    if Intent.objects.filter(
        object_kind="endpoint", object_id__in=[row.pk, other.pk], settled_at__isnull=True
    ).exists():
        return False
    _swap_allocations(row, old, new, now=now)
    _swap_places(row, other, old, new, now=now)
    _end(move, MoveState.DONE, now=now)
    desired.happened(
        row, "endpoint.move-done", actor=SYSTEM, at=now, nudge=False, source=move.source, target=move.target
    )
    request_deletion(other, actor=SYSTEM, now=now, kind="endpoint.deletion-requested")
    request_deletion(old, actor=SYSTEM, now=now, kind="allocation.deletion-requested")
    products.touch_gateways([row.boundary_id, other.boundary_id], now=now)
    return True


def give_up(move: Move, reason: str = "", *, now: datetime) -> None:
    """Let the new place of a move that is undone go. Plain."""
    row, other, _, new = _both(move)
    if reason:
        move.reason = reason
    _end(move, MoveState.UNDONE, now=now)
    desired.happened(row, "endpoint.move-undone", actor=SYSTEM, at=now, nudge=False, why=move.reason)
    if other is not None and request_deletion(other, actor=SYSTEM, now=now, kind="endpoint.deletion-requested"):
        assert new is not None
        request_deletion(new, actor=SYSTEM, now=now, kind="allocation.deletion-requested")
        products.touch_gateways([row.boundary_id, other.boundary_id], now=now)


def _both(move: Move) -> tuple[Endpoint, Endpoint | None, Allocation, Allocation | None]:
    """Lock both places with their allocations: (endpoint, stand-in, its allocation, the stand-in's)."""
    keys = [move.endpoint_id, *([] if move.stand_in_id is None else [move.stand_in_id])]
    held = dict(Endpoint._base_manager.filter(pk__in=keys).values_list("pk", "allocation_id"))
    locked = {
        row.pk: row
        for row in Allocation.objects.select_for_update(no_key=True).filter(pk__in=held.values()).order_by("pk")
    }
    rows = {
        row.pk: row for row in Endpoint._base_manager.select_for_update(no_key=True).filter(pk__in=keys).order_by("pk")
    }
    row, other = rows[move.endpoint_id], rows.get(move.stand_in_id) if move.stand_in_id else None
    return row, other, locked[row.allocation_id], None if other is None else locked[other.allocation_id]


def _swap_allocations(row: Endpoint, old: Allocation, new: Allocation, *, now: datetime) -> None:
    """Give the new allocation the name and the term of the old one, and its count as an endpoint."""
    _swap_counts(old, new)
    name = new.name
    Allocation.objects.filter(pk=new.pk).update(name=f"m-{uuid4().hex[:12]}")
    Allocation.objects.filter(pk=old.pk).update(name=name)
    kept = {field: getattr(old, field) for field in TERM_FIELDS}
    Allocation.objects.filter(pk=new.pk).update(name=row.name, due_at=now, **kept)
    old.refresh_from_db()


def _swap_counts(old: Allocation, new: Allocation) -> None:
    """Let the endpoint count where it is from now on; what leaves counts for its units only. The sum stays the same."""
    dimension = allocations.PRODUCT_DIMENSION[ProductKind.ENDPOINT]
    if dimension in new.demand or dimension not in old.demand:
        return  # a move that began before a second place counted apart
    QuotaCharge.objects.filter(allocation=old, dimension=dimension).update(allocation=new)
    new.demand = {**new.demand, dimension: old.demand[dimension]}
    old.demand = {name: amount for name, amount in old.demand.items() if name != dimension}
    for row in (old, new):
        Allocation.objects.filter(pk=row.pk).update(demand=row.demand)


def _swap_places(row: Endpoint, other: Endpoint, old: Allocation, new: Allocation, *, now: datetime) -> None:
    here = (row.seat or row.pk, row.boundary, row.observed, row.fingerprint)
    there = (other.seat or other.pk, other.boundary, other.observed, other.fingerprint)
    places = Endpoint._base_manager
    for place in (row, other):
        places.filter(pk=place.pk).update(seat=uuid4())  # no two have the same seat, for no moment
    for place, holds, (seat, boundary, observed, fingerprint) in ((row, new, there), (other, old, here)):
        place.seat, place.boundary, place.observed, place.fingerprint = seat, boundary, observed, fingerprint
        place.allocation, place.due_at = holds, now
        place.lease_owner, place.lease_expires_at, place.lease_epoch = "", None, place.lease_epoch + 1
        place.generation += 1
    row.moving_to = None
    # In one statement: each allocation has one owner at its end.
    places.bulk_update(
        [row, other],
        ["seat", "boundary", "observed", "fingerprint", "allocation", "due_at", "lease_owner", "lease_expires_at",
         "lease_epoch", "generation", "moving_to"],
    )  # fmt: skip


def _end(move: Move, state: MoveState, *, now: datetime) -> None:
    move.state, move.since, move.ended_at = state.value, now, now
    move.save(update_fields=["state", "since", "ended_at", "reason"])
    Endpoint._base_manager.filter(pk=move.endpoint_id).update(moving_to=None)
