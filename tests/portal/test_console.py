"""The admin console as the web role: platform roles read everything, decisions go through the operation, nothing else
changes anything.
"""

from __future__ import annotations

import html
import json
import re

import pytest
from django.apps import apps
from django.db import IntegrityError, InternalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import get_resolver

from frontend.console import stylesheet
from frontend.console.registry import LEFT_OUT
from frontend.console.sheets import SHEETS
from frontend.console.tables import HIDDEN, Table
from frontend.kernel.security import CONSOLE, PORTAL
from tenants.models import Decision, Person, Provider, Request, RequestStage, Tenant
from tenants.operations import requests
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

INBOX = "/admin/inbox"
MODELS = [model for model in apps.get_app_config("tenants").get_models() if model not in LEFT_OUT]


def staff(*roles: PlatformRole, name: str = "Ana") -> Person:
    return factories.person(name=name, platform=roles, password="correct horse battery staple")


@pytest.fixture
def ana():
    return staff(PlatformRole.APPROVER)


@pytest.fixture
def acme():
    return factories.tenant(name="acme", display_name="Acme Works")


def ask(tenant, who, vcpu=8):
    return requests.submit(
        kind="quota", payload={"limits": {"vcpu": vcpu}}, reason="growth", tenant=tenant, actor=factories.actor(who),
        now=NOW,
    )  # fmt: skip


@pytest.fixture
def wish(acme):
    return ask(acme, factories.member(acme, Role.OWNER))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def field(page: str, name: str) -> str:
    return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', page)[1])


def snapshot() -> list[object]:
    return [Decision.objects.count(), *Request.objects.order_by("pk").values_list("pk", "state", "version")]


# --- who gets in ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_auditor_opens_every_list(browse, wish):
    browser = browse(staff(PlatformRole.AUDITOR))

    answers = {m.__name__: browser.get(f"/admin/tenants/{m._meta.model_name}/").status_code for m in MODELS}

    assert answers == dict.fromkeys(answers, 200)
    assert len(answers) >= 35
    assert "acme" in text(browser.get("/admin/tenants/tenant/"))


@pytest.mark.parametrize("role", list(PlatformRole))
def test_every_platform_role_gets_in(browse, role):
    browser = browse(staff(role))

    paths = ("/admin/", "/admin/inbox/", "/admin/tenants/event/", "/admin/portal.css")

    assert [browser.get(path).status_code for path in paths] == [200, 200, 200, 200]


@pytest.mark.parametrize("path", ["/admin/", "/admin/inbox/", "/admin/tenants/tenant/", "/admin/portal.css"])
def test_members_of_tenants_and_visitors_are_sent_to_the_log_in(browse, acme, path):
    owner = factories.member(acme, Role.OWNER)

    for browser in (browse(owner), browse(None)):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["Location"][:13]) == (302, "/admin/login/")
    assert browse(None).get("/admin/login/").headers["Location"] == "/accounts/login/"
    assert browse(None).get("/admin").headers["Location"] == "/admin/"


def test_a_second_factor_is_asked_for_here_as_in_the_portal(ana, settings):
    from frontend.accounts import middleware

    settings.TENANTRY_SECOND_FACTOR = "operators"
    request = type("R", (), {"user": Person.objects.prefetch_related("platform_memberships").get(pk=ana.pk)})()
    request.session = {}

    assert not "/admin/".startswith(middleware.FREE_OF_FACTORS)
    assert middleware.must_prove(request) is True


def test_a_session_ends_with_its_person(browse, ana):
    browser = browse(ana)
    assert browser.get("/admin/tenants/tenant/").status_code == 200
    Person.objects.filter(pk=ana.pk).update(is_active=False)

    assert browser.get("/admin/tenants/tenant/").status_code == 302


def test_the_console_leaves_by_the_portals_log_out(browse, ana):
    browser = browse(ana)

    assert browser.post("/admin/logout/").status_code == 302
    assert browser.get("/admin/").status_code == 302


# --- nothing is written -----------------------------------------------------------------------------------


def test_no_table_can_be_added_to_changed_or_deleted_from(rf, ana):
    from django.contrib import admin

    request = rf.get("/admin/")
    request.user = Person.objects.prefetch_related("platform_memberships").get(pk=ana.pk)
    tables = dict(admin.site._registry)

    assert set(tables) == set(MODELS)
    assert all(isinstance(table, Table) for table in tables.values())
    may = {
        (t.has_add_permission(request), t.has_change_permission(request), t.has_delete_permission(request))
        for t in tables.values()
    }
    assert may == {(False, False, False)}
    assert all(table.get_actions(request) == {} for table in tables.values())


