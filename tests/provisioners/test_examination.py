"""Reports of the doctor are answered by one process at a time, come by themselves, and are forgotten after a week."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection

from provisioners import examination
from tenants.actor import SYSTEM
from tenants.doctor import CHECKS, THOROUGH, State
from tenants.models import SystemReport
from tenants.operations import system
from tenants.states import PlatformRole
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def auditor(db):
    return factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))


def answer(minutes: float = 0) -> int:
    return examination.answer(lambda: NOW + timedelta(minutes=minutes))


def test_what_was_asked_for_is_answered_with_every_check(auditor):
    asked = system.check(actor=auditor, now=NOW)

    made = answer()

    asked.refresh_from_db()
    assert (made, asked.done_at) == (1, NOW)
    assert {result["code"] for result in asked.results} == set(CHECKS)
    assert (asked.worker != "", asked.took_ms is not None) == (True, True)


def test_one_comes_by_itself_every_five_minutes_and_the_books_every_six_hours():
    made = [answer(minutes) for minutes in (0, 1, 4.9, 5.1, 10.2, 361)]

    reports = SystemReport.objects.order_by("done_at").values_list("thorough", flat=True)
    assert made == [1, 0, 0, 1, 1, 1]
    assert list(reports) == [True, False, False, True]


def test_a_report_left_open_by_a_process_that_died_is_taken_up():
    left = SystemReport.objects.create(asked_at=NOW - timedelta(hours=1))

    answer()

    left.refresh_from_db()
    assert {result["code"] for result in left.results} == set(CHECKS) - THOROUGH


def test_old_reports_are_forgotten():
    answer()
    answer(60 * 24 * 8)

    assert SystemReport.objects.count() == 1


def test_two_processes_do_not_look_at_once(superuser):
    superuser.execute("BEGIN")
    superuser.execute("SELECT pg_advisory_xact_lock(%s)", [examination._LOCK])
    try:
        made = answer()
    finally:
        superuser.execute("ROLLBACK")

    assert (made, SystemReport.objects.count()) == (0, 0)


def test_the_broker_of_tests_answers_and_an_address_never_shows_its_password(monkeypatch):
    there = examination.broker()
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://user:s3cret@127.0.0.1:1/0")
    away = examination.broker()

    assert there.state is State.OK
    assert (away.state, away.data["where"]) == (State.WARN, "redis://127.0.0.1:1")
    assert "s3cret" not in str(away.as_json())


def test_the_thread_answers_until_it_is_stopped(auditor, monkeypatch):
    monkeypatch.setattr(examination, "PAUSE_S", 0.01)
    done, stop = threading.Event(), threading.Event()

    def once(_clock: object) -> int:
        done.set()
        raise RuntimeError("one failure does not end it")

    monkeypatch.setattr(examination, "answer", once)
    thread = examination.beside(stop)

    assert done.wait(5)
    done.clear()
    assert done.wait(5)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_page_may_not_write_a_report(auditor):
    from django.db import DatabaseError

    with acting(SYSTEM):
        SystemReport.objects.create(asked_at=NOW)

    with pytest.raises(DatabaseError), acting(auditor), connection.cursor() as cursor:
        cursor.execute("UPDATE tenants_systemreport SET worker = 'me'")
