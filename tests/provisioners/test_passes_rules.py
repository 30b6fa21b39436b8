"""Leases, errors by class, refusals at power-on, suspension, changes, the queue, and time, on the sandbox's core."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection

from provisioners import breaker, lease, passes, sweep
from provisioners.boundary import PASS as BOUNDARY
from provisioners.boundary import people_of
from provisioners.connections import InTransaction, Watched
from provisioners.driver import Kind, Ref
from provisioners.endpoint import PASS as ENDPOINT
from provisioners.lease import StaleLease
from provisioners.sandbox import control, views
from provisioners.sandbox.driver import InProcessSandbox
from tenants import desired, ledger
from tenants.actor import SYSTEM
from tenants.models import (
    Allocation,
    Boundary,
    Endpoint,
    Event,
    GatewayReplica,
    Hold,
    Host,
    Membership,
    Notice,
    Revision,
    Suspension,
    Unit,
)
from tenants.operations import allocations, endpoints, machines, members, namespaces
from tenants.operations import tenants as operations
from tenants.specs import (
    AllocationSpec,
    BareAsk,
    EndpointAsk,
    GpuAsk,
    MachineAsk,
    NamespaceAsk,
    RevisionAsk,
    Term,
    UnitAsk,
    Where,
)
from tenants.states import BoundaryKind, OnShortage, ServiceClass, condition_of
from tenants.transactions import acting
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def here() -> World:
    return world()


@pytest.fixture
def tenant() -> Any:
    row = factories.tenant()
    factories.generous(row, "H100-80GB", "A100-80GB")
    return row


@pytest.fixture
def actor(tenant: Any) -> Any:
    return factories.actor(factories.member(tenant))


def units(count: int = 1, product: str = "H100-80GB", profile: str = "1g.10gb") -> tuple[UnitAsk, ...]:
    return tuple(UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16) for _ in range(count))


def ask(name: str = "chat", *, kind: BoundaryKind = BoundaryKind.NAMESPACE, count: int = 1, **term: Any) -> EndpointAsk:
    from tenants.models import ServedModel

    if not ServedModel.objects.exists():
        factories.served_model("llama-3-1-8b")
    product = "H100-80GB" if kind is BoundaryKind.NAMESPACE else "A100-80GB"
    spec = AllocationSpec(units=units(count, product), where=Where(kind=kind), term=Term(**term))
    return EndpointAsk(name, RevisionAsk("llama-3-1-8b"), spec)


def endpoint(here: World, tenant: Any, actor: Any, name: str = "chat", **more: Any) -> Endpoint:
    made = endpoints.create(tenant=tenant, ask=ask(name, **more), actor=actor, now=here.clock())
    return made.endpoint


def reason(row: Any, kind: str) -> str:
    found = condition_of(fresh(row).conditions, kind)  # type: ignore[arg-type]
    return "" if found is None else f"{found['status']} {found['reason']}"


def said(row: Any) -> str:
    found = condition_of(fresh(row).conditions, "Ready")  # type: ignore[arg-type]
    return "" if found is None else str(found["message"])


# --- leases ---------------------------------------------------------------------------------------------


def test_a_row_is_claimed_by_one_worker_at_a_time(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)

    first = lease.claim("endpoint", Endpoint, row.pk, clock=here.clock)
    second = lease.claim("endpoint", Endpoint, row.pk, clock=here.clock)

    with first as mine, second as others:
        assert mine is not None
        assert others is None


def test_a_row_that_is_locked_for_a_moment_is_claimed_as_soon_as_it_is_not(
    here: World, tenant: Any, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = endpoint(here, tenant, actor)
    nudging = psycopg.connect(os.environ["DATABASE_WORKER_URL"])
    nudging.execute("SELECT 1 FROM tenants_endpoint WHERE id = %s FOR UPDATE", [row.pk])
    pauses: list[float] = []

    def pause(self: threading.Event, timeout: float | None = None) -> bool:
        del self
        pauses.append(timeout or 0.0)
        nudging.rollback()
        return False

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", pause)
        claimed = lease._take_unless_held(
            "endpoint", Endpoint, row.pk, clock=here.clock, ttl=lease.ttl_setting(), due_only=True
        )
    nudging.close()

    assert claimed is not None
    assert pauses == [lease.LOCKED_PAUSE_S]


def test_two_workers_at_once_make_one_pass(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    boundary = row.boundary_id
    made: list[int] = []
    barrier = threading.Barrier(2)

    def work() -> None:
        try:
            barrier.wait()
            made.append(passes.run(BOUNDARY, boundary, engine=here.engine))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    starts = [line.text for line in here.estate.state.logs if line.text.startswith("start:")]
    assert len(starts) == len(set(starts)) == 5
    assert 1 <= sum(made) <= 2


def test_the_result_of_a_worker_whose_lease_ran_out_is_dropped(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    with lease.claim("endpoint", Endpoint, row.pk, clock=here.clock) as paused:
        assert paused is not None
        here.clock.move(paused.ttl.total_seconds() + 1)

        with lease.claim("endpoint", Endpoint, row.pk, clock=here.clock) as rescuer:
            assert rescuer is not None
            assert rescuer.epoch == paused.epoch + 1

            with acting(SYSTEM), pytest.raises(StaleLease):
                paused.lock()


def test_a_nudge_that_comes_during_a_pass_is_not_lost(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    with lease.claim("endpoint", Endpoint, row.pk, clock=here.clock) as claimed:
        assert claimed is not None
        with acting(SYSTEM):
            desired.nudge_now(row, at=here.clock())

        with acting(SYSTEM):
            lease.apply(claimed, claimed.lock(), due_at=None, fields=[])

    assert fresh(row).due_at == here.clock()
    assert fresh(row).lease_expires_at is None


def test_a_lease_is_renewed_while_its_pass_runs(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    with lease.claim("endpoint", Endpoint, row.pk, clock=here.clock, ttl=timedelta(seconds=0.3)) as claimed:
        assert claimed is not None
        first = claimed.expires
        deadline = threading.Event()

        while claimed.expires == first and not deadline.wait(0.02):
            pass

        assert claimed.held


def test_a_worker_that_dies_leaves_a_row_that_falls_due_with_its_lease(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    claim = lease._take("endpoint", Endpoint, row.pk, clock=here.clock, ttl=timedelta(seconds=15), due_only=True)
    assert claim is not None

    assert row.pk not in {item.pk for item in sweep.due(here.clock())}
    here.clock.move(15)

    assert sweep.Due("endpoint", row.pk, claim.epoch) in sweep.due(here.clock())


def test_a_provider_is_never_called_inside_a_transaction(here: World) -> None:
    driver = Watched(InProcessSandbox(here.estate))

    with acting(SYSTEM), pytest.raises(InTransaction):
        driver.observe(Ref(Kind.ENDPOINT, here.provider.pk, here.provider.pk))


# --- what a Ready row costs -------------------------------------------------------------------------------


def test_rows_that_are_ready_cost_nothing(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    here.drive(lambda: fresh(row).allocation.ready_at is not None)
    here.sweep()

    before = here.estate.state.counters.copy()
    here.clock.move(3600)

    assert here.sweep() == 0
    assert here.estate.state.counters == before


# --- errors by class ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "shown"), [("rejected", "False Rejected"), ("not-supported", "False NotSupported")])
def test_a_refused_spec_stops_until_it_changes(here: World, tenant: Any, actor: Any, word: str, shown: str) -> None:
    control.add_fault(here.estate, "start:serving.replica*", "fail", error=word, times=-1, detail="no such image")
    row = endpoint(here, tenant, actor)

    here.drive(lambda: fresh(row).phase == "Failed")

    assert reason(row, "Ready") == shown
    done = len(here.estate.state.logs)
    here.clock.move(3600)
    here.sweep()
    assert (fresh(row).due_at, len(here.estate.state.logs)) == (None, done)

    control.clear_faults(here.estate)
    endpoints.update(endpoint=row, changes={"description": "again"}, actor=actor, now=here.clock())
    here.drive(is_ready(row))


def test_what_no_runtime_can_serve_stops_without_asking_the_provider(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    Revision.objects.filter(endpoint=row).update(arguments={"trust_remote_code": True})

    here.drive(lambda: fresh(row).phase == "Failed")

    assert reason(row, "Ready") == "False Rejected"
    assert str(row.pk) not in here.estate.state.objects


def test_who_leaves_loses_access_to_namespaces_with_the_next_sweep(here: World, tenant: Any, actor: Any) -> None:
    second = factories.member(tenant)
    spec = AllocationSpec(units=units())
    row = namespaces.create(tenant=tenant, ask=NamespaceAsk("play", spec), actor=actor, now=here.clock())
    here.drive(is_ready(row))
    part = here.estate.state.objects[str(row.pk)].parts["access.accounts"]
    before = part.have

    membership = Membership.objects.get(person=second)
    members.remove(membership=membership, actor=SYSTEM, now=here.clock())
    here.sweep()

    have = here.estate.state.objects[str(row.pk)].parts["access.accounts"].have
    assert have != before
    assert len(people_of(row.allocation.boundary)) == 1


def test_a_name_that_somebody_else_has_is_left_to_people(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    boundary = row.boundary
    name = Ref(Kind.BOUNDARY, boundary.pk, tenant.pk).name
    control.add_foreign_object(here.estate, name, "somebody's own namespace")

    here.drive(lambda: reason(boundary, "Ready") == "False NameTaken")

    assert name in here.estate.state.foreign_objects
    control.remove_foreign_object(here.estate, name)
    here.drive(is_ready(row), step_s=10)


def test_a_bug_of_ours_is_said_and_tried_again(
    here: World, tenant: Any, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = endpoint(here, tenant, actor)
    with monkeypatch.context() as broken:
        broken.setattr(ENDPOINT.__class__, "spec", lambda *_a, **_k: 1 / 0)
        here.drive(lambda: reason(row, "Ready") == "Unknown InternalError")
        assert fresh(row).failures >= 1
        assert "division" not in str(fresh(row).conditions)

    here.drive(is_ready(row))
    assert fresh(row).failures == 0


def test_a_provider_that_is_down_delays_only_its_own_objects(tenant: Any, actor: Any) -> None:
    well, ill = world(), world()
    ill.engine.clock = ill.clock = well.clock
    drivers = {w.provider.pk: w.engine.driver_of(w.provider) for w in (well, ill)}
    well.engine.driver_of = lambda provider: drivers[provider.pk]
    ill.estate._clock = well.clock.timestamp
    good = endpoint(well, tenant, actor, "good")
    Host.objects.filter(provider=good.boundary.provider).update(placeable=False)
    for host in Host.objects.filter(provider=good.boundary.provider):
        host.devices.update(placeable=False)
    bad = endpoint(well, tenant, actor, "bad")
    assert good.boundary.provider_id != bad.boundary.provider_id
    down = {well.provider.pk: well, ill.provider.pk: ill}[bad.boundary.provider_id]
    control.add_fault(down.estate, "observe", "fail", times=-1)

    well.drive(is_ready(good), most=10)

    assert reason(bad.boundary, "Ready") == "False ProviderUnavailable"
    well.drive(lambda: fresh(down.provider).breaker_open_until is not None)
    calls = len(down.estate.state.faults)
    control.clear_faults(down.estate)
    assert calls == 1
    well.drive(is_ready(bad), most=120)
    assert fresh(down.provider).breaker_failures == 0


def test_a_provider_gets_at_most_half_of_a_workers_slots(
    here: World, tenant: Any, actor: Any, superuser: Any, settings: Any
) -> None:
    settings.TENANTRY_WORKER_SLOTS = 4
    row = endpoint(here, tenant, actor)
    name = f"{socket.gethostname()}:{os.getppid()}"
    keys = [breaker._key(f"{here.provider.pk}:{name}:{number}") for number in range(2)]
    for key in keys:  # as two other processes of the same worker hold them
        superuser.execute("SELECT pg_advisory_lock(%s)", [key])

    here.sweep()
    assert [line.text for line in here.estate.state.logs] == []
    assert fresh(row.boundary).failures == 0

    for key in keys:
        superuser.execute("SELECT pg_advisory_unlock(%s)", [key])
    here.drive(is_ready(row))


def test_a_provider_that_is_switched_off_is_not_called(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.provider.enabled = False
    here.provider.save(update_fields=["enabled"])

    here.drive(lambda: reason(row.boundary, "Ready") == "False ProviderUnavailable")

    assert [line.text for line in here.estate.state.logs] == []
    assert "switched off" in str(fresh(row.boundary).conditions)


def test_a_ready_endpoint_stays_ready_while_its_provider_does_not_answer(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    control.add_fault(here.estate, "observe", "fail", times=-1)
    with acting(SYSTEM):
        desired.nudge_now(row, at=here.clock())

    here.sweep()

    assert fresh(row).phase == "Ready"
    assert reason(row, "Healthy") == "Unknown ProviderUnavailable"


def test_a_failed_delete_is_retried_whatever_the_error(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    fault = control.add_fault(here.estate, "undo:serving.replica*", "fail", error="rejected", times=4)

    endpoints.delete(endpoint=row, actor=actor, now=here.clock())
    here.drive(lambda: fault.times < 4)
    assert reason(row, "Deleted") == "False Rejected"
    assert Hold.objects.count() == 1

    here.drive(is_gone(row))
    assert fault.times == 0


# --- room that is not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["fail", "task-fail"])
def test_a_vm_refused_at_power_on_is_moved_to_another_host_and_its_old_hold_released(
    tenant: Any, actor: Any, effect: str
) -> None:
    here = world(delays=True)
    row = machines.create(
        tenant=tenant,
        ask=MachineAsk("box", AllocationSpec(units=units(1, "A100-80GB", "")), "ubuntu-24.04", 40),
        actor=actor,
        now=here.clock(),
    )
    first = Unit.objects.get(allocation=row.allocation_id).host
    control.add_fault(here.estate, "start:vm.power", effect, error="no-capacity", detail="no room at power-on")

    here.drive(is_ready(row))

    second = Unit.objects.get(allocation=row.allocation_id).host
    assert second != first
    assert Hold.objects.get().host_id == second.pk  # type: ignore[union-attr]
    assert [use.host for use in views.truth(here.estate.state)] == [second.provider_ref]  # type: ignore[union-attr]
    assert Event.objects.filter(kind="machine.unit-moved").count() == 1


def test_without_another_host_a_refused_vm_keeps_its_hold_and_says_why(tenant: Any, actor: Any) -> None:
    here = world()
    spec = AllocationSpec(units=units(1, "A100-80GB", ""))
    row = machines.create(tenant=tenant, ask=MachineAsk("box", spec, "ubuntu-24.04", 40), actor=actor, now=here.clock())
    first = Unit.objects.get(allocation=row.allocation_id).host
    for host in Host.objects.exclude(pk=first.pk):  # type: ignore[union-attr]
        host.devices.update(placeable=False)
        Host.objects.filter(pk=host.pk).update(placeable=False)
    control.add_fault(here.estate, "start:vm.power", "fail", error="no-capacity", times=3, detail="no room")

    here.drive(lambda: reason(row, "Ready") == "False NoCapacity")

    assert Hold.objects.get().host_id == first.pk  # type: ignore[union-attr]
    here.drive(is_ready(row), step_s=30)


def test_a_unit_that_was_moved_in_the_ledger_is_made_anew_on_its_new_host(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor, kind=BoundaryKind.VM)
    here.drive(is_ready(row))
    unit = Unit.objects.select_related("allocation").get(allocation=row.allocation_id)
    old = unit.host
    with acting(SYSTEM):
        spec = AllocationSpec.from_json(unit.allocation.spec)
        assert ledger.replace(unit, spec, avoid=[], now=here.clock())
        desired.nudge_now(row, at=here.clock())

    here.drive(lambda: [use.host for use in views.truth(here.estate.state)] != [old.provider_ref])  # type: ignore[union-attr]
    here.drive(is_ready(row))

    new = Unit.objects.get(pk=unit.pk).host
    assert new != old
    assert [use.host for use in views.truth(here.estate.state)] == [new.provider_ref]  # type: ignore[union-attr]


# --- changes ---------------------------------------------------------------------------------------------------


def test_a_new_revision_takes_over_and_the_old_one_is_gone(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))

    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 4096}), actor=actor, now=here.clock()
    )
    here.drive(lambda: fresh(row).observed["revision"] == 2)

    here.drive(is_ready(row))
    (workload,) = here.estate.state.workloads.values()
    assert "--max-model-len=4096" in workload.serving["argv"]  # type: ignore[index]


def test_a_rollout_takes_no_room_beside_its_own_and_says_that_the_old_one_stopped_first(
    here: World, tenant: Any, actor: Any
) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    held = list(Hold.objects.values_list("pk", "device", "start"))
    control.change_settings(here.estate, {"load_s": 60.0})

    endpoints.revise(endpoint=row, ask=RevisionAsk("llama-3-1-8b"), actor=actor, now=here.clock())
    here.drive(lambda: "takes over" in said(row))

    assert said(row).startswith("Revision 2 takes over; revision 1 stopped first, as no room is held for both: ")
    assert list(Unit.objects.values_list("role", flat=True)) == ["replica"]
    here.drive(is_ready(row), most=200)
    assert list(Hold.objects.values_list("pk", "device", "start")) == held
    assert fresh(row).observed["serves"] == 2
    assert "takes over" not in said(row)


def test_a_machine_is_switched_off_and_on_and_keeps_its_hold(here: World, tenant: Any, actor: Any) -> None:
    spec = AllocationSpec(units=units(1, "A100-80GB", ""))
    row = machines.create(tenant=tenant, ask=MachineAsk("box", spec, "ubuntu-24.04", 40), actor=actor, now=here.clock())
    here.drive(is_ready(row))

    machines.power(machine=row, want="off", actor=actor, now=here.clock())
    here.drive(lambda: reason(row, "Ready") == "False ByOwner")
    assert views.truth(here.estate.state) == []
    assert Hold.objects.count() == 1

    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))


@pytest.mark.parametrize("depth", ["keys", "network", "power"])
@pytest.mark.parametrize("kind", [BoundaryKind.NAMESPACE, BoundaryKind.VM])
def test_a_suspension_is_applied_at_its_depth_and_ends_by_itself(
    here: World, tenant: Any, actor: Any, depth: str, kind: BoundaryKind
) -> None:
    row = endpoint(here, tenant, actor, kind=kind)
    here.drive(is_ready(row))
    until = here.clock() + timedelta(hours=1)
    Suspension.objects.create(
        tenant=tenant, depth=depth, reason="unpaid", author=actor.id, created_at=here.clock(), until=until
    )
    with acting(SYSTEM):
        operations.wake_subtree(tenant, now=here.clock())

    here.drive(lambda: fresh(row).phase == "Suspended" and here.sweep() == 0)

    owner = here.estate.state.objects[str(row.pk)]
    assert owner.cut_off == (depth != "keys")
    assert here.estate.state.objects[str(row.boundary_id)].cut_off == (depth != "keys")
    assert bool(views.truth(here.estate.state)) == (depth != "power")
    assert Hold.objects.count() == 1

    here.clock.move(3600)
    here.drive(is_ready(row))
    assert here.estate.state.objects[str(row.pk)].cut_off is False
    assert Suspension.objects.get().ended_at == until


def test_what_vanished_at_the_provider_is_made_again(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    control.remove_object(here.estate, str(row.pk))
    with acting(SYSTEM):
        desired.nudge_now(row, at=here.clock())

    here.drive(lambda: str(row.pk) in here.estate.state.objects and is_ready(row)())

    assert len(views.truth(here.estate.state)) == 1


def test_a_gateway_that_was_lost_is_started_with_a_new_token(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor)
    here.drive(is_ready(row))
    replica = Boundary.objects.get().gateways.get()
    replica.enrolled_at, replica.credential_digest = here.clock(), "a" * 64
    replica.save()
    first = replica.token_digest
    here.estate.gateway_lost(str(replica.pk), "its host died")
    with acting(SYSTEM):
        desired.nudge_now(row.boundary, at=here.clock())

    here.drive(lambda: fresh(replica).token_digest != first and is_ready(row.boundary)())

    assert (fresh(replica).credential_digest, fresh(replica).enrolled_at) == ("", None)
    assert here.estate.tokens[str(replica.pk)].reveal()


@pytest.mark.parametrize("kind", [BoundaryKind.NAMESPACE, BoundaryKind.VM])
def test_a_gateway_that_did_not_enrol_in_time_gets_a_new_token(
    here: World, tenant: Any, actor: Any, kind: BoundaryKind
) -> None:
    here.estate.state.settings.gateways = "real"  # nobody starts them here: they never enrol by themselves
    row = endpoint(here, tenant, actor, kind=kind)
    here.drive(lambda: GatewayReplica.objects.exclude(token_digest="").exists())
    replica = GatewayReplica.objects.get()
    first = replica.token_digest
    gateway = str(replica.pk)
    here.estate.gateway_seen(gateway, running=True, enrolled=False, pid=1, port=8443, message="no answer from home")
    here.drive(lambda: "no answer from home" in str(fresh(row).conditions) + str(fresh(row.boundary).conditions))

    here.clock.move(15 * 60)
    here.sweep()
    here.estate.gateway_gone(gateway)
    here.drive(lambda: fresh(replica).token_digest != first)

    here.estate.gateway_seen(gateway, running=True, enrolled=True, pid=2, port=8443, message="")
    here.drive(is_ready(row))
    assert fresh(row).address == "http://127.0.0.1:8443/v1"


def test_what_still_waits_for_its_decision_goes_at_once(here: World, actor: Any) -> None:
    poor = factories.tenant()
    member = factories.actor(factories.member(poor))
    spec = replace(ask(), allocation=replace(ask().allocation, on_shortage=OnShortage.WAIT))
    row = endpoints.create(tenant=poor, ask=spec, actor=member, now=here.clock()).endpoint
    here.sweep()
    assert fresh(row).phase == "Waiting"

    endpoints.delete(endpoint=row, actor=member, now=here.clock())
    here.drive(is_gone(row, row.allocation), most=2)


# --- queue -----------------------------------------------------------------------------------------------------


def bare(here: World, tenant: Any, actor: Any, name: str, profile: str = "") -> Allocation:
    spec = AllocationSpec(units=units(1, "H100-80GB", profile))
    return allocations.create(tenant=tenant, ask=BareAsk(name, spec), actor=actor, now=here.clock())


def test_the_queue_is_first_in_first_out_by_fit(here: World, tenant: Any, actor: Any) -> None:
    holders = [bare(here, tenant, actor, f"holder-{n}") for n in range(2)]
    here.drive(lambda: all(is_ready(row)() for row in holders))
    waiting = []
    for name, profile in (("first", ""), ("second", ""), ("small", "1g.10gb")):
        here.clock.move(1)
        waiting.append(bare(here, tenant, actor, name, profile))
    here.sweep()
    assert [fresh(row).phase for row in waiting] == ["Waiting"] * 3
    assert "All 2 open H100-80GB are held." in str(fresh(waiting[0]).conditions)

    allocations.release(allocation=holders[0], actor=actor, now=here.clock())
    here.drive(lambda: fresh(waiting[0]).phase == "Ready")

    assert fresh(waiting[0]).queued_at is None
    assert fresh(waiting[1]).phase == "Waiting"
    allocations.release(allocation=fresh(waiting[1]), actor=actor, now=here.clock())
    allocations.release(allocation=holders[1], actor=actor, now=here.clock())
    here.drive(lambda: fresh(waiting[2]).phase == "Ready")


# --- time ------------------------------------------------------------------------------------------------------


def test_a_term_is_warned_kept_through_grace_and_reclaimed_in_order(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor, duration_s=30 * 86400)
    here.drive(is_ready(row))
    here.drive(lambda: fresh(row).allocation.expires_at is not None)
    end = fresh(row).allocation.expires_at

    for days in (14, 7, 1):
        here.clock.now = end - timedelta(days=days)
        here.sweep()
    assert Notice.objects.filter(kind="expiry-warning").count() == 3

    here.clock.now = end
    here.drive(lambda: fresh(row).phase == "Expiring", most=3)
    assert views.truth(here.estate.state) != []

    here.clock.now = fresh(row).allocation.grace_until
    here.drive(is_gone(row, row.allocation, row.boundary))
    assert views.leftovers(here.estate.state) == []
    kinds = list(Event.objects.filter(object_id=row.pk).order_by("seq").values_list("kind", flat=True))
    assert "endpoint.reclaimed" in kinds


def test_a_renewal_in_grace_brings_it_back(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor, duration_s=86400)
    here.drive(lambda: fresh(row).allocation.expires_at is not None)
    here.clock.now = fresh(row).allocation.expires_at
    here.drive(lambda: fresh(row).phase == "Expiring")

    allocations.renew(allocation=fresh(row).allocation, duration_s=86400, actor=actor, now=here.clock())

    here.drive(is_ready(row))
    assert fresh(row).allocation.expires_at > here.clock()


def test_production_is_review_overdue_and_never_reclaimed(here: World, tenant: Any, actor: Any) -> None:
    row = endpoint(here, tenant, actor, duration_s=86400, service_class=ServiceClass.PRODUCTION)
    here.drive(lambda: fresh(row).allocation.expires_at is not None)
    end = fresh(row).allocation.expires_at

    for weeks in (0, 1, 52):
        here.clock.now = end + timedelta(days=7 * weeks)
        here.sweep()
        here.sweep()

    assert fresh(row).phase == "Ready"
    assert reason(row, "Expiring") == "False ReviewOverdue"
    assert Notice.objects.filter(kind="review-overdue").count() == 3
