"""Celery's tasks: no logic here. A message is a hint; losing, repeating or delaying one is harmless.

Arguments are keyword-only with a tail for what newer senders add, and carry identity only: everything else
is read again from the database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from celery import shared_task, signals
from django.conf import settings

from provisioners import connections, notifying
from provisioners import sweep as sweeping
from tenants.errors import DependencyDown

log = logging.getLogger(__name__)


@contextmanager
def _unless_away() -> Iterator[None]:
    """Leave the work to a later sweep where the database does not answer; a message is worth no more than that."""
    try:
        yield
    except DependencyDown:
        log.warning("the database does not answer; a later sweep does this")


@shared_task(name="provisioners.reconcile", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def reconcile(*, kind: str, pk: str, **_newer: object) -> None:
    """Move one object one pass closer to its spec."""
    with _unless_away():
        sweeping.reconcile(kind, UUID(pk), engine=sweeping.engine())


@shared_task(name="provisioners.sweep", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def sweep(**_newer: object) -> None:
    """Run what is due, for less than the time between two sweeps."""
    with _unless_away():
        sweeping.sweep(sweeping.engine(), budget_s=settings.TENANTRY_SWEEP_S * 0.8)


@shared_task(name="provisioners.notify", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def notify(**_newer: object) -> None:
    """Make events into notifications and send what is due, for less than the time between two sweeps."""
    with _unless_away():
        notifying.Notifier().run(budget_s=settings.TENANTRY_SWEEP_S * 0.8)


@shared_task(name="provisioners.inventory", ignore_result=True, soft_time_limit=90, time_limit=120)  # type: ignore[untyped-decorator] # celery has no types
def inventory(*, provider: str, **_newer: object) -> None:
    """Take a snapshot of one provider, if it is due."""
    with _unless_away():
        sweeping.look_at(UUID(provider), engine=sweeping.engine())


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator] # celery has no types
@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator] # celery has no types
def log_out(**_: object) -> None:
    """Close what this process of a worker has open at providers, before it ends."""
    connections.close_all()
