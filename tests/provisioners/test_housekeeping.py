"""Once a minute: the checkpoint, ends that have come, purges in their order."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.sessions.models import Session

from provisioners import gateways, housekeeping
from provisioners.agent_api import config
from provisioners.gateway.protocol import canonical
from tenants import audit, costs, usage
from tenants.actor import SYSTEM
from tenants.models import (
    Allocation,
    Boundary,
    BudgetLease,
    Checkpoint,
    Endpoint,
    EndpointKey,
    EndpointMinute,
    Event,
    GatewayReplica,
    GatewayUsage,
    IdempotencyRecord,
    Intent,
    Suspension,
    Unit,
    UsageRecord,
)
from tenants.operations import allocations, endpoints, placements, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting, reading
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

DAYS_90 = timedelta(days=90)


def made(now: datetime) -> Any:
    """An endpoint in a namespace boundary."""
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    actor = factories.actor(factories.member(tenant, Role.MEMBER))
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),), storage_gib=5)
    asked = EndpointAsk("alpha", RevisionAsk("llama-3-1-8b"), spec)
    return endpoints.create(tenant=tenant, ask=asked, actor=actor, now=now).endpoint, actor


def released(endpoint: Endpoint, actor: Any, at: datetime) -> None:
    """Take it down as its passes would."""
    with acting(SYSTEM):
        usage.first_ready(Allocation.objects.get(), now=at - timedelta(hours=1))
    endpoints.delete(endpoint=endpoint, actor=actor, now=at)
    with acting(SYSTEM):
        Endpoint.objects.update(finalizers=[], released_at=at, phase="Released")
        allocations.finish(Allocation.objects.get(), now=at)
        boundary = Boundary.objects.get()
        gateways.of_boundary(boundary, now=at)
        placements.boundary_released(boundary, now=at)
        gateways.removed(boundary.pk, units=None, now=at)
        Boundary.objects.update(finalizers=[], deletion_requested_at=at, released_at=at, phase="Released")


def test_one_worker_a_minute_writes_the_checkpoint_and_does_the_work(now: datetime) -> None:
    made(now)

    first = housekeeping.run(now + timedelta(seconds=20))
    second = housekeeping.run(now + timedelta(seconds=40))
    next_minute = housekeeping.run(now + timedelta(seconds=61))

    assert first is not None
    assert second is None
    assert next_minute is not None
    assert list(Checkpoint.objects.order_by("at").values_list("at", flat=True)) == [now, now + timedelta(minutes=1)]
    assert audit.findings(audit.TRAIL) == []
    assert set(first) == set(housekeeping.JOBS)


def test_while_another_worker_is_at_it_nothing_is_done(now: datetime, superuser: Any) -> None:
    superuser.execute("SELECT pg_advisory_lock(%s)", [housekeeping._LOCK])
    try:
        assert housekeeping.run(now) is None
    finally:
        superuser.execute("SELECT pg_advisory_unlock(%s)", [housekeeping._LOCK])

    assert Checkpoint.objects.count() == 0


def test_a_job_that_fails_does_not_stop_the_others(now: datetime, monkeypatch: Any) -> None:
    def fail(_now: datetime) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(housekeeping, "JOBS", {"broken": fail, "intents-purged": housekeeping.purge_intents})

    assert housekeeping.run(now) == {"intents-purged": 0}


def test_a_suspension_ends_when_its_time_is_over(now: datetime) -> None:
    tenant = factories.tenant()
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    until = now + timedelta(minutes=5)
    tenants.suspend(tenant=tenant, depth=SuspensionDepth.KEYS, reason="audit", actor=operator, now=now, until=until)

    early = housekeeping.run(until - timedelta(minutes=1))
    late = housekeeping.run(until)

    assert early is not None
    assert late is not None
    assert (early["suspensions-ended"], late["suspensions-ended"]) == (0, 1)
    assert Suspension.objects.get().ended_at == until


def test_what_is_a_day_a_week_or_a_quarter_old_goes_and_the_rest_stays(now: datetime) -> None:
    endpoint, _ = made(now)
    with acting(SYSTEM):
        replica = gateways.of_boundary(Boundary.objects.get(), now=now)
    for age in (timedelta(hours=23), timedelta(hours=25)):
        IdempotencyRecord.objects.create(principal="x", key=str(age), body_hash="", created_at=now - age)
    for age in (timedelta(days=6), timedelta(days=8)):
        Intent.objects.create(
            object_kind="endpoint", object_id=endpoint.pk, step="s", key="k", epoch=1, started_at=now - age,
            deadline_at=now, settled_at=now - age,
        )  # fmt: skip
    for age in (timedelta(days=89), timedelta(days=91)):
        GatewayUsage.objects.create(
            id=uuid4(), tenant_id=replica.tenant_id, gateway=replica, requests=1, prompt_tokens=1,
            completion_tokens=1, received_at=now - age,
        )  # fmt: skip
        BudgetLease.objects.create(
            tenant_id=replica.tenant_id, gateway=replica, budget="x", period_start=now - age, granted=1,
            updated_at=now,
        )  # fmt: skip
        Session.objects.create(session_key=str(age), session_data="", expire_date=now + timedelta(days=90) - age)

    done = housekeeping.run(now)

    assert done is not None
    assert {name: done[name] for name in done if name.endswith("purged")} == {
        "idempotency-purged": 1, "sessions-purged": 1, "intents-purged": 1, "batches-purged": 1, "leases-purged": 1,
        "released-purged": 0, "ssh-certificates-purged": 0, "minutes-purged": 0,
    }  # fmt: skip
    assert [m.objects.count() for m in (IdempotencyRecord, Intent, GatewayUsage, BudgetLease)] == [1] * 4


def test_released_rows_go_after_90_days_and_events_usage_and_costs_stay(now: datetime) -> None:
    endpoint, actor = made(now)
    tenant = endpoint.tenant
    released(endpoint, actor, now + timedelta(hours=2))
    events = Event.objects.count()

    def lines() -> list[costs.CostLine]:
        with reading(SYSTEM):
            return costs.cost_lines(tenant, now, now + timedelta(days=1), now=now + timedelta(days=2))

    before = lines()
    early = housekeeping.run(now + DAYS_90 + timedelta(hours=1))
    kept = Endpoint.objects.count()
    late = housekeeping.run(now + DAYS_90 + timedelta(hours=3))

    assert early is not None
    assert late is not None
    assert (early["released-purged"], kept, late["released-purged"]) == (0, 1, 3)
    assert [m._base_manager.count() for m in (Endpoint, EndpointKey, Allocation, Unit, Boundary, GatewayReplica)] == [
        0, 0, 0, 0, 0, 0,
    ]  # fmt: skip
    assert Event.objects.count() == events
    assert UsageRecord.objects.count() == 1
    assert lines() == before
    assert {line.item for line in before} == {"gpu.H100-80GB.slices", "vcpu", "memory_gib", "storage_gib"}


def test_a_change_that_forgot_the_gateways_is_found(now: datetime) -> None:
    made(now)
    with acting(SYSTEM):
        replica = gateways.of_boundary(Boundary.objects.get(), now=now)
        replica.rendered = canonical(config.document_of(replica, now=now)).decode()
        replica.rendered_version = replica.config_version
        replica.save()

    quiet = housekeeping.run(now)
    Endpoint.objects.update(observed={"revision": 2, "units": [
        {"unit": str(Unit.objects.get().pk), "backend": "http://127.0.0.1:1/v1", "ready": True}]})  # fmt: skip
    found = housekeeping.run(now + timedelta(minutes=1))
    waiting = housekeeping.run(now + timedelta(minutes=2))

    assert quiet is not None
    assert found is not None
    assert waiting is not None
    assert [d["gateways-refreshed"] for d in (quiet, found, waiting)] == [0, 1, 0]
    assert GatewayReplica.objects.get().config_version == replica.config_version + 1


def test_what_endpoints_looked_like_hours_ago_is_forgotten(now: datetime) -> None:
    gateway = factories.gateway(factories.tenant())
    for hours in (1, 5, 7, 48):
        EndpointMinute.objects.create(
            tenant_id=gateway.tenant_id, endpoint_id=uuid4(), gateway=gateway, minute=now - timedelta(hours=hours)
        )

    assert housekeeping.purge_minutes(now) == 2

    assert EndpointMinute.objects.count() == 2
