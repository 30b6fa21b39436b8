"""One request from the socket to a backend and back.

Order: path, key, body, endpoint, state, backend. Nothing of the caller's headers reaches a backend but content type,
accept, request id and trace context; the key that it is shown is ours. Nothing of the backend's hop-by-hop headers or
cookies reaches the caller. Another backend is tried only while nothing was sent to the caller. Bodies and keys are in
no log.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from provisioners.gateway import beside, bodies, refusals
from provisioners.gateway.backends import Backends, Health
from provisioners.gateway.budgets import Budgets
from provisioners.gateway.calls import Call, Ended
from provisioners.gateway.journal import Journal
from provisioners.gateway.limits import Rates
from provisioners.gateway.metrics import Metrics
from provisioners.gateway.paths import SCOPE_OF, Match, Route, match
from provisioners.gateway.protocol import (
    Backend,
    EndpointConfig,
    EndpointState,
    RequestOutcome,
    UsageRecord,
)
from provisioners.gateway.refusals import Refusal
from provisioners.gateway.routing import Routing, nano_at
from provisioners.gateway.streams import EventStream, Usage, UsageFinder, usage_in
from provisioners.gateway.waking import WaitingRoom

log = logging.getLogger("tenantry.gateway")

MAX_IN_FLIGHT: Final = 2048
MAX_TRIES: Final = 3
_WHOLE_ANSWER_BYTES: Final = 1 << 20
"""Answers of a known length up to this are read whole and written at once."""
_DRAIN_S: Final = 0.25
_DRAIN_GAP_S: Final = 0.005
"""What is on its way already comes without gaps; what comes after one is being made, and the backend is to stop."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_BROKE: Final = "The model's answer broke off."
KEY_REFUSED: Final = "the replica refuses the gateway's key"
_FORWARDED: Final = ("Accept", "traceparent", "tracestate")
_NOT_RETURNED: Final = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "set-cookie",
        "server",
        "date",
        "alt-svc",
        "strict-transport-security",
        "x-request-id",
        beside.RAN.lower(),
        *(f"x-ratelimit-{word}-{kind}" for word in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
    ]
)


