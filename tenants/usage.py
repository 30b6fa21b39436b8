"""Marks on usage records: billable from the first ready to the asking for deletion. Plain functions."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Greatest

from tenants.models import Allocation, Quota, UsageRecord


def first_ready(allocation: Allocation, *, now: datetime) -> None:
    """Start billing an allocation's open records and set its end, at its first Ready. Safe to repeat."""
    UsageRecord.objects.filter(allocation_id=allocation.pk, held_to=None, billable_from=None).update(
        billable_from=Greatest(F("held_from"), now)
    )
    if allocation.ready_at is None:
        from tenants.specs import AllocationSpec

        end = AllocationSpec.from_json(allocation.spec).term.ends_at(now)
        Allocation.objects.filter(pk=allocation.pk, ready_at=None).update(ready_at=now, expires_at=end)
        allocation.ready_at, allocation.expires_at = now, end
        # What was granted for it was dated when people decided; building takes time, and its term counts from Ready.
        Quota.objects.filter(granted_by__allocation_id=allocation.pk, until__lt=end).update(until=end)


def units_ready(allocation: Allocation, units: Collection[UUID], *, now: datetime) -> None:
    """Start billing units that work, of an allocation that is billed already: claimed beside others, or anew."""
    if allocation.ready_at is None or allocation.deletion_requested_at is not None:
        return
    records = UsageRecord.objects.filter(allocation_id=allocation.pk, unit_id__in=list(units), held_to=None)
    records.filter(billable_from=None).update(billable_from=Greatest(F("held_from"), now))


def deletion_asked(allocation: Allocation, *, now: datetime) -> None:
    """Stop billing at the moment its deletion was asked; what it goes on holding is our time."""
    UsageRecord.objects.filter(allocation_id=allocation.pk, billable_to=None, billable_from__isnull=False).update(
        billable_to=Greatest(F("billable_from"), now)
    )
