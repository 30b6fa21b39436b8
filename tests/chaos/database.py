"""PostgreSQL crashed again and again under load: nothing acknowledged is lost, and who asks gets 503 meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Final

import httpx

from tests.chaos import facts
from tests.chaos.clients import Acknowledged, Answers, Client, Load
from tests.chaos.facts import Row
from tests.chaos.stack import TENANT, Stack, pause, until

TIMES: Final = 10
BETWEEN_S: Final = 4.0
NAME: Final = "postgresql"


class Probe:
    """Asks for a list again and again, so that the time without a database is seen from outside."""

    def __init__(self, stack: Stack) -> None:
        """Nothing is asked yet."""
        self.answers = Answers()
        self._url, self._headers = f"{stack.url}/tenants/{TENANT}/allocations", stack.headers()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=20, headers=self._headers) as http:
            while not self._stop.wait(0.05):
                try:
                    self.answers.take(http.get(self._url))
                except httpx.TransportError:
                    self.answers.lost()


def crashes(*, short: bool = False) -> list[Row]:
    """Crash it ten times (short: three) under load, then compare every acknowledgement with the rows."""
    with Stack() as stack:
        return run(stack, times=3 if short else TIMES)


def run(stack: Stack, *, times: int) -> list[Row]:
    """Do it on a running stack; everything is released in the end."""
    stack.allow()
    load, probe = Load(stack, "db", clients=4), Probe(stack)
    probe.start()
    load.start()
    slowest = 0.0
    for _ in range(times):
        pause(BETWEEN_S)
        stack.crash_database()
        began = time.monotonic()
        until(lambda: stack.database.server() is not None, within_s=60, what="PostgreSQL is started again")
        until(lambda: _answers(stack), within_s=60, what="the API answers again")
        slowest = max(slowest, time.monotonic() - began)
    pause(BETWEEN_S)
    load.finish()
    probe.finish()
    rows = [
        Row(NAME, "crashes under load", f"{times}; longest until the API answers again {slowest:.1f} s", ok=True),
        *_answered(load, probe),
        *_kept(stack, load),
    ]
    for made in load.made:
        if not made.deleted:
            _delete(load, made)
    took = facts.all_released(stack)
    rows.append(Row(NAME, "everything released", f"{took:.1f} s after the load", ok=True))
    return [*rows, *facts.once(stack, NAME), *facts.clean(stack, NAME, empty=True)]


def _answers(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.installation.web_url}/readyz", timeout=20, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _answered(load: Load, probe: Probe) -> list[Row]:
    all_wrong = [*load.answers.wrong, *probe.answers.wrong]
    unavailable = load.answers.statuses["503"] + probe.answers.statuses["503"]
    lost = load.answers.statuses["no answer"] + probe.answers.statuses["no answer"]
    return [
        Row(NAME, "answers to the load", _counts(load.answers), not load.troubles),
        *(Row(NAME, "trouble of a client", trouble[:300], ok=False) for trouble in load.troubles),
        Row(NAME, "answers to the probe", _counts(probe.answers), ok=True),
        Row(NAME, "503 problem+json with Retry-After meanwhile", str(unavailable), unavailable > 0),
        Row(NAME, "requests without an answer (web was not touched)", str(lost), lost == 0),
        Row(NAME, "any other 5xx", f"{len(all_wrong)} {all_wrong[:2] or ''}", not all_wrong),
    ]


def _counts(answers: Answers) -> str:
    return ", ".join(f"{status}: {count}" for status, count in sorted(answers.statuses.items()))


def _kept(stack: Stack, load: Load) -> list[Row]:
    """Compare what was acknowledged with what is stored."""
    stored = {
        (noun, str(name)): (uid, asked is not None)
        for noun, table in (("allocations", "tenants_allocation"), ("endpoints", "tenants_endpoint"))
        for name, uid, asked in stack.rows(f"SELECT name, id, deletion_requested_at FROM {table}")
    }
    lost = [made.name for made in load.made if stored.get((made.noun, made.name), (None,))[0] != made.uid]
    undeleted = [made.name for made in load.made if made.deleted and not stored.get((made.noun, made.name), (0, 0))[1]]
    deleted = sum(made.deleted for made in load.made)
    repeated = sum(made.tries > 1 for made in load.made)
    names = [name for (noun, name) in stored if name.startswith("db-")]
    ghosts = len(set(names)) - len({made.name for made in load.made})
    return [
        Row(NAME, "creates acknowledged", f"{len(load.made)}, {repeated} of them after repeats", len(load.made) > 0),
        Row(NAME, "acknowledged creates that are lost", f"{len(lost)} {lost[:3] or ''}", not lost),
        Row(NAME, "acknowledged deletes that are lost", f"{len(undeleted)} of {deleted}", not undeleted),
        Row(NAME, "objects that nobody was told of", str(ghosts), ghosts == 0),
    ]


def _delete(load: Load, made: Acknowledged) -> None:
    client = Client(load.stack, load.answers)
    try:
        client.delete(made)
    finally:
        client.close()
