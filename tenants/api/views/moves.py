"""Moves of endpoints between boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants.api.serializers.base import Out, Page, PageQuery
from tenants.api.serializers.moves import MoveIn, MoveOut, MovePage, UndoIn
from tenants.api.views.base import Call, reads, writes
from tenants.api.views.endpoints import OfEndpoint
from tenants.models import Move
from tenants.operations import moves


class MoveView(OfEndpoint):
    """Moves of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Move]:
        """Return the endpoint's moves."""
        return Move.objects.filter(endpoint=call.target).select_related("stand_in")

    def show(self, row: Move, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a move."""
        return MoveOut.of(row)


class Moves(MoveView):
    """Moves of one endpoint."""

    @reads("moves.list", answers=MovePage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List moves: the one that goes on has no `ended_at`."""
        return self.page(call, self.rows(call), MovePage)


class MoveBegin(MoveView):
    """Going to another boundary."""

    @writes("endpoints.move", body=MoveIn, answers=MoveOut)
    def post(self, call: Call) -> Any:
        """Build an endpoint a second time in another boundary and let its address follow once it works there.

        It goes on where it is meanwhile. The other place is held beside the present one, within quota and charged.
        """
        body: MoveIn = call.body
        return self.done(call, moves.begin, ask=body.ask())


class MoveCutOver(MoveView):
    """The address going over."""

    @writes("endpoints.cut_over", answers=MoveOut)
    def post(self, call: Call) -> Any:
        """Let the address go over now, once it works at the new place. Safe to repeat."""
        return self.done(call, moves.cut_over)


class MoveFinish(MoveView):
    """Giving the old place up."""

    @writes("endpoints.finish_move", answers=MoveOut)
    def post(self, call: Call) -> Any:
        """Give the old place up now, however long it was to stay. Safe to repeat."""
        return self.done(call, moves.finish)


class MoveUndo(MoveView):
    """Going back."""

    @writes("endpoints.undo_move", body=UndoIn, answers=MoveOut)
    def post(self, call: Call) -> Any:
        """Let the address go back and give the new place up. Safe to repeat while it goes back."""
        return self.done(call, moves.undo, reason=call.body.reason)
