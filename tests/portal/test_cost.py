"""The cost page: a month by object, person and label, to the second; the budget and its pace; who sees what."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.kernel import bill
from tenants import usage
from tenants.actor import SYSTEM
from tenants.models import Budget, Endpoint, EndpointUsage, Event, Machine, Price, PriceList, UsageRecord
from tenants.operations import machines
from tenants.specs import AllocationSpec, GpuAsk, MachineAsk, UnitAsk
from tenants.states import PlatformRole
from tenants.transactions import acting, reading
from tests import factories
from tests.portal.world import CANARY, World, build

pytestmark = pytest.mark.usefixtures("db")
COST = "/t/acme/cost"
NOW = timezone.now()
START = bill.month_from("", now=NOW)
LAST = (START - timedelta(days=1)).replace(day=1)
LAST_MONTH = f"{LAST:%Y-%m}"


@pytest.fixture
def world(db: None) -> World:
    return build()


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def billed(row, since: datetime, *, hours: int) -> None:
    """Make a placed product of the world one that was ready from `since` on and billed for so many hours."""
    with acting(SYSTEM):
        usage.first_ready(row.allocation, now=since)
        UsageRecord.objects.filter(allocation_id=row.allocation_id).update(
            held_from=since - timedelta(minutes=1), billable_from=since, billable_to=since + timedelta(hours=hours)
        )


@pytest.fixture
def month(world: World) -> World:
    """Last month: the endpoint ran for 10 hours, called in 4 of them; the machine ran for 5 hours."""
    PriceList.objects.update(valid_from=LAST - timedelta(days=40))
    since = LAST + timedelta(days=3, hours=6)
    billed(world.acme.endpoint, since, hours=10)
    billed(world.acme.machine, since + timedelta(hours=2), hours=5)
    billed(world.foreign.endpoint, since, hours=7)
    for hour in range(4):
        EndpointUsage.objects.create(
            tenant=world.acme.tenant, endpoint_id=world.acme.endpoint.pk, key_id="k",
            hour=since + timedelta(hours=hour), requests=1, errors=0,
            prompt_tokens=1_000_000, completion_tokens=250_000,
        )  # fmt: skip
    return world


HOURLY = Decimal("0.3") * 2 + Decimal("0.02") * 4 + Decimal("0.003") * 16
"""Of one product of the world: 0.728 an hour."""


# --- the month --------------------------------------------------------------------------------------------


def test_a_month_shows_its_sum_its_objects_tokens_and_idle_share(month, browse):
    said = text(browse(month.acme.viewer).get(f"{COST}?month={LAST_MONTH}"))

    assert Decimal("10.92") == HOURLY * 15
    assert f"Spent €10.92 {LAST:%B %Y}" in said
    assert "Per million tokens €1.46 5M tokens, idle hours included" in said
    assert "Idle endpoints 60 % €4.37 for hours without a call" in said
    assert "chat endpoint €7.28 67 % 5M €1.46 60 %" in said
    assert "box machine €3.64 33 % -- -- --" in said
    assert CANARY not in said


def test_grouped_by_person_item_and_label(month, browse):
    Endpoint.objects.filter(pk=month.acme.endpoint.pk).update(labels={"team": "search"}, owner=month.acme.owner)
    Machine.objects.filter(pk=month.acme.machine.pk).update(owner=month.acme.member)
    browser = browse(month.acme.member)

    people = text(browser.get(f"{COST}?month={LAST_MONTH}&by=person"))
    items = text(browser.get(f"{COST}?month={LAST_MONTH}&by=item"))
    labels = text(browser.get(f"{COST}?month={LAST_MONTH}&by=label:team"))

    assert "Owner 1 €7.28 67 %" in people
    assert "Member 1 €3.64 33 %" in people
    assert "H100-80GB €9.00 82 %" in items
    assert "search 1 €7.28" in labels
    assert "Without this label 1 €3.64" in labels


def test_the_day_chart_holds_the_sum_of_each_day(month, browse):
    body = browse(month.acme.member).get(f"{COST}?month={LAST_MONTH}").content.decode()

    values = json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', body)[1]))

    assert values["names"] == ["GPUs", "CPU and memory"]
    assert values["values"][0][3] == 9.0
    assert values["values"][1][3] == 1.92
    assert sum(map(sum, values["values"])) == pytest.approx(10.92)
    assert len(values["times"]) == (START - LAST).days


def test_a_month_that_is_not_one_is_the_present_one_and_nothing_says_why(month, browse):
    browser = browse(month.acme.member)

    for wrong in ("", "2026-13", "x", "9999-01", "1-1"):
        said = text(browser.get(f"{COST}?month={wrong}&by=nonsense"))
        assert "Nothing was billed in this month" in said
        assert f"{START:%B %Y}" in said
        assert "Per million tokens -- no tokens were counted" in said
        assert "Idle endpoints -- no endpoint was billed" in said


def test_what_has_no_price_is_named_and_stays_out_of_the_sums(month, browse):
    Price.objects.filter(item="vcpu").delete()

    said = text(browse(month.acme.member).get(f"{COST}?month={LAST_MONTH}"))

    assert "Some of it has no price" in said
    assert "Used without a price, so not in the sums: virtual CPUs" in said
    assert "Spent €9.72" in said


def test_the_forecast_adds_what_runs_to_its_end(world, browse):
    PriceList.objects.update(valid_from=START - timedelta(days=40))
    since = timezone.now() - timedelta(minutes=30)
    with acting(SYSTEM):
        usage.first_ready(world.acme.endpoint.allocation, now=since)
        UsageRecord.objects.filter(allocation_id=world.acme.endpoint.allocation_id).update(
            held_from=since, billable_from=since
        )

    with reading(factories.actor(world.acme.member)):
        now = timezone.now()
        found = bill.of(world.acme.tenant, bill.month_from("", now=now), now=now)
        sums = bill.month_so_far(world.acme.tenant, now=now)

    left = Decimal((found.end - now) / timedelta(hours=1))
    assert found.forecast.running == pytest.approx(HOURLY * min(left, Decimal(30 * 24)), rel=Decimal("0.001"))
    assert (sums.spent, sums.running) == (
        pytest.approx(found.forecast.spent, abs=Decimal("0.00001")), found.forecast.running,
    )  # fmt: skip


def test_the_export_has_every_line_exactly_and_no_formula(month, browse):
    Endpoint.objects.filter(pk=month.acme.endpoint.pk).update(name="chat")
    browser = browse(month.acme.member)

    as_csv = browser.get(f"{COST}?month={LAST_MONTH}&format=csv")
    as_json = json.loads(browser.get(f"{COST}?month={LAST_MONTH}&format=json").content)

    as_json = [row for row in as_json if Decimal(row["billed"])]
    rows = list(csv.DictReader(io.StringIO(as_csv.content.decode())))
    assert as_csv["Content-Disposition"] == f'attachment; filename="acme-cost-{LAST_MONTH}.csv"'
    assert len(as_json) == 6
    assert {(row["billed"], row["price"], row["cost"]) for row in as_json if row["item"] == "memory_gib"} == {
        ("160.000000", "0.003000000", "0.480000"), ("80.000000", "0.003000000", "0.240000"),
    }  # fmt: skip
    assert sum(Decimal(row["cost"]) for row in rows) == Decimal("10.92")
    assert {row["object"] for row in as_json} == {"chat", "box"}


def test_the_number_of_queries_does_not_depend_on_how_much_there_is(month, browse):
    browser = browse(month.acme.member)
    url = f"{COST}?month={LAST_MONTH}"
    browser.get(url)
    with CaptureQueriesContext(connection) as few:
        browser.get(url)
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))
    for number in range(12):
        made = machines.create(
            tenant=month.acme.tenant, ask=MachineAsk(f"more-{number}", spec, "ubuntu-24.04", 10),
            actor=factories.actor(month.acme.member), now=NOW,
        )  # fmt: skip
        billed(made, LAST + timedelta(days=number), hours=number + 1)

    with CaptureQueriesContext(connection) as many:
        answer = browser.get(url)

    assert "more-11" in text(answer)
    assert len(many) == len(few) <= 45


# --- one object -------------------------------------------------------------------------------------------


def test_a_line_opens_to_the_second_with_its_price_list(month, browse):
    row = month.acme.endpoint.allocation
    browser = browse(month.acme.member)

    answer = browser.get(f"{COST}/{row.short_id}?month={LAST_MONTH}")

    said = text(answer)
    since = LAST + timedelta(days=3, hours=6)
    assert (
        f"2 slots of H100-80GB estate, berlin {since:%-d %b %Y}, 06:00:00 UTC {since:%-d %b %Y}, 16:00:00 UTC" in said
    )
    assert "600.00 first no. 1, from" in said
    assert "€0.3000 €6.0000" in said
    assert "1.00 not billed -- --" in said
    assert "Spent €7.28" in said
    assert f'href="/t/acme/endpoints/{month.acme.endpoint.short_id}"' in answer.content.decode()
    exported = json.loads(browser.get(f"{COST}/{row.short_id}?month={LAST_MONTH}&format=json").content)
    assert sum(Decimal(each["cost"]) for each in exported) == Decimal("7.28")


def test_an_object_of_a_foreign_tenant_looks_like_a_missing_one(month, browse):
    browser = browse(month.acme.member)

    foreign = browser.get(f"{COST}/{month.foreign.endpoint.allocation.short_id}?month={LAST_MONTH}")
    missing = browser.get(f"{COST}/al-nothing")

    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert CANARY not in foreign.content.decode()


# --- budget -----------------------------------------------------------------------------------------------


def test_an_owner_sets_changes_and_removes_the_budget(world, browse):
    browser = browse(world.acme.owner)

    first = browser.post(f"{COST}/budget", {"amount": "2,500"})
    again = browser.post(f"{COST}/budget", {"amount": "3000.50", "version": "1"})

    assert (first.status_code, first["Location"], again.status_code) == (302, COST, 302)
    assert Budget.objects.get().amount == Decimal("3000.50")
    said = text(browser.get(COST))
    assert "Budget of this month" in said
    assert "€0.00 of €3,000.50: 0 %" in said
    assert "Budget of this month" in text(browser.get("/t/acme"))
    gone = browser.post(f"{COST}/budget/remove")
    assert (gone.status_code, Budget.objects.count()) == (302, 0)
    assert browser.post(f"{COST}/budget/remove").status_code == 404
    assert list(Event.objects.filter(kind__startswith="budget.").order_by("seq").values_list("kind", flat=True)) == [
        "budget.set", "budget.set", "budget.removed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("amount", "why"),
    [
        ("", "Give an amount"),
        ("many", "Give an amount"),
        ("-3", "above 0"),
        ("1.234", "2 decimals"),
        ("NaN", "above 0"),
    ],
)
def test_a_wrong_amount_comes_back_at_its_field(world, browse, amount, why):
    answer = browse(world.acme.owner).post(f"{COST}/budget", {"amount": amount})

    body = answer.content.decode()
    assert answer.status_code in {400, 422}
    assert why in html.unescape(re.search(r'id="amount-error">(.*?)</p>', body, re.DOTALL)[1])
    assert not Budget.objects.exists()


def test_an_older_version_of_the_budget_changes_nothing(world, browse):
    browser = browse(world.acme.owner)
    browser.post(f"{COST}/budget", {"amount": "100"})
    browser.post(f"{COST}/budget", {"amount": "200", "version": "1"})

    late = browser.post(f"{COST}/budget", {"amount": "300", "version": "1"})

    assert late.status_code == 412
    assert Budget.objects.get().amount == 200


@pytest.mark.parametrize(
    ("who", "status"), [("owner", 200), ("member", 403), ("viewer", 403), ("operator", 200), ("auditor", 403)]
)
def test_who_may_set_a_budget(world, browse, who, status):
    role = {"operator": PlatformRole.OPERATOR, "auditor": PlatformRole.AUDITOR}.get(who)
    person = factories.person(platform=(role,)) if role else getattr(world.acme, who)

    browser = browse(person)

    assert browser.get(f"{COST}/budget").status_code == status
    assert browser.get(COST).status_code == 200
    assert ("Set budget alert" in text(browser.get(COST))) == (status == 200)


def test_the_pace_says_how_serious_it_is():
    row = Budget(amount=Decimal(100), currency="EUR")
    found = {
        (spent, total): bill.Pace(row, Decimal(spent), Decimal(total), 0.5).tone
        for spent, total in ((10, 50), (10, 120), (80, 90), (100, 150))
    }

    assert found == {(10, 50): "ok", (10, 120): "warn", (80, 90): "warn", (100, 150): "bad"}


def test_months_reach_back_to_the_tenants_beginning_and_no_further(world):
    now = datetime(2026, 11, 21, tzinfo=UTC)
    world.acme.tenant.created_at = datetime(2026, 9, 15, tzinfo=UTC)

    found = bill.months(world.acme.tenant, now=now)

    assert [f"{month:%Y-%m}" for month in found] == ["2026-11", "2026-10", "2026-09"]


def test_a_month_with_more_than_a_page_can_list_shows_the_same_sums(month, browse, monkeypatch):
    browser = browse(month.acme.owner)
    url = f"{COST}?month={LAST_MONTH}"
    browser.post(f"{COST}/budget", {"amount": "100"})
    exported = browser.get(f"{url}&format=json").content

    monkeypatch.setattr(bill, "MOST_LISTED", 1)
    answer = browser.get(url)
    present = text(browser.get(COST))

    said = text(answer)
    assert "There is too much in this month to list it" in said
    assert f"Spent €10.92 {LAST:%B %Y}" in said
    assert "H100-80GB €9.00 82 %" in said
    assert "acme €10.92 100 %" in said
    assert "€0.00 of €100.00: 0 %" in present
    assert browser.get(f"{url}&format=json").content == exported
    assert CANARY not in said
