"""Rates and budgets through the real gateway: 429 and 402, many at once, a kill in the middle, no control plane."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import aiohttp
import pytest

from provisioners.gateway.protocol import (
    BudgetConfig,
    BudgetPeriod,
    BudgetUnit,
    EndpointConfig,
    EndpointKey,
    RateLimits,
    TokenPrice,
)
from tests.gateway_callers import PATIENCE_S, StubModel
from tests.gateway_lab import Lab, event_of, scenario, until, wrong

CALLERS = 60
MOST_TOKENS = 30


def budget(lab: Lab, unit: BudgetUnit = BudgetUnit.TOKENS, **fields: object) -> BudgetConfig:
    given = {"id": f"key:{lab.key.id}:{unit}", "unit": unit, "period": BudgetPeriod.MONTH, "currency": "", **fields}
    return BudgetConfig(**given)  # type: ignore[arg-type]


def limited(lab: Lab, model: StubModel | None = None, **fields: object) -> EndpointConfig:
    """The lab's endpoint with limits on its key."""
    key = EndpointKey(id=lab.key.id, digest=lab.key.digest, **fields)  # type: ignore[arg-type]
    backends = (model.backend(),) if model is not None else ()
    return lab.endpoint(*backends, keys=(key,), context_tokens=200)


# --- rates ------------------------------------------------------------------------------------------


