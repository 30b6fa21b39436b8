"""The roll-up of what is billed: what pages read from it is what the records say, whatever happened since."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from tenants import audit, billed, bills, costs, ledger, usage, usage_days
from tenants.actor import SYSTEM
from tenants.models import (
    Allocation,
    EndpointUsage,
    Price,
    PriceList,
    Unit,
    UsageChange,
    UsageDay,
    UsageRecord,
    UsageRollup,
    UsageStanding,
)
from tenants.operations import allocations, endpoints
from tenants.specs import AllocationSpec, BareAsk, EndpointAsk, GpuAsk, RevisionAsk, Term, UnitAsk
from tenants.states import Role
from tenants.transactions import acting, reading
from tests import factories

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
JULY = datetime(2026, 7, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SLICES = "gpu.H100-80GB.slices"


@pytest.fixture
def world() -> SimpleNamespace:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=4)
    factories.host(provider, gpus=4)
    factories.served_model()
    tenant, other = factories.tenant(), factories.tenant()
    for each in (tenant, other):
        factories.generous(each)
    actor = factories.actor(factories.member(tenant, Role.OWNER))
    listed(JUNE - DAY, slices="0.5", vcpu="0.01", memory_gib="0.002", storage_gib="0.001", token="0.0000004")
    return SimpleNamespace(provider=provider, tenant=tenant, other=other, actor=actor)


def listed(at: datetime, **amounts: str) -> None:
    made = PriceList.objects.create(name=f"list-{uuid4()}", currency="EUR", valid_from=at, created_at=at)
    for item, amount in amounts.items():
        Price.objects.create(price_list=made, item={"slices": SLICES}.get(item, item), amount=Decimal(amount))


def take(world: SimpleNamespace, at: datetime, name: str, *, gpus: int = 1, days: int = 90) -> Allocation:
    """Hold from `at`, bill from a quarter of an hour later."""
    gpu = GpuAsk("H100-80GB", "2g.20gb") if gpus == 1 else GpuAsk("H100-80GB", "", gpus)
    spec = AllocationSpec((UnitAsk(gpu, 4, 16),), storage_gib=7, term=Term(duration_s=days * 86400))
    row = allocations.create(tenant=world.tenant, ask=BareAsk(name, spec), actor=world.actor, now=at)
    with acting(SYSTEM):
        usage.first_ready(row, now=at + 15 * MINUTE)
    return row


def give_back(world: SimpleNamespace, row: Allocation, at: datetime) -> None:
    allocations.release(allocation=row, actor=world.actor, now=at)
    with acting(SYSTEM):
        row.refresh_from_db()
        allocations.finish(row, now=at + MINUTE)


def count(world: SimpleNamespace, endpoint: UUID, hour: datetime, tokens: int = 1000) -> None:
    EndpointUsage.objects.create(
        tenant=world.tenant, endpoint_id=endpoint, hour=hour, requests=1, errors=0, prompt_tokens=tokens,
        completion_tokens=1, key_id=str(uuid4()),
    )  # fmt: skip


def serving(world: SimpleNamespace, at: datetime) -> Any:
    spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    ask = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
    return endpoints.create(tenant=world.tenant, ask=ask, actor=world.actor, now=at).endpoint


def sums(world: SimpleNamespace, now: datetime, start: datetime = JUNE, end: datetime = JULY) -> dict[Any, Decimal]:
    with reading(world.actor):
        rows = billed.read(start, end, now=now, tenants=[world.tenant.pk])
    return {(row.item, row.since): row.quantity for row in rows}


def lines(world: SimpleNamespace, now: datetime, start: datetime = JUNE, end: datetime = JULY) -> dict[str, Fraction]:
    found: dict[str, Fraction] = {}
    with reading(world.actor):
        for line in costs.cost_lines(world.tenant, start, end, now=now):
            if line.billable:
                found[line.item] = found.get(line.item, Fraction(0)) + line.billable
    return found


def agree(world: SimpleNamespace, now: datetime, start: datetime = JUNE, end: datetime = JULY) -> None:
    """Assert that sums from the roll-up, sums without it, and cost lines are the same, to the microsecond."""
    rolled = sums(world, now, start, end)
    kept = list(UsageRollup.objects.all())
    UsageRollup.objects.all().delete()
    from_records = sums(world, now, start, end)
    UsageRollup.objects.bulk_create(kept)
    by_item: dict[str, Fraction] = {}
    for (item, _since), quantity in rolled.items():
        by_item[item] = by_item.get(item, Fraction(0)) + Fraction(quantity)

    assert rolled == from_records
    assert {item: round(float(n), 6) for item, n in by_item.items()} == {
        item: round(float(n), 6) for item, n in lines(world, now, start, end).items()
    }
    assert by_item


def is_used(world: SimpleNamespace) -> bool:
    with reading(world.actor):
        return world.tenant.pk in usage_days.state([world.tenant.pk]).tenants


# --- what it holds --------------------------------------------------------------------------------


def test_a_roll_up_holds_days_up_to_the_last_full_hour_and_what_goes_on(world):
    take(world, JUNE + 20 * HOUR, "alpha")

    usage_days.roll_all(JUNE + 30 * HOUR + 20 * MINUTE)

    row = UsageRollup.objects.get(tenant=world.tenant)
    days = UsageDay.objects.filter(item=SLICES).order_by("day").values_list("day", "quantity")
    assert (row.through, row.ends) == (JUNE + 30 * HOUR, JULY)
    assert list(days) == [
        (JUNE.date(), Decimal(2 * 3600 * 4 - 2 * 900)),
        ((JUNE + DAY).date(), Decimal(2 * 3600 * 6)),
    ]
    assert dict(UsageStanding.objects.values_list("item", "amount")) == {
        SLICES: 2, "vcpu": 4, "memory_gib": 16, "storage_gib": 7,
    }  # fmt: skip
    assert UsageChange.objects.count() == 0


def test_a_full_hour_is_rolled_up_five_minutes_after_its_end(world):
    take(world, JUNE, "alpha")

    usage_days.roll_all(JUNE + 3 * HOUR + 4 * MINUTE)
    early = UsageRollup.objects.get(tenant=world.tenant).through
    usage_days.roll_all(JUNE + 3 * HOUR + 5 * MINUTE)

    assert (early, UsageRollup.objects.get(tenant=world.tenant).through) == (JUNE + 2 * HOUR, JUNE + 3 * HOUR)


def test_who_uses_nothing_moves_on_with_all_others_at_once(world):
    usage_days.roll_all(JUNE + HOUR + 5 * MINUTE)

    done = usage_days.roll_all(JUNE + 5 * DAY + 5 * MINUTE)

    assert done == 0
    assert set(UsageRollup.objects.values_list("through", flat=True)) == {JUNE + 5 * DAY}


# --- exact at every moment ------------------------------------------------------------------------


def test_sums_go_on_from_the_roll_up_with_what_changed_since(world):
    endpoint = serving(world, JUNE + HOUR)
    with acting(SYSTEM):
        usage.first_ready(endpoint.allocation, now=JUNE + 2 * HOUR)
    alpha = take(world, JUNE + 2 * HOUR + 7 * MINUTE, "alpha")
    beta = take(world, JUNE + 3 * DAY, "beta", gpus=2)
    for hours in (2, 30, 31, 100):
        count(world, endpoint.pk, JUNE + hours * HOUR)
    usage_days.roll_all(JUNE + 4 * DAY + 10 * HOUR + 6 * MINUTE)

    agree(world, JUNE + 4 * DAY + 10 * HOUR)
    agree(world, JUNE + 4 * DAY + 10 * HOUR + timedelta(seconds=7, microseconds=13))
    give_back(world, alpha, JUNE + 4 * DAY + 10 * HOUR + 20 * MINUTE)
    take(world, JUNE + 4 * DAY + 10 * HOUR + 10 * MINUTE, "gamma")
    count(world, endpoint.pk, JUNE + 4 * DAY + 10 * HOUR)
    with acting(SYSTEM):
        unit = Unit.objects.select_related("allocation__boundary").get(allocation=beta)
        assert ledger.replace(unit, AllocationSpec.from_json(beta.spec), avoid=[], now=JUNE + 4 * DAY + 11 * HOUR)

    assert is_used(world)
    for minutes in (1, 20, 26, 59, 60, 61, 600, 60 * 24 * 40):
        agree(world, JUNE + 4 * DAY + 10 * HOUR + minutes * MINUTE)


def test_a_change_of_the_past_is_seen_at_once_and_taken_in_by_the_next_roll(world):
    alpha = take(world, JUNE, "alpha")
    endpoint = serving(world, JUNE)
    now = JUNE + 5 * DAY + 6 * MINUTE
    usage_days.roll_all(now)
    before = sums(world, now)

    UsageRecord.objects.filter(allocation_id=alpha.pk).update(billable_from=JUNE + DAY)
    count(world, endpoint.pk, JUNE + 2 * DAY)

    assert not is_used(world)
    agree(world, now)
    assert sums(world, now) != before
    usage_days.roll_all(now + MINUTE)
    assert is_used(world)
    agree(world, now)


def test_a_change_at_the_very_moment_of_the_roll_up_counts_as_before_it(world):
    alpha = take(world, JUNE, "alpha")
    now = JUNE + 5 * HOUR + 6 * MINUTE
    usage_days.roll_all(now)

    with acting(SYSTEM):
        usage.deletion_asked(alpha, now=JUNE + 5 * HOUR)

    assert not is_used(world)
    agree(world, now)
    usage_days.roll_all(now)
    agree(world, now)


def test_a_change_that_commits_after_a_roll_made_meanwhile_is_a_late_one(world, superuser):
    take(world, JUNE, "alpha")
    now = JUNE + 5 * HOUR + 6 * MINUTE

    with superuser.transaction():
        superuser.execute("UPDATE tenants_usagerecord SET billable_to = %s", [JUNE + 3 * HOUR])
        usage_days.roll_all(now)
        seen_meanwhile = is_used(world)

    assert (seen_meanwhile, is_used(world)) == (True, False)
    agree(world, now)
    usage_days.roll_all(now)
    assert is_used(world)
    agree(world, now)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_agree_at_every_moment(world, seed):
    rng = random.Random(seed)
    endpoint, at, held = serving(world, JUNE), JUNE + HOUR, []
    with acting(SYSTEM):
        usage.first_ready(endpoint.allocation, now=JUNE + HOUR)
    for step in range(40):
        at += rng.choice((0, 7, 60, 600)) * MINUTE + timedelta(microseconds=rng.randrange(3))
        match rng.randrange(7):
            case 0 | 1:
                held.append(take(world, at, f"a{step}", gpus=rng.choice((1, 1, 2))))
            case 2 if held:
                give_back(world, held.pop(rng.randrange(len(held))), at + 15 * MINUTE)
            case 3:
                count(world, endpoint.pk, JUNE + rng.randrange((at - JUNE) // HOUR + 1) * HOUR, rng.randrange(9999))
            case 4 if held:
                since = at - rng.randrange(100) * HOUR
                UsageRecord.objects.filter(allocation_id=rng.choice(held).pk, held_to=None).update(billable_from=since)
            case 5:
                listed(at + rng.randrange(1, 900) * MINUTE, slices="1", vcpu="2")
            case _:
                usage_days.roll_all(at)
        if step % 8 == 7:
            agree(world, at + rng.randrange(120) * MINUTE)
            agree(world, at, start=JUNE + rng.randrange((at - JUNE) // HOUR) * HOUR, end=at + HOUR)
    usage_days.roll_all(at)

    assert is_used(world)
    agree(world, at + 5 * MINUTE)


def test_prices_that_change_within_a_day_cut_the_sums_there(world):
    take(world, JUNE, "alpha")
    listed(JUNE + 2 * DAY + 9 * HOUR + 30 * MINUTE, slices="1")
    listed(JUNE + 4 * DAY + 3 * HOUR, vcpu="2")
    usage_days.roll_all(JUNE + 4 * DAY + 10 * HOUR + 6 * MINUTE)

    agree(world, JUNE + 4 * DAY + 12 * HOUR)
    agree(world, JUNE + 4 * DAY + 12 * HOUR, start=JUNE + 5 * HOUR, end=JUNE + 3 * DAY + HOUR)

    found = sums(world, JUNE + 4 * DAY + 12 * HOUR)
    assert {since for item, since in found if item == SLICES} == {
        JUNE, JUNE + 2 * DAY + 9 * HOUR + 30 * MINUTE, JUNE + 4 * DAY + 3 * HOUR,
    }  # fmt: skip


def test_a_month_that_is_over_is_read_by_day(world):
    take(world, JUNE - 3 * DAY, "alpha")
    usage_days.roll_all(JULY + DAY + 6 * MINUTE)

    agree(world, JULY + DAY + HOUR, start=JUNE - 30 * DAY, end=JUNE)
    agree(world, JULY + DAY + HOUR)
    agree(world, JULY + DAY + HOUR, start=JULY, end=JULY + 31 * DAY)


def test_what_is_to_come_is_what_stood_then_each_to_its_own_end(world):
    take(world, JUNE, "short", days=6)
    take(world, JUNE, "long")
    listed(JUNE + 20 * DAY, slices="1")
    now = JUNE + 4 * DAY + 10 * HOUR + 30 * MINUTE
    usage_days.roll_all(now)

    with reading(world.actor):
        exact = bills.running(world.tenant, now, JULY)
        book = billed.Book.read()
        found = bills.running_as_rolled([world.tenant.pk], now, JULY, book)
        elsewhere = bills.running_as_rolled([world.tenant.pk], now, JULY + DAY, book)

    assert found == (exact, JUNE + 4 * DAY + 10 * HOUR)
    assert elsewhere is None


# --- who sees it, and what checks it --------------------------------------------------------------


def test_another_tenant_sees_nothing_of_it(world):
    take(world, JUNE, "alpha")
    usage_days.roll_all(JUNE + DAY + 6 * MINUTE)
    stranger = factories.actor(factories.member(world.other, Role.OWNER))

    with reading(stranger):
        assert billed.read(JUNE, JULY, now=JUNE + 2 * DAY, tenants=[world.tenant.pk]) == []


@pytest.mark.no_audit
def test_a_roll_up_that_says_otherwise_than_the_records_is_found_and_made_anew(world):
    take(world, JUNE, "alpha")
    usage_days.roll_all(JUNE + 3 * DAY + 6 * MINUTE)
    assert audit.findings(("usage-days",)) == []

    UsageDay.objects.filter(item="vcpu", day=(JUNE + DAY).date()).update(quantity=1)
    UsageStanding.objects.filter(item=SLICES).update(amount=3)

    found = audit.findings(("usage-days",))
    assert [(one.subject, one.detail.partition(" at ")[0]) for one in found] == [
        (str(world.tenant.pk), "2026-06-02: vcpu"),
        (str(world.tenant.pk), f"standing: {SLICES}"),
    ]
    usage_days.rebuild(world.tenant, JUNE + 3 * DAY + 6 * MINUTE)
    assert audit.findings(("usage-days",)) == []
    agree(world, JUNE + 3 * DAY + HOUR)
