"""`python -m tests.benchmarks.gateway`: what the gateway costs between caller and model.

Three processes on loopback: a model that paces its tokens, the real gateway, and this one as the callers. The same load
goes direct and through the gateway, in turns; printed are medians of the rounds. The model is simulated: it takes no
time but the pauses that it is told to make.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from provisioners.gateway.protocol import Backend
from tests.gateway_lab import ROOT, Lab, event_of, until

EVENT: Final = event_of(id="c", object="chat.completion.chunk", choices=[{"index": 0, "delta": {"content": "word "}}])
ANSWER: Final = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 64}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 64, "total_tokens": 84},
}


@dataclass(slots=True)
class Load:
    """One kind of load: how many callers, what each asks, how the model paces itself."""

    name: str
    callers: int
    requests: int
    """Per caller."""
    tokens: int = 0
    """Events of a stream; 0 asks for a whole answer."""
    pause_ms: float = 0.0
    """Before a whole answer, or before each event."""


LOADS: Final = (
    Load("whole answers after 100 ms, 32 callers", callers=32, requests=12, pause_ms=100),
    Load("streams of 64 tokens at 50 tokens/s, 32 callers", callers=32, requests=1, tokens=64, pause_ms=20),
    Load("whole answers at once, 1 caller", callers=1, requests=400),
    Load("whole answers at once, 16 callers (saturated)", callers=16, requests=60),
    Load("streams of 200 tokens at once, 8 callers (saturated)", callers=8, requests=5, tokens=200),
)


@dataclass(slots=True)
class Seen:
    """What the callers saw in one round; times in milliseconds."""

    requests_s: float
    events_s: float
    first: list[float]
    """Request sent to first byte of the answer's body."""


async def model(port: int) -> None:
    """Serve as the model until the process is ended."""

    async def models(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return await models(request)
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
            await response.write(EVENT)
        await response.write(b"data: [DONE]\n\n")
        return response

    runner = web.ServerRunner(web.Server(answer, access_log=None))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def run(load: Load, base: str, key: str) -> Seen:
    """Put `load` on `base`; every answer must be right."""
    first: list[float] = []
    events = 0

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal events
        for _ in range(load.requests):
            began = time.perf_counter()
            body = {"model": "alpha", "messages": [{"role": "user", "content": "hello " * 50}]}
            body |= {"stream": bool(load.tokens), "tokens": load.tokens, "pause_ms": load.pause_ms}
            async with session.post(f"{base}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                chunk = await answer.content.readany()
                first.append((time.perf_counter() - began) * 1000)
                whole = chunk + await answer.content.read()
            if load.tokens:
                assert whole.count(b"data: {") == load.tokens
                events += load.tokens
            else:
                assert json.loads(whole) == ANSWER

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(load.callers)))
        took = time.perf_counter() - began
    return Seen(load.callers * load.requests / took, events / took, first)


async def measure(rounds: int, say: Callable[[str], None]) -> None:
    """Run every load `rounds` times each way and say what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        async with Lab(Path(folder)) as lab:
            probe = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
            port = int(probe.sockets[0].getsockname()[1])
            probe.close()
            await probe.wait_closed()
            command = ["-m", "tests.benchmarks.gateway", "--model-port", str(port)]
            server = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT)
            lab.processes.append(server)
            direct = f"http://127.0.0.1:{port}"
            await until(_models(lab, direct), lambda status: status == 200)
            backend = Backend(unit_uid=lab.model.unit_uid, url=f"{direct}/v1", revision=1)
            lab.control.publish(lab.endpoint(backend))
            gateway = await lab.spawn()
            await lab.healthy(state="serving")
            for load in LOADS:
                seen: dict[str, list[Seen]] = {direct: [], lab.url: []}
                for base in (direct, lab.url):
                    await run(Load("warm", 4, 5, tokens=load.tokens and 5), base, lab.key.plain)
                used_s = 0.0
                for _ in range(rounds):
                    for base, found in seen.items():
                        before_s = _cpu_s(gateway.pid)
                        found.append(await run(load, base, lab.key.plain))
                        used_s += (_cpu_s(gateway.pid) - before_s) if base == lab.url else 0.0
                _print(load, seen[direct], seen[lab.url], say)
                answers = rounds * load.callers * load.requests
                say(f"  CPU of the gateway: {used_s / answers * 1e6:.0f} µs an answer")
            say(f"memory of the gateway: {_rss_mib(gateway.pid):.0f} MiB resident")


def _models(lab: Lab, base: str) -> Callable[[], Awaitable[int]]:
    async def look() -> int:
        async with lab.http.get(f"{base}/v1/models") as answer:
            return answer.status

    return look


def _print(load: Load, direct: list[Seen], through: list[Seen], say: Callable[[str], None]) -> None:
    def rate(found: list[Seen]) -> float:
        return statistics.median(s.events_s if load.tokens else s.requests_s for s in found)

    def first(found: list[Seen], share: float) -> float:
        times = sorted(one for s in found for one in s.first)
        return times[min(len(times) - 1, int(len(times) * share))]

    unit = "tokens/s" if load.tokens else "requests/s"
    say(load.name)
    say(f"  {unit}: direct {rate(direct):8.1f}  gateway {rate(through):8.1f}  ratio {rate(through) / rate(direct):.3f}")
    for share in (0.5, 0.99):
        one, other = first(direct, share), first(through, share)
        say(f"  first byte p{share * 100:.0f} ms: direct {one:7.2f}  gateway {other:7.2f}  more {other - one:+.2f}")


def _cpu_s(pid: int) -> float:
    """Return what a process used of all cores: coarse (10 ms), but less shaken by a busy machine than times are."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    """Measure, or be the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model-port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model_port:
        asyncio.run(model(given.model_port))
    else:
        asyncio.run(measure(given.rounds, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
