"""Keys of endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants import key_budgets
from tenants.api.pagination import slice_of
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.keys import KeyIn, KeyLimitsIn, KeyOut, RollIn
from tenants.api.views.base import Call, reads, writes
from tenants.api.views.endpoints import OfEndpoint
from tenants.errors import NotVisible
from tenants.models import (
    Endpoint,
    EndpointKey,
)
from tenants.operations import (
    endpoints,
)

KeyPage = page_of(KeyOut)


class KeyView(OfEndpoint):
    """Keys of one endpoint."""

    def rows(self, call: Call) -> QuerySet[EndpointKey]:
        """Return the endpoint's keys."""
        return EndpointKey.objects.filter(endpoint=call.target).select_related("replaced_by")

    def show(self, row: EndpointKey, call: Call, secrets: Mapping[str, str]) -> Out:
        """Return a key."""
        spend = key_budgets.spent([row], now=call.now).get(row.public_id)
        return KeyOut.of(row, spend=spend, key=secrets.get("secret"))

    def again(self, row: Any, call: Call) -> Any:
        """Return the key read anew."""
        return self.rows(call).get(pk=row.pk)

    def key_of(self, call: Call) -> EndpointKey:
        """Return the key that the path names. Raises `NotVisible`."""
        assert isinstance(call.target, Endpoint)
        found = self.rows(call).filter(public_id=call.path["key"]).first()
        if found is None:
            raise NotVisible
        return found


class Keys(KeyView):
    """Keys of one endpoint."""

    @reads("endpoint-keys.list", answers=KeyPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List keys, without their secrets, with what each has spent of its budgets."""
        query: PageQuery = call.query
        found = slice_of(self.rows(call), cursor=query.cursor, limit=query.limit, order=query.order, at="created_at")
        spend = key_budgets.spent(found.rows, now=call.now)
        items = [KeyOut.of(row, spend=spend.get(row.public_id)) for row in found.rows]
        return KeyPage(next=found.next, items=items)  # type: ignore[call-arg]

    @writes("endpoints.create_key", body=KeyIn, answers=KeyOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Create a key; the answer holds its plain text, once."""
        return endpoints.create_key(
            endpoint=call.target,
            name=call.body.name,
            expires_at=call.body.expires_at,
            limits=call.body.limits(),
            scopes=call.body.scopes,
            actor=call.actor,
            now=call.now,
        )


class KeyChange(KeyView):
    """One key."""

    found: EndpointKey

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant, endpoint and key."""
        super().locate(declared, call)
        self.found = self.key_of(call)


class KeyRoll(KeyChange):
    """Rolling a key."""

    @writes("endpoints.roll_key", body=RollIn, answers=KeyOut, status=201, plannable=False)
    def post(self, call: Call) -> Any:
        """Replace a key; the old one goes on for `overlap_s`. The answer holds the new plain text, once."""
        return endpoints.roll_key(
            endpoint=call.target, key=self.found, overlap_s=call.body.overlap_s, actor=call.actor, now=call.now
        )


class KeyLimits(KeyChange):
    """What one key may use."""

    @writes("endpoints.limit_key", body=KeyLimitsIn, answers=KeyOut, plannable=False)
    def put(self, call: Call) -> Any:
        """Replace a key's rates and budgets; gateways follow within seconds.

        Keys that were rolled from or into it share them. What was used in the present period stays counted.
        """
        return endpoints.limit_key(
            endpoint=call.target, key=self.found, limits=call.body.limits(), actor=call.actor, now=call.now
        )


class KeyItem(KeyChange):
    """Ending a key."""

    @writes("endpoints.revoke_key", answers=KeyOut, plannable=False)
    def delete(self, call: Call) -> Any:
        """Revoke a key; gateways refuse it within 5 seconds. Safe to repeat."""
        return endpoints.revoke_key(endpoint=call.target, key=self.found, actor=call.actor, now=call.now)
