"""Rollouts driven by passes on the sandbox's core; gateways are played by the reports that they would send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from provisioners.agent_api import config
from provisioners.agent_api.polling import acting_gateway
from provisioners.gateway.protocol import LATENCY_MS, ConfigDocument, EndpointConfig
from provisioners.sandbox import control
from tenants import canary_figures
from tenants.errors import Conflict, InvalidSpec
from tenants.models import (
    Endpoint,
    Event,
    GatewayReplica,
    Hold,
    Provider,
    Quota,
    QuotaCharge,
    Rollout,
    Unit,
    UsageRecord,
)
from tenants.operations import agents, endpoints, idling, rollouts
from tenants.specs import (
    AllocationSpec,
    EndpointAsk,
    GpuAsk,
    RevisionAsk,
    RolloutAsk,
    RolloutLimits,
    RolloutStep,
    UnitAsk,
    Where,
)
from tenants.states import BoundaryKind, RolloutStrategy
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")
STEPS = (RolloutStep(10, 60), RolloutStep(50, 60))
CANARY = RolloutAsk(RolloutStrategy.CANARY, STEPS)
NEXT = RevisionAsk("llama-3-1-8b", {"max_model_len": 4096})


@dataclass
class Stage:
    """An endpoint that serves, in a world whose clock is moved."""

    here: World
    actor: Any
    row: Endpoint
    phases: list[str] = field(default_factory=list)
    """After each sweep."""
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Revision → requests, errors, as the gateway counts."""
    in_flight: set[str] = field(default_factory=set)

    def drive(self, until: Callable[[], bool], *, most: int = 60, step_s: float = 1.0) -> None:
        def looked() -> bool:
            self.phases.append(fresh(self.row).phase)
            self.report()
            return until()

        self.here.drive(looked, most=most, step_s=step_s)

    def report(self) -> None:
        """Say what a gateway would, where one has enrolled."""
        gateway = GatewayReplica.objects.filter(enrolled_at__isnull=False).first()
        if gateway is None:
            return
        document = config.document_of(gateway, now=self.here.clock())
        shown = next(iter(document.endpoints), None)
        if shown is None:
            return
        body = {
            "gateway_uid": str(gateway.pk),
            "started_at": "2026-01-01T00:00:00Z",
            "config_version": document.version,
            "endpoints": [
                {
                    "uid": str(shown.uid),
                    "state": shown.state.value,
                    "backends": [
                        {
                            "unit_uid": str(backend.unit_uid),
                            "reachable": True,
                            "in_flight": int(str(backend.unit_uid) in self.in_flight),
                        }
                        for backend in shown.backends
                    ],
                    "revisions": [
                        {
                            "revision": revision,
                            "requests": requests,
                            "errors": errors,
                            "latency": [requests, *[0] * len(LATENCY_MS)],
                        }
                        for revision, (requests, errors) in self.counts.items()
                    ],
                }
            ],
        }
        agents.report(
            gateway=gateway.pk,
            body=body,
            version=document.version,
            actor=acting_gateway(gateway.pk),
            now=self.here.clock(),
        )

    def enrol(self) -> GatewayReplica:
        GatewayReplica.objects.update(enrolled_at=self.here.clock(), last_seen_at=self.here.clock())
        self.report()
        return GatewayReplica.objects.get()

    def document(self) -> ConfigDocument:
        return config.document_of(GatewayReplica.objects.get(), now=self.here.clock())

    def configured(self, gateway: GatewayReplica) -> EndpointConfig:
        return config.document_of(gateway, now=self.here.clock()).endpoints[0]

    def weights(self) -> dict[int, int]:
        """Return revision → weight, in percent of all."""
        backends = self.document().endpoints[0].backends
        total = sum(backend.weight for backend in backends)
        return {backend.revision: round(100 * backend.weight / total) for backend in backends} if total else {}

    @property
    def rollout(self) -> Rollout:
        return Rollout.objects.latest("created_at")

    def is_at(self, state: str, step: int | None = None) -> Callable[[], bool]:
        return lambda: self.rollout.state == state and step in {None, self.rollout.step}

    def revise(self, ask: RolloutAsk = CANARY, **more: Any) -> Any:
        return endpoints.revise(
            endpoint=fresh(self.row), ask=NEXT, rollout=ask, actor=self.actor, now=self.here.clock(), **more
        )

    def happened(self) -> list[str]:
        rows = Event.objects.filter(object_id=self.row.pk).order_by("seq").values_list("kind", flat=True)
        return [kind.removeprefix("endpoint.") for kind in rows if "roll" in kind or "given" in kind]


