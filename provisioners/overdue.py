"""Steps whose time is over and that have not ended: since when, what people are told, and the operators' finding.

A task that never ends is looked at again when its time is over, and waited for as long as its provider shows it: to
start another one would be a second machine. So it holds up its own object and nothing else, and only people can end
it. Intents tell how long it has been: each look at it has one, and the first of the unbroken row is its beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import F

from provisioners import steps
from tenants import desired, findings
from tenants.findings import Seen
from tenants.models import Intent, Provider
from tenants.states import Reason

KIND: Final = findings.STEP_OVERDUE
ENDED: Final = "it has ended"
MOST_LOOKS: Final = 100
"""So many intents are read back: a step that hangs for longer is told as hanging for at least so long."""
_OVER: Final = frozenset({"done", "seen", "failed"})
"""Outcomes after which whatever follows is another try."""


@dataclass(frozen=True, slots=True)
class Overdue:
    """One step that should have ended."""

    step: str
    undo: bool
    since: datetime
    handle: str
    """The provider's task, `""` where none was heard of."""
    now: datetime

    @property
    def limit_s(self) -> int:
        """How long it may take."""
        return steps.definition(self.step).limit_s

    @property
    def sentence(self) -> str:
        """Return it for whoever waits."""
        return (
            f"{steps.words(self.step, undo=self.undo)} takes {_long((self.now - self.since).total_seconds())} so far, "
            f"and {_long(self.limit_s)} is the most it should. It is waited for, and goes on by itself when the "
            "provider's task ends. An operator can look at that task, and cancel it at the provider if it hangs."
        )


def of(kind: str, pk: UUID, *, now: datetime) -> Overdue | None:
    """Return the step of an object that has not ended although its time is over, None where there is none."""
    newest = ("-started_at", F("settled_at").desc(nulls_first=True))
    rows = list(Intent.objects.filter(object_kind=kind, object_id=pk).order_by(*newest)[:MOST_LOOKS])
    chain = list(
        itertools.takewhile(
            lambda one: (one.step, one.undo) == (rows[0].step, rows[0].undo) and one.outcome not in _OVER, rows
        )
    )
    if not any(one.outcome == "overdue" or (one.settled_at is None and one.deadline_at <= now) for one in chain):
        return None
    handle = next((one.handle for one in chain if one.handle), "")
    return Overdue(rows[0].step, rows[0].undo, chain[-1].started_at, handle, now)


def is_said(row: Any) -> bool:
    """Whether a row's conditions say that a step of it is overdue."""
    return any(condition["reason"] == Reason.STEP_OVERDUE for condition in row.conditions)


def tell(row: Any, provider: Provider, *, now: datetime) -> None:
    """Bring the finding about a row in line with its conditions, in the open transaction; the row is locked."""
    kind = desired.kind_of(row)
    prefix = f"{kind}/{row.pk}/"
    late = of(kind, row.pk, now=now) if is_said(row) and row.released_at is None else None
    seen = [] if late is None else [Seen(KIND, prefix + late.step, _detail(row, late), data=_data(row, late))]
    findings.sync(provider.pk, seen, kinds=frozenset({KIND}), complete=True, now=now, prefix=prefix, resolution=ENDED)


def _detail(row: Any, late: Overdue) -> str:
    name = getattr(row, "name", "") or row.short_id
    task = f" The provider's task is {late.handle.rpartition(' ')[2]}." if late.handle else ""
    what = f"{desired.kind_of(row).capitalize()} {name}: {steps.words(late.step, undo=late.undo)}"
    return f"{what} has not ended since {late.since:%Y-%m-%d %H:%M} UTC.{task}"


def _data(row: Any, late: Overdue) -> Mapping[str, Any]:
    return {
        "object": desired.kind_of(row), "uid": str(row.pk), "name": getattr(row, "name", "") or row.short_id,
        "step": late.step, "task": late.handle,
    }  # fmt: skip


def _long(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
