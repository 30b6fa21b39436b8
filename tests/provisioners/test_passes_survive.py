"""Each step failed, killed and repeated at every instant: all ends right, and nothing is left or doubled.

Killing here ends the pass by an exception that nothing catches, with its lease still held; the crash table
(`tests/crash`) does the same with SIGKILL on real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from provisioners import instants
from provisioners.instants import Instant
from provisioners.sandbox import control, views
from tenants.actor import Actor
from tenants.models import GpuDevice, Hold, Intent, QuotaCharge, ServedModel, Tenant
from tenants.operations import endpoints, machines, namespaces
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MachineAsk, NamespaceAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]


class Killed(BaseException):
    """The process ends here."""


@dataclass(slots=True)
class Killer:
    """Kills at each step and instant, the first time it is reached."""

    seen: set[tuple[str, Instant]] = field(default_factory=set)

    def __call__(self, step: str, instant: Instant) -> None:
        if (step, instant) not in self.seen:
            self.seen.add((step, instant))
            raise Killed


@pytest.fixture
def killer() -> Iterator[Killer]:
    found = Killer()
    remove = instants.install(found)
    yield found
    remove()


def drive_through_kills(here: World, until: Callable[[], bool], *, most: int = 400) -> int:
    """Sweep until a condition holds; a killed sweep's lease has to run out first. Returns the number of kills."""
    kills = 0
    for _ in range(most):
        try:
            here.sweep()
        except Killed:
            kills += 1
            here.clock.move(here.engine.ttl.total_seconds() + 0.1)
            continue
        if until():
            return kills
        here.clock.move(1.0)
    raise AssertionError(here.explain())


@dataclass(frozen=True, slots=True)
class Who:
    actor: Actor
    tenant: Tenant


@pytest.fixture
def who() -> Who:
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    return Who(factories.actor(factories.member(tenant)), tenant)


def gpu(product: str, profile: str = "1g.10gb") -> UnitAsk:
    return UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16)


def make_endpoint(kind: BoundaryKind, *units: UnitAsk) -> Callable[[World, Who], Any]:
    def make(here: World, who: Who) -> Any:
        if not ServedModel.objects.exists():
            factories.served_model("llama-3-1-8b")
        spec = AllocationSpec(units=units, where=Where(kind=kind), storage_gib=0)
        ask = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
        return endpoints.create(tenant=who.tenant, ask=ask, actor=who.actor, now=here.clock()).endpoint

    return make


def make_machine(here: World, who: Who) -> Any:
    ask = MachineAsk("box", AllocationSpec(units=(gpu("A100-80GB", ""),)), "ubuntu-24.04", 40)
    return machines.create(tenant=who.tenant, ask=ask, actor=who.actor, now=here.clock())


def make_namespace(here: World, who: Who) -> Any:
    ask = NamespaceAsk("play", AllocationSpec(units=(gpu("H100-80GB"),)))
    return namespaces.create(tenant=who.tenant, ask=ask, actor=who.actor, now=here.clock())


def delete(row: Any, here: World, who: Who) -> None:
    operation = {"Endpoint": endpoints.delete, "Machine": machines.delete, "Namespace": namespaces.delete}
    word = type(row).__name__
    operation[word](**{word.lower(): row, "actor": who.actor, "now": here.clock()})  # type: ignore[operator]


KINDS = {
    "endpoint in a namespace": make_endpoint(BoundaryKind.NAMESPACE, gpu("H100-80GB")),
    "endpoint in VMs": make_endpoint(BoundaryKind.VM, gpu("A100-80GB"), gpu("A100-80GB")),
    "machine": make_machine,
    "namespace": make_namespace,
}


LONG = {"endpoint in VMs"}
"""Left to CI, where the crash table kills in it, too."""


@pytest.fixture(
    params=[
        pytest.param(make, id=name, marks=[pytest.mark.slow] if name in LONG else []) for name, make in KINDS.items()
    ]
)
def make(request: pytest.FixtureRequest) -> Callable[[World, Who], Any]:
    return request.param  # type: ignore[no-any-return]


