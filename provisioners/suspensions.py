"""How deep a tenant is suspended, and what rows say of it. Suspending itself is desired state (operations)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Q

from provisioners.passes import say
from tenants.models import Suspension
from tenants.states import DEPTH_ORDER, ConditionType, Reason, SuspensionDepth, condition_of

WORDS: Final = {
    SuspensionDepth.KEYS: "The tenant is suspended: its keys are refused.",
    SuspensionDepth.NETWORK: "The tenant is suspended: its network is cut off.",
    SuspensionDepth.POWER: "The tenant is suspended: what it runs is switched off; its GPUs stay held.",
}


def live(now: datetime) -> Q:
    """Return the condition of suspensions in force."""
    return Q(ended_at__isnull=True) & (Q(until__isnull=True) | Q(until__gt=now))


def deepest(path: Sequence[UUID], *, now: datetime) -> SuspensionDepth | None:
    """Return the deepest suspension in force on a tenant's path."""
    depths = Suspension.objects.filter(live(now), tenant_id__in=list(path)).values_list("depth", flat=True)
    return max((SuspensionDepth(depth) for depth in depths), key=DEPTH_ORDER.__getitem__, default=None)


def tell(row: Any, depth: str, *, now: datetime) -> None:
    """Say on a row what was applied to it: `depth` or, with `""`, that it is suspended no more."""
    if depth:
        say(row, ConditionType.SUSPENDED, "True", Reason.BY_OPERATOR, WORDS[SuspensionDepth(depth)], now=now)
    elif condition_of(row.conditions, ConditionType.SUSPENDED) is not None:
        row.conditions = [c for c in row.conditions if c["type"] != ConditionType.SUSPENDED]
