"""Findings through Django's client: what each means, whom it touches, and what a person does about it."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.kernel import discrepancies
from provisioners import inventory as inventory_pass
from provisioners import overdue, remarks
from tenants.models import Finding, GpuDevice, Host
from tenants.states import PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ole():
    return factories.person(name="Ole", platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def finding(world: World, kind: str = "orphan", **values) -> Finding:
    seen = timezone.now() - timedelta(days=2)
    known = {"subject": f"vm-{Finding.objects.count()}", "detail": "old-backup runs and nobody owns it."}
    return Finding.objects.create(
        kind=kind, provider=world.provider, first_seen_at=seen, last_seen_at=seen, **{**known, **values}
    )


def test_every_kind_that_inventory_and_passes_write_has_words():
    assert set(discrepancies.MEANINGS) == set(inventory_pass.KINDS | remarks.KINDS | {overdue.KIND})
    assert {meaning.group for meaning in discrepancies.MEANINGS.values()} == set(discrepancies.GROUPS)


def test_the_list_shows_open_ones_and_says_what_they_mean(world, browse, aud):
    finding(world)
    finding(world, "host-missing", resolved_at=timezone.now(), resolution="no longer seen")
    finding(world, "gpu-moved", data={"ignored": {"reason": "known", "at": timezone.now().isoformat()}})
    browser = browse(aud)

    said = text(browser.get("/ops/findings"))

    assert "1 finding" in said
    assert "Nobody owns it old-backup runs and nobody owns it. Open estate" in said
    assert "The host is gone" not in said
    assert "The host is gone" in text(browser.get("/ops/findings?state=settled"))
    assert "The GPU is in another host" in text(browser.get("/ops/findings?state=ignored"))
    assert "3 findings" in text(browser.get("/ops/findings?state=all"))
    assert "Nothing matches these filters" in text(browser.get("/ops/findings?group=hardware"))


def test_the_export_holds_what_the_filters_show_and_no_formula(world, browse, aud):
    row = finding(world, detail="=cmd()", blocks_placement=True)
    finding(world, "gpu-missing")
    browser = browse(aud)

    rows = json.loads(browser.get("/ops/findings?blocks=yes&format=json").content)
    sheet = browser.get("/ops/findings?blocks=yes&format=csv").content.decode()

    assert [(one["id"], one["state"], one["provider"]) for one in rows] == [(row.short_id, "open", "estate")]
    assert ",'=cmd()," in sheet


def test_with_none_open_the_page_says_so(browse, aud, db):
    assert "Everything fits together" in text(browse(aud).get("/ops/findings"))


def test_one_finding_names_whom_it_touches(world, browse, aud):
    host = Host.objects.get()
    device = GpuDevice.objects.filter(host=host, holds__isnull=False).order_by("index").first()
    row = finding(world, "layout-mismatch", host=host, device=device, blocks_placement=True)

    said = text(browse(aud).get(f"/ops/findings/{row.short_id}"))

    assert "Impossible layout Blocks" in said
    assert "It keeps room closed" in said
    assert "acme" in said
    assert "What to do" not in said  # an auditor reads


def test_an_orphan_is_deleted_with_a_reason(world, browse, ole):
    row = finding(world)
    browser = browse(ole)

    body = {"action": "delete", "reason": "left by a restore", "version": row.version}

    page = text(browser.get(f"/ops/findings/{row.short_id}"))
    asked = browser.post(f"/ops/findings/{row.short_id}/resolve", body)
    row.refresh_from_db()
    before = dict(row.data)
    sent = browser.post(f"/ops/findings/{row.short_id}/resolve", {**body, "sure": "yes"}, follow=True)

    row.refresh_from_db()
    assert "Take it away at its provider. That cannot be undone." in page
    assert (before, asked.status_code) == ({}, 200)
    assert f"{row.subject} is taken away at estate, with what is on its disks." in text(asked)
    assert row.data["action"] == "delete"
    assert row.data["asked"]["reason"] == "left by a restore"
    assert "Being deleted" in text(sent)


def test_ignoring_opens_the_room_and_needs_a_reason(world, browse, ole):
    row = finding(world, "host-shrunk", blocks_placement=True)
    browser = browse(ole)
    address = f"/ops/findings/{row.short_id}/resolve"

    short = browser.post(address, {"action": "ignore", "reason": "", "version": row.version})
    row.refresh_from_db()
    before = row.blocks_placement
    sent = browser.post(address, {"action": "ignore", "reason": "agreed with the team", "version": row.version})

    row.refresh_from_db()
    assert (short.status_code, before) == (422, True)
    assert 'id="reason-error"' in short.content.decode()
    assert (sent.status_code, row.blocks_placement) == (302, False)
    assert "agreed with the team" in text(browser.get(f"/ops/findings/{row.short_id}"))


def test_an_action_that_does_not_fit_is_refused_in_place(world, browse, ole):
    row = finding(world, "host-shrunk")

    sent = browse(ole).post(f"/ops/findings/{row.short_id}/resolve", {"action": "delete", "reason": "go away"})

    assert sent.status_code == 409
    assert (
        "Delete does not fit this finding. Hardware that is there is drained and taken out on its host's page."
        in text(sent)
    )


def test_a_host_that_is_gone_is_taken_out_here_after_a_question(world, browse, ole):
    host = Host.objects.get()
    row = finding(world, "host-missing", host=host)
    body = {"action": "delete", "reason": "it was scrapped", "version": row.version}
    browser = browse(ole)

    page = text(browser.get(f"/ops/findings/{row.short_id}"))
    asked = text(browser.post(f"/ops/findings/{row.short_id}/resolve", body))
    refused = browser.post(f"/ops/findings/{row.short_id}/resolve", {**body, "sure": "yes"})

    assert "Take the host out here: its GPUs count no longer." in page
    assert "It is gone: there is nothing to take over." in page
    assert f"{row.subject} is taken out here and counts no longer. Nothing is done at its provider." in asked
    assert refused.status_code == 409
    assert "drain it first" in text(refused)


def test_the_number_of_queries_does_not_depend_on_how_many_there_are(world, browse, aud):
    host = Host.objects.get()
    browser = browse(aud)
    counted = []
    for more in (10, 30):
        for _ in range(more):
            finding(world, "host-shrunk", host=host)
        browser.get("/ops/findings")
        with CaptureQueriesContext(connection) as found:
            assert browser.get("/ops/findings").status_code == 200
        counted.append(len(found))

    assert counted[0] == counted[1]


def test_search_leads_operators_to_it_and_nobody_else(world, browse, aud):
    row = finding(world, detail="tn-vm-lost carries our mark.")

    found = browse(aud).get("/search", {"q": "tn-vm-lost"}).content.decode()

    assert f'href="/ops/findings/{row.short_id}"' in found
    assert 'href="/ops/providers/estate"' in browse(aud).get("/search", {"q": "estate"}).content.decode()
    assert "Nothing found" in text(browse(world.acme.member).get("/search", {"q": "tn-vm-lost"}))
