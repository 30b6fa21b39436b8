"""Pages of the portal over 10,000 endpoints, 12,500 hosts and 100,000 GPUs: server time and statements of each.

    python -m tests.benchmarks.portal [--gpus 100000] [--endpoints 10000] [--rounds 40] [--only estate]

One process and one connection, through the whole stack below HTTP, on a PostgreSQL with production settings. The
allocations are made by the product's own operation and stand in the ledger; endpoints, keys, usage and requests around
them are inserted. All endpoints belong to one tenant. Pages are found by following links, one of each route. Prints
p50 and p99 in milliseconds, statements, and KiB; `!` marks what is over 100 (p50) or 200 ms (p99). Single readings.
"""

from __future__ import annotations

import argparse
import time
from datetime import timedelta
from typing import Any

from controlplane import memory
from tests.benchmarks import claims, stage
from tests.benchmarks.api import percentile

BUDGET_MS = (100.0, 200.0)
TENANT = "t1"
BATCH = 100
NEW = 100
"""Endpoints that began within the hour: the roll-up of usage has yet to take them in."""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=100_000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="part of a route: measure these pages alone")
    options = parser.parse_args()
    with stage.server() as server:
        stage.migrated(server, "bench")
        claims.fill(server, "bench", options.gpus, 100)
        stage.enter(server, "bench", superuser=True)
        began = time.perf_counter()
        people = furnish(options.endpoints)
        with server.connect(database="bench") as connection:
            connection.autocommit = True
            connection.execute("VACUUM ANALYZE")
        memory.settle()  # as a web process has done, which never made all this
        print(
            f"  {options.gpus} GPUs, {options.endpoints} endpoints, in {time.perf_counter() - began:.0f} s", flush=True
        )
        over = 0
        for who, person in people.items():
            over += measure(who, person, options.rounds, options.only)
        print(f"  {over} pages over {BUDGET_MS[0]:.0f} ms (p50) or {BUDGET_MS[1]:.0f} ms (p99)")


# --- what pages show ------------------------------------------------------------------------------------


def furnish(count: int) -> dict[str, Any]:
    """Fill the entered database; return the people who look, by role."""
    from django.utils import timezone

    from tenants.models import Membership, Person, Price, PriceList, Tenant
    from tenants.states import PlatformRole
    from tests import factories

    now = timezone.now()
    prices = PriceList.objects.create(name="first", valid_from=now - timedelta(days=40), created_at=now)
    hourly = {"gpu.H100-80GB.slices": "0.4", "vcpu": "0.01", "memory_gib": "0.002", "token": "0.0000004"}
    for item, amount in hourly.items():
        Price.objects.create(price_list=prices, item=item, amount=amount)
    tenant = Tenant.objects.get(name=TENANT)
    member = Person.objects.get()
    Membership.objects.exclude(tenant=tenant).delete()
    for dimension in ("endpoints", "machines", "storage_gib"):
        factories.set_limit(tenant, dimension, 1_000_000)
    make_endpoints(tenant, member, count, now)
    make_bills(tenant, now)
    make_requests(tenant, member, 90, now)
    Membership.objects.update(role=3)
    platform = {role.value: factories.person(name=role.value, platform=(role,)) for role in PlatformRole}
    return {"owner": member, **platform}


