"""Endpoints over HTTP: create, read, list, change, delete; keys and revisions."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from tenants.models import Endpoint, EndpointKey
from tenants.states import Role
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

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
    return api(factories.member(tenant))


def test_a_created_endpoint_is_answered_with_its_first_key_and_held_windows(me):
    made = me.post("tenants/acme/endpoints", BODY)

    assert made.status == 201, made
    assert made.body["phase"] == "Provisioning"
    assert made.body["key"].startswith("tnt_test_")
    assert made.headers["ETag"] == '"1"'
    read = me.get("tenants/acme/endpoints/chat")
    assert read.status == 200
    assert read.body["key"] is None
    assert {**read.body, "key": made.body["key"]} == made.body
    assert me.get("endpoints").body["items"] == [read.body]


def test_the_same_idempotency_key_gives_the_same_object_and_key_again(me):
    first = me.post("tenants/acme/endpoints", BODY, key="once-1")
    second = me.post("tenants/acme/endpoints", dict(reversed(BODY.items())), key="once-1")

    assert first.status == second.status == 201
    assert second.body == first.body
    assert second.headers["Idempotency-Replayed"] == "true"
    assert Endpoint.objects.count() == 1
    other = me.post("tenants/acme/endpoints", {**BODY, "name": "other"}, key="once-1")
    assert (other.status, other.body["code"]) == (422, "idempotency-mismatch")


def test_a_plan_says_what_would_be_held_and_changes_nothing(me):
    plan = me.post("tenants/acme/endpoints?plan=true", BODY)

    assert plan.status == 200, plan
    assert plan.body["plan"] is True
    assert plan.body["outcome"]["name"] == "chat"
    assert [p["size"] for p in plan.body["placement"]] == [1]
    effect = {q["dimension"]: (q["used_before"], q["used_after"]) for q in plan.body["quota"]}
    assert effect["endpoints"] == (0, 1)
    assert effect["gpu.H100-80GB.slices"] == (0, 1)
    assert Endpoint.objects.count() == 0


def test_put_creates_then_changes_what_it_serves(me):
    factories.served_model("other-model")
    put = {key: value for key, value in BODY.items() if key != "name"}

    made = me.put("tenants/acme/endpoints/chat", put)
    assert made.status == 201, made
    missing = me.put("tenants/acme/endpoints/chat", {**put, "model": "other-model"})
    assert (missing.status, missing.body["code"]) == (428, "precondition-required")
    changed = me.put("tenants/acme/endpoints/chat", {**put, "model": "other-model"}, if_match='"1"')
    assert (changed.status, changed.body["model"], changed.body["revision"]) == (200, "other-model", 2)
    stale = me.put("tenants/acme/endpoints/chat", put, if_match='"1"')
    assert (stale.status, stale.body["code"]) == (412, "version-mismatch")
    bigger = me.put("tenants/acme/endpoints/chat", {**put, "replicas": 2}, if_match=changed.headers["ETag"])
    assert (bigger.status, bigger.body["code"]) == (409, "immutable")


def test_keys_are_made_rolled_and_revoked(me):
    me.post("tenants/acme/endpoints", BODY)

    made = me.post("tenants/acme/endpoints/chat/keys", {"name": "laptop"}, key="k1")
    assert made.status == 201, made
    again = me.post("tenants/acme/endpoints/chat/keys", {"name": "laptop"}, key="k1")
    assert again.body == made.body
    rolled = me.post(f"tenants/acme/endpoints/chat/keys/{made.body['id']}/roll", {"overlap_s": 60})
    assert rolled.status == 201, rolled
    assert rolled.body["key"] != made.body["key"]
    again = me.post(f"tenants/acme/endpoints/chat/keys/{rolled.body['id']}/roll", {"overlap_s": 60.0})
    assert again.status == 201, "a number without a fraction is an integer to JSON Schema"
    assert me.post(f"tenants/acme/endpoints/chat/keys/{again.body['id']}/roll", {"overlap_s": 60.5}).status == 400
    rolled = again
    gone = me.delete(f"tenants/acme/endpoints/chat/keys/{rolled.body['id']}")
    assert gone.status == 200
    assert gone.body["revoked_at"] is not None
    listed = me.get("tenants/acme/endpoints/chat/keys").body["items"]
    assert [k["key"] for k in listed] == [None] * 4


def test_a_key_may_be_narrow_and_stays_so_when_it_is_rolled(me):
    me.post("tenants/acme/endpoints", BODY)

    made = me.post("tenants/acme/endpoints/chat/keys", {"name": "ci", "scopes": ["models", "chat", "chat"]})
    assert (made.status, made.body["scopes"]) == (201, ["chat", "models"])
    rolled = me.post(f"tenants/acme/endpoints/chat/keys/{made.body['id']}/roll", {"overlap_s": 60})
    assert rolled.body["scopes"] == ["chat", "models"]
    everything = me.post("tenants/acme/endpoints/chat/keys", {"name": "all", "scopes": ["chat", "inference"]})
    assert everything.body["scopes"] == ["inference"]
    for bad in ([], ["chat", "pause"], "chat", None):
        refused = me.post("tenants/acme/endpoints/chat/keys", {"name": "bad", "scopes": bad})
        assert (refused.status, refused.body["errors"][0]["field"].partition("[")[0]) == (400, "scopes"), refused.body
    with pytest.raises(IntegrityError, match="endpoint_key_scopes"), transaction.atomic():
        EndpointKey.objects.update(scopes=["pause"])
    with pytest.raises(IntegrityError, match="endpoint_key_scopes"), transaction.atomic():
        EndpointKey.objects.update(scopes=[])


def test_deleting_needs_the_version_and_starts_the_end(me):
    made = me.post("tenants/acme/endpoints", BODY)

    assert me.delete("tenants/acme/endpoints/chat").status == 428
    gone = me.delete("tenants/acme/endpoints/chat", if_match=made.headers["ETag"])
    assert (gone.status, gone.body["phase"]) == (200, "Deleting")


def test_a_viewer_reads_and_may_not_write(api, tenant):
    viewer = api(factories.member(tenant, Role.VIEWER))

    assert viewer.get("tenants/acme/endpoints").status == 200
    denied = viewer.post("tenants/acme/endpoints", BODY)
    assert (denied.status, denied.body["code"]) == (403, "forbidden")
    assert Endpoint.objects.count() == 0
