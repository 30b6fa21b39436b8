"""The pass of a plan over a host: drain, repair of one GPU, return to service.

Each advance looks at the rows and does what is next in transactions of its own, so it may be killed
anywhere and run again, also twice at once: it is told by the plan's row whether it is still wanted, notes
that the provider is being evacuated before it calls it, and undoes that with `restore` when the plan is
cancelled. Done is only ever said when no tenant holds room and nothing of ours is seen to run there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners import inventory_objects
from provisioners.driver import Driver, DriverError, NotSupported
from tenants import desired, host_plans, ledger
from tenants.actor import SYSTEM, Actor
from tenants.models import GpuDevice, Hold, Host, HostPlan, Provider, Unit
from tenants.states import HoldKind, HostState
from tenants.transactions import acting, operation

log = logging.getLogger(__name__)
Clock = Callable[[], datetime]
LOOK_AGAIN: Final = timedelta(seconds=5)
NOTICE_LOOK: Final = timedelta(seconds=60)


def advance_all(provider_id: UUID, driver: Driver, clock: Clock) -> int:
    """Advance every running plan of a provider that is due, and have the provider looked at when the next one is.

    Returns how many moved on.
    """
    with acting(SYSTEM):
        due = list(
            HostPlan.objects.filter(host__provider_id=provider_id, state="running", due_at__lte=clock())
            .order_by("created_at", "pk")
            .values_list("pk", flat=True)
        )
    moved = sum(advance(plan, driver, clock) for plan in due)
    with acting(SYSTEM):
        running = HostPlan.objects.filter(host__provider_id=provider_id, state="running", due_at__isnull=False)
        soonest = running.order_by("due_at").values_list("due_at", flat=True).first()
        if soonest is not None:
            Provider.objects.filter(pk=provider_id).update(due_at=soonest)
    return moved


def advance(plan_id: UUID, driver: Driver, clock: Clock) -> bool:
    """Do what is next of one plan. Returns whether anything changed; driver errors are noted and tried again."""
    with acting(SYSTEM):
        plan = HostPlan.objects.filter(pk=plan_id, state="running").select_related("host").first()
    if plan is None:
        return False
    try:
        if "cancelling" in plan.observed:
            return _roll_back(plan, driver, clock)
        if plan.kind == host_plans.RETURN:
            return _return(plan, driver, clock)
        if plan.kind == host_plans.REPAIR:
            return _move_all(plan, clock) | _finish_repair(plan_id=plan.pk, actor=SYSTEM, now=clock())
        return _drain(plan, driver, clock)
    except DriverError as error:
        _trouble(plan_id=plan.pk, text=f"{error.reason}: {error.detail}", actor=SYSTEM, now=clock())
        return False


def _wanted(plan_id: UUID) -> HostPlan | None:
    """Return the plan under its host's lock if it still runs forwards; in the open transaction."""
    seen = HostPlan.objects.filter(pk=plan_id).values_list("host_id", flat=True).get()
    Host.objects.select_for_update(no_key=True).get(pk=seen)
    plan = HostPlan.objects.select_for_update(no_key=True).select_related("host").get(pk=plan_id)
    return plan if plan.state == "running" and "cancelling" not in plan.observed else None


def _save(plan: HostPlan, *, due_at: datetime, **noted: Any) -> bool:
    """Store progress; says whether people see a difference."""
    touched = host_plans.progress(plan)
    changed = touched != plan.touched or any(plan.observed.get(key) != value for key, value in noted.items())
    plan.touched, plan.observed, plan.due_at = touched, {**plan.observed, **noted}, due_at
    plan.save(update_fields=["touched", "observed", "due_at"])
    return changed


# --- drain --------------------------------------------------------------------------------------------


