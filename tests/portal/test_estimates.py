"""What starts have taught, on operators' pages; asking for a model of one's own, on tenants'."""

from __future__ import annotations

import csv
import io
import json

import pytest
from django.db.models import F

from frontend.design import numbers
from tenants.models import FitCorrection, FitMeasurement, ModelStage, Request, ServedModel
from tenants.operations import requests
from tenants.states import PlatformRole
from tests import factories
from tests.conftest import NOW
from tests.portal.world import build
from tests.unit.test_model_configs import TINY

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db):
    return build()


@pytest.fixture
def operator(db):
    return factories.person(name="Ole Operator", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def learnt(world):
    """Of Llama on half an H100 one start was measured, whose cache took a quarter more than estimated."""
    row = FitCorrection.objects.create(
        model=ServedModel.objects.get(), product="H100-80GB", profile="3g.40gb", created_at=NOW
    )
    FitMeasurement.objects.create(
        correction=row, start=row.pk, program="vLLM 0.32.0", at=NOW, token_estimated=131072, token_reported=163840
    )
    return row


# --- estimates --------------------------------------------------------------------------------------------


def test_operators_see_the_difference_and_forget_it(browse, learnt, operator):
    browser = browse(operator)

    text = browser.get("/ops/estimates").content.decode()
    answer = browser.post(f"/ops/estimates/{learnt.pk}/reset", {"version": 1})
    after = browser.get("/ops/estimates").content.decode()

    assert "H100-80GB 3g.40gb" in text
    assert "× 1.250" in text
    assert "163,840, estimated 131,072" in text
    assert (answer.status_code, answer["Location"]) == (302, "/ops/estimates")
    assert "Estimates of llama-3-1-8b on H100-80GB 3g.40gb are as computed until the next start." in after
    assert "163,840" not in after
    learnt.refresh_from_db()
    assert learnt.reset_at is not None


def test_a_reset_of_what_was_reset_meanwhile_says_so(browse, learnt, operator):
    browser = browse(operator)
    browser.post(f"/ops/estimates/{learnt.pk}/reset", {"version": 1})

    answer = browser.post(f"/ops/estimates/{learnt.pk}/reset", {"version": 1}, follow=True)

    assert "look again" in answer.content.decode()


def test_the_list_is_a_file_as_well_and_auditors_only_read(browse, learnt):
    auditor = browse(factories.person(platform=(PlatformRole.AUDITOR,)))

    row = next(csv.DictReader(io.StringIO(auditor.get("/ops/estimates?format=csv").content.decode())))

    assert (row["model"], row["profile"], row["token_factor"], row["starts"]) == (
        "llama-3-1-8b", "3g.40gb", "1.250", "1",
    )  # fmt: skip
    assert "Forget" not in auditor.get("/ops/estimates").content.decode()
    assert auditor.post(f"/ops/estimates/{learnt.pk}/reset", {"version": 1}).status_code == 403


def test_members_see_that_an_estimate_was_corrected(browse, world, learnt):
    browser = browse(world.acme.member)

    models = browser.get("/t/acme/models?users=8&context=8192").content.decode()
    new = browser.get("/t/acme/new/endpoint?model=llama-3-1-8b&users=8&context=8192").content.decode()

    assert "Corrected by 1 measured start: cache × 1.25." in models
    assert "Corrected by 1 measured start: cache × 1.25." in new
    assert browser.get("/ops/estimates").status_code == 403


# --- a model of one's own ---------------------------------------------------------------------------------

FORM = {
    "name": "acme-manuals", "repository": "acme/manuals", "commit": "A" * 40, "licence": "mit",
    "config": json.dumps(TINY), "files": "1117600 model.safetensors\n 16777216 pytorch_model.bin\n",
    "reason": "our manuals",
}  # fmt: skip


def test_a_member_asks_for_a_model_and_the_request_says_what_is_known_of_it(browse, world):
    browser = browse(world.acme.member)

    assert "acme-" in browser.get("/t/acme/models/ask").content.decode()
    answer = browser.post("/t/acme/models/ask", FORM)

    request = Request.objects.get(kind="model")
    assert (answer.status_code, answer["Location"]) == (302, f"/t/acme/requests/{request.short_id}")
    text = browser.get(answer["Location"]).content.decode()
    assert "The model acme-manuals" in text
    assert "acme/manuals @ " + "a" * 40 in text
    assert "Licence: mit" in text
    assert "pytorch_model.bin" in text


def test_whoever_decides_sees_it_in_the_inbox_and_approves_it(browse, world):
    browse(world.acme.member).post("/t/acme/models/ask", FORM)
    request = Request.objects.get(kind="model")
    requests.decide(request=request, version=1, verdict="approve", actor=factories.actor(world.acme.owner), now=NOW)
    approver = browse(factories.person(platform=(PlatformRole.APPROVER,)))

    page = approver.get(f"/ops/inbox/{request.short_id}").content.decode()

    assert "A model of its own" in page
    assert "acme/manuals @ " in page
    assert "It cannot be approved" not in page


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("name", "manuals", "Begin the name with acme-"),
        ("commit", "main", "Pin a full commit"),
        ("config", "", "The catalogue has no figures of this repository"),
        ("config", "{", "This is no JSON."),
        ("config", json.dumps({**TINY, "auto_map": {"x": "y"}}), "code of its own"),
        ("files", "big.safetensors", "One file a line"),
        ("files", "5 model.bin", "could run code"),
        ("source", "ftp://x", "Say `hub`"),
    ],
)
def test_a_fault_stands_at_its_field(browse, world, field, value, sentence):
    answer = browse(world.acme.member).post("/t/acme/models/ask", {**FORM, field: value})
    text = answer.content.decode()

    assert answer.status_code == 422
    assert sentence in text.split(f'id="{field}-error"')[1].split("</p>")[0].replace("&#x27;", "'")
    assert not Request.objects.filter(kind="model").exists()