def running(here: World) -> list[str]:
    return sorted(workload.uid for workload in here.estate.state.workloads.values() if workload.running)


def assert_ledger_equals_truth(here: World) -> None:
    held = sorted(str(hold.unit_id) for hold in Hold.objects.filter(kind="tenant"))
    assert sorted(use.unit for use in views.truth(here.estate.state)) == held


def assert_nothing_left(here: World) -> None:
    assert views.leftovers(here.estate.state) == []
    assert Hold.objects.count() == 0
    assert QuotaCharge.objects.count() == 0
    assert Intent.objects.filter(settled_at__isnull=True).count() == 0
    assert [device.free for device in GpuDevice.objects.all()] == [
        (1 << device.slots) - 1 for device in GpuDevice.objects.all()
    ]


@pytest.mark.parametrize(
    "delays", [pytest.param(False, id="immediate"), pytest.param(True, id="with tasks", marks=[pytest.mark.slow])]
)
def test_killed_at_every_step_and_instant_it_converges_and_leaves_nothing(
    make: Callable[[World, Who], Any], who: Who, killer: Killer, delays: bool
) -> None:
    here = world(delays=delays)
    row = make(here, who)

    kills = drive_through_kills(here, is_ready(row))

    if row._meta.model_name != "namespace":
        assert_ledger_equals_truth(here)
    assert kills == len(killer.seen)
    steps = {step for step, _ in killer.seen if not step.endswith(".conclude")}
    assert {instant for _, instant in killer.seen} == set(Instant)
    assert len(steps) >= 5

    delete(row, here, who)
    row = fresh(row)
    drive_through_kills(here, is_gone(row, row.allocation, row.boundary))
    assert {f"undo:{step}" for step in steps} <= {step for step, _ in killer.seen}
    assert_nothing_left(here)


FAULTS = {
    "fails once": ("fail", {}),
    "loses its answer": ("lost-answer", {}),
    "hangs after its effect": ("hang", {"after_effect": True}),
    "fails in its task": ("task-fail", {}),
    "has its task forgotten": ("forget", {}),
    "has its task forgotten and not done": ("forget", {"lying": True}),
}


QUICK = {"loses its answer"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=[pytest.mark.slow] if name not in QUICK else [])
        for name, fault in FAULTS.items()
    ],
)
def test_each_step_and_each_undo_that_goes_wrong_once_is_mended(
    make: Callable[[World, Who], Any], who: Who, fault: tuple[str, dict[str, Any]]
) -> None:
    here = world(delays=True)
    effect, options = fault
    bares = "namespace.create namespace.limits namespace.policies namespace.access namespace.gateway folder.create "
    bares += "pool.create network.create role.grant serving.secret vm.clone* vm.power* vm.gateway* serving.replica* "
    bares += "serving.service access.accounts"
    faults = [
        control.add_fault(here.estate, f"{call}:{bare}", effect, **options)
        for bare in bares.split()
        for call in ("start", "undo")
    ]
    row = make(here, who)

    here.drive(is_ready(row), most=200)

    if row._meta.model_name != "namespace":
        assert_ledger_equals_truth(here)
    delete(row, here, who)
    row = fresh(row)
    here.drive(is_gone(row, row.allocation, row.boundary), most=200)
    assert_nothing_left(here)
    struck = {fault.match for fault in faults if fault.times == 0}
    assert len(struck) >= 10
    assert {match.replace("start:", "undo:") for match in struck if match.startswith("start:")} <= struck


@pytest.mark.parametrize("after", [(0, 7), pytest.param((3, 12), marks=pytest.mark.slow)], ids=str)
def test_deleted_in_the_middle_of_its_making_it_leaves_nothing(
    make: Callable[[World, Who], Any], who: Who, after: tuple[int, int]
) -> None:
    here = world(delays=True)
    for sweeps in after:
        row = make(here, who)
        for _ in range(sweeps):
            here.sweep()
            here.clock.move(0.3)

        delete(row, here, who)
        row = fresh(row)
        here.drive(is_gone(row, row.allocation, row.boundary))

        assert_nothing_left(here)
