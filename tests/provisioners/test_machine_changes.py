"""Machines that are lost, made anew, or given another size, on the sandbox's core."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners.sandbox import control
from tenants import desired
from tenants.actor import SYSTEM
from tenants.errors import InvalidSpec
from tenants.models import Event, Hold, Intent, Machine
from tenants.operations import machine_changes, machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import condition_of
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
