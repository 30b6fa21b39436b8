"""Shapes of endpoints and their revisions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from tenants import revision_diff
from tenants.api.serializers.base import In, Name, Out, Query, absent
from tenants.api.serializers.capacity import UnitIn
from tenants.api.serializers.moves import MoveOut
from tenants.api.serializers.products import ProductIn, ProductOut, product
from tenants.api.serializers.rollouts import RolloutIn, RolloutOut
from tenants.models import (
    Endpoint,
    Revision,
)
from tenants.operations.idling import LEAST_IDLE_S, LONGEST_IDLE_S, LONGEST_WAIT_S
from tenants.operations.rollouts import live_of
from tenants.serving_arguments import ServingArguments
from tenants.specs import (
    EndpointAsk,
    RevisionAsk,
)
from tenants.states import IdleUnits


class ArgumentsIn(ServingArguments):
    """Engine arguments: this list and no others."""


class RevisionIn(In):
    """What an endpoint serves."""

    model: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,58}[a-z0-9])?$", max_length=60)] = Field(
        description="Name of a served model."
    )
    arguments: ArgumentsIn = ArgumentsIn()
    runtime: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")] = "vllm"

    def revision(self) -> RevisionAsk:
        """Return the domain's shape."""
        return RevisionAsk(self.model, self.arguments.model_dump(exclude_none=True), self.runtime)


class EndpointReviseIn(RevisionIn):
    """What an endpoint serves next, and how it takes over."""

    rollout: RolloutIn = RolloutIn()


class IdleIn(In):
    """When an endpoint goes to zero by itself, and how it wakes."""

    after_s: Annotated[int, Field(ge=LEAST_IDLE_S, le=LONGEST_IDLE_S)] | None = Field(
        None, description="Without a request for so long, in seconds; left out: never."
    )
    units: IdleUnits = Field(
        IdleUnits.KEEP, strict=False,
        description="keep: held and billed, it wakes as fast as its model loads; release: given back, waking queues.",
    )  # fmt: skip
    wait_s: Annotated[int, Field(ge=1, le=LONGEST_WAIT_S)] = Field(
        300, description="How long a request waits for it to wake before it is refused."
    )


class EndpointPut(ProductIn, RevisionIn):
    """A served model behind a URL (the name stands in the address)."""

    unit: UnitIn
    replicas: Annotated[int, Field(ge=1, le=32)] = 1

    def ask(self, name: str) -> EndpointAsk:
        """Return the domain's shape."""
        units = [self.unit] * self.replicas
        return EndpointAsk(name, self.revision(), self.capacity(units), self.labels, self.description)


class EndpointIn(EndpointPut):
    """A served model behind a URL."""

    name: Name


class DiffQuery(Query):
    """Which two revisions; left out: the one that serves against the one before it."""

    before: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = absent("Number of the older one.")
    after: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = absent("Number of the newer one.")


class DifferenceOut(Out):
    """One field that two revisions do not have alike."""

    field: str
    before: Any
    after: Any


class DiffOut(Out):
    """What is different between two revisions."""

    before: int
    after: int
    differences: list[DifferenceOut]

    @classmethod
    def of(cls, before: Revision, after: Revision) -> DiffOut:
        """Return the difference; their models must be loaded."""
        found = [
            DifferenceOut(field=one.field, before=one.before, after=one.after)
            for one in revision_diff.between(before, after)
        ]
        return cls(before=before.number, after=after.number, differences=found)


class EndpointOut(ProductOut):
    """A served model behind a URL."""

    address: str
    reachable_from: str
    model: str | None
    runtime: str | None
    arguments: dict[str, Any]
    revision: int | None
    slept_at: datetime | None
    """Since when it is to be at zero: no replica runs, and a request wakes it."""
    idle_after_s: int | None
    """Without a request for so long it goes to zero by itself; null: never."""
    idle_units: IdleUnits
    wake_wait_s: int
    rollout: RolloutOut | None
    """Another revision taking over now."""
    move: MoveOut | None
    """On its way to another boundary now."""
    key: str | None = Field(None, description="Plain text of the first key: only in the answer to its creation.")

    @classmethod
    def of(cls, row: Endpoint, *, key: str | None = None) -> EndpointOut:
        """Return an endpoint; revision with its model must be loaded too."""
        revision = row.revision
        live = getattr(row, "live_rollouts", None)  # loaded beside a list
        rolling = live_of(row) if live is None else next(iter(live), None)
        return cls(
            **product(row),
            address=row.address,
            reachable_from=row.reachable_from,
            model=revision.model.name if revision is not None else None,
            runtime=revision.runtime if revision is not None else None,
            arguments=revision.arguments if revision is not None else {},
            revision=revision.number if revision is not None else None,
            slept_at=row.slept_at,
            idle_after_s=row.idle_after_s,
            idle_units=IdleUnits(row.idle_units),
            wake_wait_s=row.wake_wait_s,
            rollout=None if rolling is None else RolloutOut.of(rolling),
            move=_moving(row),
            key=key,
        )


def _moving(row: Endpoint) -> MoveOut | None:
    """Return the move that an endpoint is in; only of one that moves anything is asked."""
    if row.moving_to_id is None:
        return None
    loaded = getattr(row, "live_moves", None)  # beside a list
    live = row.moves.filter(ended_at__isnull=True).select_related("stand_in") if loaded is None else loaded
    return next((MoveOut.of(one) for one in live), None)


class RevisionOut(Out):
    """What an endpoint serves; immutable."""

    id: str
    number: int
    model: str
    runtime: str
    arguments: dict[str, Any]
    author: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: Revision) -> RevisionOut:
        """Return a revision; its model must be loaded."""
        return cls(
            id=str(row.pk),
            number=row.number,
            model=row.model.name,
            runtime=row.runtime,
            arguments=row.arguments,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
        )
