"""Moves of endpoints between boundaries, as REST shows and takes them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import In, Out, page_of, text
from tenants.api.serializers.capacity import GpuIn
from tenants.models import Move
from tenants.operations.moves import LONGEST_WATCH_S
from tenants.specs import GpuAsk, MoveAsk
from tenants.states import BoundaryKind, MoveState

SLUG_OR_NONE: Final = r"^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$"


class MoveIn(In):
    """Where an endpoint is to go, and how."""

    kind: BoundaryKind = Field(strict=False, description="namespace or vm.")
    provider: Annotated[str, StringConstraints(pattern=SLUG_OR_NONE)] = Field(
        "", description="Name of a provider; left out: any that has room."
    )
    site: Annotated[str, StringConstraints(pattern=SLUG_OR_NONE)] = Field("", description="Left out: any.")
    gpu: GpuIn | None = Field(None, description="Of each replica there; left out: the same as now.")
    by_hand: bool = Field(
        default=False, description="Whether somebody says when its address goes over, instead of once it works there."
    )
    watch_s: Annotated[int, Field(ge=0, le=LONGEST_WATCH_S)] = Field(
        300, description="How long both places stay after that, in seconds; it is undone at once meanwhile."
    )

    def ask(self) -> MoveAsk:
        """Return the domain's shape."""
        gpu = None if self.gpu is None else GpuAsk(self.gpu.product, self.gpu.profile, self.gpu.count)
        return MoveAsk(self.kind, self.provider, self.site, gpu, self.by_hand, self.watch_s)


class UndoIn(In):
    """Why a move is undone."""

    reason: text(500) = ""  # type: ignore[valid-type]


class PlaceOut(Out):
    """A place of an endpoint; what is not known yet is empty."""

    kind: str = ""
    provider: str = ""
    site: str = ""


class MoveOut(Out):
    """An endpoint on its way to another boundary."""

    id: str
    source: PlaceOut
    target: PlaceOut
    state: MoveState
    by_hand: bool
    watch_s: int
    since: datetime
    """Since when it is in this state."""
    cut_at: datetime | None
    """When its address went over."""
    phase: str | None
    """Of the new place while it is built, of the former one while that goes; null once nothing of it is left."""
    message: str
    """What that place says of itself while it is not ready."""
    reason: str
    """Why it was undone."""
    author: str | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Move) -> MoveOut:
        """Return a move; its stand-in must be loaded."""
        other = row.stand_in
        there = None if other is None or other.released_at is not None else other
        said = [] if there is None else [one for one in there.conditions if one["type"] == "Ready"]
        return cls(
            id=str(row.pk),
            source=PlaceOut(**row.source),
            target=PlaceOut(**row.target),
            state=MoveState(row.state),
            by_hand=row.by_hand,
            watch_s=row.watch_s,
            since=row.since,
            cut_at=row.cut_at,
            phase=None if there is None else there.phase,
            message="".join(str(one["message"]) for one in said if one["status"] != "True"),
            reason=row.reason,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
            ended_at=row.ended_at,
        )


MovePage = page_of(MoveOut)
