"""The lived-in demo in its small size: what people find in it, that its books balance, and that it is made once."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.demo import seed
from controlplane.demo.programme import ITEMS, items
from controlplane.demo.seed import DemoBroken
from controlplane.demo.sites import SITES
from provisioners.management.commands import bootstrap
from provisioners.sandbox.hosting import open_hosting
from tenants import audit, costs, demo, hour_account
from tenants.actor import SYSTEM
from tenants.models import (
    Endpoint,
    EndpointUsage,
    Event,
    Finding,
    GpuDevice,
    Hold,
    Host,
    HostPlan,
    Intent,
    Machine,
    Namespace,
    Notice,
    Person,
    Provider,
    Request,
    Tenant,
)
from tenants.pricing import Use
from tenants.transactions import reading

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

END = datetime(2026, 6, 1, 12, 34, tzinfo=UTC)
URL = "http://sandbox.invalid"


@pytest.fixture
def seeded(db):
    return seed.seed(url=URL, now=END, small=True)


@pytest.mark.slow
def test_a_small_demo_has_all_that_the_pages_show_and_its_books_balance(seeded):
    start = Event.objects.earliest("at").at

    # What is there: tenants, hardware, objects in every state that a page has to show.
    assert Tenant.objects.count() == 9
    assert Counter(Tenant.objects.values_list("parent__name", flat=True)) == {
        None: 4, "acme": 2, "helios": 2, "nordwind": 1,
    }  # fmt: skip
    assert set(demo.PERSONAS) <= {p for p in demo.PERSONAS if Person.objects.filter(email=p.email).exists()}
    assert Host.objects.count() == 11
    assert GpuDevice.objects.count() == 76
    assert (Endpoint.objects.count(), Machine.objects.count(), Namespace.objects.count()) == (9, 1, 1)
    assert Counter(Endpoint.objects.values_list("phase", flat=True)) == {
        "Ready": 6, "Degraded": 1, "AwaitingApproval": 2,
    }  # fmt: skip
    assert (Machine.objects.get().phase, Namespace.objects.get().phase) == ("Ready", "Ready")
    # What goes on: six requests of every kind, a drain, a fault, drift, foreign use.
    assert Counter(Request.objects.filter(state="submitted").values_list("kind", flat=True)) == {
        "quota": 4, "tenant": 1, "join": 1,
    }  # fmt: skip
    assert Counter(Request.objects.exclude(state="submitted").values_list("state", flat=True)) == {
        "approved": 1, "reduced": 1, "denied": 1,
    }  # fmt: skip
    assert list(HostPlan.objects.filter(state="running").values_list("kind", "host__state")) == [("drain", "draining")]
    assert Notice.objects.filter(kind="host-drain").count() >= 1
    assert GpuDevice.objects.filter(healthy=False).count() == 1
    assert "orphan" in set(Finding.objects.filter(resolved_at=None).values_list("kind", flat=True))
    assert set(Hold.objects.exclude(kind="tenant").values_list("kind", flat=True)) == {
        "foreign", "maintenance", "fault",
    }  # fmt: skip
    # Marked as simulated, at every level.
    assert {row.labels.get("simulated") for row in Endpoint.objects.all()} == {"history"}
    assert {(row.kind, row.config["history"]) for row in Provider.objects.all()} == {("sandbox", "complete")}

    # The ledger, the event chains and the account of every GPU and hour.
    assert audit.findings() == []
    assert Intent.objects.filter(settled_at=None).count() == 0
    with reading(SYSTEM):
        account = hour_account.of_estate(start, END, now=END)
    assert account.balanced
    assert account.mismatches == []
    assert all(account.slot_hours(use) > 0 for use in (Use.BILLED, Use.FREE, Use.FOREIGN, Use.MAINTENANCE, Use.FAULT))
    assert sum(account.slot_hours(use) for use in Use) == account.capacity_slot_hours

    # Charts have something to show: usage by hour, and what it cost.
    hours = EndpointUsage.objects.filter(requests__gt=0)
    assert hours.count() == seeded.hours > 200
    assert hours.earliest("hour").hour >= start.replace(minute=0)
    assert hours.latest("hour").hour <= END
    assert not hours.filter(endpoint_id=Endpoint.objects.get(name="idle-demo").pk).exists()
    with reading(SYSTEM):
        spent = costs.cost_lines(Tenant.objects.get(name="helios"), start, END, now=END)
        assert sum(line.exact for line in spent) > 0

    # A second call changes nothing.
    before = (Event.objects.count(), Request.objects.count(), EndpointUsage.objects.count())
    again = seed.seed(url=URL, now=END + timedelta(hours=1), small=True)
    assert again.estates == {}
    assert before == (Event.objects.count(), Request.objects.count(), EndpointUsage.objects.count())

    # The sandbox server serves what was played: through its own records and back.
    hosting = open_hosting(None, url=URL)
    for name, estate in seeded.estates.items():
        rows = [(table, key, row) for (table, key), row in estate.state.take_changes().items() if row is not None]
        hosting.adopt(name, json.loads(json.dumps(rows)))
        served, played = hosting.find(name).state, estate.state
        assert (served.hosts, served.gpus, served.workloads) == (played.hosts, played.gpus, played.workloads)
        assert (served.objects, served.foreign_uses, served.settings.gateways) == (
            played.objects, played.foreign_uses, "real",
        )  # fmt: skip


def test_half_a_history_is_not_mistaken_for_a_whole_one():
    Provider.objects.create(name=SITES[0].provider, kind="sandbox", site="berlin", config={}, created_at=END)

    with pytest.raises(DemoBroken, match="make reset"):
        seed.seed(url=URL, now=END, small=True)


def test_the_full_programme_is_as_big_as_it_says():
    live = [item for item in ITEMS if item.until_day is None]

    assert 44 <= len(live) <= 50
    assert len({item.name for item in ITEMS}) == len(ITEMS)
    assert len(items(small=True)) == 9
    assert sum(rack.hosts for site in SITES for rack in site.racks) == 27
    assert sum(rack.hosts * rack.gpus for site in SITES for rack in site.racks) == 188


def test_personas_are_the_people_that_bootstrap_makes():
    assert [one.email for one in demo.PERSONAS] == [email for email, _, _ in bootstrap.PEOPLE]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_full_demo_has_forty_endpoints_and_machines_and_its_books_balance():
    made = seed.seed(url=URL, now=END)

    live = [*Endpoint.objects.exclude(phase="Released"), *Machine.objects.exclude(phase="Released")]
    assert 40 <= len(live) <= 46
    assert Counter(row.phase for row in live)["Expiring"] == 1
    assert made.hours > 10_000
    assert audit.findings() == []
    with reading(SYSTEM):
        start = Event.objects.earliest("at").at
        assert hour_account.of_estate(start, END, now=END).balanced
