"""One point's world inside a forked child: a cloned database, a copied estate, a clock of its own.

A sweep is the product's own (`provisioners.sweep.sweep`); between two of them the clock moves by `SWEEP_S`.
A sweep that finds nothing due is not counted and not run: time goes straight to the next due row.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final, Protocol

from django.db import connection, connections
from django.db.models import Q

from provisioners import lease, sweep
from provisioners.driver import Driver
from provisioners.kinds import PASSES
from provisioners.passes import Engine
from tenants import audit
from tenants.host_plans import MOVING
from tenants.models import (
    Finding,
    GatewayReplica,
    GpuDevice,
    Hold,
    HostPlan,
    Intent,
    Provider,
    QuotaCharge,
    UsageRecord,
)
from tests.crash.clock import Clock
from tests.crash.provider import DEADLINE_S, EstateAccess

SWEEP_S: Final = 1.0
TTL_S: Final = 1.0
_renewing = 0
"""The process whose thread renews leases."""
LONGEST_PAUSE_S: Final = 130.0
"""Passes pause for at most a minute by themselves; a row that is due later waits for something else."""


class Estate(Protocol):
    """What a point has at its provider, as the table looks at it."""

    def driver(self, *, deadline_s: float) -> Driver:
        """Return the product's driver for it."""
        ...

    def everything(self) -> dict[str, list[str]]:
        """Return ids by word: `objects`, `gateways`, `running` units, `tasks` at work, and what was `begun`."""
        ...

    def truth(self) -> list[dict[str, Any]]:
        """Return who really uses which window: `unit`, `name`, `device`, `start`, `size`."""
        ...

    def leftovers(self) -> list[str]:
        """Return whatever of ours still exists."""
        ...

    def await_rest(self) -> None:
        """Wait until it does nothing by itself; one on the point's clock does nothing."""
        ...

    def is_waited_for(self) -> bool:
        """Whether the last answers of its driver said that something is under way which only its own time ends."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """Where a point happens; all a child needs to know."""

    database: str
    provider_url: str
    estate: str
    clock: Clock
    deadline_s: float = DEADLINE_S

    def access(self) -> Estate:
        """Return the point's own part of the provider."""
        return EstateAccess(self.provider_url, self.estate)


class Alarms(logging.Handler):
    """Keeps what was logged as an error (a pass that failed by a bug of ours says so there), and what broke a rule."""

    def __init__(self) -> None:
        """Listen to errors."""
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one, with the last line of its traceback."""
        cause = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] is not None else ""
        self.said.append(f"{record.getMessage()}{cause}")


@dataclass(slots=True)
class World:
    """What a child works with."""

    site: Site
    engine: Engine
    estate: Estate
    alarms: Alarms = field(default_factory=Alarms)
    sweeps: int = 0
    """Sweeps begun that found something due."""
    waits: int = 0
    """Those of them after which only the provider's own time could end something."""

    @property
    def clock(self) -> Clock:
        """Return the point's clock."""
        return self.site.clock

    def sweep(self) -> int:
        """Run what is due now; what must hold at every time is looked at afterwards."""
        self.sweeps += 1
        made = sweep.sweep(self.engine)
        self.waits += self.estate.is_waited_for()
        self.alarms.said += unheld(self)
        return made

    def drive(self, done: Callable[[], bool], *, most: int) -> int | None:
        """Sweep until `done`; return how many sweeps that took, None if it did not come after `most` or got stuck."""
        for count in range(1, most + 1):
            self.sweep()
            if done():
                return count
            if not self.wait_for_due():
                return None
        return None

    def wait_for_due(self) -> bool:
        """Move the clock to the next sweep that finds something due; False when nothing will be."""
        self.estate.await_rest()
        now = self.clock()
        later = next_due()
        if later is None or later > now + timedelta(seconds=LONGEST_PAUSE_S):
            return False
        self.clock.move(SWEEP_S)
        while self.clock() < later:
            self.clock.move(SWEEP_S)
        return True

    def outlive_leases(self) -> None:
        """Move the clock past the end of every lease."""
        ends = [row.lease_expires_at for row in Provider.objects.filter(lease_expires_at__isnull=False)]
        for kind in PASSES.values():
            held = kind.model._base_manager.filter(lease_expires_at__isnull=False)
            ends += held.values_list("lease_expires_at", flat=True)
        latest = max([self.clock(), *(end for end in ends if end is not None)])
        self.clock.set(latest.timestamp() + 0.01)

    def calm_down(self) -> None:
        """Let the inventory see what has come about, and passes look at what it found; then nothing moves any more."""
        self.clock.move(SWEEP_S)
        Provider.objects.update(due_at=self.clock())
        self.sweep()  # what the snapshot makes due is due in the same sweep

    def explain(self) -> list[str]:
        """Return what stands where, for failed points."""
        lines = []
        for kind in PASSES.values():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                said = [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in row.conditions]
                due = None if row.due_at is None else round((row.due_at - self.clock()).total_seconds(), 2)
                lines.append(f"{kind.word} {row.phase} due in {due} failures={row.failures} {said}")
        lines += [f"intent {i.step} undo={i.undo} {i.outcome or 'open'}" for i in Intent.objects.order_by("started_at")]
        return [*lines, *self.estate.leftovers()]


