"""`python -m tests.benchmarks.gateway`: what the gateway costs between caller and model.

Three processes on loopback: a model that paces its answers (`tests.benchmarks.model`), the real gateway, and this one
as the callers, all of them on this machine's cores. The same load goes direct and through the gateway, in turns;
printed are medians of the rounds. Times to the first byte are beyond the pause that the model was told to make.

Callers come in two ways, and both are told. *In step*: all begin at once and the model pauses equally long, so they
come back together for ever, and the last of them waits until the gateway has done the work of all others: the worst
that so many callers can do. *Each in his time*: the model's pauses differ (between half and one and a half of the mean,
the same ones both ways), as those of real answers do.

With `--general` model and callers are aiohttp's on the usual loop, as in earlier figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from provisioners.gateway.protocol import Backend
from tests.benchmarks.callers import Callers, General, Lean
from tests.benchmarks.model import ANSWER
from tests.gateway_lab import ROOT, Lab, until


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
    """Before a whole answer, or before each event; in the mean where callers are not in step."""
    in_step: bool = True
    """Whether all pauses are equally long."""


LOADS: Final = (
    Load("whole answers after 100 ms, 32 callers, in step", callers=32, requests=12, pause_ms=100),
    Load(
        "whole answers after 100 ms, 32 callers, each in his time",
        callers=32,
        requests=12,
        pause_ms=100,
        in_step=False,
    ),
    Load("streams of 64 tokens at 50 tokens/s, 32 callers, in step", callers=32, requests=1, tokens=64, pause_ms=20),
    Load(
        "streams of 64 tokens at 50 tokens/s, 32 callers, each in his time",
        callers=32,
        requests=1,
        tokens=64,
        pause_ms=20,
        in_step=False,
    ),
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
    """Request sent to first byte of the answer's body, less the model's pause."""
    kept: list[float]
    """The same, without the first request of each caller, which has to connect as well."""


async def run(load: Load, base: str, key: str, make: Callable[[str], Callers] = Lean) -> Seen:
    """Put `load` on `base`; every answer must be right."""
    first: list[float] = []
    kept: list[float] = []
    events = 0
    question = {"model": "alpha", "messages": [{"role": "user", "content": "hello " * 50}]}

    async def caller(callers: Callers, number: int) -> None:
        nonlocal events
        chance = random.Random(number)  # the same pauses both ways
        for turn in range(load.requests):
            pause_ms = load.pause_ms * (1 if load.in_step else chance.uniform(0.5, 1.5))
            asked = {**question, "stream": bool(load.tokens), "tokens": load.tokens, "pause_ms": pause_ms}
            body = json.dumps(asked).encode()
            began = time.perf_counter()
            at, whole = await callers.ask(base, body)
            took_ms = (at - began) * 1000 - pause_ms
            first.append(took_ms)
            if turn:
                kept.append(took_ms)
            if load.tokens:
                assert whole.count(b"data: {") == load.tokens
                events += load.tokens
            else:
                assert json.loads(whole) == ANSWER

    callers = make(key)
    began = time.perf_counter()
    await asyncio.gather(*(caller(callers, number) for number in range(load.callers)))
    took = time.perf_counter() - began
    await callers.close()
    return Seen(load.callers * load.requests / took, events / took, first, kept)


async def measure(rounds: int, say: Callable[[str], None], *, general: bool = False) -> None:
    """Run every load `rounds` times each way and say what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        async with Lab(Path(folder)) as lab:
            probe = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
            port = int(probe.sockets[0].getsockname()[1])
            probe.close()
            await probe.wait_closed()
            make: Callable[[str], Callers] = General if general else Lean
            command = ["-m", f"tests.benchmarks.{'callers' if general else 'model'}", str(port)]
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
                    await run(Load("warm", 4, 5, tokens=load.tokens and 5), base, lab.key.plain, make)
                used_s = 0.0
                for _ in range(rounds):
                    for base, found in seen.items():
                        before_s = _cpu_s(gateway.pid)
                        found.append(await run(load, base, lab.key.plain, make))
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

    def late(times: list[float], share: float) -> float:
        return sorted(times)[min(len(times) - 1, int(len(times) * share))]

    def say_times(what: str, share: float, one: list[float], other: list[float]) -> None:
        ours, theirs = late(other, share), late(one, share)
        say(f"  {what} p{share * 100:.0f} ms: direct {theirs:7.2f}  gateway {ours:7.2f}  more {ours - theirs:+.2f}")

    unit = "tokens/s" if load.tokens else "requests/s"
    say(load.name)
    say(f"  {unit}: direct {rate(direct):8.1f}  gateway {rate(through):8.1f}  ratio {rate(through) / rate(direct):.3f}")
    for share in (0.5, 0.99):
        say_times("first byte", share, *([t for s in found for t in s.first] for found in (direct, through)))
    if load.requests > 1:
        say_times(
            "the same on kept connections", 0.99, *([t for s in found for t in s.kept] for found in (direct, through))
        )


def _cpu_s(pid: int) -> float:
    """Return what a process used of all cores: coarse (10 ms), but less shaken by a busy machine than times are."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--general", action="store_true", help="model and callers on aiohttp")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=None if given.general else uvloop.new_event_loop) as runner:
        runner.run(measure(given.rounds, lambda line: print(line, flush=True), general=given.general))


if __name__ == "__main__":
    main()
