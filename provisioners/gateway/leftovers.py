"""Whole answers whose callers left: read to their end and counted, though nobody gets them.

A model server says what a whole answer used at its end only, and what it had made of one that it was told to stop it
says to nobody. So where the caller of a whole answer leaves, the answer is read on to its end and settled by its real
usage (docs/adr/0015): until then its hold and its place among the requests in flight stay taken, so those limits bound
what callers who left can keep busy, as they bound all others. Streams say what was used as they go, and are stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from provisioners.gateway.backends import Health
from provisioners.gateway.calls import Call
from provisioners.gateway.connection import Connection, UpstreamError
from provisioners.gateway.protocol import RequestOutcome
from provisioners.gateway.streams import UsageFinder
from provisioners.gateway.upstream import SILENCE_S

log = logging.getLogger("tenantry.gateway")

LONGEST_S: Final = SILENCE_S
"""How long an answer that nobody gets may take from then on."""


class Leftovers:
    """Everything that is read for nobody. Used by the event loop only."""

    def __init__(
        self, *, begins: Callable[[], None], ends: Callable[[Call], None], longest_s: float = LONGEST_S
    ) -> None:
        """`begins` counts one more request in flight, `ends` one less, and settles it."""
        self._begins = begins
        self._ends = ends
        self._longest_s = longest_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._tasks)

    def take(self, call: Call, answer: Connection, health: Health, found: UsageFinder | None = None) -> bool:
        """Read `answer` to its end, beside; `found` has seen what was read of it already.

        From here on `call` is not the request's any more, which sees that by `left_over`. False while the gateway
        ends: then nothing was taken.
        """
        if self._closed:
            return False
        call.left_over = True
        health.in_flight += 1
        self._begins()
        task = asyncio.create_task(self._read(call, answer, health, found or UsageFinder()), name="leftover")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _read(self, call: Call, answer: Connection, health: Health, found: UsageFinder) -> None:
        call.outcome = RequestOutcome.CLIENT_DROPPED
        try:
            async with asyncio.timeout(self._longest_s):
                await answer.begun()
                call.status = answer.status
                while chunk := await answer.chunk():
                    found.feed(chunk)
            call.counted_whole = True
        except (UpstreamError, TimeoutError) as error:
            log.info("the answer to request %s, whose caller left, did not come to its end: %s", call.request_id, error)
        finally:
            call.usage = found.usage
            answer.close()
            health.in_flight -= 1
            self._ends(call)

    async def close(self) -> None:
        """End what is being read; each is settled by what was said until now."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