def test_every_address_of_the_console_refuses_to_change_anything(browse, wish):
    browser = browse(staff(PlatformRole.OPERATOR))
    before = snapshot()
    urls = [f"/admin/tenants/{m._meta.model_name}/" for m in MODELS]
    urls += [f"{url}add/" for url in urls] + [
        f"/admin/tenants/request/{wish.pk}/{word}/" for word in ("change", "delete", "history")
    ]

    answers = {url: browser.post(url, {"action": "delete_selected", "name": "x"}).status_code for url in urls}

    assert answers == dict.fromkeys(answers, 405)
    assert snapshot() == before


def test_no_page_of_the_console_decides_by_get(browse, ana, wish):
    browser = browse(ana)
    before = snapshot()
    names = [p for p in get_resolver().reverse_dict if isinstance(p, str)]

    answers = [
        browser.get(f"{INBOX}/{wish.short_id}/decide/", {"verdict": "approve", "version": "1"}).status_code,
        browser.get(f"{INBOX}/equal/approve/", {"take": wish.short_id}).status_code,
        browser.get(f"{INBOX}/{wish.short_id}/").status_code,
    ]

    assert names is not None
    assert answers == [405, 405, 200]
    assert snapshot() == before


def test_a_row_shows_no_password_no_digest_and_its_events(browse, ana, wish):
    from django.db.models import BinaryField

    browser = browse(ana)

    person = browser.get(f"/admin/tenants/person/{ana.pk}/change/")
    asked = browser.get(f"/admin/tenants/request/{wish.pk}/change/")
    shown = {f.name for m in MODELS for f in m._meta.concrete_fields if f.name in HIDDEN or isinstance(f, BinaryField)}

    assert ana.email in text(person)
    assert ("Password" in text(person), "argon2" in text(person), "pbkdf2" in text(person)) == (False, False, False)
    assert "request.submitted" in text(asked)
    assert {"password", "digest", "sealed"} <= shown


@pytest.mark.parametrize("key", ["nonsense", "0193f0a1-7c3e-7b54-9d1f-3f0f5a2b8c11"])
def test_a_row_that_is_not_there_is_not_found(browse, ana, key):
    assert browse(ana).get(f"/admin/tenants/tenant/{key}/change/").status_code == 404


def test_every_sheet_names_columns_that_exist():
    for model, sheet in SHEETS.items():
        list(
            model.objects.select_related(*{c.rpartition("__")[0] for c in sheet.columns if "__" in c}).order_by(
                *sheet.order
            )[:1]
        )
        for column in sheet.columns:
            if column != "who":  # by the list itself
                model.objects.values(column)


def test_lists_are_searched_and_filtered(browse, ana, acme):
    factories.tenant(name="zebra")
    browser = browse(ana)

    found = text(browser.get("/admin/tenants/tenant/?q=zeb"))
    none = text(browser.get("/admin/tenants/tenant/?status=closed"))

    assert ("zebra" in found, "Acme Works" in found) == (True, False)
    assert ("zebra" in none, "Acme Works" in none) == (False, False)


# --- decisions --------------------------------------------------------------------------------------------


def test_the_first_page_shows_the_inbox_and_what_needs_a_look(browse, ana, wish):
    page = text(browse(ana).get("/admin/"))

    assert "8 virtual CPUs more" in page
    assert all(label in page for label in ("Open findings", "Hosts with a fault", "What happened last"))


def test_the_console_shows_the_same_proof_by_the_same_template(browse, ana, wish):
    browser = browse(ana)

    console, portal = browser.get(f"{INBOX}/{wish.short_id}/"), browser.get(f"/ops/inbox/{wish.short_id}")

    names = [[t.name for t in answer.templates if t.name] for answer in (console, portal)]
    assert all("frontend/pages/inbox/_decide.html" in each for each in names)
    one, other = (json.loads(field(answer.content.decode(), "proof")) for answer in (console, portal))
    assert one["quota"]
    assert {**one, "at": ""} == {**other, "at": ""}
    assert f'action="{INBOX}/{wish.short_id}/decide/"' in console.content.decode()


