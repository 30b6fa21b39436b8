"""Hosts that choose GPUs as badly as they can, beside VMs of others that come and go: the ledger is not fooled.

A seeded walk with the control plane's own passes on a vCenter of the lab. Machines are made, removed and switched;
others take room between two looks, also the very room that a machine of ours is being switched on for. What is true
about the GPUs is what the lab's hosts say.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from controlplane.labs.errors import LabError
from controlplane.labs.vsphere.vcenter import VCenter
from controlplane.labs.vsphere.worlds import GpuHosts, Policy, Template, World, gpus
from provisioners.driver import Step
from tenants import audit
from tenants.actor import SYSTEM
from tenants.errors import Conflict, QuotaExceeded
from tenants.models import Finding, Hold, Machine
from tenants.operations import machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tests import factories
from tests.vsphere.core_ground import CoreOnVCenter, connected, held, phase_of

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]

PRODUCT = "A100-80GB"
HOSTS = ("DC0_C0_H0", "DC0_C0_H1", "DC0_C0_H2")
PROFILES = ("1g.10gb", "1g.10gb", "1g.20gb", "2g.20gb", "2g.20gb", "3g.40gb", "1g.10gb+me", "")
TYPES = (
    "grid_a100d-1-10c", "grid_a100d-1-20c", "grid_a100d-2-20c", "grid_a100d-3-40c", "grid_a100d-1-10cme",
    "grid_a100d-80c", "grid_a100d-8c",
)  # fmt: skip
"""What others' VMs have: also what is shared in time."""
LARGEST_FIRST = tuple(f"grid_a100d-{one}" for one in ("80c", "4-40c", "3-40c", "2-20c", "1-20c", "1-10c"))


def estate(hosts: int, *, count: int = 2, seed: int = 1, passthrough: int = 0) -> World:
    """Return hosts with `count` GPUs each that are shared, and one more with GPUs that VMs have directly, if any."""
    direct = GpuHosts((f"DC0_C0_H{hosts}",), gpus(PRODUCT, passthrough, passthrough=True))
    return World(
        hosts=hosts + bool(passthrough),
        gpu_hosts=(*((direct,) if passthrough else ()), GpuHosts(("DC0_C0_H*",), gpus(PRODUCT, count))),
        templates=(Template("ubuntu-24.04-gpu", annotation="cloud-init with the VMware datasource"),),
        policy=Policy.ADVERSARIAL,
        seed=seed,
    )


def ask_of(name: str, profile: str) -> MachineAsk:
    spec = AllocationSpec((UnitAsk(GpuAsk(PRODUCT, profile), vcpu=2, memory_gib=8),))
    return MachineAsk(name, spec, "ubuntu-24.04", 20)


# --- full at power-on -----------------------------------------------------------------------------


@dataclass
class Rival:
    """Somebody who takes what a VM of ours is just being switched on for, once."""

    type: str
    core: CoreOnVCenter | None = None
    host: str = ""
    """Where he was quicker."""

    def __call__(self, step: Step) -> None:
        if self.core is None or self.host or step.name != "vm.power" or step.undo:
            return
        self.host = Hold.objects.get(kind="tenant").host.provider_ref
        self.core.control.add_vm("quicker", self.host, self.type)


TAKEN = pytest.mark.parametrize(("profile", "other"), [("", "grid_a100d-8c"), ("4g.40gb", "grid_a100d-4-40c")])


@pytest.fixture
def taken(vcenters: Callable[..., VCenter]) -> Iterator[Callable[..., tuple[CoreOnVCenter, Rival, Machine]]]:
    """A machine whose room is taken by a VM with `other` when it is switched on, as it stands after two looks."""
    made: list[CoreOnVCenter] = []

    def take(hosts: int, profile: str, other: str) -> tuple[CoreOnVCenter, Rival, Machine]:
        rival = Rival(other)
        core = rival.core = connected(vcenters(f"full-{hosts}", world=estate(hosts, count=1)), rival)
        made.append(core)
        tenant = factories.tenant()
        factories.generous(tenant, PRODUCT)
        actor = factories.actor(factories.member(tenant))
        row = machines.create(tenant=tenant, ask=ask_of("m", profile), actor=actor, now=core.clock())
        core.drive(lambda: len(core.driver.full) == 1)
        core.look()
        core.look()
        return core, rival, row

    yield take
    for core in made:
        row = Machine.objects.get()
        machines.delete(machine=row, actor=SYSTEM, now=core.clock())
        core.drive(lambda: not Machine.objects.filter(released_at__isnull=True).exists())
        left = core.used()
        core.close()
        assert not [unit for _device, unit in left if unit]


