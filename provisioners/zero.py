"""Endpoints at zero in their passes: stop once nobody uses them, give units back, ask for them again, tell what is so.

The operations are `tenants.operations.idling`. Whether somebody uses one is what its gateways reported last; where a
gateway is silent nobody knows, so nothing is put to sleep by itself.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners import rollouts
from provisioners.driver import Observed, Presence
from provisioners.lease import Claim
from provisioners.passes import Prepared, Seen, in_transaction, say
from provisioners.rollouts import FRESH, SOON_S
from provisioners.steps import split
from tenants import desired
from tenants.actor import SYSTEM
from tenants.gateway_reports import gateways_of, shown
from tenants.models import Allocation, Endpoint, QuotaCharge, Unit
from tenants.operations import admissions, idling
from tenants.operations.products import touch_gateways
from tenants.rollouts import DRAIN_LIMIT
from tenants.states import BoundaryKind, ConditionType, IdleUnits, Reason, condition_of

AWAKE: Final = "awake"
"""In `Endpoint.observed`: for which waking it was seen ready."""
ASLEEP_WORDS: Final = "It sleeps: no replica runs. The next request wakes it and waits for it."
GIVEN_BACK: Final = "It sleeps, and its units are given back: the next request asks for room and waits for it."
STOPPING: Final = "It goes to sleep: running requests end first."
WAKING: Final = "It is being woken, and requests wait for it."


def gives_back(row: Endpoint) -> bool:
    """Whether its units are given back at zero: never those of machines, for the gateways that wake it run in them."""
    in_machines = row.boundary is not None and row.boundary.kind == BoundaryKind.VM.value
    return row.idle_units == IdleUnits.RELEASE.value and not in_machines


def _is_at_zero(row: Any) -> bool:
    """Whether the last look showed that no replica runs."""
    return row.observed.get("power") == "off" or bool(row.observed.get("asleep"))


def may_stop(row: Endpoint, *, now: datetime) -> bool:
    """Whether the replicas of an endpoint that is to sleep may stop: no request runs, or they had time enough."""
    assert row.slept_at is not None
    if _is_at_zero(row) or now >= row.slept_at + DRAIN_LIMIT:
        return True
    if _stops_already(row):
        return True
    units = Unit.objects.filter(allocation_id=row.allocation_id, released_at__isnull=True).values_list("pk", flat=True)
    return rollouts.all_quiet(row, list(units), now=now)


def _stops_already(row: Endpoint) -> bool:
    """Whether its replicas were seen to take no requests and none runs: news of that must start none of them again."""
    seen = row.observed.get("units", ())
    if not seen or any(unit.get("backend") for unit in seen):
        return False
    return not any(shown(replica, row.served_id).get("in_flight") for replica in gateways_of(row))


def give_back(claim: Claim, observed: Observed, *, now: datetime) -> None:
    """Give back the units of an endpoint at zero that keeps none, once an exact look shows that nothing runs."""
    with contextlib.suppress(_WokenError):  # somebody woke it meanwhile: nothing of this counts
        in_transaction(lambda: _give_back(claim, observed, now=now))


def _give_back(claim: Claim, observed: Observed, *, now: datetime) -> None:
    row = Endpoint.objects.filter(
        pk=claim.pk, slept_at__isnull=False, idle_units=IdleUnits.RELEASE.value, deletion_requested_at=None
    ).first()
    if row is None or str(observed.power) != "off" or _is_changing(observed):
        return
    allocation = (
        Allocation.objects.select_for_update(no_key=True, of=("self",))
        .select_related("boundary")
        .get(pk=row.allocation_id)
    )
    held = Unit.objects.filter(allocation=allocation, released_at__isnull=True, host__isnull=False)
    if allocation.deletion_requested_at is not None or not held.exists():
        return
    admissions.rest(allocation, now=now)
    locked = claim.lock()
    if locked.slept_at is None:
        raise _WokenError
    desired.happened(locked, "endpoint.units-given-back", actor=SYSTEM, at=now, nudge=False)


class _WokenError(Exception):
    """Leaves the transaction."""


def _is_changing(observed: Observed) -> bool:
    replicas = [part for part in observed.parts if split(part.step)[0] == "serving.replica"]
    return any(part.presence is not Presence.PRESENT for part in replicas)


def ask_for_room(endpoint: UUID, *, now: datetime) -> None:
    """Ask for the units of an endpoint again that was woken; without room it waits in the queue like anybody."""
    row = Endpoint.objects.filter(pk=endpoint, slept_at=None, woken_at__isnull=False, deletion_requested_at=None)

    def missing() -> Allocation | None:
        found = row.select_related("allocation__tenant").first()
        if (
            found is None
            or not Unit.objects.filter(
                allocation_id=found.allocation_id, released_at__isnull=True, host__isnull=True
            ).exists()
        ):
            return None
        allocation = (
            Allocation.objects.select_for_update(no_key=True, of=("self",))
            .select_related("tenant")
            .get(pk=found.allocation_id)
        )
        if allocation.queued_at is not None or QuotaCharge.objects.filter(allocation=allocation).exists():
            return None
        admissions.queue_again(allocation, now=now)
        return allocation

    waiting = in_transaction(missing)
    if waiting is not None:
        in_transaction(lambda: admissions.admit(waiting, actor=SYSTEM, now=now))


# --- telling ----------------------------------------------------------------------------------------------


def told(
    row: Any, prepared: Prepared, seen: Seen, due_at: datetime | None, *, is_rolling: bool, now: datetime
) -> datetime | None:
    """Say of an endpoint what is so with zero; put one to sleep that nobody uses. Returns when to look again."""
    if row.deletion_requested_at is not None or prepared.refused is not None:
        return due_at
    if row.slept_at is not None:
        return _asleep(row, seen, due_at, now=now)
    ready = condition_of(row.conditions, ConditionType.READY)
    # What was said of it while it slept is no word on how it is now.
    if ready is None or ready["status"] != "True" or ready["reason"] == Reason.ASLEEP:
        if is_waking(row) and seen.error is None and ready is not None:
            now_so = "" if ready["reason"] == Reason.ASLEEP else str(ready["message"])
            say(row, ConditionType.READY, "False", Reason.WAKING, f"{WAKING} {now_so}".strip(), now=now)
            row.conditions = [c for c in row.conditions if c["type"] != ConditionType.HEALTHY]
        return due_at
    return due_at if is_rolling else _idle(row, due_at, now=now)


def _asleep(row: Any, seen: Seen, due_at: datetime | None, *, now: datetime) -> datetime | None:
    held = Unit.objects.filter(allocation_id=row.allocation_id, host__isnull=False).exists()
    off = _is_at_zero(row)
    words = GIVEN_BACK if not held else ASLEEP_WORDS if off else STOPPING
    if seen.error is None:
        say(row, ConditionType.READY, "True", Reason.ASLEEP, words, now=now)
        say(row, ConditionType.SERVING, "False", Reason.ASLEEP, words, now=now)
        say(row, ConditionType.HEALTHY, "True", Reason.DONE, "", now=now)
    if held and not off:
        soon = now + timedelta(seconds=SOON_S)
        return soon if due_at is None else min(due_at, soon)
    return due_at


def _idle(row: Any, due_at: datetime | None, *, now: datetime) -> datetime | None:
    """Put an endpoint to sleep that nobody has used for as long as it may be idle."""
    if row.idle_after_s is None:
        return due_at
    used = rollouts.last_use(row, now=now)
    ends = now + FRESH if used is None else idling.deadline(row, max(used, row.woken_at or used, row.ready_at or used))
    assert ends is not None
    if used is None or ends > now:
        return ends if due_at is None else min(due_at, ends)
    row.slept_at = now
    minutes = row.idle_after_s // 60
    why = f"No request came for {minutes} minute{'s' if minutes != 1 else ''}."
    desired.happened(row, "endpoint.slept", actor=SYSTEM, at=now, nudge=False, why=why, units=row.idle_units)
    touch_gateways([row.boundary_id], now=now)
    say(row, ConditionType.READY, "True", Reason.ASLEEP, STOPPING, now=now)
    return now


def is_waking(row: Any) -> bool:
    """Whether an endpoint was woken and has not been ready since."""
    return row.woken_at is not None and row.observed.get(AWAKE) != row.woken_at.isoformat()


def is_awake(row: Any, *, now: datetime) -> None:
    """Note that an endpoint that was woken is ready."""
    if row.woken_at is not None and row.slept_at is None and is_waking(row):
        row.observed = {**row.observed, AWAKE: row.woken_at.isoformat()}
        touch_gateways([row.boundary_id], now=now)
