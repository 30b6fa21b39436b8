"""REST: single and batched claims against an empty authenticated POST, and lists over 10,000 rows.

    python -m tests.benchmarks.api [--gpus 100000] [--seconds 5]

One process and one connection, through the whole stack below HTTP (middleware, authentication, policy,
operation, rendering) on a PostgreSQL with production settings. Prints rates, shares, p50 and p99 in
milliseconds, and statements per request. Single readings: compare the rows of one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from tests.benchmarks import claims, stage


def rate(call: Any, seconds: float) -> tuple[float, float]:
    """Call for `seconds`; return (calls per second, median milliseconds)."""
    call()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return len(spent) / sum(spent), statistics.median(spent) * 1000


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in the unit of the values."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with stage.server() as server:
        stage.migrated(server, "bench")
        claims.fill(server, "bench", options.gpus, 100)
        stage.enter(server, "bench", superuser=True)
        measure(options.seconds)


def measure(seconds: float) -> None:
    """Measure on the database that this process has entered."""
    from django.conf import settings

    settings.ALLOWED_HOSTS = ["testserver"]
    from controlplane import memory
    from tenants.models import Person
    from tests.api.client import Api, token_of

    api = Api(token_of(Person.objects.get()))
    numbers = iter(range(10_000_000))
    unit = {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 2, "memory_gib": 8}

    def expect(answer: Any, status: int) -> None:
        if answer.status != status:
            raise RuntimeError(repr(answer)[:600])

    def empty() -> None:
        expect(api.post("tenants/t1/allocations", {}), 400)

    def single() -> None:
        expect(api.post("tenants/t1/allocations", {"name": f"s{next(numbers)}", "units": [unit]}), 201)

    def batch() -> None:
        asks = [{"name": f"b{next(numbers)}", "units": [unit]} for _ in range(100)]
        expect(api.post("tenants/t2/allocations:batch", {"allocations": asks}), 201)

    expect(api.get("allocations?limit=50"), 200)
    memory.settle()  # as the web process does when it has started
    nothing, nothing_ms = rate(empty, seconds)
    print(f"  empty authenticated POST (400): {nothing:8.0f} /s   {nothing_ms:6.1f} ms", flush=True)
    one, one_ms = rate(single, seconds)
    print(f"  single POST claim:              {one:8.0f} /s   {one_ms:6.1f} ms   share {one / nothing:.2f}", flush=True)
    many, many_ms = rate(batch, seconds)
    print(f"  batch of 100:                   {many * 100:8.0f} claims/s   {many_ms:6.1f} ms a batch", flush=True)

    from tenants.models import Allocation

    while Allocation.objects.count() < 10_000:
        batch()
    print(f"  lists over {Allocation.objects.count()} allocations:")
    for path in (
        "allocations?limit=50",
        "tenants/t2/allocations?limit=50",
        "tenants/t2/allocations?phase=Provisioning",
    ):
        spent, statements = [], 0
        for _ in range(200):
            start = time.perf_counter()
            answer = api.get(path)
            spent.append((time.perf_counter() - start) * 1000)
            expect(answer, 200)
            statements = len(answer.statements)
        print(
            f"    {path:<48} p50 {percentile(spent, 0.5):6.1f} ms  p99 {percentile(spent, 0.99):6.1f} ms"
            f"  {statements} statements",
            flush=True,
        )


if __name__ == "__main__":
    main()
