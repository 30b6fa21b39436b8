"""Moves between boundaries driven by passes on the sandbox's core; gateways are played by what they would send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from provisioners import housekeeping
from provisioners.agent_api import config
from provisioners.agent_api.polling import acting_gateway
from provisioners.gateway.protocol import EndpointConfig
from provisioners.sandbox import control, views
from tenants.errors import Conflict, InvalidSpec
from tenants.models import (
    Allocation,
    Boundary,
    Endpoint,
    Event,
    GatewayReplica,
    Hold,
    Move,
    Provider,
    Quota,
    QuotaCharge,
    UsageRecord,
)
from tenants.operations import agents, endpoints, idling, moves, rollouts, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MoveAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole, SuspensionDepth
from tests import factories
from tests.drive import World, fresh, inventory_of, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")
TO_VM = MoveAsk(BoundaryKind.VM, gpu=GpuAsk("A100-80GB", "3g.40gb"), watch_s=60)
BACK = MoveAsk(BoundaryKind.NAMESPACE, gpu=GpuAsk("H100-80GB", "1g.10gb"), watch_s=60)


@dataclass
class Stage:
    """An endpoint that serves in a namespace, in a world whose clock is moved."""

    here: World
    actor: Any
    row: Endpoint
    phases: list[str] = field(default_factory=list)
    """After each sweep."""
    named: list[int] = field(default_factory=list)
    """How many places had the name."""
    in_flight: set[str] = field(default_factory=set)
    """Gateways that are busy."""

    def drive(self, until: Callable[[], bool], *, most: int = 60, step_s: float = 1.0) -> None:
        def looked() -> bool:
            self.phases.append(fresh(self.row).phase)
            objects = self.here.estate.state.objects.values()
            self.named.append(sum(1 for one in objects if one.public_name and one.published and one.named_at))
            self.report()
            return until()

        self.here.drive(looked, most=most, step_s=step_s)

    def report(self) -> None:
        """Say what enrolled gateways would."""
        for gateway in GatewayReplica.objects.filter(enrolled_at__isnull=False, removed_at=None):
            document = config.document_of(gateway, now=self.here.clock())
            body = {
                "started_at": "2026-01-01T00:00:00Z",
                "config_version": document.version,
                "endpoints": [
                    {
                        "uid": str(shown.uid),
                        "state": shown.state.value,
                        "in_flight": int(str(gateway.pk) in self.in_flight),
                        "backends": [{"unit_uid": str(one.unit_uid), "reachable": True} for one in shown.backends],
                    }
                    for shown in document.endpoints
                ],
            }
            agents.report(
                gateway=gateway.pk,
                body=body,
                version=document.version,
                actor=acting_gateway(gateway.pk),
                now=self.here.clock(),
            )

    def shown(self) -> dict[str, EndpointConfig]:
        """Return kind of boundary → the endpoint as its gateway there has it."""
        found = {}
        for gateway in GatewayReplica.objects.select_related("boundary").filter(removed_at=None):
            for one in config.document_of(gateway, now=self.here.clock()).endpoints:
                found[gateway.boundary.kind] = one
        return found

    def do(self, act: Callable[..., Any], **more: Any) -> Any:
        return act(endpoint=fresh(self.row), actor=self.actor, now=self.here.clock(), **more)

    @property
    def move(self) -> Move:
        return Move.objects.latest("created_at")

    def is_at(self, *states: str) -> Callable[[], bool]:
        return lambda: self.move.state in states

    def moved(self, ask: MoveAsk = TO_VM) -> None:
        self.do(moves.begin, ask=ask)
        self.drive(self.is_at("done"), most=200)
        self.drive(lambda: not left_over(), most=60)

    def happened(self) -> list[str]:
        kinds = Event.objects.filter(object_id=self.row.pk, kind__startswith="endpoint.move-").order_by("seq")
        return [kind.removeprefix("endpoint.move-") for kind in kinds.values_list("kind", flat=True)]


def left_over() -> bool:
    return Endpoint._base_manager.filter(stands_in_for__isnull=False, released_at=None).exists()


def staged(*, delays: bool = False, replicas: int = 1, names: bool = True) -> Stage:
    here = world(delays=delays)
    control.change_settings(here.estate, {"names": names})
    Provider.objects.filter(pk=here.provider.pk).update(capabilities=inventory_of(here.estate))
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    actor = factories.actor(factories.member(tenant))
    factories.served_model("llama-3-1-8b")
    unit = UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16)
    spec = AllocationSpec(units=(unit,) * replicas, where=Where(kind=BoundaryKind.NAMESPACE))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=actor, now=here.clock()
    )
    here.drive(is_ready(made.endpoint))
    here.drive(lambda: fresh(made.endpoint.allocation).ready_at is not None)
    return Stage(here, actor, made.endpoint)


def serving(stage: Stage) -> list[str]:
    """Return the kinds of boundaries in which replicas of the endpoint run."""
    state = stage.here.estate.state
    return sorted(state.objects[one.owner].boundary_kind for one in state.workloads.values() if one.running)


@pytest.mark.parametrize("delays", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at-once", "with-delays"])
@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_goes_to_machines_and_back_and_keeps_its_address_its_term_and_its_name(
    replicas: int, *, delays: bool
) -> None:
    stage = staged(delays=delays, replicas=replicas)
    before, allocation = fresh(stage.row), fresh(stage.row.allocation)
    stage.moved()

    there = fresh(stage.row)
    assert (there.boundary.kind, there.address, there.short_id) == ("vm", before.address, before.short_id)
    assert (there.allocation.name, there.allocation.expires_at) == (allocation.name, allocation.expires_at)
    assert there.allocation.product_id == there.pk
    assert serving(stage) == ["vm"] * replicas
    assert fresh(allocation).released_at is not None
    assert Hold.objects.count() == replicas
    assert set(stage.shown()) == {"vm"}
    assert (stage.shown()["vm"].uid, stage.shown()["vm"].models) == (there.pk, ("chat",))
    stage.moved(BACK)

    row = fresh(stage.row)
    assert (row.boundary.kind, row.address, serving(stage)) == ("namespace", before.address, ["namespace"] * replicas)
    assert set(stage.phases) == {"Ready"}
    assert all(count >= 1 for count in stage.named)
    assert stage.happened() == ["began", "beside", "cut", "watching", "leaving", "done"] * 2
    assert all(one.billable_from is not None for one in UsageRecord.objects.filter(kind="tenant", held_to=None))
    assert_gone(stage)


def assert_gone(stage: Stage) -> None:
    row = fresh(stage.row)
    endpoints.delete(endpoint=row, actor=stage.actor, now=stage.here.clock())
    stage.here.drive(is_gone(row, row.allocation, *Boundary.objects.all(), *Allocation.objects.all()), most=100)
    assert (Hold.objects.count(), QuotaCharge.objects.count()) == (0, 0)
    assert views.leftovers(stage.here.estate.state) == []
    assert not Move.objects.filter(ended_at=None).exists()
    assert not left_over()


def test_both_answer_before_its_name_goes_over_which_people_may_decide_and_undo() -> None:
    stage = staged()
    stage.do(moves.begin, ask=MoveAsk(BoundaryKind.VM, gpu=TO_VM.gpu, by_hand=True))
    stage.drive(stage.is_at("beside"))

    both = stage.shown()
    assert {kind: (one.uid, one.moved, len(one.backends)) for kind, one in both.items()} == {
        "namespace": (stage.row.pk, False, 1),
        "vm": (stage.row.pk, False, 1),
    }
    assert both["vm"].keys == both["namespace"].keys
    assert both["vm"].hop_keys == both["namespace"].hop_keys
    with pytest.raises(Conflict, match="its address has not gone over yet"):
        stage.do(moves.finish)
    stage.do(moves.cut_over)
    stage.drive(stage.is_at("watching"))
    assert {kind: one.moved for kind, one in stage.shown().items()} == {"namespace": True, "vm": False}

    stage.do(moves.undo, reason="Slower there.")
    stage.drive(stage.is_at("undone"))
    stage.drive(lambda: not left_over())

    assert (stage.move.reason, fresh(stage.row).boundary.kind, serving(stage)) == (
        "Slower there.", "namespace", ["namespace"],
    )  # fmt: skip
    assert stage.shown()["namespace"].moved is False
    assert set(stage.phases) == {"Ready"}
    assert Hold.objects.count() == 1
    assert stage.happened() == ["began", "beside", "cut", "watching", "undoing", "undone"]
    assert_gone(stage)


@pytest.mark.slow
def test_the_old_place_stays_while_its_gateway_answers_somebody() -> None:
    stage = staged()
    GatewayReplica.objects.update(enrolled_at=stage.here.clock(), last_seen_at=stage.here.clock())
    old = GatewayReplica.objects.get()
    stage.in_flight.add(str(old.pk))
    stage.do(moves.begin, ask=TO_VM)
    stage.drive(stage.is_at("leaving"), most=200)
    for _ in range(20):
        stage.report()
        stage.here.sweep()
        stage.here.clock.move(1)

    still = stage.move.state
    stage.in_flight.clear()
    stage.drive(stage.is_at("done"))

    assert still == "leaving"


@pytest.mark.slow
def test_a_new_place_that_breaks_is_left_by_itself() -> None:
    stage = staged()
    stage.do(moves.begin, ask=TO_VM)
    stage.drive(stage.is_at("watching"))

    broken = next(one.host for one in stage.here.estate.state.workloads.values() if one.is_vm)
    control.set_host_health(stage.here.estate, broken, healthy=False)
    Endpoint._base_manager.update(due_at=stage.here.clock())
    stage.drive(stage.is_at("undoing", "undone"), most=120)

    assert "has not worked there for 60 s" in stage.move.reason
    assert fresh(stage.row).phase == "Ready"


@pytest.mark.parametrize(
    "state", ["watching", *(pytest.param(one, marks=pytest.mark.slow) for one in ("preparing", "beside", "undoing"))]
)
def test_deleted_on_its_way_it_leaves_nothing_at_either_place(state: str) -> None:
    stage = staged(delays=True)
    stage.do(moves.begin, ask=MoveAsk(BoundaryKind.VM, gpu=TO_VM.gpu, by_hand=state == "beside"))
    stage.drive(stage.is_at("watching" if state == "undoing" else state))
    if state == "undoing":
        stage.do(moves.undo)

    assert_gone(stage)
    assert (stage.move.state, stage.move.reason != "") == ("undone", True)


def test_without_room_it_waits_where_it_is_and_can_be_called_off() -> None:
    stage = staged()
    stage.do(moves.begin, ask=MoveAsk(BoundaryKind.NAMESPACE, provider="elsewhere"))
    stage.drive(lambda: True)

    assert stage.move.state == "preparing"
    stage.do(moves.undo)
    stage.drive(stage.is_at("undone"))
    stage.drive(lambda: not left_over())
    assert Hold.objects.count() == 1
    assert_gone(stage)


def test_what_cannot_move_now_is_refused_and_changes_nothing() -> None:
    stage = staged()
    with pytest.raises(Conflict, match="there already"):
        stage.do(moves.begin, ask=MoveAsk(BoundaryKind.NAMESPACE))
    with pytest.raises(InvalidSpec):
        stage.do(moves.begin, ask=MoveAsk(BoundaryKind.VM, gpu=TO_VM.gpu, watch_s=-1))
    with pytest.raises(Conflict, match="is not moving"):
        stage.do(moves.undo)
    assert (Move.objects.count(), Allocation.objects.count()) == (0, 1)

    stage.do(moves.begin, ask=TO_VM)
    with pytest.raises(Conflict, match="moving already"):
        stage.do(moves.begin, ask=TO_VM)
    with pytest.raises(Conflict, match="It is moving"):
        stage.do(endpoints.revise, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}))
    with pytest.raises(Conflict, match="It is moving"):
        stage.do(idling.sleep)
    with pytest.raises(Conflict, match="It is moving"):
        stage.do(rollouts.rollback)


def test_where_no_address_follows_nothing_moves() -> None:
    stage = staged(names=False)

    with pytest.raises(Conflict, match="no address that could follow"):
        stage.do(moves.begin, ask=TO_VM)


def test_between_zones_nothing_moves_as_its_address_would_change() -> None:
    here, same, other, none = (
        Provider(name=name, config=config)
        for name, config in (
            ("here", {"zone": "models.example"}), ("same", {"zone": ".Models.example."}),
            ("other", {"zone": "gpu.example"}), ("none", {}),
        )
    )  # fmt: skip

    assert moves.apart(here, same) == ""
    assert moves.apart(here, other) == (
        "The endpoint's address would change: those of here end in models.example, those of other end in gpu.example. "
        "Give both providers the same zone."
    )
    assert "those of none end in no zone" in moves.apart(here, none)


def test_a_place_in_another_zone_ends_a_move_before_it_is_built_there() -> None:
    stage = staged()
    elsewhere = factories.provider(config={"zone": "gpu.example"}, capabilities=inventory_of(stage.here.estate))
    stage.do(moves.begin, ask=MoveAsk(BoundaryKind.NAMESPACE, provider=elsewhere.name, by_hand=True))
    stand_in = Endpoint._base_manager.get(stands_in_for__isnull=False)
    placed = Boundary.objects.create(
        id=uuid4(), tenant=stand_in.tenant, provider=elsewhere, kind=BoundaryKind.NAMESPACE.value, tier="shared",
        created_at=stage.here.clock(),
    )  # fmt: skip
    Endpoint._base_manager.filter(pk=stand_in.pk).update(boundary=placed)

    stage.drive(stage.is_at("undoing", "undone"))

    assert "Give both providers the same zone" in stage.move.reason


def test_after_their_time_both_places_are_forgotten() -> None:
    stage = staged()
    stage.moved()
    assert_gone(stage)

    removed = housekeeping.purge_released(stage.here.clock() + timedelta(days=91))

    assert removed > 0
    assert (Endpoint._base_manager.count(), Move.objects.count(), Allocation.objects.count()) == (0, 0, 0)


def test_a_stand_in_is_seen_by_nobody() -> None:
    stage = staged()
    stage.do(moves.begin, ask=TO_VM)

    assert list(Endpoint.objects.values_list("name", flat=True)) == ["chat"]
    assert Endpoint._base_manager.count() == 2


def counted() -> int:
    """Return how many endpoints are counted against quota."""
    return sum(QuotaCharge.objects.filter(dimension="endpoints").values_list("amount", flat=True))


@pytest.mark.parametrize("ends", ["done", "undone", "deleted"])
def test_on_its_way_it_counts_as_one_endpoint_all_the_time(ends: str) -> None:
    stage = staged()
    Quota.objects.filter(dimension="endpoints").update(amount=1)
    counts: list[int] = []

    def looked(*states: str) -> Callable[[], bool]:
        def look() -> bool:
            counts.append(counted())
            return stage.is_at(*states)()

        return look

    stage.do(moves.begin, ask=TO_VM)
    stage.drive(looked("watching"), most=100)
    if ends == "undone":
        stage.do(moves.undo)
    if ends == "deleted":
        assert_gone(stage)
        assert counted() == 0
    else:
        stage.drive(looked(ends), most=200)
        stage.drive(lambda: not left_over())
        assert counted() == 1
        charge = QuotaCharge.objects.get(dimension="endpoints")
        assert charge.allocation_id == fresh(stage.row).allocation_id
        assert fresh(stage.row).allocation.demand["endpoints"] == 1
        assert_gone(stage)
    assert set(counts) == {1}


@pytest.mark.parametrize("depth", list(SuspensionDepth))
def test_suspended_while_it_is_watched_it_waits_and_goes_on_when_that_ends(depth: SuspensionDepth) -> None:
    stage = staged()
    stage.do(moves.begin, ask=TO_VM)
    stage.drive(stage.is_at("watching"), most=100)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    clock = stage.here.clock

    tenants.suspend(tenant=stage.row.tenant, depth=depth, reason="unpaid", actor=operator, now=clock())
    for _ in range(150):
        clock.move(2)
        stage.here.sweep()
    held = stage.move.state
    tenants.resume(tenant=stage.row.tenant, actor=operator, now=clock())
    stage.drive(stage.is_at("leaving", "undoing"), most=200)

    assert (held, stage.move.state) == ("watching", "leaving")
    stage.drive(stage.is_at("done"))
    assert fresh(stage.row).boundary.kind == "vm"
