"""Passes: approval to ready with no provider delays, and the idle sweep over 1,000 ready boundaries.

    python -m tests.benchmarks.passes [--boundaries 1000]

In one process on a simulated estate without delays and a PostgreSQL with production settings. The idle
sweep prints its driver calls and rows changed: neither may grow with the boundaries. Single readings.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

from tests.benchmarks import stage


class Counting:
    """A driver that counts what is called."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.driver, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return value(*args, **options)

        return call


def written(connection: Any) -> Counter[str]:
    """Return how many rows of each of our tables were ever written, by PostgreSQL's own statistics.

    The counts of a session reach them late unless it is told to send them: told is the one that does the passes.
    """
    from django.db import connection as passes

    with passes.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
    rows = connection.execute(
        "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname LIKE 'tenants_%'"
    )
    return Counter({str(name): int(number) for name, number in rows.fetchall()})


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--boundaries", type=int, default=1000)
    options = parser.parse_args()
    with stage.server() as server:
        stage.migrated(server, "bench")
        stage.enter(server, "bench", superuser=True)
        with server.connect(database="bench") as connection:
            connection.autocommit = True
            measure(options.boundaries, connection)


def measure(count: int, connection: Any) -> None:
    """Measure on the database that this process has entered."""
    from tenants.models import Boundary, Endpoint
    from tenants.operations import allocations, endpoints
    from tenants.specs import AllocationSpec, BareAsk, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
    from tests import drive, factories

    hosts = [
        {
            "host": f"n{i}", "name": f"n{i}", "binding": "device", "boundary_kinds": ["namespace"], "vcpu": 4096,
            "memory_gib": 32768, "gpus": [{"product": "H100-80GB", "count": 8}],
        }
        for i in range(count // 56 + 2)  # seven units of 1g.10gb on each of eight GPUs
    ]  # fmt: skip
    world = drive.world({"schema": drive.files.SCHEMA, "hosts": hosts}, snapshots=True)
    driver = Counting(world.engine.driver_of(world.provider))
    world.engine.driver_of = lambda _provider: driver
    factories.served_model()
    spec = AllocationSpec((UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 1, 1),))

    spent = []
    for number in range(10):
        tenant = factories.tenant(name=f"e{number}")
        factories.generous(tenant)
        actor = factories.actor(factories.member(tenant))
        ask = EndpointAsk(f"e{number}", RevisionAsk("llama-3-1-8b"), spec)
        start = time.perf_counter()
        made = endpoints.create(tenant=tenant, ask=ask, actor=actor, now=world.clock.now)
        world.drive(lambda pk=made.endpoint.pk: Endpoint.objects.get(pk=pk).phase == "Ready", most=400, step_s=0.2)
        spent.append(time.perf_counter() - start)
    print(
        f"  submit to ready, no provider delays: median {sorted(spent)[5]:.2f} s, worst {max(spent):.2f} s", flush=True
    )

    start = time.perf_counter()
    for number in range(count):
        tenant = factories.tenant(name=f"b{number}")
        factories.generous(tenant)
        actor = factories.actor(factories.member(tenant))
        allocations.create(tenant=tenant, ask=BareAsk("a", spec), actor=actor, now=world.clock.now)
    world.drive(lambda: Boundary.objects.exclude(phase="Ready").count() == 0, most=4000, step_s=0.5)
    print(f"  {count} boundaries made ready in {time.perf_counter() - start:.0f} s", flush=True)
    for _ in range(5):
        world.clock.move(60)
        world.sweep()
    driver.calls.clear()
    before = written(connection)
    world.clock.move(60)
    start = time.perf_counter()
    world.sweep()
    took = time.perf_counter() - start
    rows = written(connection) - before
    print(f"  idle sweep: {took * 1000:.0f} ms, driver calls {dict(driver.calls)}, rows written {dict(rows)}")


if __name__ == "__main__":
    main()
