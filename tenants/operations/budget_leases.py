"""Parts of budgets that gateways are given to spend: all of them together never more than the budget.

A gateway says what it has spent and what it goes on counting on (`keep`); what it had beyond that it gives back with
it. It gets at least what its waiting requests need, as far as that is there, and of the rest an even part. The word of
one gateway has a rising number, so a late one changes nothing; a gateway that comes back without its memory has used up
what it had. Lock order: the gateway's word, budgets by name; both are advisory locks, nobody else takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Case, F, Q, QuerySet, Sum, When
from django.db.models.functions import Greatest

from tenants import access
from tenants.actor import Actor
from tenants.errors import Conflict, Gone
from tenants.models import BudgetLease, EndpointKey, GatewayReplica, Tenant
from tenants.policies import ROUTES
from tenants.transactions import operation

NANO: Final = 10**9
GIVEN_UP_AFTER: Final = timedelta(minutes=10)
"""So long after its removal a gateway's unspent part is free again: what it spent last has arrived, or never will."""
DIMENSIONS: Final[Mapping[str, tuple[str, int]]] = {
    "tenant:tokens": ("tokens_month", 1),
    "tenant:money": ("token_spend_month", NANO),
}
"""Budget of a tenant → dimension of its quota, and how many of our units one of that is."""
MOST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Ask:
    """What a gateway has, needs and wants of one budget in one period, all of the period together."""

    budget: str
    period_start: datetime
    spent: int
    keep: int
    need: int
    want: int


@dataclass(frozen=True, slots=True)
class Part:
    """What it gets."""

    budget: str
    period_start: datetime
    granted: int | None
    """None: not limited."""
    left: int | None
    """Not leased to anybody; None where a tenant above may be what limits it."""


@operation
def lease(*, gateway: UUID, serial: int, memory: UUID, asks: Sequence[Ask], actor: Actor, now: datetime) -> list[Part]:
    """Give a gateway its parts; `memory` names what it keeps them in.

    Raises `Conflict` for a word that is older than one that was heard, `Gone`.
    """
    access.require_principal(actor, ROUTES["agents.lease"])
    _lock(f"leases of {gateway}")
    row = GatewayReplica.objects.only("pk", "tenant_id", "lease_serial").filter(pk=gateway).first()
    if row is None:
        raise Gone
    if serial <= row.lease_serial:
        raise Conflict("A later word was heard already.", code="stale-lease", serial=row.lease_serial)
    root = Tenant.objects.values_list("path", flat=True).get(pk=row.tenant_id)[0]
    for name in sorted({f"budget {root} {ask.budget}" for ask in asks}):
        _lock(name)
    parts = [_part(row, ask, memory, now=now) for ask in asks]
    GatewayReplica.objects.filter(pk=gateway).update(lease_serial=serial)
    return parts


def _part(row: GatewayReplica, ask: Ask, memory: UUID, *, now: datetime) -> Part:
    rooms = _rooms(row, ask, now=now)
    if not rooms:
        return Part(ask.budget, ask.period_start, None, None)
    had = BudgetLease.objects.filter(gateway=row, budget=ask.budget, period_start=ask.period_start).first()
    lost = had.lost if had is not None else 0
    if had is not None and had.memory != memory:
        lost += max(had.granted, had.spent)
    whole = min(rooms) - lost
    room = max(whole - ask.keep, 0)
    needed = min(max(ask.need - ask.keep, 0), room)
    wished = min(max(ask.want - ask.keep, 0), room // (_sharers(row, ask) + 1))
    granted = min(ask.keep + max(needed, wished), MOST)
    if whole < ask.keep:  # the limit was lowered: what is not spent of the part is taken back
        granted = max(whole, ask.spent)
    BudgetLease.objects.update_or_create(
        gateway=row,
        budget=ask.budget,
        period_start=ask.period_start,
        defaults={
            "tenant_id": row.tenant_id,
            "granted": granted,
            "spent": ask.spent,
            "lost": lost,
            "memory": memory,
            "updated_at": now,
        },
    )
    left = room - (granted - ask.keep) if ask.budget.startswith("key:") else None
    return Part(ask.budget, ask.period_start, granted, left)


def _rooms(row: GatewayReplica, ask: Ask, *, now: datetime) -> list[int]:
    """Return, for each limit that holds, what of it the others leave; nothing where there is none."""
    if ask.budget in DIMENSIONS:
        dimension, units = DIMENSIONS[ask.budget]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT amount, taken FROM budget_levels(%s, %s, %s, %s, %s)",
                [row.pk, dimension, ask.budget, ask.period_start, now],
            )
            return [int(amount) * units - int(taken) for amount, taken in cursor.fetchall()]
    kind, _, rest = ask.budget.partition(":")
    whose, _, unit = rest.partition(":")
    if kind != "key" or unit not in {"tokens", "money"}:
        return []
    key = EndpointKey.objects.filter(Q(lineage=whose) | Q(public_id=whose)).order_by("-created_at", "pk").first()
    amount: Decimal | int | None = None if key is None else key.budget_tokens if unit == "tokens" else key.budget_money
    if amount is None:
        return []
    return [int(amount * (1 if unit == "tokens" else NANO)) - _taken(row, ask, now=now)]


def _taken(row: GatewayReplica, ask: Ask, *, now: datetime) -> int:
    """Return what other gateways have of a key's budget."""
    gone = Q(gateway__removed_at__lt=now - GIVEN_UP_AFTER)
    part = Case(When(gone, then=F("spent")), default=Greatest("granted", "spent"))
    found = _others(row, ask).aggregate(n=Sum(part + F("lost")))
    return int(found["n"] or 0)


def _sharers(row: GatewayReplica, ask: Ask) -> int:
    """Return how many other gateways of the tenant live on a budget."""
    return _others(row, ask).filter(gateway__removed_at=None).count()


def _others(row: GatewayReplica, ask: Ask) -> QuerySet[BudgetLease]:
    return BudgetLease.objects.filter(
        tenant_id=row.tenant_id, budget=ask.budget, period_start=ask.period_start
    ).exclude(gateway=row)


def _lock(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
