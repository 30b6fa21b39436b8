"""Callers of a gateway who ask for streams and count what they are told, and a model that counts what it makes.

Used against the sandbox's stub, which says what was used as vLLM does, and against a real vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from provisioners.gateway.protocol import Backend
from provisioners.sandbox.stub import Place, Stub
from tests.gateway_lab import Server, until

MOST_LOST_TOKENS = 32
"""Of one stream that is cut off: what the model made after the last event that the gateway read."""
PATIENCE_S = 90.0


class Counters:
    """What a model server says of itself at `/metrics`."""

    def __init__(self, url: str) -> None:
        self.metrics = f"{url}/metrics"

    async def _sum(self, begins: str) -> float:
        async with aiohttp.ClientSession() as http, http.get(self.metrics) as answer:
            lines = (await answer.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(begins))

    async def counted(self, name: str) -> float:
        """Return one of its counters."""
        return await self._sum(f"vllm:{name}_total{{")

    async def quiet(self) -> None:
        """Wait until nobody is answered any more."""

        async def running() -> float:
            return await self._sum("vllm:num_requests_running{") + await self._sum("vllm:num_requests_waiting{")

        await until(running, lambda count: count == 0, within_s=PATIENCE_S)


class StubModel(Server):
    """One simulated replica."""

    def __init__(self, tokens_s: float) -> None:
        super().__init__()
        self.stub = Stub()
        self.unit = uuid4()
        self.place = Place("alpha", 1, "ep-test", str(self.unit), "host-1", (), tokens_s)

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    def backend(self) -> Backend:
        return Backend(unit_uid=self.unit, url=f"{self.url}/v1", revision=1)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        return await self.stub.answer_at(request, self.place, request.match_info["path"])

    async def counted(self, name: str) -> float:
        return await Counters(self.url).counted(name)

    async def quiet(self) -> None:
        await Counters(self.url).quiet()


@dataclass
class Told:
    """What one caller saw of his stream."""

    name: str
    """His request id."""
    key: str
    status: int = 0
    prompt: int = 0
    completion: int = 0
    whole: bool = False
    broke: bool = False
    """Whether it ended otherwise than by him."""
    extra: int = 0
    """Events with usage that he did not ask for."""

    def event(self, content: dict[str, Any]) -> None:
        """Take in one event."""
        if content.get("choices") == []:
            self.prompt = content["usage"]["prompt_tokens"]
            self.completion = content["usage"]["completion_tokens"]
        elif "usage" in content:
            self.extra += 1


@dataclass(frozen=True)
class Caller:
    """Who asks for what."""

    name: str
    key: str
    words: int = 0
    most_tokens: int | None = None
    leave_after: int | None = None
    """Events after which he leaves; None stays to the end."""
    model: str = "alpha"
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else he asks for."""


async def stream(http: aiohttp.ClientSession, url: str, caller: Caller) -> Told:
    """Ask for a stream with usage at its end, and read it as far as the caller likes; come back after a 503.

    On a machine that has no time for us a part of a budget may come late.
    """
    told = await _asked(http, url, caller)
    while told.status == HTTPStatus.SERVICE_UNAVAILABLE:
        told = await _asked(http, url, caller)
    return told


async def _asked(http: aiohttp.ClientSession, url: str, caller: Caller) -> Told:
    told, events = Told(caller.name, caller.key), 0
    body = {
        "model": caller.model,
        "messages": [{"role": "user", "content": f"I am {caller.name}. " + "word " * caller.words}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"max_tokens": caller.most_tokens} if caller.most_tokens is not None else {}),
        **caller.more,
    }
    headers = {"Authorization": f"Bearer {caller.key}", "X-Request-Id": caller.name}
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
            told.status = answer.status
            if answer.status != HTTPStatus.OK:
                return told
            async for line in answer.content:
                if line == b"data: [DONE]\n":
                    told.whole = True
                elif line.startswith(b"data: {"):
                    events += 1
                    told.event(json.loads(line.removeprefix(b"data: ")))
                if events == caller.leave_after:
                    return told
    except aiohttp.ClientError:
        told.broke = True
    told.broke |= not told.whole
    return told


async def all_at_once(url: str, callers: Sequence[Caller]) -> dict[str, Told]:
    """Let everybody ask at the same time, each on a connection of his own."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        return {told.name: told for told in await asyncio.gather(*(stream(http, url, caller) for caller in callers))}
