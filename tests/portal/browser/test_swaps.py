"""What somebody is at outlives a swap: the focus, opened details, the chosen tab, the row that was walked to."""

from __future__ import annotations

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from tenants.models import Endpoint
from tests import factories
from tests.portal.world import build

ACTIVE = "document.activeElement"


@pytest.fixture
def world(db):
    return build()


def settled(page) -> None:
    """Wait until htmx is done with what it loads."""
    expect(page.locator(".htmx-request, .htmx-swapping, .htmx-settling, .htmx-added")).to_have_count(0)


def refresh(page, selector: str) -> None:
    """Let a part of the page load itself anew, as its poll or the stream would; wait until it has."""
    with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true"):
        page.evaluate(f"htmx.trigger('{selector}', 'sse:changed')")
    settled(page)


def test_a_field_keeps_the_focus_while_its_answer_is_worked_out(visit, world):
    page = visit("/t/acme/new/endpoint", world.acme.member)
    users = page.get_by_label("Users at once", exact=True)

    users.focus()
    with page.expect_response("**/new/endpoint?*"):
        page.keyboard.press("ArrowUp")
    settled(page)

    assert page.evaluate(f"{ACTIVE}.name") == "users"


def test_a_walked_row_keeps_the_focus_when_its_table_is_refreshed(visit, world):
    page = visit("/t/acme/endpoints", world.acme.member)

    page.keyboard.press("j")
    before = page.evaluate(f"{ACTIVE}.getAttribute('href')")
    Endpoint.objects.filter(pk=world.acme.endpoint.pk).update(phase="Ready", ready_at=timezone.now())
    refresh(page, "#rows")
    page.locator("#rows [data-phase=Ready]").first.wait_for()

    assert before.endswith("/t/acme/endpoints/chat")
    assert page.evaluate(f"{ACTIVE}.getAttribute('href')") == before
    assert page.locator("tr.is-at").count() == 1


def test_opened_details_and_the_chosen_tab_stay_when_the_state_is_refreshed(visit, world):
    Endpoint.objects.filter(pk=world.acme.endpoint.pk).update(
        phase="Ready", ready_at=timezone.now(), address="http://127.0.0.1:9/v1"
    )
    page = visit("/t/acme/endpoints/chat", world.acme.member)
    tabs = page.locator("#state").get_by_role("tab")

    tabs.nth(0).focus()
    page.keyboard.press("ArrowRight")
    chosen = page.evaluate(f"{ACTIVE}.textContent")
    page.locator("#state details > summary").last.click()
    opened = page.locator("#state details[open]").count()
    tabs.nth(1).focus()
    refresh(page, "#state")

    assert opened >= 1
    assert page.locator("#state details[open]").count() == opened
    assert page.locator("#state [role=tab][aria-selected=true]").inner_text() == chosen
    assert page.evaluate(f"{ACTIVE}.textContent") == chosen


def test_what_was_wrong_gets_the_focus_after_a_refused_form(visit, world, watch):
    watch.expected.append("422")
    factories.allow_keys(world.acme.tenant)
    factories.allow_keys(world.acme.tenant)
    page = visit("/t/acme/new/machine", world.acme.member)

    page.get_by_label("Public SSH key", exact=True).fill("no key")
    page.get_by_role("button", name="Make it").click()
    page.locator("[aria-invalid=true]").wait_for()

    assert page.evaluate(f"{ACTIVE}.getAttribute('aria-invalid')") == "true"


@pytest.mark.parametrize("address", ["/t/acme/endpoints", "/t/acme", "/t/acme/machines/box"])
def test_a_refresh_takes_the_focus_from_nobody_elsewhere(visit, world, address):
    page = visit(address, factories.member(world.acme.tenant))

    page.keyboard.press("/")
    page.keyboard.type("cha")
    refresh(page, "[hx-get]")

    assert page.evaluate(f"{ACTIVE}.value") == "cha"
