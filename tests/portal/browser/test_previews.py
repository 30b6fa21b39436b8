"""Previews that follow what is typed, also before a form is complete; the focus stays where it is."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from django.utils import timezone

from tenants.models import Price, PriceList
from tenants.operations import requests
from tenants.states import PlatformRole, Role
from tests import factories
from tests.portal.browser.conftest import serious

GPU = "gpu.H100-80GB.slices"


def test_rules_prices_and_limits_are_previewed_while_they_are_typed(visit):
    factories.host(factories.provider())
    acme = factories.tenant(name="acme", display_name="Acme Works")
    factories.set_limit(acme, GPU, 10)
    asking = factories.actor(factories.member(acme, Role.OWNER))
    at = timezone.now() - timedelta(days=3)
    until = (at + timedelta(days=2)).isoformat()
    requests.submit(
        kind="quota", payload={"limits": {GPU: 2}, "until": until}, reason="", tenant=acme, actor=asking, now=at
    )
    listed = PriceList.objects.create(name="first", valid_from=at, created_at=at)
    Price.objects.create(price_list=listed, item=GPU, amount=Decimal("0.4"))
    ole = factories.person(platform=(PlatformRole.OPERATOR,))

    page = visit("/ops/decisions/rules/new", ole)
    page.locator(f"[name='limit:{GPU}']").fill("2")
    page.keyboard.press("Tab")
    page.locator("#preview .stat-value", has_text="1").first.wait_for()
    assert page.locator("#preview tbody tr").count() == 1
    assert page.evaluate("document.activeElement.tagName") == "INPUT"
    assert serious(page) == []

    page.goto(page.url.replace("/ops/decisions/rules/new", "/ops/prices/new"))
    page.locator(f"[name='price:{GPU}']").fill("0.5")
    page.keyboard.press("Tab")
    page.locator("#preview", has_text="+25 %").wait_for()

    page.goto(page.url.replace("/ops/prices/new", "/ops/tenants/acme/limits"))
    page.locator(f"[name='amount:{GPU}']").fill("4")
    page.keyboard.press("Tab")
    page.locator("#plan", has_text="−6").or_(page.locator("#plan", has_text="-6")).first.wait_for()
    page.get_by_role("button", name="Set limits").click()
    page.get_by_role("heading", name="Change the limits of Acme Works?").wait_for()
    page.get_by_role("button", name="Set these limits").click()
    page.get_by_text("1 limit of Acme Works changed.").wait_for()
    assert serious(page) == []
