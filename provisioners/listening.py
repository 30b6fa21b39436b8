"""Listening to providers that tell what changed: each ring makes a row due now, and nothing else.

    changes of a driver ─► bell (one ring per object and moment) ─► due_at ─► the dispatcher's next look

Runs beside the dispatcher, a thread per provider. A ring is a hint: what is so, the pass finds out by looking. Rings
that are lost, late or repeated do no harm; what nobody heard, the sweeps' snapshots find. Our own changes ring too:
the pass that they cause changes nothing, so it is the last.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.utils import timezone

from provisioners import connections, lease
from provisioners.driver import Driver, DriverError, Kind, NotSupported, Ref, TellsChanges
from provisioners.inventory_objects import MODELS, live, placed
from provisioners.passes import in_transaction
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import Provider
from tenants.transactions import acting

log = logging.getLogger(__name__)

GATHER_S: Final = 0.2
"""A ring waits so long for others about the same object."""
BURST: Final = 10
"""So many rings of one object go through at once; after that one in `REFILL_S`."""
REFILL_S: Final = 5.0
"""Whoever changes an object of ours back again and again gets no more of our time than this."""
SETTLE: Final = timedelta(seconds=1)
"""A row that a pass is at is looked at once more so long after the ring: most likely the pass itself rang."""
FOLLOW_S: Final = 2.0
"""Between looks at which providers there are."""
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
MOST_REMEMBERED: Final = 10_000

Clock = Callable[[], datetime]
DriverOf = Callable[[Provider], Driver]
Rung = tuple[UUID, Ref]
"""(Provider, whose object)."""


class Bell:
    """Gathers rings of all listeners; each object comes out once per moment, and no oftener than is good."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[Rung, float] = {}
        """Ring → when it comes out."""
        self._spent: dict[Rung, tuple[float, float]] = {}
        """Ring → (how many lately, when that was counted)."""

    def ring(self, rung: Rung) -> None:
        """Let an object be looked at soon."""
        with self._changed:
            if rung in self._waiting:
                return
            now = self._clock()
            lately = self._lately(rung, now) + 1
            self._spent[rung] = (lately, now)
            self._waiting[rung] = now + max(GATHER_S, (lately - BURST) * REFILL_S)
            self._changed.notify()

    def take(self, *, wait_s: float = 0.0) -> list[Rung]:
        """Return the rings whose moment has come, waiting for one for at most `wait_s`."""
        with self._changed:
            pause = min([wait_s, *(at - self._clock() for at in self._waiting.values())])
            if pause > 0:
                self._changed.wait(pause)
            now = self._clock()
            ripe = [rung for rung, at in self._waiting.items() if at <= now]
            for rung in ripe:
                del self._waiting[rung]
            if len(self._spent) > MOST_REMEMBERED:
                self._spent = {rung: self._spent[rung] for rung in self._spent if self._lately(rung, now) > 0}
            return ripe

    def _lately(self, rung: Rung, now: float) -> float:
        count, at = self._spent.get(rung, (0.0, now))
        return max(0.0, count - (now - at) / REFILL_S)


def nudge(rings: Iterable[Rung], now: datetime) -> int:
    """Make the rows of objects due; return how many were not yet. What is no row of ours rings nobody."""
    by_kind: dict[tuple[UUID, Kind], set[UUID]] = defaultdict(set)
    for provider, ref in rings:
        if ref.kind in MODELS:
            by_kind[provider, ref.kind].add(ref.uid)
    return sum(in_transaction(partial(_nudge, *of, uids, now)) for of, uids in sorted(by_kind.items()))


def _nudge(provider: UUID, kind: Kind, uids: set[UUID], now: datetime) -> int:
    rows = placed(live(MODELS[kind], provider)).filter(place__in=uids)
    # Held ones first: a pass that ends in between leaves its row to the second statement.
    soon = now + SETTLE
    held = rows.filter(lease_expires_at__gt=now, due_at__gt=soon).update(due_at=soon)
    later = Q(due_at__isnull=True) | Q(due_at__gt=now)
    return int(held + rows.filter(lease.free(now), later).update(due_at=now))


@dataclass(slots=True)
class _Listener:
    """One provider, as it was configured when listening began."""

    provider: Provider
    driver_of: DriverOf
    bell: Bell
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"listen-{self.provider.name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        """Listen until told to stop; a provider that never tells anything is left to the sweeps."""
        failures = 0
        while not self.stop.is_set():
            try:
                driver = self._driver()
                if not isinstance(driver, TellsChanges):
                    return
                for ref in driver.changes(self.stop):
                    failures = 0
                    self.bell.ring((self.provider.pk, ref))
            except NotSupported:
                return
            except (DriverError, DependencyDown) as error:
                if not failures:
                    log.warning(
                        "a provider is not listened to: %s", error.detail, extra={"provider": self.provider.name}
                    )
            except Exception:
                log.exception("listening to a provider failed", extra={"provider": self.provider.name})
            failures += 1
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** min(failures - 1, 10))
            self.stop.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, hides nothing

    def _driver(self) -> Driver:
        try:
            return self.driver_of(self.provider)
        finally:
            connection.close()  # a listener needs the database no more


class Listening:
    """All listeners of one process, and the answering of their rings."""

    def __init__(self, *, clock: Clock = timezone.now, driver_of: DriverOf = connections.driver_of) -> None:
        """Listen to nobody yet."""
        self._clock, self._driver_of = clock, driver_of
        self.bell = Bell()
        self.rows_nudged = 0
        self._listeners: dict[UUID, _Listener] = {}
        self._followed_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Follow the providers and answer until told to stop."""
        unanswered: list[Rung] = []
        try:
            while not stop.is_set():
                unanswered += self.bell.take(wait_s=FOLLOW_S / 4)
                try:
                    if time.monotonic() - self._followed_at >= FOLLOW_S:
                        self.follow()
                    self.rows_nudged += nudge(unanswered, self._clock())
                    unanswered = []
                except DependencyDown:
                    log.warning("the database does not answer; rings wait")
                    stop.wait(1.0)
                except Exception:
                    log.exception("rings were not answered; sweeps find what they were about")
                    connection.close()
                    unanswered = []
                    stop.wait(1.0)
        finally:
            self.close()
            connection.close()

    def follow(self) -> None:
        """Listen to each provider that is in use, as it is configured now, and to no other."""
        self._followed_at = time.monotonic()
        with acting(SYSTEM):
            rows = {row.pk: row for row in Provider.objects.filter(enabled=True, released_at__isnull=True)}
        for pk, listener in list(self._listeners.items()):
            if pk not in rows or rows[pk].version != listener.provider.version:
                listener.stop.set()
                del self._listeners[pk]
        for pk, row in rows.items():
            if pk not in self._listeners:
                self._listeners[pk] = _Listener(row, self._driver_of, self.bell)
                self._listeners[pk].start()

    def listened_to(self) -> frozenset[UUID]:
        """Return the providers that are listened to, or would be if they answered."""
        alive = {pk: one.thread is not None and one.thread.is_alive() for pk, one in self._listeners.items()}
        return frozenset(pk for pk in alive if alive[pk])

    def close(self) -> None:
        """Stop all listeners and wait for their end."""
        for listener in self._listeners.values():
            listener.stop.set()
        for listener in self._listeners.values():
            if listener.thread is not None:
                listener.thread.join(timeout=2)
        self._listeners.clear()


def beside(stop: threading.Event) -> threading.Thread:
    """Start the thread that listens until `stop` is set."""
    thread = threading.Thread(target=Listening().run, args=(stop,), name="listening", daemon=True)
    thread.start()
    return thread
