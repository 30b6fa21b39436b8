"""`/agent/v1/leases`: parts of budgets for gateways, and what the configuration says of limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioners.gateway.protocol import BudgetPeriod
from tenants import budget_periods, states
from tenants.key_limits import KeyLimits
from tenants.models import BudgetLease, Event, GatewayReplica, Quota
from tenants.operations import budget_leases, endpoints, quotas, tenants
from tenants.operations.budget_leases import Ask
from tenants.states import PlatformRole
from tenants.transactions import acting
from tests import factories
from tests.provisioners.test_agent_api import NOW, Gateway, make_world

pytestmark = pytest.mark.usefixtures("db")

MONTH = BudgetPeriod.MONTH.start(NOW)


@pytest.fixture
def world() -> SimpleNamespace:
    return make_world()


@pytest.fixture
def operator() -> Any:
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def limit(world: SimpleNamespace, **fields: Any) -> None:
    endpoints.limit_key(endpoint=world.endpoint, key=world.key, limits=KeyLimits(**fields), actor=world.member, now=NOW)


def another(world: SimpleNamespace, *, removed_at: datetime | None = None) -> UUID:
    """Return one more gateway of the tenant."""
    return factories.gateway(world.tenant, removed_at=removed_at).pk


class Asker:
    """A gateway's side of leasing."""

    def __init__(self, uid: UUID) -> None:
        self.uid = uid
        self.memory = uuid4()
        self.serial = 0
        self.granted = 0
        self.ahead: int | None = None

    def ask(self, budget: str, *, spent: int = 0, keep: int = 0, need: int = 0, want: int = 0) -> int | None:
        from provisioners.agent_api.polling import acting_gateway

        self.serial += 1
        keep = max(keep, spent)
        need = max(need, keep)
        ask = Ask(budget, MONTH, spent, keep, need, max(want, need))
        (part,) = budget_leases.lease(
            gateway=self.uid,
            serial=self.serial,
            memory=self.memory,
            asks=[ask],
            actor=acting_gateway(self.uid),
            now=NOW,
        )
        self.granted, self.ahead = part.granted or 0, part.ahead
        return part.granted


