"""Shapes of what is counted at endpoints: calls by key, model and revision."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field

from tenants import endpoint_calls
from tenants.api.serializers.base import Out


class CallsOfOut(Out):
    """What one key asked of one revision. Times are in seconds, and null where nothing was streamed."""

    key: str = Field(description="Its id; empty for a key that is not known any more.")
    key_name: str
    revision: int = Field(description="0 where no revision answered.")
    model: str
    requests: int
    errors: int = Field(description="Answers with a status of 500 or more, and answers that broke off.")
    prompt_tokens: int
    completion_tokens: int
    mean_s: float | None = Field(description="Of a whole request.")
    ttft_p50_s: float | None = Field(description="Time to the first event of a stream.")
    ttft_p99_s: float | None
    between_p50_s: float | None = Field(description="Mean time between two tokens of a stream.")
    between_p99_s: float | None

    @classmethod
    def of(cls, found: endpoint_calls.Calls) -> Self:
        """Return sums."""
        return cls(
            key=found.key,
            key_name=found.key_name,
            revision=found.revision,
            model=found.model,
            requests=found.requests,
            errors=found.errors,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            mean_s=_rounded(found.mean_s),
            ttft_p50_s=_rounded(found.ttft_s(0.5)),
            ttft_p99_s=_rounded(found.ttft_s(0.99)),
            between_p50_s=_rounded(found.between_s(0.5)),
            between_p99_s=_rounded(found.between_s(0.99)),
        )


class CallsOut(Out):
    """What was asked of an endpoint over a time, by key, model and revision; counted by whole hours."""

    start: datetime
    end: datetime
    items: list[CallsOfOut]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