def _drain(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    if clock() < plan.starts_at:
        return _wait_for_start(plan_id=plan.pk, actor=SYSTEM, now=clock())
    if not _begin(plan_id=plan.pk, actor=SYSTEM, now=clock()):
        return False
    try:
        uses = driver.evacuate(plan.host.provider_ref)
    except NotSupported:
        uses = ()  # the ledger and the snapshots say when it is empty
    with acting(SYSTEM):
        still = _wanted(plan.pk) is not None
    if not still:  # cancelled meanwhile, perhaps rolled back already: the provider must not stay evacuated
        driver.restore(plan.host.provider_ref)
        return True
    moved = _move_all(plan, clock)
    ours = sorted(use.name for use in uses if use.ref is not None)
    return _finish_drain(plan_id=plan.pk, ours=ours, actor=SYSTEM, now=clock()) or moved


@operation
def _wait_for_start(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """During the notice only what comes free is kept empty."""
    del actor
    plan = _wanted(plan_id)
    if plan is None:
        return False
    put = host_plans.keep_empty(plan, now=now)
    return _save(plan, due_at=min(plan.starts_at, now + NOTICE_LOOK)) or bool(put)


@operation
def _begin(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """Note, before the provider is called, that it will have to be restored."""
    plan = _wanted(plan_id)
    if plan is None:
        return False
    if "started" not in plan.observed:
        _save(plan, due_at=now, started=now.isoformat())
        desired.happened(plan, "host-plan.started", actor=actor, at=now, nudge=False, host=plan.host_id)
    return True


def _move_all(plan: HostPlan, clock: Clock) -> bool:
    """Re-place what can be, each unit in a transaction of its own."""
    with acting(SYSTEM):
        device = _device_of(plan)
        units = [unit.pk for unit in host_plans.units_on(plan.host, device) if host_plans.movable(unit)]
    moved = [_move_one(plan_id=plan.pk, unit_id=unit, actor=SYSTEM, now=clock()) for unit in units]
    return any(moved)


@operation
def _move_one(*, plan_id: UUID, unit_id: UUID, actor: Actor, now: datetime) -> bool:
    plan = _wanted(plan_id)
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


@operation
def _finish_drain(*, plan_id: UUID, ours: list[str], actor: Actor, now: datetime) -> bool:
    """Keep empty what is free, and say that the window is held once nobody of ours is left."""
    plan = _wanted(plan_id)
    if plan is None:
        return False
    put = host_plans.keep_empty(plan, now=now)
    held = Hold.objects.filter(host_id=plan.host_id, kind=HoldKind.TENANT.value).count()
    units = Unit.objects.filter(host_id=plan.host_id).count()
    if held or units or ours or host_plans.still_leaving(plan.host):
        left = {"holds": held, "units": units, "running": ours[:20]}
        return _save(plan, due_at=now + LOOK_AGAIN, left=left, trouble="") or bool(put)
    moved = Host.objects.filter(pk=plan.host_id, state=HostState.DRAINING.value).update(
        state=HostState.MAINTENANCE.value
    )
    _end(plan, "done", now=now, left={})
    if moved:
        host = Host.objects.get(pk=plan.host_id)
        desired.changed(host, "host.maintenance", actor=actor, at=now, plan=plan.pk)
    ledger.refresh_placeable(plan.host.provider_id)
    return True


def _end(plan: HostPlan, state: str, *, now: datetime, **noted: Any) -> None:
    plan.state = state
    plan.touched, plan.observed = host_plans.progress(plan), {**plan.observed, **noted, "ended": now.isoformat()}
    plan.due_at = None
    plan.version += 1
    plan.save(update_fields=["state", "touched", "observed", "due_at", "version"])
    desired.happened(plan, f"host-plan.{state}", actor=SYSTEM, at=now, nudge=False, host=plan.host_id, plan=plan.kind)


@operation
def _trouble(*, plan_id: UUID, text: str, actor: Actor, now: datetime) -> None:
    del actor
    plan = HostPlan.objects.select_for_update(no_key=True).get(pk=plan_id)
    if plan.state == "running":
        plan.failures += 1
        plan.observed = {**plan.observed, "trouble": text[:300]}
        plan.due_at = now + desired.backoff(plan.failures, cap_s=60.0)
        plan.save(update_fields=["failures", "observed", "due_at"])


# --- cancel, return, repair -------------------------------------------------------------------------


def _roll_back(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    _restore(plan, driver)
    return _finish_cancel(plan_id=plan.pk, actor=SYSTEM, now=clock())


def _restore(plan: HostPlan, driver: Driver) -> None:
    try:
        driver.restore(plan.host.provider_ref)
    except NotSupported:
        log.info("the provider has nothing to restore", extra={"host": plan.host.provider_ref})


@operation
def _finish_cancel(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """Open the host again as it was; units that were moved stay where they are now."""
    host_id = HostPlan.objects.values_list("host_id", flat=True).get(pk=plan_id)
    host = Host.objects.select_for_update(no_key=True).get(pk=host_id)
    plan = HostPlan.objects.select_for_update(no_key=True).select_related("host").get(pk=plan_id)
    if plan.state != "running":
        return False
    back_to = plan.observed.get("from", HostState.OPEN.value)
    if plan.kind == host_plans.DRAIN:
        host_plans.give_back(host, now=now)
        Host.objects.filter(pk=host.pk, state=HostState.DRAINING.value).update(state=back_to)
        desired.changed(host, "host.drain-cancelled", actor=actor, at=now, plan=plan.pk, state=back_to)
    _end(plan, "cancelled", now=now)
    ledger.refresh_placeable(host.provider_id)
    return True


def _return(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    _restore(plan, driver)
    return _finish_return(plan_id=plan.pk, actor=SYSTEM, now=clock())


@operation
def _finish_return(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    plan = _wanted(plan_id)
    if plan is None:
        return False
    host_plans.give_back(plan.host, now=now)
    if Host.objects.filter(pk=plan.host_id, state=HostState.MAINTENANCE.value).update(state=HostState.OPEN.value):
        host = Host.objects.get(pk=plan.host_id)
        desired.changed(host, "host.returned", actor=actor, at=now, plan=plan.pk)
    _end(plan, "done", now=now)
    ledger.refresh_placeable(plan.host.provider_id)
    return True


def _device_of(plan: HostPlan) -> GpuDevice | None:
    device = plan.observed.get("device")
    return GpuDevice.objects.filter(pk=device).first() if device else None


@operation
def _finish_repair(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """A repair is done when no tenant holds the GPU any more; inventory keeps its room with fault holds."""
    del actor
    plan = _wanted(plan_id)
    if plan is None:
        return False
    device = _device_of(plan)
    held = Hold.objects.filter(device=device, kind=HoldKind.TENANT.value).count() if device else 0
    if held:
        return _save(
            plan, due_at=now + LOOK_AGAIN, left={"holds": held}, started=plan.observed.get("started", now.isoformat())
        )
    _end(plan, "done", now=now, left={})
    return True
