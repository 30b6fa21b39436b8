"""What is due, and doing it: the sweep alone is enough, with no broker and no dispatcher.

A sweep takes due and free rows of every kind, oldest first, and runs their passes until none is left or its
time is over; then the queue, suspensions that have ended, and providers whose snapshot is old. Rows that are
ready and unchanged are not due and cost nothing.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection

from provisioners import breaker, housekeeping, lease, passes, queue
from provisioners.driver import DriverError
from provisioners.kinds import PASSES
from provisioners.lease import StaleLease
from provisioners.passes import Engine
from tenants import desired
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import Allocation, Namespace, Outbox, Provider, Reconciled
from tenants.operations import tenants
from tenants.operations.providers import ASKED
from tenants.transactions import acting

log = logging.getLogger(__name__)

AT_ONCE: Final = 200
"""Rows of one kind read per round of a sweep."""
PROVIDER: Final = "provider"
ORDER: Final = {word: number for number, word in enumerate([*PASSES, PROVIDER])}
"""Kinds in the order in which a sweep takes them."""
MOST_NEWS: Final = 1000
News = tuple[UUID, int, str, UUID | None]
"""(object, number, kind, tenant) of one row of the outbox."""


@dataclass(frozen=True, slots=True)
class Due:
    """One row that is due and free."""

    kind: str
    pk: UUID
    epoch: int = 0
    """Lease epoch when it was seen due: a higher one later means that somebody had it in between."""


def engine() -> Engine:
    """Return the engine of a real process; its first pause after an error is a tenth of a sweep."""
    return Engine(base_s=settings.TENANTRY_SWEEP_S / 10)


def due(now: datetime, *, limit: int = AT_ONCE) -> list[Due]:
    """Return rows that are due and free, per kind the longest waiting first."""
    with acting(SYSTEM):
        return _read_due(now, limit)


def _read_due(now: datetime, limit: int) -> list[Due]:
    """One statement, on indexes only, in the open transaction."""
    with connection.cursor() as cursor:
        cursor.execute(_due_query(), {"now": now, "limit": limit, "asked": ASKED})
        found = cursor.fetchall()
    found.sort(key=lambda row: (ORDER[row[0]], row[3]))
    return [Due(word, pk, epoch) for word, pk, epoch, _ in found]


@functools.cache
def _due_query() -> str:
    """Return the statement of `due`; as text, because every sweep asks several times and it never differs."""
    models: dict[str, type[Reconciled]] = {word: kind.model for word, kind in PASSES.items()}
    parts = [_due_of(word, model._meta.db_table) for word, model in models.items()]
    parts.append(_due_of(PROVIDER, Provider._meta.db_table, "AND (enabled OR observed ? %(asked)s)"))
    return " UNION ALL ".join(parts)


def _due_of(word: str, table: str, condition: str = "") -> str:
    return (
        f"(SELECT '{word}', id, lease_epoch, due_at FROM {table} "  # noqa: S608 - our own names only
        "WHERE (lease_expires_at IS NULL OR lease_expires_at <= %(now)s) AND released_at IS NULL "
        f"AND due_at <= %(now)s {condition} ORDER BY due_at LIMIT %(limit)s)"
    )


def reconcile(kind: str, pk: UUID, *, engine: Engine) -> int:
    """Run the passes of one row of any kind; return how many. Raises `LookupError` for a kind that is none."""
    if kind == PROVIDER:
        return look_at(pk, engine=engine)
    made = passes.run(PASSES[kind], pk, engine=engine)
    if made and kind == "allocation" and _given_back(pk):
        queue.run(engine.clock)  # its room may be just what somebody waits for
    return made


def _given_back(pk: UUID) -> bool:
    with acting(SYSTEM):
        return Allocation.objects.filter(pk=pk, released_at__isnull=False).exists()


def sweep(engine: Engine, *, budget_s: float | None = None) -> int:
    """Run everything that is due, for at most `budget_s` seconds; return how many passes were made."""
    ends = None if budget_s is None else time.monotonic() + budget_s
    made = 0
    take_news(engine.clock())
    tenants.resume_due(actor=SYSTEM, now=engine.clock())
    start_providers(engine.clock())
    housekeeping.run(engine.clock())
    for number in range(passes.MOST_STEPS):
        round_made = 0
        for item in due(engine.clock()):
            if ends is not None and time.monotonic() >= ends:
                return made + round_made
            round_made += _safely(item, engine)
        if round_made or number == 0:  # else nothing has changed since the queue was asked last
            round_made += queue.run(engine.clock)
        made += round_made
        if not round_made:
            break
    return made


def _safely(item: Due, engine: Engine) -> int:
    """One row's trouble must not end the sweep of the others."""
    try:
        return reconcile(item.kind, item.pk, engine=engine)
    except DependencyDown:
        raise  # the others would meet the same
    except Exception:
        log.exception("a pass failed and its row waits for its lease to end", extra={"kind": item.kind, "id": item.pk})
        return 0


