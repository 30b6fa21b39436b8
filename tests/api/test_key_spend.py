"""What keys have spent of their budgets, over HTTP and on the command line's columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from controlplane.cli.nouns import cell, noun
from tenants.budget_periods import end_of, start_of
from tenants.models import BudgetLease, Endpoint, EndpointKey
from tenants.states import BudgetPeriod, Role
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

NOW = datetime.now(UTC)
KEYS = "tenants/acme/endpoints/chat/keys"
BODY = {
    "name": "chat",
    "model": "llama-3-1-8b",
    "unit": {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 4, "memory_gib": 16},
}


@pytest.fixture
def tenant():
    row = factories.tenant(name="acme")
    factories.generous(row)
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "simulated": True})
    factories.host(provider)
    factories.served_model()
    return row


@pytest.fixture
def me(api, tenant):
    found = api(factories.member(tenant))
    assert found.post("tenants/acme/endpoints", BODY).status == 201
    return found


def spend(tenant, budget: str, spent: int, *, start: datetime, lost: int = 0) -> None:
    """Say what one gateway used of a budget in a period."""
    BudgetLease.objects.create(
        tenant=tenant, gateway=factories.gateway(tenant), budget=budget, granted=spent, spent=spent, lost=lost,
        period_start=start, updated_at=NOW,
    )  # fmt: skip


def shown(me) -> dict[str, dict[str, object]]:
    return {key["name"]: key for key in me.get(KEYS).body["items"]}


def test_a_key_says_what_it_spent_of_each_budget_in_the_present_period(me, tenant):
    made = me.post(KEYS, {"name": "ci", "budget_tokens": 1000, "budget_money": "2.50", "budget_period": "day"})
    key = EndpointKey.objects.get(public_id=made.body["id"])
    day = start_of(BudgetPeriod.DAY, NOW)
    spend(tenant, f"key:{key.limits_id}:tokens", 300, start=day)
    spend(tenant, f"key:{key.limits_id}:tokens", 40, start=day, lost=5)
    spend(tenant, f"key:{key.limits_id}:tokens", 999, start=day - timedelta(days=1))
    spend(tenant, f"key:{key.limits_id}:money", 1_234_567_890, start=day)

    found = shown(me)["ci"]

    assert (found["spent_tokens"], found["spent_money"]) == (345, "1.234568")
    assert datetime.fromisoformat(str(found["budget_starts_at"])) == day
    assert datetime.fromisoformat(str(found["budget_ends_at"])) == end_of(BudgetPeriod.DAY, NOW)
    assert (made.body["spent_tokens"], made.body["spent_money"]) == (0, "0.000000")


def test_a_key_without_a_budget_says_nothing_of_it_and_a_rolled_one_shares_what_is_spent(me, tenant):
    made = me.post(KEYS, {"name": "ci", "budget_tokens": 1000})
    rolled = me.post(f"{KEYS}/{made.body['id']}/roll", {})
    key = EndpointKey.objects.get(public_id=made.body["id"])
    spend(tenant, f"key:{key.limits_id}:tokens", 70, start=start_of(BudgetPeriod.MONTH, NOW))

    found = {key["id"]: key for key in me.get(KEYS).body["items"]}

    assert [found[each.body["id"]]["spent_tokens"] for each in (made, rolled)] == [70, 70]
    assert [found[each.body["id"]]["spent_money"] for each in (made, rolled)] == [None, None]
    (first,) = (key for key in found.values() if key["budget_tokens"] is None)
    assert {first[name] for name in ("spent_tokens", "spent_money", "budget_starts_at", "budget_ends_at")} == {None}


def test_a_list_of_many_keys_takes_no_query_for_each(me):
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as seen:
            assert me.get(KEYS).status == 200
        return len(seen)

    me.post(KEYS, {"name": "one", "budget_tokens": 1000})
    before = queries()
    for n in range(5):
        me.post(KEYS, {"name": f"more-{n}", "budget_tokens": 1000, "budget_period": "week"})

    assert queries() == before


def test_other_tenants_and_viewers_learn_nothing_of_it(api, me, tenant):
    row = Endpoint.objects.get()
    other = factories.tenant(name="globex")
    EndpointKey.objects.filter(endpoint=row).update(budget_tokens=10)
    key = EndpointKey.objects.get()
    spend(other, f"key:{key.limits_id}:tokens", 7, start=start_of(BudgetPeriod.MONTH, NOW))

    (found,) = shown(me).values()

    assert found["spent_tokens"] == 0
    assert api(factories.member(tenant, Role.VIEWER)).get(KEYS).status == 403
    assert api(factories.member(other, Role.OWNER)).get(KEYS).status == 404


def test_the_command_line_has_columns_for_it(me):
    me.post(KEYS, {"name": "ci", "budget_tokens": 1000, "budget_money": "2.50"})
    found = shown(me)["ci"]
    columns = {column.head: column for column in noun("keys").columns}

    assert cell(found, columns["TOKENS SPENT"]) == "0"
    assert Decimal(cell(found, columns["MONEY SPENT"])) == 0
    assert "(in " in cell(found, columns["ANEW"])
