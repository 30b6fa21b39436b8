"""On GPUs whose layout nobody changes, only what is carved is a place."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime
from uuid import UUID

import pytest
from django.db import connection

from tenants import geometry, gpu_catalogue, ledger
from tenants.actor import SYSTEM
from tenants.models import GpuDevice, Hold, Host, MigDevice
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk, Where
from tenants.states import OnShortage, Role
from tenants.transactions import acting
from tests import factories

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

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


def test_many_at_once_are_placed_by_the_same_rule(world, now: datetime) -> None:
    tenant, actor, host = world
    first, second = fix(host, CARVED, CARVED)

    asks = [ask(f"a{number}", "3g.40gb") for number in range(3)]
    rows = allocations.create_batch(tenant=tenant, asks=asks, actor=actor, now=now)

    assert held() == [(first.number, 4, "3g.40gb"), (second.number, 4, "3g.40gb")]
    assert sorted(row.phase for row in rows).count("Waiting") == 1


def test_several_whole_gpus_are_of_one_host_and_not_carved(world, now: datetime) -> None:
    tenant, actor, host = world
    fix(host, CARVED, ())
    whole = factories.host(host.provider, gpus=2)
    fix(whole, (), ())

    allocations.create(tenant=tenant, ask=ask("a", "", 2), actor=actor, now=now)
    waiting = allocations.create(tenant=tenant, ask=ask("b", "", 2), actor=actor, now=now)

    assert held() == [(device.number, 0, "") for device in whole.devices.order_by("number")]
    assert waiting.phase == "Waiting"


def test_the_ledger_itself_refuses_a_window_that_is_not_carved(world, now: datetime) -> None:
    tenant, actor, host = world
    first, second = fix(host, CARVED, ())
    row = allocations.create(tenant=tenant, ask=ask("a", "3g.40gb"), actor=actor, now=now)
    unit = row.units.get()

    with acting(SYSTEM):
        ledger.release(unit, now=now)
        taken = [
            ledger.claim_windows(row, unit, host, [device], [start], now=now)
            for device, start in ((first, 0), (second, 0), (second, 4), (first, 4))
        ]

    assert taken == [False, False, False, True]


def test_what_is_carved_is_kept_with_the_gpu_and_counted_at_its_host(world) -> None:
    _, _, host = world
    first, second = fix(host, CARVED, ())

    def counted() -> tuple[str, str, int]:
        words = [GpuDevice.objects.values_list("layout", flat=True).get(pk=each.pk) for each in (first, second)]
        return (*words, Host.objects.values_list("carved_gpus", flat=True).get(pk=host.pk))

    assert counted() == ("2g.20gb@0 1g.10gb@2 1g.10gb@3 3g.40gb@4", "", 1)
    MigDevice.objects.filter(device=first, start__gte=2).delete()
    GpuDevice.objects.filter(pk=second.pk).update(mode="unknown")
    assert counted() == ("2g.20gb@0", "", 2)
    MigDevice.objects.filter(device=first).delete()
    GpuDevice.objects.filter(pk=second.pk).update(layout_change="dynamic")
    assert counted() == ("", "", 1)
    GpuDevice.objects.filter(pk=first.pk).update(mode="empty")
    assert counted() == ("", "", 0)


def gpus_read() -> int:
    """Return how many rows of GPUs this connection has read since its counts were last sent."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'tenants_gpudevice'"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.parametrize("analysed", [False, True], ids=["new", "analysed"])
@pytest.mark.parametrize("layout", [CARVED, ()], ids=["carved", "whole"])
def test_a_place_is_found_without_reading_the_estate(world, superuser, now: datetime, layout, analysed) -> None:
    tenant, actor, host = world
    fix(host, CARVED, ())
    row = allocations.create(tenant=tenant, ask=ask("a", "3g.40gb" if layout else ""), actor=actor, now=now)
    unit = row.units.get()
    for _ in range(40):
        fix(factories.host(host.provider, gpus=8), *[layout] * 8)
    if analysed:
        superuser.execute("ANALYZE tenants_gpudevice, tenants_host, tenants_hold")

    with acting(SYSTEM):
        before = gpus_read()
        moved = ledger.replace(unit, AllocationSpec.from_json(row.spec), avoid=[], now=now)
        read = gpus_read() - before

    assert moved
    assert read < 60, "of 322 GPUs"


