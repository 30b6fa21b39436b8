"""The first path in a real browser: New → Deploy without a single edit → the page builds itself → an answer."""

from __future__ import annotations

import pytest
from django.utils import timezone

from tenants.models import Endpoint, Provider
from tests import drive, factories
from tests.portal.browser.conftest import PHONE, WORDS, serious


def test_from_new_to_an_answer_with_no_edit_and_one_submit(visit, answering):
    world = drive.world()
    world.clock.now = timezone.now()
    Provider.objects.update(capabilities={**world.provider.capabilities, "simulated": True})
    factories.served_model()
    acme = factories.tenant(name="acme", display_name="Acme Works")
    factories.generous(acme, "H100-80GB", "A100-80GB")

    page = visit("/t/acme", factories.member(acme))
    page.get_by_role("link", name="New", exact=True).first.click()
    page.get_by_role("link", name="Deploy a model").click()
    assert page.locator("[data-outlook=now]").is_visible()
    assert serious(page) == []
    page.get_by_role("button", name="Deploy").click()
    page.wait_for_url("**/t/acme/endpoints/*")

    assert page.locator(".secret-text").inner_text().startswith("tnt_")
    assert page.locator("#state [data-phase=Provisioning]").first.is_visible()
    assert serious(page) == []
    row = Endpoint.objects.get(tenant=acme)
    world.drive(drive.is_ready(row))
    page.locator("#state [data-phase=Ready]").first.wait_for(timeout=9000)  # told by the stream: the poll is 10 s
    assert page.locator("#badge [data-phase=Ready]").is_visible()

    Endpoint.objects.filter(pk=row.pk).update(address=answering)
    page.get_by_role("link", name="Open playground").click()
    page.get_by_role("button", name="Send").click()
    page.locator("[data-done=true]").wait_for(timeout=15000)
    assert page.locator(".bubble.is-assistant .bubble-text").inner_text() == "".join(WORDS)
    assert page.get_by_text("Simulated: the answer comes from the sandbox.").is_visible()
    assert serious(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_new_fits_a_phone_and_has_no_serious_fault(visit, scheme):
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]}))
    factories.served_model()
    acme = factories.tenant(name="acme")

    page = visit("/t/acme/new/endpoint", factories.member(acme), size=PHONE, scheme=scheme)

    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert serious(page) == []
