"""Machines of a vCenter that are lost, made anew or resized: by the control plane's own passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.specs_from_rows import ref_of
from provisioners.vsphere.client import Found
from tenants import desired
from tenants.actor import SYSTEM, Actor
from tenants.models import Boundary, Event, Hold, Machine
from tenants.operations import machine_changes, machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import condition_of
from tenants.transactions import acting
from tests import factories
from tests.vsphere.core_ground import CoreOnVCenter, connected, phase_of
from tests.vsphere.test_adversarial_real import PRODUCT, estate

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]


@pytest.fixture
def core(vcenters: Callable[..., VCenter]) -> Iterator[CoreOnVCenter]:
    made = connected(vcenters("changes", world=estate(2)))
    yield made
    for row in Machine.objects.filter(deletion_requested_at__isnull=True):
        machines.delete(machine=row, actor=SYSTEM, now=made.clock())
    made.drive(lambda: not Machine.objects.filter(released_at__isnull=True).exists())
    left = made.used()
    made.close()
    assert not left


@pytest.fixture
def owner(core: CoreOnVCenter) -> tuple[Any, Actor]:
    tenant = factories.tenant()
    factories.generous(tenant, PRODUCT)
    return tenant, factories.actor(factories.member(tenant))


@pytest.fixture
def box(core: CoreOnVCenter, owner: tuple[Any, Actor]) -> Machine:
    tenant, actor = owner
    spec = AllocationSpec((UnitAsk(GpuAsk(PRODUCT, "1g.10gb"), vcpu=2, memory_gib=8),))
    ask = MachineAsk("box", spec, "ubuntu-24.04", 20)
    row = machines.create(tenant=tenant, ask=ask, actor=actor, now=core.clock())
    core.drive(lambda: phase_of(row) == "Ready")
    core.look()
    return Machine.objects.get(pk=row.pk)


def vm(core: CoreOnVCenter, row: Machine) -> Found:
    """Return what vCenter shows of the machine's one VM."""
    [ref] = core.hand.names("VirtualMachine", ref_of(row).name)
    [found] = core.hand.client.many([ref], "config.instanceUuid", "config.hardware.numCPU", "config.hardware.memoryMB")
    return found


def said(row: Machine) -> tuple[str, str]:
    found = condition_of(Machine.objects.get(pk=row.pk).conditions, "Ready")  # type: ignore[arg-type]
    assert found is not None
    return str(found["status"]), str(found["reason"])


def test_a_vm_that_somebody_deleted_is_lost_and_made_anew_only_when_asked(core, owner, box):
    before = core.used()
    there = vm(core, box).ref
    core.hand.task(there, "PowerOffVM_Task")
    core.hand.task(there, "Destroy_Task")

    with acting(SYSTEM):
        desired.nudge_now(box, at=core.clock())
    core.drive(lambda: said(box) == ("False", "Lost"))
    core.look()
    core.look()
    assert not core.used()
    assert Hold.objects.filter(kind="tenant").count() == 1
    assert Event.objects.filter(kind="machine.lost").count() == 1

    machine_changes.rebuild(machine=box, actor=owner[1], now=core.clock())
    core.drive(lambda: phase_of(box) == "Ready")
    assert sum(core.used().values()) == sum(before.values())


def test_a_vm_that_is_off_gets_another_size_in_a_pool_that_has_room_for_it_first(core, owner, box):
    before = vm(core, box).ref
    machines.power(machine=box, want="off", actor=owner[1], now=core.clock())
    core.drive(lambda: said(box) == ("False", "ByOwner"))
    pool = limits(core)

    row = Machine.objects.get(pk=box.pk)
    machine_changes.resize(machine=row, vcpu=4, memory_gib=16, disk_gib=60, actor=owner[1], now=core.clock())
    core.drive(lambda: fitted(box))

    wider = limits(core)
    assert (wider[0] > pool[0], wider[1] > pool[1]) == (True, True)
    assert hardware_of(core, box) == (before, 4, 16 * 1024, 60)
    machines.power(machine=box, want="on", actor=owner[1], now=core.clock())
    core.drive(lambda: phase_of(box) == "Ready")
    assert hardware_of(core, box) == (before, 4, 16 * 1024, 60)

    machines.power(machine=box, want="off", actor=owner[1], now=core.clock())
    core.drive(lambda: said(box) == ("False", "ByOwner"))
    row = Machine.objects.get(pk=box.pk)
    machine_changes.resize(machine=row, vcpu=2, memory_gib=8, actor=owner[1], now=core.clock())
    core.drive(lambda: fitted(box) and limits(core) == pool)
    assert hardware_of(core, box) == (before, 2, 8 * 1024, 60)


def fitted(row: Machine) -> bool:
    found = Machine.objects.get(pk=row.pk)
    return found.fitted == found.resizes and said(row) == ("False", "ByOwner")


def hardware_of(core: CoreOnVCenter, row: Machine) -> tuple[Any, int, int, int]:
    """Return the machine's one VM, its vCPUs, MiB of memory and GiB of its first disk."""
    found = vm(core, row)
    [told] = core.hand.client.many([found.ref], "config.hardware.device")
    disks = [one for one in told.values["config.hardware.device"] if type(one).__name__.endswith("VirtualDisk")]
    values = found.values
    return (
        found.ref, values["config.hardware.numCPU"], values["config.hardware.memoryMB"], disks[0].capacityInKB // 2**20
    )  # fmt: skip


def limits(core: CoreOnVCenter) -> tuple[int, int]:
    """Return the limits of the boundary's resource pool: MHz and MiB."""
    name = ref_of(Boundary.objects.get(released_at__isnull=True)).name
    [ref] = core.hand.names("ResourcePool", name)
    [found] = core.hand.client.many([ref], "config.cpuAllocation", "config.memoryAllocation")
    return found.values["config.cpuAllocation"].limit, found.values["config.memoryAllocation"].limit
