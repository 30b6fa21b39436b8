"""What the passes of plans over hosts share: the plan read under its host's lock, its progress, moving units away.

Whoever writes asks first, under the host's lock, whether the plan still runs forwards (`wanted`); what is written says
what people see of it. `move_all` re-places each unit in a transaction of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners import inventory_objects
from provisioners.driver import Driver, NotSupported
from tenants import desired, host_plans
from tenants.actor import SYSTEM, Actor
from tenants.models import Host, HostPlan, Unit
from tenants.transactions import acting, operation

log = logging.getLogger(__name__)
Clock = Callable[[], datetime]
LOOK_AGAIN: Final = timedelta(seconds=5)
NOTICE_LOOK: Final = timedelta(seconds=60)


def wanted(plan_id: UUID) -> HostPlan | None:
    """Return the plan under its host's lock if it still runs forwards; in the open transaction."""
    seen = HostPlan.objects.filter(pk=plan_id).values_list("host_id", flat=True).get()
    Host.objects.select_for_update(no_key=True).get(pk=seen)
    plan = HostPlan.objects.select_for_update(no_key=True).select_related("host").get(pk=plan_id)
    return plan if plan.state == "running" and "cancelling" not in plan.observed else None


def save(plan: HostPlan, *, due_at: datetime, **noted: Any) -> bool:
    """Store progress; says whether people see a difference."""
    touched = host_plans.progress(plan)
    changed = touched != plan.touched or any(plan.observed.get(key) != value for key, value in noted.items())
    plan.touched, plan.observed, plan.due_at = touched, {**plan.observed, **noted}, due_at
    plan.save(update_fields=["touched", "observed", "due_at"])
    return changed


@operation
def wait_for_start(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """During the notice only what comes free is kept empty."""
    del actor
    plan = wanted(plan_id)
    if plan is None:
        return False
    put = host_plans.keep_empty(plan, now=now)
    return save(plan, due_at=min(plan.starts_at, now + NOTICE_LOOK)) or bool(put)


@operation
def begin(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """Note, before the provider is called, that it will have to be restored."""
    plan = wanted(plan_id)
    if plan is None:
        return False
    if "started" not in plan.observed:
        save(plan, due_at=now, started=now.isoformat())
        desired.happened(plan, "host-plan.started", actor=actor, at=now, nudge=False, host=plan.host_id)
    return True


def move_all(plan: HostPlan, units: Callable[[], Iterable[Unit]], clock: Clock) -> bool:
    """Re-place what can be of some units, each in a transaction of its own."""
    with acting(SYSTEM):
        found = [unit.pk for unit in units() if host_plans.movable(unit)]
    moved = [_move_one(plan_id=plan.pk, unit_id=unit, actor=SYSTEM, now=clock()) for unit in found]
    return any(moved)


@operation
def _move_one(*, plan_id: UUID, unit_id: UUID, actor: Actor, now: datetime) -> bool:
    plan = wanted(plan_id)
    unit = Unit.objects.filter(pk=unit_id, released_at__isnull=True).select_related("allocation__boundary").first()
    if plan is None or unit is None or unit.host_id != plan.host_id or not host_plans.movable(unit):
        return False
    if not host_plans.move(unit, now=now):
        return False
    for owner in inventory_objects.owners_of([unit.pk]):
        desired.nudge_now(owner, at=now)
        desired.happened(
            owner, f"{desired.kind_of(owner)}.moving", actor=actor, at=now, nudge=False, unit=unit.pk, plan=plan.pk,
            reason=plan.reason,
        )  # fmt: skip
    return True


def end(plan: HostPlan, state: str, *, now: datetime, **noted: Any) -> None:
    """Store the end of a locked plan, and say it."""
    plan.state = state
    plan.touched, plan.observed = host_plans.progress(plan), {**plan.observed, **noted, "ended": now.isoformat()}
    plan.due_at = None
    plan.version += 1
    plan.save(update_fields=["state", "touched", "observed", "due_at", "version"])
    desired.happened(plan, f"host-plan.{state}", actor=SYSTEM, at=now, nudge=False, host=plan.host_id, plan=plan.kind)


@operation
def trouble(*, plan_id: UUID, text: str, actor: Actor, now: datetime) -> None:
    """Note what the provider answered; a growing pause follows."""
    del actor
    plan = HostPlan.objects.select_for_update(no_key=True).get(pk=plan_id)
    if plan.state == "running":
        plan.failures += 1
        plan.observed = {**plan.observed, "trouble": text[:300]}
        plan.due_at = now + desired.backoff(plan.failures, cap_s=60.0)
        plan.save(update_fields=["failures", "observed", "due_at"])


def restore(plan: HostPlan, driver: Driver) -> None:
    """Let the provider place things on the plan's host again."""
    try:
        driver.restore(plan.host.provider_ref)
    except NotSupported:
        log.info("the provider has nothing to restore", extra={"host": plan.host.provider_ref})
