"""Personas: only where everything is simulated, and then without a password."""

from __future__ import annotations

import pytest

from tenants import demo
from tenants.models import Event
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def played(settings):
    settings.TENANTRY_DEMO = True
    acme = factories.tenant(name="acme")
    people = {}
    for one in demo.PERSONAS:
        who = factories.member(acme, who=factories.person(name=one.name))
        who.email = one.email
        who.save(update_fields=["email"])
        people[one.key] = who
    return people


def test_without_a_demo_there_are_no_personas_and_none_can_be_taken_up(browse):
    who = factories.member(factories.tenant(name="acme"))

    listed = browse(None).get("/personas")
    taken = browse(None).post("/personas", {"persona": "mia"})
    home = browse(who).get("/t/acme").content.decode()

    assert (listed.status_code, taken.status_code) == (404, 403)
    assert "Demo personas" not in home
    assert not Event.objects.filter(kind="person.demo-log-in").exists()


def test_a_real_provider_ends_the_demo_at_once(browse, played):
    factories.provider(name="real", kind="vsphere")

    answer = browse(None).post("/personas", {"persona": "mia"})

    assert answer.status_code == 403


def test_a_visitor_takes_up_a_persona_and_changes_it_in_the_bar(browse, played):
    browser = browse(None)

    assert "Owns acme and aurora" in browser.get("/personas").content.decode()
    first = browser.post("/personas", {"persona": "mia"})
    home = browser.get("/t/acme").content.decode()
    second = browser.post("/personas", {"persona": "ole"})

    assert (first.status_code, first["Location"]) == (302, "/")
    assert 'value="mia" aria-pressed="true"' in home
    assert 'value="ole" aria-pressed="false"' in home
    assert second.status_code == 302
    assert 'value="ole" aria-pressed="true"' in browser.get("/t/acme").content.decode()
    assert Event.objects.filter(kind="person.demo-log-in").count() == 2


def test_a_persona_that_is_not_there_is_not_found_and_the_form_needs_its_token(browse, played):
    from django.test import Client

    assert browse(None).post("/personas", {"persona": "nobody"}).status_code == 404
    assert Client(enforce_csrf_checks=True).post("/personas", {"persona": "mia"}).status_code == 403


def test_the_session_of_a_persona_is_among_its_sessions(browse, played):
    browser = browse(None)
    browser.post("/personas", {"persona": "mia"}, headers={"user-agent": "Firefox of Mia"})

    assert "Firefox of Mia" in browser.get("/accounts/sessions/").content.decode()
