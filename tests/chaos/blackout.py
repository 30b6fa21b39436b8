"""Web, workers, broker and PostgreSQL gone under load: no request fails, all are counted, the provider is left alone.

Longer and darker than `outage`: the database and the broker are away as well, several callers ask each endpoint at
once, whole answers and streams. What the provider did meanwhile and right after the return is in its own records.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from typing import Any, Final

import httpx

from controlplane.embedded import roster, supervisor
from tests.chaos import facts
from tests.chaos.clients import Acknowledged, Answers, Client
from tests.chaos.facts import Row
from tests.chaos.outage import counted, ready
from tests.chaos.stack import ESTATES, Stack, pause, until

AWAY_S: Final = 300.0
SHORT_S: Final = 15.0
SETTLED_S: Final = 20.0
"""So long after the return passes may still look at what they find."""
WHOLE, STREAMS = 3, 1
"""Callers of each endpoint."""
EVERY_S: Final = 0.1
NAME: Final = "blackout"
GOOD: Final = "200"


class Crowd:
    """Several callers of one endpoint, each with a connection that it keeps."""

    def __init__(self, address: str, model: str, key: str) -> None:
        """Nothing is asked yet."""
        self.address, self.model, self._key = address, model, key
        self.statuses: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        ways = [False] * WHOLE + [True] * STREAMS
        self._threads = [threading.Thread(target=self._run, args=(stream,), daemon=True) for stream in ways]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """End."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, stream: bool) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(trust_env=False, timeout=20, headers=headers) as http:
            while not self._stop.wait(EVERY_S):
                status = self._ask(http, stream=stream)
                with self._lock:
                    self.statuses[status] += 1

    def _ask(self, http: httpx.Client, *, stream: bool) -> str:
        words = [{"role": "user", "content": "Still there?"}]
        body = {"model": self.model, "messages": words, "max_tokens": 8, "stream": stream}
        try:
            answer = http.post(f"{self.address}/chat/completions", json=body)
        except httpx.TransportError as error:
            return type(error).__name__
        if stream and answer.status_code == httpx.codes.OK and not answer.text.rstrip().endswith("data: [DONE]"):
            return "stream broken off"
        return str(answer.status_code)


def everything_away(*, short: bool = False, away_s: float | None = None) -> list[Row]:
    """Take all but the estate and its gateways away for five minutes (short: 15 s), or for `away_s` seconds."""
    with Stack() as stack:
        return run(stack, away_s=away_s or (SHORT_S if short else AWAY_S))


def run(stack: Stack, *, away_s: float, settled_s: float = SETTLED_S) -> list[Row]:
    """Do it on a running stack; everything is released in the end."""
    stack.allow()
    client = Client(stack, Answers())
    made = [client.create("endpoints", f"dark-{kind}", kind=kind) for kind in ("namespace", "vm")]
    crowds = [crowd_of(ready(client, each), str(each.body["key"])) for each in made]
    for crowd in crowds:
        crowd.start()
    pause(settled_s)
    before, pids = told(stack), gateways(stack)
    darken(stack)
    pause(away_s)
    left = [name for name in roster.REPLACED if stack.process(name) is not None]
    if stack.database.server() is not None:
        left.append("postgresql")
    lighten(stack)
    took = stack.start()
    pause(settled_s)
    after, still = told(stack), gateways(stack)
    for crowd in crowds:
        crowd.finish()
    rows = [
        Row(NAME, "web, workers, beat, dispatcher, supervisor, broker, PostgreSQL away", f"{away_s:.0f} s", not left),
        Row(NAME, "start again", f"{took:.1f} s", ok=True),
        changes(before, after),
        Row(NAME, "gateways that went on as they were", f"{len(pids)}", ok=bool(pids) and pids == still),
    ]
    for each, crowd in zip(made, crowds, strict=True):
        asked, good = sum(crowd.statuses.values()), crowd.statuses[GOOD]
        rows.append(Row(NAME, f"answers of {each.name} meanwhile", f"{dict(crowd.statuses)}", asked == good > 0))
        rows.append(counted(stack, each, good, name=NAME))
    _end(stack, client, made)
    return [*rows, *facts.once(stack, NAME), *facts.clean(stack, NAME, empty=True)]


def crowd_of(seen: dict[str, Any], key: str) -> Crowd:
    """Return callers of an endpoint as the API shows it."""
    return Crowd(seen["address"], seen["name"], key)


def darken(stack: Stack) -> None:
    """Kill the supervisor first, so that it brings nobody back, then what it watched; then broker and database."""
    stack.kill_supervisor()
    for name in roster.REPLACED:
        process = stack.process(name)
        if process is not None:
            process.send(signal.SIGKILL, group=True)
            process.wait_gone(10.0)
    broker = stack.places.broker
    broker.rename(broker.with_name("broker-gone"))
    stack.crash_database()
    until(lambda: stack.database.server() is None, within_s=15, what="PostgreSQL is gone")


def lighten(stack: Stack) -> None:
    """Give the broker's folder back; the rest is started."""
    broker = stack.places.broker
    if not broker.exists():
        broker.with_name("broker-gone").rename(broker)


# --- what the provider says -------------------------------------------------------------------------------


def told(stack: Stack) -> dict[str, list[str]]:
    """Return object of ours → what the simulated provider did to it, by its own log, and what uses its room."""
    token = stack.installation.sandbox_environ()["TENANTRY_SANDBOX_TOKEN"]
    found: dict[str, list[str]] = {}
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {token}"}, timeout=20) as http:
        for estate in ESTATES:
            base = f"{stack.installation.sandbox_url}/estates/{estate}"
            truth = http.get(f"{base}/control/truth").raise_for_status().json()
            found[f"uses of {estate}"] = [str(truth)]
            for item in http.get(f"{base}/snapshot").raise_for_status().json()["objects"]:
                ref = item["ref"]
                logs = http.get(
                    f"{base}/objects/{ref['kind']}/{ref['uid']}/logs",
                    params={"tenant": ref["tenant_uid"], "tail": 400},
                ).raise_for_status()
                lines = [f"{line['at']} {line['text']}" for line in logs.json()]
                found[f"{ref['kind']} {ref['uid']}"] = [item["fingerprint"], *lines]
    return found


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> Row:
    """Return what is different at the provider; nothing should be."""
    different = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    words = ", ".join(different[:4]) or f"none of {len(before)} objects and uses"
    return Row(NAME, "changed at the provider", words, not different)


def gateways(stack: Stack) -> list[int]:
    """Return the pids of the gateways that run."""
    return sorted(process.pid for process in supervisor.gateways(stack.places.sandbox))


def _end(stack: Stack, client: Client, made: list[Acknowledged]) -> None:
    """Delete what was made, with the token of before: it is still good."""
    for each in made:
        client.delete(each)
    facts.all_released(stack)
