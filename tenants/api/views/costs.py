"""What a tenant and its children cost (worked out from usage and dated prices, never stored), and its budget."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from django.db.models import QuerySet

from tenants import access, costs
from tenants.api.serializers.base import Out
from tenants.api.serializers.costs import BudgetIn, BudgetOut, CostQuery, CostsOut
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.errors import InvalidSpec, NotVisible
from tenants.models import Budget
from tenants.operations import budgets
from tenants.operations.pricing import currency
from tenants.quota import month_of

LONGEST: Final = timedelta(days=93)
"""Of one answer; a quarter fits."""


class Costs(ApiView):
    """Costs of one tenant."""

    @reads("costs.list", answers=CostsOut, query=CostQuery)
    def get(self, call: Call) -> Out:
        """List what the tenant and all below it cost over a time, of the present month if none is given.

        Billed is from an object's first ready to the asking for its deletion. At most 93 days at once.
        """
        start, end = period_of(call.query, call.now)
        lines = costs.cost_lines(call.home, start, end, now=call.now)
        return CostsOut.of(lines, start=start, end=end, currency=currency())


class BudgetItem(ApiView):
    """The budget of one tenant."""

    key = "tenant"

    def rows(self, call: Call) -> QuerySet[Budget]:
        """Return the tenant's budget, if it has one."""
        return access.scoped(Budget, call.actor, tenant=call.tenant).select_related("tenant")

    def show(self, row: Budget, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a budget."""
        return BudgetOut.of(row)

    def find(self, call: Call) -> Any:
        """Return the tenant's budget; a PUT may find none and sets the first one."""
        row = self.rows(call).first()
        if row is None and call.request.method != "PUT":
            raise NotVisible("This tenant has set no budget.")
        return row

    @reads("budgets.read", answers=BudgetOut)
    def get(self, call: Call) -> Any:
        """Read what the tenant means to spend in each calendar month."""
        return call.target

    @writes("budgets.set", body=BudgetIn, answers=BudgetOut)
    def put(self, call: Call) -> Any:
        """Set the budget. Its owners are told at 80 and 100 per cent of it; nothing is refused or stopped."""
        return budgets.set_budget(
            tenant=call.home, amount=Decimal(call.body.amount), actor=call.actor, now=call.now, version=call.version
        )

    @writes("budgets.remove", answers=None, versioned=True)
    def delete(self, call: Call) -> Any:
        """Remove the budget; nobody is told about spending any more."""
        return budgets.remove(budget=call.target, actor=call.actor, now=call.now, version=call.version)


def period_of(query: CostQuery, now: datetime) -> tuple[datetime, datetime]:
    """Return the time that is asked for, of the present month by default. Raises `InvalidSpec`."""
    start = query.start or month_of(now).start
    end = query.end or month_of(start).end
    assert end is not None
    if end < start:
        raise InvalidSpec("lies before its start", field="end")
    if end - start > LONGEST:
        raise InvalidSpec(f"lies more than {LONGEST.days} days after its start", field="end")
    return start, end
