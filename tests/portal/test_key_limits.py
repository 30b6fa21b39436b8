"""Limits of keys and of a tenant's rates, as people set and see them."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from tenants.budget_periods import start_of
from tenants.models import BudgetLease, EndpointKey, EndpointUsage
from tenants.operations import quotas
from tenants.states import BudgetPeriod, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
KEYS = "/t/acme/endpoints/chat/keys"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def key(world):
    return EndpointKey.objects.filter(endpoint=world.acme.endpoint).earliest("created_at")


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def test_limits_are_set_in_the_portal_and_said_in_words_with_what_was_used(world, key, browse):
    mia = browse(world.acme.member)
    given = {"requests_per_minute": "60", "tokens_per_minute": "", "budget_tokens": "5000000", "budget_money": "12.50",
             "budget_period": "week"}  # fmt: skip

    answer = mia.post(f"{KEYS}/{key.public_id}/limits", given)
    gateway = factories.gateway(world.acme.tenant)
    for unit, spent in (("tokens", 1234), ("money", 3_210_000_000)):
        BudgetLease.objects.create(
            tenant=world.acme.tenant, gateway=gateway, budget=f"key:{key.public_id}:{unit}", granted=10**10,
            spent=spent, period_start=start_of(BudgetPeriod.WEEK, datetime.now(UTC)), updated_at=datetime.now(UTC),
        )  # fmt: skip
    shown = text(mia.get(KEYS))

    key.refresh_from_db()
    assert answer.status_code == 302
    assert (key.requests_per_minute, key.tokens_per_minute, key.budget_tokens) == (60, None, 5_000_000)
    assert (key.budget_money, key.budget_period) == (Decimal("12.50"), "week")
    assert "60 requests a minute" in shown
    assert re.search(r"1.234 of 5.000.000 tokens, each week", shown)
    assert "3.21 of 12.50 EUR, each week" in shown


def test_a_key_is_made_that_may_ask_for_chat_only_and_says_so(world, browse):
    mia = browse(world.acme.member)

    made = mia.post(f"{KEYS}/new", {"name": "kiosk", "scope": "chat"})
    assert made.status_code == 302
    assert EndpointKey.objects.get(name="kiosk").scopes == ["chat"]
    assert "only Chat" in mia.get(KEYS).content.decode()
    mia.post(f"{KEYS}/new", {"name": "forged", "scope": "pause"})
    assert not EndpointKey.objects.filter(name="forged").exists()
    assert "A key may use one or more of" in mia.get(KEYS).content.decode()


def test_what_each_key_used_stands_beside_it(world, key, browse):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    EndpointUsage.objects.filter(endpoint_id=world.acme.endpoint.pk).delete()
    EndpointUsage.objects.create(
        id=uuid4(), tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id=key.public_id, revision=1,
        hour=hour, requests=12, errors=1, prompt_tokens=100, completion_tokens=20,
    )  # fmt: skip

    shown = text(browse(world.acme.member).get(KEYS))

    assert "12 requests 120 tokens 1 error" in shown


def test_large_figures_of_a_key_are_written_as_people_read_them(world, key, browse):
    EndpointUsage.objects.filter(endpoint_id=world.acme.endpoint.pk).delete()
    EndpointUsage.objects.create(
        id=uuid4(), tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id=key.public_id, revision=1,
        hour=datetime.now(UTC).replace(minute=0, second=0, microsecond=0), requests=25948, errors=1046,
        prompt_tokens=15_000_000, completion_tokens=879_247,
    )  # fmt: skip

    shown = text(browse(world.acme.member).get(KEYS))

    assert "25,948 requests 15.9M tokens 1,046 errors" in shown


@pytest.mark.parametrize("given", [{"requests_per_minute": "0"}, {"budget_tokens": "many"}, {"budget_money": "-1"}])
def test_a_limit_that_cannot_be_is_said_and_changes_nothing(world, key, browse, given):
    mia = browse(world.acme.member)

    answer = mia.post(f"{KEYS}/{key.public_id}/limits", given)
    shown = text(mia.get(answer["Location"]))

    key.refresh_from_db()
    assert answer.status_code == 302
    assert re.search(r"Give a whole number|A budget is an amount", shown)
    assert (key.requests_per_minute, key.budget_tokens, key.budget_money) == (None, None, None)


def test_rates_of_a_tenant_are_set_with_its_policy_and_said_there(world, browse):
    owner = browse(world.acme.owner)
    settings = "/t/acme/settings"
    version = str(world.acme.tenant.version)

    answer = owner.post(
        f"{settings}/policy", {"requests_per_minute": "600", "tokens_per_minute": "", "version": version}
    )
    shown = text(owner.get(settings))

    world.acme.tenant.refresh_from_db()
    assert answer.status_code == 302
    assert world.acme.tenant.policy["requests_per_minute"] == 600
    assert "Of all endpoints together. At most 600, as" in shown


def spend(world, budget: str, spent: int, period: BudgetPeriod = BudgetPeriod.MONTH) -> None:
    """Say what a gateway used of a budget in its present period."""
    now = datetime.now(UTC)
    BudgetLease.objects.create(
        tenant=world.acme.tenant, gateway=factories.gateway(world.acme.tenant), budget=budget, granted=spent,
        spent=spent, period_start=start_of(period, now), updated_at=now,
    )  # fmt: skip


def test_a_budget_of_a_key_that_is_used_up_says_until_when_and_what_helps(world, key, browse):
    mia = browse(world.acme.member)
    EndpointKey.objects.filter(pk=key.pk).update(budget_tokens=1000, budget_period="day")
    spend(world, f"key:{key.public_id}:tokens", 850, BudgetPeriod.DAY)
    near = text(mia.get(KEYS))
    spend(world, f"key:{key.public_id}:tokens", 150, BudgetPeriod.DAY)
    over = text(mia.get(KEYS))

    assert "Nearly used up" in near
    assert "refused" not in near.split("Limits of the key")[0]
    assert f"The budget of the key {key.name} is used up" in over
    assert re.search(r"1.000 of 1.000 tokens, each day. Its requests are refused \(402\) until", over)
    assert "Raise the budget under Limits" in over


def limited(world, dimension: str, amount: int) -> None:
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    quotas.set_limit(
        tenant=world.acme.tenant, dimension=dimension, amount=amount, actor=operator, now=datetime.now(UTC)
    )


def test_a_tenants_tokens_that_are_used_up_stand_on_its_endpoints_and_its_quota_with_the_way_to_more(world, browse):
    mia = browse(world.acme.member)
    limited(world, "tokens_month", 1000)
    before = text(mia.get("/t/acme/endpoints/chat"))
    spend(world, "tenant:tokens", 1000)
    use(world, tokens=700)
    endpoint, page = mia.get("/t/acme/endpoints/chat"), mia.get("/t/acme/quota?of=tokens_month")

    assert "used up" not in before
    for answer in (endpoint, page):
        assert "This month's tokens are used up" in text(answer)
        assert re.search(r"1.000 tokens of 1.000 tokens are used. Requests are refused \(402\) until", text(answer))
        assert "/t/acme/quota/ask?of=tokens_month" in answer.content.decode()
    assert "begins anew" in text(page)
    assert re.search(r"chat acme 700", text(page))
    assert re.search(r"others -- 300", text(page))
    assert mia.get("/t/acme/quota/ask?of=tokens_month").status_code == 200


def test_money_for_tokens_that_is_nearly_used_up_says_so(world, browse):
    limited(world, "token_spend_month", 10)
    spend(world, "tenant:money", 8_500_000_000)

    shown = text(browse(world.acme.member).get("/t/acme/endpoints/chat/keys"))

    assert "This month's money for tokens is nearly used up" in shown
    assert "9 EUR of 10 EUR are used" in shown


def use(world, *, tokens: int) -> None:
    """Say that the endpoint used so many tokens this month."""
    now = datetime.now(UTC)
    EndpointUsage.objects.create(
        tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id="", revision=1,
        hour=now.replace(minute=0, second=0, microsecond=0), requests=1, errors=0, prompt_tokens=tokens - 100,
        completion_tokens=100,
    )  # fmt: skip
