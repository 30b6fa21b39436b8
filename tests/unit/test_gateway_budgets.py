"""A gateway's parts of budgets: what is let through, what is asked for, and what outlives a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioners.gateway import budgets as module
from provisioners.gateway.budgets import Budgets, Hold
from provisioners.gateway.protocol import MAX_LEASES, BudgetConfig, BudgetPeriod, BudgetUnit, Lease, LeaseAsk
from provisioners.gateway.refusals import Refusal

TOKENS = BudgetConfig(id="key:k1:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.MONTH, amount=1000)
MONEY = BudgetConfig(id="key:k1:money", unit=BudgetUnit.MONEY, period=BudgetPeriod.DAY, amount=10**9, currency="EUR")
TENANT = BudgetConfig(id="tenant:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.MONTH)


class World:
    """A gateway's budgets, a clock, and a control plane that gives what there is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds = 1000.0
        self.at = datetime(2026, 6, 10, 12, 0, tzinfo=UTC)
        self.limits = {TOKENS.id: 1000, MONEY.id: 10**9, TENANT.id: 10_000}
        self.away = False
        self.ahead: int | None = None
        self.forgets: set[str] = set()
        """Budgets that are left out of every answer."""
        self.budgets = self.start()

    def start(self) -> Budgets:
        found = Budgets(self.path, clock=lambda: self.seconds, now=lambda: self.at)
        self.budgets = found
        found.configure([TOKENS, MONEY, TENANT])
        return found

    def passes(self, seconds: float) -> None:
        self.seconds += seconds
        self.at += timedelta(seconds=seconds)

    def renew(self) -> list[LeaseAsk]:
        """Ask once, as the way home does."""
        asks = self.budgets.asks()
        if self.away:
            self.budgets.failed()
            return asks
        leases = []
        for ask in asks:
            if ask.budget in self.forgets:
                continue
            granted = max(ask.keep, min(ask.want, self.limits[ask.budget])) if ask.budget in self.limits else None
            leases.append(
                Lease(budget=ask.budget, period_start=ask.period_start, granted=granted, left=0, ahead=self.ahead)
            )
        self.budgets.answered(asks, leases)
        return asks

    async def serve(self) -> None:
        """Answer whoever waits."""
        while True:
            if self.budgets.wanted.is_set():
                self.renew()
            await asyncio.sleep(0)


def run(path: Path, steps: Coroutine[Any, Any, None], world: World) -> None:
    async def within() -> None:
        serving = asyncio.create_task(world.serve())
        try:
            await steps
        finally:
            serving.cancel()

    asyncio.run(within())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "budgets")