def staged(
    *units: UnitAsk, kind: BoundaryKind = BoundaryKind.NAMESPACE, quota: bool = True, delays: bool = False
) -> Stage:
    here = world(delays=delays)
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    if not quota:
        Quota.objects.filter(tenant=tenant, dimension="gpu.H100-80GB.slices").update(amount=1)
    actor = factories.actor(factories.member(tenant))
    factories.served_model("llama-3-1-8b")
    spec = AllocationSpec(units=units or (unit(),), where=Where(kind=kind))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=actor, now=here.clock()
    )
    here.drive(is_ready(made.endpoint))
    here.drive(lambda: fresh(made.endpoint.allocation).ready_at is not None)
    return Stage(here, actor, made.endpoint)


def unit(product: str = "H100-80GB", profile: str = "1g.10gb") -> UnitAsk:
    return UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16)


def charged() -> dict[str, int]:
    return dict(QuotaCharge.objects.filter(allocation__isnull=False).values_list("dimension", "amount"))


@pytest.mark.parametrize("delays", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at-once", "with-delays"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_canary_takes_over_step_by_step_and_the_endpoint_is_ready_all_the_time(
    replicas: int, *, delays: bool
) -> None:
    stage = staged(*[unit()] * replicas, delays=delays)
    before = charged()
    made = stage.revise()

    assert (made.number, fresh(stage.row).revision.number) == (2, 1)
    assert Hold.objects.count() == replicas + 1
    assert charged()["vcpu"] == before["vcpu"] * (replicas + 1) // replicas
    assert stage.rollout.state == "preparing"
    stage.drive(stage.is_at("stepping"))
    assert stage.weights()[2] == 10
    stage.drive(stage.is_at("stepping", 1), most=80)
    assert stage.weights()[2] == 50
    stage.drive(stage.is_at("done"), most=100)
    stage.drive(is_ready(stage.row))

    row = fresh(stage.row)
    assert (row.revision.number, row.observed["revision"]) == (2, 2)
    assert set(stage.phases) == {"Ready"}
    assert (Hold.objects.count(), charged()) == (replicas, before)
    live = Unit.objects.filter(released_at__isnull=True)
    assert [one.role for one in live] == ["replica"] * replicas
    assert stage.rollout.surge in {one.pk for one in live}
    assert set(stage.weights()) == {2}
    assert all(one.billable_from is not None for one in UsageRecord.objects.filter(kind="tenant", held_to=None))
    assert stage.happened() == [
        "rollout-began", "rollout-step", "rollout-step", "rollout-promoted", "unit-given-back", "rollout-done",
    ]  # fmt: skip
    assert_gone(stage)


def assert_gone(stage: Stage) -> None:
    row = fresh(stage.row)
    endpoints.delete(endpoint=row, actor=stage.actor, now=stage.here.clock())
    stage.here.drive(is_gone(row, row.allocation, row.boundary))
    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)
    assert not Rollout.objects.filter(ended_at__isnull=True).exists()


