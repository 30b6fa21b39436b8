"""Prices across their changes, and the account of a GPU that always adds up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import pricing
from tenants.gpu_catalogue import BadDimension
from tenants.pricing import DoubleBooked, Interval, NoPrice, Price, PriceInThePast, PriceList, Use, account, split_hours

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SLICES = "gpu.H100-80GB.slices"


def prices(*rows: tuple[str, str, datetime] | tuple[str, str, datetime, str, str]) -> PriceList:
    return PriceList(tuple(Price(row[0], Decimal(row[1]), *row[2:]) for row in rows))


def test_a_span_is_charged_by_the_price_of_each_of_its_parts():
    listed = prices((SLICES, "0.50", NOW), (SLICES, "0.40", NOW + DAY), ("vcpu", "0.01", NOW))

    cost = listed.cost({SLICES: 8, "vcpu": 4}, NOW + 12 * HOUR, NOW + 36 * HOUR)

    assert [(c.item, c.price.amount, c.start, c.end) for c in cost.charges] == [
        (SLICES, Decimal("0.50"), NOW + 12 * HOUR, NOW + DAY),
        (SLICES, Decimal("0.40"), NOW + DAY, NOW + 36 * HOUR),
        ("vcpu", Decimal("0.01"), NOW + 12 * HOUR, NOW + 36 * HOUR),
    ]
    assert cost.total == Decimal("87.36")  # 8×12×0.50 + 8×12×0.40 + 4×24×0.01
    assert listed.hourly({SLICES: 8, "vcpu": 4}, NOW) == Decimal("4.04")


def test_the_provider_binds_tighter_than_the_site_and_the_site_than_the_rest():
    listed = prices(
        ("vcpu", "1", NOW), ("vcpu", "2", NOW, "", "berlin"), ("vcpu", "3", NOW, "vc-1", ""), ("vcpu", "4", NOW + DAY)
    )

    assert listed.at("vcpu", NOW + DAY).amount == 4
    assert listed.at("vcpu", NOW + DAY, site="berlin").amount == 2
    assert listed.at("vcpu", NOW + DAY, provider="vc-1", site="berlin").amount == 3
    assert listed.at("vcpu", NOW + DAY, provider="vc-2", site="paris").amount == 4
    charges = listed.cost({"vcpu": 1}, NOW, NOW + 2 * DAY, site="berlin").charges
    assert [(c.start, c.end) for c in charges] == [(NOW, NOW + 2 * DAY)]


def test_a_missing_price_is_an_error_and_never_free():
    listed = prices(("vcpu", "1", NOW, "vc-1", ""))

    with pytest.raises(NoPrice, match="vcpu has no price at vc-2 on 2026-11-02"):
        listed.at("vcpu", NOW, provider="vc-2")
    with pytest.raises(NoPrice):
        listed.cost({"vcpu": 1}, NOW - HOUR, NOW + HOUR, provider="vc-1")


def test_counts_that_have_no_price_by_the_hour_cost_nothing_by_themselves():
    listed = prices((SLICES, "1", NOW))

    cost = listed.cost({SLICES: 1, "gpu.H100-80GB.1g.10gb": 1, "endpoints": 1}, NOW, NOW + HOUR)

    assert cost.total == 1
    assert [charge.item for charge in cost.charges] == [SLICES]


def test_a_price_never_changes_backwards():
    listed = prices(("vcpu", "1", NOW))

    later = listed.adding(Price("vcpu", Decimal(2), NOW + HOUR), now=NOW)

    assert (listed.version, later.version) == (1, 2)
    with pytest.raises(PriceInThePast, match="cannot start in the past"):
        listed.adding(Price("vcpu", Decimal(2), NOW - HOUR), now=NOW)
    with pytest.raises(ValueError, match="already"):
        later.adding(Price("vcpu", Decimal(3), NOW + HOUR), now=NOW)


@pytest.mark.parametrize(
    ("item", "amount", "error"),
    [
        ("endpoints", Decimal(1), ValueError),
        ("gpu.H100-80GB.1g.10gb", Decimal(1), ValueError),
        ("gpu.H1.slices", Decimal(1), BadDimension),
        ("vcpu", Decimal(-1), ValueError),
        ("vcpu", Decimal("NaN"), ValueError),
        ("vcpu", 0.1, TypeError),
    ],
)
def test_what_cannot_be_a_price_is_refused(item, amount, error):
    with pytest.raises(error):
        Price(item, amount, NOW)


def test_money_rounds_once_half_to_even():
    assert pricing.money(Fraction(1, 3)) == Decimal("0.333333")
    assert pricing.money(Fraction(25, 10_000_000)) == Decimal("0.000002")
    assert pricing.money(Fraction(35, 10_000_000)) == Decimal("0.000004")
    assert pricing.money(Fraction(7, 2), places=0) == 4


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(1, 10**12), max_size=5),
    changes=st.lists(
        st.tuples(st.integers(0, 10**12), st.decimals(0, 99, places=4)), max_size=4, unique_by=lambda c: c[0]
    ),
    amount=st.one_of(st.integers(1, 64), st.decimals("0.001", 64, places=3)),
)
def test_the_parts_of_a_time_cost_exactly_what_the_whole_costs(cuts, changes, amount):
    us = timedelta(microseconds=1)
    listed = PriceList(
        (Price("vcpu", Decimal(1), NOW), *(Price("vcpu", p, NOW + at * us) for at, p in changes if at > 0))
    )
    edges = [NOW, *(NOW + cut * us for cut in sorted(cuts)), NOW + 10**12 * us]

    whole = listed.cost({"vcpu": amount}, edges[0], edges[-1])
    parts = [listed.cost({"vcpu": amount}, a, b) for a, b in pairwise(edges)]
    hours = [listed.cost({"vcpu": amount}, a, b) for _, a, b in split_hours(NOW, NOW + 3 * DAY)]

    assert sum((part.exact for part in parts), Fraction(0)) == whole.exact
    assert sum((h.exact for h in hours), Fraction(0)) == listed.cost({"vcpu": amount}, NOW, NOW + 3 * DAY).exact


def test_a_time_splits_at_full_utc_hours_whatever_its_zone():
    india = timezone(timedelta(hours=5, minutes=30))
    start = datetime(2026, 11, 2, 15, 15, tzinfo=india)  # 09:45 UTC

    parts = list(split_hours(start, start + timedelta(minutes=90)))

    assert parts == [
        (NOW, NOW + timedelta(minutes=45), NOW + HOUR),
        (NOW + HOUR, NOW + HOUR, NOW + 2 * HOUR),
        (NOW + 2 * HOUR, NOW + 2 * HOUR, NOW + timedelta(minutes=135)),
    ]
    assert list(split_hours(NOW, NOW)) == []


def test_an_hour_of_a_gpu_adds_up_by_use():
    half = NOW + HOUR / 2

    said = account(
        8,
        NOW,
        NOW + HOUR,
        [
            Interval(4, 4, Use.BILLED, NOW - DAY, half),
            Interval(4, 4, Use.HELD_UNBILLED, half, NOW + DAY),
            Interval(0, 1, Use.FOREIGN, NOW, NOW + HOUR),
            Interval(1, 1, Use.FAULT, half, NOW + HOUR),
        ],
    )

    assert said.balanced
    assert {use: said.slot_hours(use) for use in Use} == {
        Use.BILLED: 2, Use.HELD_UNBILLED: 2, Use.FOREIGN: 1, Use.FAULT: Fraction(1, 2),
        Use.FREE: Fraction(5, 2), Use.RESERVED: 0, Use.MAINTENANCE: 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([Interval(0, 4, Use.BILLED, NOW, NOW + HOUR), Interval(3, 1, Use.FOREIGN, NOW, NOW + HOUR)], "slot 3"),
        ([Interval(6, 4, Use.BILLED, NOW, NOW + HOUR)], r"\[6, 10\) is not on a GPU of 8 slots"),
    ],
)
def test_a_ledger_that_books_twice_has_no_account(intervals, said):
    with pytest.raises(DoubleBooked, match=said):
        account(8, NOW, NOW + HOUR, intervals)


@settings(deadline=None)
@given(data=st.data())
def test_every_account_is_exact_and_equals_a_count_of_moments(data):
    slots, ticks = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    us = timedelta(microseconds=1)
    grid = {(slot, tick): Use.FREE for slot in range(slots) for tick in range(-3, ticks + 3)}
    intervals = []
    uses = st.sampled_from([use for use in Use if use is not Use.FREE])
    for _ in range(data.draw(st.integers(0, 8))):
        slot = data.draw(st.integers(0, slots - 1))
        size = data.draw(st.integers(1, slots - slot))
        start = data.draw(st.integers(-3, ticks + 1))
        end = data.draw(st.integers(start, ticks + 2))
        cells = [(s, t) for s in range(slot, slot + size) for t in range(start, end)]
        if all(grid[cell] is Use.FREE for cell in cells):
            use = data.draw(uses)
            grid.update(dict.fromkeys(cells, use))
            intervals.append(Interval(slot, size, use, NOW + start * us, NOW + end * us))

    said = account(slots, NOW, NOW + ticks * us, data.draw(st.permutations(intervals)))

    inside = [grid[slot, tick] for slot in range(slots) for tick in range(ticks)]
    assert said.by_use == {use: inside.count(use) for use in Use}
    assert said.capacity == slots * ticks
    assert said.balanced
