"""One loop that keeps processes beside the estates of a sandbox server: every estate is looked at in turn, each round.

What a keeper starts outlives it. `wake` makes it look at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import aiohttp

from provisioners.sandbox.hosting import Hosting, UnknownEstate

ROUND_S: Final = 0.5

_log = logging.getLogger(__name__)


class Keeper(ABC):
    """The loop, and the HTTP client that it asks its processes with."""

    what: ClassVar[str]
    """What is kept, in the plural: for the log."""
    deadline_s: ClassVar[float]
    """Of one question to a process."""

    def __init__(self, hosting: Hosting) -> None:
        """Keep what belongs to the estates that are hosted."""
        self._hosting = hosting
        self._awake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._client: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Begin to keep."""
        timeout = aiohttp.ClientTimeout(total=self.deadline_s)
        self._client = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        self._loop = asyncio.create_task(self._keep(), name=self.what)

    async def stop(self) -> None:
        """Stop keeping; what was started goes on."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        if self._client is not None:
            await self._client.close()

    def wake(self) -> None:
        """Look at everything soon."""
        self._awake.set()

    @abstractmethod
    async def _look_at_estate(self, name: str) -> None:
        """Do for one estate what is to be done now. Raises `UnknownEstate` for one that was removed."""

    async def _keep(self) -> None:
        while True:
            for name in self._hosting.names():
                try:
                    await self._look_at_estate(name)
                except UnknownEstate:  # removed meanwhile
                    continue
                except Exception:  # noqa: BLE001  one estate's trouble stops no other's
                    _log.exception("keeping the %s of estate %s failed", self.what, name)
            self._awake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), ROUND_S)
