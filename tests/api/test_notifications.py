"""Bell, wishes and webhooks over REST: shapes, one-time secrets, replays, problems."""

from __future__ import annotations

from uuid import UUID

import pytest

from tenants.models import Delivery, Webhook
from tenants.notifications import fanout
from tenants.operations import requests
from tenants.states import Role
from tests import factories
from tests.api.client import Api, token_of
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

URL = "https://hooks.example.org/in?token=t0k3n"


@pytest.fixture
def tenant():
    return factories.tenant(name="acme")


@pytest.fixture
def owner(tenant):
    return factories.member(tenant, Role.OWNER)


@pytest.mark.parametrize("body", [{}, {"ids": [], "all": False}, {"ids": [str(UUID(int=1))], "all": True}])
def test_marking_names_some_or_all_and_never_both(owner, body):
    answer = Api(token_of(owner)).post("notifications:read", body, key=None)

    assert (answer.status, answer.body["errors"][0]["reason"]) == (400, "give ids, or all: true")


def test_the_bell_counts_lists_and_is_marked_read(tenant, owner):
    member = factories.member(tenant)
    for number in (1, 2):
        requests.submit(
            kind="quota", payload={"limits": {"vcpu": number}}, reason="more", tenant=tenant,
            actor=factories.actor(member), now=NOW,
        )  # fmt: skip
    fanout.run(NOW)
    api = Api(token_of(owner))

    counted = api.get("notifications:unread").body
    rows = api.get("notifications?unread=true").body["items"]
    marked = api.post("notifications:read", {"ids": [rows[0]["id"]]}, key=None)

    assert counted == {"unread": 2}
    assert rows[0]["title"] == "A request waits for your decision"
    assert rows[0]["link"].startswith("/ops/inbox/rq-")
    assert rows[0]["tenant"] == "acme"
    assert (marked.status, marked.body) == (200, {"unread": 1})
    assert len(api.get("notifications").body["items"]) == 2
    assert Api(token_of(member)).get("notifications:unread").body == {"unread": 0}


def test_wishes_are_set_one_by_one(owner):
    api = Api(token_of(owner))

    put = api.put("notification-preferences", {"kind": "object.ready", "mail": "digest"})
    wrong = api.put("notification-preferences", {"kind": "no.such", "mail": "digest"})

    assert put.body == {"kind": "object.ready", "bell": True, "mail": "digest", "own": True}
    assert (wrong.status, wrong.body["code"]) == (400, "unknown-notification")
    wishes = {row["kind"]: row for row in api.get("notification-preferences").body["items"]}
    assert wishes["object.ready"] == put.body
    assert wishes["object.failed"] == {"kind": "object.failed", "bell": True, "mail": "now", "own": False}


def test_a_webhooks_secret_is_in_the_answer_that_makes_it_and_its_replay_only(tenant, owner):
    api = Api(token_of(owner))
    body = {"name": "hook", "url": URL}

    made = api.post("tenants/acme/webhooks", body, key="one")
    again = api.post("tenants/acme/webhooks", body, key="one")
    read = api.get("tenants/acme/webhooks/hook")
    rolled = api.post("tenants/acme/webhooks/hook/roll", {"overlap_s": 60})

    assert made.status == 201
    assert made.body["secret"].startswith("whsec_")
    assert again.body["secret"] == made.body["secret"]
    assert read.body["secret"] is None
    assert (rolled.status, rolled.body["secret"] != made.body["secret"]) == (201, True)
    assert rolled.body["previous_secret_until"] is not None
    assert Webhook.objects.count() == 1


@pytest.mark.parametrize("url", ["https://10.0.0.1/", "http://hooks.example.org/", "https://169.254.169.254/"])
def test_an_address_that_must_not_be_reached_is_refused_at_its_field(tenant, owner, url):
    answer = Api(token_of(owner)).post("tenants/acme/webhooks", {"name": "hook", "url": url})

    assert (answer.status, answer.body["code"], answer.body["errors"][0]["field"]) == (400, "bad-url", "url")
    assert Webhook.objects.count() == 0


def test_a_webhook_is_changed_switched_off_tested_and_removed(tenant, owner):
    api = Api(token_of(owner))
    api.post("tenants/acme/webhooks", {"name": "hook", "url": URL})

    changed = api.patch("tenants/acme/webhooks/hook", {"kinds": ["request.decided"]}, if_match='"1"')
    stale = api.patch("tenants/acme/webhooks/hook", {"kinds": []}, if_match='"1"')
    tested = api.post("tenants/acme/webhooks/hook/test")
    again = api.post(f"tenants/acme/webhooks/hook/deliveries/{tested.body['id']}/send-again")
    off = api.post("tenants/acme/webhooks/hook/disable")
    refused = api.post("tenants/acme/webhooks/hook/test")
    on = api.post("tenants/acme/webhooks/hook/enable")
    log = api.get("tenants/acme/webhooks/hook/deliveries?state=pending").body["items"]
    removed = api.delete("tenants/acme/webhooks/hook", if_match=f'"{on.body["version"]}"')

    assert (changed.status, changed.body["kinds"]) == (200, ["request.decided"])
    assert stale.status == 412
    assert (tested.status, tested.body["state"], tested.body["kind"]) == (201, "pending", "webhook.test")
    assert again.status == 200
    assert off.body["disabled_why"] == "somebody switched it off"
    assert (refused.status, refused.body["code"]) == (409, "disabled")
    assert on.body["disabled_at"] is None
    assert [row["id"] for row in log] == [tested.body["id"]]
    assert removed.status == 204
    assert api.get("tenants/acme/webhooks/hook").status == 404
    assert Delivery.objects.count() == 1


def test_members_see_no_webhooks_for_addresses_may_hold_tokens(tenant, owner):
    Api(token_of(owner)).post("tenants/acme/webhooks", {"name": "hook", "url": URL})

    answer = Api(token_of(factories.member(tenant))).get("tenants/acme/webhooks")

    assert answer.status == 403
    assert b"t0k3n" not in answer.raw
