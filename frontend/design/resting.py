"""Endpoints at zero as people see them: asleep, on the way there, waking. Their phase says only that they serve."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design.phases import Look
from tenants.states import ConditionType, Phase, Reason, condition_of

ASLEEP = Look("quiet", "moon", gettext_lazy("Asleep"), gettext_lazy("No replica runs. The next request wakes it."))
FALLING = Look(
    "quiet", "moon", gettext_lazy("Going to sleep"), gettext_lazy("Running requests end first."), is_moving=False
)
WAKING = Look(
    "info", "loader-circle", gettext_lazy("Waking"), gettext_lazy("Its model is loaded; requests wait for it."),
    is_moving=True, page_state="building",
)  # fmt: skip
AT_REST = frozenset({Phase.READY.value, Phase.EXPIRING.value})
"""Phases that sleep hides behind; a worse one is what must be seen."""


def look_of(row: Any) -> Look | None:
    """Return how an endpoint at zero, or on its way to or from there, looks; None for every other row."""
    if getattr(row, "slept_at", None) is not None:
        is_off = row.observed.get("power") == "off"
        return (ASLEEP if is_off else FALLING) if row.phase in AT_REST else None
    return WAKING if is_waking(row) else None


def is_waking(row: Any) -> bool:
    """Whether an endpoint was woken and loads its model."""
    if getattr(row, "woken_at", None) is None:
        return False
    ready = condition_of(row.conditions, ConditionType.READY)
    return ready is not None and ready["reason"] == Reason.WAKING.value and ready["status"] != "True"


def next_step(row: Any) -> str:
    """Return what to do with one that rests, `""` for every other."""
    if getattr(row, "slept_at", None) is not None:
        return _("Send it a request, or wake it: its first answer takes as long as its model loads.")
    if is_waking(row):
        return _("Nothing to do: requests wait until its model is loaded.")
    return ""
