"""Cost lines and the account of every GPU and hour, from real allocations."""

from __future__ import annotations

import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command

from tenants import costs, hour_account, ledger, usage
from tenants.actor import SYSTEM
from tenants.models import (
    EndpointUsage,
    GpuDevice,
    Price,
    PriceList,
    Tenant,
    Unit,
    UsageRecord,
)
from tenants.operations import allocations, endpoints
from tenants.pricing import Use
from tenants.specs import AllocationSpec, BareAsk, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import HoldKind, Role
from tenants.transactions import acting, reading
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

MIDNIGHT = datetime(2026, 6, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SLICES = "gpu.H100-80GB.slices"


@pytest.fixture
def world() -> SimpleNamespace:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    host = factories.host(provider, gpus=2)
    parent = factories.tenant()
    tenant = factories.tenant(parent=parent)
    for each in (parent, tenant):
        factories.generous(each)
    actor = factories.actor(factories.member(tenant, Role.MEMBER))
    return SimpleNamespace(provider=provider, host=host, parent=parent, tenant=tenant, actor=actor)


def prices(at: datetime, *, provider: Any = None, site: str = "", **amounts: str) -> None:
    made = PriceList.objects.create(
        name=f"list-{uuid4()}", provider=provider, site=site, currency="EUR", valid_from=at, created_at=at
    )
    names = {"slices": SLICES}
    for item, amount in amounts.items():
        Price.objects.create(price_list=made, item=names.get(item, item), amount=Decimal(amount))


def take(world: SimpleNamespace, at: datetime, *units: UnitAsk, name: str = "alpha", storage_gib: int = 0) -> Any:
    spec = AllocationSpec(units=units or (UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),), storage_gib=storage_gib)
    return allocations.create(tenant=world.tenant, ask=BareAsk(name, spec), actor=world.actor, now=at)


def ready(row: Any, at: datetime) -> None:
    with acting(SYSTEM):
        usage.first_ready(row, now=at)


def give_back(row: Any, world: SimpleNamespace, asked: datetime, gone: datetime) -> None:
    allocations.release(allocation=row, actor=world.actor, now=asked)
    with acting(SYSTEM):
        row.refresh_from_db()
        allocations.finish(row, now=gone)


def lines(world: SimpleNamespace, of: Tenant | None = None, *, now: datetime, **options: Any) -> list[costs.CostLine]:
    with reading(world.actor):
        return costs.cost_lines(
            of or world.tenant, MIDNIGHT - timedelta(days=1), MIDNIGHT + timedelta(days=2), now=now, **options
        )


# --- cost lines -----------------------------------------------------------------------------------


def test_held_counts_from_claim_to_release_and_costs_from_ready_to_deletion_asked(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="0.5", vcpu="0.01", memory_gib="0.002")
    row = take(world, MIDNIGHT + HOUR)
    ready(row, MIDNIGHT + 2 * HOUR)
    give_back(row, world, MIDNIGHT + 5 * HOUR, MIDNIGHT + 6 * HOUR)

    found = {line.item: line for line in lines(world, now=MIDNIGHT + 9 * HOUR)}

    assert {item: (line.held, line.billable, line.cost) for item, line in found.items()} == {
        SLICES: (Fraction(20), Fraction(12), Decimal("6.000000")),
        "vcpu": (Fraction(20), Fraction(12), Decimal("0.120000")),
        "memory_gib": (Fraction(80), Fraction(48), Decimal("0.096000")),
    }
    assert {(line.subject.name, line.subject.kind, line.day) for line in found.values()} == {
        ("alpha", "bare", date(2026, 6, 2))
    }


def test_what_was_never_ready_costs_nothing(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="0.5")
    row = take(world, MIDNIGHT)
    give_back(row, world, MIDNIGHT + HOUR, MIDNIGHT + 2 * HOUR)

    found = [line for line in lines(world, now=MIDNIGHT + 9 * HOUR) if line.item == SLICES]

    assert [(line.held, line.billable, line.cost) for line in found] == [
        (Fraction(8), Fraction(0), Decimal("0.000000"))
    ]


def test_a_span_is_cut_at_midnight_and_where_the_price_changes_and_adds_up_exactly(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="1")
    prices(MIDNIGHT + HOUR, slices="3")
    row = take(world, MIDNIGHT - 2 * HOUR)
    ready(row, MIDNIGHT - 2 * HOUR)

    now = MIDNIGHT + HOUR + timedelta(minutes=20)
    found = [line for line in lines(world, now=now) if line.item == SLICES]

    assert [(line.day.day, line.price, line.billable, line.cost) for line in found] == [
        (1, Decimal(1), Fraction(8), Decimal("8.000000")),
        (2, Decimal(1), Fraction(4), Decimal("4.000000")),
        (2, Decimal(3), Fraction(4, 3), Decimal("4.000000")),
    ]
    with reading(world.actor):
        assert costs.spend_month(world.tenant, now=now).total == Decimal("16.000000")


