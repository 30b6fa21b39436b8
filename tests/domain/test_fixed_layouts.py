"""On GPUs whose layout nobody changes, only what is carved is a place."""

from __future__ import annotations

from datetime import datetime

import pytest

from tenants.models import GpuDevice, Hold, Host, MigDevice
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk, Where
from tenants.states import OnShortage, Role
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

CARVED = ((0, 2, "2g.20gb"), (2, 1, "1g.10gb"), (3, 1, "1g.10gb"), (4, 4, "3g.40gb"))


def ask(name: str, profile: str, count: int = 1) -> BareAsk:
    unit = UnitAsk(GpuAsk("H100-80GB", profile, count), vcpu=1, memory_gib=1)
    return BareAsk(name, AllocationSpec(units=(unit,), where=Where(), term=Term(), on_shortage=OnShortage.FAIL))


def fix(host: Host, *layouts: tuple[tuple[int, int, str], ...]) -> list[GpuDevice]:
    devices = list(host.devices.order_by("number"))
    for device, layout in zip(devices, layouts, strict=True):
        GpuDevice.objects.filter(pk=device.pk).update(layout_change="fixed", mode="mig" if layout else "empty")
        for start, size, profile in layout:
            MigDevice.objects.create(device=device, start=start, size=size, profile=profile, seen_at=factories.NOW)
    return devices


@pytest.fixture
def world():
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    host = factories.host(provider, gpus=2)
    tenant = factories.tenant()
    factories.generous(tenant)
    return tenant, factories.actor(factories.member(tenant, Role.MEMBER)), host


def held() -> list[tuple[int, int, str]]:
    return sorted((hold.device_number, hold.start, hold.profile) for hold in Hold.objects.all())


def test_windows_are_taken_where_they_are_carved_and_nowhere_else(world, now: datetime) -> None:
    tenant, actor, host = world
    first, second = fix(host, CARVED, CARVED)

    for name in ("a", "b"):
        allocations.create(tenant=tenant, ask=ask(name, "3g.40gb"), actor=actor, now=now)
    waiting = allocations.create(tenant=tenant, ask=ask("c", "3g.40gb"), actor=actor, now=now)

    assert held() == [(first.number, 4, "3g.40gb"), (second.number, 4, "3g.40gb")]
    assert waiting.phase == "Waiting"


def test_the_fullest_gpu_is_taken_first(world, now: datetime) -> None:
    tenant, actor, host = world
    first, _ = fix(host, CARVED, CARVED)

    for name, profile in (("a", "3g.40gb"), ("b", "1g.10gb"), ("c", "2g.20gb")):
        allocations.create(tenant=tenant, ask=ask(name, profile), actor=actor, now=now)

    assert held() == [(first.number, 0, "2g.20gb"), (first.number, 2, "1g.10gb"), (first.number, 4, "3g.40gb")]


def test_a_profile_that_is_not_carved_has_no_place(world, now: datetime) -> None:
    tenant, actor, host = world
    fix(host, CARVED, CARVED)

    waiting = allocations.create(tenant=tenant, ask=ask("a", "4g.40gb"), actor=actor, now=now)

    assert held() == []
    assert waiting.phase == "Waiting"


def test_a_whole_gpu_is_one_that_is_not_carved(world, now: datetime) -> None:
    tenant, actor, host = world
    _, second = fix(host, CARVED, ())

    allocations.create(tenant=tenant, ask=ask("a", ""), actor=actor, now=now)
    waiting = allocations.create(tenant=tenant, ask=ask("b", ""), actor=actor, now=now)

    assert held() == [(second.number, 0, "")]
    assert waiting.phase == "Waiting"


def test_gpus_that_are_carved_on_demand_are_the_other_choice(world, now: datetime) -> None:
    tenant, actor, host = world
    fix(host, CARVED, ())
    free = factories.host(host.provider, gpus=1)

    allocations.create(tenant=tenant, ask=ask("a", "4g.40gb"), actor=actor, now=now)

    assert held() == [(free.devices.get().number, 0, "4g.40gb")]
