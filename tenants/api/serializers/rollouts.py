"""Shapes of rollouts: how another revision takes over."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from tenants.api.serializers.base import In, Out, text
from tenants.canary_figures import Standing
from tenants.models import Rollout
from tenants.operations.rollouts import LONGEST_STEP_S, MOST_STEPS
from tenants.specs import (
    RolloutAsk,
    RolloutLimits,
    RolloutStep,
)
from tenants.states import RolloutState, RolloutStrategy


class RolloutStepIn(In):
    """One step of a canary."""

    weight: Annotated[int, Field(ge=1, le=100, description="Percent of the requests that the new revision gets.")]
    seconds: Annotated[int, Field(ge=1, le=LONGEST_STEP_S)] | None = Field(
        None, description="How long; left out: until somebody promotes it."
    )


class RolloutLimitsIn(In):
    """What a new revision may cost its callers before its rollout is aborted by itself."""

    error_rate: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.05, description="Share of its requests that may fail; null: not looked at."
    )
    latency_ms: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        None, description="What 95 of 100 answers (of streams: first events) must keep to; null: not looked at."
    )
    min_requests: Annotated[int, Field(ge=1, le=100_000)] = Field(
        20, description="So many requests of a step are looked at before anything is concluded."
    )


class RolloutIn(In):
    """How another revision takes over."""

    strategy: RolloutStrategy = Field(
        RolloutStrategy.RECREATE, strict=False,
        description="canary: beside the old one, on a unit of its own; recreate: the old replicas stop first.",
    )  # fmt: skip
    steps: Annotated[list[RolloutStepIn], Field(max_length=MOST_STEPS)] = Field(
        [], description="Of a canary; none: it takes over as soon as it is ready."
    )
    limits: RolloutLimitsIn = RolloutLimitsIn()
    must_have_room: bool = Field(
        default=False, description="Refuse a canary without room for its unit, instead of making it a recreate."
    )

    def ask(self) -> RolloutAsk:
        """Return the domain's shape."""
        return RolloutAsk(
            self.strategy,
            tuple(RolloutStep(step.weight, step.seconds) for step in self.steps),
            RolloutLimits(self.limits.error_rate, self.limits.latency_ms, self.limits.min_requests),
            self.must_have_room,
        )


class RollbackIn(In):
    """Which earlier revision serves again, and how it takes over."""

    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Its number; left out: the one that served before."
    )
    rollout: RolloutIn | None = Field(None, description="Left out: beside the present one, if there is room.")


class AbortIn(In):
    """Why a rollout is aborted."""

    reason: text(500) = ""  # type: ignore[valid-type]


class StandingOut(Out):
    """How a revision that is tried out stands since its present step began, as gateways reported last."""

    requests: int
    needed_requests: int
    """So many before anything is concluded."""
    errors: int
    answers: int
    """Those whose time was counted."""
    slow_answers: int
    """Of these, those that surely took longer than `limits.latency_ms`; 0 without such a limit."""

    @classmethod
    def of(cls, found: Standing) -> StandingOut:
        """Return a standing."""
        return cls(
            requests=found.requests,
            needed_requests=found.needed,
            errors=found.errors,
            answers=found.answers,
            slow_answers=found.slow,
        )


class RolloutOut(Out):
    """Another revision taking over."""

    id: str
    revision: int
    before: int
    strategy: RolloutStrategy
    state: RolloutState
    step: int | None
    """Number of the step that it is at, from 1; null outside of steps."""
    weight: int | None
    """Percent of the requests that the new revision gets at this step."""
    held: bool
    steps: list[dict[str, Any]]
    limits: dict[str, Any]
    note: str
    """Why it is no canary although one was asked for."""
    reason: str
    """Why it was aborted."""
    since: datetime
    """Since when it is in this state, or at this step."""
    author: str | None
    created_at: datetime
    ended_at: datetime | None
    standing: StandingOut | None
    """Only where the rollouts of one endpoint are asked for, and of one that is at a step."""

    @classmethod
    def of(cls, row: Rollout, *, standing: Standing | None = None) -> RolloutOut:
        """Return a rollout; both revisions must be loaded."""
        stepping = row.state == RolloutState.STEPPING.value
        return cls(
            id=str(row.pk),
            revision=row.revision.number,
            before=row.before.number,
            strategy=RolloutStrategy(row.strategy),
            state=RolloutState(row.state),
            step=row.step + 1 if stepping else None,
            weight=row.steps[row.step]["weight"] if stepping else None,
            held=row.held_at is not None,
            steps=row.steps,
            limits=row.limits,
            note=row.note,
            reason=row.reason,
            since=row.since,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
            ended_at=row.ended_at,
            standing=None if standing is None else StandingOut.of(standing),
        )
