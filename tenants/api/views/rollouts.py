"""Rollouts of revisions, and rollback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants import canary_figures
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.endpoints import (
    EndpointOut,
)
from tenants.api.serializers.rollouts import AbortIn, RollbackIn, RolloutOut
from tenants.api.views.base import Call, reads, writes
from tenants.api.views.endpoints import EndpointView, OfEndpoint
from tenants.models import Rollout
from tenants.operations import rollouts
from tenants.states import RolloutState

RolloutPage = page_of(RolloutOut)


class RolloutView(OfEndpoint):
    """Rollouts of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Rollout]:
        """Return the endpoint's rollouts."""
        return Rollout.objects.filter(endpoint=call.target).select_related("before", "revision")

    def show(self, row: Rollout, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a rollout; of the one that is at a step, how it stands."""
        if row.state != RolloutState.STEPPING.value:
            return RolloutOut.of(row)
        row.endpoint = call.target
        return RolloutOut.of(row, standing=canary_figures.standing(row))


class Rollouts(RolloutView):
    """Rollouts of one endpoint."""

    @reads("rollouts.list", answers=RolloutPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List rollouts: the one that goes on has no `ended_at`."""
        return self.page(call, self.rows(call), RolloutPage)


class RolloutPromote(RolloutView):
    """Promoting what takes over."""

    @writes("endpoints.promote", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Let the new revision take over now, whatever steps are left."""
        return self.done(call, rollouts.promote)


class RolloutHold(RolloutView):
    """Holding what takes over."""

    @writes("endpoints.hold", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Keep a canary at its step; it is judged all the same. Safe to repeat."""
        return self.done(call, rollouts.hold)


class RolloutResume(RolloutView):
    """Letting go on what was held."""

    @writes("endpoints.resume", answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Let a canary that is held go on; its step begins anew. Safe to repeat."""
        return self.done(call, rollouts.resume)


class RolloutAbort(RolloutView):
    """Going back."""

    @writes("endpoints.abort", body=AbortIn, answers=RolloutOut)
    def post(self, call: Call) -> Any:
        """Go back to the revision that served before. Safe to repeat while it goes back."""
        return self.done(call, rollouts.abort, reason=call.body.reason)


class EndpointRollback(EndpointView):
    """Serving an earlier revision again."""

    key = "name"

    @writes("endpoints.rollback", body=RollbackIn, answers=EndpointOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Serve an earlier revision again, by default the one before; it takes over like any other."""
        body: RollbackIn = call.body
        ask = rollouts.STRAIGHT if body.rollout is None else body.rollout.ask()
        return rollouts.rollback(
            endpoint=call.target, number=body.revision, ask=ask, actor=call.actor, now=call.now, version=call.version
        )
