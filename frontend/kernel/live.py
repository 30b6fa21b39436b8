"""Live pages: one LISTEN connection per process, fanned out to every open stream; no stream holds a connection.

PostgreSQL tells by `pg_notify('tenantry_live', '<kind> <object> <tenant>')` when something that pages show has
changed (triggers, migration 0014), and by `load <endpoint>` when an endpoint's charts have (migration 0045). A stream
says only what changed; the page fetches the fragment itself, so that what it shows passes through the same policy as
every page. A page says when it was read (`address`), so that what changed before its stream was open is told at once.
Lost messages do no harm: pages poll every 10 s as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from django.db import connections
from django.urls import reverse
from psycopg import sql

from frontend.kernel.page import PageRequest

log = logging.getLogger(__name__)

CHANNEL: Final = "tenantry_live"
HEARTBEAT_S: Final = 15.0
LONGEST_S: Final = 300.0
"""A stream ends after this and the browser opens a new one, which is authorised anew."""
AGAIN_S: Final = 1.0
LOAD: Final = "load"
"""Kind of messages about an endpoint's charts: they change every some seconds, what else its pages show does not."""
QUIET_S: Final = 0.1
"""Messages of this long are told as one: a burst of changes is one fetch."""
MOST_STREAMS: Final = 2000
REMEMBERED_S: Final = 30.0
"""How long a hub knows what it told; a page that is older is told to look again."""


class Hub:
    """The streams of one event loop and the connection that feeds them; open only while somebody listens."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self.topics: dict[str, set[asyncio.Event]] = {}
        self.streams = 0
        self._listening: asyncio.Task[None] | None = None
        self._since: float | None = None
        """Since when nothing is missed, seconds since the epoch; None while the connection is not open."""
        self._told: OrderedDict[str, float] = OrderedDict()
        """When each topic last had news, the oldest first, as long as it is remembered."""

    def join(self, topics: tuple[str, ...], since: float) -> asyncio.Event:
        """Return the event that is set when one of the topics has news; it is set already if one had since then."""
        told = asyncio.Event()
        for topic in topics:
            self.topics.setdefault(topic, set()).add(told)
        self.streams += 1
        self._forget(time.time())
        # while the connection is not open yet, `_listen` tells everybody once it is
        if self._since is not None and (
            since < max(self._since, time.time() - REMEMBERED_S)
            or any(self._told.get(topic, 0.0) >= since for topic in topics)
        ):
            told.set()
        if self._listening is None or self._listening.done():
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        return told

    def leave(self, topics: tuple[str, ...], told: asyncio.Event) -> None:
        """Forget a stream; the last one closes the connection."""
        for topic in topics:
            members = self.topics.get(topic, set())
            members.discard(told)
            if not members:
                self.topics.pop(topic, None)
        self.streams -= 1
        if self.streams == 0 and self._listening is not None:
            self._listening.cancel()
            self._listening = self._since = None

    def tell(self, payload: str) -> None:
        """Wake whom a message concerns: the streams of its object and of its tenant, or those of a load alone."""
        kind, _, ids = payload.partition(" ")
        found, _, tenant = ids.partition(" ")
        now = time.time()
        self._forget(now)
        for topic in (f"load:{found}",) if kind == LOAD else (f"object:{found}", f"tenant:{tenant}"):
            self._told[topic] = now
            self._told.move_to_end(topic)
            for told in self.topics.get(topic, ()):
                told.set()

    def _forget(self, now: float) -> None:
        while self._told and next(iter(self._told.values())) < now - REMEMBERED_S:
            self._told.popitem(last=False)

    async def _listen(self) -> None:
        """Listen until cancelled; whenever the connection was opened, everybody looks once."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(_dsn(), autocommit=True) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    self._since = time.time()
                    for members in list(self.topics.values()):
                        for told in members:
                            told.set()
                    async for message in connection.notifies():
                        self.tell(message.payload)
            except psycopg.Error as error:
                log.warning("live pages lost their connection: %s", type(error).__name__)
            self._since = None
            await asyncio.sleep(AGAIN_S)


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = WeakKeyDictionary()


def hub() -> Hub:
    """Return the hub of the running loop."""
    loop = asyncio.get_running_loop()
    return _hubs.setdefault(loop, Hub())


def object_topic(key: UUID) -> str:
    """Return the topic of one object."""
    return f"object:{key}"


def tenant_topic(key: UUID) -> str:
    """Return the topic of everything of one tenant."""
    return f"tenant:{key}"


def load_topic(key: UUID) -> str:
    """Return the topic of an endpoint's charts."""
    return f"{LOAD}:{key}"


def address(name: str, request: PageRequest, /, **kwargs: object) -> str:
    """Return where a page that is read now listens to what changes from now on."""
    return f"{reverse(name, kwargs=kwargs)}?since={request.now.timestamp():.3f}"


def since_of(request: PageRequest) -> float:
    """Return when the page was read that listens, in seconds since the epoch; 0 if it does not say."""
    try:
        return float(request.GET.get("since", ""))
    except ValueError:
        return 0.0


async def stream(topics: tuple[str, ...], since: float) -> AsyncIterator[bytes]:
    """Yield server-sent events: `changed` whenever a topic has news after `since`, heartbeats, an end after a while."""
    home = hub()
    if home.streams >= MOST_STREAMS:
        yield b"retry: 30000\n\n"
        return
    told = home.join(topics, since)
    clock = asyncio.get_running_loop().time
    end = clock() + LONGEST_S
    try:
        yield b"retry: 2000\n\n"
        while clock() < end:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), timeout=HEARTBEAT_S)
            if not told.is_set():
                yield b": still here\n\n"
                continue
            told.clear()
            yield b"event: changed\ndata: 1\n\n"
            await asyncio.sleep(QUIET_S)
    finally:
        home.leave(topics, told)


def _dsn() -> str:
    """Return the address of the database for a connection of its own: LISTEN needs no pool between."""
    given: dict[str, Any] = connections["default"].settings_dict
    options = given.get("OPTIONS", {})
    return psycopg.conninfo.make_conninfo(
        "",
        **{
            "dbname": given["NAME"],
            "user": given["USER"],
            "password": given["PASSWORD"],
            "host": given["HOST"],
            "port": given["PORT"],
            "connect_timeout": 5,
            "application_name": "tenantry-live",
            **({"options": options["options"]} if "options" in options else {}),
            **{key: options[key] for key in ("sslmode", "sslrootcert", "sslcert", "sslkey") if key in options},
        },
    )
