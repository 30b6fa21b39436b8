"""Playground: talk to an endpoint through the control plane. The answer streams; nothing is stored.

The key lives five minutes, is made by the operation that everybody uses, and waits sealed in the browser for the
next question; the address is the driver's report, checked against the provider's ranges.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import httpx
from django.db import connection
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import resting
from frontend.kernel import once, reach
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoints as endpoint_pages
from frontend.views import products
from frontend.views.products import ENDPOINTS
from tenants import endpoint_trust, queries
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Endpoint
from tenants.operations import endpoints
from tenants.states import ModelTask, Phase
from tenants.transactions import reading

KEY_LASTS: Final = timedelta(minutes=5)
KEY_SPARE_S: Final = 45
"""A key with less than this left is not used for another question."""
MOST_MESSAGES: Final = 40
MOST_TEXT: Final = 32_000
MOST_TOKENS: Final = 2048
PATIENCE_S: Final = 12.0
"""A new key reaches the gateway with its next configuration: so long a refusal is asked again."""
AGAIN_S: Final = 0.4
ANSWER_S: Final = 120.0
SPARE_S: Final = 30.0
USABLE: Final = frozenset({Phase.READY.value, Phase.DEGRADED.value, Phase.EXPIRING.value})


@dataclass(frozen=True, slots=True)
class Question:
    """One call to be made."""

    address: str
    ranges: tuple[reach.Network, ...]
    key: str = field(repr=False)
    body: dict[str, Any]
    path: str = "chat/completions"
    patience_s: float = ANSWER_S
    """Of one answer: an endpoint that sleeps lets the first one wait until its model is loaded."""
    ca_pem: str = ""
    """Whom to trust there; empty: the usual authorities."""


@page("endpoints.create_key")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show the playground of an endpoint."""
    row = products.find(ENDPOINTS, request, name)
    where = {"tenant": request.tenant.name, "name": row.short_id}
    usable = is_usable(row)
    if request.htmx:  # the page of one that did not answer asks whether it does by now
        answer = HttpResponse(status=204)
        if usable:
            answer["HX-Refresh"] = "true"
        return answer
    values = endpoint_pages.frame(request, row, "playground") | {
        "usable": usable,
        "embeds": embeds(row),
        "overview_url": reverse("frontend:endpoint", kwargs=where),
        "play_url": reverse("frontend:endpoint-playground", kwargs=where),
        "chat_url": reverse("frontend:endpoint-chat", kwargs=where),
        "embed_url": reverse("frontend:endpoint-embed", kwargs=where),
        "why_not": resting.next_step(row) or _(queries.NEXT_STEPS[row.phase]),
        "sleeps": row.slept_at is not None or resting.is_waking(row),
        "most_tokens": MOST_TOKENS,
        "is_real_model": any(unit.get("engine") for unit in row.observed.get("units", ())),
    }
    return render(request, "frontend/pages/endpoints/playground.html", values)


def is_usable(row: Endpoint) -> bool:
    """Whether questions to an endpoint are answered, be it after it was woken."""
    return bool(row.address) and (row.phase in USABLE or resting.is_waking(row))


def embeds(row: Endpoint) -> bool:
    """Whether what serves turns texts into vectors instead of writing."""
    return row.revision is not None and row.revision.model.task == ModelTask.EMBED.value


@page("endpoints.create_key", methods=("POST",))
def chat(request: PageRequest, name: str) -> HttpResponseBase:
    """Put a conversation to the endpoint; stream its answer as server-sent events. Raises `InvalidSpec`, `Conflict`."""
    messages, tokens = _asked(request)
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
    body = {"model": row.name, "messages": messages, "stream": True, "max_tokens": tokens}
    return put(request, row, body)


