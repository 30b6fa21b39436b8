"""Asking for a report of the doctor: a row that a worker answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from django.db import connection

from tenants import desired
from tenants.actor import Actor
from tenants.models import SystemReport
from tenants.operations.guards import allow
from tenants.transactions import operation

PATIENCE: Final = timedelta(minutes=1)
"""A report that was asked for and waits no longer than this serves whoever asks again."""


@operation
def check(*, actor: Actor, now: datetime, thorough: bool = True) -> SystemReport:
    """Ask for a report and return it, open; one that waits already serves both. Recorded as an event."""
    allow(actor, None, "system.check")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('tenantry system report'))")
    waiting = SystemReport.objects.filter(
        done_at__isnull=True, thorough=thorough, asked_by__isnull=False, asked_at__gt=now - PATIENCE
    ).first()
    if waiting is not None:
        return waiting
    row = SystemReport.objects.create(asked_by=actor.person_id, asked_at=now, thorough=thorough)
    desired.happened(row, "system.check-asked", actor=actor, at=now, nudge=False, thorough=thorough)
    return row