def make_endpoints(tenant: Any, member: Any, count: int, now: Any) -> None:
    """Claim room for endpoints, then put the endpoints on it, ready, with a key and a day of usage each."""
    from django.db import connection

    from tenants.models import Allocation, Boundary, Endpoint, EndpointKey, Revision
    from tenants.operations import allocations
    from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
    from tests import factories

    actor, model = factories.actor(member), factories.served_model()
    spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 2, 8),))
    for first in range(0, count, BATCH):
        asks = [BareAsk(f"e{number}", spec) for number in range(first, min(first + BATCH, count))]
        allocations.create_batch(tenant=tenant, asks=asks, actor=actor, now=now)
    Boundary.objects.update(phase="Ready", ready_at=now, address="http://127.0.0.1:9/v1")
    Allocation.objects.update(
        product_kind="endpoint", phase="Ready", ready_at=now, expires_at=now + timedelta(days=30), due_at=None
    )
    common = {"tenant": tenant, "owner": member, "created_at": now, "phase": "Ready", "ready_at": now}
    Endpoint.objects.bulk_create(
        [
            Endpoint(
                name=row.name, allocation=row, boundary_id=row.boundary_id, address="http://127.0.0.1:9/v1",
                finalizers=["serving"], **common,
            )
            for row in Allocation.objects.order_by("name")
        ],
        batch_size=1000,
    )  # fmt: skip
    rows = list(Endpoint.objects.all())
    Revision.objects.bulk_create(
        [Revision(tenant=tenant, endpoint=row, number=1, model=model, created_at=now, author=member) for row in rows],
        batch_size=1000,
    )
    EndpointKey.objects.bulk_create(
        [
            EndpointKey(
                tenant=tenant, endpoint=row, public_id=f"k{number:08d}", digest=f"{number:064x}", name="first",
                author=member, created_at=now,
            )
            for number, row in enumerate(rows)
        ],
        batch_size=1000,
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE tenants_endpoint e SET revision_id = r.id FROM tenants_revision r WHERE r.endpoint_id = e.id"
        )
        cursor.execute(
            "UPDATE tenants_allocation a SET product_id = e.id FROM tenants_endpoint e WHERE e.allocation_id = a.id"
        )
        cursor.execute(
            "INSERT INTO tenants_endpointusage (id, tenant_id, endpoint_id, key_id, revision, hour, requests, errors,"
            " prompt_tokens, completion_tokens) SELECT gen_random_uuid(), e.tenant_id, e.id, k.public_id, 1,"
            " date_trunc('hour', now()) - h * interval '1 hour', 120, 1, 90000, 60000 FROM tenants_endpoint e"
            " JOIN tenants_endpointkey k ON k.endpoint_id = e.id, generate_series(1, 24) h"
        )


def make_bills(tenant: Any, now: Any) -> None:
    """Bill the endpoints for ten days, the newest hundred for half an hour; set a budget; roll usage up by day."""
    from tenants import usage_days
    from tenants.models import Allocation, Budget, UsageRecord

    late = Allocation.objects.order_by("name").values("pk")[:NEW]
    records = UsageRecord.objects.filter(kind="tenant")
    records.update(held_from=now - timedelta(days=10), billable_from=now - timedelta(days=10) + timedelta(minutes=3))
    began = now - timedelta(minutes=30)
    records.filter(allocation_id__in=late).update(held_from=began, billable_from=began + timedelta(minutes=3))
    Budget.objects.create(tenant=tenant, amount=5_000_000, currency="EUR", created_at=now)
    usage_days.roll_all(now)


def make_requests(tenant: Any, member: Any, count: int, now: Any) -> None:
    """File requests that wait for a decision."""
    from tenants.operations import requests
    from tests import factories

    actor = factories.actor(member)
    for number in range(count):
        requests.submit(
            kind="quota", payload={"mode": "add", "limits": {"vcpu": number + 1}}, reason=f"Growth {number}",
            tenant=tenant, actor=actor, now=now - timedelta(minutes=count - number),
        )  # fmt: skip


# --- measuring ------------------------------------------------------------------------------------------


def measure(who: str, person: Any, rounds: int, only: str) -> int:
    """Print one line for each page that somebody reaches; return how many are over the budget."""
    from django.conf import settings
    from django.test import Client

    from scripts.crawl import STARTS, Crawl, richest
    from tests.api.client import watched
    from tests.portal.lived_in import fetcher

    settings.ALLOWED_HOSTS = ["testserver"]
    client = Client(headers={"accept": "text/html"}, raise_request_exception=False)
    client.force_login(person, backend="tenants.login.PersonBackend")
    pages = richest(Crawl(fetcher(client), most=1).walk(STARTS))
    print(f"  {who}: {len(pages)} pages", flush=True)
    over = 0
    for route, page in sorted(pages.items()):
        if only not in route or route.startswith("accounts/"):
            continue
        with watched() as statements:
            size = len(client.get(page.path).content)
        spent = []
        for _ in range(rounds):
            start = time.perf_counter()
            client.get(page.path)
            spent.append((time.perf_counter() - start) * 1000)
        middle, worst = percentile(spent, 0.5), percentile(spent, 0.99)
        is_over = middle > BUDGET_MS[0] or worst > BUDGET_MS[1]
        over += is_over
        print(
            f"   {'!' if is_over else ' '}{route:<58} p50 {middle:6.1f}  p99 {worst:6.1f} ms"
            f"  {len(statements):3d} statements  {size // 1024:4d} KiB",
            flush=True,
        )
    return over


if __name__ == "__main__":
    main()
