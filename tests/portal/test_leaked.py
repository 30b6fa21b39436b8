"""Leaked? What a pasted text holds, for whom; nothing of it is kept or shown."""

from __future__ import annotations

import re

import pytest
from django.utils import timezone

from tenants.models import EndpointKey, Event
from tests.api.client import token_of
from tests.portal.world import CANARY, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db):
    return build()


def text(answer) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.content.decode()))


def test_a_key_in_a_text_is_found_and_leads_to_where_it_is_rolled(world, browse):
    events = Event.objects.count()

    answer = browse(world.acme.member).post("/leaked", {"text": f"export KEY={world.acme.secret}\nother"})

    assert answer.status_code == 200
    assert "It still works" in text(answer)
    assert f"Belongs to chat, {world.acme.tenant.display_name}" in text(answer)
    assert f'href="/t/acme/endpoints/{world.acme.endpoint.short_id}/keys"' in answer.content.decode()
    assert world.acme.secret not in answer.content.decode()
    assert Event.objects.count() == events


def test_a_key_that_was_revoked_is_said_to_open_nothing(world, browse):
    EndpointKey.objects.filter(pk=world.acme.key.pk).update(revoked_at=timezone.now())

    answer = browse(world.acme.member).post("/leaked", {"text": world.acme.secret})

    assert "It has ended and opens nothing" in text(answer)


def test_a_foreign_key_and_no_key_are_answered_alike(world, browse):
    member = browse(world.acme.member)

    foreign = text(member.post("/leaked", {"text": world.foreign.secret}))
    nothing = text(member.post("/leaked", {"text": "nothing here"}))

    assert "No key or token that you may see is in this text" in foreign
    assert CANARY not in foreign
    assert foreign.split("Something leaked?")[-1] == nothing.split("Something leaked?")[-1]


def test_ones_own_token_leads_to_ones_tokens(world, browse):
    plain = token_of(world.acme.member)

    answer = browse(world.acme.member).post("/leaked", {"text": plain})

    assert "Open your tokens" in text(answer)
    assert plain not in answer.content.decode()


def test_a_visitor_is_sent_to_the_log_in(browse, db):
    assert browse(None).get("/leaked")["Location"] == "/accounts/login/?next=%2Fleaked"
