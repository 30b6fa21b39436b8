"""What is billed follows the size of each time: another size never counts anew what was used before it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from uuid import uuid4

import pytest
from django.db import DatabaseError, IntegrityError, transaction

from provisioners import housekeeping
from tenants import audit, billed, bills, costs, ledger, usage, usage_days
from tenants.actor import SYSTEM
from tenants.models import Allocation, Host, Price, PriceList, Unit, UnitSize, UsageChange, UsageRollup
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, Term, UnitAsk
from tenants.states import Role
from tenants.transactions import acting, reading
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
JULY = datetime(2026, 7, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
HOUR_US = 3_600_000_000


@pytest.fixture
def world() -> SimpleNamespace:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=4)
    factories.host(provider, gpus=4)
    tenant = factories.tenant()
    factories.generous(tenant)
    actor = factories.actor(factories.member(tenant, Role.OWNER))
    made = PriceList.objects.create(name="list", currency="EUR", valid_from=JUNE - DAY, created_at=JUNE)
    for item, amount in {"vcpu": "0.01", "memory_gib": "0.002"}.items():
        Price.objects.create(price_list=made, item=item, amount=Decimal(amount))
    return SimpleNamespace(tenant=tenant, actor=actor)


def take(world: SimpleNamespace, at: datetime, *, gpus: int = 1) -> Allocation:
    """Hold 4 vCPU and 16 GiB from `at`, billed from a quarter of an hour later."""
    gpu = GpuAsk("H100-80GB", "2g.20gb") if gpus == 1 else GpuAsk("H100-80GB", "", gpus)
    spec = AllocationSpec((UnitAsk(gpu, 4, 16),), term=Term(duration_s=90 * 86400))
    row = allocations.create(tenant=world.tenant, ask=BareAsk(f"a-{uuid4().hex[:8]}", spec), actor=world.actor, now=at)
    with acting(SYSTEM):
        usage.first_ready(row, now=at + HOUR / 4)
    return row


def unit_of(row: Allocation) -> Unit:
    return Unit.objects.select_related("allocation__boundary").get(allocation=row)


def resized(row: Allocation, vcpu: int, memory_gib: int, at: datetime) -> str:
    with acting(SYSTEM):
        return ledger.resize(unit_of(row), vcpu=vcpu, memory_gib=memory_gib, disk_before_gib=0, now=at)


def give_back(world: SimpleNamespace, row: Allocation, at: datetime) -> None:
    allocations.release(allocation=row, actor=world.actor, now=at)
    with acting(SYSTEM):
        row.refresh_from_db()
        allocations.finish(row, now=at + HOUR / 60)


def by_lines(world: SimpleNamespace, start: datetime, end: datetime, now: datetime) -> dict[str, Fraction]:
    found: dict[str, Fraction] = {}
    with reading(world.actor):
        for line in costs.cost_lines(world.tenant, start, end, now=now):
            if line.item in {"vcpu", "memory_gib"} and line.billable:
                found[line.item] = found.get(line.item, Fraction(0)) + line.billable
    return found


def by_sums(world: SimpleNamespace, start: datetime, end: datetime, now: datetime) -> dict[str, Fraction]:
    found: dict[str, Fraction] = {}
    with reading(world.actor):
        for row in billed.read(start, end, now=now, tenants=[world.tenant.pk]):
            if row.item in {"vcpu", "memory_gib"}:
                found[row.item] = found.get(row.item, Fraction(0)) + Fraction(row.quantity)
    return found


def by_spans(world: SimpleNamespace, rows: list[Allocation], now: datetime) -> dict[str, Fraction]:
    found: dict[str, Fraction] = {}
    with reading(world.actor):
        for row in rows:
            for span in bills.spans(world.tenant, row.pk, JUNE, JULY, now=now):
                if span.billed and span.item in {"vcpu", "memory_gib"}:
                    hours = Fraction((span.end - span.start) // MICROSECOND * span.amount, HOUR_US)
                    found[span.item] = found.get(span.item, Fraction(0)) + hours
    return found


def rounded(sums: dict[str, Fraction]) -> dict[str, float]:
    """Return sums as the roll-up tells them: exact to the microsecond."""
    return {item: round(float(hours), 6) for item, hours in sums.items()}


# --- one change -----------------------------------------------------------------------------------------


def test_what_was_used_before_counts_by_the_size_that_it_had(world):
    row = take(world, JUNE)
    before = by_lines(world, JUNE, JULY, JUNE + 10 * HOUR)

    assert resized(row, 8, 64, JUNE + 10 * HOUR) == "done"

    assert by_lines(world, JUNE, JUNE + 10 * HOUR, JUNE + 20 * HOUR) == before
    assert by_lines(world, JUNE, JULY, JUNE + 12 * HOUR) == {
        "vcpu": before["vcpu"] + 8 * 2, "memory_gib": before["memory_gib"] + 64 * 2,
    }  # fmt: skip


def test_spans_of_what_stayed_the_same_are_not_cut(world):
    row = take(world, JUNE)
    resized(row, 8, 16, JUNE + 10 * HOUR)

    with reading(world.actor):
        spans = bills.spans(world.tenant, row.pk, JUNE, JULY, now=JUNE + 12 * HOUR)

    billed_spans = [(s.item, s.amount, s.start, s.end) for s in spans if s.billed and not s.item.startswith("gpu")]
    assert sorted(billed_spans) == [
        ("memory_gib", 16, JUNE + HOUR / 4, JUNE + 12 * HOUR),
        ("vcpu", 4, JUNE + HOUR / 4, JUNE + 10 * HOUR),
        ("vcpu", 8, JUNE + 10 * HOUR, JUNE + 12 * HOUR),
    ]


def test_a_roll_up_hears_of_another_size(world):
    row = take(world, JUNE)
    now = JUNE + 5 * DAY + 20 * HOUR / 60
    usage_days.roll_all(now)

    resized(row, 8, 64, JUNE + 3 * DAY)  # committed late

    assert UsageChange.objects.filter(allocation_id=row.pk, at=JUNE + 3 * DAY).exists()
    assert rounded(by_sums(world, JUNE, JULY, now)) == rounded(by_lines(world, JUNE, JULY, now))
    usage_days.roll_all(now + HOUR)
    assert rounded(by_sums(world, JUNE, JULY, now + HOUR)) == rounded(by_lines(world, JUNE, JULY, now + HOUR))
    assert audit.findings((audit.USAGE_DAYS,)) == []


def test_what_is_to_come_is_told_by_the_new_size(world):
    row = take(world, JUNE)
    now = JUNE + 10 * DAY
    with reading(world.actor):
        before = bills.running(world.tenant, now, JULY)
    resized(row, 8, 32, now)

    with reading(world.actor):
        assert bills.running(world.tenant, now, JULY) == 2 * before


def test_former_sizes_outlive_the_unit(world):
    row = take(world, JUNE)
    resized(row, 8, 64, JUNE + 10 * HOUR)
    give_back(world, row, JUNE + 20 * HOUR)
    before = by_lines(world, JUNE, JULY, JULY)

    housekeeping.run(JULY + timedelta(days=100))

    assert not Unit.objects.exists()
    assert by_lines(world, JUNE, JULY, JULY) == before
    UsageRollup.objects.all().delete()
    assert rounded(by_sums(world, JUNE, JULY, JULY)) == rounded(before)


# --- what the database refuses ----------------------------------------------------------------------------


def test_a_unit_gets_no_other_size_past_its_history(world):
    row = take(world, JUNE)

    for changes in ({"vcpu": 8}, {"memory_gib": 1}, {"sized_at": JUNE}, {"vcpu": 8, "sized_at": JUNE + HOUR}):
        with pytest.raises(IntegrityError, match="ledger_resize"), transaction.atomic():
            Unit.objects.filter(allocation=row).update(**changes)


def test_a_size_that_it_had_cannot_be_changed_or_forgotten(world):
    row = take(world, JUNE)
    resized(row, 8, 64, JUNE + HOUR)

    for act in (lambda: UnitSize.objects.update(vcpu=1), lambda: UnitSize.objects.all().delete()):
        for who in (SYSTEM, world.actor):
            with pytest.raises(DatabaseError, match="permission denied"), acting(who):
                act()


def test_two_changes_of_one_moment_follow_each_other(world):
    row = take(world, JUNE)
    resized(row, 8, 64, JUNE + HOUR)
    resized(row, 2, 8, JUNE + HOUR)

    assert list(UnitSize.objects.order_by("until").values_list("vcpu", "until")) == [
        (4, JUNE + HOUR), (8, JUNE + HOUR + MICROSECOND),
    ]  # fmt: skip
    assert audit.findings(audit.LEDGER[:-1]) == []


def test_a_host_gives_no_more_than_it_has(world):
    row = take(world, JUNE)
    host = Host.objects.get(pk=unit_of(row).host_id)

    assert resized(row, 4 + host.free_vcpu + 1, 16, JUNE + HOUR) == "full"
    assert resized(row, 4, 16 + host.free_memory_gib + 1, JUNE + HOUR) == "full"
    assert resized(row, 4 + host.free_vcpu, 16 + host.free_memory_gib, JUNE + HOUR) == "done"
    host.refresh_from_db()
    assert (host.free_vcpu, host.free_memory_gib) == (0, 0)
    assert audit.findings(audit.LEDGER[:-1]) == []


def test_what_is_moved_just_after_it_was_resized_takes_its_new_size_along(world):
    row = take(world, JUNE)
    read_before = unit_of(row)
    resized(row, 8, 64, JUNE + HOUR)

    with acting(SYSTEM):
        spec = AllocationSpec.from_json(row.spec)
        assert ledger.replace(read_before, spec, avoid=[], now=JUNE + 2 * HOUR)

    assert audit.findings(audit.LEDGER[:-1]) == []
    assert Host.objects.get(pk=unit_of(row).host_id).free_vcpu == Host.objects.first().total_vcpu - 8


# --- any sequence -----------------------------------------------------------------------------------------


@dataclass
class Told:
    """What one allocation must be billed: by pieces of time, each at its size."""

    row: Allocation
    size: tuple[int, int]
    since: datetime
    pieces: list[tuple[datetime, datetime, int, int]] = field(default_factory=list)
    is_open: bool = True

    def end(self, at: datetime) -> None:
        if self.since < at:
            self.pieces.append((self.since, at, *self.size))
        self.since = max(self.since, at)

    def hours(self, start: datetime, end: datetime, now: datetime) -> dict[str, Fraction]:
        open_piece = [(self.since, now, *self.size)] if self.is_open and self.since < now else []
        found = {"vcpu": Fraction(0), "memory_gib": Fraction(0)}
        for left, right, vcpu, memory in [*self.pieces, *open_piece]:
            length = min(right, end, now) - max(left, start)
            if length > timedelta(0):
                found["vcpu"] += Fraction(length // MICROSECOND * vcpu, HOUR_US)
                found["memory_gib"] += Fraction(length // MICROSECOND * memory, HOUR_US)
        return found


def expected(told: list[Told], start: datetime, end: datetime, now: datetime) -> dict[str, Fraction]:
    total = {"vcpu": Fraction(0), "memory_gib": Fraction(0)}
    for one in told:
        for item, hours in one.hours(start, end, now).items():
            total[item] += hours
    return {item: hours for item, hours in total.items() if hours}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_sizes_and_time_is_billed_piece_by_piece_and_the_past_stays(world, seed):
    dice = random.Random(seed)
    now, told, past = JUNE, [], []
    for step in range(20):
        now += timedelta(seconds=dice.randint(1, 2 * 86400), microseconds=dice.randint(0, 999_999))
        live = [one for one in told if one.is_open]
        act = dice.choice(("take", "resize", "resize", "resize", "move", "give back", "roll"))
        if act == "take" or not live:
            told.append(Told(take(world, now, gpus=dice.choice((1, 2))), (4, 16), now + HOUR / 4))
        elif act == "resize":
            one, size = dice.choice(live), (dice.randint(1, 24), dice.randint(1, 128))
            if resized(one.row, *size, now) == "done":
                one.end(now)
                one.size = size
        elif act == "move":
            with acting(SYSTEM):
                unit = unit_of(dice.choice(live).row)
                ledger.replace(unit, AllocationSpec.from_json(unit.allocation.spec), avoid=[], now=now)
        elif act == "give back":
            one = dice.choice(live)
            one.end(now)
            one.is_open = False
            give_back(world, one.row, now)
        else:
            usage_days.roll_all(now)
        later = now + timedelta(seconds=dice.randint(0, 86400))
        for start, end in ((JUNE, later), (now - dice.random() * (now - JUNE), later)):
            assert by_lines(world, start, end, later) == expected(told, start, end, later), (seed, step)
        wanted = rounded(expected(told, JUNE, later, later))
        assert rounded(by_sums(world, JUNE, later, later)) == wanted, (seed, step)
        for start, end, was in past:
            assert by_lines(world, start, end, later) == was, (seed, step, start, end)
        past.append((JUNE, now, by_lines(world, JUNE, now, now)))

    assert by_spans(world, [one.row for one in told], JULY) == expected(told, JUNE, JULY, JULY)
    assert UnitSize.objects.exists()
    assert audit.findings(audit.LEDGER) == []
