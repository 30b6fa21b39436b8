"""What a tenant and its children cost: worked out from usage records and dated prices, never stored."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tenants import costs
from tenants.api.serializers.base import Out
from tenants.api.serializers.costs import CostQuery, CostsOut
from tenants.api.views.base import ApiView, Call, reads
from tenants.errors import InvalidSpec
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
        start, end = _period(call.query, call.now)
        lines = costs.cost_lines(call.home, start, end, now=call.now)
        return CostsOut.of(lines, start=start, end=end, currency=currency())


def _period(query: CostQuery, now: datetime) -> tuple[datetime, datetime]:
    start = query.start or month_of(now).start
    end = query.end or month_of(start).end
    assert end is not None
    if end < start:
        raise InvalidSpec("lies before its start", field="end")
    if end - start > LONGEST:
        raise InvalidSpec(f"lies more than {LONGEST.days} days after its start", field="end")
    return start, end
