"""System: the last report in words, the one that is being made, and nobody but people of the platform."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.kernel import diagnosis
from provisioners import examination
from tenants.doctor import CHECKS, State
from tenants.models import SystemReport
from tenants.states import PlatformRole
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def auditor(db):
    return factories.person(platform=(PlatformRole.AUDITOR,))


def reported(*results: tuple[str, str, dict], ago_s: float = 5, thorough: bool = False) -> SystemReport:
    """Store a report as a worker does."""
    at = timezone.now() - timedelta(seconds=ago_s)
    return SystemReport.objects.create(
        asked_at=at, done_at=at, took_ms=12, worker="host:7", release="0.1.0", thorough=thorough,
        results=[{"code": code, "state": state, "data": data} for code, state, data in results],
    )  # fmt: skip


def test_a_real_report_shows_every_check_in_words(browse, auditor):
    examination.answer(timezone.now)

    text = browse(auditor).get("/ops/system").content.decode()

    assert [str(check.title) for check in CHECKS.values() if str(check.title) not in text] == []
    assert "%(" not in text
    assert "PostgreSQL" in text
    assert "0 contradictions" in text
    assert "the database archives no log" in text


def test_what_is_ill_stands_first_with_its_meaning_and_what_to_do(browse, auditor):
    reported(
        ("clock", "ok", {"difference_ms": 3}),
        ("passes", "bad", {"due": 7, "oldest_s": 300}),
        ("broker", "warn", {"word": "away", "where": "redis://127.0.0.1", "error": "ConnectionError"}),
    )

    text = browse(auditor).get("/ops/system").content.decode().split("<main")[1]

    assert "Needs mending" in text
    assert text.index("7 things are due; the oldest has waited 300 s.") < text.index("redis://127.0.0.1 takes no")
    assert text.index("redis://127.0.0.1 takes no") < text.index("3 ms apart")
    assert str(CHECKS["passes"].remedy) in text
    assert str(CHECKS["clock"].remedy) not in text


def test_all_well_is_said_and_an_unknown_is_not_called_well():
    well = SystemReport(results=[{"code": "clock", "state": "ok", "data": {}}])
    unknown = SystemReport(results=[*well.results, {"code": "backups", "state": "unknown", "data": {"word": "unseen"}}])

    assert diagnosis.summary(well)[0] == "All is well"
    assert diagnosis.summary(unknown)[0] == "Well, as far as can be seen"
    assert diagnosis.findings(unknown)[0].state is State.UNKNOWN


def test_a_report_of_another_release_does_not_break_the_page():
    row = SystemReport(results=[
        {"code": "passes", "state": "warn", "data": {"other": 3}}, {"code": "unheard-of", "state": "ok", "data": {}},
        {"code": "stuck", "state": "unknown", "data": {"unseen": "too-slow"}},
    ])  # fmt: skip

    assert [one.seen for one in diagnosis.findings(row)] == [
        "other 3", "It took longer than a minute and was broken off.",
    ]  # fmt: skip


def test_an_old_report_says_that_nobody_looks_any_more(browse, auditor):
    reported(("clock", "ok", {"difference_ms": 3}), ago_s=3600)

    text = browse(auditor).get("/ops/system").content.decode()

    assert "Nobody looks any more" in text
    assert "All is well" not in text
    assert "make status" in text


def test_running_the_doctor_shows_that_it_looks_then_its_answer(browse, auditor):
    browser = browse(auditor)
    before = browser.get("/ops/system").content.decode()

    asked = browser.post("/ops/system/check")
    during = browser.get("/ops/system", headers={"hx-request": "true"}).content.decode()
    examination.answer(timezone.now)
    after = browser.get("/ops/system", headers={"hx-request": "true"}).content.decode()

    assert "Nobody has looked yet" in before
    assert (asked.status_code, asked["Location"]) == (302, "/ops/system")
    assert ('hx-trigger="every 2s"' in during, "The doctor looks" in during) == (True, True)
    assert ('hx-trigger="every 30s"' in after, "The doctor looks" in after) == (True, False)
    assert "<html" not in after


def test_a_report_that_nobody_takes_says_where_to_look(browse, auditor):
    SystemReport.objects.create(asked_at=timezone.now() - timedelta(minutes=2))

    text = browse(auditor).get("/ops/system").content.decode()

    assert "Nobody answers" in text
    assert 'hx-trigger="every 2s"' not in text


def test_every_platform_role_looks_and_nobody_else(browse):
    for role in PlatformRole:
        assert browse(factories.person(platform=(role,))).get("/ops/system").status_code == 200
    member = browse(factories.member(factories.tenant()))

    assert (member.get("/ops/system").status_code, member.post("/ops/system/check").status_code) == (403, 403)
    assert browse(None).get("/ops/system").status_code == 302
    assert not SystemReport.objects.exists()


def test_the_report_is_a_file_as_well(browse, auditor):
    reported(("passes", "bad", {"due": 7, "oldest_s": 300}))

    (row,) = json.loads(browse(auditor).get("/ops/system?format=json").content)

    assert (row["code"], row["state"], row["worker"]) == ("passes", "bad", "host:7")
    assert row["seen"] == "7 things are due; the oldest has waited 300 s."


def test_the_number_of_statements_does_not_grow_with_reports(browse, auditor):
    counts = []
    for upto in (10, 40):
        for number in range(SystemReport.objects.count(), upto):
            reported(("passes", "ok", {"due": number, "oldest_s": 0}), ago_s=number + 1)
        browser = browse(auditor)
        browser.get("/ops/system")
        with CaptureQueriesContext(connection) as seen:
            browser.get("/ops/system")
        counts.append(len(seen))

    assert counts[0] == counts[1]