def enter(site: Site, wrap: Callable[[Driver], Any] | None = None) -> World:
    """Turn this process into a worker of one point; `wrap` stands between it and its provider."""
    global _renewing  # noqa: PLW0603 - a fork inherits it, and must not use a lock whose thread is not there
    if _renewing != os.getpid():
        _renewing = os.getpid()
        setattr(lease, "_RENEWER", lease._Renewer())  # noqa: B010
    connections["default"].settings_dict["NAME"] = site.database
    # The lease counts what it has left on the monotonic clock; here time is what the point says it is.
    setattr(lease, "time", SimpleNamespace(monotonic=site.clock.seconds))  # noqa: B010 - mypy knows no `lease.time`
    estate = site.access()
    driver = estate.driver(deadline_s=site.deadline_s)
    wrapped = driver if wrap is None else wrap(driver)
    engine = Engine(
        clock=site.clock,
        driver_of=lambda _provider: wrapped,
        ttl=timedelta(seconds=TTL_S),
        base_s=SWEEP_S / 10,
        jitter=lambda: 1.0,
    )
    world = World(site, engine, estate)
    logging.getLogger().handlers = [world.alarms]
    return world


def leave() -> None:
    """Undo `enter` in a process that will fork: no connection stays."""
    connections.close_all()
    connections["default"].settings_dict["NAME"] = "none"
    setattr(lease, "time", time)  # noqa: B010


def next_due() -> datetime | None:
    """Return when the next row of any pass or plan is due (a held one: when its lease ends), None for never."""
    rows = [
        kind.model._base_manager.filter(released_at__isnull=True, due_at__isnull=False).order_by("due_at")
        for kind in PASSES.values()
    ]
    if HostPlan.objects.filter(state="running").exists():  # plans are looked at with the inventory of their provider
        rows.append(Provider.objects.filter(due_at__isnull=False).order_by("due_at"))
    firsts = [each.values_list("due_at", flat=True)[:1] for each in rows]
    return min((at for at in firsts[0].union(*firsts[1:], all=True) if at is not None), default=None)


