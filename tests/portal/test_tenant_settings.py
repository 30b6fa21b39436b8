"""Settings of a tenant: profile, labels, policy in words, webhooks, suspension, tenants below, closing."""

from __future__ import annotations

import html
import re

import pytest
from django.utils import timezone

from tenants.models import Delivery, Endpoint, Event, Suspension, Tenant, Webhook
from tenants.notifications import registry
from tenants.operations import notifications
from tenants.states import PlatformRole, Role
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
SETTINGS = "/t/acme/settings"


@pytest.fixture
def acme(db: None):
    """A tenant with an owner; nothing runs in it."""
    factories.served_model()
    factories.provider(name="site")
    return factories.tenant(name="acme", display_name="Acme Works")


@pytest.fixture
def owner(acme):
    return factories.member(acme, Role.OWNER, who=factories.person(name="Owner"))


@pytest.fixture
def operator():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def loopback(settings):
    settings.TENANTRY_WEBHOOK_NETWORKS = "127.0.0.0/8"


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


# --- profile ----------------------------------------------------------------------------------------------


def test_profile_and_labels_are_saved(acme, owner, browse):
    given = {"title": "Acme", "description": "Ask Nia", "labels": "cost-centre=4711\nteam = vision\n", "version": "1"}

    answer = browse(owner).post(f"{SETTINGS}/save", given)

    acme.refresh_from_db()
    assert answer.status_code == 302
    assert (acme.display_name, acme.description) == ("Acme", "Ask Nia")
    assert acme.labels == {"cost-centre": "4711", "team": "vision"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"title": ""}, "Use 1 to 120 characters."),
        ({"labels": "no equals"}, "no equals: write key=value."),
        ({"labels": "UPPER=x"}, "A label's key has a-z"),
        ({"description": "x" * 501}, "Use at most 500 characters."),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(acme, owner, browse, change, sentence):
    given = {"title": "Acme", "description": "", "labels": "", "version": "1", **change}

    answer = browse(owner).post(f"{SETTINGS}/save", given)

    assert answer.status_code == 422
    assert sentence in text(answer)
    assert html.escape(next(iter(change.values()))) in answer.content.decode()
    acme.refresh_from_db()
    assert acme.display_name == "Acme Works"


def test_a_page_that_is_out_of_date_changes_nothing(acme, owner, browse):
    Tenant.objects.filter(pk=acme.pk).update(version=7)

    answer = browse(owner).post(f"{SETTINGS}/save", {"title": "Acme", "labels": "", "version": "1"})

    assert answer.status_code == 412
    acme.refresh_from_db()
    assert acme.display_name == "Acme Works"


# --- policy -----------------------------------------------------------------------------------------------


def test_a_policy_is_set_from_checkboxes_and_said_in_words(acme, owner, browse):
    browser = browse(owner)
    before = text(browser.get(SETTINGS))

    answer = browser.post(
        f"{SETTINGS}/policy",
        {"limit:sites": "on", "sites": ["berlin"], "limit:tiers": "on", "tiers": ["shared"], "longest_days": "90",
         "models": ["llama-3-1-8b"], "version": "1"},
    )  # fmt: skip
    after = text(browser.get(SETTINGS))

    acme.refresh_from_db()
    assert answer.status_code == 302
    assert acme.policy == {"sites": ["berlin"], "tiers": ["shared"], "longest_s": 90 * 86400}
    assert "Everything there is, also what comes later." in before
    assert "Only: berlin." in after
    assert "At most 90 days, as Acme Works says." in after


def test_an_owner_does_not_drop_a_rule_and_an_operator_may(acme, owner, operator, browse):
    Tenant.objects.filter(pk=acme.pk).update(policy={"sites": ["berlin"]})

    refused = browse(owner).post(f"{SETTINGS}/policy", {"version": "1"})
    allowed = browse(operator).post(f"{SETTINGS}/policy", {"version": "1"})

    assert refused.status_code == 422
    assert "Only an operator or an owner above may drop a rule: sites." in text(refused)
    acme.refresh_from_db()
    assert (allowed.status_code, acme.policy) == (302, {})


def test_what_a_parent_forbids_cannot_be_chosen_below_it(acme, owner, browse):
    child = factories.tenant(name="lab", parent=acme)
    Tenant.objects.filter(pk=acme.pk).update(policy={"tiers": ["shared"]})

    page = browse(owner).get("/t/lab/settings")
    refused = browse(owner).post(
        "/t/lab/settings/policy", {"limit:tiers": "on", "tiers": ["dedicated-host"], "version": "1"}
    )

    assert "As Acme Works allows: shared." in text(page)
    assert re.search(r'value="dedicated-host"[^>]* disabled', page.content.decode())
    assert refused.status_code == 422
    child.refresh_from_db()
    assert child.policy == {}


def test_rules_about_who_decides_stay_when_the_policy_is_set(acme, owner, browse):
    stages = {"quota": ["tenant-owner", "platform-approver"]}
    Tenant.objects.filter(pk=acme.pk).update(policy={"approvals": stages})

    browse(owner).post(f"{SETTINGS}/policy", {"limit:sites": "on", "sites": ["berlin"], "version": "1"})

    acme.refresh_from_db()
    assert acme.policy == {"approvals": stages, "sites": ["berlin"]}


# --- suspension, tenants below, closing ---------------------------------------------------------------------


