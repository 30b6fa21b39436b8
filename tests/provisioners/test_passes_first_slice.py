"""An endpoint, a machine and a namespace from the asking to Ready and away again, on the sandbox's core."""

from __future__ import annotations

from typing import Any

import pytest

from tenants.models import Allocation, Boundary, GatewayReplica, GpuDevice, Hold, Host, Intent, QuotaCharge, UsageRecord
from tenants.operations import allocations, endpoints, machines, namespaces
from tenants.specs import (
    AllocationSpec,
    BareAsk,
    EndpointAsk,
    GpuAsk,
    MachineAsk,
    NamespaceAsk,
    RevisionAsk,
    UnitAsk,
    Where,
)
from tenants.states import BoundaryKind
from tests import factories
from tests.drive import World, fresh, is_gone, is_ready, world

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def here() -> World:
    return world()


@pytest.fixture
def owner() -> Any:
    tenant = factories.tenant()
    factories.generous(tenant, "H100-80GB", "A100-80GB")
    return factories.actor(factories.member(tenant)), tenant


def unit(product: str = "H100-80GB", profile: str = "1g.10gb") -> UnitAsk:
    return UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16)


def endpoint_ask(name: str = "chat", *units: UnitAsk, kind: BoundaryKind = BoundaryKind.NAMESPACE) -> EndpointAsk:
    factories.served_model("llama-3-1-8b")
    return EndpointAsk(
        name, RevisionAsk("llama-3-1-8b"), AllocationSpec(units=units or (unit(),), where=Where(kind=kind))
    )


def assert_nothing_left(here: World) -> None:
    from provisioners.sandbox import views

    assert views.leftovers(here.estate.state) == []
    assert Hold.objects.count() == 0
    assert QuotaCharge.objects.count() == 0
    assert Intent.objects.filter(settled_at__isnull=True).count() == 0
    for device in GpuDevice.objects.all():
        assert device.free == (1 << device.slots) - 1
    for host in Host.objects.all():
        assert (host.free_vcpu, host.free_memory_gib) == (host.total_vcpu, host.total_memory_gib)
    assert UsageRecord.objects.filter(held_to__isnull=True).count() == 0
    assert GatewayReplica.objects.filter(removed_at__isnull=True).count() == 0


def test_an_endpoint_in_a_namespace_becomes_ready_and_leaves_nothing(here: World, owner: Any) -> None:
    actor, tenant = owner
    made = endpoints.create(tenant=tenant, ask=endpoint_ask(), actor=actor, now=here.clock())

    here.drive(is_ready(made.endpoint))

    row = fresh(made.endpoint)
    assert row.address.startswith("http://sandbox.invalid/gateways/")
    assert (row.observed["model"], row.observed["revision"]) == ("chat", 1)
    here.drive(lambda: fresh(row.allocation).expires_at is not None)
    assert UsageRecord.objects.get(kind="tenant").billable_from is not None

    endpoints.delete(endpoint=row, actor=actor, now=here.clock())
    here.drive(is_gone(row, row.allocation, row.boundary))
    assert_nothing_left(here)


def test_an_endpoint_in_vms_becomes_ready_and_leaves_nothing(here: World, owner: Any) -> None:
    actor, tenant = owner
    ask = endpoint_ask("chat", unit("A100-80GB"), unit("A100-80GB"), kind=BoundaryKind.VM)
    made = endpoints.create(tenant=tenant, ask=ask, actor=actor, now=here.clock())

    here.drive(is_ready(made.endpoint))

    row = fresh(made.endpoint)
    assert [u["ready"] for u in row.observed["units"]] == [True, True]
    assert GatewayReplica.objects.filter(unit__isnull=False).count() == 2

    endpoints.delete(endpoint=row, actor=actor, now=here.clock())
    here.drive(is_gone(row, row.allocation, row.boundary))
    assert_nothing_left(here)


def test_a_machine_becomes_ready_and_leaves_nothing(here: World, owner: Any) -> None:
    actor, tenant = owner
    ask = MachineAsk("box", AllocationSpec(units=(unit("A100-80GB", ""),)), "ubuntu-24.04", 40)
    row = machines.create(tenant=tenant, ask=ask, actor=actor, now=here.clock())

    here.drive(is_ready(row))
    assert fresh(row).address.endswith(":22")

    machines.delete(machine=row, actor=actor, now=here.clock())
    row = fresh(row)
    here.drive(is_gone(row, row.allocation, row.boundary))
    assert_nothing_left(here)


def test_a_namespace_becomes_ready_and_its_boundary_goes_before_its_holds(here: World, owner: Any) -> None:
    actor, tenant = owner
    ask = NamespaceAsk("play", AllocationSpec(units=(unit(),)))
    row = namespaces.create(tenant=tenant, ask=ask, actor=actor, now=here.clock())

    here.drive(is_ready(row))

    namespaces.delete(namespace=row, actor=actor, now=here.clock())
    row = fresh(row)
    here.drive(is_gone(row, row.allocation, row.boundary))
    assert Boundary.objects.get().released_at <= Allocation.objects.get().released_at
    assert_nothing_left(here)


def test_bare_capacity_is_granted_and_taken_back_from_a_boundary_that_stays(here: World, owner: Any) -> None:
    actor, tenant = owner
    ask = AllocationSpec(units=(unit(),))
    keep = allocations.create(tenant=tenant, ask=BareAsk("keep", ask), actor=actor, now=here.clock())
    give = allocations.create(tenant=tenant, ask=BareAsk("give", ask), actor=actor, now=here.clock())
    here.drive(lambda: is_ready(keep)() and is_ready(give)())

    allocations.release(allocation=give, actor=actor, now=here.clock())
    here.drive(is_gone(give))

    assert fresh(keep).phase == "Ready"
    assert Boundary.objects.get().observed["granted"] == [str(keep.pk)]
    assert Hold.objects.count() == 1
