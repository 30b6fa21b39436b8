"""The admin console as the web role: platform roles read everything, decisions go through the operation."""

from __future__ import annotations

import re

import pytest
from django.apps import apps
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.db import connection
from django.test import Client

from tenants import login
from tenants.admin import LEFT_OUT
from tenants.models import Decision, Request
from tenants.operations import requests
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

SECRET = "correct horse battery staple"


@pytest.fixture
def web(settings, monkeypatch):
    """A browser; outside our transactions its connection is cp_app without an actor, so nothing shows."""
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    login._hash_of_nobody.cache_clear()

    def open_as(person):
        person.set_password(SECRET)
        person.save()
        client = Client()
        as_web()
        answer = client.post("/accounts/login/", {"login": person.email, "password": SECRET})
        assert answer.status_code == 302
        return client

    yield open_as
    as_worker()
    login._hash_of_nobody.cache_clear()


def as_web():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_app; SET app.actor = ''")


def as_worker():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_worker; SET app.actor = 'system'")


@pytest.fixture
def request_of_a_team():
    tenant = factories.tenant(name="acme")
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    return requests.submit(
        kind="quota", payload={"limits": {"vcpu": 8}}, reason="growth", tenant=tenant, actor=owner, now=NOW
    )


def staff(*roles):
    return factories.person(platform=roles)


def test_every_list_opens_for_an_auditor(web, request_of_a_team):
    browser = web(staff(PlatformRole.AUDITOR))

    answers = {
        model.__name__: browser.get(f"/admin/tenants/{model._meta.model_name}/").status_code
        for model in apps.get_app_config("tenants").get_models()
        if model not in LEFT_OUT
    }

    assert answers == dict.fromkeys(answers, 200)
    assert "acme" in browser.get("/admin/tenants/tenant/").content.decode()


def test_a_row_shows_no_password_and_no_digest(web):
    person = staff(PlatformRole.AUDITOR)
    browser = web(person)

    page = browser.get(f"/admin/tenants/person/{person.pk}/change/").content.decode()

    assert person.email in page
    assert "pbkdf2" not in page


def test_members_of_tenants_and_nobody_do_not_get_in(web):
    member = factories.member(factories.tenant(), Role.OWNER)

    for browser in (web(member), Client()):
        answer = browser.get("/admin/tenants/tenant/")
        assert (answer.status_code, answer.headers.get("Location", "")[:13]) == (302, "/admin/login/")


@pytest.mark.parametrize(
    "path", ["/admin/tenants/tenant/", "/admin/tenants/tenant/add/", "/admin/password_change/", "/admin/nothing/"]
)
def test_nothing_is_changed_by_the_console_itself(web, path):
    browser = web(staff(PlatformRole.OPERATOR))

    assert browser.post(path, {"name": "x"}).status_code == 405


def open_request(browser, row):
    return browser.get(f"/admin/tenants/request/{row.pk}/change/").content.decode()


def proof_in(page):
    import html

    return html.unescape(re.search(r'name="proof" value="([^"]*)"', page)[1])


def test_an_approver_sees_the_proof_and_decides(web, request_of_a_team):
    browser = web(staff(PlatformRole.APPROVER))
    page = open_request(browser, request_of_a_team)

    answer = browser.post(
        f"/admin/tenants/request/{request_of_a_team.pk}/decide/",
        {"version": "1", "verdict": "approve", "proof": proof_in(page)},
    )

    as_worker()
    assert "0 → 8, 0 in use" in page
    assert (answer.status_code, Request.objects.get().state) == (302, "approved")


def test_what_the_operation_refuses_is_a_message(web, request_of_a_team):
    browser = web(staff(PlatformRole.OPERATOR))
    page = open_request(browser, request_of_a_team)

    answer = browser.post(
        f"/admin/tenants/request/{request_of_a_team.pk}/decide/", {"version": "1", "verdict": "approve"}, follow=True
    )

    as_worker()
    assert 'id="decide"' not in page
    assert "This stage is decided by a platform approver." in answer.content.decode()
    assert (Request.objects.get().state, Decision.objects.count()) == ("submitted", 0)


def test_a_decision_needs_the_browsers_own_form(web, request_of_a_team):
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = web(staff(PlatformRole.APPROVER)).cookies

    answer = strict.post(f"/admin/tenants/request/{request_of_a_team.pk}/decide/", {"verdict": "approve"})

    as_worker()
    assert (answer.status_code, Decision.objects.count()) == (403, 0)


def test_a_session_ends_with_its_person(web):
    person = staff(PlatformRole.AUDITOR)
    browser = web(person)
    assert browser.get("/admin/tenants/tenant/").status_code == 200
    as_worker()
    type(person).objects.update(is_active=False)
    as_web()

    assert browser.get("/admin/tenants/tenant/").status_code == 302