def test_vcpu_and_memory_of_a_unit_with_several_gpus_count_once(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="1", vcpu="1", storage_gib="1")
    row = take(world, MIDNIGHT, UnitAsk(GpuAsk("H100-80GB", "", 2), vcpu=10, memory_gib=20), storage_gib=7)
    ready(row, MIDNIGHT)

    found = {line.item: line.billable for line in lines(world, now=MIDNIGHT + HOUR)}

    assert found == {SLICES: 16, "vcpu": 10, "memory_gib": 20, "storage_gib": 7}


def test_the_price_of_the_provider_stands_before_that_of_the_site_before_the_general_one(
    world: SimpleNamespace,
) -> None:
    long_ago = MIDNIGHT - timedelta(days=9)
    prices(long_ago, slices="1", vcpu="1", memory_gib="1")
    prices(long_ago, site="berlin", slices="2", vcpu="2")
    prices(long_ago, provider=world.provider, slices="3")
    ready(take(world, MIDNIGHT), MIDNIGHT)

    found = {line.item: line.price for line in lines(world, now=MIDNIGHT + HOUR)}

    assert found == {SLICES: Decimal(3), "vcpu": Decimal(2), "memory_gib": Decimal(1)}


def test_what_has_no_price_is_shown_and_named(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="1")
    ready(take(world, MIDNIGHT), MIDNIGHT)

    with reading(world.actor):
        spend = costs.spend_month(world.tenant, now=MIDNIGHT + HOUR)

    assert (spend.total, spend.currency, spend.unpriced) == (Decimal("4.000000"), "EUR", ("memory_gib", "vcpu"))


def test_cost_goes_up_the_tree_and_stops_at_the_tenant_where_asked(world: SimpleNamespace) -> None:
    prices(MIDNIGHT - timedelta(days=9), slices="1")
    ready(take(world, MIDNIGHT), MIDNIGHT)
    owner = factories.actor(factories.member(world.parent, Role.OWNER))

    with reading(owner):
        both = costs.spend_month(world.parent, now=MIDNIGHT + HOUR).total
    seen = SimpleNamespace(**{**vars(world), "actor": owner})

    assert both == Decimal("4.000000")
    assert lines(seen, world.parent, now=MIDNIGHT + HOUR, children=False) == []


def test_a_foreign_tenant_sees_no_line(world: SimpleNamespace) -> None:
    ready(take(world, MIDNIGHT), MIDNIGHT)
    stranger = factories.actor(factories.member(factories.tenant(), Role.OWNER))

    with reading(stranger):
        assert costs.cost_lines(world.tenant, MIDNIGHT, MIDNIGHT + HOUR, now=MIDNIGHT + HOUR) == []


def test_a_moved_unit_goes_on_being_billed_once(world: SimpleNamespace) -> None:
    factories.host(world.provider, gpus=2)
    prices(MIDNIGHT - timedelta(days=9), slices="1")
    row = take(world, MIDNIGHT)
    ready(row, MIDNIGHT)
    with acting(SYSTEM):
        unit = Unit.objects.select_related("allocation__boundary").get()
        assert ledger.replace(unit, AllocationSpec.from_json(row.spec), avoid=[], now=MIDNIGHT + HOUR)

    found = {line.item: line.billable for line in lines(world, now=MIDNIGHT + 2 * HOUR)}

    assert found == {SLICES: 8, "vcpu": 8, "memory_gib": 32}


def test_tokens_cost_by_the_price_of_their_hour(world: SimpleNamespace) -> None:
    factories.served_model()
    prices(MIDNIGHT - timedelta(days=9), token="0.000002")
    prices(MIDNIGHT + HOUR, token="0.000004")
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    made = endpoints.create(
        tenant=world.tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=world.actor, now=MIDNIGHT
    )
    for hour in (0, 1):
        EndpointUsage.objects.create(
            tenant=world.tenant, endpoint_id=made.endpoint.pk, hour=MIDNIGHT + hour * HOUR, requests=1, errors=0,
            prompt_tokens=900_000, completion_tokens=100_000,
        )  # fmt: skip

    found = [line for line in lines(world, now=MIDNIGHT + 2 * HOUR) if line.item == "token"]

    assert [(line.billable, line.cost, line.subject.name) for line in found] == [
        (Fraction(1_000_000), Decimal("2.000000"), "chat"),
        (Fraction(1_000_000), Decimal("4.000000"), "chat"),
    ]


# --- the account of every GPU and hour ------------------------------------------------------------