def test_a_bad_canary_aborts_by_itself_and_says_why() -> None:
    stage = staged()
    stage.enrol()
    stage.revise()
    stage.drive(stage.is_at("stepping"))

    stage.counts = {1: (200, 0), 2: (25, 20)}
    stage.drive(stage.is_at("aborted"))

    assert stage.rollout.reason == "20 of its 25 requests failed (80%); at most 5% may."
    assert fresh(stage.row).revision.number == 1
    assert set(stage.phases) == {"Ready"}
    assert Hold.objects.count() == 1
    assert stage.happened()[-3:] == ["rollout-aborting", "unit-given-back", "rollout-aborted"]
    assert set(stage.weights()) == {1}


def test_what_was_counted_before_its_step_is_not_held_against_it() -> None:
    stage = staged()
    stage.enrol()
    stage.counts = {2: (1000, 900)}  # of an earlier life of that number
    stage.report()
    stage.revise()
    stage.drive(stage.is_at("stepping"))

    stage.counts = {2: (1030, 900)}
    stage.report()
    seen = canary_figures.standing(stage.rollout)
    assert (seen.requests, seen.errors, seen.is_judged) == (30, 0, True)
    stage.drive(stage.is_at("stepping", 1), most=80)


def test_an_old_replica_goes_only_once_gateways_send_it_nothing_and_its_requests_have_ended() -> None:
    stage = staged()
    stage.enrol()
    first = str(Unit.objects.get().pk)
    stage.in_flight = {first}
    stage.revise(RolloutAsk(RolloutStrategy.CANARY))
    stage.drive(lambda: str(stage.rollout.draining) == first)

    for _ in range(30):
        stage.here.clock.move(1)
        stage.here.sweep()
        stage.report()
    still = (str(stage.rollout.draining), stage.weights(), Hold.objects.count())
    stage.in_flight = set()
    stage.drive(stage.is_at("done"))

    assert still == (first, {1: 0, 2: 100}, 2)


def test_without_quota_it_is_a_recreate_that_says_so_or_refused_where_that_was_asked_for() -> None:
    stage = staged(quota=False)

    with pytest.raises(Conflict, match="There is no quota for a unit beside"):
        stage.revise(RolloutAsk(RolloutStrategy.CANARY, must_have_room=True))
    assert fresh(stage.row).revision.number == 1
    stage.revise()

    assert stage.rollout.strategy == "recreate"
    assert stage.rollout.note.startswith("There is no quota for a unit beside: ")
    assert stage.rollout.note.endswith(" So the old replicas stop before the new ones start.")
    stage.drive(stage.is_at("done"))
    assert fresh(stage.row).observed["revision"] == 2
    assert Hold.objects.count() == 1


def test_a_provider_that_runs_no_two_revisions_beside_each_other_refuses_and_says_why() -> None:
    stage = staged(unit("A100-80GB"), kind=BoundaryKind.VM)
    provider = Provider.objects.get()
    provider.capabilities = {**provider.capabilities, "features": {}}
    provider.save()

    with pytest.raises(Conflict, match="runs no two revisions") as refused:
        stage.revise()

    assert refused.value.specific_code == "not-supported"
    assert (Hold.objects.count(), Rollout.objects.count()) == (1, 0)
    stage.revise(RolloutAsk())
    stage.drive(stage.is_at("done"))
    assert fresh(stage.row).observed["revision"] == 2


@pytest.mark.parametrize("replicas", [1, 2])
def test_in_machines_the_one_that_the_address_leads_to_stays_and_the_one_beside_is_given_back(replicas: int) -> None:
    stage = staged(*[unit("A100-80GB")] * replicas, kind=BoundaryKind.VM)
    before, machines = charged(), set(stage.here.estate.state.workloads)
    address = fresh(stage.row).address

    stage.revise()
    stage.drive(stage.is_at("stepping"))
    runs = {one["revision"] for one in fresh(stage.row).observed["units"]}
    configured = {one.unit_id: stage.configured(one) for one in GatewayReplica.objects.filter(removed_at=None)}
    stage.drive(stage.is_at("done"), most=140)
    stage.drive(is_ready(stage.row))

    assert runs == {1, 2}
    assert {unit: len(one.keys) for unit, one in configured.items()} == {
        unit: int(unit != stage.rollout.surge) for unit in configured
    }
    assert {one["revision"] for one in fresh(stage.row).observed["units"]} == {2}
    assert set(stage.here.estate.state.workloads) == machines
    assert (Hold.objects.count(), charged(), fresh(stage.row).address) == (replicas, before, address)
    assert set(stage.phases) == {"Ready"}
    assert GatewayReplica.objects.filter(removed_at=None).count() == replicas
    assert stage.rollout.surge not in {one.pk for one in Unit.objects.filter(released_at=None)}
    assert_gone(stage)


