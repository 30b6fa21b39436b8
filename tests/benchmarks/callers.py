"""Callers of the gateway's bench: lean ones on the gateway's own client, and general ones, and a model, on aiohttp.

The general ones use as much of the machine as the gateway does, direct or not, and so hide a part of what it costs;
they are here to compare with figures that were taken with them (`tests.benchmarks.gateway --general`).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from typing import Final, Protocol

import aiohttp
from aiohttp import web

from provisioners.gateway.upstream import Ask, Upstream
from tests.benchmarks.model import ANSWER, WORD
from tests.gateway_lab import event_of


class Callers(Protocol):
    """Who asks."""

    async def ask(self, base: str, body: bytes) -> tuple[float, bytes]:
        """Ask once; return when the first byte of the answer's body came (`perf_counter`), and all of the body."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...


class Lean:
    """As little as can be between the bench and the socket."""

    def __init__(self, key: str) -> None:
        self._upstream = Upstream(ssl.create_default_context())
        self._headers = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json")]

    async def ask(self, base: str, body: bytes) -> tuple[float, bytes]:
        answer = await self._upstream.answer(Ask(f"{base}/v1", "chat/completions", self._headers, body))
        assert answer.status == 200, await answer.read()
        chunk, at = await answer.chunk(), time.perf_counter()
        whole = chunk + await answer.read()
        answer.close()
        return at, whole

    async def close(self) -> None:
        self._upstream.close()


class General:
    """A client as most programs have."""

    def __init__(self, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0))

    async def ask(self, base: str, body: bytes) -> tuple[float, bytes]:
        async with self._session.post(f"{base}/v1/chat/completions", data=body) as answer:
            assert answer.status == 200, await answer.text()
            chunk, at = await answer.content.readany(), time.perf_counter()
            return at, chunk + await answer.content.read()

    async def close(self) -> None:
        await self._session.close()


_EVENT: Final = event_of(**WORD)


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    if request.method == "GET":
        return web.json_response({"object": "list", "data": []})
    asked = json.loads(await request.read())
    if not asked.get("stream"):
        if asked["pause_ms"]:
            await asyncio.sleep(asked["pause_ms"] / 1000)
        return web.json_response(ANSWER)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(asked["tokens"]):
        if asked["pause_ms"]:
            await asyncio.sleep(asked["pause_ms"] / 1000)
        await response.write(_EVENT)
    await response.write(b"data: [DONE]\n\n")
    return response


async def _serve(port: int) -> None:
    runner = web.ServerRunner(web.Server(_answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
