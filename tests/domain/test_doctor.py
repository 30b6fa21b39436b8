"""The doctor: each check sees what it is there for, and one that cannot look says so."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from tenants import doctor, hop_keys
from tenants.actor import SYSTEM
from tenants.doctor import CHECKS, THOROUGH, Result, State
from tenants.errors import Forbidden
from tenants.models import Event, GpuDevice, Provider, Revision, SystemReport
from tenants.operations import endpoints, system
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


def broker() -> Result:
    return Result("broker", State.OK, {"word": "there", "where": "memory://", "ms": 1})


def examined(*, now: Any = None, thorough: bool = False) -> dict[str, Result]:
    found = doctor.examine(now=now or timezone.now(), thorough=thorough, outside={"broker": broker})
    return {one.code: one for one in found}


def test_every_check_has_words_and_the_thorough_ones_come_only_when_asked():
    quick, thorough = examined(), examined(thorough=True)

    assert set(quick) == set(CHECKS) - THOROUGH
    assert set(thorough) == set(CHECKS)
    assert all(check.title and check.meaning and check.remedy and check.detail for check in CHECKS.values())


def test_a_fresh_installation_has_no_bad_check_and_honest_unknowns(now):
    found = examined(thorough=True)

    assert {code for code, one in found.items() if one.state is State.BAD} == set()
    assert found["backups"].state is State.UNKNOWN
    assert found["migrations"].data["pending"] == 0
    assert (found["ledger"].data["count"], found["trail"].data["count"]) == (0, 0)


def test_a_key_of_the_last_hop_that_no_longer_opens_is_counted(now):
    factories.host(factories.provider(), gpus=1)
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1)
    endpoints.create(
        tenant=tenant, actor=factories.actor(factories.member(tenant)), now=now,
        ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), AllocationSpec(units=(unit,))),
    )  # fmt: skip
    before = examined()["secrets"]
    Revision.objects.update(hop_key_sealed=hop_keys.make(uuid4()))

    after = examined()["secrets"]

    assert (before.state, before.data["count"], before.data["closed"]) == (State.OK, 1, 0)
    assert (after.state, after.data["closed"]) == (State.BAD, 1)


def test_late_passes_are_seen_with_their_age():
    provider = factories.provider()
    Provider.objects.filter(pk=provider.pk).update(due_at=NOW - timedelta(seconds=200))

    found = examined(now=NOW)["passes"]

    assert (found.state, found.data) == (State.BAD, {"due": 1, "oldest_s": 200})


def test_what_is_held_by_a_worker_is_not_late():
    provider = factories.provider()
    Provider.objects.filter(pk=provider.pk).update(
        due_at=NOW - timedelta(seconds=200), lease_owner="w", lease_expires_at=NOW + timedelta(seconds=9)
    )

    assert examined(now=NOW)["passes"].data == {"due": 0, "oldest_s": 0}


def test_what_fails_again_and_again_is_named():
    provider = factories.provider()
    Provider.objects.filter(pk=provider.pk).update(failures=7)

    found = examined()["stuck"]

    assert (found.state, found.data["named"]) == (State.WARN, f"provider {provider.short_id}")


def test_providers_that_do_not_answer_are_named():
    factories.provider(name="good", snapshot_at=timezone.now())
    Provider.objects.filter(pk=factories.provider(name="ill").pk).update(healthy=False)

    found = examined()["providers"]

    assert (found.state, found.data) == (State.WARN, {"count": 2, "down": "ill", "stale": "--"})


def test_housekeeping_is_seen_by_its_last_checkpoint():
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT checkpoint_write(%s)", [NOW])

    states = [examined(now=NOW + timedelta(minutes=m))["housekeeping"].state for m in (1, 5, 60)]

    assert states == [State.OK, State.WARN, State.BAD]


@pytest.mark.no_audit
def test_books_that_contradict_each_other_are_bad_and_say_where():
    host = factories.host(factories.provider(), gpus=1)
    with acting(SYSTEM):
        GpuDevice.objects.filter(host=host).update(free=1)

    found = examined(thorough=True)["ledger"]

    assert found.state is State.BAD
    assert "mask: free mask 1, holds leave 255" in found.data["named"]


@pytest.mark.no_audit
def test_a_changed_event_breaks_the_chain_and_the_first_bad_one_is_named_first(superuser):
    tenant = factories.tenant()
    from tenants import desired

    for _ in range(4):
        with acting(SYSTEM):
            desired.happened(tenant, "tenant.changed", actor=SYSTEM, at=NOW, nudge=False, n=1)
    superuser.execute("UPDATE tenants_event SET data = '{\"n\": 2}' WHERE seq IN (2, 3)")

    found = examined(thorough=True)["trail"]

    assert (found.state, found.data["count"]) == (State.BAD, 2)
    assert found.data["named"].startswith(f"event 2 of chain {tenant.pk}")


def test_a_check_that_cannot_look_is_unknown_and_the_others_go_on(monkeypatch):
    def broken(_now: Any) -> Result:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
        raise AssertionError

    def slow(_now: Any) -> Result:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', '20', true)")
            cursor.execute("SELECT pg_sleep(5)")
        raise AssertionError

    monkeypatch.setattr(doctor, "_outbox", broken)
    monkeypatch.setattr(doctor, "_stuck", slow)

    found = examined()

    assert (found["outbox"].state, found["outbox"].data) == (State.UNKNOWN, {"unseen": "failed"})
    assert found["stuck"].data == {"unseen": "too-slow"}
    assert found["providers"].state is State.OK


def test_the_worst_state_is_that_of_the_whole():
    def rows(*states: str) -> list[dict[str, Any]]:
        return [{"code": "x", "state": state, "data": {}} for state in states]

    assert [doctor.worst(rows(*states)) for states in (("ok", "bad", "warn"), ("ok", "unknown"), ("ok",), ())] == [
        State.BAD, State.UNKNOWN, State.OK, State.UNKNOWN,
    ]  # fmt: skip


# --- asking ----------------------------------------------------------------------------------------------


def test_a_report_that_waits_serves_whoever_asks_again():
    auditor = factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    first = system.check(actor=auditor, now=NOW)
    again = system.check(actor=operator, now=NOW + timedelta(seconds=5))
    later = system.check(actor=operator, now=NOW + timedelta(minutes=5))

    assert (first.pk == again.pk, later.pk == first.pk) == (True, False)
    assert Event.objects.filter(kind="system.check-asked").count() == 2


def test_only_people_of_the_platform_ask():
    member = factories.member(factories.tenant())

    with pytest.raises(Forbidden):
        system.check(actor=factories.actor(member), now=NOW)

    assert not SystemReport.objects.exists()


def test_reports_show_to_people_of_the_platform_alone():
    auditor = factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))
    owner = factories.actor(factories.member(factories.tenant(), Role.OWNER))
    system.check(actor=auditor, now=NOW)

    seen = []
    for actor in (auditor, owner):
        with acting(actor):
            seen.append(SystemReport.objects.count())

    assert seen == [1, 0]
