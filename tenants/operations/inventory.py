"""The life cycle of hosts, and plans over hosts.

An operation writes what should be true and nudges; providers are called by passes alone. A host moves along
`states.TRANSITIONS` by a conditional update: whoever comes second gets a `Conflict` that names the present
state. Lock order: host, devices, plan, outbox, chain head.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tenants import desired, host_plans
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.host_plans import Touched
from tenants.models import GpuDevice, Hold, Host, HostPlan
from tenants.operations.guards import allow, clean_text, locked
from tenants.operations.host_parts import (
    check_times,
    described,
    expect,
    give_notice,
    host_changed,
    make_plan,
    refuse_running,
    set_state,
    take_out,
)
from tenants.states import HoldKind, HostState
from tenants.transactions import operation

# --- hosts: the way into service ------------------------------------------------------------------------


@operation
def accept(*, host: Host, actor: Actor, now: datetime, version: int | None = None) -> Host:
    """Ask for a host's acceptance run; it becomes accepted once every check has passed.

    Raises `Conflict` unless it is joining or in maintenance.
    """
    allow(actor, None, "hosts.accept")
    row = locked(host, version)
    expect(row, HostState.ACCEPTED, HostState.JOINING, HostState.MAINTENANCE)
    row.acceptance = {"requested_at": now.isoformat(), "requested_by": actor.word}
    row.save(update_fields=["acceptance"])
    return host_changed(row, "host.acceptance-requested", actor=actor, now=now)


@operation
def open_host(*, host: Host, actor: Actor, now: datetime, version: int | None = None) -> Host:
    """Let units be placed on an accepted host. Raises `Conflict` while its layout is changed."""
    allow(actor, None, "hosts.open")
    refuse_running(locked(host))  # its GPUs may be carved just now
    return _simple_move(host, HostState.OPEN, HostState.ACCEPTED, actor=actor, now=now, version=version)


@operation
def cordon(*, host: Host, actor: Actor, now: datetime, version: int | None = None) -> Host:
    """Place nothing new on an open host; what is there stays."""
    allow(actor, None, "hosts.cordon")
    return _simple_move(host, HostState.CORDONED, HostState.OPEN, actor=actor, now=now, version=version)


@operation
def uncordon(*, host: Host, actor: Actor, now: datetime, version: int | None = None) -> Host:
    """Open a cordoned host again."""
    allow(actor, None, "hosts.uncordon")
    return _simple_move(host, HostState.OPEN, HostState.CORDONED, actor=actor, now=now, version=version)


@operation
def remove(*, host: Host, actor: Actor, now: datetime, version: int | None = None) -> Host:
    """Take a host out for good: its GPUs count no longer, what others hold on it is dropped.

    Raises `Conflict` (`in-use`) while tenants hold room on it or a plan runs; drain it first.
    """
    allow(actor, None, "hosts.remove")
    row = locked(host, version)
    expect(row, HostState.REMOVED, HostState.JOINING, HostState.ACCEPTED, HostState.CORDONED, HostState.MAINTENANCE)
    return take_out(row, actor=actor, now=now)


def _simple_move(
    host: Host, to: HostState, *origins: HostState, actor: Actor, now: datetime, version: int | None
) -> Host:
    row = locked(host, version)
    expect(row, to, *origins)
    set_state(row, to)
    return host_changed(row, f"host.{to.value if to is not HostState.OPEN else 'opened'}", actor=actor, now=now)


# --- hosts: plans ---------------------------------------------------------------------------------------


@operation
def preview_drain(*, host: Host, actor: Actor, now: datetime) -> dict[str, Any]:
    """Return what a drain would touch at this moment, as the plan would say it; changes nothing."""
    allow(actor, None, "hosts.preview_drain")
    row = locked(host)
    return described(row, host_plans.touched_by(row, now=now))


@operation
def drain(
    *,
    host: Host,
    reason: str,
    actor: Actor,
    now: datetime,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
    version: int | None = None,
) -> HostPlan:
    """Empty a host by plan: notice to its tenants now, moves from `starts_at` (default: at once).

    Nothing new is placed from now on; free windows get maintenance holds dated from `starts_at`. The host is in
    maintenance once nothing of ours is left. Raises `InvalidSpec`, `Conflict` unless it is open or cordoned.
    """
    allow(actor, None, "hosts.drain")
    row = locked(host, version)
    expect(row, HostState.DRAINING, HostState.OPEN, HostState.CORDONED)
    text = clean_text(reason, "reason", most=500, least=3)
    start = starts_at or now
    check_times(start, ends_at, now=now)
    touched = host_plans.touched_by(row, now=now)
    before = row.state
    set_state(row, HostState.DRAINING)
    plan = make_plan(
        row, host_plans.DRAIN, text, touched, start, ends_at, actor=actor, now=now, observed={"from": before}
    )
    host_plans.keep_empty(plan, now=now)
    host_changed(row, "host.draining", actor=actor, now=now, plan=plan.pk, starts_at=start, units=len(touched))
    give_notice(plan, touched, now=now)
    return plan


@operation
def maintenance(
    *, host: Host, reason: str, actor: Actor, now: datetime, ends_at: datetime | None = None, version: int | None = None
) -> HostPlan:
    """Drain a host without notice. Raises as `drain` does, and `Conflict` while tenants hold room on it."""
    allow(actor, None, "hosts.maintenance")
    row = locked(host, version)
    expect(row, HostState.DRAINING, HostState.OPEN, HostState.CORDONED)
    text = clean_text(reason, "reason", most=500, least=3)
    check_times(now, ends_at, now=now)
    held = Hold.objects.filter(host=row, kind=HoldKind.TENANT.value).count()
    if held:
        msg = f"Tenants hold {held} windows of {row.name}; drain it with a notice."
        raise Conflict(msg, code="in-use", holds=held)
    before = row.state
    set_state(row, HostState.DRAINING)
    plan = make_plan(row, host_plans.DRAIN, text, [], now, ends_at, actor=actor, now=now, observed={"from": before})
    host_plans.keep_empty(plan, now=now)
    host_changed(row, "host.draining", actor=actor, now=now, plan=plan.pk, starts_at=now, units=0)
    return plan


@operation
def return_host(*, host: Host, reason: str, actor: Actor, now: datetime, version: int | None = None) -> HostPlan:
    """Bring a host back from maintenance: its provider is told, then its windows are free and it is open."""
    allow(actor, None, "hosts.return")
    row = locked(host, version)
    expect(row, HostState.OPEN, HostState.MAINTENANCE)
    refuse_running(row)
    text = clean_text(reason, "reason", most=500, least=3)
    plan = make_plan(row, host_plans.RETURN, text, [], now, None, actor=actor, now=now, observed={})
    desired.nudge_now(row.provider, at=now)
    return plan


@operation
def repair_gpu(*, device: GpuDevice, reason: str, actor: Actor, now: datetime) -> HostPlan:
    """Move what can be moved off a faulty GPU; its free room is kept by fault holds already.

    Raises `Conflict` for a healthy GPU (drain its host), or while another plan runs on the host.
    """
    allow(actor, None, "devices.repair")
    row = locked(device.host)
    gpu = GpuDevice.objects.get(pk=device.pk)
    if gpu.healthy or gpu.removed_at is not None:
        msg = f"{gpu} of {row.name} is not faulty; drain the host instead."
        raise Conflict(msg, code="device-healthy")
    refuse_running(row)
    text = clean_text(reason, "reason", most=500, least=3)
    touched = host_plans.touched_by(row, now=now, units=host_plans.units_on(row, gpu))
    plan = make_plan(
        row, host_plans.REPAIR, text, touched, now, None, actor=actor, now=now, observed={"device": str(gpu.pk)}
    )
    desired.nudge_now(row.provider, at=now)
    give_notice(plan, touched, now=now)
    return plan


@operation
def start_plan(*, plan: HostPlan, actor: Actor, now: datetime, version: int | None = None) -> HostPlan:
    """End the notice of a drain or a layout change early: it begins now, and its tenants are told again.

    Raises `Conflict` for a plan that has ended, has begun, or has no notice.
    """
    allow(actor, None, "plans.start")
    host = locked(Host.objects.get(pk=plan.host_id))
    row = locked(plan, version)
    begins = row.kind in {host_plans.DRAIN, host_plans.LAYOUT}
    if row.state != "running" or not begins or "started" in row.observed or row.starts_at <= now:
        msg = f"This {host_plans.WORDS[row.kind]} of {host.name} does not wait for its start."
        raise Conflict(msg, code="plan-state", state=row.state)
    before = row.starts_at
    row.starts_at = now
    row.save(update_fields=["starts_at"])
    host_plans.give_back(host, now=now, plan=row)  # what was dated from the end of the notice is put again, from now
    host_plans.keep_empty(row, now=now)
    host_changed(host, f"host.{row.kind}-started-early", actor=actor, now=now, plan=row.pk, planned_at=before)
    give_notice(row, [Touched(**entry) for entry in row.touched], now=now, again="now")
    desired.changed(row, "host-plan.notice-ended", actor=actor, at=now, host=host.pk, planned_at=before)
    return row


@operation
def cancel_plan(*, plan: HostPlan, actor: Actor, now: datetime, version: int | None = None) -> HostPlan:
    """Roll a running plan back: maintenance holds dropped, the host as it was; moved units stay moved.

    Once the provider was told, it has to be restored first: the plan then runs on, backwards, until that is done; what
    of a layout was carved by then is carved back.
    Raises `Conflict` for a plan that has ended or is a return.
    """
    allow(actor, None, "plans.cancel")
    host = locked(Host.objects.get(pk=plan.host_id))
    row = locked(plan, version)
    if row.state != "running" or row.kind == host_plans.RETURN:
        msg = f"This {host_plans.WORDS[row.kind]} is {row.state} and cannot be cancelled."
        raise Conflict(msg, code="plan-state", state=row.state)
    if row.kind in {host_plans.DRAIN, host_plans.LAYOUT} and "started" in row.observed:
        row.observed = {**row.observed, "cancelling": actor.word}
        row.due_at = now
        row.save(update_fields=["observed", "due_at"])
    else:
        row.state, row.touched, row.due_at = "cancelled", host_plans.progress(row), None
        row.save(update_fields=["state", "touched", "due_at"])
        if row.kind in {host_plans.DRAIN, host_plans.LAYOUT}:
            host_plans.give_back(host, now=now, plan=row)
            if host.state == HostState.DRAINING.value:
                set_state(host, HostState(row.observed.get("from", HostState.OPEN.value)))
            host_changed(host, f"host.{row.kind}-cancelled", actor=actor, now=now, plan=row.pk)
    desired.happened(row, "host-plan.cancel-requested", actor=actor, at=now, host=host.pk)
    HostPlan.objects.filter(pk=row.pk).update(version=row.version + 1)
    row.refresh_from_db()
    desired.nudge_now(host.provider, at=now)
    return row
