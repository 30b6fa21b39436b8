"""Where the history is played: estates in this process, the product's own passes, and a clock between them.

A sweep is the product's (`provisioners.sweep`). Time goes in steps of a sweep where something is under way, and
straight on where nothing is. Providers that are not of the demo are reached as ever.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import Min

from controlplane.demo.clock import SimulatedClock
from controlplane.demo.sites import BOOT_S, LOAD_S, SITES, SLOW, Site, document
from provisioners import connections, sweep
from provisioners.driver import Driver
from provisioners.kinds import PASSES
from provisioners.passes import Engine
from provisioners.sandbox import control, files
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from tenants.actor import SYSTEM
from tenants.models import Provider
from tenants.transactions import acting, reading

STEP_S: Final = 10.0
"""Least time between two sweeps of the past: what a control plane without nudges takes."""
PATIENCE: Final = timedelta(minutes=8)
"""What is not done by then waits for something else; time goes on without it."""
LOOK_EVERY_S: Final = 6 * 3600.0


@dataclass(slots=True)
class Stage:
    """Clock, estates by provider name, and the engine that runs passes on them."""

    clock: SimulatedClock
    estates: Mapping[str, Estate]
    engine: Engine
    dice: random.Random
    sweeps: int = 0

    @property
    def now(self) -> datetime:
        """Return the simulated time."""
        return self.clock()

    def sweep(self) -> None:
        """Run what is due now."""
        self.sweeps += 1
        sweep.sweep(self.engine)

    def until(self, moment: datetime) -> None:
        """Run whatever falls due by itself until a moment, then stand at it.

        While hardware is at work, time goes to the next end of it: passes between would only see it working.
        """
        began = self.now
        while (due := next_due()) is not None and due <= moment and self.now < moment:
            wake = max(due, self.now + timedelta(seconds=STEP_S))
            ends = self._ends()
            if ends:
                wake = max(wake, datetime.fromtimestamp(min(ends), UTC))
            elif due > self.now + timedelta(minutes=1):
                began = due
            if wake - began > PATIENCE:
                break
            self.clock.set(min(moment, wake))
            self.sweep()
        self.clock.set(moment)

    def _ends(self) -> list[float]:
        """Return when what the hardware is at will be done: tasks, starting systems, loading models."""
        found = [task.ends_at for estate in self.estates.values() for task in estate.state.tasks.values()]
        for estate in self.estates.values():
            for unit in estate.state.workloads.values():
                found += [unit.ready_at, unit.report_at, (unit.serving or {}).get("ready_at", 0.0)]
        return [end for end in found if end > self.clock.seconds()]

    def work(self, seconds: float) -> None:
        """Let so much time pass, with all that falls due in it."""
        self.until(self.now + timedelta(seconds=seconds))

    def look(self, times: int = 2) -> None:
        """Take snapshots of the demo's providers, and let passes follow them."""
        for _ in range(times):
            self.clock.move(STEP_S)
            with acting(SYSTEM):
                Provider.objects.filter(name__in=list(self.estates)).update(due_at=self.now)
            self.sweep()

    def vary(self) -> None:
        """Let steps take a little more or less from now on, as they do."""
        factor = self.dice.uniform(0.75, 1.6)
        for estate in self.estates.values():
            changes = {"delays_s": {name: round(s * factor, 2) for name, s in SLOW.items()}}
            control.change_settings(estate, {**changes, "boot_s": BOOT_S * factor, "load_s": LOAD_S * factor})

    def calm_down(self) -> None:
        """Let estates work at the pace of a live demo from now on, with real gateways for what is made then."""
        fresh = files.build({"schema": files.SCHEMA, "hosts": []}).settings
        names = ("delays_s", "boot_s", "load_s", "report_delay_s")
        for estate in self.estates.values():
            control.change_settings(estate, {**{name: getattr(fresh, name) for name in names}, "gateways": "real"})


def stage(start: datetime, *, url: str, small: bool) -> Stage:
    """Build the sites; `url` is where the sandbox server will serve them. Writes nothing."""
    clock = SimulatedClock(start)
    estates = {site.provider: _estate(site, clock, url, small=small) for site in SITES}
    drivers: dict[str, Driver] = {name: InProcessSandbox(estate) for name, estate in estates.items()}

    def driver_of(provider: Provider) -> Driver:
        return drivers.get(provider.name) or connections.driver_of(provider)

    dice = random.Random(20260401)  # noqa: S311 - a seeded choice that repeats is the point
    return Stage(clock, estates, Engine(clock=clock, driver_of=driver_of, jitter=lambda: 1.0), dice)


def _estate(site: Site, clock: SimulatedClock, url: str, *, small: bool) -> Estate:
    state = files.build(document(site, small=small))
    return Estate(state, clock=clock.seconds, url=f"{url}/estates/{site.provider}")


@contextmanager
def rare_snapshots() -> Iterator[None]:
    """Let this process look at providers each `LOOK_EVERY_S` of simulated time: nothing happens there by itself."""
    before = settings.TENANTRY_INVENTORY_S
    settings.TENANTRY_INVENTORY_S = LOOK_EVERY_S
    try:
        yield
    finally:
        settings.TENANTRY_INVENTORY_S = before


def next_due() -> datetime | None:
    """Return when the next row of any pass is due, None for never. Providers fall due all the time and do not count."""
    with reading(SYSTEM):
        times = [
            kind.model._base_manager.filter(released_at__isnull=True, due_at__isnull=False).aggregate(at=Min("due_at"))
            for kind in PASSES.values()
        ]
    return min((row["at"] for row in times if row["at"] is not None), default=None)


def estate_of(stage: Stage, provider: UUID) -> Estate:
    """Return the estate of a provider of the demo."""
    with reading(SYSTEM):
        return stage.estates[Provider.objects.get(pk=provider).name]
