# ruff: noqa: E501 - one row of a table per line of SQL
"""Claims per second over a large estate: quota, placement, event, commit; durable.

    python -m tests.benchmarks.claims [--gpus 100000] [--seconds 8] [--clients 4] [--fixed 20]

Starts a PostgreSQL of its own with production settings (fsync on, synchronous commit), fills it, and runs
clients as processes. Prints rows of (what, per second, ratio to the same with 800 GPUs). Single
readings on one machine: compare rows of one run, not absolutes. `--fixed` gives so many percent of the hosts GPUs
of a fixed layout, carved; whole GPUs are then not asked for, since these have none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from typing import Any

from tests.benchmarks import stage

CARVED = ((0, 2, "2g.20gb"), (2, 1, "1g.10gb"), (3, 1, "1g.10gb"), (4, 4, "3g.40gb"))


def fill(server: Any, database: str, gpus: int, tenants: int, *, fixed: int = 0) -> None:
    """Fill a database with hosts of eight GPUs and tenants under one root; by SQL, as superuser.

    `fixed`: percent of the hosts whose GPUs are carved as `CARVED` says and stay so.
    """
    hosts = gpus // 8
    with server.connect(database=database) as connection:
        connection.execute(
            "INSERT INTO tenants_provider (id, name, kind, site, config, capabilities, enabled, healthy, breaker_failures,"
            " created_at, version, generation, observed_generation, conditions, phase, failures, lease_owner, lease_epoch,"
            " fingerprint, observed, finalizers) VALUES (gen_random_uuid(), 'bench', 'sandbox', 'bench', '{}',"
            " '{\"boundary_kinds\": [\"namespace\"]}', true, true, 0, now(), 1, 1, 0, '[]', 'Ready', 0, '', 0, '', '{}',"
            " '{}')"
        )
        columns = (
            "id, provider_id, provider_ref, name, state, binding, gpu_product, healthy, message, placeable, total_vcpu,"
            " total_memory_gib, free_vcpu, free_memory_gib, gpu_count, empty_gpus, unsettled, acceptance, created_at,"
            " version, boundary_kinds"
        )
        connection.execute(
            f"INSERT INTO tenants_host ({columns}) SELECT gen_random_uuid(), p.id, 'h' || n, 'h' || n, 'open', 'device',"
            " 'H100-80GB', true, '', true, 512, 4096, 512, 4096, 8, 8, 0, '{}', now(), 1, '{}'"
            " FROM tenants_provider p, generate_series(1, %s) n",
            [hosts],
        )
        connection.execute(
            "INSERT INTO tenants_gpudevice (id, host_id, provider_id, provider_ref, index, product, slots, free, media_free,"
            " mode, layout_change, healthy, message, placeable, windows_trusted, unsettled, created_at)"
            " SELECT gen_random_uuid(), h.id, h.provider_id, h.provider_ref || '-' || g, g, 'H100-80GB', 8, 255, true,"
            " CASE WHEN f.fixed THEN 'mig' ELSE 'empty' END, CASE WHEN f.fixed THEN 'fixed' ELSE 'dynamic' END, true, '',"
            " true, true, 0, now() FROM tenants_host h, generate_series(0, 7) g,"
            " LATERAL (SELECT substr(h.provider_ref, 2)::int %% 100 < %s AS fixed) f",
            [fixed],
        )
        for start, size, profile in CARVED:
            connection.execute(
                "INSERT INTO tenants_migdevice (id, device_id, profile, start, size, seen_at)"
                " SELECT gen_random_uuid(), id, %s, %s, %s, now() FROM tenants_gpudevice WHERE layout_change = 'fixed'",
                [profile, start, size],
            )
        connection.execute(
            "WITH root AS (INSERT INTO tenants_tenant (id, name, display_name, description, path, status, policy,"
            " stock_visibility, labels, managed_by, created_at, version) SELECT x.id, 'root', 'Root', '', ARRAY[x.id],"
            " 'active', '{}', 'exact', '{}', 'api', now(), 1 FROM (SELECT gen_random_uuid() AS id) x RETURNING id)"
            " INSERT INTO tenants_tenant (id, name, display_name, description, parent_id, path, status, policy,"
            " stock_visibility, labels, managed_by, created_at, version) SELECT x.id, 't' || n, 'T', '', NULL,"
            " ARRAY[x.id], 'active', '{}', 'exact', '{}', 'api', now(), 1"
            " FROM generate_series(1, %s) n, LATERAL (SELECT gen_random_uuid() AS id, n AS again) x",
            [tenants],
        )
        for dimension in ("gpu.H100-80GB.slices", "vcpu", "memory_gib", "boundaries"):
            connection.execute(
                "INSERT INTO tenants_quota (id, tenant_id, dimension, amount, inherit, created_at, version)"
                " SELECT gen_random_uuid(), id, %s, 1000000000, false, now(), 1 FROM tenants_tenant",
                [dimension],
            )
        connection.execute(
            "INSERT INTO tenants_person (id, password, email, display_name, created_at, is_active)"
            " SELECT gen_random_uuid(), '!', 'p@bench.example', 'P', now(), true"
        )
        connection.execute(
            "INSERT INTO tenants_membership (id, tenant_id, person_id, role, created_at, version)"
            " SELECT gen_random_uuid(), t.id, p.id, 2, now(), 1 FROM tenants_tenant t, tenants_person p"
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


def client(
    env: dict[str, str], number: int, tenants: int, seconds: float, batch: int, kinds: list[str], queue: Any
) -> None:
    """Claim for `seconds`; put (claims, waiting) into the queue."""
    os.environ.update(env)
    import django

    django.setup()
    from django.utils import timezone

    from tenants.actor import SYSTEM, Actor, Kind
    from tenants.models import Person, Tenant
    from tenants.operations import allocations
    from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
    from tenants.states import Role
    from tenants.transactions import reading

    with reading(SYSTEM):
        mine = list(Tenant.objects.filter(name__startswith="t").order_by("name"))[:tenants]
        person = Person.objects.get()
    actor = Actor(Kind.PERSON, person.pk, person.pk, {t.pk: Role.MEMBER for t in mine})
    rng = random.Random(number)
    done = waiting = n = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tenant = rng.choice(mine)
        asks = []
        for _ in range(batch):
            n += 1
            spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", rng.choice(kinds)), 2, 8),))
            asks.append(BareAsk(f"c{number}-{n}", spec))
        if batch == 1:
            rows = [allocations.create(tenant=tenant, ask=asks[0], actor=actor, now=timezone.now())]
        else:
            rows = allocations.create_batch(tenant=tenant, asks=asks, actor=actor, now=timezone.now())
        done += len(rows)
        waiting += sum(row.queued_at is not None for row in rows)
    queue.put((done, waiting))


KINDS = ["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb", ""]


def measure(
    server: Any,
    template: str,
    name: str,
    *,
    tenants: int,
    clients: int,
    seconds: float,
    batch: int,
    kinds: list[str] = KINDS,
) -> float:
    """Run one row on a fresh clone; return claims per second."""
    server.create_database(name, template=template)
    env = stage.environ(server, name, "worker")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    rivals = [
        context.Process(target=client, args=(env, i, tenants, seconds, batch, kinds, queue)) for i in range(clients)
    ]
    for rival in rivals:
        rival.start()
    results = [queue.get(timeout=seconds + 60) for _ in rivals]
    for rival in rivals:
        rival.join()
    server.drop_database(name)
    done, waiting = sum(r[0] for r in results), sum(r[1] for r in results)
    rate = done / seconds
    print(
        f"    {tenants:>4} tenants, batch {batch:>3}, {clients} clients: {rate:8.0f} /s, {waiting} waiting", flush=True
    )
    return rate


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--fixed", type=int, default=0, help="percent of the hosts with a fixed layout")
    options = parser.parse_args()
    with stage.server() as server:
        base: dict[tuple[int, int], float] = {}
        for gpus in (800, options.gpus):
            template = f"bench_{gpus}"
            stage.migrated(server, template)
            fill(server, template, gpus, 100, fixed=options.fixed)
            print(f"  {gpus} GPUs", flush=True)
            for tenants, batch in ((100, 1), (1, 1), (100, 100), (1, 100)):
                seconds = options.seconds if gpus > 800 else min(options.seconds, 2)
                rate = measure(
                    server,
                    template,
                    "bench_run",
                    tenants=tenants,
                    clients=options.clients,
                    seconds=seconds,
                    batch=batch,
                    kinds=[kind for kind in KINDS if kind] if options.fixed else KINDS,
                )
                if gpus == 800:
                    base[tenants, batch] = rate
                else:
                    print(f"         ratio to 800 GPUs: {rate / base[tenants, batch]:.2f}", flush=True)


if __name__ == "__main__":
    main()
