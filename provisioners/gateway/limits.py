"""Rates: how many requests and tokens a key, and a tenant as a whole, may ask for in a minute.

Each limit is a bucket that holds one minute's worth and is refilled evenly. A request takes one from each bucket of
requests and, before it goes to a backend, what it may use at most from each bucket of tokens, or a guess where it names
no most; when it is over the difference to what it really used is put back or taken. All buckets have room, or none is
touched. A request larger than a whole bucket passes when that is full, and is paid off afterwards. Buckets live in
memory: a gateway that is started anew begins with full ones. They belong to a key or tenant and outlive configurations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from provisioners.gateway import refusals
from provisioners.gateway.protocol import RateLimits

MINUTE_S: Final = 60.0


class Kind(StrEnum):
    """What is limited; the value is the word of the `x-ratelimit-*` headers."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose limits they are."""

    id: str
    """`key:<public id>` or `tenant`."""
    words: str
    limits: RateLimits

    def limit(self, kind: Kind) -> int | None:
        """Return the limit per minute, None for none."""
        return self.limits.requests_per_minute if kind is Kind.REQUESTS else self.limits.tokens_per_minute


@dataclass(slots=True)
class Bucket:
    """One limit and what is left of it; below zero while what was used more than guessed is paid off."""

    limit: int
    level: float
    at: float

    def look(self, limit: int, now: float) -> None:
        """Refill to `now`; take over another limit, keeping what was used."""
        if limit != self.limit:
            self.level += limit - self.limit
            self.limit = limit
        self.level = min(self.limit, self.level + max(now - self.at, 0.0) * self.limit / MINUTE_S)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Return in how many seconds `amount` is there; 0 for now."""
        return max(min(amount, self.limit) - self.level, 0.0) * MINUTE_S / self.limit

    @property
    def remaining(self) -> int:
        """Return what is left, in whole ones."""
        return max(math.floor(self.level), 0)


@dataclass(slots=True)
class Admission:
    """A request that was let in."""

    buckets: dict[Kind, list[Bucket]]
    charged: int
    """Tokens taken from each bucket of them."""

    def settle(self, used: int | None) -> None:
        """Put back, or take, the difference to what was used; None: not known, so what was taken stays taken."""
        if used is not None:
            for bucket in self.buckets.get(Kind.TOKENS, ()):
                bucket.level = min(bucket.limit, bucket.level + self.charged - used)
            self.charged = used

    def headers(self) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers, of the tightest limit of each kind."""
        return _headers(self.buckets)


@dataclass(slots=True)
class Rates:
    """All buckets of one gateway."""

    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, Kind], Bucket] = field(default_factory=dict)

    def admit(self, scopes: Iterable[Scope], tokens: int) -> Admission:
        """Let a request in that may use so many `tokens`. Raises `Refusal` 429 with the time to come back."""
        now = self.clock()
        found: dict[Kind, list[Bucket]] = {}
        refused: tuple[float, Scope, Kind, Bucket] | None = None
        for scope in scopes:
            for kind, amount in ((Kind.REQUESTS, 1), (Kind.TOKENS, tokens)):
                limit = scope.limit(kind)
                if limit is None:
                    continue
                bucket = self._buckets.setdefault((scope.id, kind), Bucket(limit, limit, now))
                bucket.look(limit, now)
                found.setdefault(kind, []).append(bucket)
                wait_s = bucket.wait_s(amount)
                if wait_s > 0 and (refused is None or wait_s > refused[0]):
                    refused = (wait_s, scope, kind, bucket)
        if refused is not None:
            wait_s, scope, kind, bucket = refused
            raise refusals.rate_exceeded(
                scope.words, kind.value, bucket.limit, retry_after_s=wait_s, headers=_headers(found)
            )
        for kind, amount in ((Kind.REQUESTS, 1), (Kind.TOKENS, tokens)):
            for bucket in found.get(kind, ()):
                bucket.level -= amount
        return Admission(found, tokens)

    def keep_only(self, scopes: Iterable[str]) -> None:
        """Forget the buckets of keys that are there no more."""
        named = set(scopes)
        for key in [key for key in self._buckets if key[0] not in named]:
            del self._buckets[key]


def _headers(buckets: dict[Kind, list[Bucket]]) -> dict[str, str]:
    """Return the headers in OpenAI's names and forms (API reference, guide "Rate limits")."""
    found: dict[str, str] = {}
    for kind, several in buckets.items():
        tightest = _tightest(several)
        found[f"x-ratelimit-limit-{kind}"] = str(tightest.limit)
        found[f"x-ratelimit-remaining-{kind}"] = str(tightest.remaining)
        found[f"x-ratelimit-reset-{kind}"] = duration(tightest.wait_s(tightest.limit))
    return found


def _tightest(buckets: Sequence[Bucket]) -> Bucket:
    return min(buckets, key=lambda bucket: bucket.level)


def duration(seconds: float) -> str:
    """Return a time as OpenAI's headers write it: `20ms`, `1.5s`, `6m0s`."""
    thousandths = math.ceil(seconds * 1000)
    if thousandths < 1000:
        return f"{thousandths}ms"
    minutes, rest = divmod(thousandths, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"
