"""The pass of a plan over a host: drain, repair of one GPU, return to service; `layout_plan` has layout changes.

Each advance looks at the rows and does what is next in transactions of its own, so it may be killed
anywhere and run again, also twice at once: it is told by the plan's row whether it is still wanted, notes
that the provider is being evacuated before it calls it, and undoes that with `restore` when the plan is
cancelled. Done is only ever said when no tenant holds room and nothing of ours is seen to run there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from provisioners import layout_plan, plan_rows
from provisioners.driver import Driver, DriverError, NotSupported
from tenants import desired, host_plans, ledger
from tenants.actor import SYSTEM, Actor
from tenants.models import GpuDevice, Hold, Host, HostPlan, Provider, Unit
from tenants.states import HoldKind, HostState
from tenants.transactions import acting, operation

log = logging.getLogger(__name__)
Clock = Callable[[], datetime]


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
        if plan.kind == host_plans.LAYOUT:
            return layout_plan.advance(plan, driver, clock)
        if "cancelling" in plan.observed:
            return _roll_back(plan, driver, clock)
        if plan.kind == host_plans.RETURN:
            return _return(plan, driver, clock)
        if plan.kind == host_plans.REPAIR:
            moved = plan_rows.move_all(plan, lambda: host_plans.units_on(plan.host, _device_of(plan)), clock)
            return moved | _finish_repair(plan_id=plan.pk, actor=SYSTEM, now=clock())
        return _drain(plan, driver, clock)
    except DriverError as error:
        plan_rows.trouble(plan_id=plan.pk, text=f"{error.reason}: {error.detail}", actor=SYSTEM, now=clock())
        return False


# --- drain --------------------------------------------------------------------------------------------


def _drain(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    if clock() < plan.starts_at:
        return plan_rows.wait_for_start(plan_id=plan.pk, actor=SYSTEM, now=clock())
    if not plan_rows.begin(plan_id=plan.pk, actor=SYSTEM, now=clock()):
        return False
    try:
        uses = driver.evacuate(plan.host.provider_ref)
    except NotSupported:
        uses = ()  # the ledger and the snapshots say when it is empty
    with acting(SYSTEM):
        still = plan_rows.wanted(plan.pk) is not None
    if not still:  # cancelled meanwhile, perhaps rolled back already: the provider must not stay evacuated
        driver.restore(plan.host.provider_ref)
        return True
    moved = plan_rows.move_all(plan, lambda: host_plans.units_on(plan.host), clock)
    ours = sorted(use.name for use in uses if use.ref is not None)
    return _finish_drain(plan_id=plan.pk, ours=ours, actor=SYSTEM, now=clock()) or moved


@operation
def _finish_drain(*, plan_id: UUID, ours: list[str], actor: Actor, now: datetime) -> bool:
    """Keep empty what is free, and say that the window is held once nobody of ours is left."""
    plan = plan_rows.wanted(plan_id)
    if plan is None:
        return False
    put = host_plans.keep_empty(plan, now=now)
    held = Hold.objects.filter(host_id=plan.host_id, kind=HoldKind.TENANT.value).count()
    units = Unit.objects.filter(host_id=plan.host_id).count()
    if held or units or ours or host_plans.still_leaving(plan.host):
        left = {"holds": held, "units": units, "running": ours[:20]}
        return plan_rows.save(plan, due_at=now + plan_rows.LOOK_AGAIN, left=left, trouble="") or bool(put)
    moved = Host.objects.filter(pk=plan.host_id, state=HostState.DRAINING.value).update(
        state=HostState.MAINTENANCE.value
    )
    plan_rows.end(plan, "done", now=now, left={})
    if moved:
        host = Host.objects.get(pk=plan.host_id)
        desired.changed(host, "host.maintenance", actor=actor, at=now, plan=plan.pk)
    ledger.refresh_placeable(plan.host.provider_id)
    return True


# --- cancel, return, repair -------------------------------------------------------------------------


def _roll_back(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    plan_rows.restore(plan, driver)
    return _finish_cancel(plan_id=plan.pk, actor=SYSTEM, now=clock())


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
    plan_rows.end(plan, "cancelled", now=now)
    ledger.refresh_placeable(host.provider_id)
    return True


def _return(plan: HostPlan, driver: Driver, clock: Clock) -> bool:
    plan_rows.restore(plan, driver)
    return _finish_return(plan_id=plan.pk, actor=SYSTEM, now=clock())


@operation
def _finish_return(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    plan = plan_rows.wanted(plan_id)
    if plan is None:
        return False
    host_plans.give_back(plan.host, now=now)
    if Host.objects.filter(pk=plan.host_id, state=HostState.MAINTENANCE.value).update(state=HostState.OPEN.value):
        host = Host.objects.get(pk=plan.host_id)
        desired.changed(host, "host.returned", actor=actor, at=now, plan=plan.pk)
    plan_rows.end(plan, "done", now=now)
    ledger.refresh_placeable(plan.host.provider_id)
    return True


def _device_of(plan: HostPlan) -> GpuDevice | None:
    device = plan.observed.get("device")
    return GpuDevice.objects.filter(pk=device).first() if device else None


@operation
def _finish_repair(*, plan_id: UUID, actor: Actor, now: datetime) -> bool:
    """A repair is done when no tenant holds the GPU any more; inventory keeps its room with fault holds."""
    del actor
    plan = plan_rows.wanted(plan_id)
    if plan is None:
        return False
    device = _device_of(plan)
    held = Hold.objects.filter(device=device, kind=HoldKind.TENANT.value).count() if device else 0
    if held:
        return plan_rows.save(
            plan,
            due_at=now + plan_rows.LOOK_AGAIN,
            left={"holds": held},
            started=plan.observed.get("started", now.isoformat()),
        )
    plan_rows.end(plan, "done", now=now, left={})
    return True