@TAKEN
def test_a_machine_whose_room_was_taken_at_power_on_ends_on_another_host(taken, profile, other):
    core, rival, row = taken(2, profile, other)

    core.drive(lambda: phase_of(row) == "Ready")
    core.look()
    core.look()

    assert len(core.driver.full) == 1
    assert held("tenant", "foreign") == core.used()
    assert {device.split("/")[0] for device, unit in core.used() if not unit} == {rival.host}
    assert {device.split("/")[0] for device, unit in core.used() if unit} == set(HOSTS[:2]) - {rival.host}
    assert list(Finding.objects.filter(resolved_at__isnull=True)) == []
    core.control.remove_vm("quicker")


@TAKEN
def test_a_machine_whose_room_was_taken_and_who_finds_none_elsewhere_waits_and_starts_when_it_is_free(
    taken, profile, other
):
    core, rival, row = taken(1, profile, other)

    core.drive(lambda: len(core.driver.full) == 2, most=200)  # it is tried again, slowly
    [ready] = [one for one in Machine.objects.get().conditions if one["type"] == "Ready"]
    assert (phase_of(row), ready["reason"]) == ("Provisioning", "NoCapacity")
    assert not [unit for _device, unit in core.used() if unit]
    assert rival.host in Finding.objects.get(kind="foreign-use-on-hold").detail

    core.control.remove_vm("quicker")
    core.drive(lambda: phase_of(row) == "Ready", most=200)
    core.look()
    core.look()
    assert held("tenant", "foreign") == core.used()
    assert list(Finding.objects.filter(resolved_at__isnull=True)) == []


# --- a walk ---------------------------------------------------------------------------------------


def has_no_room(row: Machine) -> bool:
    """Whether it was refused at power-on and found no other host."""
    return any(one["type"] == "Ready" and one["reason"] == "NoCapacity" for one in row.conditions)


