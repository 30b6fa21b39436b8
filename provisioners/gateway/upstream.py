"""The last hop: a request of ours to a backend, and the connections that are kept for the next one.

A client of its own, on httptools' parser, because a general one costs more than all else that a gateway does for a
request (docs/adr/0014). One request at a time on a connection; one that was not read to its end is never used again.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final
from urllib.parse import urlsplit

from provisioners.gateway.connection import Connection, Unreachable, UpstreamError

CONNECT_S: Final = 2.0
SILENCE_S: Final = 600.0
"""How long a backend may stay silent inside one answer."""
KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn (vLLM's server) closes an idle connection, so that we close first."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a base URL leads."""

    host: str
    port: int
    tls: bool
    shown: str
    """Value of `Host`."""
    path: str
    certificate: str
    """SHA-256 by which it is known, in hexadecimal digits; `""`: by the authorities."""


@lru_cache(maxsize=4096)
def origin_of(url: str, certificate: str = "") -> Origin:
    """Read a backend's base URL. Raises `Unreachable` for one that leads nowhere."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        host.encode("ascii")
        parts.path.encode("ascii")
    except ValueError:
        raise Unreachable("its address cannot be read") from None
    if parts.scheme not in {"http", "https"} or not host or any(sign <= " " for sign in parts.netloc + parts.path):
        raise Unreachable("its address cannot be read")
    shown = f"[{host}]" if ":" in host else host
    return Origin(
        host, port, parts.scheme == "https", f"{shown}:{port}" if parts.port else shown, parts.path, certificate
    )


def head_of(origin: Origin, path: str, headers: Sequence[tuple[str, str]], body: bytes | None) -> bytes:
    """Write the head of a POST, or of a GET where there is no body. Raises `ValueError` for a value that is several."""
    method, length = ("GET", "") if body is None else ("POST", f"Content-Length: {len(body)}\r\n")
    lines = [f"{method} {origin.path}/{path} HTTP/1.1\r\nHost: {origin.shown}\r\n{length}"]
    for name, value in headers:
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(name)
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("utf-8", "surrogateescape")


@dataclass(slots=True)
class Ask:
    """One request to one backend."""

    url: str
    """Base URL."""
    path: str
    """Below it."""
    headers: Sequence[tuple[str, str]]
    body: bytes | None
    """None: a GET."""
    certificate: str = ""
    """SHA-256 of the backend's certificate; `""`: the authorities vouch for it."""
    connection: Connection | None = None
    """Which has all of it: the answer can be awaited there, also by others than who sent it."""


class Upstream:
    """All connections to backends of one gateway."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        connect_s: float = CONNECT_S,
        silence_s: float = SILENCE_S,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        """`tls` says whose certificates are believed."""
        self._silence_s = silence_s
        self._tls = tls
        self._connect_s = connect_s
        self._keepalive_s = keepalive_s
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def answer(self, ask: Ask) -> Connection:
        """Send `ask` and return the connection once its answer has begun; close that in the end.

        Who is cancelled finds in `ask.connection` who has the request. Raises `Unreachable`, `Silent`, `NoHttp`.
        """
        origin = origin_of(ask.url, ask.certificate)
        head = head_of(origin, ask.path, ask.headers, ask.body)
        connection = self._kept(origin) or await self._opened(origin)
        try:
            return await self._answered(connection, ask, head)
        except Unreachable:
            if not connection.used:
                raise
        # It ended what was kept, as it may at any time; only a new connection tells whether it is there.
        return await self._answered(await self._opened(origin), ask, head)

    @staticmethod
    async def _answered(connection: Connection, ask: Ask, head: bytes) -> Connection:
        ask.connection = None
        try:
            await connection.send(head, ask.body or b"")
            ask.connection = connection
            await connection.begun()
        except asyncio.CancelledError:
            if ask.connection is None:
                connection.abort()
            raise
        except UpstreamError:
            connection.abort()
            raise
        return connection

    def _kept(self, origin: Origin) -> Connection | None:
        idle, now = self._idle.get(origin), asyncio.get_running_loop().time()
        while idle:
            found = idle.pop()
            if not found.lost and now - found.idle_since < self._keepalive_s:
                return found
            found.abort()
        return None

    async def _opened(self, origin: Origin) -> Connection:
        context = _unchecked() if origin.certificate else self._tls
        try:
            async with asyncio.timeout(self._connect_s):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: self._connection(origin),
                    origin.host,
                    origin.port,
                    ssl=context if origin.tls else None,
                )
        except TimeoutError:
            raise Unreachable("did not take the connection in time") from None
        except ssl.SSLError:
            raise Unreachable("its certificate or its TLS does not hold up") from None
        except OSError as error:
            raise Unreachable(f"takes no connection: {type(error).__name__}") from None
        if origin.certificate and not _shows(transport, origin.certificate):
            connection.abort()
            raise Unreachable("shows another certificate than its own")
        if not connection.lost:
            self._open.add(connection)
        return connection

    def _connection(self, origin: Origin) -> Connection:
        idle = self._idle.setdefault(origin, [])
        return Connection(silence_s=self._silence_s, keep=partial(self._keep, idle), gone=partial(self._gone, idle))

    def _keep(self, idle: list[Connection], connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since, connection.used = loop.time(), True
        idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._keepalive_s, self._close_idle)

    def _gone(self, idle: list[Connection], connection: Connection) -> None:
        self._open.discard(connection)
        if connection in idle:
            idle.remove(connection)

    def _close_idle(self) -> None:
        """Close what nobody has used for a while; the one used last is used first, so the oldest stand in front."""
        loop = asyncio.get_running_loop()
        ends = loop.time() - self._keepalive_s
        for one in [one for idle in self._idle.values() for one in idle if one.idle_since <= ends]:
            one.abort()
        kept = any(self._idle.values())
        self._sweep = loop.call_later(self._keepalive_s / 4, self._close_idle) if kept else None

    def close(self) -> None:
        """End all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in tuple(self._open):
            connection.abort()


@lru_cache(maxsize=1)
def _unchecked() -> ssl.SSLContext:
    """Return how a backend is spoken to whose certificate is known by its digest, before a byte is sent (`_shows`)."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _shows(transport: asyncio.BaseTransport, certificate: str) -> bool:
    """Whether a peer shows the certificate of a digest."""
    found = transport.get_extra_info("ssl_object")
    shown = None if found is None else found.getpeercert(binary_form=True)
    return shown is not None and hashlib.sha256(shown).hexdigest() == certificate
