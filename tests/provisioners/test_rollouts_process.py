"""Rollouts and zero under load: the real web process, a real gateway, real passes, replicas of the sandbox's core.

No request fails beyond the share of a bad revision, whatever takes over, goes back, sleeps or wakes meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from provisioners import gateways, sweep
from provisioners.passes import Engine
from provisioners.sandbox import control, files
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.stub import Stub
from tenants.actor import SYSTEM
from tenants.models import Boundary, Endpoint, Hold, Rollout
from tenants.operations import endpoints, idling, rollouts
from tenants.specs import (
    AllocationSpec,
    EndpointAsk,
    GpuAsk,
    RevisionAsk,
    RolloutAsk,
    RolloutStep,
    UnitAsk,
    Where,
)
from tenants.states import BoundaryKind, IdleUnits, Role, RolloutStrategy
from tenants.transactions import acting
from tests import factories
from tests.drive import DOCUMENT, inventory_of, rows_of
from tests.gateway_lab import Lab, Server, until
from tests.provisioners.test_agent_api_process import Web, free_port, in_thread

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
CALLERS = 6
PATIENCE_S = 240.0
QUICK = RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(20, 3), RolloutStep(60, 3)))


class Replicas(Server):
    """Where the replicas of an estate answer, as the sandbox's server lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.estate: Estate
        self.bad: set[int] = set()
        """Revisions that answer with 500."""
        self.bad_answers = 0
        self._stub = Stub()

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/replicas/{unit}/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        unit, path = request.match_info["unit"], request.match_info["path"]
        workload = self.estate.state.workloads.get(unit)
        serving = workload.serving if workload is not None else None
        if request.method == "POST" and serving is not None and int(serving["revision"]) in self.bad:
            self.bad_answers += 1
            return web.json_response({"error": {"message": "CUDA error (simulated)"}}, status=500)
        return await self._stub.answer(request, self.estate, unit, path)


