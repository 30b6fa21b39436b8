"""The admin console in a real browser: nothing off the host, no error, no breach of its policy; one click decides."""

from __future__ import annotations

import pytest

from tenants.models import Decision, Request
from tenants.operations import requests
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW
from tests.portal.browser.conftest import PHONE, WIDE, serious

PAGES = ("/admin/", "/admin/inbox/", "/admin/tenants/host/", "/admin/tenants/event/?object_kind=request")


@pytest.fixture
def ana(db):
    return factories.person(name="Ana", platform=(PlatformRole.APPROVER,))


@pytest.fixture
def wish(db):
    acme = factories.tenant(name="acme", display_name="Acme Works")
    factories.host(factories.provider())
    return requests.submit(
        kind="quota", payload={"limits": {"vcpu": 8}}, reason="growth", tenant=acme,
        actor=factories.actor(factories.member(acme, Role.OWNER)), now=NOW,
    )  # fmt: skip


def test_an_approver_goes_from_the_overview_to_a_decision_by_one_click(visit, ana, wish):
    page = visit("/admin/", ana)

    page.get_by_role("link", name="8 virtual CPUs more").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/admin/inbox/")

    assert page.get_by_text("Nothing waits for you").is_visible()
    assert page.get_by_text("Approved: 8 virtual CPUs more.").first.is_visible()
    assert Request.objects.get(pk=wish.pk).state == "approved"
    assert Decision.objects.get(request=wish).decider_id == ana.pk


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light")])
def test_pages_of_the_console_have_no_serious_fault_and_fit(visit, ana, wish, size, scheme):
    page = visit("/admin/", ana, size=size, scheme=scheme)
    found = {}

    for path in (*PAGES, f"/admin/inbox/{wish.short_id}/", f"/admin/tenants/request/{wish.pk}/change/"):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        found[path] = serious(page)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path

    assert found == {path: [] for path in found}


def test_the_inbox_is_decided_by_keyboard_alone(visit, ana, wish):
    page = visit("/admin/inbox/", ana)

    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/admin/inbox/{wish.short_id}/")
    page.get_by_role("button", name="Approve").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/inbox/")

    assert Request.objects.get(pk=wish.pk).state == "approved"


def test_filters_and_search_of_a_list_work(visit, ana, wish):
    page = visit("/admin/tenants/request/", ana)

    page.get_by_text("Filters").first.click()
    page.get_by_role("link", name="denied").or_(page.get_by_label("denied")).first.wait_for()
    page.goto("/admin/tenants/request/?state=submitted")

    assert page.get_by_text(wish.short_id).first.is_visible()