def test_an_operator_suspends_with_the_name_typed_and_resumes(acme, owner, operator, browse):
    browser = browse(operator)
    given = {"depth": "network", "reason": "unpaid", "until": ""}

    untyped = browser.post(f"{SETTINGS}/suspend", given)
    typed = browser.post(f"{SETTINGS}/suspend", {**given, "confirm": "acme"})
    shown = text(browse(owner).get(SETTINGS))
    refused = browse(owner).post(f"{SETTINGS}/resume")
    resumed = browser.post(f"{SETTINGS}/resume")

    assert (untyped.status_code, typed.status_code) == (422, 302)
    assert "Network cut" in shown
    assert "Suspended with Acme Works: unpaid" in shown
    assert (refused.status_code, resumed.status_code) == (403, 302)
    assert Suspension.objects.get().ended_at is not None


def test_a_tenant_below_is_made_and_a_taken_name_said(acme, owner, browse):
    browser = browse(owner)

    made = browser.post(f"{SETTINGS}/child", {"child_title": "Robotics", "name": "robotics"})
    taken = browser.post(f"{SETTINGS}/child", {"child_title": "Again", "name": "robotics"})

    assert (made.status_code, made["Location"]) == (302, "/t/robotics")
    assert Tenant.objects.get(name="robotics").parent == acme
    assert taken.status_code == 422
    assert "The name robotics is taken." in text(taken)


def test_closing_names_what_is_still_there_and_changes_nothing(world, browse):
    browser = browse(world.acme.owner)

    plan = text(browser.get(f"{SETTINGS}/close"))
    refused = browser.post(f"{SETTINGS}/close", {"confirm": "acme"})

    assert "Endpoint chat" in plan
    assert "Machine box" in plan
    assert "Give back what is still here first" in plan
    assert refused.status_code == 409
    assert Tenant.objects.get(name="acme").status == "active"
    assert Endpoint.objects.filter(tenant__name="acme", deletion_requested_at=None).count() == 1


def test_an_empty_tenant_is_closed_with_its_name_typed(acme, owner, browse):
    browser = browse(owner)

    plan = text(browser.get(f"{SETTINGS}/close"))
    untyped = browser.post(f"{SETTINGS}/close", {"confirm": "acm"})
    typed = browser.post(f"{SETTINGS}/close", {"confirm": "acme"})

    assert "Nothing: it can be closed." in plan
    assert "1 member loses access." in plan
    assert (untyped.status_code, typed.status_code) == (422, 302)
    assert Tenant.objects.get(name="acme").status == "closed"


# --- webhooks -----------------------------------------------------------------------------------------------


def hook(acme, owner):
    return notifications.create_webhook(
        tenant=acme, name="chat-room", url="http://127.0.0.1:9999/hook", kinds=[], actor=factories.actor(owner),
        now=timezone.now(),
    )[0]  # fmt: skip


def test_a_webhook_is_made_with_its_secret_shown_once(acme, owner, browse, loopback):
    browser = browse(owner)

    made = browser.post(
        f"{SETTINGS}/webhooks/new", {"name": "chat-room", "url": "http://127.0.0.1:9999/hook", "kinds": []}
    )
    first, second = browser.get(made["Location"]), browser.get(made["Location"])

    assert re.search(r"whsec_[\w+/=-]+", first.content.decode())
    assert "whsec_" not in second.content.decode()
    assert "everything about the tenant" in text(browser.get(f"{SETTINGS}/webhooks"))


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"name": "a b", "url": "https://example.org/x"}, 422),
        ({"name": "inside", "url": "http://10.0.0.1/x"}, 422),
    ],
)
def test_a_webhook_that_may_not_be_is_said_at_its_field(acme, owner, browse, given, status):
    answer = browse(owner).post(f"{SETTINGS}/webhooks/new", given)

    assert answer.status_code == status
    assert "field-error" in answer.content.decode()
    assert not Webhook.objects.exists()


def test_a_test_message_stands_in_the_log_and_is_sent_again(acme, owner, browse, loopback):
    browser = browse(owner)
    hook(acme, owner)
    url = f"{SETTINGS}/webhooks/chat-room"

    browser.post(f"{url}/test")
    row = Delivery.objects.get()
    Delivery.objects.filter(pk=row.pk).update(state="dead", done_at=timezone.now(), reason="refused", status=500)
    shown = text(browser.get(f"{url}?state=dead"))
    browser.post(f"{url}/log/{row.pk}/again")

    row.refresh_from_db()
    assert re.search(r"Test message .* Given up refused 500", shown)
    assert row.state == "pending"
    assert Event.objects.filter(kind="webhook.sent-again").count() == 1


def test_a_webhook_is_switched_off_and_on_rolled_changed_and_removed(acme, owner, browse, loopback):
    browser = browse(owner)
    row = hook(acme, owner)
    url = f"{SETTINGS}/webhooks/chat-room"

    browser.post(f"{url}/disable")
    off = text(browser.get(url))
    browser.post(f"{url}/enable")
    rolled = browser.post(f"{url}/roll", {"overlap_s": "3600"}, follow=True)
    browser.post(f"{url}/change", {"url": "http://127.0.0.1:8888/other", "kinds": [registry.WEBHOOK_KINDS[0]]})
    row.refresh_from_db()
    browser.post(f"{url}/remove")

    assert "Switched off somebody switched it off" in off
    assert "whsec_" in rolled.content.decode()
    assert row.url == "http://127.0.0.1:8888/other"
    assert Webhook.objects.get().removed_at is not None
    assert browser.get(url).status_code == 404
