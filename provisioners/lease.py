"""A worker's timed claim on one row, and the guarded apply at its end.

Claiming is one short transaction (`SKIP LOCKED`); it raises the row's epoch and reads the generation that
the pass works for. Every later write names the epoch: zero rows means that the lease ran out and somebody
else has the row, so the result is dropped (`StaleLease`). No rescuer is needed: an expired lease is free.

A claim sets `due_at` to the lease's end: a worker that dies leaves a row that falls due by itself, and a
nudge that comes meanwhile shows as another value, so the apply at the end never loses it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Q, QuerySet

from tenants import desired
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import Reconciled
from tenants.transactions import acting

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]
LOCKED_TRIES: Final = 5
LOCKED_PAUSE_S: Final = 0.04
"""A row that is due and free but locked for a moment (somebody nudges it) is tried so often again."""
SAFETY_S: Final = 1.0
"""A lease with less than this left (or a fifth of its time, if that is less) counts as lost before a call."""


class StaleLease(Exception):
    """The row's epoch has moved on; whatever this pass found out is dropped."""


@dataclass(slots=True)
class Claim:
    """One row, for this worker, until it is released or runs out."""

    kind: str
    model: type[Reconciled]
    pk: UUID
    epoch: int
    generation: int
    """As read at the claim; the pass's result is about this one."""
    due_marker: datetime
    """What the claim set `due_at` to; another value at the end is a nudge."""
    ttl: timedelta
    clock: Clock
    expires: float = 0.0
    """On the monotonic clock."""
    due_again: datetime | None = None
    """Once a result is applied: when the row falls due next; None for not by itself."""
    lost: threading.Event = field(default_factory=threading.Event)

    @property
    def held(self) -> bool:
        """Whether there is surely time left for one more provider call."""
        ttl_s = self.ttl.total_seconds()
        return not self.lost.is_set() and time.monotonic() < self.expires - min(SAFETY_S, ttl_s / 5)

    def lock(self) -> Any:
        """Return the row locked in the open transaction. Raises `StaleLease`."""
        rows = self.model._base_manager.select_for_update(no_key=True)
        row = rows.filter(pk=self.pk, lease_epoch=self.epoch, released_at__isnull=True).first()
        if row is None:
            self.lost.set()
            raise StaleLease
        return row

    def renew(self) -> None:
        """Move the lease's end; marks the claim lost when it is somebody else's."""
        started = time.monotonic()
        with acting(SYSTEM):
            rows = self.model._base_manager.filter(pk=self.pk, lease_epoch=self.epoch)
            renewed = rows.update(lease_expires_at=self.clock() + self.ttl)
        if renewed:
            self.expires = started + self.ttl.total_seconds()
        else:
            self.lost.set()


def ttl_setting() -> timedelta:
    """Return the configured life of a lease."""
    return timedelta(seconds=settings.TENANTRY_LEASE_TTL_S)