class Walk:
    """Machines of ours and of others that come and go at random."""

    def __init__(self, vcenter: VCenter, seed: int, *, rivals: float, hurried: float) -> None:
        """`rivals` and `hurried` are how likely somebody takes the room at power-on, and tasks outlast a sweep."""
        self.dice = random.Random(seed)
        self.rivals = rivals
        self.hurried = hurried
        self.others: list[str] = []
        self.names = iter(range(10_000))
        self.settling = True
        self.here = connected(vcenter, self.meddle)
        self.settling = False
        self.tenant = factories.tenant()
        factories.generous(self.tenant, PRODUCT)
        self.actor = factories.actor(factories.member(self.tenant))
        self.told: list[str] = []

    def live(self) -> list[Machine]:
        rows = Machine.objects.filter(deletion_requested_at__isnull=True, released_at__isnull=True)
        return list(rows.order_by("name"))

    def meddle(self, step: Step) -> None:
        """Take what is left of a host just before a machine there is switched on, or a part of it."""
        if step.name != "vm.power" or step.undo or self.settling or self.dice.random() >= self.rivals:
            return
        holds = Hold.objects.filter(unit__allocation__machine=step.ref.uid).values_list("host__provider_ref", flat=True)
        for host in sorted(set(holds)):
            if self.dice.random() < 0.4:
                self.come(host, *self.dice.choices(TYPES, k=self.dice.choice([1, 1, 1, 2])))
                continue
            for kind in LARGEST_FIRST:
                while self.come(host, kind):
                    pass

    def come(self, host: str, *kinds: str) -> bool:
        """Let somebody else's VM run on a host; False where that has no room."""
        name = f"theirs-{next(self.names)}"
        try:
            self.here.control.add_vm(name, host, *kinds)
        except LabError:
            return False
        self.others.append(name)
        self.told.append(f"{name} with {', '.join(kinds)} comes to {host}")
        return True

    def go(self) -> None:
        """Let some of the others' VMs end."""
        for _ in range(self.dice.choice([1, 1, len(self.others)])):
            name = self.others.pop(self.dice.randrange(len(self.others)))
            self.here.control.remove_vm(name)
            self.told.append(f"{name} goes")

    def step(self) -> None:
        """Do one random thing, then sweep."""
        rows, now, draw = self.live(), self.here.clock(), self.dice.random()
        with contextlib.suppress(Conflict, QuotaExceeded):
            if draw < 0.35 or len(rows) < 3:
                name, profile = f"m{next(self.names)}", self.dice.choice(PROFILES)
                machines.create(tenant=self.tenant, ask=ask_of(name, profile), actor=self.actor, now=now)
                self.told.append(f"{name} with {profile or 'a whole GPU'}")
            elif draw < 0.5:
                row = self.dice.choice(rows)
                machines.delete(machine=row, actor=self.actor, now=now)
                self.told.append(f"{row.name} is removed")
            elif draw < 0.65:
                row = self.dice.choice(rows)
                want = "off" if row.power == "on" else "on"
                machines.power(machine=row, want=want, actor=self.actor, now=now)
                self.told.append(f"{row.name} {want}")
            elif draw < 0.8 and len(self.others) < 8:
                self.come(self.dice.choice(HOSTS), *self.dice.choices(TYPES, k=self.dice.choice([1, 1, 1, 2])))
            elif self.others:
                self.go()
        self.here.sweep(hurried=self.dice.random() < self.hurried)
        self.here.clock.move(self.dice.choice([0.2, 1.0, 3.0]))
        if self.dice.random() < 0.3:
            self.here.look()
        self.here.assert_no_double_use()

    def settle(self) -> None:
        """Stop acting, let everything come to rest, and take the two looks that must do."""
        self.settling = True
        for row in self.live():
            if row.phase == "Waiting":  # or it would be placed, and be on its way, when the last look is taken
                machines.delete(machine=row, actor=self.actor, now=self.here.clock())
        for row in self.live():
            if row.power == "off":
                machines.power(machine=row, want="on", actor=self.actor, now=self.here.clock())
        self.here.drive(self.at_rest)
        for row in self.live():
            if has_no_room(row):  # it keeps what it holds while others use it: until they go that is no truth
                machines.delete(machine=row, actor=self.actor, now=self.here.clock())
        self.here.drive(self.at_rest)
        self.here.look()  # what is known now may make room for somebody who waits
        self.here.drive(self.at_rest)
        self.here.look()
        self.here.look()

    def at_rest(self) -> bool:
        rows = Machine.objects.filter(released_at__isnull=True)
        resting = [row.phase in {"Ready", "Waiting"} or has_no_room(row) for row in rows]
        return all(resting) and all(row.deletion_requested_at is None for row in rows)

    def assert_ledger_is_the_truth(self) -> None:
        here = self.here
        here.assert_no_double_use()
        assert held("tenant", "foreign") == here.used(), self.explain()
        assert held("fault", "maintenance", "reserved") == {}
        assert audit.findings() == []
        assert list(Finding.objects.filter(resolved_at__isnull=True).values_list("kind", "detail")) == []

    def assert_all_goes(self) -> None:
        """Remove what is ours: nothing of it is left, and the others have what they had."""
        theirs = {what: slots for what, slots in self.here.used().items() if not what[1]}
        for row in self.live():
            machines.delete(machine=row, actor=self.actor, now=self.here.clock())
        self.here.drive(lambda: not Machine.objects.filter(released_at__isnull=True).exists(), most=200)
        self.here.look()
        self.here.look()
        assert held("tenant") == {}
        assert held("foreign") == theirs == self.here.used()
        assert not [one for one in self.here.control.inventory()["vms"] if one.startswith("tn-")]

    def explain(self) -> str:
        return "\n".join([*self.told, self.here.explain()])


@pytest.fixture
def walks(vcenters: Callable[..., VCenter]) -> Iterator[Callable[..., Walk]]:
    """Walks to their end, by seed and number of steps."""
    made: list[Walk] = []

    def walked(seed: int, steps: int, *, count: int = 2, rivals: float = 0.3, hurried: float = 0.3) -> Walk:
        place = vcenters(
            f"adversarial-{seed}-{int(10 * hurried)}", world=estate(3, count=count, seed=seed, passthrough=2)
        )
        walk = Walk(place, seed, rivals=rivals, hurried=hurried)
        made.append(walk)
        try:
            for _ in range(steps):
                walk.step()
            walk.settle()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{walk.explain()}") from error
        return walk

    yield walked
    for walk in made:
        walk.here.close()


def test_beside_others_and_under_the_worst_choice_the_ledger_ends_as_the_truth(walks):
    walk = walks(7, 28, count=1)

    assert walk.live()
    assert walk.others
    assert walk.here.driver.full, "nobody's room was taken at power-on: the walk shows too little"
    walk.assert_ledger_is_the_truth()
    walk.assert_all_goes()


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hurried", [0.0, 0.5], ids=["one after the other", "tasks outlast sweeps"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_hundred_random_operations_beside_others_under_the_worst_choice(walks, seed, hurried):
    walk = walks(seed, 200, hurried=hurried)

    assert walk.here.driver.full
    walk.assert_ledger_is_the_truth()
    walk.assert_all_goes()
