"""Evidence pages: packs, as-of, chain."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from provisioners import examination
from tenants import evidence_verifier
from tenants.actor import SYSTEM
from tenants.models import Event, UsageRecord
from tenants.states import PlatformRole
from tenants.transactions import acting
from tests import factories
from tests.portal.world import CANARY, build

pytestmark = pytest.mark.usefixtures("db")

PATHS = ("/ops/evidence", "/ops/evidence/as-of", "/ops/evidence/chain")


@pytest.fixture
def world(db):
    return build()


@pytest.fixture
def auditor(db):
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def made(browser, **given):
    today = timezone.now().date().isoformat()
    return browser.post("/ops/evidence/make", {"tenant": "acme", "since": today, "until": today} | given)


# --- packs -----------------------------------------------------------------------------------------------


def test_a_pack_comes_as_a_file_that_verifies_and_leaves_a_line(browse, world, auditor):
    browser = browse(auditor)

    answer = made(browser)
    archive = zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))
    event = Event.objects.get(kind="evidence.made")
    text = browser.get("/ops/evidence").content.decode()

    assert (answer.status_code, answer["Content-Type"]) == (200, "application/zip")
    assert answer["Content-Disposition"].startswith('attachment; filename="evidence-acme-')
    assert evidence_verifier.faults(archive) == []
    assert answer["X-Evidence-Manifest"] == event.data["manifest"]
    assert (event.data["manifest"][:12] in text, "Aud" in text) == (True, True)
    (row,) = json.loads(browser.get("/ops/evidence?format=json").content)
    assert (row["tenant"], row["by"], row["manifest"]) == ("acme", "Aud", event.data["manifest"])
    assert CANARY.encode() not in b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tenant": "nobody"}, "tenant"),
        ({"since": "soon"}, "since"),
        ({"until": "2020-01-01"}, "until"),
        ({"since": "2020-01-01"}, "since"),
    ],
)
def test_a_fault_stands_at_its_field_and_makes_no_pack(browse, world, auditor, given, field):
    answer = made(browse(auditor), **given)

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.content.decode()
    assert not Event.objects.filter(kind="evidence.made").exists()


def test_without_a_pack_the_page_says_so(browse, world, auditor):
    assert "Nobody has made a pack yet" in browse(auditor).get("/ops/evidence").content.decode()


# --- as of -----------------------------------------------------------------------------------------------


def test_as_of_shows_windows_and_members_and_is_a_file_as_well(browse, world, auditor):
    browser = browse(auditor)
    UsageRecord.objects.update(held_from=timezone.now() - timedelta(hours=1))
    now = (timezone.now() - timedelta(minutes=1)).isoformat()

    text = browser.get("/ops/evidence/as-of", {"tenant": "acme", "moment": now}).content.decode()
    rows = json.loads(browser.get("/ops/evidence/as-of", {"tenant": "acme", "moment": now, "format": "json"}).content)
    early = browser.get("/ops/evidence/as-of", {"tenant": "acme", "moment": "2020-01-01T00:00"}).content.decode()

    assert {row["name"] for row in rows} == {"chat", "box", "space"}
    assert all(name in text for name in ("chat", "box", "space", "Owner", "Viewer"))
    assert "It held nothing at that moment" in early
    assert CANARY not in text.split("<main")[1].split("</form>")[1]


@pytest.mark.parametrize(("at", "status"), [("", 422), ("yesterday", 422), ("2999-01-01T00:00", 422)])
def test_a_moment_that_makes_no_sense_is_said_at_its_field(browse, world, auditor, at, status):
    answer = browse(auditor).get("/ops/evidence/as-of", {"tenant": "acme", "moment": at})

    assert answer.status_code == status
    assert 'id="moment-error"' in answer.content.decode()


# --- chain -----------------------------------------------------------------------------------------------


def test_the_chain_page_says_what_is_sealed_and_how_it_was_verified(browse, world, auditor):
    browser = browse(auditor)
    before = browser.get("/ops/evidence/chain").content.decode()
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT checkpoint_write(now())")

    asked = browser.post("/ops/system/check", {"back": "chain"})
    examination.answer(timezone.now)
    after = browser.get("/ops/evidence/chain").content.decode()
    rows = {row["name"]: row for row in json.loads(browser.get("/ops/evidence/chain?format=json").content)}

    assert "Not verified yet" in before
    assert asked["Location"] == "/ops/evidence/chain"
    assert "The chain holds" in after
    assert rows["acme"]["seq"] == rows["acme"]["sealed"] > 0


@pytest.mark.no_audit
def test_a_broken_chain_names_its_first_bad_event(browse, world, auditor, superuser):
    browser = browse(auditor)
    superuser.execute("UPDATE tenants_event SET actor = 'system' WHERE chain = %s AND seq = 2", [world.acme.tenant.pk])
    browser.post("/ops/system/check")
    examination.answer(timezone.now)

    text = browser.get("/ops/evidence/chain").content.decode()

    assert "The chain is broken" in text
    assert f"event 2 of chain {world.acme.tenant.pk}" in text


# --- all of them -----------------------------------------------------------------------------------------


def test_every_platform_role_opens_them_and_nobody_else(browse, world):
    for role in PlatformRole:
        browser = browse(factories.person(platform=(role,)))
        assert [browser.get(path).status_code for path in PATHS] == [200, 200, 200]
    owner = browse(world.acme.owner)

    assert [owner.get(path).status_code for path in PATHS] == [403, 403, 403]
    assert made(owner).status_code == 403
    assert [browse(None).get(path).status_code for path in PATHS] == [302, 302, 302]
    assert not Event.objects.filter(kind="evidence.made").exists()


def test_the_number_of_statements_does_not_grow(browse, auditor):
    counts = []
    for upto in (10, 40):
        for _ in range(upto):
            tenant = factories.tenant()
            from tenants import desired

            with acting(SYSTEM):
                desired.happened(
                    tenant, "evidence.made", actor=SYSTEM, at=timezone.now(), nudge=False, events=1, windows=1
                )
        browser = browse(auditor)
        [browser.get(path) for path in PATHS]
        with CaptureQueriesContext(connection) as seen:
            [browser.get(path) for path in PATHS]
        counts.append(len(seen))

    assert counts[0] == counts[1]
