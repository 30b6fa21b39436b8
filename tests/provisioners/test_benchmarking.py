"""A load on an endpoint: what is sent, timed, counted and ended early; and the process that puts it there."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from provisioners import benchmarking
from provisioners.benchmark import load as loading
from provisioners.benchmark.load import Load, Trouble
from provisioners.benchmark.order import Order
from tenants.actor import SYSTEM
from tenants.benchmarks import Load as Asked
from tenants.benchmarks import Result, Stopped
from tenants.models import Benchmark, Endpoint, Provider
from tenants.operations import benchmarks, endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tests import factories
from tests.conftest import NOW
from tests.gateway_lab import Server

KEY = "tnt_test_key"


class Model(Server):
    """Streams as many events as tokens are asked for; two tokens a word of the prompt. Fails as a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: dict[int, int] = {}
        """Number of the request, from 0 → status to answer with instead."""
        self.all_with = 0
        self.most_at_once = 0
        self.running = 0
        self.breaks = False
        self.hangs = False

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/completions", self._complete)]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        status = self.statuses.get(len(self.bodies) - 1, self.all_with)
        if status:
            return web.json_response({"error": {"message": f"said {status}"}}, status=status)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            if self.hangs and len(self.bodies) > 1:
                await asyncio.sleep(3600)
            for _ in range(body["max_tokens"]):
                await asyncio.sleep(0.002)
                await self._say(response, {"choices": [{"text": "x"}]})
            if self.breaks and len(self.bodies) > 1:
                return response
            usage = {"prompt_tokens": 2 * len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
            await self._say(response, {"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
            return response
        finally:
            self.running -= 1

    async def _say(self, response: web.StreamResponse, told: Any) -> None:
        await response.write(f"data: {json.dumps(told)}\n\n".encode())


def order(model: Model, **changes: Any) -> Order:
    told: dict[str, Any] = {
        "url": f"{model.url}/v1", "host": "chat.acme.test", "name": "", "ca_pem": "", "model": "chat", "key": KEY,
        "requests": 6, "input_tokens": 40, "output_tokens": 5, "concurrency": 2, "longest_s": 30.0, "seed": 1,
    }  # fmt: skip
    return Order(**(told | changes))


def ran(model: Model, told: list[tuple[int, int]] | None = None, **changes: Any) -> Result:
    async def within() -> Result:
        await model.start()
        try:
            return await Load(order(model, **changes), tell=lambda *how: (told or []).append(how)).run()
        finally:
            await model.stop()

    return asyncio.run(within())


def test_requests_of_one_shape_are_sent_so_many_at_once_and_timed_event_by_event() -> None:
    model, told = Model(), [(0, 0)]

    found = ran(model, told)

    first, *others = model.bodies
    assert (found.answered, found.failed, found.stopped) == (6, 0, Stopped.NOT)
    assert (found.prompt_tokens, found.completion_tokens) == (6 * 40, 6 * 5)
    assert [len(body["prompt"].split()) for body in others] == [20] * 6
    assert first["max_tokens"] == 1
    assert all(body["ignore_eos"] and body["stream"] and body["max_tokens"] == 5 for body in others)
    assert len({body["prompt"] for body in others}) == 6
    assert model.most_at_once == 2
    assert {headers["Authorization"] for headers in model.headers} == {f"Bearer {KEY}"}
    assert {headers["Host"] for headers in model.headers} == {"chat.acme.test"}
    assert found.ttft_ms.p50 is not None
    assert found.between_ms.p50 is not None
    assert found.request_ms.p50 is not None
    assert 1 < found.between_ms.p50 < found.request_ms.p50
    assert told[-1] == (6, 0)


def test_what_fails_is_counted_by_its_kind_and_has_no_times() -> None:
    model = Model()
    model.statuses = {2: 503, 3: 429}

    found = ran(model, concurrency=1)

    assert (found.answered, found.failed, found.errors) == (4, 2, {"429": 1, "503": 1})


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    model = Model()
    model.breaks = True

    found = ran(model, requests=3)

    assert (found.answered, found.errors) == (0, {"broken": 3})


def test_a_budget_that_is_used_up_ends_it_and_one_that_has_room_a_moment_later_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "BUDGET_PAUSE_S", 0.01)
    model = Model()
    model.statuses = {2: 402} | dict.fromkeys(range(5, 9), 402)

    found = ran(model, concurrency=1, requests=50)

    assert (found.answered, found.failed, found.stopped) == (3, 1, Stopped.BUDGET)
    assert found.said == "said 402"
    assert len(model.bodies) == 9


def test_nothing_but_failures_end_it() -> None:
    model = Model()
    model.statuses = dict.fromkeys(range(1, 100), 500)

    found = ran(model, requests=90, concurrency=4)

    assert (found.answered, found.stopped) == (0, Stopped.FAILURES)
    assert loading.MOST_FAILURES <= found.failed < 40


def test_a_load_that_takes_too_long_is_ended_and_what_hangs_does_not_count() -> None:
    model = Model()
    model.hangs = True

    found = ran(model, longest_s=0.3)

    assert (found.answered, found.failed, found.stopped) == (0, 0, Stopped.TIME)


def test_a_new_key_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "AGAIN_S", 0.01)
    model = Model()
    model.statuses = {0: 401, 1: 404, 2: 401}

    assert ran(model, requests=1).answered == 1


def test_what_cannot_be_measured_at_all_is_said_in_the_servers_words() -> None:
    model = Model()
    model.all_with = 400

    with pytest.raises(Trouble, match="It answers 400: said 400"):
        ran(model)


# --- the process -----------------------------------------------------------------------------------------


@contextmanager
def served(model: Model) -> Iterator[None]:
    """Serve a model from another thread: what follows a process blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(model.start(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(model.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def taken(model: Model, load: Asked) -> tuple[Benchmark, str]:
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"], "simulated": True}))
    factories.served_model()
    member = factories.actor(factories.member(tenant))
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))
    ask = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
    made = endpoints.create(tenant=tenant, ask=ask, actor=member, now=NOW).endpoint
    Endpoint.objects.filter(pk=made.pk).update(phase="Ready", ready_at=NOW, address=f"{model.url}/v1")
    benchmarks.ask(endpoint=Endpoint.objects.get(pk=made.pk), load=load, actor=member, now=NOW)
    found = benchmarks.take(actor=SYSTEM, now=NOW)
    assert found is not None
    return found


def clock() -> datetime:
    return datetime.now(UTC)


def test_a_process_runs_it_with_a_key_that_no_list_of_processes_shows(db: None) -> None:
    model = Model()
    with served(model):
        row, secret = taken(model, Asked(5, 20, 4, 2))
        benchmarking.run(row, secret, clock)

    row.refresh_from_db()
    result = Result.of(row.result)
    assert result is not None
    assert (row.state, row.sent, row.failed, row.reason) == ("done", 5, 0, "")
    assert (result.answered, result.simulated) == (5, "all")
    assert {headers["Authorization"] for headers in model.headers} == {f"Bearer {secret}"}
    assert {body["model"] for body in model.bodies} == {"chat"}


def test_a_load_that_is_cancelled_ends_within_seconds(db: None) -> None:
    model = Model()
    model.hangs = True
    with served(model):
        row, secret = taken(model, Asked(5, 20, 4, 2))
        Benchmark.objects.filter(pk=row.pk).update(cancel_asked_at=clock())
        benchmarking.run(row, secret, clock)

    row.refresh_from_db()
    assert (row.state, row.reason) == ("cancelled", benchmarks.CANCELLED)


def test_an_address_outside_of_the_providers_ranges_is_not_called(db: None) -> None:
    model = Model()
    with served(model):
        row, secret = taken(model, Asked(5, 20, 4, 2))
        Provider.objects.update(config={"address_ranges": ["10.0.0.0/8"]})
        benchmarking.run(row, secret, clock)

    row.refresh_from_db()
    assert row.state == "failed"
    assert "outside the ranges" in row.reason
    assert model.bodies == []
