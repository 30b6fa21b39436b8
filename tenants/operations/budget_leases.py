"""Parts of budgets that gateways are given to spend: all of them together never more than the budget.

A gateway says what it has spent and what it goes on counting on (`keep`); what it had beyond that it gives back with
it. It gets at least what its waiting requests need, as far as that is there, and of the rest an even part. What others
have and do not use is never taken from them (they count on it while they cannot hear us): they are told how much to
keep, less as the budget runs out and nothing as long as one of them lacks, and give back the rest with their next
word, within a quarter of a minute. The word of one gateway has a rising number, so a late one changes nothing; a
gateway that comes back without its memory has used up what it had. Lock order: the gateway's word, budgets by name;
both are advisory locks, nobody else takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Case, Count, F, Q, Sum, When
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
SHORT_FOR: Final = timedelta(minutes=1)
"""So long after one had less than it needed the others keep nothing ahead."""


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
    ahead: int | None = None
    """How much of it may be kept beyond what is used, because others share the budget; None: nobody does."""


@dataclass(frozen=True, slots=True)
class Level:
    """One limit that holds, and what other gateways have of it."""

    amount: int
    taken: int
    used: int
    """Of what is taken; never more than it."""
    sharers: int
    """Other gateways that live and have a part."""
    short: bool
    """Whether one of them had less than it needed lately."""


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
    levels = _levels(row, ask, now=now)
    if not levels:
        return Part(ask.budget, ask.period_start, None, None)
    had = BudgetLease.objects.filter(gateway=row, budget=ask.budget, period_start=ask.period_start).first()
    lost = had.lost if had is not None else 0
    if had is not None and had.memory != memory:
        lost += max(had.granted, had.spent)
    sharers = max(level.sharers for level in levels)
    whole = min(level.amount - level.taken for level in levels) - lost
    room = max(whole - ask.keep, 0)
    needed = min(max(ask.need - ask.keep, 0), room)
    wished = min(max(ask.want - ask.keep, 0), room // (sharers + 1))
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
            "short": granted < ask.need,
            "updated_at": now,
        },
    )
    left = room - (granted - ask.keep) if ask.budget.startswith("key:") else None
    unspent = max(min(level.amount - level.used for level in levels) - lost - ask.spent, 0)
    ahead = None if not sharers else 0 if any(level.short for level in levels) else unspent // (2 * (sharers + 1))
    return Part(ask.budget, ask.period_start, granted, left, ahead)


def _levels(row: GatewayReplica, ask: Ask, *, now: datetime) -> list[Level]:
    """Return each limit that holds; nothing where there is none."""
    if ask.budget in DIMENSIONS:
        dimension, units = DIMENSIONS[ask.budget]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT amount, taken, used, sharers, short FROM budget_parts(%s, %s, %s, %s, %s)",
                [row.pk, dimension, ask.budget, ask.period_start, now],
            )
            return [
                Level(int(amount) * units, int(taken), int(used), sharers, short)
                for amount, taken, used, sharers, short in cursor.fetchall()
            ]
    kind, _, rest = ask.budget.partition(":")
    whose, _, unit = rest.partition(":")
    if kind != "key" or unit not in {"tokens", "money"}:
        return []
    key = EndpointKey.objects.filter(Q(lineage=whose) | Q(public_id=whose)).order_by("-created_at", "pk").first()
    amount: Decimal | int | None = None if key is None else key.budget_tokens if unit == "tokens" else key.budget_money
    if amount is None:
        return []
    return [_level_of_key(row, ask, int(amount * (1 if unit == "tokens" else NANO)), now=now)]


def _level_of_key(row: GatewayReplica, ask: Ask, amount: int, *, now: datetime) -> Level:
    gone = Q(gateway__removed_at__lt=now - GIVEN_UP_AFTER)
    lives = Q(gateway__removed_at=None)
    part = Case(When(gone, then=F("spent")), default=Greatest("granted", "spent"))
    others = BudgetLease.objects.filter(
        tenant_id=row.tenant_id, budget=ask.budget, period_start=ask.period_start
    ).exclude(gateway=row)
    found = others.aggregate(
        taken=Sum(part + F("lost")),
        used=Sum(F("spent") + F("lost")),
        sharers=Count("pk", filter=lives),
        lacking=Count("pk", filter=lives & Q(short=True, updated_at__gt=now - SHORT_FOR)),
    )
    return Level(amount, int(found["taken"] or 0), int(found["used"] or 0), found["sharers"], found["lacking"] > 0)


def _lock(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