def test_in_machines_a_bad_canary_aborts_and_its_machine_goes() -> None:
    stage = staged(unit("A100-80GB"), kind=BoundaryKind.VM)
    machines = set(stage.here.estate.state.workloads)
    stage.revise()
    stage.drive(stage.is_at("stepping"))
    beside = GatewayReplica.objects.get(unit=stage.rollout.surge)

    rollouts.abort(endpoint=fresh(stage.row), actor=stage.actor, now=stage.here.clock())
    stage.drive(stage.is_at("aborted"))

    assert set(stage.here.estate.state.workloads) == machines
    assert fresh(beside).removed_at is not None
    assert set(stage.phases) == {"Ready"}
    assert (fresh(stage.row).revision.number, Hold.objects.count()) == (1, 1)


def test_a_provider_that_makes_no_machine_for_the_canary_has_it_aborted() -> None:
    stage = staged(unit("A100-80GB"), kind=BoundaryKind.VM)
    words = "the template is gone"
    control.add_fault(stage.here.estate, "start:vm.clone[1]", "fail", error="rejected", detail=words, times=-1)
    stage.revise()

    stage.drive(stage.is_at("aborted"))

    assert stage.rollout.reason == words
    assert set(stage.phases) == {"Ready"}
    assert Hold.objects.count() == 1


MACHINE_STEPS = (
    "start:vm.clone[1]", "start:vm.power[1]", "start:vm.gateway[1]", "start:serving.replica[1]",
    "start:serving.replica[0]", "undo:serving.replica[1]", "undo:vm.gateway[1]", "undo:vm.power[1]", "undo:vm.clone[1]",
)  # fmt: skip


