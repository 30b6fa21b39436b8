"""A model server on its endpoint's page: what it says of itself beside the estimate, real and simulated told apart."""

from __future__ import annotations

import pytest
from django.utils import timezone

from tenants.models import Boundary, Endpoint
from tests.portal.world import build

pytestmark = pytest.mark.usefixtures("db")
ENGINE = {
    "program": "vLLM 0.32.0", "runs_on": "this machine's CPU; its GPU is simulated", "kv_cache_tokens": 8192,
    "kv_cache_bytes": 1073741824, "weights_bytes": None, "load_s": 31.5,
}  # fmt: skip


@pytest.fixture
def world(db):
    made = build()
    boundary, _ = Boundary.objects.get_or_create(
        tenant=made.acme.tenant, provider=made.provider, kind="namespace", defaults={"created_at": timezone.now()}
    )
    Endpoint.objects.filter(name="chat").update(boundary=boundary)
    return made


def reports(engine):
    chat = Endpoint.objects.get(name="chat")
    unit = chat.allocation.units.get()
    seen = {"unit": str(unit.pk), "backend": "http://127.0.0.1:9/v1", "ready": True}
    chat.observed = {"units": [seen if engine is None else {**seen, "engine": engine}]}
    chat.phase, chat.address = "Ready", "http://127.0.0.1:9/v1"
    chat.save(update_fields=["observed", "phase", "address"])


def test_a_real_model_server_is_shown_with_its_room_beside_the_estimate(world, browse):
    reports(ENGINE)

    page = browse(world.acme.member).get("/t/acme/endpoints/chat").content.decode()

    assert "Model server" in page
    assert "vLLM 0.32.0" in page
    assert "its GPU is simulated" in page
    assert "8,192" in page
    assert "131,072" in page
    assert "as estimated" in page


def test_a_stub_has_no_such_card(world, browse):
    reports(None)

    assert "Model server" not in browse(world.acme.member).get("/t/acme/endpoints/chat").content.decode()


@pytest.mark.parametrize(
    ("engine", "said"), [(ENGINE, "a real model server; its GPU is simulated"), (None, "comes from the sandbox")]
)
def test_the_playground_says_who_answers(world, browse, engine, said):
    reports(engine)

    assert said in browse(world.acme.member).get("/t/acme/endpoints/chat/playground").content.decode()