def owner_name() -> str:
    """Return this process's name in `lease_owner`, for operators."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}"


def free(now: datetime) -> Q:
    """Return the condition of rows that nobody holds."""
    return Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=now)


@contextmanager
def claim(
    kind: str, model: type[Reconciled], pk: UUID, *, clock: Clock, ttl: timedelta | None = None, due_only: bool = True
) -> Iterator[Claim | None]:
    """Claim one row that is due and free, renew it while the block runs; None when there is nothing to claim."""
    length = ttl or ttl_setting()
    claimed = _take_unless_held(kind, model, pk, clock=clock, ttl=length, due_only=due_only)
    if claimed is None:
        yield None
        return
    _RENEWER.watch(claimed)
    try:
        yield claimed
    finally:
        _RENEWER.forget(claimed)


def _take_unless_held(
    kind: str, model: type[Reconciled], pk: UUID, *, clock: Clock, ttl: timedelta, due_only: bool
) -> Claim | None:
    """Claim a row; one that is only locked is tried again, else the message that brought us here would be lost."""
    for number in range(1, LOCKED_TRIES + 1):
        claimed = _take(kind, model, pk, clock=clock, ttl=ttl, due_only=due_only)
        if claimed is not None or number == LOCKED_TRIES:
            return claimed
        with acting(SYSTEM):
            if not _claimable(model, pk, clock(), due_only=due_only).exists():
                return None
        threading.Event().wait(LOCKED_PAUSE_S)
    return None


def _claimable(model: type[Reconciled], pk: UUID, now: datetime, *, due_only: bool) -> QuerySet[Any]:
    rows = model._base_manager.filter(free(now), pk=pk, released_at__isnull=True)
    return rows.filter(due_at__lte=now) if due_only else rows


def _take(
    kind: str, model: type[Reconciled], pk: UUID, *, clock: Clock, ttl: timedelta, due_only: bool
) -> Claim | None:
    started = time.monotonic()
    with acting(SYSTEM):
        now = clock()
        rows = _claimable(model, pk, now, due_only=due_only).select_for_update(no_key=True, skip_locked=True)
        row = rows.only("pk", "lease_epoch", "generation").first()
        if row is None:
            return None
        until = now + ttl
        model._base_manager.filter(pk=pk).update(
            lease_owner=owner_name(), lease_epoch=row.lease_epoch + 1, lease_expires_at=until, due_at=until
        )
        found = Claim(kind, model, pk, row.lease_epoch + 1, row.generation, until, ttl, clock)
    found.expires = started + ttl.total_seconds()
    return found


def apply(claimed: Claim, row: Any, *, due_at: datetime | None, fields: list[str]) -> None:
    """Store a pass's result on its locked row, give the lease back, and set when to look again.

    `row` is from `claimed.lock()` in the open transaction. A nudge that came during the pass wins: the
    row is then due at the earlier of the two times.
    """
    if row.due_at != claimed.due_marker:
        due_at = row.due_at if due_at is None else min(filter(None, (row.due_at, due_at)))
    row.due_at = claimed.due_again = due_at
    row.lease_owner, row.lease_expires_at = "", None
    row.save(update_fields=sorted({*fields, "due_at", "lease_owner", "lease_expires_at"}))


def hand_back(claimed: Claim, *, due_at: datetime) -> None:
    """Give the lease back without a result, due again at `due_at`; silent when it was lost."""
    try:
        with acting(SYSTEM):
            apply(claimed, claimed.lock(), due_at=due_at, fields=[])
    except StaleLease:
        log.info("lease lost before it was handed back", extra={"kind": claimed.kind, "id": claimed.pk})


def nudge(row: Reconciled, *, at: datetime) -> None:
    """Make another row due now, inside the open transaction."""
    desired.nudge_now(row, at=at)


class _Renewer:
    """One thread per process that renews the claims which last longer than a third of their time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._woken = threading.Condition(self._lock)
        self._claims: dict[int, Claim] = {}
        self._pid = 0

    def watch(self, claimed: Claim) -> None:
        with self._lock:
            if self._pid != os.getpid():  # after a fork no thread of the parent's runs here
                self._pid, self._claims = os.getpid(), {}
                threading.Thread(target=self._run, name="lease-renewer", daemon=True).start()
            self._claims[id(claimed)] = claimed
            self._woken.notify()

    def forget(self, claimed: Claim) -> None:
        with self._lock:
            self._claims.pop(id(claimed), None)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._woken.wait(self._pause())
                late = [c for c in self._claims.values() if time.monotonic() >= self._renew_at(c)]
            for claimed in late:
                try:
                    claimed.renew()
                except DependencyDown:
                    log.warning("the database does not answer: a lease was not renewed", extra={"id": claimed.pk})
                except Exception:
                    log.exception("a lease was not renewed", extra={"kind": claimed.kind, "id": claimed.pk})
                    connection.close()
                if claimed.lost.is_set():
                    self.forget(claimed)

    def _pause(self) -> float | None:
        if not self._claims:
            return None
        return max(0.02, min(self._renew_at(c) for c in self._claims.values()) - time.monotonic())

    @staticmethod
    def _renew_at(claimed: Claim) -> float:
        return claimed.expires - claimed.ttl.total_seconds() * 2 / 3


_RENEWER: Final = _Renewer()
