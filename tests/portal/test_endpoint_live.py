"""The Live page: charts of the last minutes, and why there are none."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from tenants.endpoint_minutes import minute_of
from tenants.models import Boundary, Endpoint, EndpointMinute, GatewayReplica
from tenants.usage_times import TTFT_BOUNDS_MS, counted
from tests.conftest import NOW
from tests.portal.world import build

pytestmark = pytest.mark.usefixtures("db")
LIVE = "/t/acme/endpoints/chat/load"


@pytest.fixture
def world(db):
    made = build()
    boundary = Boundary.objects.filter(tenant=made.acme.tenant, kind="namespace").get()
    now = timezone.now()
    Endpoint.objects.filter(name="chat").update(boundary=boundary, phase="Ready", ready_at=now - timedelta(hours=1))
    GatewayReplica.objects.create(
        tenant=made.acme.tenant, boundary=boundary, created_at=now, enrolled_at=now, last_seen_at=now
    )
    return made


def minute(world, *, ago: int, **said) -> None:
    EndpointMinute.objects.create(
        tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, gateway=GatewayReplica.objects.get(),
        minute=minute_of(timezone.now()) - timedelta(minutes=ago), **said,
    )  # fmt: skip


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def test_six_charts_tell_of_the_last_minutes_in_pictures_words_and_tables(world, browse):
    minute(
        world, ago=2, requests=12, errors=2, prompt_tokens=600, completion_tokens=1200, running=5, queued=3,
        kv_cache=0.42, prefix_queries=400, prefix_hits=100, ttft_counts=counted([90] * 9 + [900], TTFT_BOUNDS_MS),
    )  # fmt: skip

    answer = browse(world.acme.viewer).get(LIVE)

    page, words = answer.content.decode(), text(answer)
    titles = (
        "Requests", "Tokens per second", "Time to first token", "Queue depth", "KV cache in use", "Prefix-cache hits",
    )  # fmt: skip
    assert [title for title in titles if f'chart-title">{title}<' in page] == list(titles)
    assert page.count("<figure") == page.count('role="img"') == page.count("<summary>As a table") == 6
    assert "Answered: last 10, lowest 10, highest 10" in page
    assert "Found in the cache: last 25, lowest 25, highest 25" in page
    assert "Fullest replica: last 42" in page
    assert words.count("simulated") >= 6
    assert "Nobody has asked" not in words


def test_what_no_server_says_gives_its_reason_not_a_nought(world, browse):
    minute(world, ago=1, requests=1, completion_tokens=5)

    words = text(browse(world.acme.member).get(LIVE))

    assert "No model server said how full its KV cache is." in words
    assert "Nothing was streamed in this time." in words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ready_at": None}, "It is not ready yet"),
        ({"slept_at": timezone.now()}, "It sleeps"),
        ({}, "Nothing was reported in this time"),
    ],
)
def test_without_figures_it_says_why_and_what_to_do(world, browse, change, said):
    Endpoint.objects.filter(name="chat").update(**change)

    answer = browse(world.acme.member).get(LIVE)

    assert said in text(answer)
    assert "<figure" not in answer.content.decode()


def test_figures_that_are_older_than_what_is_shown_are_one_click_away(world, browse):
    minute(world, ago=90, requests=1)

    page = browse(world.acme.member).get(LIVE).content.decode()

    assert "Its last figures are older than this." in page
    assert f'href="{LIVE}?minutes=360"' in page.replace(str(world.acme.endpoint.short_id), "chat")


def test_figures_of_a_gateway_that_is_away_are_dated(world, browse):
    minute(world, ago=3, requests=1)
    GatewayReplica.objects.update(last_seen_at=timezone.now() - timedelta(minutes=3))

    assert "Its gateway was last heard of 3 minutes ago" in text(browse(world.acme.member).get(LIVE))


def test_the_range_stands_in_the_address_and_the_part_keeps_it(world, browse):
    minute(world, ago=50, requests=3)
    member = browse(world.acme.member)

    hour, half = member.get(f"{LIVE}?minutes=60"), member.get(f"{LIVE}?minutes=30")
    part = re.search(r'hx-get="([^"]+)"', hour.content.decode())

    assert "<figure" in hour.content.decode()
    assert "<figure" not in half.content.decode()
    assert part is not None
    assert "<figure" in member.get(html.unescape(part[1])).content.decode()


def test_nobody_elses_figures_are_shown(world, browse):
    forged = GatewayReplica.objects.create(
        tenant=world.foreign.tenant,
        boundary=Boundary.objects.filter(tenant=world.foreign.tenant)[0],
        created_at=NOW,
        removed_at=NOW,
    )
    EndpointMinute.objects.create(
        tenant=world.foreign.tenant, endpoint_id=world.acme.endpoint.pk, gateway=forged, requests=77,
        minute=minute_of(timezone.now()),
    )  # fmt: skip

    assert "<figure" not in browse(world.acme.member).get(LIVE).content.decode()
    assert browse(world.foreign.member).get(LIVE).status_code == 404
