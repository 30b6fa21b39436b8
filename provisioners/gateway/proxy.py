"""One request from the socket to a backend and back.

Order: path, key, body, endpoint, state, backend (`forwarding`), and its answer (`relaying`). Bodies and keys are in no
log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from aiohttp import web

from provisioners.gateway import beside, bodies, refusals
from provisioners.gateway.backends import Backends
from provisioners.gateway.budgets import Budgets
from provisioners.gateway.calls import Call, Ended
from provisioners.gateway.forwarding import Forwarding
from provisioners.gateway.journal import Journal
from provisioners.gateway.leftovers import Leftovers
from provisioners.gateway.limits import Rates
from provisioners.gateway.metrics import Metrics
from provisioners.gateway.paths import SCOPE_OF, Match, Route, match
from provisioners.gateway.protocol import (
    EndpointConfig,
    EndpointState,
    RequestOutcome,
    UsageRecord,
)
from provisioners.gateway.refusals import Refusal
from provisioners.gateway.relaying import signature
from provisioners.gateway.routing import Routing, nano_at
from provisioners.gateway.streams import Usage
from provisioners.gateway.upstream import Upstream
from provisioners.gateway.waking import WaitingRoom

log = logging.getLogger("tenantry.gateway")

MAX_IN_FLIGHT: Final = 2048
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


class Proxy:
    """Answers requests by the current routing, which is swapped whole by whoever applies configurations."""

    def __init__(
        self,
        *,
        upstream: Upstream,
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
        self._budgets = budgets
        self._rates = Rates()
        self._ended = Ended(keep=keep, count=self._count)
        self._own = own
        self._waiting_room = waiting_room
        self.leftovers: Final = Leftovers(begins=self._begins, ends=self._left_over)
        self._forward = Forwarding(
            upstream=upstream,
            backends=backends,
            journal=journal,
            metrics=metrics,
            leftovers=self.leftovers,
            current=self._current,
            is_elsewhere=self._is_elsewhere,
        )

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
        self._begins()
        try:
            yield
        finally:
            self._ends()

    def _begins(self) -> None:
        self.in_flight += 1
        self.idle.clear()

    def _ends(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self.idle.set()

    def _left_over(self, call: Call) -> None:
        self._ends()
        self._ended.add(call)

    def _refuse(self, refusal: Refusal, request_id: str) -> web.Response:
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            self.refused += 1
        self._metrics.refused.labels(refusal.code).inc()
        headers = {**signature(request_id), **refusal.headers()}
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
            body=json.dumps(content).encode(), content_type="application/json", headers=signature(request_id)
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
            if not call.left_over:
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

    def _is_elsewhere(self, call: Call) -> bool:
        """Whether the endpoint's name leads elsewhere by now: who asks again should do it on a new connection."""
        found = None if self.routing is None else self.routing.endpoint(call.grant.endpoint.uid)
        return found is None or found.moved

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


def _check_open(endpoint: EndpointConfig) -> None:
    match endpoint.state:
        case EndpointState.OPEN:
            return
        case EndpointState.DRAINING:
            raise refusals.unavailable("draining", "This endpoint is being drained.", retry_after_s=5)
        case _:
            raise refusals.not_open(endpoint.state.value, endpoint.reason)


def _request_id(request: web.BaseRequest) -> str:
    """Keep the caller's id where it is harmless, else make one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
