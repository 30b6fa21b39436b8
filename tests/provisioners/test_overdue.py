"""A provider's task that never ends: its own object waits and says so, an operator is told which task, others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from provisioners import overdue
from provisioners.driver import Driver, Handle, Observed, Part, Poll, Presence, Ref, Step, TransientDriverError
from provisioners.specs_from_rows import ref_of
from tenants.models import Finding, Machine
from tenants.operations import machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk, Where
from tenants.states import BoundaryKind, ConditionType, Reason, condition_of
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")
TASK = Handle("some-task vcenter-1 task-7")


@dataclass
class Hanging:
    """The sandbox's driver, with one object whose power step never ends."""

    driver: Driver
    ref: Ref | None = None
    shows: bool = True
    """Whether a look shows the task on its part."""
    hangs: bool = True
    started: list[str] = field(default_factory=list)
    away: bool = False
    """Whether the provider does not answer."""
    step: Step | None = None
    """What was started and hangs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def _is_it(self, ref: Ref, step: str = "vm.power") -> bool:
        return self.hangs and ref == self.ref and step == "vm.power"

    def observe(self, ref: Ref) -> Observed:
        if self.away and ref == self.ref:
            raise TransientDriverError("vCenter does not answer")
        seen = self.driver.observe(ref)
        if self._is_it(ref) and self.started and self.shows:
            rest = tuple(part for part in seen.parts if part.step != "vm.power")
            return replace(seen, parts=(*rest, Part("vm.power", Presence.CHANGING, handle=TASK.value, ready=False)))
        return seen

    def start(self, step: Step) -> Any:
        if not self._is_it(step.ref, step.name):
            return self.driver.start(step)
        self.started.append(step.name)
        self.step = step
        if len(self.started) > 1:
            raise TransientDriverError("vCenter or a host is busy or away")
        return TASK

    def end(self) -> None:
        """Let the task come to its end."""
        assert self.step is not None
        self.hangs = False
        self.driver.start(self.step)

    def poll(self, handle: Handle) -> Poll:
        if self.away and handle == TASK:
            raise TransientDriverError("vCenter does not answer")
        if handle != TASK:
            return self.driver.poll(handle)
        return Poll("running") if self.hangs else Poll("unknown")


@pytest.fixture
def here() -> World:
    return world()


@pytest.fixture
def hanging(here: World) -> Hanging:
    made = Hanging(here.engine.driver_of(here.provider))
    here.engine.driver_of = lambda _provider: made  # type: ignore[assignment,return-value]
    return made


@pytest.fixture
def make(here: World) -> Callable[[str], Machine]:
    tenant = factories.tenant()
    factories.generous(tenant, "A100-80GB")
    actor = factories.actor(factories.member(tenant))
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("A100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),), where=Where(kind=BoundaryKind.VM)
    )
    return lambda name: machines.create(
        tenant=tenant, ask=MachineAsk(name, spec, "ubuntu-24.04", 40), actor=actor, now=here.clock()
    )


def stuck(here: World, hanging: Hanging, row: Machine) -> Machine:
    """Drive a machine until its power step hangs."""
    hanging.ref = ref_of(row)
    here.drive(lambda: bool(hanging.started))
    return row


def said(row: Machine, kind: ConditionType = ConditionType.PROVISIONED) -> tuple[str, str]:
    found = condition_of(fresh(row).conditions, kind)
    assert found is not None
    return found["reason"], found["message"]


def later(here: World, row: Machine, seconds: float) -> None:
    here.clock.move(seconds)
    Machine.objects.filter(pk=row.pk).update(due_at=here.clock())
    here.sweep()


def test_a_task_without_end_is_said_after_its_time_with_how_long_and_what_to_do(here, hanging, make):
    row, other = stuck(here, hanging, make("stuck")), make("other")
    here.drive(is_ready(other))
    assert said(row)[0] == Reason.STEP_RUNNING

    later(here, row, 301)
    later(here, row, 2400)

    reason, words = said(row)
    assert reason == Reason.STEP_OVERDUE
    assert "takes 45 min so far, and 5 min is the most it should" in words
    assert "cancel it at the provider if it hangs" in words
    assert said(row, ConditionType.READY)[0] == Reason.STEP_OVERDUE
    assert hanging.started == ["vm.power"]
    finding = Finding.objects.get(kind=overdue.KIND)
    assert finding.resolved_at is None
    assert "Machine stuck: Switching the machine's power has not ended since" in finding.detail
    assert finding.detail.endswith("The provider's task is task-7.")
    assert fresh(other).phase == "Ready"


def test_when_the_task_ends_all_goes_on_and_the_finding_is_settled(here, hanging, make):
    row = stuck(here, hanging, make("stuck"))
    later(here, row, 301)
    assert Finding.objects.filter(kind=overdue.KIND, resolved_at__isnull=True).count() == 1

    hanging.hangs = False
    here.drive(is_ready(row))

    assert Finding.objects.get(kind=overdue.KIND).resolution == overdue.ENDED
    assert said(row)[0] == Reason.DONE


def test_a_task_that_no_look_shows_is_told_while_it_is_in_the_way_of_the_next_try(here, hanging, make):
    hanging.shows = False
    row = stuck(here, hanging, make("stuck"))

    later(here, row, 301)
    later(here, row, 60)

    reason, words = said(row)
    assert reason == Reason.STEP_OVERDUE
    assert words.endswith("(vCenter or a host is busy or away)")
    assert "takes 6 min so far" in words


def test_trouble_that_is_no_overdue_step_is_told_as_it_was(here, hanging, make):
    hanging.started.append("before")  # the first start is refused, and nothing runs
    hanging.shows = False
    row = make("busy")
    hanging.ref = ref_of(row)
    here.drive(lambda: len(hanging.started) > 1)

    assert said(row, ConditionType.READY)[0] == Reason.PROVIDER_UNAVAILABLE
    assert not Finding.objects.filter(kind=overdue.KIND).exists()


def test_with_the_object_its_finding_goes(here, hanging, make):
    row = stuck(here, hanging, make("stuck"))
    later(here, row, 301)

    machines.delete(machine=fresh(row), actor=factories.actor(row.owner), now=here.clock())
    hanging.hangs = False
    here.drive(is_gone(row))

    assert not Finding.objects.filter(kind=overdue.KIND, resolved_at__isnull=True).exists()


def test_a_task_that_ended_while_nobody_looked_is_none_that_hangs(here, hanging, make):
    row = stuck(here, hanging, make("stuck"))
    hanging.end()
    here.clock.move(3600)  # as when all workers were stopped for a night
    here.drive(is_ready(row))
    assert not Finding.objects.filter(kind=overdue.KIND).exists()

    hanging.away = True
    later(here, row, 86_400)

    assert fresh(row).failures > 0
    assert (said(row)[0], said(row, ConditionType.READY)[0]) == (Reason.DONE, Reason.DONE)
    assert not Finding.objects.filter(kind=overdue.KIND).exists()


def test_while_the_provider_does_not_answer_no_task_of_ours_is_blamed(here, hanging, make):
    row = stuck(here, hanging, make("stuck"))

    hanging.away = True
    later(here, row, 301)
    later(here, row, 301)

    assert fresh(row).failures > 0
    assert (said(row)[0], said(row, ConditionType.READY)[0]) == (Reason.STEP_RUNNING, Reason.PROVIDER_UNAVAILABLE)
    assert not Finding.objects.filter(kind=overdue.KIND).exists()