def alone() -> None:
    """Wait until PostgreSQL has noticed that every other process of this database is dead."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for _ in range(2000):
        with connection.cursor() as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
            if row is None or not row[0]:
                return
            cursor.execute("SELECT pg_sleep(0.002)")
    raise AssertionError("the killed process's session is still there")


# --- what must hold at the end -------------------------------------------------------------------------


def contradictions(world: World) -> list[str]:
    """Return what is wrong with a world at rest: our rows, the ledger and the provider must say the same."""
    found = [f"audit {finding.check}: {finding.detail}" for finding in audit.findings()]
    found += [f"on the way: {text}" for text in world.alarms.said]
    found += [f"open intent {intent.step} of {intent.object_kind}" for intent in Intent.objects.filter(settled_at=None)]
    found += [f"finding {row.kind}: {row.detail}" for row in Finding.objects.filter(resolved_at=None)]
    there = world.estate.everything()
    wanted: list[str] = []
    for word, kind in PASSES.items():
        for row in kind.model._base_manager.filter(released_at__isnull=True):
            if row.lease_expires_at is not None:
                found.append(f"{word} is still leased")
            if word != "allocation":
                wanted.append(str(getattr(row, "seat", None) or row.pk))
    found += _compare("object", Counter(wanted), Counter(there["objects"]))
    gateways = GatewayReplica.objects.filter(removed_at__isnull=True).values_list("pk", flat=True)
    found += _compare("gateway", Counter(map(str, gateways)), Counter(there["gateways"]))
    found += [f"task {step} still runs" for step in there["tasks"]]
    return found + ledger_against_truth(world)


def ledger_against_truth(world: World) -> list[str]:
    """Return where holds and the provider's true uses differ, window by window; bare room shows no use.

    A unit that is switched off keeps its hold and uses nothing; its hold is compared with the wish only.
    """
    held: dict[str, set[tuple[str, int, int]]] = {}
    for hold in Hold.objects.filter(kind="tenant").select_related("device"):
        held.setdefault(str(hold.unit_id), set()).add((hold.device.provider_ref, hold.start, hold.size))
    found = []
    used: dict[str, set[tuple[str, int, int]]] = {}
    for use in world.estate.truth():
        used.setdefault(use["unit"], set()).add((use["device"], use["start"], use["size"]))
    for unit, windows in used.items():
        if not unit:
            continue
        if unit not in held:
            found.append(f"unit {unit} runs and holds nothing")
        elif windows != held[unit]:
            found.append(f"unit {unit} runs on {sorted(windows)} and holds {sorted(held[unit])}")
    running = set(world.estate.everything()["running"])
    return found + [f"unit {unit} runs unseen" for unit in running - used.keys()]


def unheld(world: World) -> list[str]:
    """Return uses without room in the ledger: a unit that runs holds its window, or is known to be leaving it."""
    holds = Hold.objects.filter(Q(kind="tenant") | Q(kind="foreign", note__startswith=MOVING))
    known = {str(unit or note.removeprefix(MOVING)) for unit, note in holds.values_list("unit_id", "note")}
    return [f"unit {use['unit']} runs on {use['device']} and holds nothing" for use in world.estate.truth()
            if use["unit"] and use["unit"] not in known]  # fmt: skip


def double_use(world: World) -> list[str]:
    """Return windows that two users have at the same time, by the provider's own truth."""
    taken: dict[tuple[str, int], str] = {}
    found = []
    for use in world.estate.truth():
        who = use["unit"] or use["name"]
        for slot in range(use["start"], use["start"] + use["size"]):
            other = taken.setdefault((use["device"], slot), who)
            if other != who:
                found.append(f"slot {slot} of {use['device']} is used by {other} and {who}")
    return found


def leaks(world: World) -> list[str]:
    """Return whatever is left after everything was deleted."""
    found = [f"left at the provider: {line}" for line in world.estate.leftovers()]
    found += [f"leaked {hold.kind} hold on {hold.device_id}" for hold in Hold.objects.all()]
    found += [f"leaked charge {charge.dimension}" for charge in QuotaCharge.objects.all()]
    found += [f"open usage record {record.pk}" for record in UsageRecord.objects.filter(held_to__isnull=True)]
    for device in GpuDevice.objects.all():
        if device.free != (1 << device.slots) - 1:
            found.append(f"{device.provider_ref} has mask {device.free}")
    return found


def _compare(what: str, wanted: Counter[str], there: Counter[str]) -> list[str]:
    found = [f"{count} × {what} {uid} too few" for uid, count in (wanted - there).items()]
    return found + [f"orphan or duplicate {what} {uid} (× {count})" for uid, count in (there - wanted).items()]


def provider_row() -> Provider:
    """Return the one provider."""
    return Provider.objects.get()


def at(seconds: float) -> datetime:
    """Return a time of the shared clock as a datetime."""
    return datetime.fromtimestamp(seconds, UTC)
