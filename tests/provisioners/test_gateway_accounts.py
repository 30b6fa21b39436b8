"""Two hundred streams at once, a third cut off, budgets that run out, a kill in the middle: every account agrees.

What callers were told, what the gateway recorded, what the model counted, what budgets say was spent, and what the
control plane makes of the batches when they come twice and in any order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Sum

from provisioners.gateway import keys
from provisioners.gateway.protocol import (
    BudgetConfig,
    BudgetPeriod,
    BudgetUnit,
    EndpointKey,
    RequestOutcome,
    TokenSource,
    UsageBatch,
    UsageRecord,
)
from tenants.models import EndpointUsage, GatewayUsage
from tests.gateway_callers import MOST_LOST_TOKENS, PATIENCE_S, Caller, StubModel, Told, all_at_once
from tests.gateway_lab import Lab, until
from tests.provisioners.test_agent_api import make_world

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("db")]

STREAMS = 200
TIGHT_CALLERS = 40
TIGHT = 1500
"""Of a key whose callers ask for more than that together, at once and one after the other."""
MOST_TOKENS = 60
TOKENS_S = 20.0


@dataclass
class Outcome:
    """What everybody says afterwards."""

    told: dict[str, Told]
    records: dict[str, UsageRecord]
    batches: list[UsageBatch]
    made: float
    prompts: float
    spent: dict[str, int]
    wide: keys.NewKey
    tight: keys.NewKey


def key_of(made: keys.NewKey, tokens: int) -> EndpointKey:
    budget = BudgetConfig(id=f"key:{made.id}:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.MONTH, amount=tokens)
    return EndpointKey(id=made.id, digest=made.digest, budgets=(budget,))


def callers_of(wide: keys.NewKey, tight: keys.NewKey) -> list[Caller]:
    """A third of the many leaves, at different points; the key of the few has room for some of them only."""
    many = [
        Caller(
            f"wide-{number}", wide.plain, words=number % 50, leave_after=2 + number % 20 if number % 3 == 0 else None
        )
        for number in range(STREAMS)
    ]
    few = [Caller(f"tight-{number}-0", tight.plain, most_tokens=MOST_TOKENS) for number in range(TIGHT_CALLERS)]
    return many + few


async def play(folder: Path, *, kill: bool) -> Outcome:
    """Run it on the real gateway program."""
    async with Lab(folder) as lab:
        model = StubModel(TOKENS_S)
        await model.start()
        wide, tight = keys.make("test"), keys.make("test")
        limits = {f"key:{wide.id}:tokens": 10**7, f"key:{tight.id}:tokens": TIGHT}
        lab.control.budgets = limits
        lab.control.lose_usage_answers = 5
        endpoint = lab.endpoint(model.backend(), keys=(key_of(wide, 10**7), key_of(tight, TIGHT)), context_tokens=8192)
        lab.control.publish(endpoint)
        process = await lab.spawn()
        await lab.healthy(state="serving")

        asking = asyncio.create_task(all_at_once(lab.url, callers_of(wide, tight)))
        if kill:
            await until(
                lambda: model.counted("generation_tokens"), lambda count: count > STREAMS * 12, within_s=PATIENCE_S
            )
            await lab.kill(process)
        told = await asking
        await model.quiet()
        if kill:
            await lab.spawn(token=False)
            await lab.healthy(state="serving")
        for turn in range(1, 30):  # until nothing fits any more
            again = [Caller(f"tight-{number}-{turn}", tight.plain, most_tokens=MOST_TOKENS) for number in range(3)]
            seen = await all_at_once(lab.url, again)
            told |= seen
            if all(each.status == HTTPStatus.PAYMENT_REQUIRED for each in seen.values()):
                break
        answered = sum(each.status in {0, HTTPStatus.OK} for each in told.values())
        await until(lambda: _count(lab), lambda count: count >= answered, within_s=PATIENCE_S)
        await lab.healthy(spooled_records=0, within_s=PATIENCE_S)
        records = {record.request_id: record for record in lab.control.records}
        assert len(records) == len(lab.control.records)
        assert lab.control.batches_received > len(lab.control.batches)
        spent = {name: sum(_used(r) for r in records.values() if r.key_id in name) for name in limits}
        await until(lambda: _spent(lab), lambda found: all(found[name] >= spent[name] for name in limits))
        outcome = Outcome(
            told, records, list(lab.control.batches.values()), await model.counted("generation_tokens"),
            await model.counted("prompt_tokens"), dict(lab.control.spent), wide, tight,
        )  # fmt: skip
        await model.stop()
        return outcome


async def _count(lab: Lab) -> int:
    return len(lab.control.records)


async def _spent(lab: Lab) -> dict[str, int]:
    return lab.control.spent


def _used(record: UsageRecord) -> int:
    return record.prompt_tokens + record.completion_tokens


@pytest.mark.parametrize("kill", [False, True], ids=["served", "killed"])
def test_every_account_agrees_whoever_leaves_and_whatever_dies(tmp_path: Path, *, kill: bool) -> None:
    seen = asyncio.run(play(tmp_path, kill=kill))

    _whole_ones_settle_to_the_token(seen)
    _cut_ones_differ_by_a_few(seen, kill=kill)
    _nobody_passes_a_budget(seen, kill=kill)
    _batches_count_once(seen)


def _whole_ones_settle_to_the_token(seen: Outcome) -> None:
    whole = [told for told in seen.told.values() if told.whole]
    assert whole
    for told in whole:
        record = seen.records[told.name]
        assert (record.prompt_tokens, record.completion_tokens) == (told.prompt, told.completion)
        assert (record.outcome, record.token_source) == (RequestOutcome.COMPLETED, TokenSource.REPORTED)
        assert record.ttft_ms is not None
        assert (record.itl_us or 0) > 0
        assert told.extra == 0


def _cut_ones_differ_by_a_few(seen: Outcome, *, kill: bool) -> None:
    cut = [told for told in seen.told.values() if not told.whole and told.status in {0, HTTPStatus.OK}]
    left = [told for told in cut if not told.broke]
    if kill:
        died = [r for r in seen.records.values() if r.outcome is RequestOutcome.GATEWAY_DIED]
        assert len(died) > STREAMS // 2
    else:
        assert len(left) == len(cut) == len(range(0, STREAMS, 3))
    assert {seen.records[told.name].token_source for told in left} == {TokenSource.LAST_SEEN}
    assert seen.prompts == sum(record.prompt_tokens for record in seen.records.values())
    lost = seen.made - sum(record.completion_tokens for record in seen.records.values())
    assert 0 <= lost <= len(cut) * MOST_LOST_TOKENS


def _nobody_passes_a_budget(seen: Outcome, *, kill: bool) -> None:
    used = {
        key.id: sum(_used(record) for record in seen.records.values() if record.key_id == key.id)
        for key in (seen.wide, seen.tight)
    }
    refused = [told for told in seen.told.values() if told.status == HTTPStatus.PAYMENT_REQUIRED]
    assert refused
    assert {told.key for told in refused} == {seen.tight.plain}
    assert used[seen.tight.id] <= TIGHT
    most = MOST_TOKENS + 1000  # what one request may use at most: its bytes, room for a template, and its answer
    assert used[seen.tight.id] > TIGHT - most
    for key in (seen.wide, seen.tight):
        spent = seen.spent[f"key:{key.id}:tokens"]
        # What may have been counted before a kill is counted again: a budget says the same or more, never less.
        assert used[key.id] <= spent <= used[key.id] + kill * most


def _batches_count_once(seen: Outcome) -> None:
    """Send every batch twice, in any order, to the control plane's real address."""
    world = make_world()
    world.gateway.enrol()
    order = [*seen.batches, *seen.batches]
    random.Random(7).shuffle(order)
    for batch in order:
        records = [_of_world(record, world) for record in batch.records]
        assert world.gateway.usage(*records, batch=batch.id).status_code == 204

    assert GatewayUsage.objects.count() == len(seen.batches)
    sums = EndpointUsage.objects.aggregate(
        requests=Sum("requests"), prompt=Sum("prompt_tokens"), completion=Sum("completion_tokens")
    )
    assert sums == {
        "requests": len(seen.records),
        "prompt": sum(record.prompt_tokens for record in seen.records.values()),
        "completion": sum(record.completion_tokens for record in seen.records.values()),
    }


def _of_world(record: UsageRecord, world: Any) -> dict[str, Any]:
    changes = {"key_id": world.key.public_id, "endpoint_uid": world.endpoint.pk}
    found: dict[str, Any] = record.model_copy(update=changes).model_dump(mode="json", exclude_none=True)
    return {"unit_uid": None, "revision": None, **found}
