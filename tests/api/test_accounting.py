"""What is counted at endpoints, over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tenants.models import Endpoint, EndpointKey, EndpointMinute, EndpointUsage
from tenants.states import PlatformRole, Role
from tenants.usage_times import BETWEEN_BOUNDS_US, TTFT_BOUNDS_MS, counted
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

NOW = datetime.now(UTC)
BODY = {
    "name": "chat",
    "model": "llama-3-1-8b",
    "unit": {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 4, "memory_gib": 16},
}


@pytest.fixture
def tenant():
    row = factories.tenant(name="acme")
    factories.generous(row)
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]})
    factories.host(provider)
    factories.served_model()
    return row


@pytest.fixture
def me(api, tenant):
    found = api(factories.member(tenant))
    assert found.post("tenants/acme/endpoints", BODY).status == 201
    return found


def usage(*, hours_ago: int, key: str, revision: int = 1, **fields) -> None:
    row = Endpoint.objects.get()
    hour = (NOW - timedelta(hours=hours_ago)).replace(minute=0, second=0, microsecond=0)
    EndpointUsage.objects.create(
        id=uuid4(), tenant_id=row.tenant_id, endpoint_id=row.pk, key_id=key, revision=revision, hour=hour,
        **{"requests": 1, "errors": 0, "prompt_tokens": 10, "completion_tokens": 20, **fields},
    )  # fmt: skip


def test_calls_are_summed_by_key_model_and_revision_with_their_times(me):
    key = EndpointKey.objects.get()
    ttft = counted([120, 130, 140], TTFT_BOUNDS_MS)
    usage(hours_ago=2, key=key.public_id, requests=3, duration_ms=900, ttft_counts=ttft)
    usage(
        hours_ago=1, key=key.public_id, errors=1, duration_ms=300, between_counts=counted([20_000], BETWEEN_BOUNDS_US)
    )
    usage(hours_ago=1, key="", revision=2, completion_tokens=5)
    usage(hours_ago=24 * 80, key=key.public_id, requests=1000)

    start = (NOW - timedelta(hours=5)).isoformat()
    answer = me.get(f"tenants/acme/endpoints/chat/calls?start={start.replace('+', '%2B')}")

    assert answer.status == 200, answer
    first, second = answer.body["items"]
    assert (first["key"], first["key_name"], first["revision"]) == (key.public_id, "first", 1)
    assert (first["model"], first["requests"], first["errors"]) == ("llama-3-1-8b", 4, 1)
    assert (first["prompt_tokens"], first["completion_tokens"], first["mean_s"]) == (20, 40, 0.3)
    assert 0.1 < first["ttft_p50_s"] <= first["ttft_p99_s"] <= 0.15
    assert 0.015 < first["between_p50_s"] <= 0.02
    assert (second["key"], second["key_name"], second["model"], second["ttft_p50_s"]) == ("", "", "", None)


def test_who_may_not_list_keys_may_not_see_what_they_asked(me, api, tenant):
    viewer = api(factories.member(tenant, Role.VIEWER))
    stranger = api(factories.member(factories.tenant(), Role.OWNER))

    assert viewer.get("tenants/acme/endpoints/chat/calls").status == 403
    assert stranger.get("tenants/acme/endpoints/chat/calls").status == 404


# --- limits of keys ---------------------------------------------------------------------------------


LIMITS = {
    "requests_per_minute": 60, "tokens_per_minute": 9000, "budget_tokens": 10**6, "budget_money": "250.00",
    "budget_period": "week",
}  # fmt: skip


def test_a_key_is_made_with_limits_and_gets_others(me):
    made = me.post("tenants/acme/endpoints/chat/keys", {"name": "ci", **LIMITS})
    path = f"tenants/acme/endpoints/chat/keys/{made.body['id']}/limits"

    changed = me.put(path, {"requests_per_minute": 5})
    listed = me.get("tenants/acme/endpoints/chat/keys").body["items"]

    assert {name: made.body[name] for name in LIMITS} == LIMITS
    assert changed.status == 200, changed
    shown = next(key for key in listed if key["id"] == made.body["id"])
    assert {name: shown[name] for name in LIMITS} == {
        "requests_per_minute": 5, "tokens_per_minute": None, "budget_tokens": None, "budget_money": None,
        "budget_period": "month",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests_per_minute", 0), ("requests_per_minute", 1.5), ("requests_per_minute", True),
        ("tokens_per_minute", -1), ("tokens_per_minute", 10**13), ("budget_tokens", "5"), ("budget_money", "0"),
        ("budget_money", "1.005"), ("budget_money", "1e3"), ("budget_money", 5), ("budget_money", "9999999999"),
        ("budget_period", "year"), ("other", 1),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_is_named_and_changes_nothing(me, field, value):
    key = EndpointKey.objects.get()

    answer = me.put(f"tenants/acme/endpoints/chat/keys/{key.public_id}/limits", {"budget_tokens": 7, field: value})

    assert answer.status == 400, answer
    assert answer.body["errors"][0]["field"] == field
    key.refresh_from_db()
    assert key.budget_tokens is None


def test_rates_of_a_tenant_are_a_rule_of_its_policy_that_those_below_can_only_narrow(api, tenant):
    operator = api(factories.person(platform=(PlatformRole.OPERATOR,)))
    owner = api(factories.member(tenant, Role.OWNER))
    path = "tenants/acme/policy"

    def put(who, policy):
        return who.put(path, policy, if_match=who.get("tenants/acme").headers["ETag"])

    assert put(operator, {"requests_per_minute": 100, "tokens_per_minute": 50_000}).status == 200
    narrowed = put(owner, {"requests_per_minute": 50, "tokens_per_minute": 50_000})
    wider = put(owner, {"requests_per_minute": 51, "tokens_per_minute": 50_000})
    nonsense = put(operator, {"tokens_per_minute": 0})

    assert narrowed.status == 200, narrowed
    assert (wider.status, wider.body["code"]) == (400, "policy-widens")
    assert wider.body["errors"][0]["field"] == "policy.requests_per_minute"
    assert nonsense.status == 400


def test_tokens_of_a_month_are_asked_for_and_granted_like_every_other_limit(api, tenant):
    member, owner = api(factories.member(tenant)), api(factories.member(tenant, Role.OWNER))
    approver = api(factories.person(platform=(PlatformRole.APPROVER,)))

    asked = member.post("tenants/acme/requests", {"payload": {"limits": {"tokens_month": 5_000_000}}})
    assert asked.status == 201, asked
    for who in (owner, approver):
        path = f"requests/{asked.body['id']}"
        decided = who.post(f"{path}/decide", {"verdict": "approve", "version": who.get(path).body["version"]})
        assert decided.status == 200, decided
    limits = owner.get("tenants/acme/quotas").body["items"]

    assert [row["amount"] for row in limits if row["dimension"] == "tokens_month"] == [5_000_000]


# --- the last hours by the minute -------------------------------------------------------------------


def test_minutes_tell_what_gateways_saw_and_null_where_nobody_was_heard(me, api, tenant):
    row, gateway = Endpoint.objects.get(), factories.gateway(tenant)
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)
    EndpointMinute.objects.create(
        tenant=tenant, endpoint_id=row.pk, gateway=gateway, minute=minute, requests=4, completion_tokens=120, queued=2,
        prefix_queries=10, prefix_hits=4,
    )  # fmt: skip

    answer = api(factories.member(tenant, Role.VIEWER)).get("tenants/acme/endpoints/chat/minutes?last=5")
    items = {item["at"]: item for item in answer.body["items"]}
    found = next(item for item in answer.body["items"] if item["requests"] is not None)

    assert answer.status == 200, answer
    assert len(items) == 5
    assert (found["requests"], found["tokens_s"], found["queued"], found["prefix_hit_rate"]) == (4, 2.0, 2, 0.4)
    assert [item["requests"] for item in answer.body["items"]].count(None) == 4
    assert me.get("tenants/acme/endpoints/chat/minutes?last=361").status == 400
