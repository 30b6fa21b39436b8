"""Decisions, rules and delegations through Django's client: what is shown, who may, what a change does."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants.models import AutoApprovalRule, Decision, Delegation, Quota, Request
from tenants.operations import requests
from tenants.states import PlatformRole, Role
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
GPU = "gpu.H100-80GB.slices"
PAGE = "/ops/decisions"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ana():
    return factories.person(name="Ana", platform=(PlatformRole.APPROVER,))


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def ask(house, who, limits=None, *, days_ago=0.0, lasts_days=None):
    """File a request some days ago, for some days from then."""
    at = timezone.now() - timedelta(days=days_ago)
    until = (at + timedelta(days=lasts_days)).isoformat() if lasts_days else None
    return requests.submit(
        kind="quota", payload={"limits": limits or {GPU: 2}, "until": until}, reason="growth", tenant=house.tenant,
        actor=factories.actor(who), now=at,
    )  # fmt: skip


def decide(row, who, verdict="approve", **more):
    row.refresh_from_db()
    return requests.decide(
        request=row, version=row.version, verdict=verdict, reason=more.pop("reason", "because"),
        actor=factories.actor(who), now=more.pop("now", timezone.now()), **more,
    )  # fmt: skip


# --- decisions ----------------------------------------------------------------------------------------------


def test_the_approver_sees_his_own_decisions_first_and_all_on_demand(world, browse, ana):
    other = factories.person(name="Other approver", platform=(PlatformRole.APPROVER,))
    mine, theirs = ask(world.acme, world.acme.owner), ask(world.acme, world.acme.owner, {"vcpu": 4})
    decide(mine, ana)
    decide(theirs, other, "deny", reason="Not now.")
    browser = browse(ana)

    own, every = text(browser.get(PAGE)), text(browser.get(PAGE, {"whose": "all"}))

    assert "2 slots of H100-80GB more" in own
    assert "4 virtual CPUs more" not in own
    assert re.search(r"4 virtual CPUs more asked by Owner · Not now\. acme Denied Other approver", every)
    assert "2 slots of H100-80GB more" in every


def test_an_owner_sees_what_he_decided_and_no_more(world, browse, ana):
    row = ask(world.acme, world.acme.member)
    decide(row, world.acme.owner)
    foreign = ask(world.foreign, world.foreign.owner)
    decide(foreign, ana)

    shown = text(browse(world.acme.owner).get(PAGE, {"whose": "all"}))

    assert "2 slots of H100-80GB more asked by Member" in shown
    assert shown.count("2 slots of H100-80GB more") == 1
    assert "Everybody's" not in shown


def test_an_auditor_sees_everything_filters_and_exports(world, browse, ana):
    aud = factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))
    decide(ask(world.acme, world.acme.owner, days_ago=2), ana)
    decide(ask(world.acme, world.acme.owner, {"vcpu": 4}), ana, "deny")
    browser = browse(aud)

    denied = text(browser.get(PAGE, {"verdict": "deny"}))
    rows = browser.get(PAGE, {"format": "json"}).json()
    none = text(browser.get(PAGE, {"verdict": "reduce"}))

    assert "4 virtual CPUs more" in denied
    assert "2 slots" not in denied
    assert [(row["verdict"], row["by"], row["tenant"]) for row in rows] == [
        ("deny", "Ana", "acme"), ("approve", "Ana", "acme")
    ]  # fmt: skip
    assert float(rows[1]["cost_to_the_end"]) > 0
    assert "Nothing matches these filters" in none


def test_the_figures_say_how_many_and_how_long_it_usually_waited(world, browse, ana):
    for days in (1, 3, 9):
        decide(ask(world.acme, world.acme.owner, days_ago=days), ana)

    shown = text(browse(ana).get(PAGE))

    assert "Approved 3" in shown
    assert "Usual wait for a person 3 d" in shown


def test_who_stood_in_is_named_with_whom_he_stood_in_for(world, browse, ana):
    helper = factories.member(world.acme.tenant, who=factories.person(name="Helper"))
    now = timezone.now()
    Delegation.objects.create(
        person=world.acme.owner, delegate=helper, starts_at=now - timedelta(days=1), ends_at=now + timedelta(days=1),
        created_at=now,
    )  # fmt: skip
    decide(ask(world.acme, world.acme.member), helper)

    shown = text(browse(world.acme.owner).get(PAGE))

    assert "Helper in place of Owner" in shown


# --- rules --------------------------------------------------------------------------------------------------


def rule(**values):
    made = {"name": "small", "kind": "quota", "limits": {GPU: 2}, "longest_s": 7 * 86400, **values}
    return AutoApprovalRule.objects.create(created_at=timezone.now(), **made)


def test_a_rule_shows_which_past_requests_it_would_have_approved_with_count_and_sum(world, browse, ole, ana):
    fits = ask(world.acme, world.acme.owner, {GPU: 2}, days_ago=40, lasts_days=5)
    decide(fits, ana, now=fits.created_at + timedelta(hours=6))
    again = ask(world.foreign, world.foreign.owner, {GPU: 1}, days_ago=3, lasts_days=7)
    ask(world.acme, world.acme.owner, {GPU: 1}, days_ago=2)  # lasting
    ask(world.acme, world.acme.owner, {GPU: 3}, days_ago=2, lasts_days=2)  # too much
    ask(world.acme, world.acme.owner, {GPU: 1, "vcpu": 1}, days_ago=2, lasts_days=2)  # a dimension it does not name
    ask(world.acme, world.acme.owner, {GPU: 2}, days_ago=100, lasts_days=2)  # too long ago
    row = rule()
    browser = browse(ole)

    listed, page = text(browser.get(f"{PAGE}/rules")), text(browser.get(f"{PAGE}/rules/{row.pk}"))

    assert re.search(r"small any tenant 2 slots of H100-80GB 7 days 2 requests of 5 3 slots of H100-80GB", listed)
    assert "Would have matched 2" in page
    assert fits.short_id in page
    assert again.short_id in page
    assert "Waiting it would have saved 6 h 1 waited for a person" in page


def test_what_a_rule_would_have_added_counts_for_the_next_of_the_same_tenant_while_it_stands(world, browse, ole):
    first = ask(world.acme, world.acme.owner, {GPU: 2}, days_ago=30, lasts_days=5)
    during = ask(world.acme, world.acme.owner, {GPU: 1}, days_ago=28, lasts_days=5)
    after = ask(world.acme, world.acme.owner, {GPU: 2}, days_ago=20, lasts_days=5)
    row = rule()

    shown = text(browse(ole).get(f"{PAGE}/rules/{row.pk}"))

    assert [one.short_id in shown for one in (first, during, after)] == [True, False, True]


def test_a_new_rule_is_previewed_before_it_is_saved(world, browse, ole):
    matching = ask(world.acme, world.acme.owner, {GPU: 2}, days_ago=5, lasts_days=5)
    browser = browse(ole)
    wish = {"name": "trials", "tenant": "acme", "days": "7", f"limit:{GPU}": "2", "limit:vcpu": ""}

    preview = text(browser.get(f"{PAGE}/rules/new", wish, headers={"hx-request": "true"}))
    before = AutoApprovalRule.objects.count()
    answer = browser.post(f"{PAGE}/rules/new", wish)

    row = AutoApprovalRule.objects.get()
    assert "Would have matched 1" in preview
    assert matching.short_id in preview
    assert before == 0
    assert (answer.status_code, answer["Location"]) == (302, f"{PAGE}/rules/{row.pk}")
    assert (row.name, row.limits, row.longest_s, row.tenant_id) == ("trials", {GPU: 2}, 7 * 86400, world.acme.tenant.pk)


def test_a_saved_rule_approves_the_next_request_by_itself(world, browse, ole):
    browse(ole).post(f"{PAGE}/rules/new", {"name": "trials", "days": "7", f"limit:{GPU}": "2"})

    row = ask(world.acme, world.acme.member, {GPU: 2}, lasts_days=3)

    assert row.state == "approved"
    assert Decision.objects.get().rule.name == "trials"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "x", f"limit:{GPU}": "lots"}, f"limit:{GPU}"),
        ({"name": "", f"limit:{GPU}": "2"}, "name"),
        ({"name": "taken", f"limit:{GPU}": "2"}, "name"),
        ({"name": "x", f"limit:{GPU}": "2", "days": "a week"}, "days"),
        ({"name": "x", f"limit:{GPU}": "2", "days": "99999"}, "days"),
    ],
)
def test_what_is_wrong_with_a_rule_stands_at_its_field(world, browse, ole, given, field):
    rule(name="taken")

    answer = browse(ole).post(f"{PAGE}/rules/new", given)

    assert answer.status_code in {409, 422}
    assert re.search(rf'data-field="{re.escape(field)}"[^§]*?field-error', answer.content.decode())
    assert AutoApprovalRule.objects.count() == 1


def test_a_rule_without_any_amount_is_refused_with_its_reason(world, browse, ole):
    answer = browse(ole).post(f"{PAGE}/rules/new", {"name": "x"})

    assert answer.status_code == 422
    assert "A rule covers at least one dimension." in text(answer)


def test_a_rule_is_changed_and_switched_off_and_on_again(world, browse, ole):
    row = rule()
    browser = browse(ole)
    form = browser.get(f"{PAGE}/rules/{row.pk}/edit").content.decode()

    changed = browser.post(f"{PAGE}/rules/{row.pk}/edit", {"version": 1, f"limit:{GPU}": "4", "days": ""})
    row.refresh_from_db()
    stale = browser.post(f"{PAGE}/rules/{row.pk}/switch", {"version": 1, "enabled": "off"})
    off = browser.post(f"{PAGE}/rules/{row.pk}/switch", {"version": row.version, "enabled": "off"})
    waits = ask(world.acme, world.acme.member, {GPU: 2}, lasts_days=3)
    row.refresh_from_db()

    assert f'name="limit:{GPU}"' in form
    assert 'value="2"' in form
    assert (changed.status_code, row.limits, row.longest_s, row.enabled) == (302, {GPU: 4}, None, False)
    assert (stale.status_code, off.status_code, waits.state) == (412, 302, "submitted")


def test_the_number_of_queries_does_not_depend_on_how_much_was_decided(world, browse, ole, ana):
    browser = browse(ole)
    rule(name="first", enabled=False)
    decide(ask(world.acme, world.acme.owner, lasts_days=2), ana)
    addresses = [f"{PAGE}?whose=all", f"{PAGE}/rules", f"{PAGE}/delegations"]

    def counts() -> list[int]:
        found = []
        for address in addresses:
            browser.get(address)
            with CaptureQueriesContext(connection) as queries:
                browser.get(address)
            found.append(len(queries))
        return found

    few = counts()
    for number in range(10):
        rule(name=f"rule {number}", limits={"vcpu": 1 + number}, enabled=False)
        decide(ask(world.acme, world.acme.owner, {"vcpu": 1 + number}, lasts_days=2), ana)

    assert counts() == few


# --- delegations --------------------------------------------------------------------------------------------


def test_somebody_is_named_for_the_time_away_and_ended_again(world, browse):
    helper = factories.member(world.acme.tenant, who=factories.person(name="Helper"))
    browser = browse(world.acme.owner)
    until = (timezone.localdate() + timedelta(days=7)).isoformat()
    wish = {"delegate": helper.email, "since": timezone.localdate().isoformat(), "until": until}

    made = browser.post(f"{PAGE}/delegations/new", wish)
    row = Delegation.objects.get()
    shown, helper_sees = (text(browse(one).get(f"{PAGE}/delegations")) for one in (world.acme.owner, helper))
    foreign = browse(helper).post(f"{PAGE}/delegations/{row.pk}/end")
    ended = browser.post(f"{PAGE}/delegations/{row.pk}/end")

    assert (made.status_code, row.person_id, row.delegate_id) == (302, world.acme.owner.pk, helper.pk)
    assert timezone.localtime(row.ends_at).date().isoformat() == until
    assert re.search(r"you Helper .* Now", shown)
    assert re.search(r"Owner you .* Now", helper_sees)
    assert (foreign.status_code, ended.status_code) == (404, 302)
    assert not Delegation.objects.filter(ends_at__gt=timezone.now()).exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"delegate": "nobody@example.org"}, "delegate"),
        ({"until": "2020-01-01"}, "until"),
        ({"since": "soon"}, "since"),
    ],
)
def test_what_is_wrong_with_a_delegation_stands_at_its_field(world, browse, change, field):
    helper = factories.member(world.acme.tenant)
    today = timezone.localdate()
    wish = {"delegate": helper.email, "since": today.isoformat(), "until": (today + timedelta(days=3)).isoformat()}

    answer = browse(world.acme.owner).post(f"{PAGE}/delegations/new", wish | change)

    assert answer.status_code == 422
    assert re.search(rf'data-field="{field}"[^§]*?field-error', answer.content.decode())
    assert Delegation.objects.count() == 0


# --- who may ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_route_lets_only_those_in_whom_it_concerns(world, browse, ana, ole):
    row = rule()
    aud = factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))
    people = [browse(who) for who in (None, world.acme.member, world.acme.owner, ana, ole, aud)]
    one = f"{PAGE}/rules/{row.pk}"
    expected = {
        ("GET", PAGE): [302, 200, 200, 200, 200, 200],
        ("GET", f"{PAGE}/rules"): [302, 403, 403, 200, 200, 200],
        ("GET", one): [302, 403, 403, 200, 200, 200],
        ("GET", f"{PAGE}/rules/new"): [302, 403, 403, 403, 200, 403],
        ("POST", f"{PAGE}/rules/new"): [302, 403, 403, 403, 422, 403],
        ("GET", f"{one}/edit"): [302, 403, 403, 403, 200, 403],
        ("POST", f"{one}/edit"): [302, 403, 403, 403, 422, 403],
        ("POST", f"{one}/switch"): [302, 403, 403, 403, 400, 403],
        ("GET", f"{PAGE}/delegations"): [302, 200, 200, 200, 200, 200],
        ("POST", f"{PAGE}/delegations/new"): [302, 422, 422, 422, 422, 422],
    }

    found = {(method, url): [who.generic(method, url).status_code for who in people] for method, url in expected}

    assert found == expected


def test_every_change_needs_the_form_token(world):
    from django.test import Client

    row = rule()
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(factories.person(platform=(PlatformRole.OPERATOR,)), backend="tenants.login.PersonBackend")
    urls = [
        "rules/new",
        f"rules/{row.pk}/edit",
        f"rules/{row.pk}/switch",
        "delegations/new",
        f"delegations/{row.pk}/end",
    ]

    assert [browser.post(f"{PAGE}/{url}").status_code for url in urls] == [403] * len(urls)


def test_pages_of_an_owner_never_name_a_foreign_tenant(world, browse, ana):
    row = ask(world.foreign, world.foreign.member)
    decide(row, world.foreign.owner)
    decide(row, ana)
    assert Request.objects.get(pk=row.pk).state == "approved"
    assert Quota.objects.filter(tenant=world.foreign.tenant).exists()
    factories.member(world.acme.tenant, Role.OWNER)
    browser = browse(world.acme.owner)

    found = [browser.get(f"{PAGE}{tail}").content.decode() for tail in ("", "?format=csv", "/delegations")]

    assert ["zebrafish" in body for body in found] == [False, False, False]


def test_a_rule_says_what_kept_the_other_requests_out(world, browse, ole):
    ask(world.acme, world.acme.owner, {GPU: 1}, days_ago=2)
    ask(world.acme, world.acme.owner, {GPU: 1}, days_ago=3)
    ask(world.acme, world.acme.owner, {GPU: 3}, days_ago=2, lasts_days=2)
    ask(world.acme, world.acme.owner, {"vcpu": 1}, days_ago=2, lasts_days=2)
    row = rule()

    shown = text(browse(ole).get(f"{PAGE}/rules/{row.pk}"))

    assert (
        "2 ask for longer than the rule allows, or for good 1 ask for more than the rule allows: H100-80GB, slots "
        "1 ask for something that is not named here: Virtual CPUs"
    ) in shown
