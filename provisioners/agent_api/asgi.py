"""The long poll of gateways as an ASGI application of its own, in front of Django (see `polling`).

It ends at once when the gateway leaves. Whatever is not a GET is Django's to refuse.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from provisioners.agent_api.polling import poll
from provisioners.gateway.protocol import CONFIG_PATH
from tenants import problems
from tenants.errors import ControlPlaneError

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_NEVER_KEPT: Final = (b"cache-control", b"no-store")


def is_poll(scope: MutableMapping[str, Any]) -> bool:
    """Whether a connection is a gateway's poll for its configuration."""
    return bool(scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == CONFIG_PATH)


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answer one poll."""
    answering = asyncio.create_task(_answer(scope))
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            return
        status, headers, body = answering.result()
        await send({"type": "http.response.start", "status": status, "headers": [_NEVER_KEPT, *headers]})
        await send({"type": "http.response.body", "body": body})
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(scope: MutableMapping[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    authorization = given[0].decode("latin-1") if len(given) == 1 else ""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    try:
        envelope = await poll(authorization, query)
    except ControlPlaneError as error:
        return _problem(error)
    except Exception:
        log.exception("a poll for configuration failed")
        return _problem(problems.Internal())
    if envelope is None:
        return HTTPStatus.NO_CONTENT, [], b""
    return HTTPStatus.OK, [(b"content-type", b"application/json")], envelope.model_dump_json().encode()


def _problem(error: ControlPlaneError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    headers = {"Content-Type": problems.CONTENT_TYPE, **problems.headers(error)}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return error.status, encoded, json.dumps(problems.problem(error), default=str).encode()