def test_what_does_not_fit_is_refused_with_what_is_left_and_when_it_begins_anew(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        first = await world.budgets.hold([TOKENS], tokens=900, nano=0)
        with pytest.raises(Refusal) as refused:
            await world.budgets.hold([TOKENS], tokens=200, nano=0)
        first.settle(300)
        await world.budgets.hold([TOKENS], tokens=600, nano=0)

        error = json.loads(refused.value.body())["error"]
        assert (refused.value.status, error["type"], error["code"]) == (402, "insufficient_quota", "budget_exhausted")
        assert error["budget"] == {
            "unit": "tokens", "period": "month", "needed": 200, "amount": 1000, "left": 100, "currency": None,
            "resets_at": "2026-07-01T00:00:00Z",
        }  # fmt: skip
        assert "100 tokens of 1,000 tokens are left" in error["message"]

    run(tmp_path, steps(), world)


def test_of_a_tenants_budget_the_caller_learns_no_amounts(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        with pytest.raises(Refusal) as refused:
            await world.budgets.hold([TENANT], tokens=20_000, nano=0)

        assert "10,000" not in refused.value.message
        assert "left" not in json.loads(refused.value.body())["error"]["budget"]

    run(tmp_path, steps(), world)


def test_money_is_counted_at_the_price_of_the_request(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        hold = await world.budgets.hold([MONEY], tokens=400_000, nano=2000)
        hold.settle(300_000)
        with pytest.raises(Refusal) as refused:
            await world.budgets.hold([MONEY], tokens=200_001, nano=2000)
        await world.budgets.hold([MONEY], tokens=200_000, nano=2000)

        assert "0.4000 EUR of 1.0000 EUR are left" in refused.value.message

    run(tmp_path, steps(), world)


def test_where_one_budget_has_no_room_the_others_are_not_touched(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        for _ in range(5):
            with pytest.raises(Refusal):
                await world.budgets.hold([TENANT, TOKENS], tokens=2000, nano=0)
        await world.budgets.hold([TENANT], tokens=10_000, nano=0)

    run(tmp_path, steps(), world)


def test_a_hold_shrinks_once_it_is_known_what_can_be_used(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        hold = await world.budgets.hold([TOKENS], tokens=1000, nano=0)
        hold.at_most(250)
        hold.at_most(900)
        await world.budgets.hold([TOKENS], tokens=750, nano=0)

        assert [amount for _, _, amount in hold.parts] == [250]

    run(tmp_path, steps(), world)


def test_without_the_control_plane_it_goes_on_with_what_it_has_and_then_says_that_it_cannot_ask(
    world: World, tmp_path: Path
) -> None:
    async def steps() -> None:
        world.renew()
        world.away = True
        (await world.budgets.hold([TENANT], tokens=9000, nano=0)).settle(9000)
        (await world.budgets.hold([TENANT], tokens=1000, nano=0)).settle(1000)
        with pytest.raises(Refusal) as refused:
            await world.budgets.hold([TENANT], tokens=1, nano=0)

        assert (refused.value.status, refused.value.code) == (503, "budget_unavailable")

    run(tmp_path, steps(), world)


def test_it_has_ahead_what_is_used_in_ten_minutes(world: World) -> None:
    world.limits[TENANT.id] = 10**9

    async def steps() -> None:
        world.renew()
        for _ in range(60):
            (await world.budgets.hold([TENANT], tokens=500, nano=0)).settle(500)
            world.passes(5)
            world.renew()

    asyncio.run(steps())
    account = next(a for a in world.budgets._accounts.values() if a.budget == TENANT.id)
    assert 0.9 * 100 * 600 <= account.free <= 2.2 * 100 * 600


def test_what_is_not_used_any_more_is_given_back(world: World) -> None:
    test_it_has_ahead_what_is_used_in_ten_minutes(world)
    account = next(a for a in world.budgets._accounts.values() if a.budget == TENANT.id)

    for _ in range(60):
        world.passes(61)
        world.renew()

    assert account.free <= 2 * module.FLOOR[BudgetUnit.TOKENS]


def test_parts_and_what_was_spent_outlive_the_process_and_what_was_open_is_counted(
    world: World, tmp_path: Path
) -> None:
    charges: list[tuple[str, int]] = []

    async def steps() -> None:
        (await world.budgets.hold([TOKENS, TENANT], tokens=100, nano=0)).settle(60)
        charges.extend((await world.budgets.hold([TOKENS, TENANT], tokens=100, nano=0)).charges())

    run(tmp_path, steps(), world)
    world.budgets.close()
    again = world.start()
    again.settle_left(charges, 40)

    spent = {account.budget: (account.spent, account.held) for account in again._accounts.values()}
    assert spent[TOKENS.id] == spent[TENANT.id] == (100, 0)
    assert {account.granted > 0 for account in again._accounts.values() if account.spent} == {True}


def test_a_new_period_is_asked_for_early_and_the_old_one_is_reported_to_its_end(world: World) -> None:
    world.at = datetime(2026, 6, 30, 23, 50, tzinfo=UTC)
    asks = world.renew()
    assert {ask.period_start for ask in asks if ask.budget == TOKENS.id} == {
        datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC),
    }  # fmt: skip

    world.passes(20 * 60)
    world.away = True
    hold = asyncio.run(world.budgets.hold([TOKENS], tokens=40, nano=0))

    assert hold.parts[0][0].period_start == datetime(2026, 7, 1, tzinfo=UTC)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 100), st.sampled_from(["keep", "end", "kill"])), max_size=25)
)
def test_whatever_happens_what_is_spent_is_within_the_budget(tmp_path: Path, moves: list[tuple[int, int, str]]) -> None:
    path = tmp_path / "budgets"
    path.unlink(missing_ok=True)
    world = World(path)
    open_: list[tuple[Hold, int]] = []
    used = 0

    async def steps() -> None:
        nonlocal used
        for tokens, part, what in moves:
            try:
                hold = await world.budgets.hold([TOKENS], tokens=tokens, nano=0)
            except Refusal:
                continue
            open_.append((hold, tokens * part // 100))
            if what == "end":
                hold, real = open_.pop(0)
                used += real
                hold.settle(real)
            elif what == "kill":
                left = [(hold.charges(), real) for hold, real in open_]
                open_.clear()
                world.budgets.close()
                world.start()
                for charges, real in left:
                    used += real
                    world.budgets.settle_left(charges, real)
        for hold, real in open_:
            used += real
            hold.settle(real)

    run(tmp_path, steps(), world)
    world.budgets.close()
    assert used <= 1000


def test_a_request_beyond_all_reason_is_refused_and_stops_nobody_elses(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        for tokens in (2**62, 2**64, 10**40):
            with pytest.raises(Refusal) as refused:
                await world.budgets.hold([TOKENS, MONEY], tokens=tokens, nano=10**6)
            assert refused.value.status == 402
        (await world.budgets.hold([TOKENS, MONEY], tokens=10, nano=0)).settle(10)

    run(tmp_path, steps(), world)


def test_who_waits_for_more_parts_than_go_into_one_ask_is_not_refused(world: World, tmp_path: Path) -> None:
    several = [
        BudgetConfig(id=f"key:{number}:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.MONTH, amount=1000)
        for number in range(2 * MAX_LEASES + 50)
    ]
    world.limits |= {each.id: 1000 for each in several}
    world.budgets.configure(several)

    async def steps() -> None:
        holds = [world.budgets.hold([each], tokens=900, nano=0) for each in several]
        found = await asyncio.wait_for(asyncio.gather(*holds), 30)

        assert len(found) == len(several)

    run(tmp_path, steps(), world)


def test_all_of_a_burst_get_their_part_however_slowly_it_is_answered(tmp_path: Path) -> None:
    wide = BudgetConfig(id="key:k1:tokens", unit=BudgetUnit.TOKENS, period=BudgetPeriod.MONTH, amount=10**7)
    budgets = Budgets(tmp_path / "budgets")
    budgets.configure([wide])

    async def answering() -> None:
        while True:
            await budgets.wanted.wait()
            asks = budgets.asks()
            for _ in range(10):  # others come meanwhile, and ask again at once after it
                await asyncio.sleep(0)
            leases = [
                Lease(budget=ask.budget, period_start=ask.period_start, granted=max(ask.keep, min(ask.want, 10**7)))
                for ask in asks
            ]
            budgets.answered(asks, leases)

    async def asking(number: int) -> Hold:
        for _ in range(number):
            await asyncio.sleep(0)
        return await budgets.hold([wide], tokens=8192, nano=0)

    async def steps() -> None:
        answers = asyncio.create_task(answering())
        holds = await asyncio.gather(*(asking(number) for number in range(200)))
        answers.cancel()

        assert sum(amount for hold in holds for _, _, amount in hold.parts) == 200 * 8192

    asyncio.run(steps())


def test_where_the_control_plane_knows_no_such_period_it_is_503_and_the_others_go_on(
    world: World, tmp_path: Path
) -> None:
    world.forgets = {MONEY.id}

    async def steps() -> None:
        with pytest.raises(Refusal) as refused:
            await world.budgets.hold([MONEY], tokens=10, nano=1)
        await world.budgets.hold([TOKENS], tokens=10, nano=0)

        assert (refused.value.status, refused.value.code) == (503, "budget_unavailable")

    run(tmp_path, steps(), world)


def test_the_part_of_a_budget_that_is_configured_no_more_is_given_back_once(world: World) -> None:
    world.renew()
    world.budgets.configure([TENANT])
    asks = world.renew()
    world.passes(10)
    again = world.renew()

    (ask,) = [ask for ask in asks if ask.budget == TOKENS.id]
    assert (ask.spent, ask.keep, ask.need, ask.want) == (0, 0, 0, 0)
    assert TOKENS.id not in {ask.budget for ask in again}


def test_what_is_still_running_on_such_a_budget_is_told_when_it_has_ended(world: World) -> None:
    world.renew()
    hold = asyncio.run(world.budgets.hold([TOKENS], tokens=40, nano=0))

    world.budgets.configure([TENANT])
    first = world.renew()
    hold.settle(30)
    then = world.renew()

    assert [(ask.spent, ask.keep) for ask in first if ask.budget == TOKENS.id] == [(0, 40)]
    assert [(ask.spent, ask.keep) for ask in then if ask.budget == TOKENS.id] == [(30, 30)]


def test_at_its_end_it_gives_back_what_it_did_not_use_and_asks_anew_afterwards(world: World, tmp_path: Path) -> None:
    async def steps() -> None:
        (await world.budgets.hold([TOKENS], tokens=100, nano=0)).settle(60)
        asks = {ask.budget: ask for ask in world.budgets.farewell()}

        assert (asks[TOKENS.id].spent, asks[TOKENS.id].keep, asks[TOKENS.id].want) == (60, 60, 60)
        world.budgets.close()
        again = world.start()
        (await again.hold([TOKENS], tokens=100, nano=0)).settle(1)

    run(tmp_path, steps(), world)


def test_where_others_lack_it_keeps_no_more_than_it_may_and_asks_soon_again(world: World) -> None:
    world.renew()
    account = next(a for a in world.budgets._accounts.values() if a.budget == TENANT.id)
    before = account.free

    world.ahead = 50
    world.passes(61)
    world.renew()
    world.passes(5)
    resting = world.renew()
    world.passes(11)
    asks = world.renew()

    assert before == 10_000
    assert account.free == 50
    assert TENANT.id not in {ask.budget for ask in resting}
    assert [ask.keep for ask in asks if ask.budget == TENANT.id] == [50]


def test_accounts_of_days_that_are_over_make_room_for_others(world: World) -> None:
    for _ in range(5):
        world.renew()
        world.passes(86_400)
    world.renew()

    assert len([a for a in world.budgets._accounts.values() if a.budget == MONEY.id]) <= 2
