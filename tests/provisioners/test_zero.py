"""Endpoints at zero driven by passes on the sandbox's core; gateways are played by what they would send."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioners import zero
from provisioners.agent_api import config
from provisioners.agent_api.polling import acting_gateway
from provisioners.sandbox import control
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Event, GatewayReplica, Hold, QuotaCharge, UsageRecord
from tenants.operations import allocations, endpoints, idling
from tenants.specs import AllocationSpec, BareAsk, RolloutAsk
from tenants.states import BoundaryKind, IdleUnits, condition_of
from tests.drive import fresh, is_gone, is_ready
from tests.provisioners.test_rollouts import CANARY, Stage, staged, unit

pytestmark = pytest.mark.usefixtures("db")


def idle(stage: Stage, *, after_s: int | None = 600, units: IdleUnits = IdleUnits.KEEP) -> None:
    idling.set_idle(
        endpoint=fresh(stage.row), after_s=after_s, units=units, wait_s=120, actor=stage.actor, now=stage.here.clock()
    )


def asked(stage: Stage) -> None:
    """Let the gateway tell that somebody waits."""
    gateway = GatewayReplica.objects.get()
    idling.somebody_waits(
        gateway=gateway.pk,
        endpoint=stage.row.pk,
        waiting=1,
        actor=acting_gateway(gateway.pk),
        now=stage.here.clock(),
    )


def running(stage: Stage) -> int:
    return sum(workload.running for workload in stage.here.estate.state.workloads.values())


def reason(stage: Stage) -> str:
    ready = condition_of(fresh(stage.row).conditions, "Ready")
    assert ready is not None
    return f"{ready['status']} {ready['reason']}"


def whys(stage: Stage) -> list[tuple[str, str]]:
    rows = Event.objects.filter(object_id=stage.row.pk, kind__in=["endpoint.slept", "endpoint.woken"]).order_by("seq")
    return [(row.kind.removeprefix("endpoint."), row.data["why"]) for row in rows]


@pytest.mark.parametrize("delays", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at-once", "with-delays"])
def test_put_to_sleep_it_keeps_its_units_and_a_request_wakes_it(*, delays: bool) -> None:
    stage = staged(delays=delays)
    stage.enrol()
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    at_once = stage.document().endpoints[0]
    stage.drive(lambda: running(stage) == 0)
    stage.drive(lambda: reason(stage) == "True Asleep")

    asleep = stage.document().endpoints[0]
    assert (at_once.backends, asleep.backends) == ((), ())
    assert asleep.waiting is not None
    assert asleep.waiting.wakes
    assert (Hold.objects.count(), fresh(stage.row).phase) == (1, "Ready")
    assert UsageRecord.objects.filter(kind="tenant", held_to=None).get().billable_to is None
    assert fresh(stage.row).address

    asked(stage)
    asked(stage)
    waking = stage.document().endpoints[0]
    stage.drive(lambda: len(stage.document().endpoints[0].backends) == 1)
    stage.drive(is_ready(stage.row))

    assert waking.waiting is not None
    assert not waking.waiting.wakes
    assert stage.document().endpoints[0].waiting is None
    assert whys(stage) == [("slept", "Somebody put it to sleep."), ("woken", "A request came.")]
    assert set(stage.phases) <= {"Ready", "Provisioning"}


@pytest.mark.parametrize(("in_flight", "goes_on"), [(0, True), (1, False)])
def test_what_has_begun_to_stop_is_not_started_again_by_news_for_its_gateways(in_flight: int, *, goes_on: bool) -> None:
    stage = staged()
    stage.enrol()
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    row = fresh(stage.row)
    row.observed = {**row.observed, "units": [{**one, "backend": "", "ready": False} for one in row.observed["units"]]}
    gateway = GatewayReplica.objects.get()
    shown = {"uid": str(row.pk), "state": "open", "in_flight": in_flight, "backends": []}
    GatewayReplica.objects.update(
        report={"config_version": gateway.config_version - 1, "endpoints": [shown]}, last_seen_at=stage.here.clock()
    )

    assert zero.may_stop(row, now=stage.here.clock()) is goes_on


def test_requests_that_run_end_before_it_stops() -> None:
    stage = staged()
    stage.enrol()
    busy = {str(one) for one in fresh(stage.row).allocation.units.values_list("pk", flat=True)}
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    gateway = GatewayReplica.objects.get()

    def report(*, in_flight: int) -> None:
        gateway.refresh_from_db()
        body = {
            "started_at": "2026-01-01T00:00:00+00:00",
            "config_version": gateway.config_version,
            "endpoints": [
                {
                    "uid": str(stage.row.pk),
                    "state": "open",
                    "backends": [{"unit_uid": uid, "reachable": True, "in_flight": in_flight} for uid in busy],
                }
            ],
        }
        GatewayReplica.objects.update(report=body, last_seen_at=stage.here.clock())

    for _ in range(20):
        report(in_flight=1)
        stage.here.sweep()
        stage.here.clock.move(1)
    still = running(stage)
    report(in_flight=0)
    stage.here.drive(lambda: running(stage) == 0)

    assert still == 1


def test_units_given_back_are_asked_for_again_and_waking_queues_for_them() -> None:
    stage = staged(unit(profile=""), unit(profile=""))
    idle(stage, units=IdleUnits.RELEASE)
    stage.enrol()
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(lambda: Hold.objects.count() == 0)
    stage.drive(lambda: reason(stage) == "True Asleep")
    assert QuotaCharge.objects.filter(allocation__isnull=False).count() == 0
    assert (fresh(stage.row).phase, fresh(stage.row.allocation).phase) == ("Ready", "Ready")
    assert UsageRecord.objects.filter(held_to__isnull=True).count() == 0

    other = allocations.create(
        tenant=stage.row.tenant,
        ask=BareAsk("other", AllocationSpec(units=(unit(profile=""),))),
        actor=stage.actor,
        now=stage.here.clock(),
    )
    stage.drive(is_ready(other))
    asked(stage)
    stage.drive(lambda: fresh(stage.row).phase == "Waiting")
    assert stage.document().endpoints[0].waiting is not None
    allocations.release(allocation=fresh(other), actor=stage.actor, now=stage.here.clock())
    stage.drive(is_gone(other))
    stage.drive(is_ready(stage.row))

    assert (running(stage), Hold.objects.count()) == (2, 2)
    assert all(row.billable_from is not None for row in UsageRecord.objects.filter(kind="tenant", held_to=None))


def test_without_a_request_it_goes_to_sleep_by_itself_and_not_while_a_gateway_is_silent() -> None:
    stage = staged()
    idle(stage)
    gateway = stage.enrol()

    for _ in range(11):  # its gateway says nothing
        stage.here.clock.move(60)
        stage.here.sweep()
    silent = fresh(stage.row).slept_at
    body = {
        "started_at": "2026-01-01T00:00:00+00:00",
        "config_version": 10**6,
        "endpoints": [
            {
                "uid": str(stage.row.pk),
                "state": "open",
                "backends": [],
                "last_request_at": (stage.here.clock() - timedelta(seconds=300)).isoformat(),
            }
        ],
    }
    used_at = stage.here.clock() - timedelta(seconds=300)
    while fresh(stage.row).slept_at is None:
        GatewayReplica.objects.filter(pk=gateway.pk).update(report=body, last_seen_at=stage.here.clock())
        stage.here.clock.move(10)
        stage.here.sweep()
        assert stage.here.clock() < used_at + timedelta(seconds=1200)

    assert silent is None
    assert timedelta(seconds=600) <= fresh(stage.row).slept_at - used_at <= timedelta(seconds=640)
    assert whys(stage) == [("slept", "No request came for 10 minutes.")]


def serving(stage: Stage) -> int:
    return sum(workload.serving is not None for workload in stage.here.estate.state.workloads.values())


@pytest.mark.parametrize("effect", ["", "lost-answer", pytest.param("forget", marks=pytest.mark.slow)])
def test_in_machines_the_model_servers_stop_and_a_request_wakes_them(effect: str) -> None:
    stage = staged(*[unit("A100-80GB")] * 2, kind=BoundaryKind.VM)
    if effect:
        control.add_fault(stage.here.estate, "start:serving.replica[0]", effect, times=1)
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(lambda: reason(stage) == "True Asleep" and serving(stage) == 0)
    document = config.document_of(GatewayReplica.objects.first(), now=stage.here.clock())

    asleep = document.endpoints[0]
    assert (running(stage), asleep.backends, Hold.objects.count()) == (2, (), 2)
    assert asleep.waiting is not None
    assert asleep.waiting.wakes
    assert fresh(stage.row).phase == "Ready"
    stage.drive(lambda: fresh(stage.row).observed["asleep"])

    if effect:
        control.add_fault(stage.here.estate, "start:serving.replica[1]", effect, times=1)
    gateway = GatewayReplica.objects.order_by("pk").first()
    idling.somebody_waits(
        gateway=gateway.pk, endpoint=stage.row.pk, waiting=1, actor=acting_gateway(gateway.pk), now=stage.here.clock()
    )
    stage.drive(lambda: serving(stage) == 2)
    stage.drive(is_ready(stage.row))
    stage.drive(lambda: reason(stage) == "True Done")

    assert not fresh(stage.row).observed["asleep"]
    assert whys(stage) == [("slept", "Somebody put it to sleep."), ("woken", "A request came.")]


def test_units_of_machines_are_never_given_back_at_zero() -> None:
    stage = staged(unit("A100-80GB"), kind=BoundaryKind.VM)

    with pytest.raises(Conflict, match="nobody would be there to take the request that wakes it"):
        idle(stage, units=IdleUnits.RELEASE)
    fresh(stage.row).__class__.objects.filter(pk=stage.row.pk).update(idle_units=IdleUnits.RELEASE.value)
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(lambda: bool(fresh(stage.row).observed.get("asleep")))
    stage.here.sweep()

    assert (Hold.objects.count(), running(stage)) == (1, 1)


def test_in_the_middle_of_a_rollout_it_cannot_sleep() -> None:
    rolling = staged()
    rolling.revise(CANARY)

    with pytest.raises(Conflict, match="Another revision is taking over"):
        idling.sleep(endpoint=fresh(rolling.row), actor=rolling.actor, now=rolling.here.clock())
    with pytest.raises(InvalidSpec):
        idle(rolling, after_s=5)


def test_asleep_it_is_revised_and_serves_the_new_revision_once_it_is_woken() -> None:
    stage = staged()
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(lambda: running(stage) == 0)

    stage.revise(RolloutAsk())
    stage.drive(lambda: fresh(stage.row).revision.number == 2)
    asleep = running(stage)
    idling.wake(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(stage.is_at("done"))

    assert asleep == 0
    assert (running(stage), fresh(stage.row).observed["revision"]) == (1, 2)


@pytest.mark.parametrize("units", list(IdleUnits))
def test_asleep_it_is_deleted_and_leaves_nothing(units: IdleUnits) -> None:
    stage = staged()
    idle(stage, units=units)
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(lambda: running(stage) == 0 and Hold.objects.count() == (units is IdleUnits.KEEP))

    row = fresh(stage.row)
    endpoints.delete(endpoint=row, actor=stage.actor, now=stage.here.clock())
    stage.here.drive(is_gone(row, row.allocation, row.boundary))

    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)


def test_woken_before_it_had_stopped_it_just_goes_on() -> None:
    stage = staged()
    idle(stage, units=IdleUnits.RELEASE)
    idling.sleep(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    idling.wake(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())

    stage.drive(is_ready(stage.row))
    for _ in range(5):
        stage.here.clock.move(60)
        stage.here.sweep()

    assert (running(stage), Hold.objects.count()) == (1, 1)
