"""A small world for passes: an estate in this process, its provider row, a clock that tests move, and `drive`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from provisioners import sweep
from provisioners.passes import Engine
from provisioners.sandbox import control, files
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from tenants import gpu_catalogue
from tenants.models import GpuDevice, Host, Outbox, Provider, Reconciled
from tests import factories
from tests.conftest import NOW

DOCUMENT: Mapping[str, Any] = {
    "schema": files.SCHEMA,
    "hosts": [
        {
            "host": "node-1", "name": "node-1", "binding": "device", "boundary_kinds": ["namespace"],
            "vcpu": 64, "memory_gib": 512, "gpus": [{"product": "H100-80GB", "count": 2}],
        },
        {
            "host": "esxi-1", "name": "esxi-1", "binding": "host", "boundary_kinds": ["vm"],
            "vcpu": 64, "memory_gib": 512, "gpus": [{"product": "A100-80GB", "count": 2}],
        },
        {
            "host": "esxi-2", "name": "esxi-2", "binding": "host", "boundary_kinds": ["vm"],
            "vcpu": 64, "memory_gib": 512, "gpus": [{"product": "A100-80GB", "count": 2}],
        },
    ],
}  # fmt: skip


@dataclass(slots=True)
class FakeClock:
    """A clock that stands still until it is moved."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def timestamp(self) -> float:
        """Return it as the sandbox counts: seconds since the epoch."""
        return self.now.timestamp()

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass(slots=True)
class World:
    """One provider: the estate behind it, and an engine that runs passes on it."""

    estate: Estate
    provider: Provider
    clock: FakeClock
    engine: Engine

    def sweep(self) -> int:
        """Run what is due now."""
        return sweep.sweep(self.engine)

    def drive(self, until: Callable[[], bool], *, most: int = 60, step_s: float = 1.0) -> int:
        """Sweep and move the clock until a condition holds; return the number of sweeps. Fails after `most`."""
        for count in range(1, most + 1):
            self.sweep()
            if until():
                return count
            self.clock.move(step_s)
        raise AssertionError(f"not reached after {most} sweeps:\n{self.explain()}")

    def explain(self) -> str:
        """Return what stands where, for failing tests."""
        lines = []
        for kind in sweep.PASSES.values():
            for row in kind.model._base_manager.all():
                conditions = [f"{c['type']}={c['status']} {c['reason']} {c['message']}" for c in row.conditions]
                lines.append(f"{kind.word} {row.phase} due={row.due_at} failures={row.failures} {conditions}")
        return "\n".join([*lines, *self.estate.state.objects, *(line.text for line in self.estate.state.logs)])


class OneAtATime:
    """The sandbox's core takes one call at a time; passes in several threads must queue for it."""

    def __init__(self, driver: InProcessSandbox) -> None:
        self._driver = driver
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._driver, name)

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return act(*args, **options)

        return call


def world(document: Mapping[str, Any] = DOCUMENT, *, delays: bool = False, snapshots: bool = False) -> World:
    """Make a provider whose estate is in this process, with its hosts open; `snapshots` lets sweeps read it."""
    clock = FakeClock()
    estate = Estate(files.build(document), clock=clock.timestamp, url="http://sandbox.invalid")
    if not delays:
        control.no_delays(estate)
    driver = OneAtATime(InProcessSandbox(estate))
    provider = factories.provider(
        capabilities=inventory_of(estate), due_at=NOW + timedelta(days=3650) if not snapshots else None
    )
    rows_of(estate, provider)
    engine = Engine(clock=clock, driver_of=lambda _provider: driver, base_s=0.5, jitter=lambda: 1.0)
    return World(estate, provider, clock, engine)


def inventory_of(estate: Estate) -> dict[str, Any]:
    """Return what the domain keeps of a provider's capabilities."""
    shown = estate.capabilities()
    return {
        "boundary_kinds": sorted(str(kind) for kind in shown.boundary_kinds),
        "bindings": sorted(str(binding) for binding in shown.bindings),
        "features": dict(shown.features),
    }


def rows_of(estate: Estate, provider: Provider) -> None:
    """Make the rows of an estate's hosts and GPUs, open for placement."""
    for seen in estate.snapshot().hosts:
        host = Host.objects.create(
            provider=provider, provider_ref=seen.host, name=seen.name, state="open", binding=str(seen.binding),
            gpu_product=seen.gpus[0].product, total_vcpu=seen.vcpu, total_memory_gib=seen.memory_gib,
            free_vcpu=seen.vcpu, free_memory_gib=seen.memory_gib, gpu_count=len(seen.gpus),
            empty_gpus=len(seen.gpus), created_at=NOW, **_kinds(seen.boundary_kinds),
        )  # fmt: skip
        for gpu in seen.gpus:
            slots = gpu_catalogue.product(gpu.product).slices
            GpuDevice.objects.create(
                host=host, provider=provider, provider_ref=gpu.device, index=gpu.index, product=gpu.product,
                slots=slots, free=(1 << slots) - 1, mode="empty", layout_change=gpu.layout_change, created_at=NOW,
            )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("SELECT ledger_refresh_placeable(%s)", [provider.pk])


def _kinds(kinds: frozenset[Any]) -> dict[str, Any]:
    known = {field.name for field in Host._meta.get_fields()}
    return {"boundary_kinds": sorted(str(kind) for kind in kinds)} if "boundary_kinds" in known else {}


def is_ready(row: Reconciled) -> Callable[[], bool]:
    """Return a condition: the row is Ready."""
    return lambda: fresh(row).phase == "Ready"


def is_gone(*rows: Reconciled) -> Callable[[], bool]:
    """Return a condition: the rows are Released."""
    return lambda: all(fresh(row).released_at is not None for row in rows)


def fresh(row: Any) -> Any:
    """Return a row as it is stored now."""
    return type(row)._base_manager.get(pk=row.pk)


def nudges() -> Sequence[tuple[str, str]]:
    """Return what the outbox holds."""
    return [(row.object_kind, str(row.object_id)) for row in Outbox.objects.order_by("object_id")]
