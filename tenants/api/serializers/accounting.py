"""Shapes of what is counted at endpoints: calls by key, model and revision; the last hours by the minute."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field

from tenants import endpoint_calls
from tenants.api.serializers.base import Out, Query
from tenants.endpoint_minutes import MINUTES, Minute


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


class MinutesQuery(Query):
    """How far back."""

    last: int = Field(60, ge=1, le=MINUTES, description="So many minutes, the present one included.")


class MinuteOut(Out):
    """One minute of an endpoint; what nobody said is null."""

    at: datetime
    requests: int | None = Field(description="That ended in it; null where no gateway was heard of it.")
    errors: int | None = Field(description="Answers with a status of 500 or more, and answers that broke off.")
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens_s: float | None = Field(description="Tokens written a second.")
    ttft_p50_s: float | None = Field(description="Time to the first event of a stream.")
    ttft_p99_s: float | None
    running: int | None = Field(description="Most requests that its model servers worked on at a look.")
    queued: int | None = Field(description="Most that waited at a look, in model servers and at the gateway.")
    kv_cache: float | None = Field(description="Fullest KV cache at a look, 0 to 1.")
    prefix_hit_rate: float | None = Field(description="Share of prompts' tokens found in prefix caches, 0 to 1.")

    @classmethod
    def of(cls, found: Minute) -> Self:
        """Return one minute."""
        known = found.is_known
        return cls(
            at=found.at,
            requests=found.requests if known else None,
            errors=found.errors if known else None,
            prompt_tokens=found.prompt_tokens if known else None,
            completion_tokens=found.completion_tokens if known else None,
            tokens_s=_rounded(found.tokens_s),
            ttft_p50_s=_rounded(found.ttft_s(0.5)),
            ttft_p99_s=_rounded(found.ttft_s(0.99)),
            running=found.running,
            queued=found.queued,
            kv_cache=_rounded(found.kv_cache),
            prefix_hit_rate=_rounded(found.hit_rate),
        )


class MinutesOut(Out):
    """The last minutes of an endpoint, the oldest first."""

    items: list[MinuteOut]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
