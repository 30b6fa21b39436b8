"""What others did to objects of ours: told once per appearance, settled when it is gone, never our own doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners import inventory, inventory_remarks
from provisioners.driver import (
    Conflicting,
    Driver,
    Observed,
    ObservedProvider,
    Presence,
    Ref,
    Remark,
    RemarkKind,
    Step,
    TransientDriverError,
)
from provisioners.remarks import SAME_WITHIN
from tenants.errors import Conflict
from tenants.models import Event, Finding, Machine
from tenants.operations import machines
from tenants.operations.findings import resolve
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")
CARDS = Remark(RemarkKind.CARDS, "cards changed by others: another port group", "cards")
SNAPSHOT = Remark(RemarkKind.SNAPSHOTS, "1 kept: before", "snapshots")


@dataclass
class Meddler:
    """The sandbox's driver, with somebody beside it."""

    driver: Driver
    remarks: dict[str, tuple[Remark, ...]] = field(default_factory=dict)
    """Step → what a look shows of its part."""
    mended: frozenset[RemarkKind] = frozenset({RemarkKind.CARDS})
    """What starting a step sets right."""
    presence: Presence | None = None
    beside: Callable[[ObservedProvider], ObservedProvider] = lambda seen: seen
    fails: bool = False
    left: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    def observe(self, ref: Ref) -> Observed:
        seen = self.driver.observe(ref)
        return replace(seen, parts=tuple(self._bent(part) for part in seen.parts))

    def _bent(self, part: Any) -> Any:
        remarks = self.remarks.get(part.step, ())
        if self.presence is not None and part.step in self.remarks:
            return replace(part, presence=self.presence)
        is_wrong = any(one.kind in self.mended for one in remarks)
        return replace(part, remarks=remarks, have="" if is_wrong else part.have)

    def start(self, step: Step) -> Any:
        if self.fails and step.name in self.remarks:
            raise TransientDriverError("the answer was lost")
        kept = tuple(one for one in self.remarks.get(step.name, ()) if one.kind not in self.mended)
        self.remarks[step.name] = kept
        return self.driver.start(step)

    def snapshot(self) -> ObservedProvider:
        return self.beside(self.driver.snapshot())

    def remove_left(self, subject: str) -> bool:
        if subject not in self.left:
            raise Conflicting("a VM has files in it")
        self.left.remove(subject)
        return True


@pytest.fixture
def here() -> World:
    return world()


@pytest.fixture
def meddler(here: World) -> Meddler:
    made = Meddler(here.engine.driver_of(here.provider))
    here.engine.driver_of = lambda _provider: made  # type: ignore[assignment,return-value]
    return made