@scenario
async def test_beyond_a_rate_the_answer_is_429_with_the_time_to_come_back_and_what_is_left(lab: Lab) -> None:
    await lab.serve(limited(lab, rates=RateLimits(requests_per_minute=2)))

    first, second, third = await lab.ask(), await lab.ask(), await lab.ask()

    assert [answer[0] for answer in (first, second, third)] == [200, 200, 429]
    assert first[2]["x-ratelimit-limit-requests"] == "2"
    assert (first[2]["x-ratelimit-remaining-requests"], second[2]["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert third[1]["error"]["code"] == "rate_limit_exceeded"
    assert 28 <= int(third[2]["Retry-After"]) <= 30
    assert len(lab.model.seen) == 2


@scenario
async def test_tokens_of_a_rate_are_settled_by_what_the_model_said(lab: Lab) -> None:
    await lab.serve(limited(lab, rates=RateLimits(tokens_per_minute=1000)))

    first = await lab.ask(max_tokens=900)
    second = await lab.ask(max_tokens=900)

    assert [first[0], second[0]] == [200, 200]
    # 10 tokens were used by the first, whatever it might have used.
    assert int(second[2]["x-ratelimit-remaining-tokens"]) < int(first[2]["x-ratelimit-remaining-tokens"])
    assert int(second[2]["x-ratelimit-remaining-tokens"]) > int(first[2]["x-ratelimit-remaining-tokens"]) - 30


@scenario
async def test_a_tenants_rate_holds_over_all_its_keys_and_models(lab: Lab) -> None:
    lab.control.publish(lab.endpoint(), rates=RateLimits(requests_per_minute=3))
    await lab.serve(lab.endpoint())
    lab.control.publish(lab.endpoint(), rates=RateLimits(requests_per_minute=3))
    await lab.healthy(config_version=lab.control.version)

    statuses = [(await lab.ask())[0] for _ in range(5)]

    assert statuses == [200, 200, 200, 429, 429]


@scenario
async def test_a_refused_key_costs_no_rate(lab: Lab) -> None:
    await lab.serve(limited(lab, rates=RateLimits(requests_per_minute=1)))

    for _ in range(5):
        assert (await lab.ask(key=wrong(lab.key.plain)))[0] == 401
    assert (await lab.ask())[0] == 200


# --- budgets ----------------------------------------------------------------------------------------


@scenario
async def test_beyond_a_budget_the_answer_is_402_in_openais_shape_and_a_smaller_request_still_goes(lab: Lab) -> None:
    lab.control.budgets = {f"key:{lab.key.id}:tokens": 450}
    await lab.serve(limited(lab, budgets=(budget(lab, amount=450),)))

    too_much = await lab.ask(n=3)
    fits = await lab.ask(max_tokens=10)

    assert (too_much[0], fits[0]) == (402, 200)
    error = too_much[1]["error"]
    assert (error["type"], error["code"], error["param"]) == ("insufficient_quota", "budget_exhausted", None)
    assert (error["budget"]["needed"], error["budget"]["left"], error["budget"]["amount"]) == (600, 450, 450)
    assert len(lab.model.seen) == 1


@pytest.mark.slow
@scenario
async def test_a_budget_of_money_is_charged_by_the_price_of_the_endpoint(lab: Lab) -> None:
    lab.control.budgets = {f"key:{lab.key.id}:money": 1_000_000}
    priced = limited(lab, budgets=(budget(lab, BudgetUnit.MONEY, amount=1_000_000, currency="EUR"),))
    price = TokenPrice.model_validate_json('{"starts_at": "2026-01-01T00:00:00Z", "nano": 1000}')
    await lab.serve(priced.model_copy(update={"token_prices": (price,)}))

    for _ in range(3):
        assert (await lab.ask())[0] == 200

    await until(lambda: _spent(lab, f"key:{lab.key.id}:money"), lambda spent: spent == 30_000)


@pytest.mark.slow
@scenario
async def test_without_the_control_plane_a_leased_budget_goes_on_and_an_unknown_one_is_503(lab: Lab) -> None:
    name = f"key:{lab.key.id}:tokens"
    lab.control.budgets = {name: 100_000}
    await lab.serve(limited(lab, budgets=(budget(lab, amount=100_000),)))
    assert (await lab.ask())[0] == 200

    await lab.control.stop()
    statuses = {(await lab.ask())[0] for _ in range(20)}
    await lab.control.start()
    await until(lambda: _spent(lab, name), lambda spent: spent == 210)

    assert statuses == {200}


@scenario
async def test_where_no_part_was_ever_leased_and_nobody_answers_it_is_503_not_402(lab: Lab) -> None:
    await lab.serve()
    lab.control.publish(limited(lab, budgets=(budget(lab),)))
    lab.control.refuse_leases_with = 503
    await lab.healthy(config_version=lab.control.version)

    status, content, headers = await lab.ask()

    assert (status, content["error"]["code"], headers["Retry-After"]) == (503, "budget_unavailable", "2")


@scenario
async def test_a_stream_holds_less_once_its_prompt_is_counted(lab: Lab) -> None:
    lab.control.budgets = {f"key:{lab.key.id}:tokens": 250}
    await lab.serve(limited(lab, budgets=(budget(lab, amount=250),)))

    async with lab.stream(max_tokens=20) as answer:
        usage = {"prompt_tokens": 7, "completion_tokens": 1}
        lab.model.go.put_nowait(event_of(choices=[{"index": 0, "delta": {"content": "a"}}], usage=usage))
        await answer.content.readuntil(b"\n\n")
        beside = await lab.ask(max_tokens=20)
        lab.model.go.put_nowait(b"")
        await answer.content.read()

    assert beside[0] == 200


@scenario
async def test_a_hold_for_several_prompts_does_not_shrink_by_what_the_first_one_says(lab: Lab) -> None:
    lab.control.budgets = {f"key:{lab.key.id}:tokens": 650}
    await lab.serve(limited(lab, budgets=(budget(lab, amount=650),)))
    body = {"model": "alpha", "prompt": ["a", "b", "c"], "stream": True, "max_tokens": 20}
    headers = {"Authorization": f"Bearer {lab.key.plain}"}

    async with lab.http.post(f"{lab.url}/v1/completions", json=body, headers=headers) as answer:
        usage = {"prompt_tokens": 7, "completion_tokens": 1}
        lab.model.go.put_nowait(event_of(choices=[{"index": 0, "text": "a"}], usage=usage))
        await answer.content.readuntil(b"\n\n")
        beside = await lab.ask(max_tokens=20)
        lab.model.go.put_nowait(b"")
        await answer.content.read()

    assert beside[0] == 402


@pytest.mark.slow
@scenario
async def test_events_of_a_model_that_says_nothing_of_usage_are_charged_as_they_are_recorded(lab: Lab) -> None:
    name = f"key:{lab.key.id}:tokens"
    lab.control.budgets = {name: 1000}
    await lab.serve(limited(lab, budgets=(budget(lab, amount=1000),)))

    async with lab.stream(max_tokens=20) as answer:
        for _ in range(3):
            lab.model.go.put_nowait(event_of(choices=[{"index": 0, "delta": {"content": "a"}}]))
            await answer.content.readuntil(b"\n\n")
        lab.model.go.put_nowait(None)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()

    await until(lambda: _spent(lab, name), lambda spent: spent == 3)
    assert [record.completion_tokens for record in lab.control.records] == [3]


@scenario
async def test_an_absurd_request_neither_fails_nor_stops_news_and_parts_for_the_others(lab: Lab) -> None:
    lab.control.budgets = {f"key:{lab.key.id}:tokens": 10_000}
    await lab.serve(
        limited(lab, budgets=(budget(lab, amount=10_000),), rates=RateLimits(tokens_per_minute=10**9)),
    )

    absurd = [await lab.ask(n=10**number, max_tokens=10**300) for number in (9, 14, 30, 300)]
    revoked = limited(lab).model_copy(update={"keys": ()})
    good = await lab.ask(max_tokens=5)
    lab.control.publish(revoked)
    await lab.healthy(config_version=lab.control.version)

    assert [answer[0] for answer in absurd] == [402] * 4
    assert good[0] == 200
    assert (await lab.ask())[0] == 401


@pytest.mark.slow
@scenario
async def test_one_that_is_stopped_gives_back_what_it_did_not_use(lab: Lab) -> None:
    name = f"key:{lab.key.id}:tokens"
    lab.control.budgets = {name: 100_000}
    lab.control.publish(limited(lab, budgets=(budget(lab, amount=100_000),)))
    process = await lab.spawn()
    await lab.healthy(state="serving")
    assert (await lab.ask())[0] == 200
    await until(lambda: _kept(lab, name), lambda kept: kept > 10)

    assert await lab.kill(process, signal.SIGTERM) == 0

    assert (lab.control.spent[name], lab.control.kept[name]) == (10, 10)
    assert [record.completion_tokens for record in lab.control.records] == [3]


async def _kept(lab: Lab, name: str) -> int:
    return lab.control.kept.get(name, 0)


async def _spent(lab: Lab, name: str) -> int:
    return lab.control.spent.get(name, 0)


@dataclass
class Answers:
    """How many were answered, and how."""

    statuses: list[int]
    cut: int = 0


async def _many(lab: Lab, callers: int) -> Answers:
    found = Answers([])
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:

        async def one(number: int) -> None:
            body = {
                "model": "alpha", "messages": [{"role": "user", "content": "tell me"}], "stream": True,
                "max_tokens": MOST_TOKENS,
            }  # fmt: skip
            headers = {"Authorization": f"Bearer {lab.key.plain}"}
            status = 503
            while status == 503:  # on a machine with no time for us a part of the budget may come late
                try:
                    async with http.post(f"{lab.url}/v1/chat/completions", json=body, headers=headers) as answer:
                        status, seen = answer.status, 0
                        async for line in answer.content:
                            seen += line.startswith(b"data: {")
                            if number % 3 == 0 and seen >= 5:
                                break
                except aiohttp.ClientError:
                    found.cut += 1
                    return
            found.statuses.append(status)

        await asyncio.gather(*(one(number) for number in range(callers)))
    return found


@pytest.mark.slow
@scenario
async def test_nobody_passes_a_budget_whoever_leaves_and_when_the_gateway_is_killed(lab: Lab) -> None:
    model = StubModel(tokens_s=20)
    await model.start()
    name, most = f"key:{lab.key.id}:tokens", 2000
    lab.control.budgets = {name: most}
    lab.control.publish(limited(lab, model, budgets=(budget(lab, amount=most),)))
    process = await lab.spawn()
    await lab.healthy(state="serving")

    asking = asyncio.create_task(_many(lab, CALLERS))
    await until(lambda: model.counted("generation_tokens"), lambda count: count > 100, within_s=PATIENCE_S)
    await lab.kill(process)
    first = await asking
    await model.quiet()
    await lab.spawn(token=False)
    await lab.healthy(state="serving")
    refused = 0
    for _ in range(40):
        answers = await _many(lab, CALLERS // 3)
        refused += answers.statuses.count(402)
        if 200 not in answers.statuses:
            break
    await lab.healthy(spooled_records=0)

    used = sum(record.prompt_tokens + record.completion_tokens for record in lab.control.records)
    made = await model.counted("generation_tokens") + await model.counted("prompt_tokens")
    assert first.cut > 0
    assert refused > 0
    assert used <= most
    assert used > most - 300  # and what is left is less than one more request may use at most
    assert made - used <= 32 * len(lab.control.records)
    await model.stop()
