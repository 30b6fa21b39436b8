"""Requests that wait for a replica: of an endpoint at zero until it was woken, or while replicas make way for others.

Bounded in number and in time, both by the configuration; whoever is beyond that is told at once, with `Retry-After`.
A caller who leaves waits no more. The control plane is told that somebody waits by `Home`, never in a request's path.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from uuid import UUID

from provisioners.gateway import refusals
from provisioners.gateway.protocol import EndpointConfig

RETRY_AFTER_S = 10
"""What those are told who waited in vain: a model may well be loading still."""
Look = Callable[[], EndpointConfig | None]


class WaitingRoom:
    """Everybody who waits at one gateway."""

    def __init__(self, *, somebody_waits: Callable[[UUID], None]) -> None:
        """`somebody_waits` tells the control plane, soon and without waiting for it."""
        self._somebody_waits = somebody_waits
        self._waiting: Counter[UUID] = Counter()
        self._news = asyncio.Event()

    def waiting(self, endpoint: UUID) -> int:
        """Return how many wait for an endpoint."""
        return self._waiting[endpoint]

    def changed(self) -> None:
        """Let everybody look at the new configuration."""
        self._news.set()
        self._news = asyncio.Event()

    async def until_served(self, look: Look) -> None:
        """Return when the endpoint has a replica that takes requests, at once where nobody is to wait for one.

        `look` returns it as it is configured now; it raises a refusal where it takes no requests any more. Raises
        `Refusal` when too many wait or the time is over.
        """
        found = look()
        if found is None or not _must_wait(found):
            return
        uid, rules = found.uid, found.waiting
        assert rules is not None
        if self._waiting[uid] >= rules.limit:
            message = f"{rules.limit} requests wait for this endpoint to start already. Try again in a moment."
            raise refusals.unavailable("too_many_waiting", message, retry_after_s=RETRY_AFTER_S)
        ends = time.monotonic() + rules.timeout_s
        self._waiting[uid] += 1
        try:
            while found is not None and _must_wait(found):
                if found.waiting is not None and found.waiting.wakes:
                    self._somebody_waits(uid)
                await self._next(ends - time.monotonic())
                found = look()
        except TimeoutError:
            message = f"This endpoint is starting and was not ready within {rules.timeout_s:.0f} s. Try again."
            raise refusals.unavailable("still_starting", message, retry_after_s=RETRY_AFTER_S) from None
        finally:
            self._waiting[uid] -= 1
            if not self._waiting[uid]:
                del self._waiting[uid]

    async def _next(self, left_s: float) -> None:
        async with asyncio.timeout(max(0.0, left_s)):
            await self._news.wait()


def _must_wait(endpoint: EndpointConfig) -> bool:
    return endpoint.waiting is not None and not any(backend.weight for backend in endpoint.backends)
