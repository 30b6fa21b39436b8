"""A canary on the page of revisions and in the API: what came of its requests, beside what they may cost."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from provisioners.gateway import protocol
from tenants import canary_figures
from tenants.models import Endpoint, GatewayReplica, Revision, Rollout
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
PAGE = "/t/acme/endpoints/chat/revisions"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def live(world: World) -> Rollout:
    row: Endpoint = world.acme.endpoint
    before = row.revision
    after = Revision.objects.create(
        tenant=row.tenant, endpoint=row, number=before.number + 1, model=before.model, runtime=before.runtime,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    return Rollout.objects.create(
        tenant=row.tenant, endpoint=row, before=before, revision=after, strategy="canary", surge=uuid4(),
        steps=[{"weight": 10, "seconds": 300}], limits={"error_rate": 0.05, "latency_ms": 800, "min_requests": 20},
        state="stepping", since=datetime.now(UTC), created_at=datetime.now(UTC),
    )  # fmt: skip


def reported(row: Endpoint, revision: int, *, requests: int, errors: int, slow: int) -> None:
    latency = [requests - slow, *[0] * (len(protocol.LATENCY_MS) - 1), slow]
    shown = {"revision": revision, "requests": requests, "errors": errors, "latency": latency}
    report = {"started_at": "2026-01-01T00:00:00Z", "endpoints": [{"uid": str(row.pk), "revisions": [shown]}]}
    GatewayReplica.objects.update_or_create(
        tenant=row.tenant, boundary=row.boundary, defaults={"report": report, "created_at": datetime.now(UTC)}
    )


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def test_gateways_and_those_who_judge_count_answers_by_the_same_bounds() -> None:
    assert canary_figures.LATENCY_MS == protocol.LATENCY_MS


def test_the_page_says_how_many_requests_it_takes_and_what_came_of_them(world, live, browse):
    mia = browse(world.acme.member)

    reported(live.endpoint, live.revision.number, requests=8, errors=0, slow=0)
    few = text(mia.get(PAGE))
    reported(live.endpoint, live.revision.number, requests=200, errors=4, slow=6)
    enough = text(mia.get(PAGE))

    assert "8 of the 20 that it takes to judge it" in few
    assert "200: it is judged by them" in enough
    assert re.search(r"Failed 2(\.0)? % at most 5 % may", enough), enough
    assert re.search(r"Slower than 800 ms 3(\.0)? % at most 5 % may", enough), enough


def test_nothing_asked_is_no_share(world, live, browse):
    shown = text(browse(world.acme.member).get(PAGE))

    assert "0 of the 20 that it takes to judge it" in shown
    assert "Failed -- at most" in shown


def test_one_that_was_aborted_says_why_and_what_comes_next_until_another_one_begins(world, live, browse):
    mia = browse(world.acme.member)
    assert "taken back" not in text(mia.get(PAGE))

    why = "4 of 40 requests failed, at most 5 % may."
    Rollout.objects.update(state="aborted", reason=why, ended_at=datetime.now(UTC))
    said = text(mia.get(PAGE))
    Endpoint.objects.filter(pk=live.endpoint_id).update(revision=live.revision)
    later = text(mia.get(PAGE))

    assert f"Revision {live.revision.number} was taken back {why}" in said
    assert f"Revision {live.before.number} gets all requests again." in said
    assert "taken back" not in later
