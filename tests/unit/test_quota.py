"""Quota checks against a naive oracle, and each rule by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants import quota
from tenants.gpu_catalogue import BadDimension
from tenants.quota import Ask, Ending, Limit, Span, TenantLimits, Usage

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
DAY = timedelta(days=1)
SLICES, COUNT = "gpu.H100-80GB.slices", "gpu.H100-80GB.1g.10gb"
WEEK = Span(NOW, NOW + 7 * DAY)


def tenant(name: str, *limits: tuple[str, int, datetime | None], inherits: str = "", **held: int) -> TenantLimits:
    return TenantLimits(
        name,
        tuple(Limit(name, dimension, amount, until) for dimension, amount, until in limits),
        frozenset(inherits.split()),
        Usage(held=held),
    )


def test_a_demand_within_every_limit_fits():
    path = [tenant("root", ("vcpu", 100, None), vcpu=60), tenant("team", ("vcpu", 20, None), vcpu=12)]

    verdict = quota.check(path, demand={"vcpu": 8}, during=WEEK)

    assert verdict.fits
    assert verdict.request() == ()
    assert verdict.offered_until is None
    assert [(line.tenant, line.limit, line.used, line.demanded) for line in verdict.lines] == [
        ("root", 100, 60, 8),
        ("team", 20, 12, 8),
    ]


def test_a_shortage_names_tenant_limit_use_and_exactly_what_is_missing():
    path = [tenant("root", ("vcpu", 64, None), vcpu=60), tenant("team", ("vcpu", 20, None), vcpu=12)]

    verdict = quota.check(path, demand={"vcpu": 10}, during=WEEK)

    assert not verdict.fits
    assert not verdict.fits_at_start
    assert [(s.tenant, s.dimension, s.limit, s.used, s.demanded, s.missing, s.since) for s in verdict.shortages] == [
        ("root", "vcpu", 64, 60, 10, 6, NOW),
        ("team", "vcpu", 20, 12, 10, 2, NOW),
    ]
    assert verdict.request() == (Ask("root", "vcpu", 6, WEEK.end), Ask("team", "vcpu", 2, WEEK.end))
    assert verdict.shortages[0].sentence() == "vcpu of root: limit 64, 60 in use, 10 asked, 6 missing"


def test_no_limit_means_zero_unless_inherited():
    root = tenant("root", (SLICES, 16, None))

    denied = quota.check([root, tenant("team")], demand={SLICES: 8}, during=WEEK)
    inherited = quota.check([root, tenant("team", inherits=SLICES)], demand={SLICES: 8}, during=WEEK)
    too_much = quota.check([root, tenant("team", inherits=SLICES)], demand={SLICES: 17}, during=WEEK)

    assert [(s.tenant, s.limit, s.missing) for s in denied.shortages] == [("team", 0, 8)]
    assert inherited.fits
    assert [(s.tenant, s.missing) for s in too_much.shortages] == [("root", 1)]


def test_a_gap_in_the_middle_of_the_tree_denies_what_the_child_inherits():
    path = [tenant("root", ("vcpu", 9, None)), tenant("middle"), tenant("leaf", inherits="vcpu")]

    verdict = quota.check(path, demand={"vcpu": 1}, during=WEEK)

    assert [s.tenant for s in verdict.shortages] == ["middle"]


def test_the_root_has_nothing_to_inherit_from():
    verdict = quota.check([tenant("root", inherits="vcpu")], demand={"vcpu": 1}, during=WEEK)

    assert [(s.tenant, s.limit) for s in verdict.shortages] == [("root", 0)]


def test_counts_per_profile_bind_only_where_somebody_set_them():
    demand = {SLICES: 1, COUNT: 1}
    root = tenant("root", (SLICES, 16, None))
    free = tenant("team", (SLICES, 16, None))
    bound = tenant("team", (SLICES, 16, None), (COUNT, 2, None), **{COUNT: 2})

    assert quota.check([root, free], demand=demand, during=WEEK).fits
    assert [s.dimension for s in quota.check([root, bound], demand=demand, during=WEEK).shortages] == [COUNT]


def test_a_limit_that_ends_sooner_shortens_the_offer_and_names_the_date():
    path = [tenant("team", ("vcpu", 8, None), ("vcpu", 8, NOW + 3 * DAY), vcpu=4)]

    verdict = quota.check(path, demand={"vcpu": 8}, during=WEEK)

    assert verdict.fits_at_start
    assert verdict.offered_until == NOW + 3 * DAY
    assert [(s.tenant, s.limit, s.missing, s.since) for s in verdict.shortened_by] == [("team", 8, 4, NOW + 3 * DAY)]
    assert verdict.request() == (Ask("team", "vcpu", 4, WEEK.end),)
    assert quota.check(path, demand={"vcpu": 8}, during=Span(NOW, NOW + 3 * DAY)).fits


def test_an_open_ended_demand_outlives_every_dated_limit():
    path = [tenant("team", ("machines", 1, NOW + 90 * DAY))]

    verdict = quota.check(path, demand={"machines": 1}, during=Span(NOW))

    assert verdict.offered_until == NOW + 90 * DAY
    assert verdict.request() == (Ask("team", "machines", 1, None),)


def test_a_limit_that_is_over_counts_no_more():
    path = [tenant("team", ("vcpu", 8, NOW))]

    verdict = quota.check(path, demand={"vcpu": 1}, during=WEEK)

    assert [(s.limit, s.since) for s in verdict.shortages] == [(0, NOW)]


def test_pending_demand_counts_as_used():
    path = [TenantLimits("team", (Limit("team", "vcpu", 8),), usage=Usage(held={"vcpu": 4}, pending={"vcpu": 3}))]

    verdict = quota.check(path, demand={"vcpu": 2}, during=WEEK)

    assert [(s.used, s.missing) for s in verdict.shortages] == [(7, 1)]


def test_the_earliest_time_comes_from_known_ends_and_needs_all_limits():
    def usage(*ends: int) -> Usage:
        return Usage(held={"vcpu": 8}, endings=tuple(Ending("vcpu", NOW + day * DAY, 4) for day in ends))

    root = TenantLimits("root", (Limit("root", "vcpu", 10),), usage=usage(2, 5))
    team = TenantLimits("team", (Limit("team", "vcpu", 8),), usage=usage(1, 5))

    verdict = quota.check([root, team], demand={"vcpu": 4}, during=WEEK)

    assert [(s.tenant, s.earliest) for s in verdict.shortages] == [("root", NOW + 2 * DAY), ("team", NOW + DAY)]
    assert verdict.earliest == NOW + 2 * DAY
    assert quota.check([root, team], demand={"vcpu": 9}, during=WEEK).earliest is None


def test_a_time_that_waiting_would_push_past_the_end_of_a_limit_is_not_offered():
    usage = Usage(held={"vcpu": 8}, endings=(Ending("vcpu", NOW + DAY, 8),))
    path = [TenantLimits("team", (Limit("team", "vcpu", 8, NOW + 7 * DAY),), usage=usage)]

    assert quota.check(path, demand={"vcpu": 8}, during=WEEK).earliest is None
    assert quota.check(path, demand={"vcpu": 8}, during=Span(NOW, NOW + 6 * DAY)).earliest == NOW + DAY


def test_money_is_exact():
    path = [
        TenantLimits(
            "team", (Limit("team", "spend_month", Decimal("0.3")),), usage=Usage({"spend_month": Decimal("0.1")})
        )
    ]

    assert quota.check(path, demand={"spend_month": Decimal("0.2")}, during=WEEK).fits
    with pytest.raises(TypeError, match="spend_month: amounts are exact"):
        quota.check(path, demand={"spend_month": 0.2}, during=WEEK)


@pytest.mark.parametrize(
    ("demand", "error"),
    [({"gpus": 1}, BadDimension), ({"gpu.H100-80GB.9g": 1}, BadDimension), ({"vcpu": -1}, ValueError)],
)
def test_bad_demands_are_refused(demand, error):
    with pytest.raises(error):
        quota.check([tenant("team", inherits="gpus")], demand=demand, during=WEEK)


def test_empty_times_and_paths_are_refused():
    with pytest.raises(ValueError, match="must end after it starts"):
        Span(NOW, NOW)
    with pytest.raises(ValueError, match="path from the root"):
        quota.check([], demand={}, during=WEEK)


def test_zero_amounts_touch_no_limit():
    verdict = quota.check([tenant("team")], demand={"vcpu": 0, SLICES: 0}, during=WEEK)

    assert verdict.fits
    assert verdict.lines == ()


def test_headroom_is_the_least_over_the_path_and_the_time():
    path = [
        tenant("root", ("vcpu", 100, None), vcpu=90),
        tenant("team", ("vcpu", 8, None), ("vcpu", 8, NOW + DAY), vcpu=4),
    ]

    assert quota.headroom(path, "vcpu", Span(NOW, NOW + DAY)) == 10
    assert quota.headroom(path, "vcpu", WEEK) == 4
    assert quota.headroom(path, COUNT, WEEK) is None
    assert quota.headroom(path, "machines", WEEK) == 0


def test_a_month_runs_from_its_first_day_to_the_next():
    assert quota.month_of(NOW) == Span(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
    assert quota.month_of(datetime(2026, 12, 31, 23, tzinfo=UTC)).end == datetime(2027, 1, 1, tzinfo=UTC)


DIMENSIONS = ["vcpu", "machines", SLICES, COUNT]


@st.composite
def paths(draw: st.DrawFn) -> list[TenantLimits]:
    found = []
    for level in range(draw(st.integers(1, 3))):
        name = f"t{level}"
        limit = st.builds(
            Limit,
            st.just(name),
            st.sampled_from(DIMENSIONS),
            st.integers(0, 8),
            st.one_of(st.none(), st.integers(-1, 9).map(lambda d: NOW + d * DAY)),
        )
        ending = st.builds(
            Ending, st.sampled_from(DIMENSIONS), st.integers(-1, 9).map(lambda d: NOW + d * DAY), st.integers(1, 4)
        )
        amounts = st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(0, 8))
        usage = Usage(draw(amounts), draw(amounts), tuple(draw(st.lists(ending, max_size=3))))
        inherits = draw(st.frozensets(st.sampled_from(DIMENSIONS)))
        found.append(TenantLimits(name, tuple(draw(st.lists(limit, max_size=6))), inherits, usage))
    return found


def naive(path: list[TenantLimits], demand: dict[str, int], days: range, released_on: datetime | None = None):
    """Walk each day, tenant and dimension; return {(day, tenant, dimension): missing} by the words of the rules.

    On the first day all that is in use counts (but what is released on `released_on`), later what has not ended.
    """
    missing = {}
    for day in days:
        at = NOW + day * DAY
        gone = at if day > days[0] else released_on
        for level, one in enumerate(path):
            for dimension, amount in demand.items():
                own = [limit for limit in one.limits if limit.dimension == dimension]
                if not own and (dimension == COUNT or (dimension in one.inherits and level > 0)):
                    continue
                limit = sum(x.amount for x in own if x.until is None or x.until > at)
                used = one.usage.held.get(dimension, 0) + one.usage.pending.get(dimension, 0)
                if gone is not None:
                    used -= sum(e.amount for e in one.usage.endings if e.dimension == dimension and e.at <= gone)
                if amount and max(used, 0) + amount > limit:
                    missing[day, one.tenant, dimension] = max(used, 0) + amount - limit
    return missing


@settings(max_examples=120, deadline=None)
@given(
    path=paths(),
    demand=st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(0, 8), min_size=1),
    length=st.integers(1, 8),
)
def test_a_check_equals_the_naive_walk_over_all_days(path, demand, length):
    verdict = quota.check(path, demand=demand, during=Span(NOW, NOW + length * DAY))

    expected = naive(path, demand, range(length))
    assert verdict.fits == (not expected)
    assert verdict.fits_at_start == all(day > 0 for day, _, _ in expected)
    first = min((day for day, _, _ in expected), default=0)
    assert verdict.offered_until == (NOW + first * DAY if first else None)
    most: dict[tuple[str, str], int] = {}
    for (_, who, dimension), amount in expected.items():
        most[who, dimension] = max(most.get((who, dimension), 0), amount)
    assert {(a.tenant, a.dimension): a.amount for a in verdict.request()} == most
    for short in verdict.shortages:
        day = (short.since - NOW).days
        assert expected[day, short.tenant, short.dimension] == short.missing
    starts = [d for d in range(1, 10) if not naive(path, demand, range(d, d + length), NOW + d * DAY)]
    if expected and verdict.earliest is not None:
        assert verdict.earliest == NOW + starts[0] * DAY
    elif expected:
        changed = {e.at for one in path for e in one.usage.endings if demand.get(e.dimension)}
        assert not any(NOW + d * DAY in changed for d in starts)


@settings(max_examples=50, deadline=None)
@given(path=paths(), demand=st.dictionaries(st.sampled_from(DIMENSIONS), st.integers(1, 8), min_size=1))
def test_granting_the_ready_made_request_makes_exactly_that_demand_pass(path, demand):
    verdict = quota.check(path, demand=demand, during=WEEK)

    granted = [
        TenantLimits(
            one.tenant,
            one.limits
            + tuple(
                Limit(a.tenant, a.dimension, a.amount, a.until) for a in verdict.request() if a.tenant == one.tenant
            ),
            one.inherits,
            one.usage,
        )
        for one in path
    ]
    assert quota.check(granted, demand=demand, during=WEEK).fits
    for ask in verdict.request():
        less = [
            TenantLimits(
                one.tenant,
                tuple(
                    Limit(x.tenant, x.dimension, x.amount - 1, x.until)
                    if (x.tenant, x.dimension, x.amount, x.until) == (ask.tenant, ask.dimension, ask.amount, ask.until)
                    else x
                    for x in one.limits
                ),
                one.inherits,
                one.usage,
            )
            for one in granted
        ]
        assert not quota.check(less, demand=demand, during=WEEK).fits
