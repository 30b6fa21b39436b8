"""ASGI entry of the web process: Django behind a limit on bodies, and gateways' long polls beside it.

Django reads a whole body before any of our code runs, so the limit stands in front of it: a declared length
that is too large is refused at once, an undeclared one as soon as it gets there.
"""

import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]

django = get_asgi_application()

import controlplane.urls  # noqa: E402 - routes are checked at start, not at the first request
from controlplane import memory  # noqa: E402
from controlplane.demo import guard  # noqa: E402 - needs the apps loaded
from provisioners.agent_api import asgi as agents  # noqa: E402 - needs the apps loaded
from tenants import problems  # noqa: E402 - needs the apps loaded
from tenants.api.parsing import MAX_BODY  # noqa: E402
from tenants.errors import PayloadTooLarge  # noqa: E402

guard.check_at_start()
del controlplane
memory.settle()


class _TooLarge(Exception):
    pass


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one connection."""
    if scope["type"] != "http":
        await django(scope, receive, send)
        return
    if agents.is_poll(scope):
        await agents.application(scope, receive, send)
        return
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > MAX_BODY:
        await _refuse(send)
        return
    read, started = 0, False

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MAX_BODY:
            raise _TooLarge
        return message

    async def noted(message: Mapping[str, Any]) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await django(scope, limited, noted)
    except _TooLarge:
        if not started:
            await _refuse(send)


async def _refuse(send: Send) -> None:
    error = PayloadTooLarge(limit_bytes=MAX_BODY)
    headers = [(b"content-type", problems.CONTENT_TYPE.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problems.problem(error)).encode()})
