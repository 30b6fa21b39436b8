"""Changing how the GPUs of a host are carved, as a plan: who is concerned is said first, then the host is emptied.

One plan runs on a host at a time, which is the lock of its layout. The passes of the plan cordon, move and wait, have
the provider carve, compare with what inventory reads and open the host again (`provisioners.layout_plan`).
Lock order: host, devices, plan, outbox, chain head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tenants import host_plans, layout_plans
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.layout_plans import EMPTIED, Wish
from tenants.models import GpuDevice, Host, HostPlan
from tenants.operations.guards import allow, clean_text, locked
from tenants.operations.host_parts import (
    check_times,
    described,
    give_notice,
    host_changed,
    make_plan,
    refuse_running,
    set_state,
)
from tenants.states import HostState
from tenants.transactions import operation

FROM: Final = (HostState.OPEN, HostState.CORDONED, HostState.ACCEPTED, HostState.MAINTENANCE)
"""States of a host in which its layout may be changed; it comes back to the same."""
FEATURE: Final = "layout-change"


@operation
def preview_layout(
    *, host: Host, layouts: Mapping[str, Sequence[str]], actor: Actor, now: datetime, evict: bool = False
) -> dict[str, Any]:
    """Return what a layout change would do at this moment, as the plan would say it; changes nothing.

    Raises as `change_layout` does.
    """
    allow(actor, None, "hosts.preview_layout")
    row = locked(host)
    wanted = _wanted(row, layouts, evict=evict)
    touched = host_plans.touched_by(row, now=now, units=layout_plans.units_on(row, wanted))
    foreign = [layout_plans.foreign_words(hold) for hold in layout_plans.foreign_on(row, wanted)]
    return {
        **described(row, touched),
        "gpus": [gpu.as_json() for gpu in wanted.gpus],
        "foreign": sorted(set(foreign)),
        "evict": evict,
    }


@operation
def change_layout(
    *,
    host: Host,
    layouts: Mapping[str, Sequence[str]],
    reason: str,
    actor: Actor,
    now: datetime,
    evict: bool = False,
    starts_at: datetime | None = None,
    version: int | None = None,
) -> HostPlan:
    """Carve GPUs of a host anew by plan: notice to its tenants now, moves and carving from `starts_at` (now).

    `layouts`: GPU (id, short id, index, or `all` for those not named) → profiles that it shall have at the same time,
    none for a whole GPU. Only GPUs that differ are emptied; nothing new is placed on the host meanwhile. `evict`: what
    of ours still runs on them when nobody holds room there any more is evicted; holders and others' uses never are.
    Raises `InvalidSpec`; `Conflict` for a host in the wrong state, a plan that runs on it, a layout that is there
    already, a GPU that is faulty or is carved when asked for, a provider that cannot (`not-supported`).
    """
    allow(actor, None, "hosts.layout")
    row = locked(host, version)
    text = clean_text(reason, "reason", most=500, least=3)
    start = starts_at or now
    check_times(start, None, now=now)
    wanted = _wanted(row, layouts, evict=evict)
    touched = host_plans.touched_by(row, now=now, units=layout_plans.units_on(row, wanted))
    before = row.state
    if before in EMPTIED:
        set_state(row, HostState.DRAINING)
    plan = make_plan(
        row, host_plans.LAYOUT, text, touched, start, None, actor=actor, now=now, observed={"from": before},
        layout=wanted.as_json(),
    )  # fmt: skip
    host_plans.keep_empty(plan, now=now)
    host_changed(row, "host.layout-planned", actor=actor, now=now, plan=plan.pk, starts_at=start, units=len(touched))
    give_notice(plan, touched, now=now)
    return plan


def _wanted(host: Host, layouts: Mapping[str, Sequence[str]], *, evict: bool) -> Wish:
    """Return what is asked for, once it is sure that it can be begun; the host is locked."""
    refuse_running(host)
    if HostState(host.state) not in FROM:
        words = " or ".join(state.value for state in FROM)
        msg = f"{host.name} is {host.state}; this needs a host that is {words}."
        raise Conflict(msg, code="host-state", state=host.state, needed=[state.value for state in FROM])
    if not host.healthy:
        msg = f"{host.name} is not available: {host.message or 'it does not answer'}. Its layout can change once it is."
        raise Conflict(msg, code="host-state", state=host.state, needed=["healthy"])
    if not layouts:
        msg = "Name at least one GPU."
        raise InvalidSpec(msg, field="layouts")
    wanted = layout_plans.wish(host, layouts, evict=evict)
    if not wanted.differing:
        msg = f"{host.name} has this layout already."
        raise Conflict(msg, code="layout-present")
    _check_provider(host)
    _check_gpus(host, wanted)
    return wanted


def _check_provider(host: Host) -> None:
    known = host.provider.capabilities
    if known.get("features", {}).get(FEATURE) is False:
        remedy = known.get("missing", {}).get(FEATURE, "")
        msg = f"{host.provider.name} cannot change layouts. {remedy}".strip()
        raise Conflict(msg, code="not-supported")


def _check_gpus(host: Host, wanted: Wish) -> None:
    for device in GpuDevice.objects.filter(pk__in=[gpu.id for gpu in wanted.differing]).order_by("index"):
        if device.layout_change == "dynamic":
            msg = f"GPU {device.index} of {host.name} is carved when something is placed on it; nothing is to be set."
            raise Conflict(msg, code="not-supported")
        if not device.healthy:
            msg = f"GPU {device.index} of {host.name} is faulty; repair it first."
            raise Conflict(msg, code="device-faulty")
