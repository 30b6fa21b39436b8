"""The frame of the portal: log-in, roles, foreign tenants, problems, policies of routes."""

from __future__ import annotations

import re

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.urls import path

from frontend.kernel import page as kernel
from tenants.states import PlatformRole, Role
from tests import factories


def plain(answer):
    """Return a page without its form token, which differs each time."""
    return re.sub(r"[A-Za-z0-9]{64}", "", answer.content.decode())


def test_a_visitor_is_sent_to_the_log_in_and_back(browse):
    answer = browse(None).get("/t/acme?x=1")

    assert answer.status_code == 302
    assert answer["Location"].startswith("/")
    assert answer["Location"].endswith("?next=%2Ft%2Facme%3Fx%3D1")


def test_a_foreign_tenant_and_a_missing_one_look_the_same(browse):
    acme, globex = factories.tenant(name="acme"), factories.tenant(name="globex")
    browser = browse(factories.member(acme))

    foreign, missing = browser.get(f"/t/{globex.name}"), browser.get("/t/nowhere")

    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert plain(foreign) == plain(missing)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER, Role.OWNER])
def test_home_opens_for_every_role_of_the_tenant(browse, role):
    acme = factories.tenant(name="acme", display_name="Acme Works")

    answer = browse(factories.member(acme, role)).get("/t/acme")

    assert answer.status_code == 200
    assert "Acme Works" in answer.content.decode()
    assert answer["Cache-Control"] == "private, no-store"


def test_the_start_leads_to_the_own_tenant_and_else_to_the_first_steps(browse):
    acme = factories.tenant(name="acme")

    member = browse(factories.member(acme)).get("/")
    nobody = browse(factories.person()).get("/")

    assert (member.status_code, member["Location"]) == (302, "/t/acme")
    assert (nobody.status_code, nobody["Location"]) == (302, "/first")


def test_a_platform_role_sees_the_home_of_any_tenant(browse):
    factories.tenant(name="acme")

    answer = browse(factories.person(platform=(PlatformRole.AUDITOR,))).get("/t/acme")

    assert answer.status_code == 200


def test_every_portal_answer_carries_a_strict_policy_and_the_console_its_own(browse):
    acme = factories.tenant(name="acme")
    browser = browse(factories.member(acme))

    portal = browser.get("/t/acme")["Content-Security-Policy"]
    console = browse(factories.person(platform=(PlatformRole.AUDITOR,))).get("/admin/")["Content-Security-Policy"]

    assert "default-src 'self'" in portal
    assert "unsafe" not in portal
    assert "script-src 'self' 'unsafe-eval'" in console


def test_an_address_that_leads_nowhere_is_a_page_for_people_and_a_problem_for_machines(browse):
    person = browse(None).get("/no/such/page")
    machine = browse(None).get("/api/v1/no-such")

    assert (person.status_code, person["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert (machine.status_code, machine["Content-Type"]) == (404, "application/problem+json")


def test_a_route_without_a_policy_does_not_start():
    def bare(request: object) -> HttpResponse:
        return HttpResponse()

    with pytest.raises(ImproperlyConfigured, match="is no @page"):
        kernel.verify([path("bare", bare)])
    with pytest.raises(ImproperlyConfigured, match=r"no policy in tenants\.policies"):
        kernel.verify([path("odd", kernel.page("nothing.known")(bare))])


def test_a_method_that_a_page_does_not_take_is_405(browse):
    acme = factories.tenant(name="acme")

    answer = browse(factories.member(acme)).post("/t/acme")

    assert answer.status_code == 405
