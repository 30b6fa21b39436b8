"""The dispatcher: turns what is due into nudges for workers, and does the work itself when the broker is away.

Nudges are hints. The outbox says that something changed, the rows say what is due; at most one nudge per
object and 100 in all are in flight. One that nobody took in time is forgotten and sent again. Publishing
happens in a thread of its own with a time-out, because a broker may block as well as raise. While it does,
and while messages are sent but nobody takes them, a few threads sweep in this process, so that everything
accepted is still done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.utils.module_loading import import_string

from provisioners import sweep
from provisioners.passes import Engine
from provisioners.sweep import Due
from tenants.errors import DependencyDown

log = logging.getLogger(__name__)

MOST_IN_FLIGHT: Final = 100
TICK_S: Final = 0.1
SCAN_S: Final = 0.5
"""Between looks at what is due while the outbox is empty and nothing was sent for a while."""
AWAKE_S: Final = 3.0
"""So long after a nudge each tick looks at what is due: a step under way is soon polled again."""
LOST_S: Final = 5.0
"""A nudge whose object is still due and free after this long is taken for lost."""
PUBLISH_S: Final = 2.0
"""Longest wait for the broker; then it counts as away."""
RETRY_S: Final = 2.0
"""Between tries of a broker that is away."""
LOCAL_THREADS: Final = 3
HELP_S: Final = 10.0
"""So long passes run here after a nudge was lost: workers are gone, or have too much to do."""
EXPIRES_S: Final = 15.0
"""A message older than this is thrown away unread: a newer one was sent, or a sweep did it."""

Publish = Callable[[Sequence[Due]], None]


def celery_publish(items: Sequence[Due]) -> None:
    """Send one task per item by name. Raises whatever the broker raises."""
    app = import_string(settings.TENANTRY_CELERY_APP)
    for item in items:
        if item.kind == sweep.PROVIDER:
            name, arguments = "provisioners.inventory", {"provider": str(item.pk)}
        else:
            name, arguments = "provisioners.reconcile", {"kind": item.kind, "pk": str(item.pk)}
        app.send_task(name, kwargs=arguments, retry=False, expires=EXPIRES_S, ignore_result=True)


@dataclass(slots=True)
class Dispatcher:
    """One per installation is enough; two do no harm."""

    engine: Engine
    publish: Publish = celery_publish
    in_flight: dict[tuple[str, UUID], tuple[int, float]] = field(default_factory=dict)
    """Object → (its lease epoch, monotonic time) when its nudge was sent."""
    away_since: float | None = None
    """Since when the broker has not taken a message."""
    help_until: float = float("-inf")
    """Passes run here until then (monotonic)."""
    scanned_at: float = float("-inf")
    tried_at: float = float("-inf")
    awake_until: float = float("-inf")
    stop: threading.Event = field(default_factory=threading.Event)
    _sending: Future[None] | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="publish"))
    _local: list[threading.Thread] = field(default_factory=list)

    def run(self) -> None:
        """Dispatch until told to stop; a database that is away is waited for."""
        while not self.stop.is_set():
            try:
                busy = self.tick()
            except DependencyDown:
                log.warning("the database does not answer; the dispatcher waits")
                busy = False
                self.stop.wait(1.0)
            except Exception:
                log.exception("a round of the dispatcher failed")
                connection.close()
                busy = False
                self.stop.wait(1.0)
            self.stop.wait(TICK_S / 4 if busy else TICK_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for thread in self._local:
            thread.join(timeout=10)

    def tick(self) -> bool:
        """Do one round: look for news, send what is due; True when something was sent."""
        now = time.monotonic()
        awake = bool(self.in_flight) or now < self.awake_until or now - self.scanned_at >= SCAN_S
        news, due = sweep.look(self.engine.clock(), always=awake, limit=MOST_IN_FLIGHT)
        if due is None:
            return False
        self.scanned_at = float("-inf") if news else now  # what news made due itself was not there yet
        self._forget_arrived(due, now)
        room = MOST_IN_FLIGHT - len(self.in_flight)
        items = [item for item in due if (item.kind, item.pk) not in self.in_flight][: max(0, room)]
        if not items:
            return False
        self.awake_until = now + AWAKE_S
        return self._send(items, now)

    def _forget_arrived(self, due: Sequence[Due], now: float) -> None:
        """What is not due any more, or was held in between, arrived; what nobody took for a while was lost."""
        epochs = {(item.kind, item.pk): item.epoch for item in due}
        lost = 0
        for key, (epoch, sent) in list(self.in_flight.items()):
            if epochs.get(key) != epoch:
                del self.in_flight[key]
            elif now - sent > LOST_S:
                del self.in_flight[key]
                lost += 1
        if lost:
            log.warning("%d nudges were taken by nobody; passes run here for a while", lost)
            self.help_until = now + HELP_S
            self._help()

    def _send(self, items: Sequence[Due], now: float) -> bool:
        if self._stuck() or (self.away_since is not None and now - self.tried_at < RETRY_S):
            return False
        self.tried_at = now
        # While it is away one message is enough to find out whether it is back.
        batch = items if self.away_since is None else items[:1]
        self._sending = self._pool.submit(self.publish, batch)
        try:
            self._sending.result(timeout=PUBLISH_S)
        except Exception as error:  # noqa: BLE001 - a broker raises anything at all
            self._went_away(error, now)
            return False
        self.in_flight.update({(item.kind, item.pk): (item.epoch, now) for item in batch})
        if self.away_since is not None:
            log.warning("the broker is back after %.0f s", now - self.away_since)
            self.away_since = None
        return True

    def _stuck(self) -> bool:
        """Whether an earlier message still blocks in the broker's client."""
        return self._sending is not None and not self._sending.done()

    def _went_away(self, error: Exception, now: float) -> None:
        if self.away_since is None:
            log.warning("the broker does not take messages (%s); passes run here meanwhile", type(error).__name__)
            self.away_since = now
        self._help()

    def _help(self) -> None:
        """Have the threads that sweep here."""
        self._local = [thread for thread in self._local if thread.is_alive()]
        for number in range(len(self._local), LOCAL_THREADS):
            thread = threading.Thread(target=self._work_here, name=f"local-sweep-{number}", daemon=True)
            self._local.append(thread)
            thread.start()

    def _work_here(self) -> None:
        """Sweep in this thread while it is needed."""
        try:
            while (self.away_since is not None or time.monotonic() < self.help_until) and not self.stop.is_set():
                try:
                    made = sweep.sweep(self.engine, budget_s=5.0)
                except DependencyDown:
                    log.warning("the database does not answer; a local sweep waits")
                    made = 0
                except Exception:
                    log.exception("a local sweep failed")
                    connection.close()
                    made = 0
                self.stop.wait(0.1 if made else SCAN_S)
        finally:
            connection.close()


def default(**changes: Any) -> Dispatcher:
    """Return the dispatcher of a real process."""
    return Dispatcher(sweep.engine(), **changes)
