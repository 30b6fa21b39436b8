"""Endpoints that have more to do than they can, by what their model servers say of themselves through the gateways.

A moment of much to do is no trouble: it is said once it has lasted, and taken back with the first report without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from provisioners.passes import say
from provisioners.rollouts import known_gateways
from tenants.operations.agents import is_busy
from tenants.rollout_counts import shown
from tenants.states import ConditionType, Reason, condition_of

LASTS: Final = timedelta(seconds=30)
SINCE: Final = "busy_since"
"""In `Endpoint.observed`."""


def told(row: Any, due_at: datetime | None, *, now: datetime) -> datetime | None:
    """Say of an endpoint that works whether it is overloaded; return when to look again."""
    ready = condition_of(row.conditions, ConditionType.READY)
    busy = [one for one in _backends(row) if is_busy(one)]
    if not busy or ready is None or ready["status"] != "True" or ready["reason"] == Reason.ASLEEP:
        row.observed = {key: value for key, value in row.observed.items() if key != SINCE}
        return due_at
    since = datetime.fromisoformat(row.observed.setdefault(SINCE, now.isoformat()))
    if now < since + LASTS:
        return since + LASTS if due_at is None else min(due_at, since + LASTS)
    healthy = condition_of(row.conditions, ConditionType.HEALTHY)
    if healthy is None or healthy["status"] == "True":
        # Said anew by each pass that found it healthy: it is overloaded since then all the same.
        say(row, ConditionType.HEALTHY, "False", Reason.OVERLOADED, _words(busy), now=since + LASTS)
    return due_at


def _backends(row: Any) -> list[Mapping[str, Any]]:
    return [one for replica in known_gateways(row) for one in shown(replica, row.served_id).get("backends", ())]


def _words(busy: list[Mapping[str, Any]]) -> str:
    queued = sum(int(one["queued"]) for one in busy)
    running = sum(int(one["running"]) for one in busy)
    fullest = max(float(one.get("kv_cache") or 0) for one in busy)
    return (
        f"It has more to do than it can: {queued} requests wait while it works on {running}, and "
        f"{fullest:.0%} of the memory for their contexts is in use."
    )
