"""Tenants and people of the whole platform through Django's client: tree, risks, limits, suspension, leaving."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants import billed, costs
from tenants.models import (
    Allocation,
    Membership,
    Person,
    PlatformMembership,
    Quota,
    Suspension,
    Tenant,
    UsageRecord,
)
from tenants.states import PlatformRole, Role
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
GPU = "gpu.H100-80GB.slices"
PAGE = "/ops/tenants"
PEOPLE = "/ops/people"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def limits(tenant, dimension=GPU, amount=100):
    Quota.objects.filter(tenant=tenant, dimension=dimension).update(amount=amount)


# --- the tree -----------------------------------------------------------------------------------------------


def test_the_tree_says_use_cost_owners_and_what_to_look_at(world, browse, ole):
    limits(world.acme.tenant, amount=6)
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant, display_name="Acme Lab")
    factories.set_limit(child, GPU, 20)
    orphan = factories.tenant(name="orphan", display_name="Orphan")

    shown = text(browse(ole).get(PAGE))

    assert re.search(r"Acme Works acme 6 of 6 slots of H100-80GB .*?1 Near a limit Promised more than it has", shown)
    assert shown.index("Acme Works") < shown.index("Acme Lab") < shown.index("Orphan")
    assert "Orphan orphan -- €0.00 0 Nobody owns it No limit set" in shown
    assert "Owner without second factor" in shown
    assert orphan.name in text(browse(ole).get(PAGE, {"risk": "nobody"}))


def test_each_risk_is_a_sentence_with_its_figures_on_the_tenants_page(world, browse, ole):
    limits(world.acme.tenant, amount=4)
    limits(world.acme.tenant, "vcpu", 12)
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    factories.set_limit(child, GPU, 20)

    shown = text(browse(ole).get(f"{PAGE}/acme"))

    assert "Over a limit 6 used, 4 allowed: slots of H100-80GB." in shown
    assert "Near a limit 12 of 12 used: virtual CPUs." in shown
    assert "Tenants below are promised 20, here are 4: slots of H100-80GB." in shown
    assert "1 of 1 owner has no second factor." in shown
    assert "If this one person is away, nobody decides." in shown


def test_use_of_a_child_counts_for_its_parent(world, browse, ole):
    parent = factories.tenant(name="holding", display_name="Holding")
    factories.set_limit(parent, GPU, 40)
    Tenant.objects.filter(pk=world.acme.tenant.pk).update(parent=parent, path=[parent.pk, world.acme.tenant.pk])

    shown = text(browse(ole).get(f"{PAGE}/holding"))

    assert re.search(r"H100-80GB slots 6 40", shown)
    assert "Acme Works" in shown


def test_filters_sort_pages_and_export(world, browse, ole):
    for number in range(120):
        factories.tenant(name=f"team-{number:03}", display_name=f"Team {number}")
    browser = browse(ole)

    first = browser.get(PAGE).content.decode()
    second = text(browser.get(PAGE, {"page": "2"}))
    found = text(browser.get(PAGE, {"q": "team-11"}))
    rows = browser.get(PAGE, {"format": "json", "q": "acme"}).json()
    by_use = text(browser.get(PAGE, {"sort": "-use"}))

    assert 'href="?page=2"' in first
    assert "team-119" in second
    assert found.count("team-11") == 10
    assert [(row["name"], row["slots_in_use"], row["owners"]) for row in rows] == [("acme", 6, 1)]
    assert by_use.index("acme") < by_use.index("team-000")
    assert "No tenant matches" in text(browser.get(PAGE, {"q": "nothing-like-this"}))


def test_the_number_of_queries_does_not_depend_on_the_number_of_tenants(world, browse, ole):
    browser = browse(ole)

    def count(address) -> int:
        browser.get(address)
        with CaptureQueriesContext(connection) as queries:
            browser.get(address)
        return len(queries)

    few = [count(address) for address in (PAGE, f"{PAGE}/acme", PEOPLE)]
    for number in range(40):
        tenant = factories.tenant(name=f"t-{number}", parent=world.acme.tenant)
        factories.generous(tenant, amount=10)
        factories.member(tenant, Role.OWNER)

    assert [count(address) for address in (PAGE, f"{PAGE}/acme", PEOPLE)] == few


def test_what_tenants_cost_agrees_with_the_lines_of_each(world):
    now = timezone.now()
    start, end = billed.this_month(now)
    UsageRecord.objects.exclude(allocation_id=None).update(
        held_from=start, billable_from=start + timedelta(minutes=7), held_to=None
    )
    Allocation.objects.filter(name="box").update(spec={**Allocation.objects.get(
        name="box").spec, "storage_gib": 50})  # fmt: skip

    found = billed.by_tenant(start, end, now=now)

    expected = {
        house.tenant.pk: costs.spend(house.tenant, start, end, now=now).total for house in (world.acme, world.foreign)
    }
    assert {key: round(amount, 6) for key, amount in found.items()} == expected
    assert all(amount > 0 for amount in expected.values())


# --- a new one ------------------------------------------------------------------------------------------------


def test_a_new_tenant_gets_its_owner_at_once_or_an_invitation_shown_once(world, browse, ole):
    known = factories.person(name="Noor")
    browser = browse(ole)
    wish = {"name": "aurora", "display_name": "Aurora", "parent": "acme", "owner": known.email}

    made = browser.post(f"{PAGE}/new", wish)
    invited = browser.post(f"{PAGE}/new", {"name": "borealis", "display_name": "B", "owner": "new@example.org"})
    first, again = (text(browser.get(f"{PAGE}/borealis")) for _ in range(2))

    aurora = Tenant.objects.get(name="aurora")
    assert (made.status_code, made["Location"], aurora.parent_id) == (302, f"{PAGE}/aurora", world.acme.tenant.pk)
    assert list(aurora.memberships.values_list("person_id", "role")) == [(known.pk, int(Role.OWNER))]
    assert invited.status_code == 302
    assert "/accounts/link/" in first
    assert "/accounts/link/" not in again
    assert "Nothing can run before; each wish becomes a request." in first


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": "Not A Name", "display_name": "x"}, "name"),
        ({"name": "acme", "display_name": "x"}, "name"),
        ({"name": "admin", "display_name": "x"}, "name"),
        ({"name": "fine", "display_name": "x", "owner": "no mail"}, "owner"),
    ],
)
def test_what_is_wrong_with_a_new_tenant_stands_at_its_field(world, browse, ole, given, field):
    before = Tenant.objects.count()

    answer = browse(ole).post(f"{PAGE}/new", given)

    assert answer.status_code in {409, 422}
    assert re.search(rf'data-field="{field}"[^§]*?field-error', answer.content.decode())
    assert Tenant.objects.count() == before


# --- limits -------------------------------------------------------------------------------------------------


def form(browser, name, **change):
    """Return what the form of limits sends, with changes by field."""
    body = browser.get(f"{PAGE}/{name}/limits").content.decode()
    found = dict(re.findall(r'name="((?:amount|version):[^"]+)"[^>]*value="([^"]*)"', body))
    return found | change


def test_raising_a_limit_takes_one_form_and_shows_the_difference_while_it_is_written(world, browse, ole):
    limits(world.acme.tenant, amount=10)
    browser = browse(ole)
    wish = form(browser, "acme", **{f"amount:{GPU}": "24"})

    preview = text(browser.get(f"{PAGE}/acme/limits", wish, headers={"hx-request": "true"}))
    answer = browser.post(f"{PAGE}/acme/limits", wish)

    row = Quota.objects.get(tenant=world.acme.tenant, dimension=GPU)
    assert "H100-80GB, slots 10 24 +14 More can be used at once." in preview
    assert (answer.status_code, answer["Location"], row.amount) == (302, f"{PAGE}/acme", 24)
    assert Quota.objects.get(tenant=world.acme.tenant, dimension="vcpu").version == 1


def test_what_shrinks_is_a_plan_first_and_takes_nothing_away(world, browse, ole):
    limits(world.acme.tenant, amount=10)
    browser = browse(ole)
    wish = form(browser, "acme", **{f"amount:{GPU}": "4", "amount:machines": ""})

    plan = browser.post(f"{PAGE}/acme/limits", wish)
    between = Quota.objects.get(tenant=world.acme.tenant, dimension=GPU).amount
    done = browser.post(f"{PAGE}/acme/limits", {**wish, "planned": "yes"})

    assert (plan.status_code, between) == (200, 10)
    said = text(plan)
    assert "6 in use: nothing is taken away, and nothing new starts until less than 4 is." in said
    assert "GPU machines 1,000,000 none" in said
    assert done.status_code == 302
    assert Quota.objects.get(tenant=world.acme.tenant, dimension=GPU).amount == 4
    assert not Quota.objects.filter(tenant=world.acme.tenant, dimension="machines").exists()
    assert Allocation.objects.filter(tenant=world.acme.tenant, released_at=None).count() == 3


def test_where_production_runs_the_name_is_typed(world, browse, ole):
    limits(world.acme.tenant, amount=10)
    Allocation.objects.filter(name="chat").update(service_class="production", expires_at=None)
    browser = browse(ole)
    wish = {**form(browser, "acme", **{f"amount:{GPU}": "4"}), "planned": "yes"}

    without, done = (browser.post(f"{PAGE}/acme/limits", {**wish, "confirm": name}) for name in ("", "acme"))

    assert (without.status_code, done.status_code) == (422, 302)
    assert "Type the tenant's name" in text(without)


def test_a_child_shares_the_limit_of_the_tenant_above(world, browse, ole):
    child = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    browser = browse(ole)

    answer = browser.post(f"{PAGE}/acme-lab/limits", form(browser, "acme-lab", **{f"inherit:{GPU}": "on"}))

    assert answer.status_code == 302
    assert Quota.objects.get(tenant=child, dimension=GPU).inherit


def test_all_limits_change_or_none(world, browse, ole):
    owner = world.acme.owner
    factories.tenant(name="acme-lab", parent=world.acme.tenant)
    limits(world.acme.tenant, amount=10)
    browser = browse(owner)
    wish = form(browser, "acme-lab", **{f"amount:{GPU}": "20", "amount:endpoints": "5"})

    answer = browser.post(f"{PAGE}/acme-lab/limits", wish)

    assert answer.status_code == 422
    assert re.search(rf'data-field="amount:{GPU}"[^§]*?field-error', answer.content.decode())
    assert not Quota.objects.filter(tenant__name="acme-lab").exists()


def test_limits_that_changed_meanwhile_are_shown_anew(world, browse, ole):
    browser = browse(ole)
    wish = form(browser, "acme", **{f"amount:{GPU}": "2000000"})
    Quota.objects.filter(tenant=world.acme.tenant, dimension=GPU).update(amount=7, version=2)

    answer = browser.post(f"{PAGE}/acme/limits", wish)

    assert answer.status_code == 412
    assert "Somebody changed these limits meanwhile" in text(answer)
    assert Quota.objects.get(tenant=world.acme.tenant, dimension=GPU).amount == 7


@pytest.mark.parametrize("amount", ["lots", "-3", "1.5"])
def test_what_is_no_whole_number_stands_at_its_limit(world, browse, ole, amount):
    browser = browse(ole)

    answer = browser.post(f"{PAGE}/acme/limits", form(browser, "acme", **{f"amount:{GPU}": amount}))

    assert answer.status_code == 422
    assert re.search(rf'data-field="amount:{GPU}"[^§]*?field-error', answer.content.decode())


def test_a_limit_that_ends_is_removed_before_its_end_and_a_lasting_one_not_so(world, browse, ole):
    boxed = factories.set_limit(world.acme.tenant, GPU, 8, until=timezone.now() + timedelta(days=5))
    lasting = Quota.objects.get(tenant=world.acme.tenant, dimension=GPU, until=None)
    browser = browse(ole)
    url = f"{PAGE}/acme/limits"

    shown = text(browser.get(url))
    other = browser.post(f"{url}/{lasting.pk}/remove", {"version": 1})
    foreign = browser.post(f"{PAGE}/{world.foreign.tenant.name}/limits/{boxed.pk}/remove", {"version": 1})
    Allocation.objects.filter(name="chat").update(service_class="production")
    untyped = browser.post(f"{url}/{boxed.pk}/remove", {"version": 1})
    done = browser.post(f"{url}/{boxed.pk}/remove", {"version": 1, "confirm": "acme"})

    assert "Limits that end" in shown
    assert "8 slots of H100-80GB less from now on." in shown
    assert [answer.status_code for answer in (other, foreign, untyped, done)] == [404, 404, 400, 302]
    assert list(Quota.objects.filter(tenant=world.acme.tenant, dimension=GPU)) == [lasting]


# --- suspension ---------------------------------------------------------------------------------------------


def test_suspending_says_who_is_hit_and_resuming_brings_it_back(world, browse, ole):
    browser = browse(ole)
    plan = text(browser.get(f"{PAGE}/acme/suspend"))
    version = Tenant.objects.get(name="acme").version

    done = browser.post(
        f"{PAGE}/acme/suspend", {"depth": "network", "reason": "Unpaid.", "version": version, "until": ""}
    )
    row = Suspension.objects.get()
    shown = text(browser.get(f"{PAGE}/acme"))
    back = browser.post(f"{PAGE}/acme/resume", {"version": Tenant.objects.get(name="acme").version})

    assert "1 endpoint, 1 machine, 1 namespace stop working for their users." in plan
    assert "Keys refused" in plan
    assert (done.status_code, row.depth, row.reason) == (302, "network", "Unpaid.")
    assert "Suspended Network cut" in shown
    assert (back.status_code, Tenant.objects.get(name="acme").status) == (302, "active")


@pytest.mark.parametrize(
    ("given", "field"),
    [({"reason": ""}, "reason"), ({"depth": "deep"}, "depth"), ({"until": "2020-01-01"}, "until")],
)
def test_what_is_wrong_with_a_suspension_stands_at_its_field(world, browse, ole, given, field):
    version = Tenant.objects.get(name="acme").version

    answer = browse(ole).post(f"{PAGE}/acme/suspend", {"depth": "keys", "reason": "x", "version": version, **given})

    assert answer.status_code == 422
    assert re.search(rf'data-field="{field}"[^§]*?field-error', answer.content.decode())
    assert not Suspension.objects.exists()


# --- people -------------------------------------------------------------------------------------------------


def test_people_are_found_filtered_and_exported(world, browse, ole):
    factories.person(name="Zed Zebra", platform=(PlatformRole.AUDITOR,))
    Person.objects.filter(pk=world.acme.viewer.pk).update(is_active=False)
    browser = browse(ole)

    auditors = text(browser.get(PEOPLE, {"role": "auditor"}))
    kept_out = text(browser.get(PEOPLE, {"state": "suspended"}))
    rows = browser.get(PEOPLE, {"q": "zed z", "format": "json"}).json()

    assert "Zed Zebra" in auditors
    assert "Ole" not in auditors.split("Export")[1]
    assert "Viewer" in kept_out
    assert [(row["name"], row["platform_roles"], row["second_factor"]) for row in rows] == [
        ("Zed Zebra", "auditor", False)
    ]


def test_roles_are_set_by_another_operator_never_by_oneself(world, browse, ole):
    person = world.acme.member
    browser = browse(ole)

    done = browser.post(f"{PEOPLE}/{person.pk}/roles", {"role": ["auditor", "approver", "nonsense"]})
    own = browser.post(f"{PEOPLE}/{ole.pk}/roles", {"role": ["auditor"]})

    assert done.status_code == 302
    assert set(PlatformMembership.objects.filter(person=person).values_list("role", flat=True)) == {
        "approver", "auditor"
    }  # fmt: skip
    assert (own.status_code, list(ole.platform_memberships.values_list("role", flat=True))) == (403, ["operator"])


def test_a_person_is_suspended_and_resumed(world, browse, ole):
    person = world.acme.member
    browser = browse(ole)

    browser.post(f"{PEOPLE}/{person.pk}/suspend", {"reason": "Laptop stolen."})
    out = Person.objects.get(pk=person.pk).is_active
    twice = browser.post(f"{PEOPLE}/{person.pk}/suspend", {"reason": "again"})
    browser.post(f"{PEOPLE}/{person.pk}/resume")

    assert (out, twice.status_code, Person.objects.get(pk=person.pk).is_active) == (False, 409, True)


def test_leaving_is_planned_needs_the_e_mail_and_a_successor_of_the_last_owner(world, browse, ole):
    person, heir = world.acme.owner, world.acme.member
    browser = browse(ole)
    url = f"{PEOPLE}/{person.pk}/leave"

    plan = text(browser.get(url))
    unsure = browser.post(url, {"confirm": "", "successor": heir.email})
    alone = browser.post(url, {"confirm": person.email})
    nobody = browser.post(url, {"confirm": person.email, "successor": "nobody@example.org"})
    done = browser.post(url, {"confirm": person.email, "successor": heir.email})

    assert "Only owner of Acme Works: a successor is needed." in plan
    assert [answer.status_code for answer in (unsure, alone, nobody, done)] == [422, 409, 422, 302]
    assert re.search(r'data-field="successor"[^§]*?field-error', nobody.content.decode())
    assert Membership.objects.get(tenant=world.acme.tenant, person=heir).role == int(Role.OWNER)
    assert Person.objects.get(pk=person.pk).left_at is not None


def test_only_who_left_is_erased_and_the_name_is_typed(world, browse, ole):
    person = world.acme.viewer
    browser = browse(ole)
    url = f"{PEOPLE}/{person.pk}/erase"

    early = browser.post(url, {"confirm": "Viewer"})
    browser.post(f"{PEOPLE}/{person.pk}/leave", {"confirm": person.email})
    wrong = browser.post(url, {"confirm": "Somebody"})
    done = browser.post(url, {"confirm": "Viewer"})

    person.refresh_from_db()
    assert (early.status_code, wrong.status_code, done.status_code) == (409, 400, 302)
    assert person.display_name == "(erased)"


# --- who may ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_route_lets_only_those_in_whom_it_concerns(world, browse, ole):
    factories.tenant(name="acme-lab", parent=world.acme.tenant)
    ana = factories.person(name="Ana", platform=(PlatformRole.APPROVER,))
    aud = factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))
    who = (None, world.foreign.owner, world.acme.member, world.acme.owner, ana, ole, aud)
    browsers = [browse(person) for person in who]
    one = f"{PEOPLE}/{world.acme.viewer.pk}"
    lasting = Quota.objects.filter(tenant=world.acme.tenant)[0]
    platform, operator = [302, 403, 403, 403, 200, 200, 200], [302, 403, 403, 403, 403, 200, 403]
    expected = {
        ("GET", PAGE): platform,
        ("GET", f"{PAGE}/acme"): platform,
        ("GET", f"{PAGE}/new"): operator,
        ("POST", f"{PAGE}/new"): [302, 403, 403, 403, 403, 422, 403],
        ("GET", f"{PAGE}/acme/limits"): [302, 404, 403, 403, 403, 200, 403],
        ("GET", f"{PAGE}/acme-lab/limits"): [302, 404, 403, 200, 403, 200, 403],
        ("POST", f"{PAGE}/acme/limits"): [302, 404, 403, 403, 403, 422, 403],
        ("POST", f"{PAGE}/acme/limits/{lasting.pk}/remove"): [302, 404, 403, 403, 403, 404, 403],
        ("GET", f"{PAGE}/acme/suspend"): [302, 404, 403, 403, 403, 200, 403],
        ("POST", f"{PAGE}/acme/suspend"): [302, 404, 403, 403, 403, 422, 403],
        ("GET", f"{PAGE}/acme-lab/suspend"): [302, 404, 403, 200, 403, 200, 403],
        ("POST", f"{PAGE}/acme/resume"): [302, 404, 403, 403, 403, 400, 403],
        ("GET", PEOPLE): platform,
        ("GET", one): platform,
        ("POST", f"{one}/roles"): [302, 403, 403, 403, 403, 302, 403],
        ("POST", f"{one}/resume"): [302, 403, 403, 403, 403, 409, 403],
        ("GET", f"{one}/leave"): operator,
        ("POST", f"{one}/leave"): [302, 403, 403, 403, 403, 422, 403],
        ("POST", f"{one}/erase"): [302, 403, 403, 403, 403, 400, 403],
        ("POST", f"{one}/suspend"): [302, 403, 403, 403, 403, 302, 403],
    }

    found = {(method, url): [each.generic(method, url).status_code for each in browsers] for method, url in expected}

    assert found == expected


def test_every_change_needs_the_form_token(world, ole):
    from django.test import Client

    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(ole, backend="tenants.login.PersonBackend")
    one = f"{PEOPLE}/{world.acme.viewer.pk}"
    urls = [
        f"{PAGE}/new", *(f"{PAGE}/acme/{verb}" for verb in ("limits", "suspend", "resume")),
        f"{PAGE}/acme/limits/{Quota.objects.filter(tenant=world.acme.tenant)[0].pk}/remove",
        *(f"{one}/{verb}" for verb in ("roles", "suspend", "resume", "leave", "erase")),
    ]  # fmt: skip

    assert [browser.post(url).status_code for url in urls] == [403] * len(urls)
