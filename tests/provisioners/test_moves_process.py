"""Moves under load: real web process, real sandbox process with its stand-in for DNS, real gateways, real passes.

Callers know one address, keep their connections, ask whole answers and streams. Nobody is failed while the endpoint
goes from a namespace to a machine, back but undone, and back; all that was answered is counted, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
from django.db.models import Sum
from django.test import override_settings

from provisioners import sweep
from provisioners.driver import Secret
from provisioners.passes import Engine
from provisioners.sandbox.driver import SandboxDriver
from tenants.models import Endpoint, EndpointUsage, Hold, Move
from tenants.operations import endpoints, moves
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MoveAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, Role
from tests import factories
from tests.drive import DOCUMENT, inventory_of, rows_of
from tests.gateway_lab import until
from tests.provisioners.test_agent_api_process import Web, free_port, in_thread
from tests.provisioners.test_rollouts_process import do, fresh, reached
from tests.sandbox_process import QUICK, TOKEN, SandboxProcess

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
WHOLE, STREAMS = 4, 2
H100, A100 = GpuAsk("H100-80GB", "1g.10gb"), GpuAsk("A100-80GB", "3g.40gb")


class Sweeps:
    """Sweeps in a thread of its own until it is told to end."""

    def __init__(self, driver: SandboxDriver) -> None:
        self._engine = Engine(driver_of=lambda _provider: driver, base_s=0.2)
        self._going = True
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._going = False
        await self._task

    async def _sweep(self) -> None:
        while self._going:
            await in_thread(lambda: sweep.sweep(self._engine))
            await asyncio.sleep(0.1)


class Load:
    """Callers that know an address and a key, and keep their connections."""

    def __init__(self, address: str, secret: str) -> None:
        self.address, self.secret = address, secret
        self.answers: Counter[str] = Counter()
        """Where it was answered (`namespace`, `vm`), or what went wrong → how many."""
        self._going = True
        self._callers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        ways = [False] * WHOLE + [True] * STREAMS
        self._callers = [asyncio.create_task(self._call(stream=stream)) for stream in ways]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._going = False
        await asyncio.gather(*self._callers)

    async def _call(self, *, stream: bool) -> None:
        headers = {"Authorization": f"Bearer {self.secret}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            while self._going:
                await asyncio.sleep(0.05)  # the same few cores run all that is asked here
                try:
                    self.answers[await self._ask(http, stream=stream)] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.answers[f"failed: {type(error).__name__}"] += 1

    async def _ask(self, http: aiohttp.ClientSession, *, stream: bool) -> str:
        words = [{"role": "user", "content": "Where?"}]
        body = {"model": "chat", "messages": words, "max_tokens": 200, "stream": stream}
        async with http.post(f"{self.address}/chat/completions", json=body) as answer:
            text = await answer.text()
        if answer.status != 200:
            return f"failed: {answer.status} {text[:120]}"
        if stream:
            if not text.rstrip().endswith("data: [DONE]"):
                return "failed: broken off"
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            text = "".join(str(one["choices"][0]["delta"].get("content") or "") for one in events if one["choices"])
        return "vm" if "on esxi-" in text else "namespace" if "on node-" in text else f"failed: {text[:120]}"

    @property
    def good(self) -> int:
        return sum(count for word, count in self.answers.items() if not word.startswith("failed"))

    def failed(self) -> dict[str, int]:
        return {word: count for word, count in self.answers.items() if word.startswith("failed")}

    async def comes_from(self, place: str) -> None:
        """Wait until all callers are answered there."""
        before = self.answers[place]

        async def look() -> int:
            return self.answers[place]

        try:
            await until(look, lambda count: count > before + 2 * (WHOLE + STREAMS), within_s=120)
        except AssertionError as error:
            raise AssertionError(f"{place}: {dict(self.answers)}") from error


def made(driver: SandboxDriver) -> SimpleNamespace:
    provider = factories.provider(capabilities=inventory_of(driver), enabled=True)  # type: ignore[arg-type]
    type(provider).objects.update(due_at=datetime(2100, 1, 1, tzinfo=UTC))
    rows_of(driver, provider)  # type: ignore[arg-type]
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    factories.served_model("llama-3-1-8b")
    actor = factories.actor(factories.member(tenant, Role.OWNER))
    spec = AllocationSpec(units=(UnitAsk(H100, vcpu=4, memory_gib=16),), where=Where(kind=BoundaryKind.NAMESPACE))
    asked = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
    row = endpoints.create(tenant=tenant, ask=asked, actor=actor, now=datetime.now(UTC))
    return SimpleNamespace(endpoint=row.endpoint, secret=row.secret, actor=actor)


def state_of_the_last() -> str:
    return str(Move.objects.latest("created_at").state)


def cleared() -> bool:
    return not Endpoint._base_manager.filter(stands_in_for__isnull=False, released_at=None).exists()


async def walk(driver: SandboxDriver, web: Web) -> None:
    await web.start()
    it = await in_thread(lambda: made(driver))
    assert it is not None
    async with Sweeps(driver):
        await reached(lambda: fresh(it).phase, lambda phase: phase == "Ready")
        address = (await reached(lambda: fresh(it), lambda row: row.address != "")).address
        async with Load(address, it.secret) as load:
            await load.comes_from("namespace")

            # to a machine of its own
            await do(it, moves.begin, ask=MoveAsk(BoundaryKind.VM, gpu=A100, watch_s=6))
            await reached(state_of_the_last, lambda seen: seen == "watching")
            await load.comes_from("vm")
            await reached(state_of_the_last, lambda seen: seen == "done")
            await reached(cleared, bool)
            await load.comes_from("vm")
            assert (load.failed(), await in_thread(lambda: kind_of(it))) == ({}, "vm")

            # back, but undone after its address had gone over
            await do(it, moves.begin, ask=MoveAsk(BoundaryKind.NAMESPACE, gpu=H100, by_hand=True, watch_s=600))
            await reached(state_of_the_last, lambda seen: seen == "beside")
            await do(it, moves.cut_over)
            await reached(state_of_the_last, lambda seen: seen == "watching")
            await load.comes_from("namespace")
            await do(it, moves.undo)
            await reached(state_of_the_last, lambda seen: seen == "undone")
            await reached(cleared, bool)
            await load.comes_from("vm")
            assert load.failed() == {}

            # back, and finished by hand
            await do(it, moves.begin, ask=MoveAsk(BoundaryKind.NAMESPACE, gpu=H100, watch_s=600))
            await reached(state_of_the_last, lambda seen: seen == "watching")
            await do(it, moves.finish)
            await reached(state_of_the_last, lambda seen: seen == "done")
            await reached(cleared, bool)
            await load.comes_from("namespace")
        assert load.failed() == {}
        row: Any = await in_thread(lambda: fresh(it))
        assert (await in_thread(lambda: kind_of(it)), row.address, row.phase) == ("namespace", address, "Ready")
        assert await in_thread(Hold.objects.count) == 1
        counted = await reached(lambda: requests_of(it.endpoint), lambda count: count >= load.good)
        assert counted == load.good


def kind_of(it: SimpleNamespace) -> str:
    return str(Endpoint.objects.select_related("boundary").get(pk=it.endpoint.pk).boundary.kind)  # type: ignore[union-attr]


def requests_of(row: Endpoint) -> int:
    return int(EndpointUsage.objects.filter(endpoint_id=row.pk).aggregate(n=Sum("requests"))["n"] or 0)


def estate_of(sandbox: SandboxProcess) -> SandboxDriver:
    settings = {**QUICK, "gateways": "real", "names": True, "load_s": 0.5}
    answer = sandbox.client.put(f"{sandbox.url}/estates/moves", json={**DOCUMENT, "settings": settings})
    assert answer.status_code == 201
    return SandboxDriver(sandbox.url, token=Secret(TOKEN), estate="moves")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    here = SandboxProcess(tmp_path)
    yield here
    here.stop()


@pytest.mark.timeout(600)
def test_an_endpoint_moves_to_a_machine_and_back_and_nobody_is_failed(sandbox: SandboxProcess, tmp_path: Path) -> None:
    driver = estate_of(sandbox)
    web = Web(tmp_path, "", free_port())

    async def run() -> None:
        try:
            await walk(driver, web)
        finally:
            with contextlib.suppress(TimeoutError):  # it is killed then; how it stops is another test's
                await web.stop()

    with override_settings(TENANTRY_PUBLIC_URL=web.url):
        asyncio.run(run())
    driver.close()