def test_every_gpu_and_hour_adds_up_exactly(world: SimpleNamespace) -> None:
    device = GpuDevice.objects.order_by("number")[1]
    GpuDevice.objects.update(created_at=MIDNIGHT)
    row = take(world, MIDNIGHT + timedelta(minutes=30))
    ready(row, MIDNIGHT + timedelta(minutes=45))
    with acting(SYSTEM):
        for kind, start in ((HoldKind.FOREIGN, 0), (HoldKind.FAULT, 1), (HoldKind.MAINTENANCE, 2)):
            assert ledger.put(kind, device.pk, start, 1, from_at=MIDNIGHT, to_at=None, note="x", now=MIDNIGHT)
    give_back(row, world, MIDNIGHT + 2 * HOUR, MIDNIGHT + 2 * HOUR + timedelta(seconds=1))

    with reading(SYSTEM):
        total = hour_account.of_estate(MIDNIGHT, MIDNIGHT + 3 * HOUR, now=MIDNIGHT + 3 * HOUR)

    assert total.balanced
    assert total.gpu_hours == 6
    assert total.capacity_slot_hours == 2 * 8 * 3
    assert {use: total.slot_hours(use) for use in Use} == {
        Use.BILLED: Fraction(5),
        Use.HELD_UNBILLED: Fraction(1) + Fraction(4, 3600),
        Use.RESERVED: 0,
        Use.FOREIGN: 3,
        Use.FAULT: 3,
        Use.MAINTENANCE: 3,
        Use.FREE: 48 - 15 - Fraction(4, 3600),
    }


def test_clocks_that_differ_make_no_overlap(world: SimpleNamespace) -> None:
    """Who claims read the clock before he waited for the host; who released it may have read a later one."""
    GpuDevice.objects.update(created_at=MIDNIGHT)
    first = take(world, MIDNIGHT, UnitAsk(GpuAsk("H100-80GB", "", 2), 1, 1))
    ready(first, MIDNIGHT)
    give_back(first, world, MIDNIGHT + HOUR, MIDNIGHT + HOUR)

    second = take(world, MIDNIGHT + HOUR - timedelta(seconds=5), UnitAsk(GpuAsk("H100-80GB"), 1, 1), name="beta")
    ready(second, MIDNIGHT + HOUR - timedelta(seconds=4))
    with reading(SYSTEM):
        total = hour_account.of_estate(MIDNIGHT, MIDNIGHT + 2 * HOUR, now=MIDNIGHT + 2 * HOUR)

    assert UsageRecord.objects.get(allocation_id=second.pk).held_from == MIDNIGHT + HOUR
    assert (total.balanced, total.slot_hours(Use.BILLED), total.slot_hours(Use.FREE)) == (True, 24, 8)


def test_a_gpu_counts_from_when_it_came(world: SimpleNamespace) -> None:
    GpuDevice.objects.update(created_at=MIDNIGHT + timedelta(minutes=15))

    with reading(SYSTEM):
        total = hour_account.of_estate(MIDNIGHT, MIDNIGHT + HOUR, now=MIDNIGHT + HOUR)

    assert (total.capacity_slot_hours, total.balanced) == (12, True)


@pytest.mark.no_audit
def test_overlapping_records_and_a_mask_that_lies_are_found_and_end_the_command_with_3(
    world: SimpleNamespace, superuser: Any
) -> None:
    GpuDevice.objects.update(created_at=MIDNIGHT)
    take(world, MIDNIGHT)
    record = UsageRecord.objects.get()
    UsageRecord.objects.filter(pk=record.pk).update(held_to=MIDNIGHT + HOUR)
    superuser.execute(
        "INSERT INTO tenants_usagerecord (id, hold_id, kind, device_id, provider_id, start, size, profile, vcpu, "
        "memory_gib, held_from, held_to, rule) SELECT gen_random_uuid(), hold_id, 'foreign', device_id, "
        "provider_id, start, 1, '', 0, 0, held_from, held_to, '-' FROM tenants_usagerecord"
    )
    superuser.execute("UPDATE tenants_usagerecord SET held_from = %s WHERE kind = 'foreign'", [MIDNIGHT])

    with reading(SYSTEM):
        total = hour_account.of_estate(MIDNIGHT, MIDNIGHT + 2 * HOUR, now=MIDNIGHT + 2 * HOUR)
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("hour_account", start=MIDNIGHT.isoformat(), end="", stdout=out)

    assert not total.balanced
    assert [m.device for m in total.mismatches] == [record.device_id, record.device_id]
    assert ended.value.code == 3
    assert "does not add up" in out.getvalue()


def test_the_command_says_that_it_adds_up(world: SimpleNamespace) -> None:
    out = io.StringIO()

    call_command("hour_account", stdout=out)

    assert "adds up exactly" in out.getvalue()