@pytest.fixture
def machine(here: World, meddler: Meddler) -> Machine:
    tenant = factories.tenant()
    factories.generous(tenant, "A100-80GB")
    spec = AllocationSpec(
        units=(UnitAsk(GpuAsk("A100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),), where=Where(kind=BoundaryKind.VM)
    )
    ask = MachineAsk("m", spec, "ubuntu-24.04", 40)
    row = machines.create(tenant=tenant, ask=ask, actor=factories.actor(factories.member(tenant)), now=here.clock())
    here.drive(is_ready(row))
    return row


def look(here: World, row: Machine) -> None:
    """Have one more pass over a machine."""
    here.clock.move(1)
    Machine.objects.filter(pk=row.pk).update(due_at=here.clock())
    here.sweep()


def told() -> list[tuple[str, bool]]:
    """Return every finding's kind and whether it is open, the oldest first."""
    return [(row.kind, row.resolved_at is None) for row in Finding.objects.order_by("first_seen_at", "kind")]


def tampered() -> int:
    return Event.objects.filter(kind="machine.tampered").count()


def test_what_is_set_right_at_once_is_a_finding_that_is_settled_and_one_event(here, meddler, machine):
    meddler.remarks["vm.power"] = (CARDS,)

    look(here, machine)
    look(here, machine)

    assert (told(), tampered()) == ([("cards-changed", False)], 1)
    [row] = Finding.objects.all()
    assert (row.detail, row.resolution) == ("Machine m: cards changed by others: another port group.", "no longer so")
    assert fresh(machine).phase == "Ready"


def test_what_stays_is_one_finding_until_it_is_gone_and_another_when_it_comes_back(here, meddler, machine):
    meddler.remarks["vm.power"] = (SNAPSHOT,)
    for _ in range(3):
        look(here, machine)
    assert told() == [("snapshots-kept", True)]
    assert fresh(machine).observed["parts"][-1]["remarks"] == ["snapshots-kept"]

    meddler.remarks.clear()
    look(here, machine)
    here.clock.move(SAME_WITHIN.total_seconds() + 1)
    meddler.remarks["vm.power"] = (SNAPSHOT,)
    look(here, machine)

    assert (told(), tampered()) == ([("snapshots-kept", False), ("snapshots-kept", True)], 0)


def test_what_is_changed_back_again_and_again_is_one_finding_and_one_event(here, meddler, machine):
    for _ in range(4):
        meddler.remarks["vm.power"] = (CARDS,)
        look(here, machine)
        look(here, machine)

    assert (told(), tampered()) == ([("cards-changed", False)], 1)
    assert (
        Event.objects.filter(kind="finding.opened").count() == Event.objects.filter(kind="finding.closed").count() == 1
    )


def test_a_look_that_does_not_know_how_it_is_settles_nothing(here, meddler, machine):
    meddler.remarks["vm.power"] = (SNAPSHOT,)
    look(here, machine)
    meddler.presence = Presence.UNKNOWN
    look(here, machine)

    assert told() == [("snapshots-kept", True)]


def test_what_a_step_of_ours_may_have_left_half_done_is_nobodys_doing(here, meddler, machine):
    meddler.fails = True
    meddler.mended = frozenset({RemarkKind.SNAPSHOTS, RemarkKind.CARDS})
    meddler.remarks["vm.power"] = (SNAPSHOT,)
    look(here, machine)  # its step is tried, and the answer is lost
    meddler.remarks["vm.power"] = (SNAPSHOT, CARDS)
    look(here, machine)

    assert (told(), tampered()) == ([("snapshots-kept", True)], 0)


def test_with_the_object_its_findings_go(here, meddler, machine):
    meddler.remarks["vm.power"] = (SNAPSHOT,)
    look(here, machine)
    machines.delete(machine=fresh(machine), actor=factories.actor(machine.owner), now=here.clock())

    here.drive(is_gone(machine))

    assert told() == [("snapshots-kept", False)]


# --- beside our objects -----------------------------------------------------------------------------


def shows(*remarks: Remark, looked_for: frozenset[RemarkKind]) -> Callable[[ObservedProvider], ObservedProvider]:
    return lambda seen: replace(seen, remarks=remarks, looked_for=looked_for)


def take(here: World) -> None:
    here.clock.move(1)
    inventory.run(here.provider.pk, here.engine.driver_of(here.provider), here.clock(), clock=here.clock)


def of_kind(kind: str) -> list[bool]:
    return [row.resolved_at is None for row in Finding.objects.filter(kind=kind).order_by("first_seen_at")]


def test_a_stranger_is_a_finding_while_it_is_there(here, meddler):
    foreign = Remark(RemarkKind.FOREIGN, "VM x lies in folder tn-bd-1 and is not ours", "vm-1 in tn-bd-1", uuid4())
    meddler.beside = shows(foreign, looked_for=frozenset({RemarkKind.FOREIGN}))
    take(here)
    take(here)
    assert of_kind("foreign-object") == [True]

    meddler.beside = shows(looked_for=frozenset({RemarkKind.FOREIGN}))
    take(here)

    assert of_kind("foreign-object") == [False]


def left(uid: UUID) -> Remark:
    return Remark(RemarkKind.LEFT, "[ds] tn-vm-1 is named like a machine of ours, and no VM has it", f"[ds] {uid}", uid)


LOOKED = frozenset({RemarkKind.LEFT})


def wait_out(here: World) -> None:
    """Let the grace of what is left be over."""
    here.clock.move(inventory_remarks.GRACE.total_seconds())


def test_what_is_left_counts_once_its_grace_is_over_and_no_other_snapshot_settles_it(here, meddler):
    gone = uuid4()
    meddler.beside = shows(left(gone), looked_for=LOOKED)
    take(here)
    take(here)  # another worker's look, at once: a machine may just be being made
    assert of_kind("left-files") == []
    wait_out(here)
    meddler.beside = lambda seen: seen
    take(here)
    meddler.beside = shows(left(gone), looked_for=LOOKED)
    take(here)
    meddler.beside = lambda seen: seen
    take(here)  # as after a restart: nothing was looked for
    assert of_kind("left-files") == [True]

    meddler.beside = shows(looked_for=LOOKED)
    take(here)

    assert of_kind("left-files") == [False]


@pytest.mark.parametrize("of", ["nobody", "a live one"])
def test_what_is_not_known_to_have_been_ours_and_gone_is_never_deleted(here, meddler, machine, of):
    uid = machine.pk if of == "a live one" else uuid4()
    meddler.left = [f"[ds] {uid}"]
    meddler.beside = shows(left(uid), looked_for=LOOKED)
    take(here)
    wait_out(here)
    take(here)
    row = Finding.objects.get(kind="left-files")

    with pytest.raises(Conflict):
        resolve(finding=row, action="delete", reason="away", actor=operator(), now=here.clock())
    take(here)

    assert (meddler.left, of_kind("left-files")) == ([f"[ds] {uid}"], [True])


def test_what_is_left_of_a_machine_that_has_gone_is_deleted_by_a_persons_word(here, meddler, machine):
    machines.delete(machine=fresh(machine), actor=factories.actor(machine.owner), now=here.clock())
    here.drive(is_gone(machine))
    subject = f"[ds] {machine.pk}"
    meddler.left = [subject]
    meddler.beside = shows(left(machine.pk), looked_for=LOOKED)
    take(here)
    wait_out(here)
    take(here)
    row = Finding.objects.get(kind="left-files")
    assert meddler.left == [subject]

    resolve(finding=row, action="delete", reason="away", actor=operator(), now=here.clock())
    meddler.beside = lambda seen: seen
    take(here)

    row.refresh_from_db()
    assert (meddler.left, row.resolution) == ([], "deleted at the provider")


def operator() -> Any:
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
