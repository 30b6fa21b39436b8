"""Intent rows: committed before each provider call, settled after it, so that no outcome is ever guessed.

At most one is open per object (the database says so). Recording and settling lock the object's row under
the claim's epoch first: a worker whose lease ran out can neither announce nor settle anything.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from provisioners.driver import DriverError, Step
from provisioners.lease import Claim
from provisioners.plan import OpenIntent
from tenants.models import Intent


def opened(claim: Claim) -> Intent | None:
    """Return the object's open intent."""
    return Intent.objects.filter(object_kind=claim.kind, object_id=claim.pk, settled_at__isnull=True).first()


def in_doubt(claim: Claim, steps: Collection[str]) -> frozenset[str]:
    """Return which of some steps may be half done by ourselves: under way, or ended badly since the last good pass."""
    after_trouble = claim.lock().failures > 0
    found = set()
    for step in steps:
        rows = Intent.objects.filter(object_kind=claim.kind, object_id=claim.pk, step=step)
        last = rows.order_by("-started_at", "-pk").first()
        if last is not None and (last.settled_at is None or (after_trouble and last.outcome not in {"done", "seen"})):
            found.add(step)
    return frozenset(found)


def as_open(intent: Intent | None) -> OpenIntent | None:
    """Return what the plan needs of an open intent."""
    if intent is None:
        return None
    return OpenIntent(intent.step, intent.undo, intent.handle, intent.deadline_at)


def record(claim: Claim, step: Step, row: Any, *, now: datetime) -> Intent:
    """Announce a step in the open transaction, the object's row being locked; an older open one is superseded."""
    before = opened(claim)
    attempt = 1
    if before is not None:
        attempt = before.attempt + 1 if before.key == step.key else 1
        settle(before, "superseded", now=now)
    return Intent.objects.create(
        object_kind=claim.kind,
        object_id=claim.pk,
        tenant_id=getattr(row, "tenant_id", None),
        step=step.name,
        key=step.key,
        undo=step.undo,
        epoch=claim.epoch,
        attempt=attempt,
        started_at=now,
        deadline_at=now + timedelta(seconds=step.limit_s),
    )


def adopt(claim: Claim, name: str, handle: str, row: Any, *, undo: bool, limit_s: int, now: datetime) -> Intent:
    """Take over a task that the provider shows as running on one of our parts, after its start was lost sight of."""
    return Intent.objects.create(
        object_kind=claim.kind,
        object_id=claim.pk,
        tenant_id=getattr(row, "tenant_id", None),
        step=name,
        key=f"{claim.pk}:{name}:adopted",
        undo=undo,
        epoch=claim.epoch,
        handle=handle,
        started_at=now,
        deadline_at=now + timedelta(seconds=limit_s),
    )


def hold_handle(intent: Intent, handle: str) -> None:
    """Note the provider's task of an open intent."""
    intent.handle = handle
    intent.save(update_fields=["handle"])


def settle(intent: Intent, outcome: str, *, now: datetime, error: DriverError | None = None) -> None:
    """Close an intent: `done`, `failed`, `unknown` (looked up since), `overdue`, `superseded`, `seen`."""
    intent.settled_at, intent.outcome = now, outcome
    if error is not None:
        intent.error = {"reason": error.reason, "detail": error.detail[:500], "raw": error.raw[:1000]}
    intent.save(update_fields=["settled_at", "outcome", "error"])
