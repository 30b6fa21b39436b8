"""A provider that chooses devices itself, badly, tells them late and wrongly: the ledger must not be fooled.

A seeded walk makes, removes and switches VMs on hosts bound by host only, under the choice of device that costs
the most. Whoever runs is known to the provider alone (`views.truth`); the ledger is compared with that.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from provisioners.sandbox import control, files, views
from tenants import audit
from tenants.errors import Conflict, QuotaExceeded
from tenants.models import Finding, GpuDevice, Hold, Host, Machine, Provider
from tenants.operations import endpoints, machines
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MachineAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind
from tests import factories
from tests.drive import World, world

pytestmark = pytest.mark.usefixtures("db")

PRODUCT = "A100-80GB"
PROFILES = ("1g.10gb", "1g.10gb", "1g.20gb", "2g.20gb", "2g.20gb", "3g.40gb", "1g.10gb+me", "")
Windows = set[tuple[str, str, int, int]]


def estate(*hosts: str, binding: str = "host", gpus: int = 2) -> dict[str, Any]:
    kinds = ["vm"] if binding == "host" else ["namespace"]
    return {
        "schema": files.SCHEMA,
        "hosts": [
            {
                "host": name, "name": name, "binding": binding, "boundary_kinds": kinds,
                "vcpu": 256, "memory_gib": 2048, "gpus": [{"product": PRODUCT, "count": gpus}],
            }
            for name in hosts
        ],
    }  # fmt: skip


def unit(profile: str) -> UnitAsk:
    return UnitAsk(GpuAsk(PRODUCT, profile), vcpu=2, memory_gib=8)


def held(*kinds: str) -> Windows:
    rows = Hold.objects.filter(kind__in=kinds).select_related("device", "host")
    return {(row.host.provider_ref, row.device.provider_ref, row.start, row.size) for row in rows}


def used(here: World) -> Windows:
    return {(use.host, use.device, use.start, use.size) for use in views.truth(here.estate.state)}


def assert_no_double_use(here: World) -> None:
    taken: dict[tuple[str, int], str] = {}
    for use in views.truth(here.estate.state):
        for slot in range(use.start, use.start + use.size):
            assert (use.device, slot) not in taken, f"{use} and {taken[use.device, slot]}"
            taken[use.device, slot] = use.name


def refused(here: World) -> set[str]:
    """Return the machines for which the provider had no room although the ledger had promised it."""
    return {task.owner for task in here.estate.state.tasks.values() if (task.error or {}).get("error") == "no-capacity"}


class Walk:
    """Machines that come and go at random."""

    def __init__(self, seed: int, *, wrong: bool) -> None:
        self.dice = random.Random(seed)
        self.wrong = wrong
        self.here = world(estate("esxi-1", "esxi-2", "esxi-3"), delays=True, snapshots=True)
        control.change_settings(
            self.here.estate,
            {
                "policy": "adversarial", "seed": seed, "delays_s": {"": 0.2, "vm.clone": 1.0, "vm.power": 0.5},
                "boot_s": 0.5, "report_delay_s": 4.0,
            },
        )  # fmt: skip
        control.add_foreign_use(self.here.estate, "squatter", "esxi-1", [["esxi-1-gpu-0", 0, "2g.20gb"]])
        self.tenant = factories.tenant()
        factories.generous(self.tenant, PRODUCT)
        self.actor = factories.actor(factories.member(self.tenant))
        self.names = iter(range(10_000))
        self.switched: set[str] = set()
        """Machines that were off once: what was let in before that, and started after, may have taken their place."""
        self.look()

    def look(self) -> None:
        """Take a snapshot now, and let passes do what it made due."""
        self.here.clock.move(1.0)
        Provider.objects.update(due_at=self.here.clock())
        self.here.sweep()

    def live(self) -> list[Machine]:
        rows = Machine.objects.filter(deletion_requested_at__isnull=True, released_at__isnull=True)
        return list(rows.order_by("name"))

    def step(self) -> None:
        """Do one random thing, then sweep."""
        rows = self.live()
        now, draw = self.here.clock(), self.dice.random()
        if self.wrong and self.dice.random() < 0.25:
            host = self.dice.choice(["esxi-1", "esxi-2", "esxi-3"])
            control.add_fault(self.here.estate, f"report:{host}", self.dice.choice(["wrong-report", "no-report"]))
        with contextlib.suppress(Conflict, QuotaExceeded):
            if draw < 0.5 or len(rows) < 3:
                ask = AllocationSpec((unit(self.dice.choice(PROFILES)),))
                wanted = MachineAsk(f"m{next(self.names)}", ask, "ubuntu-24.04", 20)
                machines.create(tenant=self.tenant, ask=wanted, actor=self.actor, now=now)
            elif draw < 0.8:
                machines.delete(machine=self.dice.choice(rows), actor=self.actor, now=now)
            else:
                row = self.dice.choice(rows)
                self.switched.add(str(row.pk))
                machines.power(machine=row, want="off" if row.power == "on" else "on", actor=self.actor, now=now)
        self.here.sweep()
        self.here.clock.move(self.dice.choice([0.2, 1.0, 3.0]))
        if self.dice.random() < 0.3:
            self.look()
        assert_no_double_use(self.here)
        assert audit.findings(audit.LEDGER) == []

    def settle(self) -> None:
        """Stop acting, let the provider tell the truth about everything, and take the two looks that must do."""
        control.clear_faults(self.here.estate)
        for row in self.live():
            if row.phase == "Waiting":  # or it would be placed, and be on its way, when the last look is taken
                machines.delete(machine=row, actor=self.actor, now=self.here.clock())
        for row in self.live():
            if row.power == "off":
                machines.power(machine=row, want="on", actor=self.actor, now=self.here.clock())
        self.here.drive(self.at_rest, most=80)
        self.tell_the_truth()
        self.look()  # what is known now may make room for somebody who waits
        self.here.drive(self.at_rest, most=80)
        self.tell_the_truth()
        self.look()
        self.look()

    def tell_the_truth(self) -> None:
        for workload in self.here.estate.state.workloads.values():
            workload.reported, workload.report_at = None, min(workload.report_at, self.here.clock.timestamp())

    def at_rest(self) -> bool:
        rows = Machine.objects.filter(released_at__isnull=True)
        return all(row.phase in {"Ready", "Waiting"} and row.deletion_requested_at is None for row in rows)


def walked(seed: int, steps: int, *, wrong: bool) -> Walk:
    walk = Walk(seed, wrong=wrong)
    for _ in range(steps):
        walk.step()
    walk.settle()
    return walk


def assert_ledger_is_the_truth(walk: Walk) -> None:
    assert_no_double_use(walk.here)
    assert held("tenant", "foreign") == used(walk.here)
    assert audit.findings() == []
    assert list(Finding.objects.filter(resolved_at__isnull=True).values_list("kind", "detail")) == []
    for row in walk.live():
        machines.delete(machine=row, actor=walk.actor, now=walk.here.clock())
    walk.here.drive(lambda: not Machine.objects.filter(released_at__isnull=True).exists(), most=200)
    walk.look()
    assert held("tenant") == set()
    assert held("foreign") == {("esxi-1", "esxi-1-gpu-0", 0, 2)}


@pytest.mark.slow
def test_the_worst_choice_told_late_is_never_refused_and_the_ledger_ends_as_the_truth() -> None:
    walk = walked(seed=7, steps=16, wrong=False)

    assert walk.live()
    assert refused(walk.here) - walk.switched == set()
    assert_ledger_is_the_truth(walk)


@pytest.mark.slow  # the same choice at a smaller size is in tests/provisioners/test_inventory_units.py
def test_wrong_and_missing_reports_never_lead_to_double_use_and_are_corrected_within_two_looks() -> None:
    walk = walked(seed=8, steps=16, wrong=True)

    assert walk.live()
    assert_ledger_is_the_truth(walk)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("wrong", [False, True], ids=["late", "late and wrong"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_hundred_random_operations_under_the_worst_choice(seed: int, wrong: bool) -> None:
    walk = walked(seed, 200, wrong=wrong)

    if not wrong:
        assert refused(walk.here) - walk.switched == set()
    assert_ledger_is_the_truth(walk)


@pytest.mark.slow
@pytest.mark.parametrize("binding", ["host", "device"])
def test_a_provider_with_thirty_percent_in_foreign_use_gets_no_hold_there_and_everything_else_is_used(
    binding: str,
) -> None:
    here = world(estate("h-1", "h-2", binding=binding, gpus=5), snapshots=True)
    control.change_settings(here.estate, {"policy": "adversarial"})
    foreign = [("h-1", 0), ("h-1", 3), ("h-2", 4)]
    for host, number in foreign:
        control.add_foreign_use(here.estate, f"theirs-{host}-{number}", host, [[f"{host}-gpu-{number}", 0, ""]])
    tenant = factories.tenant()
    factories.generous(tenant, PRODUCT)
    actor = factories.actor(factories.member(tenant))
    factories.served_model("llama-3-1-8b")
    here.clock.move(1.0)
    here.sweep()

    for number in range(10):
        if binding == "host":
            machine = MachineAsk(f"m{number}", AllocationSpec((unit(""),)), "ubuntu-24.04", 20)
            machines.create(tenant=tenant, ask=machine, actor=actor, now=here.clock())
        else:
            spec = AllocationSpec((unit(""),), where=Where(kind=BoundaryKind.NAMESPACE))
            endpoint = EndpointAsk(f"e{number}", RevisionAsk("llama-3-1-8b"), spec)
            endpoints.create(tenant=tenant, ask=endpoint, actor=actor, now=here.clock())
    for _ in range(30):
        here.sweep()
        here.clock.move(1.0)

    theirs = {f"{host}-gpu-{number}" for host, number in foreign}
    assert {device for _, device, _, _ in held("tenant")} == {
        device.provider_ref for device in GpuDevice.objects.all() if device.provider_ref not in theirs
    }
    assert {device for _, device, _, _ in held("foreign")} == theirs
    assert held("tenant", "foreign") == used(here)
    assert len(held("tenant")) == 7
    assert Host.objects.filter(state="open").count() == 2
    assert_no_double_use(here)
