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
from tenants.states import BudgetPeriod
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


def test_what_each_key_used_stands_beside_it(world, key, browse):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    EndpointUsage.objects.filter(endpoint_id=world.acme.endpoint.pk).delete()
    EndpointUsage.objects.create(
        id=uuid4(), tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id=key.public_id, revision=1,
        hour=hour, requests=12, errors=1, prompt_tokens=100, completion_tokens=20,
    )  # fmt: skip

    shown = text(browse(world.acme.member).get(KEYS))

    assert "12 requests, 120 tokens 1 error" in shown


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
