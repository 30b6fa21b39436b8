"""What is counted at endpoints, over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tenants.models import Endpoint, EndpointKey, EndpointUsage
from tenants.states import Role
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
