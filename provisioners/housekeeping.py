"""What is done once a minute, by whichever worker is first: checkpoint, ends that have come, usage by day, purges.

The checkpoint of a minute is the mark: who writes it does the rest of that minute's work. Every job is a
transaction (or several) of its own and may be repeated or lost; one that fails is logged and the others go on.
Purges take released rows after 90 days, owners before what they own, a bounded number at a time; events stay,
and what usage was about is kept beside the usage records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models import Q, QuerySet

from provisioners.agent_api import config
from tenants import endpoint_minutes, gateway_config, usage_days
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import (
    Allocation,
    Boundary,
    BudgetLease,
    Checkpoint,
    Endpoint,
    EndpointMinute,
    GatewayReplica,
    GatewayUsage,
    IdempotencyRecord,
    Intent,
    Machine,
    Namespace,
    SshCertificate,
    Unit,
    UsageSubject,
)
from tenants.operations import machine_access, requests
from tenants.operations import tenants as tenant_operations
from tenants.transactions import acting

log = logging.getLogger(__name__)

IDEMPOTENCY_LIFE: Final = timedelta(hours=24)
RELEASED_LIFE: Final = timedelta(days=90)
BATCH_LIFE: Final = timedelta(days=90)
"""So long a batch of usage that comes again is known."""
LEASE_LIFE: Final = timedelta(days=90)
"""Since a budget's period began, which is a month at most."""
INTENT_LIFE: Final = timedelta(days=7)
ATTEMPT_LIFE: Final = timedelta(days=1)
AT_ONCE: Final = 500
MOST_ROUNDS: Final = 20
"""Rounds of one purge in one minute; what is left waits for the next."""
_LOCK: Final = 0x7E4A_0001
"""Of the advisory lock; only the name matters."""

Job = Callable[[datetime], int]


def run(now: datetime) -> Mapping[str, int] | None:
    """Do this minute's work and return job → how many rows it concerned; None where another worker does it."""
    if not _is_first(now.replace(second=0, microsecond=0)):
        return None
    done: dict[str, int] = {}
    for name, job in JOBS.items():
        try:
            done[name] = job(now)
        except DependencyDown:
            raise  # the other jobs would meet the same
        except Exception:
            log.exception("a job of housekeeping failed; it is tried again in a minute", extra={"job": name})
            connection.close()
    if any(done.values()):
        log.info("housekeeping", extra={"done": {name: count for name, count in done.items() if count}})
    return done


def _is_first(minute: datetime) -> bool:
    """Write the minute's checkpoint of all event chains, unless somebody has or is about to."""
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_LOCK])
        row = cursor.fetchone()
        if not row or not row[0] or Checkpoint.objects.filter(at__gte=minute).exists():
            return False
        cursor.execute("SELECT checkpoint_write(%s)", [minute])
    return True


# --- ends that have come --------------------------------------------------------------------------


def end_requests(now: datetime) -> int:
    """End requests that nobody decided in time."""
    return requests.expire_due(actor=SYSTEM, now=now)


def end_suspensions(now: datetime) -> int:
    """End suspensions whose time is over, where no sweep has yet."""
    return tenant_operations.resume_due(actor=SYSTEM, now=now)


def refresh_gateways(now: datetime) -> int:
    """Raise the version of gateways whose configuration is another than what they were given.

    Every change does so by itself; this finds one that was forgotten, and a new release that renders otherwise.
    """
    found, last = 0, None
    while True:
        with acting(SYSTEM):
            rows = GatewayReplica.objects.filter(removed_at=None).exclude(rendered="").order_by("pk")
            page = list(rows.filter(pk__gt=last)[:AT_ONCE] if last is not None else rows[:AT_ONCE])
            if not page:
                return found
            found += gateway_config.bump_gateways(config.outdated(page, now=now))
        last = page[-1].pk


# --- purges ---------------------------------------------------------------------------------------


def purge_idempotency(now: datetime) -> int:
    """Forget results of POSTs that nobody repeats any more."""
    return _purge(lambda: IdempotencyRecord.objects.filter(created_at__lt=now - IDEMPOTENCY_LIFE))


def purge_sessions(now: datetime) -> int:
    """Forget sessions and counters of log-ins that are over."""
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT login_attempt_clear('', %s)", [now - ATTEMPT_LIFE])
    return _purge(lambda: Session.objects.filter(expire_date__lt=now))


