"""Running the benchmarks that people ask for: each in a process of its own, followed, cancelled, ended.

Runs beside the dispatcher, which needs no broker. The load itself is another process (`provisioners.benchmark`), so
that nothing here is in the way of what it measures, and ends with us. What a process that died had begun is given up
after half a minute, by whoever looks first; a load is never begun twice.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from django.db import connection
from django.utils import timezone

import provisioners
from provisioners import lookout
from provisioners.benchmark.order import PROGRESS, RESULT, TROUBLE, Order
from tenants import endpoint_trust, reach
from tenants.actor import SYSTEM
from tenants.benchmarks import LONGEST, Load, Result, Stopped
from tenants.errors import Conflict, DependencyDown
from tenants.models import Benchmark, Boundary, Provider
from tenants.operations import benchmarks
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
AT_ONCE: Final = 2
"""Loads of one process at the same time; more would measure this machine."""
LOOK_S: Final = 1.0
GIVE_UP_EVERY_S: Final = 10.0
ENDING_S: Final = 8.0
"""So long a load that is to end may take to say what it has measured."""
LATE_S: Final = 60.0
"""So much longer than asked for its process may live."""
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR")
Clock = Callable[[], datetime]
Prefix = tuple[str, ...]


def run(row: Benchmark, secret: str, clock: Clock) -> None:
    """Run one benchmark that was taken, to its end, and store what came of it."""
    try:
        order = _order(row, secret)
    except Conflict as error:
        benchmarks.ended(benchmark=row, result=None, reason=error.detail, actor=SYSTEM, now=clock())
        return
    result, reason = _followed(row, order, clock)
    if result is not None:
        result = replace(result, simulated=_simulated(row))
        reason = reason or _early(result)
    benchmarks.ended(benchmark=row, result=result, reason=reason, actor=SYSTEM, now=clock())


def _order(row: Benchmark, secret: str) -> Order:
    """Return what the process is told. Raises `Conflict` for an endpoint that may not be called from here."""
    provider = _provider(row)
    target = reach.checked(row.endpoint.address, reach.ranges_of(provider))
    load = Load.of(row.load)
    return Order(
        url=target.url,
        host=target.host,
        name=target.name,
        ca_pem=endpoint_trust.ca_pem_of(provider),
        model=row.endpoint.name,
        key=secret,
        longest_s=LONGEST.total_seconds(),
        seed=secrets.randbits(32),
        **load.as_json(),
    )


def _followed(row: Benchmark, order: Order, clock: Clock) -> tuple[Result | None, str]:
    """Run the process and follow it; return (result, why there is none)."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["PYTHONPATH"] = str(Path(provisioners.__file__).resolve().parent.parent)
    with subprocess.Popen(
        [sys.executable, "-m", "provisioners.benchmark"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            process.stdin.flush()
            return _Follower(row, process, clock, longest_s=order.longest_s + LATE_S).follow()
        except OSError as error:
            log.warning("a benchmark's process cannot be talked to: %s", type(error).__name__)
            return None, "The process that was to run it ended at once."
        finally:
            process.kill()


class _Follower:
    """Follows one process: passes progress on once a second, ends it when it is to end."""

    def __init__(self, row: Benchmark, process: subprocess.Popen[bytes], clock: Clock, *, longest_s: float) -> None:
        self._row, self._process, self._clock = row, process, clock
        self._sent = self._failed = 0
        self._result: Result | None = None
        self._reason = ""
        self._ends = time.monotonic() + longest_s

    def follow(self) -> tuple[Result | None, str]:
        """Return (result, why there is none, or why it ended early)."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        number = self._process.stdout.fileno()
        left, told_at, is_ending = b"", 0.0, False
        while time.monotonic() < self._ends:
            if not is_ending and time.monotonic() - told_at >= LOOK_S:
                told_at = time.monotonic()
                if not self._goes_on():
                    is_ending, self._ends = True, time.monotonic() + ENDING_S
                    self._process.stdin.close()
            if not select.select([number], [], [], LOOK_S / 4)[0]:
                continue
            chunk = os.read(number, 65536)
            if not chunk:
                break
            *lines, left = (left + chunk).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        if self._result is None and not self._reason:
            self._reason = "" if is_ending else "The process that ran it ended without a result."
        return self._result, self._reason

    def _hear(self, told: dict[str, Any]) -> None:
        if PROGRESS in told:
            self._sent, self._failed = told[PROGRESS]["sent"], told[PROGRESS]["failed"]
        elif RESULT in told:
            self._result = Result.of(told[RESULT])
        elif TROUBLE in told:
            self._reason = str(told[TROUBLE])

    def _goes_on(self) -> bool:
        try:
            return benchmarks.progressed(
                benchmark=self._row, sent=self._sent, failed=self._failed, actor=SYSTEM, now=self._clock()
            )
        except DependencyDown:
            return True  # the endpoint answers without us, and so does what measures it


def _provider(row: Benchmark) -> Provider:
    """Return where a benchmark's endpoint is. Raises `Conflict` for one that is nowhere."""
    with acting(SYSTEM):
        boundary = Boundary.objects.select_related("provider").filter(endpoints=row.endpoint_id).first()
    if boundary is None:
        msg = "It is nowhere any more."
        raise Conflict(msg)
    return boundary.provider


def _simulated(row: Benchmark) -> str:
    if not _provider(row).capabilities.get("simulated"):
        return ""
    return "gpu" if any(unit.get("engine") for unit in row.endpoint.observed.get("units", ())) else "all"


def _early(result: Result) -> str:
    """Return why a load ended before all its requests were sent, in words; `""` where it did not."""
    said = f" {result.said}" if result.said else ""
    if not result.answered and result.failed:
        most = max(result.errors, key=lambda kind: result.errors[kind])
        return f"No request was answered; most failed with {most}.{said}"
    return {
        Stopped.TIME: f"It took longer than {LONGEST.total_seconds() / 60:.0f} minutes and was ended.",
        Stopped.BUDGET: f"A budget is used up, so the rest was not sent.{said}",
        Stopped.FAILURES: f"So many requests failed one after the other that the rest was not sent.{said}",
    }.get(result.stopped, "")


def beside(stop: threading.Event, *, clock: Clock = timezone.now) -> threading.Thread:
    """Start the thread that runs benchmarks until `stop` is set; whatever goes wrong is logged and tried again."""
    running: list[threading.Thread] = []
    given_up = [0.0]

    def look() -> None:
        running[:] = [each for each in running if each.is_alive()]
        if time.monotonic() - given_up[0] >= GIVE_UP_EVERY_S:
            given_up[0] = time.monotonic()
            benchmarks.give_up(actor=SYSTEM, now=clock())
        while len(running) < AT_ONCE and (taken := benchmarks.take(actor=SYSTEM, now=clock())) is not None:
            thread = threading.Thread(target=one, args=taken, name="benchmark", daemon=True)
            thread.start()
            running.append(thread)

    def one(row: Benchmark, secret: str) -> None:
        try:
            run(row, secret, clock)
        except Exception:
            log.exception("a benchmark failed; it is given up when nobody has heard of it for a while")
        finally:
            connection.close()

    return lookout.start("benchmarking", look, stop, pause_s=PAUSE_S, waits="no benchmark is begun")
