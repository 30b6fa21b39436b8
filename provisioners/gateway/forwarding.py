"""A request on its way to a backend: which one, with which key, and which one next.

Nothing of the caller's headers reaches a backend but accept and trace context, besides a request id; the key that it is
shown is ours. Another backend is tried only while nothing was sent to the caller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web

from provisioners.gateway import beside, refusals
from provisioners.gateway.backends import Backends, Health
from provisioners.gateway.bodies import Asked
from provisioners.gateway.calls import Call
from provisioners.gateway.connection import Connection, NoHttp, Silent, Unreachable
from provisioners.gateway.journal import Journal
from provisioners.gateway.leftovers import Leftovers
from provisioners.gateway.metrics import Metrics
from provisioners.gateway.protocol import Backend, EndpointConfig, RequestOutcome
from provisioners.gateway.refusals import Refusal
from provisioners.gateway.relaying import Relay
from provisioners.gateway.upstream import Ask, Upstream

log = logging.getLogger("tenantry.gateway")

MAX_TRIES: Final = 3
KEY_REFUSED: Final = "the replica refuses the gateway's key"
_FORWARDED: Final = ("Accept", "traceparent", "tracestate")


class Forwarding:
    """Asks backends, and has their answers passed on."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        backends: Backends,
        journal: Journal,
        metrics: Metrics,
        leftovers: Leftovers,
        current: Callable[[Call], EndpointConfig],
        is_elsewhere: Callable[[Call], bool],
    ) -> None:
        """`current` returns a call's endpoint as it is configured now, or raises `Refusal`."""
        self._upstream = upstream
        self._backends = backends
        self._journal = journal
        self._metrics = metrics
        self._leftovers = leftovers
        self._current = current
        self._relay = Relay(failed=self._broke, is_elsewhere=is_elsewhere, leftovers=leftovers)

    async def __call__(self, request: web.BaseRequest, asked: Asked, call: Call) -> web.StreamResponse:
        """Ask one backend after the other until one answers; pass that on. Raises `Refusal`."""
        headers = _headers(request, call)
        tried: set[UUID] = set()
        while len(tried) < MAX_TRIES:
            # Chosen by what is configured at this moment: who is being drained gets nothing new, whenever it began.
            endpoint = self._current(call)
            backend = self._backends.choose(endpoint, tried=tried)
            if backend is None:
                break
            tried.add(backend.unit_uid)
            call.backend, call.sent_at, health = backend, time.monotonic(), self._backends.health(backend)
            health.in_flight += 1
            health.requests += 1
            self._open(call)
            try:
                answer = await self._asked(endpoint, backend, asked, call, headers, health)
            except Silent:
                self._failed(backend, call, "took the request and stayed silent")
                raise refusals.timed_out() from None
            except Unreachable as error:
                self._failed(backend, call, str(error))  # a completion may be asked again elsewhere
                continue
            except NoHttp as error:
                self._failed(backend, call, str(error))
                message = "The model's answer was no HTTP."
                raise Refusal(HTTPStatus.BAD_GATEWAY, "bad_backend_answer", message) from None
            else:
                if answer is None:  # nothing ran there, so another replica may be asked
                    self._failed(backend, call, KEY_REFUSED)
                    continue
                self._backends.reached(backend)
                return await self._relay(request, answer, asked, call, health)
            finally:
                health.in_flight -= 1
        call.outcome = RequestOutcome.NO_BACKEND
        message = (
            "No replica of this endpoint is ready." if not tried else "No replica of this endpoint can be reached."
        )
        raise refusals.unavailable("no_backend_ready", message, retry_after_s=2 if tried else 5)

    def _open(self, call: Call) -> None:
        """Write down that a backend is about to be asked, whichever is tried now."""
        if call.slot is not None:
            call.slot.close()
        call.slot = self._journal.open(call.opening())

    async def _asked(
        self,
        endpoint: EndpointConfig,
        backend: Backend,
        asked: Asked,
        call: Call,
        headers: list[tuple[str, str]],
        health: Health,
    ) -> Connection | None:
        """Ask a backend with the key that it takes; None where it takes none that we have. Raises `UpstreamError`."""
        for key in self._backends.hop_keys(endpoint, backend):
            told = [*headers, *bearer(key).items(), *beside.headers_to(endpoint, backend).items()]
            ask = Ask(backend.url, call.route.value, told, asked.content, backend.certificate)
            try:
                answer = await self._upstream.answer(ask)
            except asyncio.CancelledError:
                sent = ask.connection  # a stream has said nothing yet, so there is nothing to read on for
                if sent is not None and (asked.streamed or not self._leftovers.take(call, sent, health)):
                    sent.close()
                raise
            is_own_word = beside.is_own_word(backend, answer)
            if answer.status != HTTPStatus.UNAUTHORIZED and not is_own_word:
                health.hop_key = key
                return answer
            answer.close()
            if answer.status != HTTPStatus.UNAUTHORIZED:
                msg = "the other gateway passed nothing on"
                raise Unreachable(msg)
        return None

    def _broke(self, call: Call, what: str) -> None:
        assert call.backend is not None
        self._failed(call.backend, call, what)

    def _failed(self, backend: Backend, call: Call, what: str) -> None:
        self._backends.failed(backend, what)
        self._backends.tallies.failed(call.grant.endpoint.uid, backend.revision)
        self._metrics.backend_failures.labels(str(call.grant.endpoint.uid)).inc()
        log.warning("backend %s of endpoint %s: %s", backend.unit_uid, call.grant.endpoint.uid, what)


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key of the last hop."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _headers(request: web.BaseRequest, call: Call) -> list[tuple[str, str]]:
    """Return what a backend is told; lists are joined, as RFC 9110, 5.3, lets them: `tracestate` may come in lines."""
    return [
        ("Content-Type", "application/json"),
        ("Accept-Encoding", "identity"),
        ("X-Request-Id", call.request_id),
        *((name, ", ".join(given)) for name in _FORWARDED if (given := request.headers.getall(name, None))),
    ]
