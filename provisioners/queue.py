"""The queue: what waits for room is tried again, first in, first out by fit.

One runner at a time (an advisory lock). Each try is a transaction of its own and goes through
`operations.admissions.admit`, which states the true reason when nothing fits. Asks that are alike fail
alike: after one of them found no room, the later ones are not tried in the same run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from django.db.models import QuerySet

from tenants import desired
from tenants.actor import SYSTEM
from tenants.models import Allocation
from tenants.operations import admissions, placements
from tenants.specs import AllocationSpec
from tenants.states import ConditionType, ProductKind
from tenants.transactions import RetryableError, acting, alone

log = logging.getLogger(__name__)

LOCK: Final = 0x7E4A_0002
"""Advisory lock of the one runner."""


def run(clock: Callable[[], datetime]) -> int:
    """Take up what fits now; return how many were placed. Does nothing while another process does it."""
    with acting(SYSTEM):
        if not _waiting().exists():  # nearly always, and cheaper than becoming the one runner
            return 0
    if not _call("SELECT pg_try_advisory_lock(%s)"):
        return 0
    try:
        return _take_up(clock)
    finally:
        _call("SELECT pg_advisory_unlock(%s)")


def _waiting() -> QuerySet[Allocation]:
    return Allocation.objects.filter(
        queued_at__isnull=False, released_at__isnull=True, deletion_requested_at__isnull=True
    )


def _take_up(clock: Callable[[], datetime]) -> int:
    with acting(SYSTEM):
        waiting = list(_waiting().select_related("tenant").order_by("queued_at", "id"))
    found_no_room: set[object] = set()
    placed = 0
    for row in waiting:
        alike = (row.tenant_id, AllocationSpec.from_json(row.spec).units, str(row.spec["where"]))
        if alike in found_no_room:
            continue
        try:
            with acting(SYSTEM):
                now = clock()
                done = admissions.admit(row, actor=SYSTEM, now=now)
                _mirror(row, now=now)
        except RetryableError:
            log.info("the queue met a rival; the next run tries again", extra={"id": row.pk})
            continue
        if done:
            placed += 1
        else:
            found_no_room.add(alike)
    return placed


def _mirror(row: Allocation, *, now: datetime) -> None:
    """Wake the product that still shows an older word of its allocation's: why it waits, or that it was approved."""
    model = placements.product_model(ProductKind(row.product_kind))
    product = None if model is None else model._base_manager.filter(allocation_id=row.pk).first()
    if product is None or product.due_at is not None:
        return
    fresh = Allocation.objects.only("conditions").get(pk=row.pk)
    if _words(fresh.conditions) != _words(product.conditions):
        desired.nudge_now(product, at=now)


def _words(conditions: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    told = (ConditionType.APPROVED, ConditionType.PLACED)
    return [(c["type"], c["status"], c["message"]) for c in conditions if c["type"] in told]


def _call(query: str) -> bool:
    return bool(alone(query, [LOCK]))
