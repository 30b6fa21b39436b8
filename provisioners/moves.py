"""Moves on their way: rows and what was seen → facts for `tenants.moves`, and its steps → rows.

Called in the pass of the endpoint that moves, under its row's lock (`go_on`), or before that where allocations are
locked first (`before_conclude`). Its stand-in has a pass like any endpoint. Nothing here asks a provider.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from provisioners.lease import StaleLease
from provisioners.passes import in_transaction
from provisioners.rollouts import FRESH, SOON_S
from tenants import moves as course
from tenants.actor import SYSTEM
from tenants.models import Endpoint, Move
from tenants.moves import Facts
from tenants.operations import moves
from tenants.rollout_counts import gateways_of, shown
from tenants.states import STOPPING_REASONS, ConditionType, MoveState, Phase, condition_of

QUIET: Final = timedelta(seconds=5)
"""Without a request for so long, nobody asks at a place any more who knows the other one."""
MOST_STEPS: Final = 4
CHORE: Final = "move"
WORKING: Final = frozenset({Phase.READY.value, Phase.DEGRADED.value, Phase.EXPIRING.value})


def live_of(row: Endpoint) -> Move | None:
    """Return the move that a place belongs to, asked for only where the row says that there is one; read once."""
    if row.moving_to_id is None and row.stands_in_for_id is None:
        return None
    if not hasattr(row, "move"):
        row.move = moves.live_of(row)  # type: ignore[attr-defined]
    found: Move | None = row.move  # type: ignore[attr-defined]
    return found


def is_moving(row: Endpoint) -> bool:
    """Whether an endpoint is on its way to another place, as its row says."""
    return row.moving_to_id is not None


def is_given_up(row: Endpoint, live: Move | None) -> bool:
    """Whether callers should leave a place for the one that has the name: its gateways close their connections."""
    if live is None or live.cut_at is None:
        return False
    return not moves.is_named(row, live)


def go_on(row: Endpoint, *, now: datetime) -> datetime | None:
    """Make every step that is due; return when to look again, None where it does not move."""
    live = Move.objects.select_related("stand_in__boundary__provider").filter(
        endpoint_id=row.pk, ended_at__isnull=True
    ).first()  # fmt: skip
    if live is None:
        return None
    live.endpoint = row
    other = live.stand_in
    if other is not None and other.boundary is not None and live.target.get("provider", "") == "":
        live.target = {**live.target, **moves.place_of(other.boundary)}
        live.save(update_fields=["target"])
    for _ in range(MOST_STEPS):
        facts = _facts(row, live, now=now)
        step = course.advance(moves.course_of(live), facts, by_hand=live.by_hand, watch_s=live.watch_s)
        if step is None:
            break
        moves.follow(live, step, actor=SYSTEM, now=now)
        row.refresh_from_db(fields=["generation"])
        if other is not None:
            other.refresh_from_db()
    if live.state == MoveState.WATCHING.value and live.unready_since is None:
        return min(live.since + timedelta(seconds=live.watch_s), now + FRESH)
    if live.state == MoveState.BESIDE.value:
        return now + FRESH
    return now + timedelta(seconds=SOON_S)


def before_conclude(endpoint: UUID, *, deleting: bool, now: datetime) -> None:
    """Give up the place that is to go, once it may. Raises `StaleLease` where what this pass saw is no more its own."""

    def end() -> bool:
        live = Move.objects.select_related("stand_in__boundary__provider").filter(
            endpoint_id=endpoint, ended_at__isnull=True
        ).first()  # fmt: skip
        if live is None:
            return False
        if deleting:
            moves.give_up(live, moves.DELETED, now=now)
            return False
        row = Endpoint.objects.get(pk=endpoint)
        facts = _facts(row, live, now=now)
        if course.may_give_up(moves.course_of(live), facts):
            moves.give_up(live, now=now)
            return False
        return course.may_take_over(moves.course_of(live), facts) and moves.take_over(live, now=now)

    if in_transaction(end):
        raise StaleLease


# --- facts ------------------------------------------------------------------------------------------------


def _facts(row: Endpoint, live: Move, *, now: datetime) -> Facts:
    other = live.stand_in
    leaves = row if live.state == MoveState.LEAVING.value else other
    return Facts(
        now=now,
        works=other is not None and _works(other),
        stopped=_stopped(other),
        named=_is_told(row) and other is not None and _is_told(other),
        quiet=leaves is not None and _is_quiet(leaves, now=now),
    )


def _works(place: Endpoint) -> bool:
    ready = condition_of(place.conditions, ConditionType.READY)
    return ready is not None and ready["status"] == "True" and place.phase in WORKING and bool(place.address)


def _stopped(place: Endpoint | None) -> str:
    """Return why the new place will never do, `""` while it may."""
    if place is None or place.deletion_requested_at is not None:
        return "Its new place was taken away."
    if place.boundary is not None and (why := moves.refusal(place.boundary.provider)):
        return why
    if place.observed_generation < place.generation:
        return ""
    for one in place.conditions:
        if one["status"] == "False" and one["reason"] in STOPPING_REASONS:
            return f"It cannot be made there: {one['message']}"
    return ""


def _is_told(place: Endpoint) -> bool:
    """Whether a pass has made true at a provider what the place is to be now."""
    done = condition_of(place.conditions, ConditionType.PROVISIONED)
    return place.observed_generation == place.generation and done is not None and done["status"] == "True"


def _is_quiet(place: Endpoint, *, now: datetime) -> bool:
    """Whether no request runs and none came lately, by reports of gateways that serve what they are to serve now."""
    for replica in gateways_of(place):
        if replica.enrolled_at is None or replica.last_seen_at is None or replica.last_seen_at <= now - FRESH:
            continue  # simulated or silent: not waited for
        if int(replica.report.get("config_version", 0)) < replica.config_version:
            return False
        found = shown(replica, place.served_id)
        asked = found.get("last_request_at")
        if found.get("in_flight") or found.get("waiting"):
            return False
        if asked is not None and datetime.fromisoformat(str(asked)) > now - QUIET:
            return False
    return True
