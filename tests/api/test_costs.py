"""Costs over REST: the lines of a time, their exact sum, and whose they are."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from controlplane.cli.nouns import cell, noun
from tenants import usage
from tenants.actor import SYSTEM
from tenants.models import Allocation, Price, PriceList
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
from tenants.states import Role
from tenants.transactions import acting
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

SLICES = "gpu.H100-80GB.slices"
MAY = "start=2026-05-01T00:00:00Z"


@pytest.fixture
def family(now: datetime) -> Any:
    """A parent whose child has held one slice for 36 hours, 30 of them billed, 2 EUR each."""
    parent, stranger = factories.tenant(name="holding"), factories.tenant(name="stranger")
    child = factories.tenant(name="acme", parent=parent)
    for each in (parent, child):
        factories.generous(each)
    provider = factories.provider(name="estate", capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=1)
    prices = PriceList.objects.create(name="first", currency="EUR", valid_from=now, created_at=now)
    Price.objects.create(price_list=prices, item=SLICES, amount=Decimal(2))
    actor = factories.actor(factories.member(child))
    ask = BareAsk("bare", AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=2, memory_gib=4),)))
    row = allocations.create(tenant=child, ask=ask, actor=actor, now=now)
    with acting(SYSTEM):
        usage.first_ready(row, now=now + timedelta(hours=6))
    allocations.release(allocation=Allocation.objects.get(), actor=actor, now=now + timedelta(hours=36))
    with acting(SYSTEM):
        allocations.finish(Allocation.objects.get(), now=now + timedelta(hours=36))
    return {"parent": parent, "child": child, "stranger": stranger}


def test_lines_of_a_time_say_day_object_item_and_exact_cost(family, api):
    viewer = api(factories.member(family["child"], Role.VIEWER))

    answer = viewer.get("tenants/acme/costs?start=2026-06-01T00:00:00Z&end=2026-06-03T00:00:00Z")

    assert answer.status == 200, answer
    body = answer.body
    assert (body["total"], body["currency"], body["unpriced"]) == ("60.000000", "EUR", ["memory_gib", "vcpu"])
    gpu = [(line["day"], line["held"], line["billable"], line["cost"]) for line in body["items"] if line["price"]]
    assert gpu == [
        ("2026-06-01", "12.000000", "6.000000", "12.000000"),
        ("2026-06-02", "24.000000", "24.000000", "48.000000"),
    ]
    assert {(line["name"], line["kind"], line["provider"]) for line in body["items"]} == {("bare", "bare", "estate")}


def test_without_a_time_it_is_the_present_month_and_without_an_end_the_month_of_the_start(family, api):
    viewer = api(factories.member(family["child"], Role.VIEWER))

    present = viewer.get("tenants/acme/costs").body
    june = viewer.get("tenants/acme/costs?start=2026-06-02T00:00:00Z").body

    assert datetime.fromisoformat(present["start"]).day == 1
    assert (june["end"], june["total"]) == ("2026-07-01T00:00:00Z", "48.000000")


def test_costs_go_up_the_tree_and_never_sideways(family, api):
    above = api(factories.member(family["parent"], Role.VIEWER))
    beside = api(factories.member(family["stranger"], Role.OWNER))
    june = "?start=2026-06-01T00:00:00Z"

    assert above.get(f"tenants/holding/costs{june}").body["total"] == "60.000000"
    assert beside.get(f"tenants/stranger/costs{june}").body["total"] == "0.000000"
    assert beside.get(f"tenants/acme/costs{june}").status == 404


@pytest.mark.parametrize(
    "times",
    [f"{MAY}&end=2026-04-01T00:00:00Z", f"{MAY}&end=2026-12-01T00:00:00Z"],
    ids=["backwards", "too long"],
)
def test_a_time_that_makes_no_sense_is_refused_by_its_field(family, api, times):
    answer = api(factories.member(family["child"])).get(f"tenants/acme/costs?{times}")

    assert (answer.status, [fault["field"] for fault in answer.body["errors"]]) == (400, ["end"])


def test_every_column_of_the_command_line_is_in_the_answer(family, api):
    found = noun("costs")
    address = found.collection(tenant="acme").lstrip("/")

    lines = api(factories.member(family["child"])).get(f"{address}?start=2026-06-02T00:00:00Z").body["items"]
    gpu = next(line for line in lines if line["item"] == SLICES)

    assert {column.head: cell(gpu, column) for column in found.columns} == {
        "DAY": "2026-06-02", "OBJECT": "bare", "KIND": "bare", "ITEM": SLICES, "HELD": "24", "BILLED": "24",
        "PRICE": "2", "COST": "48", "CURRENCY": "EUR", "PROVIDER": "estate",
    }  # fmt: skip


def test_a_budget_is_set_read_changed_and_removed_by_version(family, api):
    owner = api(factories.member(family["child"], Role.OWNER))
    viewer = api(factories.member(family["child"], Role.VIEWER))
    none = viewer.get("tenants/acme/budget")

    made = owner.put("tenants/acme/budget", {"amount": "2500.5"})
    blind = owner.delete("tenants/acme/budget")
    stale = owner.put("tenants/acme/budget", {"amount": "1"}, if_match='"9"')
    changed = owner.put("tenants/acme/budget", {"amount": "3000"}, if_match='"1"')
    read = viewer.get("tenants/acme/budget")
    gone = owner.delete("tenants/acme/budget", if_match='"2"')

    assert [each.status for each in (none, made, blind, stale, changed, read, gone)] == [
        404, 200, 428, 412, 200, 200, 204,
    ]  # fmt: skip
    assert (made.body["amount"], made.body["currency"], made.body["version"]) == ("2500.50", "EUR", 1)
    assert (read.body["amount"], read.body["tenant"], read.body["version"]) == ("3000.00", "acme", 2)
    assert viewer.get("tenants/acme/budget").status == 404


@pytest.mark.parametrize("amount", ["0", "-1", "1.234", "1e3", 5, "100000000000"])
def test_an_amount_that_is_no_budget_is_refused_at_its_field(family, api, amount):
    owner = api(factories.member(family["child"], Role.OWNER))

    answer = owner.put("tenants/acme/budget", {"amount": amount})

    assert (answer.status, [fault["field"] for fault in answer.body["errors"]]) == (400, ["amount"])
    assert owner.get("tenants/acme/budget").status == 404