class Proxy:
    """Answers requests by the current routing, which is swapped whole by whoever applies configurations."""

    def __init__(
        self,
        *,
        upstream: aiohttp.ClientSession,
        backends: Backends,
        metrics: Metrics,
        journal: Journal,
        budgets: Budgets,
        keep: Callable[[Sequence[UsageRecord]], None],
        own: Callable[[Route], web.Response | None],
        waiting_room: WaitingRoom,
    ) -> None:
        """`keep` keeps usage records; `own` answers the gateway's own pages (None: not on this port)."""
        self._routing: Routing | None = None
        self.closed_by: Refusal | None = None
        """Set while the gateway takes no requests at all (draining, removed)."""
        self.in_flight = 0
        self.idle = asyncio.Event()
        """Set while nothing is in flight."""
        self.idle.set()
        self.refused = 0
        self._upstream = upstream
        self._backends = backends
        self._metrics = metrics
        self._journal = journal
        self._budgets = budgets
        self._rates = Rates()
        self._ended = Ended(keep=keep, count=self._count)
        self._own = own
        self._waiting_room = waiting_room

    @property
    def routing(self) -> Routing | None:
        """Return what is served now."""
        return self._routing

    @routing.setter
    def routing(self, routing: Routing | None) -> None:
        self._routing = routing
        if routing is not None:
            self._rates.keep_only(routing.rate_scopes)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; the one place where errors become answers."""
        began, began_at = time.monotonic(), datetime.now(UTC)
        request_id = _request_id(request)
        try:
            found = match(request.method, request.raw_path)
            if found is None:
                return self._refuse(refusals.not_found(), request_id)
            if found.route in (Route.HEALTH, Route.READY, Route.METRICS):
                return self._own(found.route) or self._refuse(refusals.not_found(), request_id)
            with self._counted():
                if (asked_for := beside.asked_for(request, self._routing, found.route)) is not None:
                    return await beside.pass_on(
                        request, found.route, asked_for, backends=self._backends, upstream=self._upstream
                    )
                if request.method == "GET":
                    return self._models(request, found, request_id)
                return await self._infer(request, found.route, request_id, began, began_at)
        except Refusal as refusal:
            return self._refuse(refusal, request_id)
        except ConnectionError:
            return web.Response()  # the caller is gone and reads nothing; aiohttp ends the connection quietly
        except Exception:
            log.exception("request %s failed", request_id)
            internal = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "The gateway failed.", close=True)
            return self._refuse(internal, request_id)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        if self.closed_by is not None:
            raise self.closed_by
        if self.in_flight >= MAX_IN_FLIGHT:
            raise refusals.unavailable("overloaded", "Too many requests at once.", retry_after_s=1, close=True)
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    def _refuse(self, refusal: Refusal, request_id: str) -> web.Response:
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            self.refused += 1
        self._metrics.refused.labels(refusal.code).inc()
        headers = {**_signature(request_id), **refusal.headers()}
        response = web.Response(
            status=refusal.status, body=refusal.body(), headers=headers, content_type="application/json"
        )
        if refusal.close:
            response.force_close()
        return response

    # --- who and where ------------------------------------------------------------------------------

    def _ready(self) -> Routing:
        if self.routing is None:
            raise refusals.unavailable("not_configured", "This gateway has no configuration yet.", retry_after_s=2)
        return self.routing

    def _models(self, request: web.BaseRequest, found: Match, request_id: str) -> web.Response:
        """Answer from the configuration: the models that the key opens, ready or not."""
        routing = self._ready()
        grants = routing.judge(request.headers.getall("Authorization", ()), now=time.time())
        grants = tuple(g for g in grants if not routing.host_is_foreign(request.host, g.endpoint))
        models = [name for grant in grants for name in grant.endpoint.models]
        if not grants or (found.route is Route.MODEL and found.model not in models):
            raise refusals.unauthorized()
        if not any(grant.allows(SCOPE_OF[found.route]) for grant in grants):
            raise refusals.scope_missing(found.route.value)
        _check_open(grants[0].endpoint)
        created = int(routing.issued_at.timestamp())
        cards = [{"id": name, "object": "model", "created": created, "owned_by": "tenantry"} for name in models]
        content = (
            next(card for card in cards if card["id"] == found.model)
            if found.route is Route.MODEL
            else {"object": "list", "data": cards}
        )
        return web.Response(
            body=json.dumps(content).encode(), content_type="application/json", headers=_signature(request_id)
        )

    async def _infer(
        self, request: web.BaseRequest, route: Route, request_id: str, began: float, began_at: datetime
    ) -> web.StreamResponse:
        routing = self._ready()
        grants = routing.judge(request.headers.getall("Authorization", ()), now=time.time())
        try:
            limit = bodies.MAX_BODY_BYTES if grants else bodies.STRANGER_BODY_BYTES
            asked = bodies.understand(await bodies.read(request, limit=limit), route)
        except Refusal as refusal:
            if not grants:  # a stranger learns nothing, not even that his body is bad
                raise refusals.unauthorized(close=refusal.close) from None
            raise
        endpoint = routing.select(host=request.host, model=asked.model)
        grant = next((g for g in grants if endpoint is not None and g.endpoint.uid == endpoint.uid), None)
        if grant is None:
            raise refusals.unauthorized()
        if not grant.allows(SCOPE_OF[route]):
            raise refusals.scope_missing(route.value)
        _check_open(grant.endpoint)
        context = grant.endpoint.context_tokens
        admission = self._rates.admit((routing.tenant_rates, grant.rates), asked.likely_tokens(context))
        call = Call(request_id, route, grant, asked.model, asked.streamed, began, began_at, admission=admission)
        call.limit_headers = admission.headers()
        try:
            call.hold = await self._budgets.hold(
                (*routing.tenant_budgets, *grant.key.budgets),
                tokens=asked.at_most(context),
                nano=nano_at(grant.endpoint, began_at),
            )
        except BaseException:
            admission.settle(0)
            raise
        self._backends.tallies.asked(grant.endpoint.uid)
        try:
            await self._waiting_room.until_served(lambda: self._current(call))
            return await self._forward(request, asked, call)
        except Refusal as refusal:
            call.status = refusal.status
            raise
        except asyncio.CancelledError:
            if call.backend is not None and call.outcome is RequestOutcome.NO_BACKEND:
                call.outcome = RequestOutcome.CLIENT_DROPPED  # before the backend's answer began
            raise
        finally:
            self._ended.add(call)

    def _current(self, call: Call) -> EndpointConfig:
        """Return the endpoint as it is configured now: since the request began, backends may have come and gone.

        Raises `Refusal` where it takes no requests any more, or not with this key: who waited long is judged again.
        """
        if self.routing is None:
            return call.grant.endpoint
        found = self.routing.endpoint(call.grant.endpoint.uid)
        if found is None:
            raise refusals.unauthorized()
        if found is not call.grant.endpoint:
            if not self.routing.still_opens(call.grant, now=time.time()):
                raise refusals.unauthorized()
            _check_open(found)
        return found

    # --- there and back -----------------------------------------------------------------------------

    async def _forward(self, request: web.BaseRequest, asked: bodies.Asked, call: Call) -> web.StreamResponse:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "X-Request-Id": call.request_id}
        for name in _FORWARDED:
            if given := request.headers.getall(name, None):
                headers[name] = ", ".join(
                    given
                )  # as RFC 9110, 5.3, lets lists be joined: `tracestate` may come in lines
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
                answer = await self._asked(endpoint, backend, call.route, asked, headers)
            except aiohttp.SocketTimeoutError:
                self._failed(backend, call, "took the request and stayed silent")
                raise refusals.timed_out() from None
            except (aiohttp.ClientConnectionError, TimeoutError) as error:
                # Refused, unreachable, or closed before a byte of answer: a completion may be asked again elsewhere.
                self._failed(backend, call, type(error).__name__)
                continue
            except aiohttp.ClientError as error:
                self._failed(backend, call, type(error).__name__)
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
        route: Route,
        asked: bodies.Asked,
        headers: Mapping[str, str],
    ) -> aiohttp.ClientResponse | None:
        """Ask a backend with the key that it takes; None where it takes none that we have. Raises as aiohttp does."""
        for key in self._backends.hop_keys(endpoint, backend):
            answer = await self._upstream.post(
                f"{backend.url}/{route.value}",
                data=_payload(asked.content),
                headers={**headers, **bearer(key), **beside.headers_to(endpoint, backend)},
                allow_redirects=False,
                ssl=beside.trust_in(backend),
            )
            if beside.is_own_word(backend, answer):
                answer.close()
                if answer.status == HTTPStatus.UNAUTHORIZED:
                    continue
                msg = "the other gateway passed nothing on"
                raise aiohttp.ClientConnectionError(msg)
            if answer.status != HTTPStatus.UNAUTHORIZED:
                self._backends.health(backend).hop_key = key
                return answer
            answer.close()
        return None

    async def _relay(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, asked: bodies.Asked, call: Call, health: Health
    ) -> web.StreamResponse:
        """Pass `answer` on as it comes. A caller who leaves cancels us, and closing the answer stops the backend."""
        call.status = answer.status
        call.outcome = RequestOutcome.CLIENT_DROPPED  # until it is known to be otherwise
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            health.failures += 1
        headers = _returned(answer.headers)
        headers.update(_signature(call.request_id))
        headers.update(call.limit_headers)
        response: web.StreamResponse | None = None
        try:
            length = answer.content_length
            if length is not None and length <= _WHOLE_ANSWER_BYTES:
                body = await answer.read()
                call.usage = usage_in(body)
                call.outcome = RequestOutcome.COMPLETED
                whole = web.Response(status=answer.status, body=body, headers=headers)
                if self._is_elsewhere(call):
                    whole.force_close()
                return whole
            response = web.StreamResponse(status=answer.status, headers=headers)
            if self._is_elsewhere(call):
                response.force_close()
            if length is not None:
                response.content_length = length
            await response.prepare(request)
            if answer.content_type == "text/event-stream":
                await self._relay_events(answer, response, asked, call)
            else:
                await self._relay_bytes(answer, response, call)
            await response.write_eof()
        except aiohttp.ClientConnectionResetError:
            raise  # the caller left while we wrote
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError) as error:
            call.outcome = RequestOutcome.BACKEND_BROKE
            assert call.backend is not None
            self._failed(call.backend, call, f"broke off: {type(error).__name__}")
            if response is None:
                raise Refusal(HTTPStatus.BAD_GATEWAY, "backend_broke_off", _BROKE) from None
            await _end_broken(request, response, answer)
        else:
            call.outcome = RequestOutcome.COMPLETED
        finally:
            answer.close()
        return response

    def _is_elsewhere(self, call: Call) -> bool:
        """Whether the endpoint's name leads elsewhere by now: who asks again should do it on a new connection."""
        found = None if self.routing is None else self.routing.endpoint(call.grant.endpoint.uid)
        return found is None or found.moved

    async def _relay_events(
        self, answer: aiohttp.ClientResponse, response: web.StreamResponse, asked: bodies.Asked, call: Call
    ) -> None:
        events = EventStream(wish=asked.usage_wish, choices=asked.answers)
        try:
            async for chunk in answer.content.iter_any():
                whole = events.feed(chunk)
                if whole:
                    if call.first_event_at is None and asked.prompts == 1 and (said := events.usage) is not None:
                        call.hold.at_most(asked.at_most(call.grant.endpoint.context_tokens, said.prompt_tokens))
                    call.came(events, time.monotonic())
                    await response.write(whole)
            if rest := events.rest():
                await response.write(rest)
        except BaseException:
            await _drain(answer, events)
            raise
        finally:
            call.read(events)

    async def _relay_bytes(self, answer: aiohttp.ClientResponse, response: web.StreamResponse, call: Call) -> None:
        found = UsageFinder()
        async for chunk in answer.content.iter_any():
            found.feed(chunk)
            await response.write(chunk)
        call.usage = found.usage

    def _failed(self, backend: Backend, call: Call, what: str) -> None:
        self._backends.failed(backend, what)
        self._backends.tallies.failed(call.grant.endpoint.uid, backend.revision)
        self._metrics.backend_failures.labels(str(call.grant.endpoint.uid)).inc()
        log.warning("backend %s of endpoint %s: %s", backend.unit_uid, call.grant.endpoint.uid, what)

    def keep_records(self) -> None:
        """Keep the records, and count for people, what has ended until now."""
        self._ended.flush()

    @property
    def unkept(self) -> int:
        """Return how many calls have ended whose records are still to be kept."""
        return len(self._ended)

    def _count(self, call: Call) -> None:
        usage = call.usage or Usage(0, 0)
        self._metrics.answered(
            str(call.grant.endpoint.uid),
            int(call.status),
            took_s=call.ended - call.began,
            first_s=None if call.first_event_at is None else call.first_event_at - call.began,
            prompt=usage.prompt_tokens,
            completion=usage.completion_tokens,
        )
        self._tally(call)

    def _tally(self, call: Call) -> None:
        """Count what the revision made of it; a try that failed was counted when it did (`_failed`)."""
        if call.backend is None or call.outcome not in {RequestOutcome.COMPLETED, RequestOutcome.CLIENT_DROPPED}:
            return
        if call.streamed:
            after_s = None if call.first_event_at is None else call.first_event_at - call.sent_at
        else:  # who left before the end tells nothing of how long it would have taken
            after_s = call.ended - call.sent_at if call.outcome is RequestOutcome.COMPLETED else None
        endpoint, revision = call.grant.endpoint.uid, call.backend.revision
        self._backends.tallies.answered(endpoint, revision, status=call.status, after_s=after_s)


