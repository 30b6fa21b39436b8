"""A backend's answer on its way to the caller: whole, as events, or as bytes.

Nothing of the backend's hop-by-hop headers or cookies reaches the caller. A caller who leaves ends a stream, which
stops the backend; a whole answer is read on without him (`leftovers`). An answer that breaks off is ended so that
nobody takes it for whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from provisioners.gateway import beside
from provisioners.gateway.backends import Health
from provisioners.gateway.bodies import Asked
from provisioners.gateway.calls import Call
from provisioners.gateway.connection import Connection, UpstreamError
from provisioners.gateway.leftovers import Leftovers
from provisioners.gateway.protocol import RequestOutcome
from provisioners.gateway.refusals import Refusal
from provisioners.gateway.streams import EventStream, UsageFinder, usage_in

_WHOLE_ANSWER_BYTES: Final = 1 << 20
"""Answers of a known length up to this are read whole and written at once."""
_DRAIN_S: Final = 0.25
_DRAIN_GAP_S: Final = 0.005
"""What is on its way already comes without gaps; what comes after one is being made, and the backend is to stop."""
_BROKE: Final = "The model's answer broke off."
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


class Relay:
    """Passes answers on."""

    def __init__(
        self, *, failed: Callable[[Call, str], None], is_elsewhere: Callable[[Call], bool], leftovers: Leftovers
    ) -> None:
        """`failed` notes that a call's backend failed; `is_elsewhere` says whether an endpoint's name leads away."""
        self._failed = failed
        self._is_elsewhere = is_elsewhere
        self._leftovers = leftovers

    async def __call__(
        self, request: web.BaseRequest, answer: Connection, asked: Asked, call: Call, health: Health
    ) -> web.StreamResponse:
        """Pass `answer` on as it comes. A caller who leaves cancels us."""
        call.status = answer.status
        call.outcome = RequestOutcome.CLIENT_DROPPED  # until it is known to be otherwise
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            health.failures += 1
        headers = _returned(answer.headers)
        headers.update(signature(call.request_id))
        headers.update(call.limit_headers)
        response: web.StreamResponse | None = None
        found = UsageFinder()
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
            if _is_event_stream(answer):
                await _relay_events(answer, response, asked, call)
            else:
                await _relay_bytes(answer, response, call, found)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):  # the caller left
            if not asked.streamed and call.outcome is RequestOutcome.CLIENT_DROPPED:
                self._leftovers.take(call, answer, health, found)
            raise
        except UpstreamError as error:
            call.outcome = RequestOutcome.BACKEND_BROKE
            self._failed(call, f"broke off: {error}")
            if response is None:
                raise Refusal(HTTPStatus.BAD_GATEWAY, "backend_broke_off", _BROKE) from None
            await _end_broken(request, response, answer)
        else:
            call.outcome = RequestOutcome.COMPLETED
        finally:
            if not call.left_over:
                answer.close()
        return response


async def _relay_events(answer: Connection, response: web.StreamResponse, asked: Asked, call: Call) -> None:
    events = EventStream(wish=asked.usage_wish, choices=asked.answers)
    try:
        while chunk := await answer.chunk():
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


async def _relay_bytes(answer: Connection, response: web.StreamResponse, call: Call, found: UsageFinder) -> None:
    while chunk := await answer.chunk():
        found.feed(chunk)
        await response.write(chunk)
    call.usage = found.usage


async def _drain(answer: Connection, events: EventStream) -> None:
    """Read what the backend has sent already: a caller who left may not have taken all that was made for him."""
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while True:
                async with asyncio.timeout(_DRAIN_GAP_S):
                    chunk = await answer.chunk()
                if not chunk:
                    return
                events.feed(chunk)


async def _end_broken(request: web.BaseRequest, response: web.StreamResponse, answer: Connection) -> None:
    """End an answer that has begun so that the caller cannot take it for whole: an error event, then no proper end."""
    if _is_event_stream(answer):
        error = {"message": _BROKE, "type": "server_error", "param": None, "code": "backend_broke_off"}
        await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    if request.transport is not None:
        request.transport.close()


def signature(request_id: str) -> dict[str, str]:
    """Return the headers that every answer carries; `Server` is ours, so that no version shows."""
    return {"X-Request-Id": request_id, "Server": "tenantry"}


def _is_event_stream(answer: Connection) -> bool:
    return answer.header(b"content-type").partition(b";")[0].strip().lower() == b"text/event-stream"


@lru_cache(maxsize=256)
def _name_returned(name: bytes) -> str:
    """Return a header's name as text, "" where it belongs to the backend's connection to us."""
    text = name.decode("utf-8", "surrogateescape")
    return "" if text.lower() in _NOT_RETURNED else text


def _returned(headers: Sequence[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """Return the backend's headers without those that belong to its connection to us."""
    named: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            named.update(word.strip().lower() for word in value.split(b","))
    return CIMultiDict(
        (text, value.decode("utf-8", "surrogateescape"))
        for name, value in headers
        if (text := _name_returned(name)) and (not named or name.lower() not in named)
    )
