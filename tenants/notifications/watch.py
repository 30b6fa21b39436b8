"""News that no operation writes: what has waited too long, stopped, lain idle or stopped answering.

Each watcher looks at rows and appends an event, once: a mark with the same key is written in the same
transaction. The events then fan out like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection
from django.db.models import Exists, F, OuterRef, Q

from tenants import costs, desired
from tenants.actor import SYSTEM
from tenants.models import Budget, Endpoint, EndpointUsage, Machine, Namespace, NotificationMark, Provider, Request
from tenants.states import ConditionType, Phase, RequestState, condition_of
from tenants.transactions import acting

STALE_AFTER: Final = timedelta(days=1)
IDLE_AFTER: Final = timedelta(days=7)
AT_ONCE: Final = 500
BUDGET_PERCENT: Final = (80, 100)
LOOK_AT_BUDGETS_EVERY: Final = timedelta(minutes=15)
BUDGETS_AT_ONCE: Final = 20
"""Each costs a look at the month's use of its tenant; the rest has its turn in the next minute."""

Telling = tuple[str, Any, str, dict[str, Any]]
"""Key of the mark, the row it is about, kind of event, what the event says."""


def run(now: datetime) -> int:
    """Tell what is new; return how many events were written."""
    told = 0
    for watcher in (stale_requests, failed_objects, idle_endpoints, providers_down, budgets):
        told += tell(watcher, now)
    return told + providers_up(now)


def tell(watcher: Callable[[datetime], Iterable[Telling]], now: datetime) -> int:
    """Write the events of one watcher that were not written yet, each in a transaction of its own."""
    with acting(SYSTEM):
        seen = list(watcher(now))
        known = set(NotificationMark.objects.filter(key__in=[key for key, *_ in seen]).values_list("key", flat=True))
    told = 0
    for key, row, kind, said in seen:
        if key not in known:
            with acting(SYSTEM):
                if mark(key, now):
                    desired.happened(row, kind, actor=SYSTEM, at=now, nudge=False, **said)
                    told += 1
    return told


def mark(key: str, now: datetime) -> bool:
    """Write a mark in the open transaction; False where it is there already. Waits for whoever is just writing it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenants_notificationmark (key, at) VALUES (%s, %s) ON CONFLICT DO NOTHING", [key, now]
        )
        return bool(cursor.rowcount)


def stale_requests(now: datetime) -> list[Telling]:
    """Requests that have waited for a day or more: once for each day of waiting, the missed ones not made up for."""
    rows = Request.objects.filter(state=RequestState.SUBMITTED.value, created_at__lte=now - STALE_AFTER)
    found: list[Telling] = []
    for row in rows.order_by("created_at")[:AT_ONCE]:
        days = (now - row.created_at) // STALE_AFTER
        found.append((f"request-stale:{row.pk}:{days}", row, "request.stale", {"days": days}))
    return found


def failed_objects(now: datetime) -> list[Telling]:
    """Products that stopped until their spec changes: once for each spec."""
    del now
    found: list[Telling] = []
    for model in (Endpoint, Machine, Namespace):
        rows = model._base_manager.filter(phase=Phase.FAILED.value, released_at__isnull=True).order_by("pk")
        for row in rows[:AT_ONCE]:
            ready = condition_of(row.conditions, ConditionType.READY)
            why = str(ready["message"]) if ready is not None else ""
            said = {"why": _sentence(why), "generation": row.generation}
            word = desired.kind_of(row)
            found.append((f"failed:{row.pk}:{row.generation}", row, f"{word}.failed", said))
    return found


def idle_endpoints(now: datetime) -> list[Telling]:
    """Endpoints that were ready all week and got no request: once a week."""
    since = now - IDLE_AFTER
    used = EndpointUsage.objects.filter(endpoint_id=OuterRef("pk"), hour__gte=since, requests__gt=0)
    rows = Endpoint.objects.filter(
        ~Exists(used), phase=Phase.READY.value, ready_at__lte=since, deletion_requested_at__isnull=True
    )
    year, week, _ = now.isocalendar()
    said = {"days": IDLE_AFTER.days}
    return [(f"idle:{row.pk}:{year}-{week}", row, "endpoint.idle", said) for row in rows.order_by("pk")[:AT_ONCE]]


def providers_down(now: datetime) -> list[Telling]:
    """Providers that cannot be read: once until they answer again."""
    del now
    rows = Provider.objects.filter(
        enabled=True, healthy=False, breaker_open_until__isnull=False, released_at__isnull=True
    )
    return [(f"provider-down:{row.pk}", row, "provider.unreachable", {}) for row in rows.order_by("pk")]


def budgets(now: datetime) -> list[Telling]:
    """Budgets of which 80 or 100 per cent is spent in the present month: once each, and anew when one is changed.

    Each is compared with the month's spend every quarter of an hour, the longest unlooked-at first.
    """
    due = Budget.objects.filter(Q(looked_at__isnull=True) | Q(looked_at__lte=now - LOOK_AT_BUDGETS_EVERY))
    rows = list(due.select_related("tenant").order_by(F("looked_at").asc(nulls_first=True), "pk")[:BUDGETS_AT_ONCE])
    found: list[Telling] = []
    for row in rows:
        spent = costs.spend_month(row.tenant, now=now)
        month = f"{spent.start:%Y-%m}"
        for percent in BUDGET_PERCENT:
            if spent.total * 100 >= row.amount * percent:
                said = {
                    "percent": percent, "month": month, "spent": f"{spent.total:.2f}", "amount": f"{row.amount:f}",
                    "currency": row.currency,
                }  # fmt: skip
                found.append((f"budget:{row.pk}:{month}:{percent}:{row.amount}", row, "budget.reached", said))
    Budget.objects.filter(pk__in=[row.pk for row in rows]).update(looked_at=now)
    return found


def providers_up(now: datetime) -> int:
    """Tell which providers that were told to be down answer again."""
    with acting(SYSTEM):
        keys = list(NotificationMark.objects.filter(key__startswith="provider-down:").values_list("key", flat=True))
        rows = list(
            Provider.objects.filter(pk__in=[key.partition(":")[2] for key in keys], breaker_open_until__isnull=True)
        )
    told = 0
    for row in rows:
        with acting(SYSTEM):
            if NotificationMark.objects.filter(key=f"provider-down:{row.pk}").delete()[0]:
                desired.happened(row, "provider.answers", actor=SYSTEM, at=now, nudge=False)
                told += 1
    return told


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
