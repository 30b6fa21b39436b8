"""Workers and web gone for two minutes: endpoints go on answering, and what they answered is counted afterwards."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from typing import Any, Final

import httpx

from controlplane.embedded import roster
from tests.chaos import facts
from tests.chaos.clients import Acknowledged, Answers, Client
from tests.chaos.facts import Row
from tests.chaos.stack import Stack, pause, until

AWAY_S: Final = 120.0
SHORT_S: Final = 10.0
EVERY_S: Final = 0.25
NAME: Final = "outage"
GOOD: Final = 200


class Chats:
    """Asks one endpoint again and again through its gateway."""

    def __init__(self, address: str, model: str, key: str) -> None:
        """Nothing is asked yet."""
        self.address, self.model, self._key = address, model, key
        self.statuses: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(30)

    def ask(self, http: httpx.Client) -> str:
        """Ask once; return the status."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Still there?"}], "max_tokens": 8}
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            return str(http.post(f"{self.address}/chat/completions", json=body, headers=headers).status_code)
        except httpx.TransportError as error:
            return type(error).__name__

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=20) as http:
            while not self._stop.wait(EVERY_S):
                self.statuses[self.ask(http)] += 1


def chats_of(seen: dict[str, Any], key: str) -> Chats:
    """Return a way to ask an endpoint as the API shows it."""
    return Chats(seen["address"], seen["name"], key)


def ready(client: Client, made: Acknowledged, *, within_s: float = 120.0) -> dict[str, Any]:
    """Wait until an endpoint is Ready; return it as the API shows it."""
    until(lambda: client.read(made)["phase"] == "Ready", within_s=within_s, what=f"{made.name} is Ready")
    return client.read(made)


def without_control_plane(*, short: bool = False) -> list[Row]:
    """Take everything but the estate, its gateways and the database away for two minutes (short: 10 s)."""
    with Stack() as stack:
        return run(stack, away_s=SHORT_S if short else AWAY_S)


def run(stack: Stack, *, away_s: float) -> list[Row]:
    """Do it on a running stack; everything is released in the end."""
    stack.allow()
    client = Client(stack, Answers())
    made = [client.create("endpoints", f"out-{kind}", kind=kind) for kind in ("namespace", "vm")]
    chats = [chats_of(ready(client, each), str(each.body["key"])) for each in made]
    for chat in chats:
        chat.start()
    pause(1.0)
    _take_away(stack)
    pause(away_s)
    _all_gone = [name for name in roster.REPLACED if stack.process(name) is not None]
    took = stack.start()
    pause(3.0)
    for chat in chats:
        chat.finish()
    rows = [
        Row(NAME, "web, workers, beat, dispatcher, supervisor away", f"{away_s:.0f} s", not _all_gone),
        Row(NAME, "start again", f"{took:.1f} s", ok=True),
    ]
    for each, chat in zip(made, chats, strict=True):
        asked, good = sum(chat.statuses.values()), chat.statuses[str(GOOD)]
        rows.append(Row(NAME, f"answers of {each.name} meanwhile", f"{dict(chat.statuses)}", asked == good > 0))
        rows.append(counted(stack, each, good))
    after = Client(stack, Answers())
    for each in made:
        after.delete(each)
    took = facts.all_released(stack)
    rows.append(Row(NAME, "everything released", f"{took:.1f} s after the delete", ok=True))
    return [*rows, *facts.once(stack, NAME), *facts.clean(stack, NAME, empty=True)]


def counted(stack: Stack, made: Acknowledged, good: int, *, name: str = NAME) -> Row:
    """Wait until all that was answered is counted, and see that no more is."""
    query = "SELECT coalesce(sum(requests), 0) FROM tenants_endpointusage WHERE endpoint_id = %s"
    what = f"requests of {made.name} counted after the return"
    try:
        took = until(lambda: stack.number(query, made.uid) >= good, within_s=60, what=what)
    except AssertionError:
        return Row(name, what, f"{stack.number(query, made.uid)} of {good}", ok=False)
    pause(2.0)
    found = stack.number(query, made.uid)
    return Row(name, what, f"{found} of {good}, {took:.1f} s later", found == good)


def _take_away(stack: Stack) -> None:
    """Kill the supervisor first, so that it brings nobody back, then what it watched; the estate stays."""
    stack.kill_supervisor()
    for name in roster.REPLACED:
        process = stack.process(name)
        if process is not None:
            process.send(signal.SIGKILL, group=True)
            process.wait_gone(10.0)
