"""Callers who leave before a whole answer is there: the answer is read to its end and counted by what it says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from provisioners.gateway.app import Gateway
from provisioners.gateway.protocol import (
    BudgetConfig,
    BudgetPeriod,
    BudgetUnit,
    EndpointKey,
    RequestOutcome,
    TokenSource,
)
from tests.gateway_lab import Lab, Model, scenario, until

ANSWER = json.dumps({"id": "c", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 30}}).encode()


class SlowModel(Model):
    """Sends the head and the first half of a whole answer when told to, and the rest when told again."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.asked = asyncio.Event()
        self.begin = asyncio.Event()
        self.end = asyncio.Event()
        self.breaks = False
        self.chunked = False

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.asked.set()
        try:
            await self.begin.wait()
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            if not self.chunked:
                response.content_length = len(ANSWER)
            await response.prepare(request)
            await response.write(ANSWER[:20])
            await self.end.wait()
            if self.breaks:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(ANSWER[20:])
        except (asyncio.CancelledError, ConnectionError):
            self.dropped.set()
            raise
        return response


async def serve(lab: Lab) -> tuple[Gateway, SlowModel]:
    model = SlowModel()
    await model.start()
    lab._stack.push_async_callback(model.stop)
    lab.control.budgets = {f"key:{lab.key.id}:tokens": 1000}
    budget = BudgetConfig(
        id=f"key:{lab.key.id}:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.DAY, amount=1000, shared=False
    )
    key = EndpointKey(id=lab.key.id, digest=lab.key.digest, budgets=(budget,))
    return await lab.serve(lab.endpoint(model.backend(), keys=(key,))), model


async def leave(lab: Lab, model: SlowModel, *, read: bool = False) -> None:
    """Ask, and leave once the model has the request; with `read`, once a part of its answer came."""
    request = {"model": "alpha", "messages": [], "max_tokens": 100}
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    body = json.dumps(request).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {lab.key.plain}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await model.asked.wait()
    if read:
        model.begin.set()
        await reader.readuntil(ANSWER[:20])
    writer.transport.abort()


async def in_flight(lab: Lab) -> int:
    return int((await lab.health())["in_flight"])


async def records(lab: Lab) -> list[Any]:
    return lab.control.records


@pytest.mark.parametrize("half", [False, True], ids=["before-it-began", "in-the-middle"])
def test_who_leaves_before_a_whole_answer_is_there_is_charged_what_it_used(half: bool, tmp_path: Any) -> None:
    @scenario
    async def leaves(lab: Lab) -> None:
        gateway, model = await serve(lab)
        model.chunked = half
        await leave(lab, model, read=half)
        await until(lambda: _leftovers(gateway), lambda seen: seen == 1)
        assert await in_flight(lab) == 1
        assert (await lab.ask(max_tokens=950))[0] == 402  # what he may use is held until it is known

        model.begin.set()
        model.end.set()

        (record,) = await until(lambda: records(lab), bool)
        assert not model.dropped.is_set()
        assert (record.outcome, record.status) == (RequestOutcome.CLIENT_DROPPED, 200)
        assert (record.prompt_tokens, record.completion_tokens) == (7, 30)
        assert record.token_source is TokenSource.REPORTED
        await until(lambda: _spent(lab), lambda spent: spent == 37)
        assert await in_flight(lab) == 0

    leaves(tmp_path)


@scenario
async def test_an_answer_for_nobody_that_breaks_off_counts_nothing_and_holds_nothing(lab: Lab) -> None:
    gateway, model = await serve(lab)
    model.breaks = True
    await leave(lab, model)
    await until(lambda: _leftovers(gateway), lambda seen: seen == 1)

    model.begin.set()
    model.end.set()

    (record,) = await until(lambda: records(lab), bool)
    assert (record.outcome, record.token_source) == (RequestOutcome.CLIENT_DROPPED, TokenSource.NONE)
    assert (record.prompt_tokens, record.completion_tokens) == (0, 0)
    assert (await _leftovers(gateway), await in_flight(lab)) == (0, 0)


@scenario
async def test_a_gateway_that_is_stopped_waits_for_answers_that_nobody_gets(lab: Lab) -> None:
    gateway, model = await serve(lab)
    await leave(lab, model)
    await until(lambda: _leftovers(gateway), lambda seen: seen == 1)

    gateway.stop()
    model.begin.set()
    model.end.set()

    (record,) = await until(lambda: records(lab), bool)
    assert (record.prompt_tokens, record.completion_tokens) == (7, 30)


@scenario
async def test_who_leaves_a_stream_still_stops_the_model(lab: Lab) -> None:
    gateway = await lab.serve()
    async with lab.stream() as answer:
        await lab.model.go.put(b'data: {"choices": []}\n\n')
        await answer.content.readany()

    await asyncio.wait_for(lab.model.dropped.wait(), 10)
    assert await _leftovers(gateway) == 0


async def _leftovers(gateway: Gateway) -> int:
    return len(gateway._proxy.leftovers)


async def _spent(lab: Lab) -> int:
    return lab.control.spent.get(f"key:{lab.key.id}:tokens", 0)
