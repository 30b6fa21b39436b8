"""Live streams: 500 open ones against the real web process; its database connections, and event to bytes.

    python -m tests.benchmarks.streams [--streams 500] [--endpoints 50] [--events 40]

A PostgreSQL of its own with production settings and one web process (granian, as in life). Each stream is a browser's:
authorised by a session, then only waiting. An event is a change of an endpoint's state by a worker, committed; its time
runs from before the statement to the arrival of `event: changed` on each stream of that endpoint. Targets: at most 20
connections, p95 below 300 ms. Single readings: the machine's load shows in them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.benchmarks import stage

MOST_CONNECTIONS = 20
MOST_P95_MS = 300.0
AT_ONCE = 25
"""Streams opened side by side: browsers come one after the other, too."""
PATIENCE_S = 10.0
PAUSE_S = 0.25
"""Between two events: a burst of one object is told as one."""


@dataclass
class Stream:
    """One open stream and when its events arrived."""

    endpoint: UUID
    arrived: list[float] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    status: str = ""

    async def listen(self, port: int, cookie: str) -> None:
        """Open it and note arrivals until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                f"GET /t/bench/live/endpoint/{self.endpoint} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                f"Accept: text/event-stream\r\nCookie: {cookie}\r\n\r\n".encode()
            )
            await writer.drain()
            self.status = (await reader.readline()).decode().strip()
            while line := await reader.readline():
                if line.startswith(b"retry:"):
                    self.ready.set()
                elif line.startswith(b"event: changed"):
                    self.arrived.append(time.perf_counter())
                    self.news.set()
        finally:
            writer.close()


def fill(endpoints: int) -> tuple[list[UUID], str]:
    """Make a tenant with endpoints and a member who is logged in; return their ids and his session's cookie."""
    from django.test import Client
    from django.utils import timezone

    from tenants.operations import endpoints as operations
    from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
    from tests import factories

    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "simulated": True})
    for _ in range(endpoints // 8 + 2):
        factories.host(provider)
    factories.served_model()
    tenant = factories.tenant(name="bench")
    factories.generous(tenant)
    member = factories.member(tenant)
    who = {"actor": factories.actor(member), "now": timezone.now()}
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 2, 8),))
    made = [
        operations.create(tenant=tenant, ask=EndpointAsk(f"e{n}", RevisionAsk("llama-3-1-8b"), spec), **who).endpoint.pk
        for n in range(endpoints)
    ]
    client = Client()
    client.force_login(member, backend="tenants.login.PersonBackend")
    return made, "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())


def change(endpoint: UUID, number: int) -> float:
    """Change an endpoint's state as a worker does; return when that began."""
    from tenants.actor import SYSTEM
    from tenants.models import Endpoint
    from tenants.transactions import acting

    began = time.perf_counter()
    with acting(SYSTEM):
        Endpoint.objects.filter(pk=endpoint).update(phase="Ready" if number % 2 else "Degraded")
    return began


def connections(server: Any, database: str) -> dict[str, int]:
    """Return application → connections to the database, without this process's own."""
    with server.connect() as connection:
        rows = connection.execute(
            "SELECT coalesce(nullif(application_name, ''), 'web'), count(*) FROM pg_stat_activity "
            "WHERE datname = %s AND usename = 'cp_app' GROUP BY 1 ORDER BY 1",
            [database],
        ).fetchall()
    return {str(name): int(count) for name, count in rows}


def resident_mib(pid: int) -> float:
    """Return the memory of a process and its children."""
    total = 0
    for each in [pid, *children(pid)]:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{each}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


async def measure(server: Any, port: int, cookie: str, endpoints: Sequence[UUID], options: Any, pid: int) -> bool:
    """Open the streams, make events, print figures; return whether the targets were met."""
    streams = [Stream(endpoints[n % len(endpoints)]) for n in range(options.streams)]
    tasks: list[asyncio.Task[None]] = []
    before = resident_mib(pid)
    started = time.perf_counter()
    for at in range(0, len(streams), AT_ONCE):
        group = streams[at : at + AT_ONCE]
        tasks += [asyncio.create_task(one.listen(port, cookie)) for one in group]
        async with asyncio.timeout(60):
            await asyncio.gather(*(one.ready.wait() for one in group))
    opened = time.perf_counter() - started
    print(
        f"  {len(streams)} streams open after {opened:.1f} s ({opened / len(streams) * 1000:.1f} ms each)", flush=True
    )

    spent: list[float] = []
    lost = 0
    for number in range(options.events):
        chosen = endpoints[number % len(endpoints)]
        waiting = [one for one in streams if one.endpoint == chosen]
        for one in waiting:
            one.news.clear()
        began = await asyncio.to_thread(change, chosen, number // len(endpoints))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(one.news.wait() for one in waiting))
        except TimeoutError:
            lost += sum(not one.news.is_set() for one in waiting)
        spent += [(one.arrived[-1] - began) * 1000 for one in waiting if one.news.is_set()]
        await asyncio.sleep(PAUSE_S)
    held = await asyncio.to_thread(connections, server, "bench")
    after = resident_mib(pid)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    spent.sort()
    p50, p95, top = (spent[min(len(spent) - 1, int(len(spent) * share))] for share in (0.5, 0.95, 1.0))
    print(f"  database connections of the web process: {sum(held.values())} {held} (target {MOST_CONNECTIONS})")
    print(f"  {options.events} events, {len(spent)} arrivals, {lost} lost: p50 {p50:.0f} ms, p95 {p95:.0f} ms, "
          f"max {top:.0f} ms (target p95 {MOST_P95_MS:.0f})")  # fmt: skip
    print(f"  web process: {before:.0f} MiB before, {after:.0f} MiB with the streams; load {os.getloadavg()[0]:.1f}")
    return sum(held.values()) <= MOST_CONNECTIONS and p95 <= MOST_P95_MS and not lost


def main() -> int:
    """Measure once; exit status 1 when a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--endpoints", type=int, default=50)
    parser.add_argument("--events", type=int, default=40)
    options = parser.parse_args()
    with stage.server() as server, tempfile.TemporaryDirectory() as folder:
        stage.migrated(server, "bench")
        stage.enter(server, "bench", superuser=True)
        endpoints, cookie = fill(options.endpoints)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env = {**stage.environ(server, "bench", "web"), "TENANTRY_PUBLIC_URL": f"http://127.0.0.1:{port}"}
        command = ["granian", "--interface", "asginl", "--host", "127.0.0.1", "--port", str(port)]
        with (Path(folder) / "web.log").open("wb") as log:
            web = subprocess.Popen(
                [sys.executable, "-m", *command, "controlplane.asgi:application"],
                cwd=stage.ROOT, env=env, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            answers(port, web)
            met = asyncio.run(measure(server, port, cookie, endpoints, options, web.pid))
        finally:
            web.terminate()
            web.wait(20)
    return 0 if met else 1


def answers(port: int, web: subprocess.Popen[bytes]) -> None:
    """Wait until the web process answers. Raises `RuntimeError` when it ends or takes a minute."""
    import httpx

    end = time.monotonic() + 60
    while time.monotonic() < end and web.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2)
        except httpx.HTTPError:
            continue
        return
    raise RuntimeError("the web process did not start")


if __name__ == "__main__":
    sys.exit(main())
