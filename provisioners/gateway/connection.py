"""One connection to a backend: a request out, its answer back, and then the next one.

It speaks what model servers speak: HTTP/1.1, whole bodies out; lengths, chunks or the connection's end back. An answer
is read to its end or the connection is ended. Waiting for one may be cancelled and taken up again: what arrives is kept
meanwhile, up to `_MOST_BUFFERED` bytes, beyond which the backend is not read. Nothing here is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, cast

import httptools

_MOST_BUFFERED: Final = 1 << 18
_PIECE: Final = 1 << 18
"""Bytes of a large body that are written at once."""
_MOST_OVERHEAD: Final = 1 << 16
"""Bytes that may come without any of a body among them: a head, trailers, lengths of chunks."""
_FIRST_FINAL: Final = 200
"""Statuses below announce another."""


class UpstreamError(Exception):
    """Something is wrong with a backend; `str()` of it holds no secret."""


class Unreachable(UpstreamError):
    """Refused, unreachable, or closed before a byte of an answer: it may be asked again elsewhere."""


class Silent(UpstreamError):
    """It took the request and said nothing for too long."""


class NoHttp(UpstreamError):
    """What it answered is no HTTP."""


class BrokeOff(UpstreamError):
    """Its answer began and did not come to its end."""


class Connection(asyncio.Protocol):
    """One connection to one backend, and the answer that is being read from it. Used by the event loop only."""

    def __init__(
        self, *, silence_s: float, keep: Callable[[Connection], None], gone: Callable[[Connection], None]
    ) -> None:
        """`keep` takes it back for a next request, `gone` is told that it has ended."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.content_length: int | None = None
        self.complete = False
        """Whether the answer was received to its end; `read` and `chunk` may have some of it left."""
        self.used = False
        """Whether an earlier request was answered on it."""
        self.idle_since = 0.0
        self.lost = False
        self._silence_s = silence_s
        self._keep = keep
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._news: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self._asked = False
        self._has_head = False
        self._framed = False
        self._keeps = False
        self._body: list[bytes] = []
        self._buffered = 0
        self._all_wanted = False
        self._paused = False
        self._overhead = 0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # --- asking -------------------------------------------------------------------------------------

    async def send(self, head: bytes, body: bytes) -> None:
        """Send a request; returns when all of it is on its way, or the backend wants no more of it."""
        self.status, self.headers, self.content_length = 0, [], None
        self.complete = self._has_head = self._framed = self._keeps = self._all_wanted = False
        self._body, self._buffered, self._overhead = [], 0, 0
        self._asked, self._heard = True, self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._look)
        if len(body) <= _PIECE:
            self._transport.write(head + body)
            return
        self._transport.write(head)
        for at in range(0, len(body), _PIECE):
            self._transport.write(body[at : at + _PIECE])
            if self._writable is not None:
                await self._writable
            if self._has_head or self._error is not None:
                self._keeps = False  # the rest of this body must not be taken for a next request
                return

    async def begun(self) -> None:
        """Wait until the answer's head is there. Raises `Unreachable`, `Silent`, `NoHttp`."""
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Return what is left of the body. Raises `BrokeOff`, `Silent`."""
        self._all_wanted = True
        while not self.complete:
            if self._error is not None:
                raise self._error
            self._read_on()
            await self._wait()
        return self._taken()

    async def chunk(self) -> bytes:
        """Return what has come of the body since; b"" at its end. Raises `BrokeOff`, `Silent`."""
        while not self._body:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._taken()

    def close(self) -> None:
        """Be done with the answer: keep the connection where it was read to its end, else end it."""
        if not self._asked:
            return
        self._asked = False
        if self.complete and self._keeps and self._error is None and not self.lost:
            self._body, self._buffered = [], 0
            self._read_on()
            self._keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """End the connection, at once."""
        self.lost = True
        self._stop_looking()
        self._transport.abort()

    def header(self, name: bytes) -> bytes:
        """Return the value of a header of the answer (name in lower case), b"" without it."""
        return next((value for found, value in self.headers if found.lower() == name), b"")

    async def _wait(self) -> None:
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _taken(self) -> bytes:
        found = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._buffered = [], 0
        self._read_on()
        return found

    def _read_on(self) -> None:
        if self._paused:
            self._paused, self._heard = False, self._loop.time()
            self._transport.resume_reading()

    def _hold_back(self) -> None:
        if self._buffered > _MOST_BUFFERED and not (self._paused or self.complete or self._all_wanted):
            self._paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _may_write(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        if self._error is None and not self.complete:
            self._error = error
        self._wake()
        self.abort()

    def _look(self) -> None:
        """See whether the backend has been silent for too long; one timer for the life of a connection."""
        now = self._loop.time()
        if not self._asked or self._paused or self.complete:
            self._heard = now
        left = self._heard + self._silence_s - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._timer = None
            self._fail(Silent("said nothing for too long"))

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the transport ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        found = transport.get_extra_info("socket")
        if found is not None:
            with contextlib.suppress(OSError):  # a peer whose machine died is found out in a long silence
                found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if not self._asked or self.complete:
            self.abort()  # nobody asked for it: what comes after an answer belongs to no request of ours
            return
        self._heard = self._loop.time()
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(BrokeOff("sent no HTTP") if self._has_head else NoHttp("sent no HTTP"))
            return
        if self._overhead > _MOST_OVERHEAD:
            self._fail(BrokeOff("sent too much head") if self._has_head else NoHttp("sent too much head"))
            return
        self._hold_back()
        self._wake()

    def eof_received(self) -> None:
        """End with the backend's end."""

    def connection_lost(self, error: Exception | None) -> None:
        """Know that the connection has ended: of an answer without length or chunks, that is its end."""
        self.lost = True
        self._stop_looking()
        self._gone(self)
        if self._asked and not self.complete and self._error is None:
            if not self._has_head:
                self._error = Unreachable("closed the connection")
            elif self._framed or error is not None:
                self._error = BrokeOff("closed the connection")
            else:
                self.complete = True
        self._may_write()
        self._wake()

    def pause_writing(self) -> None:
        """Write no more for now."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Write on."""
        self._may_write()
        self._writable = None

    # --- the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head: one of `1xx` may have come before, but no other."""
        if self.complete:
            self._keeps = False
        else:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are nobody's."""
        if not self._has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Know what answers, and how long it is."""
        status = self._parser.get_status_code()
        if self._has_head or status < _FIRST_FINAL:
            return
        self.status, self._has_head = status, True
        self._keeps = self._parser.should_keep_alive()
        for name, value in self.headers:
            match name.lower():
                case b"content-length":
                    self.content_length, self._framed = int(value), True
                case b"transfer-encoding":
                    self._framed = True
        self._may_write()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self.complete:
            self._body.append(body)
            self._buffered += len(body)
            self._overhead = 0

    def on_message_complete(self) -> None:
        """Know that the answer is whole."""
        if self._has_head:
            self.complete = True
