"""Endpoints' pages in a browser: texts are compared by a model that embeds, and a phone shows the tab that is open."""

from __future__ import annotations

from django.utils import timezone

from tenants.models import Endpoint, ServedModel
from tests.portal.browser.conftest import PHONE, serious
from tests.portal.world import build


def test_texts_are_compared_by_a_model_that_embeds(visit, answering):
    world = build()
    ServedModel.objects.update(task="embed")
    Endpoint.objects.filter(name="chat").update(phase="Ready", address=answering, ready_at=timezone.now())
    page = visit("/t/acme/endpoints/chat/playground", world.acme.member, size=PHONE)

    page.get_by_label("Texts, one on each line").fill("a cat\n\na dog")
    page.get_by_role("button", name="Compare them").click()
    page.locator("[data-done=true]").wait_for(timeout=15000)

    assert page.locator(".near td").all_inner_texts() == ["1.00", "0.71", "0.71", "1.00"]
    assert "6 tokens · 2 figures each" in page.locator("[data-playground-figures]").inner_text()
    assert serious(page) == []


def test_on_a_phone_the_tab_that_is_open_is_seen(visit):
    world = build()

    page = visit("/t/acme/endpoints/chat/cost", world.acme.member, size=PHONE)

    tab = page.locator(".tabs [aria-current=page]").bounding_box()
    assert tab["x"] >= 0
    assert tab["x"] + tab["width"] <= PHONE[0]
