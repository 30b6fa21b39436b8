"""A proxy in front of a lab's kube-apiserver that delays, holds, refuses, loses answers and cuts connections on demand.

It speaks TLS with the cluster's own certificate, so a driver is given its address and nothing else. Each `Fault` says
which requests it meets and how often; requests that meet none pass untouched, watches as streams. An answer that is
*lost* was carried out: the apiserver did the work, and the caller is cut off before it learns so.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

_HOP: Final = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "upgrade", "te", "host"})
STARTED_WITHIN_S: Final = 10.0


class What(StrEnum):
    """What happens to a request."""

    DELAY = "delay"
    REFUSE = "refuse"
    """Answered with `status`, and `Retry-After` where `seconds` is set, without reaching the apiserver."""
    LOSE = "lose"
    """Carried out; the connection is cut in the place of the answer."""
    CUT = "cut"
    """The connection is cut at once."""
    TRUNCATE = "truncate"
    """The answer's head comes, its body breaks off half-way."""
    HOLD = "hold"
    """The connection is cut at once; the request waits on its way until `release` lets it through."""


@dataclass(slots=True)
class Fault:
    """One kind of trouble."""

    what: What
    path: str = ".*"
    """Expression that the path with its query matches anywhere."""
    method: str = ".*"
    times: int = 1
    """How many requests meet it; negative: all from now on."""
    status: int = 503
    seconds: float = 0.0
    """Length of a delay, or `Retry-After`."""
    after: int = 0
    """How many matching requests pass first."""
    met: int = field(default=0, init=False)

    def meets(self, method: str, path: str) -> bool:
        """Whether it takes this request; counts it."""
        if self.times == 0 or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= self.times > 0
        self.met += 1
        return True


class FaultProxy:
    """One proxy on loopback in a thread of its own. Use as a context manager; `url` is what a driver is given."""

    def __init__(self, url: str, pki: Path) -> None:
        """Stand in front of `url`; `pki` holds the cluster's `ca.crt`, `apiserver.crt` and `apiserver.key`."""
        self._target = url.rstrip("/")
        self._pki = pki
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._started = threading.Event()
        self._stopping: asyncio.Event
        self._session: aiohttp.ClientSession
        self.url = ""
        self._held: list[Any] = []
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self.calls: Counter[str] = Counter()
        """Method → how many requests came."""

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        if not self._started.wait(STARTED_WITHIN_S):
            msg = "the fault proxy did not start"
            raise RuntimeError(msg)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(STARTED_WITHIN_S)

    def add(self, *faults: Fault) -> None:
        """Let trouble begin; earlier faults are met first."""
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """End all trouble."""
        with self._lock:
            self._faults.clear()

    def release(self) -> list[int]:
        """Let every request through that was held; return the statuses of their answers, which nobody else gets."""
        return asyncio.run_coroutine_threadsafe(self._release(), self._loop).result(STARTED_WITHIN_S)

    async def _release(self) -> list[int]:
        held, self._held = self._held, []
        found = []
        for request in held:
            async with request as answer:
                await answer.read()
                found.append(int(answer.status))
        return found

    def _met_by(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.calls[method] += 1
            return next((fault for fault in self._faults if fault.meets(method, path)), None)

    # --- serving ----------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._end_streams())
        finally:
            self._loop.close()

    async def _end_streams(self) -> None:
        """End what is still passed on, without a farewell: a watch has no end of its own."""
        for transport in self._transports:
            transport.abort()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for _ in range(3):  # transports say in later rounds of the loop that they are closed
            await asyncio.sleep(0)

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        behind = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        front = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        front.load_cert_chain(self._pki / "apiserver.crt", self._pki / "apiserver.key")
        connector = aiohttp.TCPConnector(ssl=behind, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, trust_env=False
        ) as self._session:
            runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.5)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=front)
            await site.start()
            self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stopping.wait()
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._met_by(request.method, request.raw_path)
        if request.transport is not None:
            self._transports.add(request.transport)
        match fault:
            case None:
                return await self._pass_on(request)
            case Fault(what=What.DELAY):
                await asyncio.sleep(fault.seconds)
                return await self._pass_on(request)
            case Fault(what=What.REFUSE):
                return _refusal(fault)
            case Fault(what=What.LOSE):
                async with await self._forwarded(request) as answer:
                    await answer.read()
                return _cut(request)
            case Fault(what=What.HOLD):
                self._held.append(await self._forwarded(request))
                return _cut(request)
            case Fault(what=What.TRUNCATE):
                return await self._pass_on(request, half=True)
            case _:
                return _cut(request)

    async def _forwarded(self, request: web.BaseRequest) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        body = await request.read() if request.can_read_body else None
        return self._session.request(
            request.method, self._target + request.raw_path, headers=headers, data=body, allow_redirects=False
        )

    async def _pass_on(self, request: web.BaseRequest, *, half: bool = False) -> web.StreamResponse:
        async with await self._forwarded(request) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if half:
                whole = await answer.read()
                headers["Content-Length"] = str(len(whole))
                response = web.StreamResponse(status=answer.status, headers=headers)
                await response.prepare(request)
                await response.write(whole[: len(whole) // 2])
                return _cut(request, response)
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


def _cut(request: web.BaseRequest, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Cut the caller off."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.StreamResponse(status=499)


def _refusal(fault: Fault) -> web.Response:
    reasons = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 410: "Expired", 409: "Conflict"}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "refused by the lab's fault proxy",
        "reason": reasons.get(fault.status, ""),
        "code": fault.status,
    }
    headers = {"Retry-After": f"{fault.seconds:.0f}"} if fault.seconds else {}
    return web.json_response(body, status=fault.status, headers=headers)