def test_an_operator_offers_an_unknown_model_by_its_configuration(browse, world, operator):
    browser = browse(operator)
    given = {**FORM, "name": "manuals", "source": "s3://weights/mirror", "gating": "ask Legal", "task": "embed"}

    answer = browser.post("/ops/offer-model", given)
    page = browser.get("/ops/models/manuals").content.decode()

    assert answer.status_code == 302
    row = ServedModel.objects.get(name="manuals")
    assert (row.source, row.gating, row.task, row.tenant) == ("s3://weights/mirror", "ask Legal", "embed", None)
    for shown in ("s3://weights/mirror", "ask Legal", "Embeds", row.config_digest[:12]):
        assert shown in page


def test_an_endpoint_whose_model_embeds_is_connected_to_by_embeddings(browse, world):
    browser = browse(world.acme.member)
    writes = browser.get("/t/acme/endpoints/chat").content.decode()
    ServedModel.objects.update(task="embed")
    type(world.acme.endpoint).objects.update(address="http://127.0.0.1:9/v1")

    embeds = browser.get("/t/acme/endpoints/chat").content.decode()

    assert "client.embeddings.create" not in writes
    assert "client.embeddings.create" in embeds
    assert "/embeddings" in embeds
    assert "chat.completions" not in embeds


# --- files of models --------------------------------------------------------------------------------------


def test_an_operator_brings_files_to_a_provider_follows_and_takes_them_away(browse, world, operator):
    world.provider.capabilities = {**world.provider.capabilities, "features": {"model-staging": True}}
    world.provider.save(update_fields=["capabilities"])
    browser = browse(operator)

    before = browser.get("/ops/models/llama-3-1-8b").content.decode()
    asked = browser.post("/ops/models/llama-3-1-8b/stage", {"provider": "estate"})
    again = browser.post("/ops/models/llama-3-1-8b/stage", {"provider": "estate"}, follow=True).content.decode()
    stage = ModelStage.objects.get()
    ModelStage.objects.update(state="running", bytes_done=4 * 2**30, bytes_total=16 * 2**30)
    running = browser.get("/ops/models/llama-3-1-8b").content.decode()
    left = browser.post("/ops/models/llama-3-1-8b/unstage", {"stage": str(stage.pk)})

    assert "Nowhere yet" in before
    assert asked.status_code == left.status_code == 302
    assert "or they are on their way" in again
    assert f"{numbers.size(4 * 2**30)} of {numbers.size(16 * 2**30)}" in running
    assert 'value="25"' in running
    stage.refresh_from_db()
    assert (stage.state, stage.removing) == ("running", True)


def test_what_failed_can_be_taken_away_until_it_is_asked_anew(browse, world, operator):
    world.provider.capabilities = {**world.provider.capabilities, "features": {"model-staging": True}}
    world.provider.save(update_fields=["capabilities"])
    browser = browse(operator)
    browser.post("/ops/models/llama-3-1-8b/stage", {"provider": "estate"})
    ModelStage.objects.update(state="failed", ended_at=F("asked_at"), message="there is no room left")

    failed = browser.get("/ops/models/llama-3-1-8b").content.decode()
    browser.post("/ops/models/llama-3-1-8b/stage", {"provider": "estate"})
    anew = browser.get("/ops/models/llama-3-1-8b").content.decode()

    assert "there is no room left" in failed
    assert failed.count("Take away") == anew.count("Take away") == 1


def test_a_provider_without_a_place_for_files_of_this_source_is_not_offered(browse, world, operator):
    features = {"model-staging": True, "model-staging:hub": False}
    world.provider.capabilities = {**world.provider.capabilities, "features": features}
    world.provider.save(update_fields=["capabilities"])
    browser = browse(operator)

    page = browser.get("/ops/models/llama-3-1-8b").content.decode()
    asked = browser.post("/ops/models/llama-3-1-8b/stage", {"provider": "estate"}, follow=True).content.decode()

    assert "No provider here can hold files of this model" in page
    assert "Give the model a mirror on NFS" in asked
    assert not ModelStage.objects.exists()


def test_where_nobody_can_hold_files_the_page_says_so(browse, world, operator):
    text = browse(operator).get("/ops/models/llama-3-1-8b").content.decode()

    assert "No provider here can hold files of this model" in text
