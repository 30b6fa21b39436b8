"""Benchmarks and the log on an endpoint's pages: asked for, followed, compared by revision; opened when it failed."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants.actor import SYSTEM
from tenants.benchmarks import Load, Result, Spread
from tenants.models import AddressCheck, Benchmark, Endpoint, EndpointLog
from tenants.operations import endpoint_logs
from tests.portal.world import build

pytestmark = pytest.mark.usefixtures("db")
CHAT = "/t/acme/endpoints/chat"
PAGE = f"{CHAT}/benchmarks"


@pytest.fixture
def world(db):
    made = build()
    Endpoint.objects.filter(pk=made.acme.endpoint.pk).update(
        phase="Ready", ready_at=timezone.now(), address="http://127.0.0.1:9/v1"
    )
    return made


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def measured(world, *, revision: int, ttft: float, load: Load | None = None, ago: int = 0) -> Benchmark:
    result = Result(
        100, 2, {"503": 2}, 10.0, 50_000, 12_800, Spread(ttft, ttft, ttft * 2), Spread(9.0, 8.0, 20.0),
        Spread(900.0, 800.0, 2000.0), simulated="all",
    )  # fmt: skip
    at = timezone.now() - timedelta(minutes=ago)
    return Benchmark.objects.create(
        tenant=world.acme.tenant, endpoint=world.acme.endpoint, revision=revision, load=(load or Load()).as_json(),
        state="done", sent=102, failed=2, result=result.as_json(), created_at=at, started_at=at, ended_at=at,
    )  # fmt: skip


def test_it_is_asked_for_in_a_dialog_followed_and_cancelled(world, browse):
    mia = browse(world.acme.member)

    asked = mia.post(f"{PAGE}/new", {"requests": "40", "input_tokens": "64", "output_tokens": "16", "concurrency": "4"})
    row = Benchmark.objects.get()
    page = mia.get(PAGE)
    cancelled = mia.post(f"{PAGE}/{row.short_id}/cancel")
    row.refresh_from_db()

    assert (asked.status_code, cancelled.status_code, row.state) == (302, 302, "cancelled")
    assert Load.of(row.load) == Load(40, 64, 16, 4)
    assert "0 of 40 requests" in text(page)
    assert "<progress" in page.content.decode()
    assert "a worker takes it within seconds" in text(page)


def test_a_card_tells_what_came_of_it_and_what_changed_since_the_revision_before(world, browse):
    measured(world, revision=1, ttft=100.0, ago=60)
    measured(world, revision=2, ttft=10.0, load=Load(7, 7, 7, 7), ago=30)
    measured(world, revision=2, ttft=80.0)

    page = text(browse(world.acme.viewer).get(PAGE))

    assert "Simulated: no model ran" in page
    assert "80 ms" in page
    assert "160 ms" in page
    assert "Beside revision 1" in page
    assert "First token, half of all 20.0 % less" in page
    assert "2 × 503" in page
    assert "1,280" in page
    assert "€" in page


def test_what_does_not_answer_cannot_be_measured_and_says_so(world, browse):
    Endpoint.objects.filter(name="chat").update(phase="Provisioning", address="")

    page = browse(world.acme.member).get(PAGE)

    assert "It can be once it answers" in text(page)
    assert 'data-opens="benchmark"' not in page.content.decode()


# --- the log -----------------------------------------------------------------------------------------


def test_the_log_opens_by_itself_where_it_failed_and_only_for_who_may_read_it(world, browse):
    Endpoint.objects.filter(name="chat").update(phase="Failed")

    member, viewer = browse(world.acme.member).get(CHAT), browse(world.acme.viewer).get(CHAT)
    Endpoint.objects.filter(name="chat").update(phase="Ready")
    well = browse(world.acme.member).get(CHAT)

    assert "Something is wrong, so here are its newest lines." in text(member)
    assert 'hx-trigger="load"' in member.content.decode()
    assert "newest lines" not in text(viewer)
    assert "newest lines" not in text(well)


def test_lines_are_asked_for_and_shown_when_a_worker_has_read_them(world, browse):
    mia = browse(world.acme.member)
    page = mia.get(f"{CHAT}/logs")
    asked = mia.post(f"{CHAT}/logs/ask", headers={"HX-Request": "true"})
    row = EndpointLog.objects.get()
    waiting = mia.get(f"{CHAT}/logs/{row.pk}")
    endpoint_logs.answered(
        log=row, lines=[("2026-01-02T03:04:05.6Z", "vllm", "ERROR <b>no memory</b>")], error="", actor=SYSTEM,
        now=timezone.now(),
    )  # fmt: skip
    shown = mia.get(f"{CHAT}/logs/{row.pk}")

    assert 'hx-trigger="load"' in page.content.decode()
    for answer in (asked, waiting):
        assert f"/logs/{row.pk}" in answer.content.decode()
        assert "every 700ms" in answer.content.decode()
    assert "every 700ms" not in shown.content.decode()
    assert "ERROR &lt;b&gt;no memory&lt;/b&gt;" in shown.content.decode()
    assert "Read it again" in text(shown)


def test_a_provider_that_cannot_be_read_is_told(world, browse):
    mia = browse(world.acme.member)
    mia.post(f"{CHAT}/logs/ask", headers={"HX-Request": "true"})
    row = EndpointLog.objects.get()
    endpoint_logs.answered(log=row, lines=[], error="It could not be read: away.", actor=SYSTEM, now=timezone.now())

    assert "It could not be read: away." in text(mia.get(f"{CHAT}/logs/{row.pk}"))


# --- the address ---------------------------------------------------------------------------------------


def looked_at(*, ok: bool, address: str = "https://chat.acme.example.net/v1") -> None:
    row = Endpoint.objects.get(name="chat")
    now = timezone.now()
    AddressCheck.objects.create(
        tenant_id=row.tenant_id, endpoint=row, address=address, ok=ok, checked_at=now, due_at=now,
        findings=[{"key": "name", "ok": ok, "text": "DNS has no record of chat.acme.example.net."}],
    )  # fmt: skip


def at(address: str, reachable_from: str) -> None:
    Endpoint.objects.filter(name="chat").update(
        address=address, reachable_from=reachable_from, observed={"leads_to": "http://10.0.0.7/v1"}
    )


def test_what_is_missing_of_an_address_stands_beside_it_with_the_record_to_set(world, browse):
    at("https://chat.acme.example.net/v1", "tenant")
    looked_at(ok=False)

    page = text(browse(world.acme.member).get(CHAT))

    assert "Not reached from outside yet" in page
    assert "DNS has no record of chat.acme.example.net." in page
    assert "chat.acme.example.net. A 10.0.0.7" in page


@pytest.mark.parametrize(
    ("reachable_from", "ok", "address", "said"),
    [
        ("tenant", True, "https://chat.acme.example.net/v1", "reached from outside"),
        ("tenant", True, "https://another.example.net/v1", "It is looked at from outside within a minute."),
        ("lab", False, "https://another.example.net/v1", "of this computer only"),
        ("cluster", False, "https://another.example.net/v1", "from inside the cluster only"),
    ],
)
def test_an_address_says_from_where_it_was_reached(world, browse, reachable_from, ok, address, said):
    at("https://chat.acme.example.net/v1", reachable_from)
    looked_at(ok=ok, address=address)

    page = text(browse(world.acme.member).get(CHAT))

    assert said in page
    assert "Not reached from outside yet" not in page
