"""Pages of endpoints in the states between: asleep, waking, another revision taking over, a move, embeddings."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from frontend.views import playground_embeddings
from tenants.models import Endpoint, GatewayReplica, Move, Revision, Rollout, ServedModel
from tenants.states import ConditionType, Reason, set_condition
from tests.portal.world import build

pytestmark = pytest.mark.usefixtures("db")
ONE = "/t/acme/endpoints/chat"
PLAYGROUND = f"{ONE}/playground"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def world(db):
    made = build()
    Endpoint.objects.filter(name="chat").update(
        phase="Ready", address="http://127.0.0.1:9/v1", ready_at=timezone.now(), observed={"power": "on"}
    )
    return made


def text(answer):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.content.decode())))


def ready(world, status, reason):
    row = Endpoint.objects.get(pk=world.acme.endpoint.pk)
    return set_condition(
        row.conditions, ConditionType.READY, status, reason, "", now=timezone.now(), generation=row.generation
    )


def test_an_endpoint_that_sleeps_says_so_on_every_page_and_how_it_wakes(world, browse):
    Endpoint.objects.filter(name="chat").update(slept_at=timezone.now(), observed={"power": "off"})
    mia = browse(world.acme.member)

    shown, listed, play = (text(mia.get(path)) for path in (ONE, "/t/acme/endpoints", PLAYGROUND))

    assert "chat Asleep" in shown
    assert "Send it a request, or wake it" in shown
    assert "Asleep" in listed
    assert "It sleeps Your first question wakes it" in play


def test_one_that_still_ends_its_requests_goes_to_sleep(world, browse):
    Endpoint.objects.filter(name="chat").update(slept_at=timezone.now())

    assert "chat Going to sleep" in text(browse(world.acme.member).get(ONE))


def test_a_waking_one_says_that_nothing_is_to_be_done(world, browse):
    Endpoint.objects.filter(name="chat").update(
        phase="Provisioning", woken_at=timezone.now(), conditions=ready(world, "False", Reason.WAKING)
    )
    mia = browse(world.acme.member)

    assert "chat Waking" in text(mia.get(ONE))
    assert "requests wait until its model is loaded" in text(mia.get(ONE))
    assert "Send" in text(mia.get(PLAYGROUND))


def test_the_playground_opens_by_itself_once_the_endpoint_is_ready(world, browse):
    Endpoint.objects.filter(name="chat").update(phase="Provisioning")
    mia = browse(world.acme.member)

    page, before = mia.get(PLAYGROUND), mia.get(PLAYGROUND, headers=HTMX)
    Endpoint.objects.filter(name="chat").update(phase="Ready")
    after = mia.get(PLAYGROUND, headers=HTMX)

    assert f'hx-get="{PLAYGROUND}"' in page.content.decode().replace(str(world.acme.endpoint.short_id), "chat")
    assert "See how it is built" in text(page)
    assert (before.status_code, before.headers.get("HX-Refresh")) == (204, None)
    assert (after.status_code, after.headers.get("HX-Refresh")) == (204, "true")


# --- embeddings ---------------------------------------------------------------------------------------


@pytest.fixture
def embeds(world):
    ServedModel.objects.update(task="embed")
    return world


def test_a_model_that_embeds_is_offered_texts_to_compare_and_no_chat(embeds, browse):
    page = browse(embeds.acme.member).get(PLAYGROUND)

    assert "Compare them" in text(page)
    assert "Texts, one on each line" in text(page)
    assert "Ask it something" not in page.content.decode()


@pytest.mark.parametrize("body", ["no", "{}", '{"texts": []}', json.dumps({"texts": ["x"] * 9}), '{"texts": 3}'])
def test_texts_that_are_none_or_too_many_are_refused(embeds, browse, body):
    answer = browse(embeds.acme.member).post(f"{PLAYGROUND}/embed", body, content_type="application/json")

    assert answer.status_code == 400


def test_texts_go_to_the_embeddings_of_the_endpoint(embeds, browse, monkeypatch):
    seen = {}

    def put(request, row, body, *, path, told):
        seen.update(body=body, path=path, told=told)
        return playground_embeddings.playground.HttpResponse(status=204)

    monkeypatch.setattr(playground_embeddings.playground, "put", put)

    body = json.dumps({"texts": [" a cat ", "", "a dog"]})
    answer = browse(embeds.acme.member).post(f"{PLAYGROUND}/embed", body, content_type="application/json")

    assert answer.status_code == 204
    assert (seen["path"], seen["body"]) == ("embeddings", {"model": "chat", "input": ["a cat", "a dog"]})


# --- rollouts and moves ---------------------------------------------------------------------------------


@pytest.fixture
def rollout(world):
    """Half of the requests go to revision 2, which failed once in 40."""
    row = Endpoint.objects.get(name="chat")
    old = row.revision
    new = Revision.objects.create(
        tenant=row.tenant, endpoint=row, number=2, model=old.model, runtime=old.runtime, arguments={},
        created_at=timezone.now(),
    )  # fmt: skip
    now = timezone.now()
    GatewayReplica.objects.create(
        tenant=row.tenant, boundary=row.boundary, enrolled_at=now, last_seen_at=now, created_at=now,
        report={"started_at": "x", "endpoints": [
            {"uid": str(row.pk), "revisions": [{"revision": 2, "requests": 1040, "errors": 3}]},
        ]},
    )  # fmt: skip
    return Rollout.objects.create(
        tenant=row.tenant, endpoint=row, before=old, revision=new, strategy="canary", state="stepping", step=1,
        steps=[{"weight": 10, "seconds": 600}, {"weight": 50, "seconds": 600}], since=now - timedelta(seconds=150),
        limits={"error_rate": 0.05}, surge=uuid4(), created_at=now,
        baseline={str(GatewayReplica.objects.get().pk): {"started_at": "x", "requests": 1000, "errors": 2}},
    )  # fmt: skip


def test_a_canary_shows_its_step_what_came_of_its_share_and_when_it_is_aborted(world, rollout, browse):
    page = browse(world.acme.member).get(f"{ONE}/revisions")

    said = text(page)
    assert "50 % of the requests, 50 % go to revision 1" in said
    assert "Step 2 of 2" in said
    assert re.search(r"7 min (2\d|30) s left", said)
    assert "40: it is judged by them" in said
    assert "Failed 2.5 % at most 5 % may" in said
    assert "every 3s" in page.content.decode()


def test_one_that_is_held_has_no_time_left(world, rollout, browse):
    Rollout.objects.update(held_at=timezone.now())

    said = text(browse(world.acme.member).get(f"{ONE}/revisions"))

    assert "left" not in said
    assert "Step 2 of 2" in said


def test_a_move_that_is_watched_says_how_long_both_places_stay(world, browse):
    row = Endpoint.objects.get(name="chat")
    Move.objects.create(
        tenant=row.tenant, endpoint=row, source={"kind": "namespace"}, target={"kind": "vm"}, watch_s=300,
        state="watching", since=timezone.now() - timedelta(seconds=60), created_at=timezone.now(),
    )  # fmt: skip

    page = browse(world.acme.member).get(f"{ONE}/moves")

    assert re.search(r"(4 min|3 min 5\d s) left", text(page))
    assert "Old place given up" in text(page)
    assert "every 3s" in page.content.decode()
