"""Rivals at once: quotas hold, windows are given once, under every binding; a naive check fails the same test."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import Sum

from tenants import audit
from tenants.errors import ControlPlaneError, QuotaExceeded
from tenants.models import Allocation, Hold, QuotaCharge, Tenant
from tenants.operations import allocations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

RACERS = 8
ROUNDS = int(os.environ.get("TENANTRY_RACE_ROUNDS", "4"))
"""20 in `make test-ci`."""


def race(rivals: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run callables in threads that start together; return results, errors included."""
    barrier = threading.Barrier(len(rivals))
    results: list[Any] = [None] * len(rivals)

    def run(number: int) -> None:
        try:
            barrier.wait(timeout=30)
            results[number] = rivals[number]()
        except ControlPlaneError as error:
            results[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(rivals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def ask(name: str, profile: str = "1g.10gb", vcpu: int = 1, memory_gib: int = 1) -> BareAsk:
    return BareAsk(name, AllocationSpec((UnitAsk(GpuAsk("H100-80GB", profile), vcpu, memory_gib),)))


def estate(binding: str = "device", hosts: int = 4) -> None:
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"]})
    for _ in range(hosts):
        factories.host(provider, gpus=8, vcpu=10_000, memory_gib=10_000, binding=binding)


DIMENSIONS = {
    "gpu.H100-80GB.slices": ("1g.10gb", 1, 1, 1),
    "gpu.H100-80GB.1g.10gb": ("1g.10gb", 1, 1, 1),
    "vcpu": ("1g.10gb", 3, 1, 3),
    "memory_gib": ("1g.10gb", 1, 5, 5),
}
RACES = [
    pytest.param(dimension, on_parent, marks=[] if on_parent and dimension.startswith("gpu") else pytest.mark.slow)
    for dimension in DIMENSIONS
    for on_parent in (False, True)
]
"""Slices and profiles under a parent's limit by default, all in CI."""


def limited(tenant: Tenant, dimension: str, amount: int) -> None:
    for other in ("gpu.H100-80GB.slices", "vcpu", "memory_gib", "boundaries"):
        if other != dimension:
            factories.set_limit(tenant, other, 1_000_000)
    factories.set_limit(tenant, dimension, amount)


@pytest.mark.parametrize(("dimension", "on_parent"), RACES)
def test_eight_racers_never_go_beyond_a_quota(dimension: str, on_parent: bool, now: datetime) -> None:
    estate()
    profile, vcpu, memory, each = DIMENSIONS[dimension]
    parent = factories.tenant()
    children = [factories.tenant(parent=parent), factories.tenant(parent=parent)]
    limited(parent, dimension, 5 * each if on_parent else 1_000_000)
    for child in children:
        limited(child, dimension, 1_000_000 if on_parent else 5 * each)
    racers = [children[n % 2 if on_parent else 0] for n in range(RACERS)]
    actors = {c.pk: factories.actor(factories.member(c)) for c in children}

    for turn in range(ROUNDS):
        results = race(
            [
                lambda n=n, t=t, turn=turn: allocations.create(
                    tenant=t, ask=ask(f"r{turn}-{n}", profile, vcpu, memory), actor=actors[t.pk], now=now
                )
                for n, t in enumerate(racers)
            ]
        )
        won = [r for r in results if isinstance(r, Allocation)]
        lost = [r for r in results if isinstance(r, QuotaExceeded)]
        assert (len(won), len(lost)) == (5, 3), results
        used = QuotaCharge.objects.filter(dimension=dimension).aggregate(s=Sum("amount"))["s"]
        assert used == 5 * each
        for row in won:
            allocations.release(allocation=row, actor=actors[row.tenant_id], now=now)
            with transaction.atomic():
                allocations.finish(row, now=now)


def test_a_naive_check_fails_the_same_race(now: datetime) -> None:
    tenant = factories.tenant()
    factories.set_limit(tenant, "vcpu", 5)

    def naive(number: int) -> bool:
        """Read the sum, then insert: what the ledger must not do."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(sum(amount), 0) FROM tenants_quotacharge WHERE tenant_id = %s", [tenant.pk])
            if cursor.fetchone()[0] >= 5:
                return False
            row = Allocation.objects.create(
                tenant=tenant, name=f"n{number}", spec={}, demand={"vcpu": 1}, duration_s=60, created_at=now
            )
            QuotaCharge.objects.create(tenant=tenant, allocation=row, dimension="vcpu", amount=1, created_at=now)
        return True

    over = 0
    for turn in range(20):
        won = sum(race([lambda n=n, turn=turn: naive(turn * 100 + n) for n in range(RACERS)]))
        over += won > 5
        QuotaCharge.objects.all().delete()
        Allocation.objects.all().delete()
    assert over > 0


@pytest.mark.parametrize(
    "binding", ["host", pytest.param("device", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.slow)]
)
def test_sixty_four_clients_never_share_a_window(binding: str, now: datetime) -> None:
    estate(binding, hosts=8)
    tenants = [factories.tenant() for _ in range(4)]
    for tenant in tenants:
        factories.generous(tenant)
    actors = {t.pk: factories.actor(factories.member(t)) for t in tenants}
    profiles = ["1g.10gb", "2g.20gb", "3g.40gb", ""]

    results = race(
        [
            lambda n=n: allocations.create(
                tenant=tenants[n % 4], ask=ask(f"c{n}", profiles[n % 4]), actor=actors[tenants[n % 4].pk], now=now
            )
            for n in range(64)
        ]
    )

    placed = [r for r in results if isinstance(r, Allocation) and r.queued_at is None]
    assert Hold.objects.count() == len(placed)
    if binding == "device":
        assert len(placed) == 64
    assert all(isinstance(r, Allocation) for r in results)
    assert audit.findings(audit.LEDGER) == []