def purge_ssh_certificates(now: datetime) -> int:
    """Forget SSH certificates that are over."""
    return _purge(lambda: SshCertificate.objects.filter(expires_at__lt=now - machine_access.KEPT))


def purge_intents(now: datetime) -> int:
    """Forget steps that were settled long ago."""
    return _purge(lambda: Intent.objects.filter(settled_at__lt=now - INTENT_LIFE))


def purge_batches(now: datetime) -> int:
    """Forget the ids of batches of usage; their sums stay."""
    return _purge(lambda: GatewayUsage.objects.filter(received_at__lt=now - BATCH_LIFE))


def purge_minutes(now: datetime) -> int:
    """Forget what endpoints looked like longer ago than charts show; one statement, there are many."""
    with acting(SYSTEM):
        gone, _each = EndpointMinute.objects.filter(minute__lt=now - endpoint_minutes.KEPT).delete()
    return gone


def purge_leases(now: datetime) -> int:
    """Forget gateways' parts of budgets of periods that are long over."""
    return _purge(lambda: BudgetLease.objects.filter(period_start__lt=now - LEASE_LIFE))


def purge_released(now: datetime) -> int:
    """Remove released products, then allocations nobody owns, then boundaries nobody is in."""
    before = now - RELEASED_LIFE
    count = 0
    for model in (Endpoint, Machine, Namespace):
        count += _purge(partial(model._base_manager.filter, released_at__lt=before), first=_let_go)
    alone = {"endpoint": None, "machine": None, "namespace": None}
    count += _purge(lambda: Allocation.objects.filter(released_at__lt=before, **alone), first=_keep_subject)
    empty = {"allocations": None, "endpoints": None, "machines": None, "namespaces": None}
    count += _purge(lambda: Boundary.objects.filter(released_at__lt=before, **empty))
    return count


def _let_go(rows: QuerySet[Any]) -> None:
    """Part endpoints, and former places of theirs, from the revision they served, which belongs to them."""
    if rows.model is Endpoint:
        Endpoint._base_manager.filter(Q(pk__in=rows) | Q(stands_in_for__in=rows)).update(revision=None)


def _keep_subject(rows: QuerySet[Any]) -> None:
    """Keep what usage records say only by id, then remove the units."""
    units: dict[Any, dict[str, list[int]]] = {}
    for unit in Unit.objects.filter(allocation__in=rows):
        units.setdefault(unit.allocation_id, {})[str(unit.pk)] = [unit.vcpu, unit.memory_gib]
    UsageSubject.objects.bulk_create(
        [
            UsageSubject(
                allocation_id=row.pk,
                tenant_id=row.tenant_id,
                kind=row.product_kind,
                name=row.name,
                short_id=row.short_id,
                storage_gib=int(row.spec.get("storage_gib", 0)),
                units=units.get(row.pk, {}),
            )
            for row in rows
        ],
        ignore_conflicts=True,
    )
    Unit.objects.filter(allocation__in=rows).delete()


def _purge(rows: Callable[[], QuerySet[Any]], *, first: Callable[[QuerySet[Any]], None] | None = None) -> int:
    """Delete rows in batches, each its own transaction; return how many."""
    removed = 0
    for _ in range(MOST_ROUNDS):
        with acting(SYSTEM):
            keys = list(rows().order_by("pk").values_list("pk", flat=True)[:AT_ONCE])
            if not keys:
                break
            batch = rows().model._base_manager.filter(pk__in=keys)
            if first is not None:
                first(batch)
            batch.delete()
        removed += len(keys)
        if len(keys) < AT_ONCE:
            break
    return removed


JOBS: Final[Mapping[str, Job]] = {
    "requests-ended": end_requests,
    "suspensions-ended": end_suspensions,
    "gateways-refreshed": refresh_gateways,
    "idempotency-purged": purge_idempotency,
    "sessions-purged": purge_sessions,
    "ssh-certificates-purged": purge_ssh_certificates,
    "intents-purged": purge_intents,
    "batches-purged": purge_batches,
    "minutes-purged": purge_minutes,
    "leases-purged": purge_leases,
    "usage-rolled": usage_days.roll_all,
    "released-purged": purge_released,
}