def test_one_gateway_gets_what_it_wants_as_far_as_it_is_there(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one = Asker(world.gateway.uid)
    budget = f"key:{world.key.public_id}:tokens"

    assert one.ask(budget, want=300) == 300
    assert one.ask(budget, spent=250, keep=300, need=700, want=900) == 900
    assert one.ask(budget, spent=900, keep=900, need=1200, want=5000) == 1000
    assert one.ask(budget, spent=900, keep=950) == 950
    assert BudgetLease.objects.get().spent == 900


def test_several_share_and_what_one_gives_back_the_other_can_have(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one, two = Asker(world.gateway.uid), Asker(another(world))
    budget = f"key:{world.key.public_id}:tokens"

    assert one.ask(budget, want=600) == 600
    assert two.ask(budget, need=100, want=800) == 200
    assert two.ask(budget, keep=200, need=500, want=800) == 400
    assert one.ask(budget, keep=100) == 100
    assert two.ask(budget, keep=400, need=500, want=800) == 650


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 400), st.integers(0, 400), st.integers(0, 900)), max_size=12)
)
def test_whatever_they_ask_all_parts_together_are_never_more_than_the_budget(
    world: SimpleNamespace, moves: list[tuple[int, int, int, int]]
) -> None:
    limit(world, budget_tokens=1000)
    budget = f"key:{world.key.public_id}:tokens"
    BudgetLease.objects.all().delete()
    if not hasattr(world, "askers"):
        world.askers = [Asker(world.gateway.uid), Asker(another(world))]
    askers = world.askers
    for asker in askers:
        asker.granted = 0

    for who, less, more, ahead in moves:
        asker = askers[who]
        keep = max(asker.granted - less, 0)
        asker.ask(budget, spent=keep // 2, keep=keep, need=keep + more, want=keep + more + ahead)

        assert sum(each.granted for each in askers) <= 1000


def test_a_word_that_comes_late_changes_nothing(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    world.gateway.enrol()
    budget = f"key:{world.key.public_id}:tokens"

    first = leases(world.gateway, 7, ask(budget, want=500))
    late = leases(world.gateway, 6, ask(budget, want=900))

    assert (first.status_code, late.status_code, late.json()["code"]) == (200, 409, "stale-lease")
    assert late.json()["data"]["serial"] == 7
    assert BudgetLease.objects.get().granted == 500


def test_a_budget_of_a_tenant_above_holds_for_all_below_it(world: SimpleNamespace, operator: Any) -> None:
    sister = factories.tenant(parent=world.parent)
    quotas.set_limit(tenant=world.parent, dimension="tokens_month", amount=1000, actor=operator, now=NOW)
    quotas.set_limit(tenant=world.tenant, dimension="tokens_month", amount=800, actor=operator, now=NOW)
    one = Asker(world.gateway.uid)
    two = Asker(factories.gateway(sister).pk)

    assert one.ask("tenant:tokens", want=5000) == 800
    assert two.ask("tenant:tokens", want=5000) == 100
    assert two.ask("tenant:tokens", keep=100, need=5000) == 200
    assert two.ask("tenant:money", want=5000) is None


def test_money_of_a_tenant_is_counted_in_billionths(world: SimpleNamespace, operator: Any) -> None:
    quotas.set_limit(tenant=world.tenant, dimension="token_spend_month", amount=3, actor=operator, now=NOW)

    assert Asker(world.gateway.uid).ask("tenant:money", want=10**12) == 3 * 10**9


def test_what_a_gateway_spent_of_a_tenants_budget_is_its_use_of_the_quota(
    world: SimpleNamespace, operator: Any
) -> None:
    quotas.set_limit(tenant=world.tenant, dimension="tokens_month", amount=1000, actor=operator, now=NOW)
    Asker(world.gateway.uid).ask("tenant:tokens", spent=120, keep=300)

    with acting(operator):
        level = quotas.position(world.tenant, ["tokens_month"])[-1]

    assert level.usage.of("tokens_month") == 120


def test_what_a_removed_gateway_did_not_spend_is_free_again_after_a_while(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one, two = Asker(world.gateway.uid), Asker(another(world))
    budget = f"key:{world.key.public_id}:tokens"
    one.ask(budget, spent=100, keep=100, want=800)

    GatewayReplica.objects.filter(pk=one.uid).update(removed_at=NOW - timedelta(minutes=9))
    soon = two.ask(budget, want=5000)
    GatewayReplica.objects.filter(pk=one.uid).update(removed_at=NOW - timedelta(minutes=11))
    later = two.ask(budget, keep=soon or 0, want=5000)

    assert (soon, later) == (200, 900)


def test_a_gateway_that_lost_its_memory_has_used_up_what_it_had(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one = Asker(world.gateway.uid)
    budget = f"key:{world.key.public_id}:tokens"
    one.ask(budget, spent=100, keep=100, want=400)

    one.memory = uuid4()
    after = one.ask(budget, want=5000)
    again = one.ask(budget, keep=after or 0, want=5000)

    assert (after, again) == (600, 600)
    assert BudgetLease.objects.get().lost == 400


def test_of_a_limit_that_was_lowered_only_what_is_spent_stays(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one = Asker(world.gateway.uid)
    budget = f"key:{world.key.public_id}:tokens"
    one.ask(budget, want=800)

    limit(world, budget_tokens=300)

    assert one.ask(budget, spent=200, keep=800, want=800) == 300
    assert one.ask(budget, spent=200, keep=300, want=800) == 300


def test_a_budget_that_is_there_no_more_limits_nothing(world: SimpleNamespace) -> None:
    world.gateway.enrol()

    answer = leases(world.gateway, 1, ask(f"key:{world.key.public_id}:tokens", want=5), ask("tenant:tokens"))

    assert [(lease["granted"], lease["left"]) for lease in answer.json()["leases"]] == [(None, None)] * 2


def test_who_is_alone_may_keep_what_it_likes_and_several_less_as_the_budget_runs_out(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000)
    one, two = Asker(world.gateway.uid), Asker(another(world))
    budget = f"key:{world.key.public_id}:tokens"

    one.ask(budget, want=400)
    alone = one.ahead
    two.ask(budget, want=400)
    early = two.ahead
    two.ask(budget, spent=400, keep=400, want=400)

    assert (alone, early, two.ahead) == (None, 250, 150)


def test_what_one_has_idle_comes_to_another_who_lacks(world: SimpleNamespace, operator: Any) -> None:
    quotas.set_limit(tenant=world.parent, dimension="tokens_month", amount=1000, actor=operator, now=NOW)
    idle, busy = Asker(world.gateway.uid), Asker(factories.gateway(factories.tenant(parent=world.parent)).pk)
    idle.ask("tenant:tokens", want=900)

    first = busy.ask("tenant:tokens", need=300, want=300)
    idle.ask("tenant:tokens", keep=idle.granted)
    kept = idle.ahead
    idle.ask("tenant:tokens", keep=kept or 0)
    then = busy.ask("tenant:tokens", keep=first or 0, need=300, want=300)

    assert (first, kept, then) == (100, 0, 300)
    assert set(BudgetLease.objects.values_list("short", flat=True)) == {False}


def test_a_limit_that_has_ended_is_nothing_and_not_everything(world: SimpleNamespace, operator: Any) -> None:
    quotas.set_limit(
        tenant=world.tenant, dimension="tokens_month", amount=1000, until=NOW + timedelta(days=1), actor=operator,
        now=NOW,
    )  # fmt: skip
    one = Asker(world.gateway.uid)
    before = one.ask("tenant:tokens", want=300)
    Quota.objects.filter(dimension="tokens_month").update(until=NOW - timedelta(seconds=1))

    assert (before, one.ask("tenant:tokens", spent=50, keep=300, want=400)) == (300, 50)


@pytest.mark.parametrize("start", [MONTH - timedelta(days=400), MONTH + timedelta(days=400)])
def test_a_period_that_is_none_of_now_costs_the_others_nothing(world: SimpleNamespace, start: datetime) -> None:
    limit(world, budget_tokens=1000)
    world.gateway.enrol()
    budget = f"key:{world.key.public_id}:tokens"

    answer = leases(world.gateway, 1, {**ask(budget), "period_start": start.isoformat()}, ask(budget, want=70))

    assert [lease["granted"] for lease in answer.json()["leases"]] == [70]
    assert BudgetLease.objects.count() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"period_start": (MONTH + timedelta(hours=1)).isoformat()},
        {"spent": 2, "keep": 1},
        {"need": 2, "want": 1},
        {"want": 2**63},
        {"want": -1},
    ],
)
def test_an_ask_that_cannot_be_is_refused(world: SimpleNamespace, change: dict[str, Any]) -> None:
    limit(world, budget_tokens=1000)
    world.gateway.enrol()

    answer = leases(world.gateway, 1, {**ask(f"key:{world.key.public_id}:tokens"), **change})

    assert answer.status_code == 400
    assert not BudgetLease.objects.exists()


# --- the configuration ------------------------------------------------------------------------------


def test_a_keys_limits_are_in_the_next_configuration(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    before = world.gateway.document()

    limit(
        world, requests_per_minute=60, tokens_per_minute=9000, budget_tokens=10**6, budget_money=Decimal("2.50"),
        budget_period="week",
    )  # fmt: skip
    after = world.gateway.document(before.version)

    (key,) = after.endpoints[0].keys
    assert (key.rates.requests_per_minute, key.rates.tokens_per_minute) == (60, 9000)
    name = world.key.public_id
    assert [(b.id, b.period.value, b.amount, b.currency) for b in key.budgets] == [
        (f"key:{name}:tokens", "week", 10**6, ""),
        (f"key:{name}:money", "week", 2_500_000_000, "EUR"),
    ]
    assert after.endpoints[0].context_tokens == 131_072
    assert Event.objects.filter(kind="endpoint.key-limited").count() == 1


def test_a_rolled_key_shares_the_limits_of_the_one_before(world: SimpleNamespace) -> None:
    limit(world, budget_tokens=1000, requests_per_minute=5)
    made, _ = endpoints.roll_key(endpoint=world.endpoint, key=world.key, overlap_s=3600, actor=world.member, now=NOW)
    again, _ = endpoints.roll_key(endpoint=world.endpoint, key=made, overlap_s=3600, actor=world.member, now=NOW)
    endpoints.limit_key(
        endpoint=world.endpoint, key=again, limits=KeyLimits(budget_tokens=500), actor=world.member, now=NOW
    )
    world.gateway.enrol()

    keys = world.gateway.document().endpoints[0].keys

    assert len(keys) == 3
    assert {key.limits_id or key.id for key in keys} == {world.key.public_id}
    assert {key.budgets[0].id for key in keys} == {f"key:{world.key.public_id}:tokens"}
    assert {(key.budgets[0].amount, key.rates.requests_per_minute) for key in keys} == {(500, None)}
    assert Asker(world.gateway.uid).ask(f"key:{world.key.public_id}:tokens", want=900) == 500


def test_rates_of_the_path_reach_the_gateway_as_the_smallest_and_in_parts(
    world: SimpleNamespace, operator: Any
) -> None:
    world.gateway.enrol()
    before = world.gateway.document()
    tenants.set_policy(tenant=world.parent, policy={"requests_per_minute": 100}, actor=operator, now=NOW)
    tenants.set_policy(
        tenant=world.tenant, policy={"requests_per_minute": 60, "tokens_per_minute": 7}, actor=operator, now=NOW
    )

    alone = world.gateway.document(before.version)
    another(world)
    GatewayReplica.objects.filter(pk=world.gateway.uid).update(config_version=alone.version + 1)
    shared = world.gateway.document(alone.version)

    assert (alone.rates.requests_per_minute, alone.rates.tokens_per_minute) == (60, 7)
    assert (shared.rates.requests_per_minute, shared.rates.tokens_per_minute) == (30, 3)


def test_a_limit_of_tokens_anywhere_on_the_path_is_a_budget_whose_size_is_not_told(
    world: SimpleNamespace, operator: Any
) -> None:
    world.gateway.enrol()
    before = world.gateway.document()
    quotas.set_limit(tenant=world.parent, dimension="tokens_month", amount=1000, actor=operator, now=NOW)
    after = world.gateway.document(before.version)
    quotas.remove(row=Quota.objects.get(dimension="tokens_month"), actor=operator, now=NOW)
    gone = world.gateway.document(after.version)

    assert [(b.id, b.amount) for b in after.budgets] == [("tenant:tokens", None)]
    assert (before.budgets, gone.budgets) == ((), ())


def test_prices_of_tokens_are_told_from_each_change_on(world: SimpleNamespace) -> None:
    early, later = NOW - timedelta(days=10), NOW + timedelta(days=10)
    factories.token_price(Decimal("0.000002"), valid_from=early)
    factories.token_price(Decimal("0.000003"), valid_from=later)
    world.gateway.enrol()

    found = world.gateway.document().endpoints[0].token_prices

    assert [(price.starts_at, price.nano) for price in found] == [(early, 2000), (later, 3000)]


def ask(budget: str, **fields: Any) -> dict[str, Any]:
    return {
        "budget": budget, "period_start": MONTH.isoformat(), "spent": 0, "keep": 0, "need": 0, "want": 0, **fields,
    }  # fmt: skip


def leases(gateway: Gateway, serial: int, *asks: dict[str, Any]) -> Any:
    body = {"gateway_uid": str(gateway.uid), "serial": serial, "memory": str(gateway.uid), "asks": list(asks)}
    return gateway.post("leases", body)


def test_gateways_and_we_agree_when_a_period_begins() -> None:
    for day in range(800):
        at = datetime(2026, 1, 1, 23, 59, tzinfo=UTC) + timedelta(days=day)
        for period in BudgetPeriod:
            ours = states.BudgetPeriod(period.value)
            assert period.start(at) == budget_periods.start_of(ours, at)
            assert period.end(at) == budget_periods.end_of(ours, at)


def test_periods_begin_in_utc() -> None:
    at = datetime(2026, 3, 1, 0, 30, tzinfo=UTC).astimezone()

    assert BudgetPeriod.DAY.start(at) == datetime(2026, 3, 1, tzinfo=UTC)
    assert BudgetPeriod.WEEK.start(at) == datetime(2026, 2, 23, tzinfo=UTC)
    assert BudgetPeriod.MONTH.end(at) == datetime(2026, 4, 1, tzinfo=UTC)
    assert BudgetPeriod.MONTH.end(datetime(2026, 12, 31, 23, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
