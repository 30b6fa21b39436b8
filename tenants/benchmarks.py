"""What a benchmark of an endpoint asks for, within which bounds, and what its result says. Pure.

Figures are those of `vllm bench serve` (vLLM 0.32.0, `vllm/benchmarks/serve.py`): time to the first token, times
between two events of a stream, whole requests, and throughput over the whole run, all as the caller sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Self

from tenants.errors import InvalidSpec

LONGEST: Final = timedelta(minutes=15)
"""A load that takes longer is ended, and its result says so."""
BOUNDS: Final[Mapping[str, tuple[int, int]]] = {
    "requests": (1, 2_000), "input_tokens": (1, 32_768), "output_tokens": (1, 8_192), "concurrency": (1, 64),
}  # fmt: skip
MOST_TOKENS: Final = 5_000_000
"""Of all requests of one benchmark, read and written."""
SPARE: Final = 1.5
"""A prompt is made of words, and how many tokens those are shows only when the model has read one."""
SPARE_TOKENS: Final = 512
BYTES_A_TOKEN: Final = 12


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests of one shape, so many at once, each sent as soon as one has ended."""

    requests: int = 100
    input_tokens: int = 512
    output_tokens: int = 128
    """Asked for with `ignore_eos`: as many are written."""
    concurrency: int = 8

    def check(self) -> None:
        """Raise `InvalidSpec` for a load beyond the bounds."""
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise InvalidSpec(f"Give {least} to {most}.", field=name)
        if self.tokens > MOST_TOKENS:
            msg = f"That is {self.tokens} tokens; a benchmark has at most {MOST_TOKENS}. Ask for fewer requests."
            raise InvalidSpec(msg, field="requests", code="too-many")

    @property
    def tokens(self) -> int:
        """Return about how many tokens it reads and writes."""
        return self.requests * (self.input_tokens + self.output_tokens)

    @property
    def most_tokens(self) -> int:
        """Return how many tokens its key may use in all: more is never let through.

        What is being answered is held by its bytes until its tokens are known.
        """
        one = int(self.input_tokens * SPARE) + self.output_tokens + SPARE_TOKENS
        held = self.input_tokens * BYTES_A_TOKEN + self.output_tokens + SPARE_TOKENS
        return (self.requests + 2) * one + self.concurrency * held

    @property
    def words(self) -> str:
        """Return it in short, in which two benchmarks that may be compared are equal."""
        return f"{self.requests} × ({self.input_tokens} → {self.output_tokens}), {self.concurrency} at once"

    def as_json(self) -> dict[str, int]:
        """Return what is stored."""
        return asdict(self)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Return what was stored."""
        return cls(**{each.name: int(stored[each.name]) for each in fields(cls)})


class Stopped(StrEnum):
    """Why a load ended before all its requests were sent; `""` where it did not."""

    NOT = ""
    CANCELLED = "cancelled"
    TIME = "time"
    BUDGET = "budget"
    """A budget is used up: the key's, the tenant's, or one above it."""
    FAILURES = "failures"
    """Nothing but failures, one after the other."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of many, in milliseconds; None where there is none."""

    mean: float | None = None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a load."""

    answered: int = 0
    failed: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    """HTTP status, `timeout`, or `broken` → how many."""
    duration_s: float = 0.0
    """From the first request to the end of the last."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: Spread = Spread()
    between_ms: Spread = Spread()
    """Between two events of a stream."""
    request_ms: Spread = Spread()
    stopped: Stopped = Stopped.NOT
    said: str = ""
    """What the first error said."""
    simulated: str = ""
    """`""`, `gpu` (a real model server on a simulated GPU) or `all` (no model ran)."""

    @property
    def requests_s(self) -> float | None:
        """Return how many requests were answered a second."""
        return self.answered / self.duration_s if self.duration_s > 0 and self.answered else None

    @property
    def written_s(self) -> float | None:
        """Return how many tokens were written a second."""
        return self.completion_tokens / self.duration_s if self.duration_s > 0 and self.answered else None

    @property
    def tokens_s(self) -> float | None:
        """Return how many tokens were read and written a second."""
        whole = self.prompt_tokens + self.completion_tokens
        return whole / self.duration_s if self.duration_s > 0 and self.answered else None

    def as_json(self) -> dict[str, Any]:
        """Return what is stored."""
        return asdict(self)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self | None:
        """Return what was stored; None for nothing."""
        if not stored:
            return None
        times = {name: Spread(**stored[name]) for name in ("ttft_ms", "between_ms", "request_ms")}
        return cls(**{**stored, **times, "stopped": Stopped(stored["stopped"])})