@pytest.mark.parametrize("effect", ["lost-answer", pytest.param("forget", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", MACHINE_STEPS)
def test_in_machines_whatever_is_lost_on_the_way_it_takes_over_once(at: str, effect: str) -> None:
    stage = staged(unit("A100-80GB"), kind=BoundaryKind.VM)
    control.add_fault(stage.here.estate, at, effect)
    stage.revise(RolloutAsk(RolloutStrategy.CANARY))

    stage.drive(stage.is_at("done"), most=140)
    stage.drive(is_ready(stage.row))

    assert fresh(stage.row).observed["revision"] == 2
    assert (Hold.objects.count(), len(stage.here.estate.state.workloads)) == (1, 1)


def test_gateways_in_machines_reach_each_others_replicas_through_each_other() -> None:
    stage = staged(*[unit("A100-80GB")] * 2, kind=BoundaryKind.VM)
    first, second = Unit.objects.order_by("index")
    row = fresh(stage.row)
    for one in row.observed["units"]:
        one["gateway"] = f"https://10.1.0.{1 if one['unit'] == str(first.pk) else 2}/v1"
    row.save(update_fields=["observed"])
    GatewayReplica.objects.update(enrolled_at=stage.here.clock())
    one, other = (GatewayReplica.objects.get(unit=unit) for unit in (first, second))

    unknown = config.document_of(one, now=stage.here.clock()).endpoints[0].backends
    version = one.config_version
    agents.report(
        gateway=other.pk, body={"endpoints": [], "listens_with": "ab" * 32}, version=1,
        actor=acting_gateway(other.pk), now=stage.here.clock(),
    )  # fmt: skip
    known = config.document_of(fresh(one), now=stage.here.clock()).endpoints[0].backends

    assert [(backend.unit_uid, backend.through) for backend in unknown] == [(first.pk, False)]
    assert fresh(one).config_version > version
    beside = next(backend for backend in known if backend.unit_uid == second.pk)
    assert (beside.url, beside.through, beside.certificate) == ("https://10.1.0.2/v1", True, "ab" * 32)
    assert {backend.weight for backend in known} == {100}


@pytest.mark.parametrize("error", ["rejected", "no-capacity"])
def test_a_revision_that_the_provider_does_not_take_is_given_up_and_the_old_one_serves_on(error: str) -> None:
    stage = staged()
    words = "the model server refuses its arguments"
    control.add_fault(stage.here.estate, "start:serving.replica[1]", "fail", error=error, detail=words, times=-1)
    stage.revise()

    stage.drive(stage.is_at("aborted"))

    assert stage.rollout.reason == words
    assert set(stage.phases) == {"Ready"}
    assert (Hold.objects.count(), fresh(stage.row).revision.number) == (1, 1)


def test_people_promote_hold_resume_and_abort() -> None:
    stage = staged()
    stage.revise()
    who: dict[str, Any] = {"actor": stage.actor}

    with pytest.raises(Conflict, match="its first replica does not work yet"):
        rollouts.promote(endpoint=fresh(stage.row), now=stage.here.clock(), **who)
    stage.drive(stage.is_at("stepping"))
    rollouts.hold(endpoint=fresh(stage.row), now=stage.here.clock(), **who)
    for _ in range(5):
        stage.here.clock.move(100)
        stage.here.sweep()
    held = (stage.rollout.state, stage.rollout.step)
    rollouts.resume(endpoint=fresh(stage.row), now=stage.here.clock(), **who)
    stage.drive(stage.is_at("stepping", 1), most=80)
    rollouts.promote(endpoint=fresh(stage.row), now=stage.here.clock(), **who)
    stage.drive(stage.is_at("done"))

    assert held == ("stepping", 0)
    with pytest.raises(Conflict, match="No revision is taking over"):
        rollouts.abort(endpoint=fresh(stage.row), now=stage.here.clock(), **who)

    rollouts.rollback(endpoint=fresh(stage.row), now=stage.here.clock(), **who)
    assert (stage.rollout.strategy, stage.rollout.revision.number) == ("canary", 1)
    stage.drive(stage.is_at("stepping") if stage.rollout.steps else stage.is_at("done"))
    assert fresh(stage.row).observed["revision"] == 1
    assert set(stage.phases) == {"Ready"}
    assert Hold.objects.count() == 1


def test_one_revision_at_a_time_and_only_asks_that_make_sense() -> None:
    stage = staged()
    stage.revise()

    with pytest.raises(Conflict) as running:
        stage.revise()
    assert running.value.specific_code == "rollout-running"
    assert Hold.objects.count() == 2

    for bad in (
        RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(50, 1), RolloutStep(10, 1))),
        RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(0, 1),)),
        RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(10, 0),)),
        RolloutAsk(RolloutStrategy.RECREATE, STEPS),
        RolloutAsk(RolloutStrategy.CANARY, (), RolloutLimits(error_rate=1.5)),
    ):
        with pytest.raises(InvalidSpec):
            stage.revise(bad)


def test_a_recreate_drains_before_it_stops_and_lets_requests_wait() -> None:
    stage = staged()
    stage.enrol()
    first = str(Unit.objects.get().pk)
    stage.in_flight = {first}
    stage.revise(RolloutAsk())

    for _ in range(10):
        stage.here.clock.move(1)
        stage.here.sweep()
        stage.report()
    shown = stage.document().endpoints[0]
    still = (stage.rollout.state, fresh(stage.row).observed["revision"], [one.weight for one in shown.backends])
    stage.in_flight = set()
    stage.drive(stage.is_at("done"))

    assert still == ("draining", 1, [0])
    assert shown.waiting is not None
    assert stage.document().endpoints[0].waiting is None
    assert fresh(stage.row).observed["revision"] == 2


