"""Requests that go by another gateway: to the one in the machine of the replica that was chosen.

A gateway in an endpoint's machine reaches the model server beside it on loopback, and nobody else does. So that
requests are shared out among machines, the gateway that a caller reached sends some to the gateway of another machine,
which passes them on to its own replica and never further. The first judges the caller's key, counts and settles; the
second counts nothing. It lets in who shows the endpoint's key of the last hop, which only that endpoint's gateways and
replicas have, and is known to the first by the fingerprint of its certificate.
"""

from __future__ import annotations

import asyncio
import hmac
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web

from provisioners.gateway import bodies, refusals
from provisioners.gateway.backends import Backends
from provisioners.gateway.connection import Connection, UpstreamError
from provisioners.gateway.paths import Route
from provisioners.gateway.protocol import Backend, EndpointConfig
from provisioners.gateway.routing import Routing
from provisioners.gateway.upstream import Ask, Upstream

ENDPOINT: Final = "X-Tenantry-Endpoint"
"""Names the endpoint that a gateway asks another one for."""
RAN: Final = "X-Tenantry-Ran"
"""On every answer that a replica gave; what comes without it is the other gateway's own word, and nothing ran."""
_PASSED_ON: Final = ("Content-Type", "Accept", "X-Request-Id", "traceparent", "tracestate")
_ROUTES: Final = frozenset({Route.CHAT, Route.COMPLETIONS, Route.EMBEDDINGS, Route.MODELS})


# --- asking ---------------------------------------------------------------------------------------------


def headers_to(endpoint: EndpointConfig, backend: Backend) -> dict[str, str]:
    """Return what a request to a backend carries beside its key; nothing for one that is reached directly."""
    return {ENDPOINT: str(endpoint.uid)} if backend.through else {}


def is_own_word(backend: Backend, answer: Connection) -> bool:
    """Whether an answer is the other gateway's own, so that nothing ran and another replica may be asked."""
    return backend.through and not answer.header(RAN.lower().encode())


# --- being asked ----------------------------------------------------------------------------------------


def asked_for(request: web.BaseRequest, routing: Routing | None, route: Route) -> EndpointConfig | None:
    """Return the endpoint for which another gateway of it asks; None where it is somebody else who asks.

    Whoever does not prove to be one is judged as any caller, and learns nothing of this.
    """
    named = request.headers.get(ENDPOINT)
    if named is None or routing is None or route not in _ROUTES:
        return None
    try:
        endpoint = routing.endpoint(UUID(named))
    except ValueError:
        return None
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    if endpoint is None or scheme.lower() != "bearer":
        return None
    proofs = [hmac.compare_digest(shown.strip().encode(), key.encode()) for key in endpoint.hop_keys if key]
    return endpoint if any(proofs) else None


async def pass_on(
    request: web.BaseRequest, route: Route, endpoint: EndpointConfig, *, backends: Backends, upstream: Upstream
) -> web.StreamResponse:
    """Ask the replica beside this gateway and answer with what it says, byte by byte. Raises `Refusal`.

    The caller's gateway has changed the body as it is to be. Its leaving cancels us, and closing the answer stops the
    replica.
    """
    own = next((backend for backend in endpoint.backends if not backend.through), None)
    if own is None:
        raise refusals.unavailable("no_backend_ready", "No replica runs here.", retry_after_s=2)
    content = await bodies.read(request, limit=bodies.MAX_BODY_BYTES) if request.method == "POST" else None
    headers = [("Accept-Encoding", "identity")]
    headers += [(name, ", ".join(given)) for name in _PASSED_ON if (given := request.headers.getall(name, ()))]
    health = backends.health(own)
    health.in_flight += 1
    try:
        for key in backends.hop_keys(endpoint, own):
            shown = [*headers, *([("Authorization", f"Bearer {key}")] if key else [])]
            answer = await _asked(upstream, Ask(own.url, route.value, shown, content, own.certificate))
            try:
                if answer.status != HTTPStatus.UNAUTHORIZED:
                    health.hop_key = key
                    return await _relayed(request, answer)
            finally:
                answer.close()
    finally:
        health.in_flight -= 1
    raise refusals.unavailable("no_backend_ready", "The replica here takes no key of ours.", retry_after_s=2)


async def _asked(upstream: Upstream, ask: Ask) -> Connection:
    """Return the replica's answer. Raises `Refusal`: nothing was answered yet, so another replica may be asked."""
    try:
        return await upstream.answer(ask)
    except UpstreamError:
        words = "The replica here cannot be reached."
        raise refusals.unavailable("no_backend_ready", words, retry_after_s=2) from None
    except asyncio.CancelledError:
        if ask.connection is not None:
            ask.connection.close()
        raise


async def _relayed(request: web.BaseRequest, answer: Connection) -> web.StreamResponse:
    """Pass an answer on; one that breaks off breaks off there too, so that nobody takes it for whole."""
    response = web.StreamResponse(status=answer.status, headers={RAN: "1", "Server": "tenantry"})
    if kind := answer.header(b"content-type"):
        response.headers["Content-Type"] = kind.decode("latin-1")
    if answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    try:
        while chunk := await answer.chunk():
            await response.write(chunk)
    except UpstreamError:
        if request.transport is not None:
            request.transport.close()
        return response
    await response.write_eof()
    return response