def test_an_approver_decides_by_one_click_and_gets_the_next(browse, ana, acme, wish):
    other = ask(acme, factories.member(acme, Role.OWNER), vcpu=4)
    browser = browse(ana)
    page = browser.get(f"{INBOX}/{wish.short_id}/").content.decode()

    answer = browser.post(
        f"{INBOX}/{wish.short_id}/decide/",
        {"version": field(page, "version"), "verdict": "approve", "proof": field(page, "proof")},
    )

    wish.refresh_from_db()
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{INBOX}/{other.short_id}/")
    assert wish.state == "approved"
    assert Decision.objects.get(request=wish).decider_id == ana.pk


def test_a_decision_needs_the_form_of_the_browser(ana, wish, browse):
    browse(ana)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(ana, backend="tenants.login.PersonBackend")
    before = snapshot()

    answers = [
        strict.post(f"{INBOX}/{wish.short_id}/{word}/", {"verdict": "approve"}).status_code
        for word in ("decide", "comment")
    ]
    answers.append(strict.post(f"{INBOX}/equal/approve/", {"take": wish.short_id}).status_code)

    assert answers == [403, 403, 403]
    assert snapshot() == before


def test_who_does_not_decide_is_told_so_and_changes_nothing(browse, wish):
    browser = browse(staff(PlatformRole.OPERATOR))
    before = snapshot()

    page = browser.get(f"{INBOX}/{wish.short_id}/")
    answer = browser.post(f"{INBOX}/{wish.short_id}/decide/", {"version": "1", "verdict": "approve"})

    assert ("Not yours to decide now" in text(page), 'name="verdict"' in page.content.decode()) == (True, False)
    assert answer.status_code == 403
    assert snapshot() == before


def own_wish(acme):
    """A request of somebody who is approver as well."""
    both = factories.member(acme, Role.OWNER, who=staff(PlatformRole.APPROVER, name="Both"))
    return both, ask(acme, both)


def test_nobody_decides_his_own_request_here(browse, acme):
    both, mine = own_wish(acme)
    browser = browse(both)
    before = snapshot()

    page = browser.get(f"{INBOX}/{mine.short_id}/")
    one = browser.post(f"{INBOX}/{mine.short_id}/decide/", {"version": "1", "verdict": "approve"})

    assert ("You asked for this yourself" in text(page), 'name="verdict"' in page.content.decode()) == (True, False)
    assert one.status_code == 403
    assert snapshot() == before


def test_nobody_decides_his_own_request_in_bulk(browse, acme):
    both, mine = own_wish(acme)
    theirs = ask(acme, factories.member(acme, Role.OWNER))
    browser = browse(both)
    page = browser.get(f"{INBOX}/{theirs.short_id}/").content.decode()

    answer = browser.post(
        f"{INBOX}/equal/approve/",
        {
            "take": [mine.short_id, theirs.short_id],
            f"version:{mine.short_id}": "1", f"version:{theirs.short_id}": "1",
            f"proof:{mine.short_id}": field(page, "proof"), f"proof:{theirs.short_id}": field(page, "proof"),
        },
        follow=True,
    )  # fmt: skip

    mine.refresh_from_db()
    theirs.refresh_from_db()
    assert (mine.state, theirs.state) == ("submitted", "approved")
    assert Decision.objects.filter(request=mine).count() == 0
    assert mine.short_id in text(answer)


def test_the_database_refuses_ones_own_decision_whoever_writes_it(acme):
    both, mine = own_wish(acme)
    stage = RequestStage.objects.filter(request=mine).first()

    with pytest.raises(IntegrityError, match="decision_not_own"), transaction.atomic():
        Decision.objects.create(
            request=mine, tenant=acme, request_version=1, stage=stage, requester=both, decider=both, verdict="approve",
            created_at=NOW,
        )  # fmt: skip

    assert Decision.objects.filter(request=mine).count() == 0


def test_equal_requests_are_approved_together_each_by_its_own_decision(browse, ana, acme):
    houses = [acme, factories.tenant(name="beta"), factories.tenant(name="gamma")]
    rows = [ask(house, factories.member(house, Role.OWNER)) for house in houses]
    browser = browse(ana)
    listed = browser.get(f"{INBOX}/").content.decode()
    url = html.unescape(re.search(rf'href="({INBOX}/equal/\?key=[0-9a-f]+)"', listed)[1])
    page = browser.get(url).content.decode()
    form = {"take": [row.short_id for row in rows]}
    for row in rows:
        form |= {name: field(page, name) for name in (f"version:{row.short_id}", f"proof:{row.short_id}")}

    answer = browser.post(f"{INBOX}/equal/approve/", form)

    assert (answer.status_code, answer.headers["Location"]) == (302, f"{INBOX}/")
    assert set(Request.objects.values_list("state", flat=True)) == {"approved"}
    assert Decision.objects.filter(decider=ana).count() == 3


