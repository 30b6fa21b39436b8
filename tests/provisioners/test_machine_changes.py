"""Machines that are lost, made anew, or given another size, on the sandbox's core."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from provisioners.sandbox import control
from tenants import audit, desired
from tenants.actor import SYSTEM
from tenants.errors import Conflict, InvalidSpec, PreconditionFailed, QuotaExceeded
from tenants.host_plans import move
from tenants.models import (
    Allocation,
    Boundary,
    Event,
    Hold,
    Host,
    Intent,
    Machine,
    Quota,
    QuotaCharge,
    Unit,
    UnitSize,
)
from tenants.operations import allocations, machine_changes, machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import OnShortage, condition_of
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
    factories.generous(row, "A100-80GB")
    return row


@pytest.fixture
def actor(tenant: Any) -> Any:
    return factories.actor(factories.member(tenant))


@pytest.fixture
def box(here: World, tenant: Any, actor: Any) -> Machine:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("A100-80GB"), vcpu=4, memory_gib=16),))
    row = machines.create(tenant=tenant, ask=MachineAsk("box", spec, "ubuntu-24.04", 40), actor=actor, now=here.clock())
    here.drive(is_ready(row))
    here.sweep()
    return fresh(row)


def nudge(here: World, row: Machine) -> None:
    with acting(SYSTEM):
        desired.nudge_now(row, at=here.clock())


def is_off(row: Machine) -> Any:
    return lambda: fresh(row).observed.get("power") == "off"


def ready(row: Machine) -> tuple[str, str]:
    found = condition_of(fresh(row).conditions, "Ready")  # type: ignore[arg-type]
    assert found is not None
    return str(found["status"]), str(found["reason"])


def switched_off(here: World, row: Machine, actor: Any) -> Machine:
    machines.power(machine=row, want="off", actor=actor, now=here.clock())
    here.drive(is_off(row))
    return fresh(row)


# --- lost ---------------------------------------------------------------------------------------------------


def test_a_machine_that_somebody_deleted_is_told_and_not_made_again(here: World, box: Machine, actor: Any) -> None:
    control.remove_object(here.estate, str(box.pk))

    nudge(here, box)
    here.drive(lambda: ready(box) == ("False", "Lost"))
    nudge(here, box)
    here.sweep()

    assert here.estate.state.workloads == {}
    assert fresh(box).phase == "Degraded"
    assert Hold.objects.count() == 1
    assert Event.objects.filter(kind="machine.lost").count() == 1


def test_a_machine_that_is_lost_is_made_anew_when_somebody_asks(here: World, box: Machine, actor: Any) -> None:
    control.remove_object(here.estate, str(box.pk))
    nudge(here, box)
    here.drive(lambda: ready(box) == ("False", "Lost"))

    machine_changes.rebuild(machine=box, actor=actor, now=here.clock())

    here.drive(is_ready(box))
    assert len(here.estate.state.workloads) == 1


def test_a_machine_that_is_lost_can_be_deleted(here: World, box: Machine, actor: Any) -> None:
    control.remove_object(here.estate, str(box.pk))
    nudge(here, box)
    here.drive(lambda: ready(box) == ("False", "Lost"))

    machines.delete(machine=box, actor=actor, now=here.clock())

    here.drive(is_gone(box))
    assert Hold.objects.count() == 0


# --- made anew ----------------------------------------------------------------------------------------------


def test_a_machine_is_made_anew_of_another_image_where_it_is(here: World, box: Machine, actor: Any) -> None:
    hold = Hold.objects.get().pk

    machine_changes.rebuild(machine=box, image="debian-12", actor=actor, now=here.clock())

    assert fresh(box).phase != "Ready" or fresh(box).due_at is not None
    here.drive(lambda: is_ready(box)() and fresh(box).observed_generation == fresh(box).generation)
    assert Hold.objects.get().pk == hold
    assert fresh(box).image == "debian-12"
    assert [log.text for log in here.estate.state.logs].count("start:vm.clone begun") == 2


def test_of_an_image_that_nobody_knows_nothing_is_made(here: World, box: Machine, actor: Any) -> None:
    with pytest.raises(InvalidSpec) as raised:
        machine_changes.rebuild(machine=box, image="windows", actor=actor, now=here.clock())
    assert raised.value.field == "image"
    assert fresh(box).build == 1


def test_a_machine_that_a_late_removal_of_ours_may_have_taken_is_made_anew(here: World, box: Machine) -> None:
    with acting(SYSTEM):
        Intent.objects.create(
            object_kind="machine", object_id=box.pk, tenant=box.tenant, step="vm.clone", key="late", undo=True, epoch=1,
            started_at=here.clock(), deadline_at=here.clock(), settled_at=here.clock(), outcome="seen",
        )  # fmt: skip
    control.remove_object(here.estate, str(box.pk))

    nudge(here, box)
    here.drive(is_ready(box))

    assert len(here.estate.state.workloads) == 1
    assert not Event.objects.filter(kind="machine.lost").exists()


# --- another size -------------------------------------------------------------------------------------------


def resize(here: World, row: Machine, actor: Any, **wanted: int) -> Machine:
    return machine_changes.resize(machine=row, actor=actor, now=here.clock(), **wanted)


def sizes(here: World) -> tuple[Any, ...]:
    """Return what the database and the provider say of its size, and what its host has left."""
    unit = Unit.objects.get()
    host = Host.objects.get(pk=unit.host_id)
    [vm] = here.estate.state.workloads.values()
    return (unit.vcpu, unit.memory_gib), (vm.vcpu, vm.memory_gib), (host.free_vcpu, host.free_memory_gib)


def is_fitted(row: Machine) -> Any:
    return lambda: fresh(row).fitted == fresh(row).resizes and ready(row) == ("False", "ByOwner")


def steps(here: World) -> list[str]:
    return [log.text for log in here.estate.state.logs]


def pool_of(here: World) -> str:
    [boundary] = [one for one in here.estate.state.objects.values() if one.kind == "boundary"]
    return boundary.parts["pool.create"].have


def test_a_machine_that_is_off_gets_another_size_and_stays_the_same_vm(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    hold = Hold.objects.get().pk

    resize(here, row, actor, vcpu=8, memory_gib=64, disk_gib=80)

    here.drive(is_fitted(row))
    assert sizes(here) == ((8, 64), (8, 64), (56, 448))
    assert fresh(row).disk_gib == 80
    assert Hold.objects.get().pk == hold
    assert steps(here).count("start:vm.clone begun") == 1
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))
    assert steps(here).count("start:vm.clone begun") == 1
    assert {c.dimension: c.amount for c in QuotaCharge.objects.filter(allocation=row.allocation)} == {
        **Allocation.objects.get().demand, "vcpu": 8, "memory_gib": 64,
    }  # fmt: skip
    assert AllocationSpec.from_json(Allocation.objects.get().spec).units[0].vcpu == 8
    assert audit.findings() == []


def test_a_machine_that_never_got_another_size_is_wanted_as_before(here: World, box: Machine) -> None:
    [machine] = [one for one in here.estate.state.objects.values() if one.kind == "machine"]

    assert sorted(machine.parts) == ["vm.clone", "vm.power"]


def test_what_holds_it_is_widened_before_it_is_switched_on(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    here.sweep()
    before, begun = pool_of(here), len(steps(here))

    resize(here, row, actor, vcpu=8)
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))

    done = [text for text in steps(here)[begun:] if text.endswith("done")]
    assert done == ["pool.create done", "vm.configure done", "vm.power done"]
    assert pool_of(here) != before


def test_a_grant_of_before_does_not_count_for_what_is_larger_now(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    with acting(SYSTEM):
        Boundary.objects.update(lease_expires_at=here.clock() + timedelta(hours=1), lease_epoch=99)

    resize(here, row, actor, vcpu=8)
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.sweep()
    here.sweep()

    assert ready(row) == ("False", "WaitingForBoundary")
    assert not [text for text in steps(here) if "configure" in text]


def test_what_holds_it_is_narrowed_after_it_became_smaller(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    before = pool_of(here)

    resize(here, row, actor, vcpu=2, memory_gib=8)
    here.drive(is_fitted(row))
    here.drive(lambda: pool_of(here) != before)

    done = [text for text in steps(here) if text in {"pool.create done", "vm.configure done"}]
    assert done == ["pool.create done", "vm.configure done", "pool.create done"]
    assert sizes(here) == ((2, 8), (2, 8), (62, 504))


def test_a_grant_is_lowered_before_the_provider_is_told(here: World, box: Machine, actor: Any) -> None:
    """Whoever reads it while the pool is being narrowed must not take the former room for good."""
    row = switched_off(here, box, actor)
    resize(here, row, actor, vcpu=2, memory_gib=8)
    here.drive(lambda: "vm.configure done" in steps(here))
    before = pool_of(here)
    fault = control.add_fault(here.estate, "start:pool.create", "fail", error="transient", times=-1)

    here.drive(lambda: Boundary.objects.get().observed["sizes"] == {str(row.allocation_id): [2, 8]})
    here.drive(is_fitted(row))
    resize(here, row, actor, vcpu=8)
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    for _ in range(5):
        here.sweep()
        here.clock.move(1)

    assert pool_of(here) == before
    assert ready(row) == ("False", "WaitingForBoundary")
    control.clear_faults(here.estate, fault.uid)
    here.drive(is_ready(row))
    assert sizes(here)[:2] == ((8, 8), (8, 8))


def test_two_at_once_get_one_size(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    resize(here, row, actor, vcpu=8)

    with pytest.raises(Conflict, match="not known to be off yet"):
        resize(here, row, actor, vcpu=6)
    assert sizes(here)[0] == (8, 16)


def test_it_grows_shrinks_and_grows_again(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    for vcpu in (16, 1, 12):
        resize(here, row, actor, vcpu=vcpu)
        here.drive(is_fitted(row))
        here.clock.move(60)

    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))

    assert sizes(here)[:2] == ((12, 16), (12, 16))
    assert list(UnitSize.objects.order_by("until").values_list("vcpu", flat=True)) == [4, 16, 1]
    assert audit.findings() == []


def test_a_machine_that_runs_is_not_resized(here: World, box: Machine, actor: Any) -> None:
    with pytest.raises(Conflict, match="switch it off first") as raised:
        resize(here, box, actor, disk_gib=80)

    assert raised.value.specific_code == "not-off"
    assert (fresh(box).resizes, fresh(box).disk_gib) == (0, 40)


def test_a_machine_that_is_only_asked_to_be_off_is_not_resized(here: World, box: Machine, actor: Any) -> None:
    machines.power(machine=box, want="off", actor=actor, now=here.clock())

    with pytest.raises(Conflict, match="not known to be off yet"):
        resize(here, box, actor, vcpu=8)
    assert sizes(here)[0] == (4, 16)


def test_a_machine_with_a_step_of_unknown_outcome_is_not_resized(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    with acting(SYSTEM):
        Intent.objects.create(
            object_kind="machine", object_id=box.pk, tenant=box.tenant, step="vm.power", key="open", epoch=1,
            started_at=here.clock(), deadline_at=here.clock(),
        )  # fmt: skip

    with pytest.raises(Conflict, match="not known to be off yet"):
        resize(here, row, actor, vcpu=8)
    assert sizes(here)[0] == (4, 16)


def test_a_machine_that_somebody_else_switched_on_is_not_resized(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    Machine.objects.update(observed={**fresh(row).observed, "power": "on"})

    with pytest.raises(Conflict, match="not known to be off yet"):
        resize(here, row, actor, vcpu=8)


def test_a_disk_only_grows(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)

    with pytest.raises(InvalidSpec, match="can only grow: this one has 40 GiB") as raised:
        resize(here, row, actor, disk_gib=39)
    assert raised.value.field == "disk_gib"
    assert fresh(row).resizes == 0


@pytest.mark.parametrize(
    ("wanted", "field"),
    [({"vcpu": 0}, "vcpu"), ({"memory_gib": 20_000}, "memory_gib"), ({"disk_gib": 9000}, "disk_gib")],
)
def test_a_size_that_cannot_be_is_refused_with_its_field(
    here: World, box: Machine, actor: Any, wanted: dict[str, int], field: str
) -> None:
    row = switched_off(here, box, actor)

    with pytest.raises(InvalidSpec) as raised:
        resize(here, row, actor, **wanted)
    assert raised.value.field == field


def test_more_than_its_host_has_left_is_refused_and_nothing_changed(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    before, charged = sizes(here), sorted(QuotaCharge.objects.values_list("dimension", "amount"))

    with pytest.raises(Conflict, match="at most 64 vCPUs and 512 GiB") as raised:
        resize(here, row, actor, vcpu=65)

    assert raised.value.specific_code == "host-full"
    assert sizes(here) == before
    assert sorted(QuotaCharge.objects.values_list("dimension", "amount")) == charged
    assert not UnitSize.objects.exists()


def test_on_a_host_that_is_closed_it_becomes_smaller_only(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    Host.objects.update(placeable=False)

    with pytest.raises(Conflict, match="takes nothing more now"):
        resize(here, row, actor, vcpu=5)
    resize(here, row, actor, vcpu=2)
    assert Unit.objects.get().vcpu == 2


def test_more_than_the_quota_is_refused_with_the_request_for_it(
    here: World, tenant: Any, box: Machine, actor: Any
) -> None:
    row = switched_off(here, box, actor)
    Quota.objects.filter(tenant=tenant, dimension="vcpu").update(amount=6)

    with pytest.raises(QuotaExceeded) as raised:
        resize(here, row, actor, vcpu=8)
    assert raised.value.data["request"]["payload"]["limits"] == {"vcpu": 2}
    assert sizes(here)[0] == (4, 16)
    resize(here, row, actor, vcpu=6)


def test_what_it_gives_back_can_be_asked_for_by_others(here: World, tenant: Any, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    Quota.objects.filter(tenant=tenant, dimension="vcpu").update(amount=4)

    resize(here, row, actor, vcpu=1, memory_gib=32)

    spec = AllocationSpec(units=(UnitAsk(GpuAsk("A100-80GB"), vcpu=3, memory_gib=1),))
    machines.create(tenant=tenant, ask=MachineAsk("other", spec, "ubuntu-24.04", 40), actor=actor, now=here.clock())


def test_a_machine_in_its_grace_is_renewed_before_it_is_resized(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    Allocation.objects.update(expires_at=here.clock())

    with pytest.raises(Conflict, match="renew it first") as raised:
        resize(here, row, actor, vcpu=8)
    assert raised.value.specific_code == "term-over"


def test_a_machine_without_a_place_is_not_resized(here: World, tenant: Any, actor: Any) -> None:
    Host.objects.update(placeable=False)
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("A100-80GB"), vcpu=3, memory_gib=1),), on_shortage=OnShortage.WAIT)
    ask = MachineAsk("later", spec, "ubuntu-24.04", 40)
    row = machines.create(tenant=tenant, ask=ask, actor=actor, now=here.clock())

    with pytest.raises(Conflict, match="no place yet") as raised:
        resize(here, row, actor, vcpu=8)
    assert raised.value.specific_code == "not-placed"


def test_a_machine_that_is_being_deleted_is_not_resized(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    machines.delete(machine=row, actor=actor, now=here.clock())

    with pytest.raises(Conflict, match="being deleted"):
        resize(here, row, actor, vcpu=8)


def test_where_machines_have_the_size_of_a_class_none_is_resized(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    shown = {**here.provider.capabilities, "features": {"vm-service": True}}
    Machine.objects.get().boundary.provider.__class__.objects.update(capabilities=shown)

    with pytest.raises(Conflict) as raised:
        resize(here, row, actor, vcpu=8)
    assert raised.value.specific_code == "not-supported"


def test_the_size_that_it_has_changes_nothing(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)

    resize(here, row, actor, vcpu=4, memory_gib=16, disk_gib=40)
    resize(here, row, actor)

    assert (fresh(row).generation, fresh(row).resizes) == (row.generation, 0)
    assert not Event.objects.filter(kind="machine.resized").exists()


def test_who_read_another_version_does_not_resize(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)

    with pytest.raises(PreconditionFailed):
        machine_changes.resize(machine=row, vcpu=8, version=row.version - 1, actor=actor, now=here.clock())


def test_a_size_that_its_provider_refuses_is_taken_back(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    control.add_fault(here.estate, "start:vm.configure", "fail", error="rejected", times=1)
    resize(here, row, actor, vcpu=8, disk_gib=4000)
    here.drive(lambda: ready(row)[1] not in {"ByOwner", "WaitingForBoundary", "StepRunning"})

    with pytest.raises(InvalidSpec, match="this one has 40 GiB"):
        resize(here, row, actor, disk_gib=30)
    resize(here, row, actor, vcpu=4, disk_gib=40)

    here.drive(is_fitted(row))
    assert sizes(here)[:2] == ((4, 16), (4, 16))
    assert fresh(row).disk_gib == 40


def test_a_machine_that_was_resized_is_made_anew_of_that_size(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    resize(here, row, actor, vcpu=8)
    here.drive(is_fitted(row))

    machine_changes.rebuild(machine=row, actor=actor, now=here.clock())
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))

    assert sizes(here)[:2] == ((8, 16), (8, 16))
    machines.delete(machine=row, actor=actor, now=here.clock())
    here.drive(is_gone(row))
    assert here.estate.state.workloads == {}


def test_a_machine_that_was_resized_renews_and_moves_with_its_size(here: World, box: Machine, actor: Any) -> None:
    row = switched_off(here, box, actor)
    resize(here, row, actor, vcpu=8, memory_gib=32)
    here.drive(is_fitted(row))

    allocations.renew(allocation=fresh(row).allocation, duration_s=60 * 86400, actor=actor, now=here.clock())
    with acting(SYSTEM):
        unit = Unit.objects.select_related("allocation__boundary").get()
        assert move(unit, now=here.clock())
        desired.respecified(fresh(row), at=here.clock())
    machines.power(machine=row, want="on", actor=actor, now=here.clock())
    here.drive(is_ready(row))

    assert sizes(here) == ((8, 32), (8, 32), (56, 480))
    assert audit.findings(audit.LEDGER) == []
