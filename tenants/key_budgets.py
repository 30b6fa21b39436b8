"""What keys have spent of their budgets in the present period, as gateways said last.

A gateway says it with every word about its parts (within a quarter of a minute where a budget is shared, within a
minute where nothing is used). What a lost gateway could not say any more counts as spent (`BudgetLease.lost`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from django.db.models import F, Q, Sum

from tenants.budget_periods import end_of, start_of
from tenants.models import BudgetLease, EndpointKey
from tenants.states import BudgetPeriod

NANO: Final = 10**9
NANO_DIGITS: Final = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class KeySpend:
    """One key in the present period of its budgets; None where it has no such budget."""

    starts_at: datetime
    ends_at: datetime
    """When its budgets begin anew."""
    tokens: int | None
    money_nano: int | None
    """Billionths of the currency."""

    @property
    def money(self) -> Decimal | None:
        """Return what was spent of the budget of money, to a millionth of the currency."""
        return None if self.money_nano is None else (Decimal(self.money_nano) / NANO).quantize(NANO_DIGITS)


def spent(keys: Iterable[EndpointKey], *, now: datetime) -> Mapping[str, KeySpend]:
    """Return public id → what each key has spent, of keys with a budget; one query for all of them.

    Keys that were rolled from or into each other share their budgets. The keys must be the actor's to see.
    """
    found = [key for key in keys if key.budget_tokens is not None or key.budget_money is not None]
    if not found:
        return {}
    asked = Q()
    for key in found:
        start = start_of(BudgetPeriod(key.budget_period), now)
        names = [f"key:{key.limits_id}:tokens", f"key:{key.limits_id}:money"]
        asked |= Q(tenant_id=key.tenant_id, budget__in=names, period_start=start)
    rows = BudgetLease.objects.filter(asked).values_list("tenant_id", "budget", "period_start")
    sums = {tuple(of): int(n) for *of, n in rows.annotate(n=Sum(F("spent") + F("lost"))).order_by()}

    def of(key: EndpointKey) -> KeySpend:
        period = BudgetPeriod(key.budget_period)
        start = start_of(period, now)

        def amount(unit: str, limit: object) -> int | None:
            return None if limit is None else sums.get((key.tenant_id, f"key:{key.limits_id}:{unit}", start), 0)

        return KeySpend(
            start, end_of(period, now), amount("tokens", key.budget_tokens), amount("money", key.budget_money)
        )

    return {key.public_id: of(key) for key in found}
