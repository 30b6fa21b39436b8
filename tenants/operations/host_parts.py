"""What operations on hosts and on plans over them share: states, the plan's row, who is told.

Plain functions inside the caller's operation, the host being locked.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants import desired, host_plans, ledger
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.host_plans import Touched
from tenants.models import Hold, Host, HostPlan, Notice
from tenants.states import TRANSITIONS, HoldKind, HostState

LONGEST_NOTICE: Final = timedelta(days=90)
NOBODY: Final = UUID(int=0)


def expect(row: Host, to: HostState, *origins: HostState) -> None:
    """Raise `Conflict` naming the present state unless the locked host may move on to `to` from there."""
    present = HostState(row.state)
    if present not in origins or to not in TRANSITIONS[HostState][present]:
        words = " or ".join(origin.value for origin in origins)
        msg = f"{row.name} is {present.value}; this needs a host that is {words}."
        raise Conflict(msg, code="host-state", state=present.value, needed=[origin.value for origin in origins])


def set_state(row: Host, to: HostState) -> None:
    """Move a locked host on. Raises `Conflict` where somebody was faster."""
    if not Host.objects.filter(pk=row.pk, state=row.state).update(state=to.value):
        msg = f"{row.name} has just changed its state."
        raise Conflict(msg, code="host-state")
    row.state = to.value


def take_out(row: Host, *, actor: Actor, now: datetime) -> Host:
    """Take a locked host out for good. Raises `Conflict` (`in-use`) while tenants hold room on it or a plan runs."""
    held = Hold.objects.filter(host=row, kind=HoldKind.TENANT.value).count()
    if held or HostPlan.objects.filter(host=row, state="running").exists():
        msg = f"{row.name} still carries {held} windows of tenants or a running plan; drain it first."
        raise Conflict(msg, code="in-use", holds=held)
    host_plans.empty(row, now=now)
    set_state(row, HostState.REMOVED)
    return host_changed(row, "host.removed", actor=actor, now=now)


def host_changed(row: Host, kind: str, *, actor: Actor, now: datetime, **data: Any) -> Host:
    """Say that a locked host changed, have its provider looked at, and return it read again."""
    ledger.refresh_placeable(row.provider_id)
    desired.changed(row, kind, actor=actor, at=now, state=row.state, **data)
    desired.nudge_now(row.provider, at=now)
    row.refresh_from_db()
    return row


def described(host: Host, touched: list[Touched]) -> dict[str, Any]:
    """Return what emptying a host touches, with its figures."""
    moves = [entry for entry in touched if entry.action == "move"]
    return {
        "host": str(host.pk),
        "name": host.name,
        "state": host.state,
        "touched": [entry.as_json() for entry in touched],
        "tenants": sorted({entry.tenant_name for entry in touched}),
        "move": sum(bool(entry.to) for entry in moves),
        "no_room": sum(not entry.to for entry in moves),
        "wait": len(touched) - len(moves),
    }


def check_times(start: datetime, end: datetime | None, *, now: datetime) -> None:
    """Raise `InvalidSpec` for a plan that begins too early or too late, or ends before it begins."""
    if not now <= start <= now + LONGEST_NOTICE:
        msg = f"A plan starts between now and {LONGEST_NOTICE.days} days from now."
        raise InvalidSpec(msg, field="starts_at")
    if end is not None and end <= start:
        msg = "A plan ends after its start."
        raise InvalidSpec(msg, field="ends_at")


def refuse_running(host: Host) -> None:
    """Raise `Conflict` while a plan runs on a host."""
    running = HostPlan.objects.filter(host=host, state="running").first()
    if running is not None:
        word = host_plans.WORDS[running.kind]
        msg = f"A {word} of {host.name} is running ({running.short_id}); wait for it or cancel it."
        raise Conflict(msg, code="plan-running", plan=str(running.pk))


def make_plan(
    host: Host,
    kind: str,
    reason: str,
    touched: list[Touched],
    starts_at: datetime,
    ends_at: datetime | None,
    *,
    actor: Actor,
    now: datetime,
    observed: dict[str, Any],
    layout: dict[str, Any] | None = None,
) -> HostPlan:
    """Store a plan and make its passes due. Raises `Conflict` while another one runs on the host."""
    refuse_running(host)
    plan = HostPlan.objects.create(
        host=host,
        kind=kind,
        reason=reason,
        starts_at=starts_at,
        ends_at=ends_at,
        touched=[entry.as_json() for entry in touched],
        observed=observed,
        layout=layout or {},
        author=actor.person_id or NOBODY,
        due_at=now,
        created_at=now,
    )
    desired.created(plan, "host-plan.created", actor=actor, at=now, host=host.pk, plan=kind, units=len(touched))
    return plan


def give_notice(plan: HostPlan, touched: list[Touched], *, now: datetime, again: str = "") -> None:
    """Tell each tenant once what happens to its objects (`again` makes it another time); no other tenant is named."""
    by_tenant: dict[str, list[Touched]] = {}
    for entry in touched:
        by_tenant.setdefault(entry.tenant, []).append(entry)
    when = plan.starts_at.isoformat(timespec="minutes")
    for tenant, entries in sorted(by_tenant.items()):
        moved = sorted({e.name for e in entries if e.action == "move"})
        stopped = sorted({e.name for e in entries if e.action == "stop"})
        parts = [f"Work on the hardware under your objects begins at {when}: {plan.reason}."]
        if moved:
            parts.append(f"We move {', '.join(moved)} to other hardware then, with a short interruption.")
        if stopped:
            parts.append(f"We cannot move {', '.join(stopped)}: please give it back or make it anew before then.")
        Notice.objects.get_or_create(
            key=f"host-plan:{plan.pk}:{tenant}{f':{again}' if again else ''}",
            defaults={
                "tenant_id": tenant,
                "kind": f"host-{plan.kind}",
                "object_kind": "host-plan",
                "object_id": plan.pk,
                "text": " ".join(parts)[:1000],
                "at": now,
            },
        )