async def _drain(answer: aiohttp.ClientResponse, events: EventStream) -> None:
    """Read what the backend has sent already: a caller who left may not have taken all that was made for him."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
        async with asyncio.timeout(_DRAIN_S):
            while not answer.content.at_eof():
                async with asyncio.timeout(_DRAIN_GAP_S):
                    events.feed(await answer.content.readany())


def bearer(key: str) -> dict[str, str]:
    """Return the header that shows a key of the last hop."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check_open(endpoint: EndpointConfig) -> None:
    match endpoint.state:
        case EndpointState.OPEN:
            return
        case EndpointState.DRAINING:
            raise refusals.unavailable("draining", "This endpoint is being drained.", retry_after_s=5)
        case _:
            raise refusals.not_open(endpoint.state.value, endpoint.reason)


def _payload(content: bytes) -> bytes | io.BytesIO:
    """Return a large body as a file, which aiohttp writes piece by piece instead of at once."""
    return content if len(content) < _WHOLE_ANSWER_BYTES else io.BytesIO(content)


async def _end_broken(request: web.BaseRequest, response: web.StreamResponse, answer: aiohttp.ClientResponse) -> None:
    """End an answer that has begun so that the caller cannot take it for whole: an error event, then no proper end."""
    if answer.content_type == "text/event-stream":
        error = {"message": _BROKE, "type": "server_error", "param": None, "code": "backend_broke_off"}
        await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    if request.transport is not None:
        request.transport.close()


def _request_id(request: web.BaseRequest) -> str:
    """Keep the caller's id where it is harmless, else make one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


def _signature(request_id: str) -> dict[str, str]:
    """Return the headers that every answer carries; `Server` is ours, so that no version shows."""
    return {"X-Request-Id": request_id, "Server": "tenantry"}


def _returned(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the backend's headers without those that belong to its connection to us."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    return CIMultiDict(
        (k, v) for k, v in headers.items() if (low := k.lower()) not in _NOT_RETURNED and low not in named
    )
