"""Looks at backends beside requests: whether each answers, with which key, and how busy its model server is."""

from __future__ import annotations

import contextlib
import ssl
from http import HTTPStatus
from typing import Final

import aiohttp

from provisioners.gateway import beside, engine
from provisioners.gateway.backends import Backends
from provisioners.gateway.forwarding import KEY_REFUSED, bearer
from provisioners.gateway.protocol import Backend, EndpointConfig
from provisioners.gateway.upstream import CONNECT_S, KEEPALIVE_S

LOOK_TIMEOUT_S: Final = 3.0


class Looks:
    """Looks, and notes what it sees in the health of backends."""

    def __init__(self, session: aiohttp.ClientSession, backends: Backends) -> None:
        self._session = session
        self._backends = backends

    async def look(self, endpoint: EndpointConfig, backend: Backend) -> None:
        """See whether a backend answers; a look never sends it to rest, only a failed request does."""
        health = self._backends.health(backend)
        try:
            for key in self._backends.hop_keys(endpoint, backend):
                async with self._session.get(
                    f"{backend.url}/models",
                    headers={**bearer(key), **beside.headers_to(endpoint, backend)},
                    timeout=aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S),
                    allow_redirects=False,
                    ssl=aiohttp.Fingerprint(bytes.fromhex(backend.certificate)) if backend.certificate else True,
                ) as answer:
                    health.reachable = answer.status == HTTPStatus.OK
                    health.message = "" if health.reachable else f"GET /models answered with {answer.status}"
                if answer.status != HTTPStatus.UNAUTHORIZED:
                    health.hop_key = key
                    # a replica in another machine is asked how busy it is by the gateway there
                    health.load = None if backend.through else await self._load_of(backend)
                    return
            health.message = KEY_REFUSED
        except (aiohttp.ClientError, TimeoutError) as error:
            health.reachable, health.message = False, type(error).__name__

    async def _load_of(self, backend: Backend) -> engine.Load | None:
        """Ask a model server how busy it is; one that does not say is none the worse for it."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            async with self._session.get(
                engine.address_of(backend.url),
                headers={"Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S),
                allow_redirects=False,
            ) as answer:
                body = b""
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > engine.LONGEST_BYTES:
                        return None
                return engine.load_in(body.decode()) if answer.status == HTTPStatus.OK else None
        return None


def looking_session(tls: ssl.SSLContext) -> aiohttp.ClientSession:
    """Return a session for looks; requests go by `upstream`."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_connect=CONNECT_S),
        auto_decompress=False,
        skip_auto_headers=("User-Agent",),
    )
