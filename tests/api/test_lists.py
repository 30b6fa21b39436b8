"""Lists: cursors, filters, constant numbers of statements, speed at 10,000 rows."""

from __future__ import annotations

import time
from datetime import timedelta
from statistics import median
from uuid import uuid4

import pytest

from tenants.models import Allocation, Unit
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


def allocations(tenant, count: int, *, prefix: str = "a", **values) -> None:
    rows = [
        Allocation(
            id=uuid4(),
            tenant=tenant,
            name=f"{prefix}{i}",
            spec={},
            demand={},
            duration_s=60,
            labels={"team": "red" if i % 2 else "blue"},
            created_at=NOW + timedelta(seconds=i // 3),
            **values,
        )
        for i in range(count)
    ]
    Allocation.objects.bulk_create(rows, batch_size=2000)
    Unit.objects.bulk_create(
        [Unit(tenant=tenant, allocation=row, index=0, vcpu=1, memory_gib=1) for row in rows], batch_size=2000
    )


def test_pages_hold_every_row_once_in_order(api):
    tenant = factories.tenant(name="acme")
    allocations(tenant, 25)
    me = api(factories.member(tenant))

    for order in ("newest", "oldest"):
        seen, cursor = [], ""
        while True:
            answer = me.get(f"allocations?limit=7&order={order}&cursor={cursor}")
            seen += [(row["created_at"], row["id"]) for row in answer.body["items"]]
            cursor = answer.body["next"]
            if not cursor:
                break
        assert len(seen) == len(set(seen)) == 25
        assert seen == sorted(seen, reverse=order == "newest")


def test_a_row_added_meanwhile_moves_no_page(api):
    tenant = factories.tenant(name="acme")
    allocations(tenant, 10)
    me = api(factories.member(tenant))

    first = me.get("allocations?limit=5").body
    Allocation.objects.create(
        tenant=tenant, name="new", spec={}, demand={}, duration_s=60, created_at=NOW + timedelta(days=1)
    )
    second = me.get(f"allocations?limit=5&cursor={first['next']}").body

    assert len({row["id"] for row in [*first["items"], *second["items"]]}) == 10


def test_filters_narrow_and_never_widen(api):
    acme, globex = factories.tenant(name="acme"), factories.tenant(name="globex")
    allocations(acme, 4)
    allocations(globex, 4, managed_by="git")
    me = api(factories.member(acme))

    def names(query: str) -> list[str]:
        return sorted(row["name"] for row in me.get(f"allocations?{query}").body["items"])

    assert names("") == ["a0", "a1", "a2", "a3"]
    assert names("label=team=red") == ["a1", "a3"]
    assert names("label=team&label=team=blue") == ["a0", "a2"]
    assert names("label=colour") == []
    assert names("name=a2") == ["a2"]
    assert names("managed_by=git") == []
    assert names("phase=Provisioning") == ["a0", "a1", "a2", "a3"]
    assert names("phase=Ready") == []
    assert names("live=false") == []
    assert names("tenant=acme") == ["a0", "a1", "a2", "a3"]
    assert names("tenant=globex") == names("tenant=missing") == []
    assert names("provider=nowhere") == []


@pytest.mark.parametrize(
    "noun", ["endpoints", "machines", "namespaces", "allocations", "tenants", "events", "requests"]
)
def test_the_number_of_statements_does_not_grow_with_the_rows(api, noun):
    from tests.api.world import ALLOCATION, ENDPOINT, MACHINE, NAMESPACE

    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]}))
    factories.served_model()
    person = factories.member(tenant)
    me = api(person)
    bodies = {"endpoints": ENDPOINT, "machines": MACHINE, "namespaces": NAMESPACE, "allocations": ALLOCATION}

    def add(number: int) -> None:
        if noun in bodies:
            assert me.post(f"tenants/acme/{noun}", {**bodies[noun], "name": f"n{number}"}).status == 201
        elif noun == "tenants":
            factories.tenant(parent=tenant)
        else:
            body = {"payload": {"limits": {"vcpu": 10 + number}}}
            assert me.post("tenants/acme/requests", body).status == 201

    add(1)
    me.get("who")  # the first use of a token is noted
    one = me.get(noun)
    for number in range(2, 6):
        add(number)
    five = me.get(noun)

    assert len(five.body["items"]) > len(one.body["items"]) >= 1
    assert len(five.statements) == len(one.statements) <= 10


@pytest.mark.slow
def test_a_page_of_ten_thousand_rows_costs_little_more_than_one_of_a_thousand(api, superuser):
    """A ratio within one run; the times themselves are the bench's (`tests.benchmarks.api`)."""
    tenant = factories.tenant(name="acme")
    me = api(factories.member(tenant))

    def median_s() -> float:
        superuser.execute("ANALYZE")  # as autovacuum does within a minute; the test server has it off
        me.get("allocations?limit=50")
        times = []
        cursor = ""
        for _ in range(11):
            start = time.perf_counter()
            answer = me.get(f"allocations?limit=50&cursor={cursor}")
            times.append(time.perf_counter() - start)
            cursor = answer.body["next"]
        return median(times)

    allocations(tenant, 1_000)
    few = median_s()
    allocations(tenant, 9_000, prefix="b")
    many = median_s()

    assert many < 4 * few, (few, many)