class Passes:
    """Sweeps in a thread of its own until it is told to end."""

    def __init__(self, estate: Estate) -> None:
        lock, driver = threading.RLock(), InProcessSandbox(estate)

        class Serial:
            def __getattr__(self, name: str) -> Any:
                act = getattr(driver, name)

                def call(*args: Any, **options: Any) -> Any:
                    with lock:
                        return act(*args, **options)

                return call

        self._engine = Engine(driver_of=lambda _provider: Serial(), base_s=0.2)  # type: ignore[arg-type,return-value]
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
    """Callers that ask one after the other, and which revisions answered with what."""

    def __init__(self, lab: Lab, secret: str) -> None:
        self.lab, self.secret = lab, secret
        self.answers: Counter[tuple[int, int]] = Counter()
        """(status, revision; 0 where none is told) → how many."""
        self.codes: Counter[str] = Counter()
        self._going = True
        self._callers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._callers = [asyncio.create_task(self._ask()) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._going = False
        await asyncio.gather(*self._callers)

    async def _ask(self) -> None:
        words = [{"role": "user", "content": "Where?"}]
        while self._going:
            status, body, _ = await self.lab.ask(key=self.secret, model="chat", messages=words)
            said = str(body.get("choices") or "")
            revision = next((number for number in (1, 2, 3) if f"revision {number}," in said), 0)
            self.answers[status, revision] += 1
            if status != 200:
                self.codes[f"{body['error'].get('code', '')} {body['error'].get('message', '')}"] += 1

    def failed(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status != 200)


async def reached(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    return await until(lambda: in_thread(look), good, within_s=PATIENCE_S)


class RealWorld(Lab):
    """An endpoint on an estate in this process, its gateway as a process, our web process as the control plane."""

    async def prepare(self) -> SimpleNamespace:
        self.replicas = Replicas()
        await self.replicas.start()
        self._stack.push_async_callback(self.replicas.stop)
        clock = lambda: datetime.now(UTC).timestamp()  # noqa: E731 - the estate's own
        estate = Estate(files.build(DOCUMENT), clock=clock, url=self.replicas.url)
        control.no_delays(estate)
        control.change_settings(estate, {"load_s": 0.5})
        self.estate = self.replicas.estate = estate
        found = await in_thread(lambda: self._rows(estate))
        self.control: Any = Web(self.folder, "", free_port())
        self._stack.push_async_callback(self.control.stop)
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())
        await self.control.start()
        return found

    def _rows(self, estate: Estate) -> SimpleNamespace:
        provider = factories.provider(capabilities=inventory_of(estate), enabled=True)
        type(provider).objects.update(due_at=datetime(2100, 1, 1, tzinfo=UTC))
        rows_of(estate, provider)
        tenant = factories.tenant()
        factories.generous(tenant, "H100-80GB")
        factories.served_model("llama-3-1-8b")
        actor = factories.actor(factories.member(tenant, Role.OWNER))
        unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
        spec = AllocationSpec(units=(unit,), where=Where(kind=BoundaryKind.NAMESPACE))
        asked = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
        made = endpoints.create(tenant=tenant, ask=asked, actor=actor, now=datetime.now(UTC))
        return SimpleNamespace(endpoint=made.endpoint, secret=made.secret, actor=actor)

    async def enrolled(self) -> None:
        """Start the gateway that the estate only plays."""

        def arm() -> tuple[Any, str]:
            with acting(SYSTEM):
                replica = gateways.of_boundary(Boundary.objects.get(), now=datetime.now(UTC))
                return replica.pk, gateways.arm(replica, now=datetime.now(UTC)).reveal()

        self.gateway_uid, self.control.token = await in_thread(arm)
        await self.spawn()
        await self.healthy(state="serving", enrolled=True, within_s=60)


def fresh(it: SimpleNamespace) -> Endpoint:
    return Endpoint.objects.get(pk=it.endpoint.pk)


async def do(it: SimpleNamespace, act: Callable[..., Any], **more: Any) -> Any:
    return await in_thread(lambda: act(endpoint=fresh(it), actor=it.actor, now=datetime.now(UTC), **more))


async def walk(lab: RealWorld) -> None:
    it = await lab.prepare()
    async with Passes(lab.estate):
        await reached(lambda: fresh(it).phase, lambda phase: phase == "Ready")
        await lab.enrolled()

        async def answers() -> int:
            return (await lab.ask(key=it.secret, model="chat", messages=[{"role": "user", "content": "?"}]))[0]

        await until(answers, lambda status: status == 200, within_s=60)
        async with Load(lab, it.secret) as load:
            state = lambda: Rollout.objects.latest("created_at").state  # noqa: E731

            # a good one takes over, step by step
            await do(it, endpoints.revise, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}), rollout=QUICK)
            await reached(state, lambda seen: seen == "done")
            assert (load.failed(), load.codes) == (0, Counter())
            assert load.answers[200, 2] > 0

            # a bad one aborts by itself, and fails its own share only
            lab.replicas.bad = {3}
            await do(it, endpoints.revise, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 2048}), rollout=QUICK)
            await reached(state, lambda seen: seen == "aborted")
            assert load.failed() == lab.replicas.bad_answers > 0
            assert load.failed() < load.answers.total() / 4
            why = await in_thread(lambda: Rollout.objects.latest("created_at").reason)
            assert "requests failed" in why
            bad = load.failed()

            def nobody_else(after: str) -> None:
                assert (load.failed(), lab.replicas.bad_answers) == (bad, bad), (after, load.codes)

            # back to the first one, beside the present
            await do(it, rollouts.rollback)
            await reached(state, lambda seen: seen == "done")
            assert await in_thread(lambda: fresh(it).revision.number) == 1  # type: ignore[union-attr]
            nobody_else("rollback")

            # the old one stops first: requests wait
            await do(
                it, endpoints.revise, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}), rollout=RolloutAsk()
            )
            await reached(state, lambda seen: seen == "done")
            nobody_else("recreate")

            # to zero in the middle of it: the next request wakes it
            for units in IdleUnits:
                await do(it, idling.set_idle, after_s=None, units=units, wait_s=120)
                before = await in_thread(lambda: fresh(it).woken_at)
                await do(it, idling.sleep)
                woken = await reached(lambda: fresh(it).woken_at, lambda at, before=before: at not in {None, before})
                assert woken is not None
                await reached(lambda: fresh(it).phase, lambda phase: phase == "Ready")
                asked = load.answers[200, 0] + sum(load.answers.values())
                await until(_total(load), lambda total, asked=asked: total > asked + CALLERS, within_s=60)
                nobody_else(f"zero, units: {units}")
        assert await in_thread(Hold.objects.count) == 1


def _total(load: Load) -> Callable[[], Any]:
    async def look() -> int:
        return sum(load.answers.values())

    return look


def test_nobody_is_failed_beyond_a_bad_revisions_share(tmp_path: Path) -> None:
    async def run() -> None:
        lab = RealWorld(tmp_path)
        try:
            await walk(lab)
        finally:
            await lab.__aexit__()

    asyncio.run(run())
