"""Plans over hosts through Django's client: whom one touches, who was told, beginning early, aborting."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants.models import EndpointKey, Host, HostPlan, Notice
from tenants.operations import inventory
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db: None) -> World:
    made = build()
    factories.host(made.provider)
    return made


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def drain(who, *, days: int = 2) -> HostPlan:
    now = timezone.now()
    host = Host.objects.filter(units__isnull=False).distinct().get()
    return inventory.drain(
        host=host, reason="new firmware", actor=factories.actor(who), now=now,
        starts_at=now + timedelta(days=days) if days else None,
    )  # fmt: skip


def test_a_plan_says_whom_it_touches_where_they_go_and_who_was_told(world, browse, ole, aud):
    EndpointKey.objects.filter(pk=world.acme.key.pk).update(last_used_at=timezone.now())
    plan = drain(ole)

    said = text(browse(aud).get(f"/ops/plans/{plan.short_id}"))

    other = Host.objects.exclude(pk=plan.host_id).get().name
    assert f"Drain: {plan.host.name} Notice runs Simulated" in said
    assert f"chat acme moves to {other} 0 1 / 1 Not yet" in said
    assert "space acme stays until its tenant lets go" in said
    assert "Tenants 2 Move 4" in said
    assert "Only stop 2" in said
    assert "acme now Work on the hardware under your objects begins at" in said
    assert "Start now" not in said
    assert "Abort" not in said


def test_a_notice_is_ended_early_and_its_tenants_are_told_again(world, browse, ole):
    plan = drain(ole)
    browser = browse(ole)
    assert 'action="/ops/plans/' in browser.get(f"/ops/plans/{plan.short_id}").content.decode()

    sent = browser.post(f"/ops/plans/{plan.short_id}/start", {"version": plan.version}, follow=True)

    plan.refresh_from_db()
    assert plan.starts_at <= timezone.now()
    assert Notice.objects.filter(object_id=plan.pk).count() == 4
    assert "It begins now. 2 tenants were told." in text(sent)
    assert "Under way" in text(sent)


def test_a_plan_is_aborted_and_the_host_is_as_it_was(world, browse, ole):
    plan = drain(ole)

    sent = browse(ole).post(f"/ops/plans/{plan.short_id}/abort", {"version": plan.version}, follow=True)

    plan.refresh_from_db()
    assert (plan.state, Host.objects.get(pk=plan.host_id).state) == ("cancelled", "open")
    assert "It is rolled back." in text(sent)


def test_a_stale_page_changes_nothing(world, browse, ole):
    plan = drain(ole)

    sent = browse(ole).post(f"/ops/plans/{plan.short_id}/abort", {"version": plan.version + 7}, follow=True)

    plan.refresh_from_db()
    assert plan.state == "running"
    assert "It is rolled back." not in text(sent)


def test_the_list_is_filtered_by_the_address_and_exported(world, browse, ole, aud):
    plan = drain(ole)
    browser = browse(aud)

    rows = json.loads(browser.get("/ops/plans?state=notice&format=json").content)

    assert [(row["id"], row["state"], row["touched"], row["over"]) for row in rows] == [(plan.short_id, "notice", 6, 0)]
    assert json.loads(browser.get("/ops/plans?state=done&format=json").content) == []
    assert "Nothing matches these filters" in text(browser.get("/ops/plans?state=done"))
    assert "new firmware" in text(browser.get("/ops/plans"))


def test_without_a_plan_the_page_says_where_one_is_made(browse, aud, db):
    assert "No plan is running" in text(browse(aud).get("/ops/plans"))


def test_the_number_of_queries_does_not_depend_on_what_a_plan_touches(world, browse, ole, aud):
    plan = drain(ole)
    browser = browse(aud)
    counted = []
    for more in (0, 30):
        plan.touched = [*plan.touched, *(plan.touched[0] for _ in range(more))]
        plan.save(update_fields=["touched"])
        for path in ("/ops/plans", f"/ops/plans/{plan.short_id}"):
            browser.get(path)
            with CaptureQueriesContext(connection) as found:
                assert browser.get(path).status_code == 200
            counted.append(len(found))

    assert counted[:2] == counted[2:]
