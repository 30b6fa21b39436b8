"""What is counted at endpoints."""

from __future__ import annotations

from tenants import endpoint_calls, endpoint_minutes
from tenants.api.serializers.accounting import CallsOfOut, CallsOut, MinuteOut, MinutesOut, MinutesQuery
from tenants.api.serializers.base import Out
from tenants.api.serializers.costs import CostQuery
from tenants.api.views.base import Call, reads
from tenants.api.views.costs import period_of
from tenants.api.views.endpoints import OfEndpoint


class Calls(OfEndpoint):
    """Calls of one endpoint."""

    @reads("endpoint-calls.list", answers=CallsOut, query=CostQuery)
    def get(self, call: Call) -> Out:
        """List what was asked of the endpoint: requests, tokens, times and errors by key, model and revision.

        Of the present month if no time is given; at most 93 days at once. Gateways report within seconds.
        """
        start, end = period_of(call.query, call.now)
        found = endpoint_calls.calls(call.target, start, end)
        return CallsOut(start=start, end=end, items=[CallsOfOut.of(each) for each in found])


class Minutes(OfEndpoint):
    """The last hours of one endpoint, by the minute."""

    @reads("endpoint-minutes.list", answers=MinutesOut, query=MinutesQuery)
    def get(self, call: Call) -> Out:
        """List the last minutes of the endpoint: requests, tokens, time to first token, queue, caches.

        For looking at it, not for billing: sums to the token are in its calls. The last one goes on.
        """
        found = endpoint_minutes.history(call.target, minutes=call.query.last, now=call.now)
        return MinutesOut(items=[MinuteOut.of(each) for each in found])
