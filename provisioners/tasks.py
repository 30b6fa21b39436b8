"""Celery's tasks: no logic here. A message is a hint; losing, repeating or delaying one is harmless.

Arguments are keyword-only with a tail for what newer senders add, and carry identity only: everything else
is read again from the database.
"""

from __future__ import annotations

from uuid import UUID

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from provisioners import housekeeping
from provisioners import sweep as sweeping


@shared_task(name="provisioners.reconcile", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def reconcile(*, kind: str, pk: str, **_newer: object) -> None:
    """Move one object one pass closer to its spec."""
    sweeping.reconcile(kind, UUID(pk), engine=sweeping.engine())


@shared_task(name="provisioners.sweep", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def sweep(**_newer: object) -> None:
    """Run what is due, for less than the time between two sweeps."""
    sweeping.sweep(sweeping.engine(), budget_s=settings.TENANTRY_SWEEP_S * 0.8)
    housekeeping.run(timezone.now())


@shared_task(name="provisioners.inventory", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def inventory(*, provider: str, **_newer: object) -> None:
    """Take a snapshot of one provider, if it is due."""
    sweeping.look_at(UUID(provider), engine=sweeping.engine())
