"""How far apart tenants are kept on a vCenter, and a host that is emptied: by the control plane's own passes.

Where a VM is and which GPU it has is what the lab's hosts say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from controlplane.labs.vsphere.vcenter import VCenter
from tenants.actor import SYSTEM, Actor
from tenants.errors import InvalidSpec
from tenants.models import Finding, Hold, Host, HostPlan, Machine, Tenant
from tenants.operations import inventory, machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk, Where
from tenants.states import PlatformRole, Tier
from tests import factories
from tests.vsphere.core_ground import CoreOnVCenter, connected, held, phase_of
from tests.vsphere.test_adversarial_real import PRODUCT, estate

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]


@pytest.fixture
def on(vcenters: Callable[..., VCenter]) -> Iterator[Callable[[int], CoreOnVCenter]]:
    """A vCenter of so many hosts with two GPUs each, connected; in the end everything of ours goes."""
    made: list[CoreOnVCenter] = []

    def connect(hosts: int) -> CoreOnVCenter:
        made.append(connected(vcenters(f"tiers-{hosts}", world=estate(hosts))))
        return made[-1]

    yield connect
    for core in made:
        for row in Machine.objects.filter(deletion_requested_at__isnull=True):
            machines.delete(machine=row, actor=SYSTEM, now=core.clock())
        core.drive(lambda: not Machine.objects.filter(released_at__isnull=True).exists())
        left = core.used()
        core.close()
        assert not left


class Customer:
    """A tenant with somebody who asks."""

    def __init__(self, core: CoreOnVCenter) -> None:
        self.core = core
        self.tenant: Tenant = factories.tenant()
        factories.generous(self.tenant, PRODUCT)
        self.actor: Actor = factories.actor(factories.member(self.tenant))

    def asks(self, name: str, *, profile: str = "", tier: Tier = Tier.SHARED) -> Machine:
        unit = UnitAsk(GpuAsk(PRODUCT, profile), vcpu=2, memory_gib=8)
        spec = AllocationSpec((unit,), where=Where(tier=tier))
        ask = MachineAsk(name, spec, "ubuntu-24.04", 20)
        return machines.create(tenant=self.tenant, ask=ask, actor=self.actor, now=self.core.clock())

    def gets(self, name: str, *, profile: str = "", tier: Tier = Tier.SHARED) -> Machine:
        row = self.asks(name, profile=profile, tier=tier)
        self.core.drive(lambda: phase_of(row) == "Ready")
        return row


def devices_of(core: CoreOnVCenter, row: Machine) -> set[str]:
    """Return the GPUs that a machine really has, as `<host>/<pciId>`."""
    units = {str(pk) for pk in row.allocation.units.values_list("pk", flat=True)}
    return {device for device, unit in core.used() if unit in units}


def host_of(core: CoreOnVCenter, row: Machine) -> str:
    [host] = {device.split("/")[0] for device in devices_of(core, row)}
    return host


def assert_settled(core: CoreOnVCenter) -> None:
    core.look()
    core.look()
    core.assert_no_double_use()
    assert held("tenant", "foreign") == core.used()
    assert list(Finding.objects.filter(resolved_at__isnull=True)) == []


def test_an_exclusive_gpu_is_one_tenants_alone(on):
    core = on(1)
    alone, other = Customer(core), Customer(core)
    with pytest.raises(InvalidSpec) as refused:
        alone.asks("part", profile="3g.40gb", tier=Tier.EXCLUSIVE_GPU)
    small = other.gets("small", profile="1g.10gb")
    whole = alone.gets("whole", tier=Tier.EXCLUSIVE_GPU)
    beside = other.gets("beside", profile="1g.10gb")
    late = other.asks("late", tier=Tier.EXCLUSIVE_GPU)
    core.drive(lambda: phase_of(late) == "Waiting")

    assert refused.value.specific_code == "tier-needs-whole-gpu"
    [mine] = devices_of(core, whole)
    assert {unit for device, unit in core.used() if device == mine} == {str(whole.allocation.units.get().pk)}
    assert devices_of(core, small) == devices_of(core, beside) != {mine}
    assert_settled(core)


def test_a_dedicated_host_takes_nobody_else_until_its_tenant_has_gone(on):
    core = on(2)
    first, other = Customer(core), Customer(core)
    mine = first.gets("mine", tier=Tier.DEDICATED_HOST)
    others = [other.gets(f"other-{at}") for at in range(2)]
    late = other.asks("late")
    core.drive(lambda: phase_of(late) == "Waiting")  # though a GPU of the dedicated host is free
    second = first.gets("second", tier=Tier.DEDICATED_HOST)

    assert host_of(core, second) == host_of(core, mine)
    assert {host_of(core, row) for row in others} == {"DC0_C0_H0", "DC0_C0_H1"} - {host_of(core, mine)}
    assert phase_of(late) == "Waiting"
    assert_settled(core)

    was = host_of(core, mine)
    for row in (mine, second):
        machines.delete(machine=row, actor=first.actor, now=core.clock())
    core.drive(lambda: phase_of(late) == "Ready", most=200)
    assert host_of(core, late) == was
    assert_settled(core)


def test_a_drained_host_gives_its_machine_to_another_and_comes_back(on):
    core = on(2)
    customer = Customer(core)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    row = customer.gets("box", profile="2g.20gb")
    before, name = host_of(core, row), vm_names(core)[0]
    [vm] = core.hand.names("VirtualMachine", name)

    plan = inventory.drain(
        host=Host.objects.get(provider_ref=before), reason="new firmware", actor=operator, now=core.clock()
    )
    see_through(core, plan)

    assert host_of(core, row) == ({"DC0_C0_H0", "DC0_C0_H1"} - {before}).pop()
    assert phase_of(row) == "Ready"
    assert (core.hand.names("VirtualMachine", name), vm_names(core)) == ([vm], [name])  # moved, not made anew
    assert (Host.objects.get(provider_ref=before).state, is_away(core, before)) == ("maintenance", True)
    assert set(Hold.objects.filter(host__provider_ref=before).values_list("kind", flat=True)) == {"maintenance"}

    back = inventory.return_host(
        host=Host.objects.get(provider_ref=before), reason="done", actor=operator, now=core.clock()
    )
    see_through(core, back)
    assert (Host.objects.get(provider_ref=before).state, is_away(core, before)) == ("open", False)
    assert_settled(core)


def see_through(core: CoreOnVCenter, plan: HostPlan) -> None:
    """Look again and again until a plan is done and everything runs."""
    for _ in range(60):
        core.look()
        plan.refresh_from_db()
        phases = {str(one.phase) for one in Machine.objects.filter(released_at__isnull=True)}
        if plan.state == "done" and phases == {"Ready"}:
            return
    raise AssertionError(f"{plan.kind} is {plan.state}: {plan.touched}\n{core.explain()}")


def is_away(core: CoreOnVCenter, host: str) -> bool:
    [ref] = core.hand.names("HostSystem", host)
    told = core.hand.client.get(ref, "runtime.inMaintenanceMode")
    assert told is not None
    return bool(told["runtime.inMaintenanceMode"])


def vm_names(core: CoreOnVCenter) -> list[str]:
    """Return the VMs of ours."""
    return [name for name in core.control.inventory()["vms"] if name.startswith("tn-")]