def put(
    request: PageRequest,
    row: Endpoint,
    body: dict[str, Any],
    *,
    path: str = "chat/completions",
    told: Callable[[httpx.Response], AsyncIterator[bytes]] | None = None,
) -> HttpResponseBase:
    """Return the stream of what an endpoint says to one question; `told` turns its answer into events."""
    with reading(request.actor):
        ranges = reach.ranges_of(row.boundary.provider) if row.boundary is not None else ()
        ca_pem = endpoint_trust.ca_pem_of(row.boundary.provider) if row.boundary is not None else ""
    if not is_usable(row):
        raise Conflict(_("It does not answer yet: it is not ready."), code="not-ready")
    secret, made = _key(request, row, now=request.now)
    patience_s = max(ANSWER_S, row.wake_wait_s + SPARE_S)
    connection.close()  # back to the pool: an answer may take minutes
    question = Question(row.address, ranges, secret, body, path, patience_s, ca_pem)
    response = StreamingHttpResponse(_answer(question, told or _told), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    if made:
        once.put(request, response, secret, path=request.path)
    return response


def _asked(request: PageRequest) -> tuple[list[dict[str, str]], int]:
    try:
        given = json.loads(request.body)
        messages = [{"role": str(one["role"]), "content": str(one["content"])} for one in given["messages"]]
        tokens = int(given.get("max_tokens", 512))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSpec(_("Send messages with role and content."), field="messages") from error
    if not 1 <= len(messages) <= MOST_MESSAGES or any(
        one["role"] not in {"user", "assistant", "system"} for one in messages
    ):
        raise InvalidSpec(_("Send 1 to 40 messages of user, assistant or system."), field="messages")
    if sum(len(one["content"]) for one in messages) > MOST_TEXT:
        raise InvalidSpec(_("This is too long for the playground."), field="messages")
    return messages, min(max(tokens, 1), MOST_TOKENS)


def _key(request: PageRequest, row: Endpoint, *, now: datetime) -> tuple[str, bool]:
    """Return the key that this browser brought along, or a new one; the second says which."""
    kept = once.peek(request, lasts_s=int(KEY_LASTS.total_seconds()) - KEY_SPARE_S)
    if kept:
        return kept, False
    _row, secret = endpoints.create_key(
        endpoint=row, name="playground", expires_at=now + KEY_LASTS, actor=request.actor, now=now
    )
    return secret, True


async def _answer(
    question: Question, told: Callable[[httpx.Response], AsyncIterator[bytes]] | None = None
) -> AsyncIterator[bytes]:
    """Yield what the endpoint says, line by line; a trouble is an event of its own."""
    try:
        target = await reach.checked(question.address, question.ranges)
    except Conflict as error:
        yield trouble(error.detail)
        return
    headers = {"Authorization": f"Bearer {question.key}", "Host": target.host, "Accept": "text/event-stream"}
    extensions = {"sni_hostname": target.name} if target.name else {}
    timeout = httpx.Timeout(question.patience_s, connect=5.0)
    clock = asyncio.get_running_loop().time
    end = clock() + PATIENCE_S
    trust = ssl.create_default_context(cadata=question.ca_pem) if question.ca_pem else True
    try:
        async with httpx.AsyncClient(verify=trust, timeout=timeout, trust_env=False, follow_redirects=False) as http:
            while True:
                call = http.build_request(
                    "POST", f"{target.url}/{question.path}", json=question.body, headers=headers, extensions=extensions
                )
                answer = await http.send(call, stream=True)
                try:
                    if answer.status_code in {401, 404} and clock() < end:
                        await answer.aread()
                    else:
                        async for chunk in (told or _told)(answer):
                            yield chunk
                        return
                finally:
                    await answer.aclose()
                yield b": the key is on its way\n\n"
                await asyncio.sleep(AGAIN_S)
    except httpx.HTTPError as error:
        yield trouble(_("The endpoint does not answer (%(what)s).") % {"what": type(error).__name__})


async def _told(answer: httpx.Response) -> AsyncIterator[bytes]:
    if answer.status_code != 200:
        yield await refused(answer)
        return
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        yield trouble(_("The endpoint did not stream."))
        return
    async for chunk in answer.aiter_bytes():
        yield chunk


async def refused(answer: httpx.Response) -> bytes:
    """Return the event that says how an endpoint refused a question."""
    text = (await answer.aread())[:600].decode(errors="replace")
    return trouble(_("The endpoint answers %(status)d: %(text)s") % {"status": answer.status_code, "text": text})


def trouble(text: str) -> bytes:
    """Return the event of a trouble."""
    return f"event: trouble\ndata: {json.dumps({'detail': text})}\n\n".encode()