# --- news ----------------------------------------------------------------------------------------------


def look(now: datetime, *, always: bool, limit: int = AT_ONCE) -> tuple[int, list[Due] | None]:
    """Take the news; return how many there were, and what is due: None where neither news nor `always` asked for it.

    As many looks find nothing, a look is one transaction; only news take more.
    """
    with acting(SYSTEM):
        news = _read_news()
        found = _read_due(now, limit) if always or news else None
    _take(news, now)
    return len(news), found


def take_news(now: datetime) -> int:
    """Take news out of the outbox and return how many there were.

    What they are about is due by itself; only who gained or lost access must be told on, to the namespaces
    that are handed out. That is committed first: lost in between, it is told again.
    """
    with acting(SYSTEM):
        news = _read_news()
    _take(news, now)
    return len(news)


def _read_news() -> list[News]:
    return list(Outbox.objects.order_by("at").values_list("object_id", "seq", "object_kind", "tenant_id")[:MOST_NEWS])


def _take(rows: Sequence[News], now: datetime) -> None:
    if not rows:
        return
    for tenant in sorted({row[3] for row in rows if row[2] == "membership" and row[3] is not None}):
        _access_changed(tenant, now)
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM tenants_outbox o USING unnest(%s::uuid[], %s::bigint[]) AS taken(id, seq) "
            "WHERE o.object_id = taken.id AND o.seq = taken.seq",
            [[row[0] for row in rows], [row[1] for row in rows]],
        )


def _access_changed(tenant: UUID, now: datetime) -> None:
    with acting(SYSTEM):
        rows = Namespace.objects.filter(tenant__path__contains=[tenant], released_at__isnull=True).order_by("pk")
        for namespace in rows.select_related("boundary"):
            if namespace.boundary is not None:
                desired.nudge_now(namespace.boundary, at=now)
            desired.nudge_now(namespace, at=now)


# --- providers -----------------------------------------------------------------------------------------


def start_providers(now: datetime) -> None:
    """Make providers due that no snapshot has been taken of yet."""
    with acting(SYSTEM):
        Provider.objects.filter(enabled=True, released_at__isnull=True, due_at__isnull=True).update(due_at=now)


def look_at(pk: UUID, *, engine: Engine) -> int:
    """Take a snapshot of one provider, if it is due and nobody else does; one that is switched off is only tested."""
    from provisioners import inventory, provider_probe

    with lease.claim(PROVIDER, Provider, pk, clock=engine.clock, ttl=max(engine.ttl, timedelta(seconds=5))) as claimed:
        if claimed is None:
            return 0
        with acting(SYSTEM):
            provider = Provider.objects.get(pk=pk)
        if provider_probe.is_asked(provider) and provider_probe.answer(provider, engine.driver_of, engine.clock):
            breaker.succeeded(provider)
        now = engine.clock()
        until = breaker.closed_until(provider, now)
        again: datetime | None = engine.after(settings.TENANTRY_INVENTORY_S, now)
        if not provider.enabled:
            again = None
        elif until is not None:
            again = until
        else:
            try:
                done = inventory.run(pk, engine.driver_of(provider), now, clock=engine.clock)
                breaker.succeeded(provider)
                if done.again_s is not None:
                    again = engine.after(min(done.again_s, settings.TENANTRY_INVENTORY_S), now)
                again = engine.clock() if done.more else again
            except DriverError as error:
                log.warning("a provider could not be read: %s", error.detail, extra={"provider": provider.name})
                breaker.failed(pk, engine.clock())
                again = engine.backoff(provider.breaker_failures + 1, now, cap_s=settings.TENANTRY_INVENTORY_S)
        try:
            with acting(SYSTEM):
                lease.apply(claimed, claimed.lock(), due_at=again, fields=[])
        except StaleLease:
            log.info("a snapshot outlived its lease", extra={"provider": provider.name})
        return 1