# --- any estate -----------------------------------------------------------------------------------

PROFILES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "")


def carve(rng: random.Random) -> tuple[tuple[int, int, str], ...]:
    """Return a random legal layout, sometimes an empty one."""
    windows: list[tuple[int, int, str]] = []
    for _ in range(rng.choice((0, 3, 8))):
        name = rng.choice(PROFILES[:-1])
        start = rng.choice(sorted(gpu_catalogue.profile("H100-80GB", name).starts))
        if geometry.legal_packing("H100-80GB", [*((at, each) for at, _, each in windows), (start, name)]):
            windows.append((start, gpu_catalogue.profile("H100-80GB", name).size, name))
    return tuple(sorted(windows))


def fits(device: GpuDevice, name: str) -> bool:
    """Say whether a GPU has a place, by the plain reading of its rows."""
    if device.layout_change != "fixed":
        return bool(geometry.legal_starts("H100-80GB", name, device.free))
    windows = list(device.mig_devices.all())
    if name == "":
        return not windows and device.mode not in {"mig", "unknown"} and device.free == 0xFF
    masks = [geometry.window_mask(window.start, window.size) for window in windows if window.profile == name]
    return any(device.free & mask == mask for mask in masks)


@pytest.mark.parametrize("binding", ["device", "gpu", "host"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=[pytest.mark.slow]) for n in range(1, 4))])
def test_on_any_estate_fixed_gpus_keep_their_layout_and_what_fits_is_found(now: datetime, seed: int, binding) -> None:
    rng = random.Random(f"{seed}{binding}")
    bindings = {"boundary_kinds": ["namespace"], "bindings": [binding]}
    providers = [factories.provider(capabilities=bindings) for _ in range(2)]
    for number in range(4):
        host = factories.host(providers[number % 2], gpus=rng.choice((1, 2, 3)), binding=binding)
        change = rng.choice(("fixed", "on-idle", "dynamic", "mixed"))
        for device in host.devices.all():
            layout = carve(rng)
            how = rng.choice(("fixed", "dynamic")) if change == "mixed" else change
            mode = "mig" if layout else rng.choice(("empty", "empty", "whole", "unknown"))
            GpuDevice.objects.filter(pk=device.pk).update(layout_change=how, mode=mode)
            MigDevice.objects.bulk_create(
                MigDevice(device=device, start=start, size=size, profile=name, seen_at=factories.NOW)
                for start, size, name in layout
            )
    tenant = factories.tenant()
    factories.generous(tenant)
    actor = factories.actor(factories.member(tenant, Role.MEMBER))

    for number in range(24):
        name, count = rng.choice(PROFILES), 1
        if name == "":
            count = rng.choice((1, 1, 2))
        row = allocations.create(tenant=tenant, ask=ask(f"a{number}", name, count), actor=actor, now=now)
        if row.phase != "Waiting":
            continue
        room: dict[UUID, list[str]] = defaultdict(list)
        for device in GpuDevice.objects.prefetch_related("mig_devices"):
            if fits(device, name) and (binding == "device" or device.layout_change == "fixed"):
                room[device.host_id].append(f"{device.number} {device.layout_change} {device.layout} {device.free:08b}")
        if binding != "device":  # beside other GPUs, a host's own choice may forbid a group
            room = {host: lines for host, lines in room.items() if count == 1 or wholly_fixed(host)}
        assert [lines for lines in room.values() if len(lines) >= count] == [], (name, count)

    assert Hold.objects.exists()
    for hold in Hold.objects.filter(device__layout_change="fixed").select_related("device"):
        carved = [(each.start, each.size, each.profile) for each in hold.device.mig_devices.all()]
        if hold.profile:
            assert (hold.start, hold.size, hold.profile) in carved
        else:
            assert carved == []
            assert hold.device.mode not in {"mig", "unknown"}


def wholly_fixed(host: UUID) -> bool:
    return not GpuDevice.objects.filter(host_id=host).exclude(layout_change="fixed").exists()