def test_a_recreate_that_does_not_come_up_is_aborted_by_people_and_serves_what_it_did() -> None:
    stage = staged()
    control.add_fault(stage.here.estate, "start:serving.replica[0]", "fail", error="rejected", detail="no", times=1)
    stage.revise(RolloutAsk())
    stage.drive(lambda: fresh(stage.row).phase == "Failed")

    rollouts.abort(endpoint=fresh(stage.row), reason="It does not start.", actor=stage.actor, now=stage.here.clock())
    stage.drive(stage.is_at("aborted"))

    assert (fresh(stage.row).revision.number, fresh(stage.row).observed["revision"]) == (1, 1)
    assert fresh(stage.row).phase == "Ready"


@pytest.mark.parametrize("at", ["preparing", "stepping", "promoting"])
def test_deleted_in_the_middle_of_a_rollout_it_leaves_nothing(at: str) -> None:
    stage = staged()
    if at == "promoting":
        stage.enrol()
        stage.in_flight = {str(Unit.objects.get().pk)}
    stage.revise(RolloutAsk(RolloutStrategy.CANARY) if at == "promoting" else CANARY)
    if at != "preparing":
        stage.drive(stage.is_at(at))
    assert stage.rollout.state == at
    stage.in_flight = set()

    row = fresh(stage.row)
    endpoints.delete(endpoint=row, actor=stage.actor, now=stage.here.clock())
    stage.drive(is_gone(row, row.allocation, row.boundary), most=120)

    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)
    assert stage.rollout.reason == "The endpoint was deleted."


FAULTS = ["fail", "lost-answer", "task-fail", "forget"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", ["start:serving.replica[1]", "undo:serving.replica[0]", "start:serving.secret"])
def test_whatever_is_lost_on_the_way_it_takes_over_once_and_holds_what_it_should(call: str, fault: str) -> None:
    stage = staged()
    control.add_fault(stage.here.estate, call, fault)
    stage.revise(RolloutAsk(RolloutStrategy.CANARY, (RolloutStep(10, 5),)))

    stage.drive(stage.is_at("done"), most=200)
    stage.drive(is_ready(stage.row))

    assert fresh(stage.row).observed["revision"] == 2
    assert Hold.objects.count() == 1
    assert "Provisioning" not in stage.phases
    assert len(stage.here.estate.state.workloads) == 1


def test_a_replica_that_was_drained_gets_nothing_before_it_is_seen_to_run_the_new_revision() -> None:
    stage = staged()
    stage.enrol()
    stage.revise(RolloutAsk())
    unit_held = str(Unit.objects.get().pk)

    Rollout.objects.update(state="promoting", on_new=[unit_held])  # as a pass leaves it that dies before its step

    assert fresh(stage.row).observed["units"][0]["ready"]
    assert [(one.revision, one.weight) for one in stage.document().endpoints[0].backends] == [(1, 0)]


def test_what_was_seen_before_an_endpoint_was_woken_is_no_reason_to_ask_its_replicas() -> None:
    stage = staged()
    stage.enrol()
    who: dict[str, Any] = {"actor": stage.actor, "now": stage.here.clock()}

    idling.sleep(endpoint=fresh(stage.row), **who)
    idling.wake(endpoint=fresh(stage.row), **who)  # before any pass could stop them, or between its look and its step
    away = stage.document().endpoints[0]
    stage.drive(is_ready(stage.row))

    assert fresh(stage.row).observed["units"][0]["ready"]
    assert (away.backends, away.waiting is not None) == ((), True)
    assert len(stage.document().endpoints[0].backends) == 1