# --- policy, queries --------------------------------------------------------------------------------------


def test_only_the_console_may_evaluate_expressions(browse, ana):
    browser = browse(ana)

    console = browser.get("/admin/").headers["Content-Security-Policy"]
    portal = browser.get("/ops/inbox").headers["Content-Security-Policy"]

    assert ("unsafe-eval" in console, "unsafe-eval" in portal) == (True, False)
    assert ("unsafe-inline" in portal, "default-src 'self'" in console) == (False, True)
    assert "'unsafe-inline'" not in CONSOLE["script-src"]
    assert {key: CONSOLE[key] for key in PORTAL} == dict(PORTAL)


def test_the_portals_styles_stay_inside_its_parts():
    css = stylesheet.scoped()

    assert css.startswith("@layer portal { @scope (.portal-part) {")
    assert ":root" not in css
    assert re.search(r"(?<![\w.#-])body\s*\{", css) is None
    assert css.count("{") == css.count("}")


def queries(browser, url: str) -> int:
    browser.get(url)
    with CaptureQueriesContext(
        connection,
    ) as seen:
        assert browser.get(url).status_code == 200
    return len(seen)


@pytest.mark.parametrize("model", ["tenant", "host", "request", "event", "person", "provider"])
def test_the_number_of_queries_of_a_list_does_not_depend_on_its_length(browse, ana, acme, model):
    browser = browse(ana)
    provider = factories.provider(name="estate")

    def more(n: int) -> None:
        for index in range(n):
            factories.tenant(name=f"t{Tenant.objects.count()}-{index}")
            factories.host(provider, gpus=1)
            ask(acme, factories.member(acme, Role.OWNER))

    more(3)
    few = queries(browser, f"/admin/tenants/{model}/")
    more(9)
    many = queries(browser, f"/admin/tenants/{model}/")

    assert Provider.objects.count() == 1
    assert few == many
    assert many <= 20


def test_the_frameworks_other_pages_are_closed_or_empty_and_never_fail(browse, ana, wish):
    browser = browse(ana)
    base = "/admin/tenants/request/"

    answers = {
        path: browser.get(path).status_code
        for path in (
            f"{base}add/", f"{base}{wish.pk}/delete/", f"{base}{wish.pk}/history/", "/admin/tenants/", "/admin/jsi18n/",
            "/admin/search/?s=host", "/admin/autocomplete/", "/admin/nothing/", f"{base}?bogus=1", f"{base}?p=9999",
            "/admin/inbox/rq-zzzz/", "/admin/inbox/?format=csv", "/admin/inbox/equal/?key=none",
            "/admin/password_change/", "/admin/auth/", "/admin/mfa/",
        )
    }  # fmt: skip

    assert answers == {
        f"{base}add/": 403, f"{base}{wish.pk}/delete/": 403, f"{base}{wish.pk}/history/": 302, "/admin/tenants/": 200,
        "/admin/jsi18n/": 200, "/admin/search/?s=host": 200, "/admin/autocomplete/": 403, "/admin/nothing/": 404,
        f"{base}?bogus=1": 302, f"{base}?p=9999": 200, "/admin/inbox/rq-zzzz/": 404, "/admin/inbox/?format=csv": 200,
        "/admin/inbox/equal/?key=none": 302, "/admin/password_change/": 302, "/admin/auth/": 404, "/admin/mfa/": 404,
    }  # fmt: skip


def test_the_database_refuses_whatever_a_page_of_the_console_would_write(browse, ana, acme, monkeypatch):
    def careless(table, request, object_id, from_field=None):
        Tenant.objects.update(display_name="changed")

    browser = browse(ana)
    url = f"/admin/tenants/tenant/{acme.pk}/change/"
    assert browser.get(url).status_code == 200
    monkeypatch.setattr(Table, "get_object", careless)

    answer = browser.get(url)

    assert answer.status_code == 500
    assert isinstance(answer.exc_info[1], InternalError)
    assert "read-only transaction" in str(answer.exc_info[1])
    assert Tenant.objects.get().display_name == "Acme Works"
