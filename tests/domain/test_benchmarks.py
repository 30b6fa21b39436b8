"""Benchmarks as rows: asked for within bounds, taken once with a key of their own, followed, cancelled, given up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tenants.actor import SYSTEM
from tenants.benchmarks import Load, Result, Spread, Stopped
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import Benchmark, Endpoint, EndpointKey, Event
from tenants.operations import benchmarks, endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")
SMALL = Load(4, 16, 8, 2)
GOOD = Result(4, 0, {}, 2.0, 64, 32, Spread(10.0, 10.0, 12.0), Spread(1.0, 1.0, 1.0), Spread(20.0, 20.0, 30.0))


@pytest.fixture
def tenant(db: None) -> Any:
    row = factories.tenant(name="acme")
    factories.generous(row)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"]}))
    factories.served_model()
    return row


@pytest.fixture
def member(tenant: Any) -> Any:
    return factories.actor(factories.member(tenant))


@pytest.fixture
def chat(tenant: Any, member: Any) -> Endpoint:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))
    ask = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
    made = endpoints.create(tenant=tenant, ask=ask, actor=member, now=NOW).endpoint
    Endpoint.objects.filter(pk=made.pk).update(phase="Ready", ready_at=NOW, address="http://127.0.0.1:9/v1")
    return Endpoint.objects.get(pk=made.pk)


def ask(chat: Endpoint, actor: Any, load: Load = SMALL) -> Benchmark:
    return benchmarks.ask(endpoint=chat, load=load, actor=actor, now=NOW)


def kinds() -> list[str]:
    rows = Event.objects.filter(kind__startswith="endpoint.benchmark").order_by("seq")
    return [kind.removeprefix("endpoint.benchmark-") for kind in rows.values_list("kind", flat=True)]


def test_a_benchmark_is_taken_once_with_a_key_that_ends_with_it(chat: Endpoint, member: Any) -> None:
    asked = ask(chat, member)

    taken = benchmarks.take(actor=SYSTEM, now=NOW)
    again = benchmarks.take(actor=SYSTEM, now=NOW)

    assert taken is not None
    assert again is None
    row, secret = taken
    key = EndpointKey.objects.get(public_id=row.key_id)
    assert (row.pk, row.revision, row.state) == (asked.pk, 1, "running")
    assert asked.short_id.startswith("bm-")
    assert key.name == f"benchmark {row.short_id}"
    assert key.budget_tokens == SMALL.most_tokens
    assert key.expires_at == NOW + timedelta(minutes=17)
    assert secret.startswith("tnt_")

    assert benchmarks.progressed(benchmark=row, sent=2, failed=0, actor=SYSTEM, now=NOW)
    benchmarks.ended(benchmark=row, result=GOOD, reason="", actor=SYSTEM, now=NOW + timedelta(seconds=9))
    benchmarks.ended(benchmark=row, result=None, reason="late", actor=SYSTEM, now=NOW + timedelta(seconds=10))

    row.refresh_from_db()
    key.refresh_from_db()
    assert (row.state, row.sent, row.failed, row.reason) == ("done", 4, 0, "")
    assert Result.of(row.result) == GOOD
    assert key.revoked_at == NOW + timedelta(seconds=9)
    assert kinds() == ["asked", "ended"]
    assert secret not in str(list(Event.objects.values_list("data", flat=True)))


def test_one_at_a_time_and_only_of_what_answers(chat: Endpoint, member: Any) -> None:
    ask(chat, member)

    with pytest.raises(Conflict, match="goes on already") as second:
        ask(chat, member)
    Endpoint.objects.filter(pk=chat.pk).update(phase="Provisioning")
    Benchmark.objects.all().delete()
    with pytest.raises(Conflict, match="once it is ready"):
        ask(chat, member)
    Endpoint.objects.filter(pk=chat.pk).update(phase="Ready", slept_at=NOW)
    with pytest.raises(Conflict, match="wake it first"):
        ask(chat, member)
    with pytest.raises(InvalidSpec):
        ask(chat, member, Load(0, 1, 1, 1))

    assert second.value.specific_code == "benchmark-running"


def test_who_may_not_use_it_may_not_measure_it(chat: Endpoint, tenant: Any, member: Any) -> None:
    viewer = factories.actor(factories.member(tenant, Role.VIEWER))
    auditor = factories.actor(factories.person(platform=(PlatformRole.AUDITOR,)))
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    row = ask(chat, member)

    for actor in (viewer, auditor):
        with pytest.raises(Forbidden):
            ask(chat, actor)
        with pytest.raises(Forbidden):
            benchmarks.cancel(benchmark=row, actor=actor, now=NOW)

    assert benchmarks.cancel(benchmark=row, actor=operator, now=NOW).state == "cancelled"


def test_cancelling_keeps_what_was_measured(chat: Endpoint, member: Any) -> None:
    ask(chat, member)
    taken = benchmarks.take(actor=SYSTEM, now=NOW)
    assert taken is not None
    row = taken[0]

    benchmarks.cancel(benchmark=row, actor=member, now=NOW)
    benchmarks.cancel(benchmark=row, actor=member, now=NOW)
    goes_on = benchmarks.progressed(benchmark=row, sent=1, failed=0, actor=SYSTEM, now=NOW)
    part = Result(1, 0, {}, 1.0, 16, 8, stopped=Stopped.CANCELLED)
    benchmarks.ended(benchmark=row, result=part, reason="", actor=SYSTEM, now=NOW)

    row.refresh_from_db()
    assert not goes_on
    assert (row.state, row.reason, Result.of(row.result)) == ("cancelled", benchmarks.CANCELLED, part)
    assert kinds() == ["asked", "cancelled", "ended"]


def test_what_a_dead_worker_left_has_failed_and_its_key_is_revoked(chat: Endpoint, member: Any) -> None:
    ask(chat, member)
    benchmarks.take(actor=SYSTEM, now=NOW)

    early = benchmarks.give_up(actor=SYSTEM, now=NOW + timedelta(seconds=29))
    late = benchmarks.give_up(actor=SYSTEM, now=NOW + timedelta(seconds=31))

    row = Benchmark.objects.get()
    assert (early, late, row.state, row.reason) == (0, 1, "failed", benchmarks.DIED)
    assert EndpointKey.objects.get(public_id=row.key_id).revoked_at is not None
    assert not benchmarks.progressed(benchmark=row, sent=3, failed=0, actor=SYSTEM, now=NOW)
    assert ask(chat, member).state == "waiting"


def test_only_the_newest_are_kept(chat: Endpoint, member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "KEPT", 2)
    for minute in range(4):
        row = benchmarks.ask(endpoint=chat, load=SMALL, actor=member, now=NOW + timedelta(minutes=minute))
        benchmarks.cancel(benchmark=row, actor=member, now=NOW + timedelta(minutes=minute))

    kept = list(Benchmark.objects.order_by("created_at").values_list("created_at", flat=True))
    assert kept == [NOW + timedelta(minutes=2), NOW + timedelta(minutes=3)]
