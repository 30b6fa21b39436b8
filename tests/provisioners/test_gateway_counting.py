"""Counting tokens exactly: many streams through the real gateway program, some cut off, some by killing the gateway.

The model is the sandbox's stub, which says what was used as vLLM does and counts what it makes, whoever reads it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web

from provisioners.gateway.journal import SLOT_BYTES
from provisioners.gateway.protocol import Backend, RequestOutcome, TokenSource, UsageRecord
from provisioners.sandbox.stub import Place, Stub
from tests.gateway_lab import Lab, Server, scenario, until

pytestmark = pytest.mark.slow

STREAMS = 200
MOST_LOST_TOKENS = 32
"""Of one stream that is cut off: what the model made after the last event that the gateway read."""
PATIENCE_S = 90.0


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

    async def counted(self, name: str, **labels: str) -> float:
        """Return one of its counters."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith(f"vllm:{name}_total{{") and all(part in line for part in wanted)
        )

    async def quiet(self) -> None:
        """Wait until nobody is answered any more."""

        async def running() -> float:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/metrics") as answer:
                text = await answer.text()
            return sum(float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith("vllm:num_requests_run"))

        await until(running, lambda count: count == 0, within_s=PATIENCE_S)


@dataclass
class Told:
    """What one caller saw of his stream."""

    prompt: int = 0
    completion: int = 0
    whole: bool = False
    extra: int = 0
    """Events with usage that he did not ask for."""


async def _stream(lab: Lab, http: aiohttp.ClientSession, number: int, *, leave_after: int | None) -> Told:
    """Ask for a stream with usage at its end; leave after so many events."""
    told, events = Told(), 0
    body = {
        "model": "alpha",
        "messages": [{"role": "user", "content": f"caller {number} " + "word " * (number % 50)}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {lab.key.plain}", "X-Request-Id": f"caller-{number}"}
    async with http.post(f"{lab.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line == b"data: [DONE]\n":
                told.whole = True
            elif line.startswith(b"data: {"):
                events += 1
                content = json.loads(line.removeprefix(b"data: "))
                if content["choices"] == []:
                    told.prompt = content["usage"]["prompt_tokens"]
                    told.completion = content["usage"]["completion_tokens"]
                elif "usage" in content:
                    told.extra += 1
            if events == leave_after:
                return told
    return told


async def _asked(lab: Lab) -> list[Told | BaseException]:
    """Ask for all streams at once; a third of the callers leave early."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        leaving = [2 + number % 20 if number % 3 == 0 else None for number in range(STREAMS)]
        streams = (_stream(lab, http, number, leave_after=events) for number, events in enumerate(leaving))
        return await asyncio.gather(*streams, return_exceptions=True)


async def _count(lab: Lab) -> int:
    return len(lab.control.records)


async def _settled(lab: Lab) -> dict[str, UsageRecord]:
    await until(lambda: _count(lab), lambda count: count >= STREAMS, within_s=PATIENCE_S)
    records = lab.control.records
    assert len(records) == STREAMS
    assert len({record.uid for record in records}) == STREAMS
    return {record.request_id: record for record in records}


async def _model(lab: Lab) -> StubModel:
    model = StubModel(tokens_s=20)
    await model.start()
    lab.control.publish(lab.endpoint(model.backend()))
    return model


@scenario
async def test_whole_streams_settle_to_the_token_and_cut_ones_to_a_few(lab: Lab) -> None:
    model = await _model(lab)
    lab.control.lose_usage_answers = 5
    await lab.spawn()
    await lab.healthy(state="serving")

    told = await _asked(lab)
    records = await _settled(lab)
    await model.quiet()

    cut = 0
    for number, seen in enumerate(told):
        assert isinstance(seen, Told)
        record = records[f"caller-{number}"]
        assert seen.extra == 0
        if seen.whole:
            assert (record.prompt_tokens, record.completion_tokens) == (seen.prompt, seen.completion)
            assert (record.outcome, record.token_source) == (RequestOutcome.COMPLETED, TokenSource.REPORTED)
            assert record.ttft_ms is not None
            assert record.itl_us is not None
            assert record.itl_us > 0
        else:
            cut += 1
            assert (record.outcome, record.token_source) == (RequestOutcome.CLIENT_DROPPED, TokenSource.LAST_SEEN)
            assert record.prompt_tokens > 0
    assert cut == len(range(0, STREAMS, 3))
    made, prompts = await model.counted("generation_tokens"), await model.counted("prompt_tokens")
    assert prompts == sum(record.prompt_tokens for record in records.values())
    assert 0 <= made - sum(record.completion_tokens for record in records.values()) <= cut * MOST_LOST_TOKENS
    assert lab.control.batches_received > len(lab.control.batches)
    await model.stop()


@scenario
async def test_streams_that_a_kill_of_the_gateway_cuts_are_settled_by_its_successor(lab: Lab) -> None:
    model = await _model(lab)
    lab.control.refuse_usage_with = 503
    process = await lab.spawn()
    await lab.healthy(state="serving")

    asking = asyncio.create_task(_asked(lab))
    await until(lambda: model.counted("generation_tokens"), lambda count: count > STREAMS * 12, within_s=PATIENCE_S)
    await lab.kill(process)
    told = await asking
    await model.quiet()
    await lab.spawn(token=False)
    await lab.healthy(state="serving")
    lab.control.refuse_usage_with = 0
    records = await _settled(lab)

    whole = {number for number, seen in enumerate(told) if isinstance(seen, Told) and seen.whole}
    died = {number for number in range(STREAMS) if records[f"caller-{number}"].outcome is RequestOutcome.GATEWAY_DIED}
    assert len(died) > STREAMS // 2
    for number in range(STREAMS):
        record, seen = records[f"caller-{number}"], told[number]
        if number in whole:
            assert isinstance(seen, Told)
            assert (record.prompt_tokens, record.completion_tokens) == (seen.prompt, seen.completion)
        else:
            assert record.token_source in (TokenSource.LAST_SEEN, TokenSource.REPORTED)
    made, prompts = await model.counted("generation_tokens"), await model.counted("prompt_tokens")
    assert prompts == sum(record.prompt_tokens for record in records.values())
    lost = made - sum(record.completion_tokens for record in records.values())
    assert 0 <= lost <= (STREAMS - len(whole)) * MOST_LOST_TOKENS
    await model.stop()


@scenario
async def test_a_record_that_was_written_in_the_moment_of_the_kill_is_not_written_again(lab: Lab) -> None:
    model = await _model(lab)
    lab.control.refuse_usage_with = 503
    process = await lab.spawn()
    await lab.healthy(state="serving")

    assert (await _stream(lab, lab.http, 0, leave_after=None)).whole
    journal = lab.state / "journal"
    taken = bytearray(journal.read_bytes())
    await lab.kill(process)
    at = next(at for at in range(0, len(taken), SLOT_BYTES) if taken[at + 8])
    taken[at] = 1  # the slot as it was before it was given back
    journal.write_bytes(taken)
    await lab.spawn(token=False)
    lab.control.refuse_usage_with = 0
    await lab.healthy(spooled_records=0)

    (record,) = lab.control.records
    assert record.outcome is RequestOutcome.COMPLETED
    await model.stop()
