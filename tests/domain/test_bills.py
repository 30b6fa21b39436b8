"""A month's bill: spans to the second, the forecast, idle hours; budgets and who is told about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, transaction

from tenants import bills, costs, trail, usage
from tenants.actor import SYSTEM
from tenants.errors import Conflict, Forbidden, InvalidSpec, PreconditionFailed
from tenants.models import Budget, Endpoint, EndpointUsage, Event, Notification, Price, PriceList
from tenants.notifications import fanout, registry, watch
from tenants.operations import allocations, budgets, endpoints
from tenants.specs import AllocationSpec, BareAsk, EndpointAsk, GpuAsk, RevisionAsk, Term, UnitAsk
from tenants.states import Role
from tenants.transactions import acting, reading
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
JULY = datetime(2026, 7, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SLICES = "gpu.H100-80GB.slices"


@pytest.fixture
def world() -> SimpleNamespace:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=2)
    factories.served_model()
    tenant = factories.tenant()
    factories.generous(tenant)
    owner = factories.member(tenant, Role.OWNER)
    return SimpleNamespace(
        provider=provider,
        tenant=tenant,
        owner=owner,
        actor=factories.actor(owner),
        member=factories.actor(factories.member(tenant)),
    )


def prices(at: datetime, name: str, **amounts: str) -> None:
    made = PriceList.objects.create(name=name, currency="EUR", valid_from=at, created_at=at)
    for item, amount in amounts.items():
        Price.objects.create(price_list=made, item={"slices": SLICES}.get(item, item), amount=Decimal(amount))


def take(world: SimpleNamespace, at: datetime, *, days: int = 30, name: str = "alpha") -> Any:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 1, 1),), term=Term(duration_s=days * 86400))
    row = allocations.create(tenant=world.tenant, ask=BareAsk(name, spec), actor=world.actor, now=at)
    with acting(SYSTEM):
        usage.first_ready(row, now=at + HOUR)
    return row


def month(world: SimpleNamespace, now: datetime) -> list[costs.CostLine]:
    return costs.cost_lines(world.tenant, JUNE, JULY, now=now)


def spent(lines: list[costs.CostLine]) -> Fraction:
    return sum((line.exact for line in lines), start=Fraction(0))


# --- spans ----------------------------------------------------------------------------------------


def test_spans_are_cut_where_the_price_changes_and_name_its_list_and_add_up_to_the_lines(world):
    prices(JUNE - DAY, "spring", slices="0.5")
    prices(JUNE + 10 * HOUR + timedelta(seconds=7), "summer", slices="1")
    row = take(world, JUNE)
    now = JUNE + 20 * HOUR

    with reading(world.actor):
        every = bills.spans(world.tenant, row.pk, JUNE, JULY, now=now)
        lines = month(world, now)
    found = [each for each in every if each.item == SLICES]

    assert [
        (each.start, each.end, each.billed, each.price_list.name if each.price_list else "", each.is_open)
        for each in found
    ] == [
        (JUNE, JUNE + HOUR, False, "", False),
        (JUNE + HOUR, JUNE + 10 * HOUR + timedelta(seconds=7), True, "spring", False),
        (JUNE + 10 * HOUR + timedelta(seconds=7), now, True, "summer", True),
    ]
    assert [each.price_list.number for each in found if each.price_list] == [1, 2]
    assert found[1].seconds == Decimal(32407)
    assert (found[0].cost, found[1].amount) == (Decimal(0), 4)
    assert sum((each.exact for each in every), start=Fraction(0)) == sum(
        (line.exact for line in lines), start=Fraction(0)
    )


def test_another_tenant_sees_no_span_of_it(world):
    row = take(world, JUNE)
    stranger = factories.tenant()
    actor = factories.actor(factories.member(stranger, Role.OWNER))

    with reading(actor):
        assert bills.spans(world.tenant, row.pk, JUNE, JULY, now=JUNE + DAY) == []
        assert bills.spans(stranger, row.pk, JUNE, JULY, now=JUNE + DAY) == []


# --- forecast -------------------------------------------------------------------------------------


def test_the_forecast_goes_on_to_the_end_of_each_or_of_the_month_at_published_prices(world):
    prices(JUNE - DAY, "spring", slices="0.5")
    prices(JUNE + 20 * DAY, "summer", slices="1")
    take(world, JUNE, days=15, name="short")
    take(world, JUNE, days=90, name="long")
    now = JUNE + 10 * DAY

    with reading(world.actor):
        found = bills.forecast(world.tenant, spent(month(world, now)), Fraction(0), JUNE, JULY, now=now)

    each_so_far = Decimal(4) * Decimal("0.5") * (10 * 24 - 1)
    short = Decimal(4) * Decimal("0.5") * (5 * 24 + 1)
    long = Decimal(4) * (Decimal("0.5") * 10 * 24 + Decimal(1) * 10 * 24)
    assert found.spent == 2 * each_so_far
    assert found.running == short + long
    assert found.total == 2 * each_so_far + short + long


def test_tokens_go_on_at_their_average_so_far(world):
    now = JUNE + 10 * DAY

    found = bills.forecast(world.tenant, Fraction(50), Fraction(30), JUNE, JULY, now=now)

    assert (found.spent, found.running, found.tokens, found.total) == (50, 0, 60, 110)


def test_a_month_that_is_over_has_nothing_to_come(world):
    prices(JUNE - DAY, "spring", slices="0.5")
    take(world, JUNE, days=90)

    with reading(world.actor):
        found = bills.forecast(world.tenant, spent(month(world, JULY + DAY)), Fraction(7), JUNE, JULY, now=JULY + DAY)

    assert (found.running, found.tokens, found.total) == (0, 0, found.spent)
    assert found.spent == Decimal(4) * Decimal("0.5") * (30 * 24 - 1)


def test_idle_is_the_share_of_billed_hours_without_a_call_and_tokens_are_summed(world):
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), 4, 16),))
    made = endpoints.create(
        tenant=world.tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=world.actor, now=JUNE
    ).endpoint
    with acting(SYSTEM):
        usage.first_ready(made.allocation, now=JUNE + HOUR)
    for hour, requests in ((2, 3), (3, 0), (4, 1)):
        EndpointUsage.objects.create(
            tenant=world.tenant, endpoint_id=made.pk, key_id="k", hour=JUNE + hour * HOUR, requests=requests, errors=0,
            prompt_tokens=100 * requests, completion_tokens=50 * requests,
        )  # fmt: skip
    now = JUNE + 9 * HOUR

    with reading(world.actor):
        called = bills.calls(world.tenant, JUNE, JULY)
        idle = bills.idle_shares(month(world, now), called, JUNE, JULY, now=now)

    assert called == {made.allocation_id: bills.Calls(requests=4, tokens=600, hours=2)}
    assert idle == {made.allocation_id: Fraction(6, 8)}


# --- budgets --------------------------------------------------------------------------------------


def told() -> list[tuple[int, str, str]]:
    rows = Event.objects.filter(kind="budget.reached").order_by("at", "seq")
    return [(row.data["percent"], row.data["spent"], row.data["amount"]) for row in rows]


def test_owners_are_told_once_a_month_at_80_and_at_100_per_cent_and_anew_when_it_is_changed(world):
    prices(JUNE - DAY, "spring", slices="0.25")
    take(world, JUNE - HOUR, days=90)  # one euro an hour from the first of June
    budgets.set_budget(tenant=world.tenant, amount=Decimal(100), actor=world.actor, now=JUNE)

    for hours in (79, 80, 81, 99, 100, 300):
        watch.tell(watch.budgets, JUNE + hours * HOUR)
    assert told() == [(80, "80.00", "100.00"), (100, "100.00", "100.00")]

    budgets.set_budget(tenant=world.tenant, amount=Decimal(400), actor=world.actor, now=JUNE + 301 * HOUR)
    watch.tell(watch.budgets, JUNE + 301 * HOUR)
    watch.tell(watch.budgets, JUNE + 320 * HOUR)
    assert told()[2:] == [(80, "320.00", "400.00")]

    watch.tell(watch.budgets, JULY + 320 * HOUR)
    assert told()[3:] == [(80, "320.00", "400.00")]


def test_the_owners_hear_of_it_once_and_members_do_not(world):
    prices(JUNE - DAY, "spring", slices="0.25")
    take(world, JUNE - HOUR, days=90)
    budgets.set_budget(tenant=world.tenant, amount=Decimal(100), actor=world.actor, now=JUNE)

    for hours in (81, 82):
        watch.tell(watch.budgets, JUNE + hours * HOUR)
        fanout.run(JUNE + hours * HOUR)

    found = Notification.objects.filter(kind="budget.reached")
    assert [row.person_id for row in found] == [world.owner.pk]
    assert registry.link_of(found[0]) == f"/t/{world.tenant.name}/cost"
    assert registry.text_of(found[0]).endswith("its budget of 2026-06: 81.00 of 100.00 EUR.")


def test_a_budget_is_looked_at_every_quarter_of_an_hour_and_at_once_when_it_was_set(world):
    prices(JUNE - DAY, "spring", slices="0.25")
    take(world, JUNE - HOUR, days=90)
    budgets.set_budget(tenant=world.tenant, amount=Decimal(100), actor=world.actor, now=JUNE)
    at = JUNE + 79 * HOUR + timedelta(minutes=50)
    watch.tell(watch.budgets, at)

    watch.tell(watch.budgets, at + timedelta(minutes=14))
    assert told() == []

    watch.tell(watch.budgets, at + timedelta(minutes=15))
    assert [percent for percent, *_ in told()] == [80]


def test_the_sentence_of_the_notification_names_what_was_spent():
    data = {
        "tenant": "acme",
        "percent": 80,
        "month": "2026-06",
        "spent": "80.00",
        "amount": "100.00",
        "currency": "EUR",
    }

    text = registry.KINDS["budget.reached"].text(data)

    assert text == "acme spent 80 per cent of its budget of 2026-06: 80.00 of 100.00 EUR."


@pytest.mark.parametrize("amount", ["0", "-5", "NaN", "Infinity", "100000000000", "1.001"])
def test_an_amount_that_is_no_budget_is_refused(world, amount):
    with pytest.raises(InvalidSpec) as error:
        budgets.set_budget(tenant=world.tenant, amount=Decimal(amount), actor=world.actor, now=JUNE)

    assert error.value.errors[0]["field"] == "amount"
    assert not Budget.objects.exists()


def test_members_read_a_budget_and_owners_set_it_and_versions_are_kept(world):
    first = budgets.set_budget(tenant=world.tenant, amount=Decimal(100), actor=world.actor, now=JUNE)
    with reading(world.member):
        assert Budget.objects.get().amount == 100

    with pytest.raises(Forbidden):
        budgets.set_budget(tenant=world.tenant, amount=Decimal(1), actor=world.member, now=JUNE)
    with pytest.raises(PreconditionFailed):
        budgets.set_budget(tenant=world.tenant, amount=Decimal(1), actor=world.actor, now=JUNE, version=7)
    second = budgets.set_budget(tenant=world.tenant, amount=Decimal("99.90"), actor=world.actor, now=JUNE, version=1)
    budgets.remove(budget=second, actor=world.actor, now=JUNE, version=2)

    assert (first.pk, first.version, second.version) == (second.pk, 1, 2)
    assert not Budget.objects.exists()
    said = Event.objects.filter(kind__startswith="budget.").order_by("seq").values_list("kind", "data__before")
    assert list(said) == [("budget.set", None), ("budget.set", "100.00"), ("budget.removed", None)]


def test_a_closed_tenant_sets_no_budget(world):
    world.tenant.status = "closed"
    world.tenant.closed_at = JUNE
    world.tenant.save()

    with pytest.raises(Conflict):
        budgets.set_budget(tenant=world.tenant, amount=Decimal(1), actor=world.actor, now=JUNE)


def test_the_database_shows_and_takes_no_budget_of_a_foreign_tenant(world):
    budgets.set_budget(tenant=world.tenant, amount=Decimal(100), actor=world.actor, now=JUNE)
    stranger = factories.tenant()
    actor = factories.actor(factories.member(stranger, Role.OWNER))

    with reading(actor):
        assert Budget.objects.count() == 0
    with acting(actor):
        assert Budget.objects.update(amount=1) == 0
    with pytest.raises(IntegrityError), acting(SYSTEM), transaction.atomic():
        Budget.objects.create(tenant=stranger, amount=0, currency="EUR", created_at=JUNE)


# --- the trail ------------------------------------------------------------------------------------


@pytest.mark.no_audit  # it is broken on purpose
def test_a_tenants_trail_is_whole_until_an_entry_is_changed_behind_its_back(world, superuser):
    for name in ("one", "two", "three"):
        take(world, JUNE, name=name)
    with reading(world.member):
        whole = trail.verify(world.tenant.pk)
        part = trail.verify(world.tenant.pk, most=2)
        older = trail.verify(world.tenant.pk, most=2, upto=part.first)
    count = Event.objects.filter(chain=world.tenant.pk).count()
    assert (whole.whole, whole.events, whole.first, whole.last) == (True, count, 1, count)
    assert (part.whole, part.events, part.first) == (True, 2, count - 1)

    assert (older.whole, older.first, older.last) == (True, count - 2, count - 1)

    superuser.execute("UPDATE tenants_event SET actor = 'system' WHERE chain = %s AND seq = 2", [world.tenant.pk])

    with reading(world.member):
        broken = trail.verify(world.tenant.pk)
    assert (broken.whole, broken.faults, broken.head_fits) == (False, (2,), True)


@pytest.mark.no_audit  # it is broken on purpose
def test_an_entry_that_is_gone_shows_in_the_part_that_had_it(world, superuser):
    for name in ("one", "two", "three"):
        take(world, JUNE, name=name)
    superuser.execute("DELETE FROM tenants_event WHERE chain = %s AND seq = 3", [world.tenant.pk])

    with reading(world.member):
        found = trail.verify(world.tenant.pk)
        cut = trail.verify(world.tenant.pk, upto=3)

    assert (found.whole, found.faults, found.head_fits) == (False, (4,), False)
    assert (cut.whole, cut.head_fits) == (False, False)


def test_a_trail_without_entries_is_whole_and_empty(world):
    with reading(world.member):
        found = trail.verify(uuid4())

    assert (found.events, found.whole, found.head) == (0, True, "")


def test_a_stranger_verifies_nothing_of_a_foreign_trail(world):
    take(world, JUNE)
    actor = factories.actor(factories.member(factories.tenant(), Role.OWNER))

    with reading(actor):
        assert trail.verify(UUID(str(world.tenant.pk))).events == 0


def test_endpoints_that_are_gone_keep_their_spans(world):
    assert Endpoint.objects.count() == 0
    row = take(world, JUNE)
    allocations.release(allocation=row, actor=world.actor, now=JUNE + 5 * HOUR)

    with reading(world.actor):
        found = bills.spans(world.tenant, row.pk, JUNE, JULY, now=JUNE + 6 * HOUR)

    assert [(each.billed, each.end, each.is_open) for each in found if each.item == SLICES] == [
        (False, JUNE + HOUR, False),
        (True, JUNE + 5 * HOUR, False),
        (False, JUNE + 6 * HOUR, True),
    ]
