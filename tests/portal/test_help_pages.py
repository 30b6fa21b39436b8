"""Help and Me: every reason and code has a page; tokens are made, shown once and ended."""

from __future__ import annotations

import pytest

from frontend.kernel import story, topics
from tenants.error_codes import HELP
from tenants.models import ApiToken
from tenants.operations import people
from tenants.states import Reason
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def me(db):
    return factories.member(factories.tenant(name="acme", display_name="Acme Works"))


def test_every_reason_and_error_code_has_a_topic_of_its_own():
    codes = [topic.code for topic in topics.everything()]

    assert {topic.code for topic in topics.everything() if topic.group == "reason"} == {r.value for r in Reason}
    assert set(HELP) <= set(codes)
    assert len(codes) == len(set(codes)) + len({"request", "quota", "key", "token"} & set(HELP))


def test_visitors_read_the_help_and_search_it(browse):
    browser = browse(None)

    everything = browser.get("/help").content.decode()
    found = browser.get("/help?q=over+quota").content.decode()
    none = browser.get("/help?q=zebrafish").content.decode()

    assert "Deploy a first endpoint" in everything
    assert ("/help/first-endpoint" in everything, "/help/OverQuota" in everything) == (True, True)
    assert ('href="/help/OverQuota"' in found, 'href="/help/Done"' in found) == (True, False)
    assert "Nothing in the help holds these words" in none


def test_each_topic_opens_and_says_what_to_do(browse):
    browser = browse(None)

    quota = browser.get("/help/OverQuota").content.decode()

    assert "ask for more, or give something back" in quota
    assert [
        c for c in ("first-endpoint", "slot", "second-factor") if browser.get(f"/help/{c}").status_code != 200
    ] == []
    assert browser.get("/help/no-such-code").status_code == 404


def test_conditions_that_are_not_good_lead_to_the_help():
    assert story.help_of("OverQuota") == "/help/OverQuota"
    assert story.help_of("SomethingNew") == ""


def test_me_shows_roles_and_the_ways_to_the_account(browse, me):
    text = browse(me).get("/me").content.decode()

    assert ("Acme Works" in text, me.email in text) == (True, True)
    for path in (
        "/accounts/password/change/",
        "/accounts/2fa/",
        "/accounts/sessions/",
        "/me/notifications/preferences",
    ):
        assert f'href="{path}"' in text


def test_a_token_is_made_shown_once_and_revoked(browse, me):
    browser = browse(me)

    made = browser.post("/me/tokens/new", {"name": "laptop", "days": "30", "read_only": "on"})
    row = ApiToken.objects.get()
    first, second = browser.get("/me").content.decode(), browser.get("/me").content.decode()
    ended = browser.post(f"/me/tokens/{row.public_id}/revoke")

    assert (made.status_code, row.name, row.read_only, row.person_id) == (302, "laptop", True, me.pk)
    assert (row.expires_at - row.created_at).days == 30
    assert ('class="secret-text"' in first, 'class="secret-text"' in second) == (True, False)
    assert (ended.status_code, ApiToken.objects.get().revoked_at is not None) == (302, True)


def test_a_token_needs_a_name_and_nobody_ends_anothers(browse, me):
    other = factories.person(name="zebrafish")
    theirs = people.issue_token(name="zebrafish", actor=factories.actor(other), now=NOW).row
    browser = browse(me)

    browser.post("/me/tokens/new", {"name": " "})
    answer = browser.post(f"/me/tokens/{theirs.public_id}/revoke")

    assert answer.status_code == 404
    assert ApiToken.objects.get() == theirs
    assert ApiToken.objects.get().revoked_at is None
    assert "zebrafish" not in browser.get("/me").content.decode()


def test_visitors_are_sent_to_the_log_in(browse):
    assert browse(None).get("/me").status_code == 302
    assert browse(None).post("/me/tokens/new").status_code == 302


def test_a_topic_leads_on_to_those_that_share_its_words(browse):
    browser = browse(None)

    page = browser.get("/help/quota-exceeded").content.decode()

    assert [code for code in ("OverQuota", "more-quota", "quota") if f'href="/help/{code}"' not in page] == []
    assert ("<code>on_shortage=request</code>" in page, "An owner of the tenant" in page) == (True, True)
