"""Allocations: quota, placement, waiting, batches, renewal, release."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tenants import ledger
from tenants.actor import SYSTEM
from tenants.errors import Conflict, InvalidSpec, QuotaExceeded
from tenants.models import Allocation, Boundary, GpuDevice, Hold, Host, Outbox, QuotaCharge, Unit, UsageRecord
from tenants.operations import admissions, allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk, Where
from tenants.states import OnShortage, Role, Tier
from tenants.transactions import acting
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


def ask(name: str = "alpha", *units: UnitAsk, **changes: object) -> BareAsk:
    spec = AllocationSpec(
        units=units or (UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),),
        where=changes.pop("where", Where()),  # type: ignore[arg-type]
        term=changes.pop("term", Term()),  # type: ignore[arg-type]
        on_shortage=changes.pop("on_shortage", OnShortage.FAIL),  # type: ignore[arg-type]
    )
    return BareAsk(name, spec)


def whole(count: int = 1) -> UnitAsk:
    return UnitAsk(GpuAsk("H100-80GB", "", count), vcpu=8, memory_gib=32)


@pytest.fixture
def world() -> tuple[object, object, Host]:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    host = factories.host(provider, gpus=2)
    tenant = factories.tenant()
    factories.generous(tenant)
    member = factories.member(tenant, Role.MEMBER)
    return tenant, factories.actor(member), host


def test_an_allocation_is_placed_charged_and_recorded_at_once(world, now: datetime) -> None:
    tenant, actor, host = world

    row = allocations.create(tenant=tenant, ask=ask(), actor=actor, now=now)

    hold = Hold.objects.get()
    assert (hold.kind, hold.size, hold.profile, hold.settled) == ("tenant", 1, "1g.10gb", True)
    assert hold.unit.allocation_id == row.pk
    assert GpuDevice.objects.get(pk=hold.device_id).free == 0xFF & ~(1 << hold.start)
    host.refresh_from_db()
    assert (host.free_vcpu, host.free_memory_gib, host.empty_gpus) == (124, 1008, 1)
    assert dict(QuotaCharge.objects.filter(allocation=row).values_list("dimension", "amount")) == {
        "gpu.H100-80GB.slices": 1,
        "gpu.H100-80GB.1g.10gb": 1,
        "vcpu": 4,
        "memory_gib": 16,
    }
    assert not QuotaCharge.objects.filter(pending=True).exists()
    assert UsageRecord.objects.get().held_to is None
    assert row.boundary.kind == "namespace"
    assert Boundary.objects.count() == 1
    assert set(Outbox.objects.values_list("object_kind", flat=True)) == {"allocation", "boundary"}


def test_beyond_quota_is_refused_with_numbers_and_changes_nothing(now: datetime) -> None:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"]})
    factories.host(provider)
    tenant = factories.tenant()
    for dimension, amount in {"gpu.H100-80GB.slices": 8, "vcpu": 100, "memory_gib": 1000, "boundaries": 1}.items():
        factories.set_limit(tenant, dimension, amount)
    actor = factories.actor(factories.member(tenant))

    with pytest.raises(QuotaExceeded) as caught:
        allocations.create(tenant=tenant, ask=ask("big", whole(2)), actor=actor, now=now)

    assert "gpu.H100-80GB.slices" in caught.value.detail
    assert Allocation.objects.count() == 0
    assert QuotaCharge.objects.count() == 0


def test_no_room_waits_with_its_reason_and_is_taken_up_when_room_comes(world, now: datetime) -> None:
    tenant, actor, _ = world
    first = allocations.create(tenant=tenant, ask=ask("first", whole(2)), actor=actor, now=now)

    second = allocations.create(tenant=tenant, ask=ask("second", whole(1)), actor=actor, now=now)

    assert second.phase == "Waiting"
    assert second.conditions[0]["reason"] == "NoCapacity"
    assert second.conditions[0]["message"] == "All 2 open H100-80GB are held."
    assert QuotaCharge.objects.filter(allocation=second, pending=False).count() == 0
    with acting(SYSTEM):
        assert admissions.admit(second, actor=SYSTEM, now=now) is False
    allocations.release(allocation=first, actor=actor, now=now)
    with acting(SYSTEM):
        allocations.finish(first, now=now)
    with acting(SYSTEM):
        assert admissions.admit(second, actor=SYSTEM, now=now) is True
    assert Unit.objects.get(allocation=second).host_id is not None


def test_a_newcomer_does_not_overtake_who_waits_for_the_same(world, now: datetime) -> None:
    tenant, actor, _ = world
    first = allocations.create(tenant=tenant, ask=ask("first", whole(2)), actor=actor, now=now)
    allocations.create(tenant=tenant, ask=ask("second", whole(1)), actor=actor, now=now)
    allocations.release(allocation=first, actor=actor, now=now)
    with acting(SYSTEM):
        allocations.finish(first, now=now)

    third = allocations.create(tenant=tenant, ask=ask("third", whole(1)), actor=actor, now=now)

    assert third.phase == "Waiting"
    assert third.conditions[0]["message"] == "Others wait for the same room and were first."


def test_a_gang_is_placed_whole_or_not_at_all(world, now: datetime) -> None:
    tenant, actor, _ = world

    row = allocations.create(tenant=tenant, ask=ask("gang", *(whole(1) for _ in range(3))), actor=actor, now=now)

    assert row.phase == "Waiting"
    assert Hold.objects.count() == 0


def test_a_batch_passes_the_quota_together_or_changes_nothing(now: datetime) -> None:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"]})
    factories.host(provider, gpus=8)
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.set_limit(tenant, "gpu.H100-80GB.1g.10gb", 10)
    actor = factories.actor(factories.member(tenant))

    rows = allocations.create_batch(tenant=tenant, asks=[ask(f"a-{i}") for i in range(10)], actor=actor, now=now)
    with pytest.raises(QuotaExceeded):
        allocations.create_batch(tenant=tenant, asks=[ask("b-1"), ask("b-2")], actor=actor, now=now)

    assert [row.phase for row in rows] == ["Provisioning"] * 10
    assert Hold.objects.count() == 10
    assert Allocation.objects.count() == 10


def test_a_live_name_is_refused(world, now: datetime) -> None:
    tenant, actor, _ = world
    allocations.create(tenant=tenant, ask=ask("same"), actor=actor, now=now)

    with pytest.raises(Conflict) as caught:
        allocations.create(tenant=tenant, ask=ask("same"), actor=actor, now=now)

    assert caught.value.specific_code == "name-taken"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"where": Where(tier=Tier.CONFIDENTIAL)}, "where.tier"),
        ({"where": Where(tier=Tier.EXCLUSIVE_GPU)}, "units[0].gpu.profile"),
        ({"term": Term(duration_s=1)}, "term.duration_s"),
    ],
)
def test_a_spec_that_cannot_be_names_the_field(world, now: datetime, change: dict, field: str) -> None:
    tenant, actor, _ = world

    with pytest.raises(InvalidSpec) as caught:
        allocations.create(tenant=tenant, ask=ask("x", **change), actor=actor, now=now)

    assert caught.value.field == field


def test_release_gives_everything_back_once(world, now: datetime) -> None:
    tenant, actor, host = world
    row = allocations.create(tenant=tenant, ask=ask(), actor=actor, now=now)
    later = now + timedelta(hours=1)

    allocations.release(allocation=row, actor=actor, now=later)
    with acting(SYSTEM):
        allocations.finish(row, now=later)
        allocations.finish(row, now=later)

    host.refresh_from_db()
    assert (host.free_vcpu, host.empty_gpus) == (128, 2)
    assert UsageRecord.objects.get().held_to == later
    assert QuotaCharge.objects.filter(allocation=row).count() == 0


def test_a_dedicated_host_is_one_tenants_until_the_last_unit_goes(world, now: datetime) -> None:
    tenant, actor, host = world
    row = allocations.create(
        tenant=tenant,
        ask=ask("mine", whole(1), where=Where(tier=Tier.DEDICATED_HOST)),
        actor=actor,
        now=now,
    )
    other = factories.tenant()
    factories.generous(other)

    theirs = allocations.create(
        tenant=other, ask=ask("theirs"), actor=factories.actor(factories.member(other)), now=now
    )

    assert row.phase == "Provisioning"
    assert theirs.phase == "Waiting"
    allocations.release(allocation=row, actor=actor, now=now)
    with acting(SYSTEM):
        allocations.finish(row, now=now)
    host.refresh_from_db()
    assert host.dedicated_tenant_id is None


def test_the_database_refuses_an_overlapping_hold(world, superuser, now: datetime) -> None:
    tenant, actor, _ = world
    allocations.create(tenant=tenant, ask=ask(), actor=actor, now=now)

    with pytest.raises(Exception, match="hold_no_overlap"):
        superuser.execute(
            "INSERT INTO tenants_hold (id, kind, device_id, host_id, device_number, start, size, slots, during, media,"
            " profile, settled, vcpu, memory_gib, note) SELECT gen_random_uuid(), 'foreign', device_id, host_id,"
            " device_number, start, size, slots, during, false, '', true, 0, 0, '' FROM tenants_hold"
        )


def test_a_unit_is_re_placed_on_another_host_in_one_transaction(now: datetime) -> None:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"]})
    factories.host(provider, gpus=1)
    factories.host(provider, gpus=1)
    tenant = factories.tenant()
    factories.generous(tenant)
    actor = factories.actor(factories.member(tenant))
    row = allocations.create(tenant=tenant, ask=ask("moves", whole(1)), actor=actor, now=now)
    unit = Unit.objects.get(allocation=row)
    before = unit.host_id

    with acting(SYSTEM):
        unit = Unit.objects.select_related("allocation").get(pk=unit.pk)
        moved = ledger.replace(unit, AllocationSpec.from_json(row.spec), avoid=[], now=now)
        again = ledger.replace(unit, AllocationSpec.from_json(row.spec), avoid=[], now=now)

    assert moved is True
    assert again is False
    unit.refresh_from_db()
    assert unit.host_id not in {None, before}
    assert Hold.objects.count() == 1
