"""Waits for news of many gateways with one short look for all of them every half second.

One watch per event loop. No database connection is held between looks, and the number of queries does not
grow with the gateways that wait. A look that fails (the database is away) is left out; who waits, waits on.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import connection

from tenants.actor import AUTH
from tenants.errors import DependencyDown
from tenants.operations import agents
from tenants.operations.agents import Entry
from tenants.transactions import reading

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
T = TypeVar("T")


def look(gateways: Sequence[UUID]) -> dict[UUID, Entry]:
    """Return gateway → entry, read in one short transaction. Raises `DependencyDown`."""
    with reading(AUTH):
        return agents.entries(gateways)


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Run database work in a thread of the loop's pool, and give its connection back."""

    def run() -> T:
        try:
            return call(*arguments)
        finally:
            connection.close()

    return await asyncio.to_thread(run)


class Watch:
    """Everybody who waits in one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[UUID, list[tuple[Entry, asyncio.Future[Entry | None]]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def news(self, seen: Entry, *, wait_s: float) -> Entry | None:
        """Return the gateway's entry as soon as it is another than `seen`; `seen` itself when the time is over.

        None when the gateway is not there any more.
        """
        future: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        waiter = (seen, future)
        self._waiting.setdefault(seen.gateway, []).append(waiter)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="gateway-news")
        try:
            return await asyncio.wait_for(future, wait_s)
        except TimeoutError:
            return seen
        finally:
            others = self._waiting[seen.gateway]
            others.remove(waiter)
            if not others:
                del self._waiting[seen.gateway]

    async def _look(self) -> None:
        while self._waiting:
            started = time.monotonic()
            try:
                found = await in_thread(look, list(self._waiting))
            except DependencyDown:
                log.warning("gateways wait on: the database does not answer")
            else:
                for gateway, waiters in self._waiting.items():
                    now = found.get(gateway)
                    for seen, future in waiters:
                        if now != seen and not future.done():
                            future.set_result(now)
            await asyncio.sleep(max(0.05, LOOK_S - (time.monotonic() - started)))


_WATCHES: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watch]] = weakref.WeakKeyDictionary()


def watch() -> Watch:
    """Return the running loop's watch."""
    return _WATCHES.setdefault(asyncio.get_running_loop(), Watch())
