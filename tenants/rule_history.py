"""What a rule of automatic approval would have approved in the past, from the requests that were really filed.

Reads only, in the caller's read block. Whether a rule covers a request is said by `approval.Rule.covers`, as when
a request is filed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from tenants import approval, pricing
from tenants.errors import InvalidSpec
from tenants.models import AutoApprovalRule, Decision, Request
from tenants.operations.grants import COST_DAYS
from tenants.operations.payloads import QuotaAsk, read_moment
from tenants.states import RequestKind

DAYS: Final = 90
MOST_ASKS: Final = 20_000
"""Requests that are looked at, the newest; a platform with more of them in 90 days gets an answer over fewer days."""


@dataclass(frozen=True, slots=True)
class History:
    """The requests of the last days that rules could have approved."""

    since: datetime
    rows: Mapping[UUID, Request]
    asks: tuple[approval.PastAsk, ...]


@dataclass(frozen=True, slots=True)
class Matches:
    """What a rule would have approved."""

    asks: tuple[approval.PastAsk, ...]
    adds: Mapping[str, int]
    """Dimension → sum over all of them."""
    cost: Decimal | None
    """To their ends at the prices of then (lasting: 30 days); None where something had no price."""
    people: int
    """Requests of them that waited for a person."""
    waited: timedelta
    """How long those waited, all together."""
    refused: Mapping[approval.Refusal, int]
    """What kept the others out → how many."""


def read(*, now: datetime, days: int = DAYS) -> History:
    """Return the quota requests of the last `days`, as they are now (a changed one by its last version)."""
    since = now - timedelta(days=days)
    rows = (
        Request.objects.filter(kind=RequestKind.QUOTA.value, created_at__gt=since, created_at__lte=now)
        .select_related("tenant", "allocation")
        .prefetch_related("decisions")
        .order_by("-created_at", "-pk")[:MOST_ASKS]
    )
    found: dict[UUID, Request] = {}
    asks = []
    for row in rows:
        past = _past(row)
        if past is not None:
            found[row.pk] = row
            asks.append(past)
    return History(since, found, tuple(reversed(asks)))


def _past(row: Request) -> approval.PastAsk | None:
    """Return a request as a rule would have seen it; None for one that no rule looks at."""
    try:
        ask = QuotaAsk.read(row.payload, now=row.created_at)
    except InvalidSpec:
        return None
    if row.tenant is None or ask.mode != "add" or ask.ancestors:
        return None
    return approval.PastAsk(
        row.pk, row.kind, row.tenant.pk, tuple(row.tenant.path), ask.limits, row.created_at, ask.until
    )


def granted_before(rules: Iterable[AutoApprovalRule], since: datetime) -> dict[UUID, dict[UUID, approval.Grants]]:
    """Return rule → tenant → what it had granted before a moment; one query."""
    found: dict[UUID, dict[UUID, list[tuple[Mapping[str, int], datetime | None]]]] = {}
    rows = Decision.objects.filter(rule__in=list(rules), created_at__lte=since, tenant__isnull=False)
    for rule, tenant, granted in rows.values_list("rule_id", "tenant_id", "granted"):
        if rule is None or tenant is None:
            continue
        until = read_moment(granted.get("until"), "until", now=None)
        adds = {key: int(amount) for key, amount in (granted.get("limits") or {}).items()}
        found.setdefault(rule, {}).setdefault(tenant, []).append((adds, until))
    return {rule: dict(tenants) for rule, tenants in found.items()}


def pure(row: AutoApprovalRule) -> approval.Rule:
    """Return a stored rule as the arithmetic takes it."""
    limits = {str(key): int(amount) for key, amount in row.limits.items()}
    return approval.Rule(row.pk, row.name, row.kind, row.tenant_id, limits, row.longest_s)


def matches(
    rule: approval.Rule,
    history: History,
    prices: pricing.PriceList,
    granted: Mapping[UUID, approval.Grants] | None = None,
) -> Matches:
    """Return what a rule would have approved of a history."""
    done = approval.replay(rule, history.asks, granted)
    found = done.approved
    adds: dict[str, int] = {}
    for ask in found:
        for dimension, amount in ask.adds.items():
            adds[dimension] = adds.get(dimension, 0) + amount
    waits = [wait for ask in found if (wait := waited(history.rows[ask.id])) is not None]
    return Matches(
        found,
        adds,
        _cost(found, prices),
        len(waits),
        sum(waits, timedelta()),
        Counter(why for _ask, why in done.refused),
    )


def waited(row: Request) -> timedelta | None:
    """Return how long a request waited for people, None where a rule decided it or nobody has; decisions prefetched."""
    by_people = [one.created_at for one in row.decisions.all() if one.rule_id is None]
    if row.decided_at is None or not by_people:
        return None
    return row.decided_at - row.created_at


def _cost(asks: Sequence[approval.PastAsk], prices: pricing.PriceList) -> Decimal | None:
    total = Decimal(0)
    try:
        for ask in asks:
            priced = {key: amount for key, amount in ask.adds.items() if pricing.is_priced(key)}
            until = ask.until or ask.at + timedelta(days=COST_DAYS)
            total += prices.cost(priced, ask.at, max(ask.at, until)).total
    except pricing.NoPrice:
        return None
    return total
