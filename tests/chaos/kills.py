"""The golden path walked twenty times while one component after the other is SIGKILLed at random."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from tests.chaos import facts
from tests.chaos.clients import Answers, Client
from tests.chaos.facts import Row
from tests.chaos.outage import GOOD, chats_of, ready
from tests.chaos.stack import Stack, until

WALKS: Final = 20
AT_ONCE: Final = 3
EVERY_S: Final = (2.0, 6.0)
"""Shortest and longest time between two kills."""
WITHIN_S: Final = 240.0
ANSWER_S: Final = 60.0
NAME: Final = "kills"
VICTIMS: Final = ("web", "worker", "worker-child", "dispatcher", "beat", "sandbox", "gateway", "postgresql")


@dataclass
class Walks:
    """Several walks at once, each from the ask to its first answer and back to nothing."""

    stack: Stack
    waiting: list[tuple[int, str]]
    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answers: Answers = field(default_factory=Answers)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Walk until none is left; one thread of several."""
        while True:
            with self.lock:
                if not self.waiting:
                    return
                number, kind = self.waiting.pop(0)
            began = time.monotonic()
            try:
                self._walk(f"walk-{kind}-{number}", kind)
            except Exception as error:  # noqa: BLE001 - told in the table
                self.failed.append(f"walk {number} ({kind}): {type(error).__name__}: {error}"[:300])
            self.took.append(time.monotonic() - began)

    def _walk(self, name: str, kind: str) -> None:
        client = Client(self.stack, self.answers)
        try:
            made = client.create("endpoints", name, kind=kind)
            chat = chats_of(ready(client, made, within_s=WITHIN_S), str(made.body["key"]))
            with httpx.Client(trust_env=False, timeout=20) as http:
                until(lambda: chat.ask(http) == str(GOOD), within_s=ANSWER_S, what=f"{name} answers")
                client.delete(made)
                until(lambda: client.read(made)["phase"] == "Released", within_s=WITHIN_S, what=f"{name} is Released")
                until(lambda: chat.ask(http) != str(GOOD), within_s=10, what=f"the key of {name} opens nothing")
        finally:
            client.close()


def at_random(*, short: bool = False, seed: int = 3) -> list[Row]:
    """Walk twenty times (short: four) under kills."""
    with Stack() as stack:
        return run(stack, walks=4 if short else WALKS, seed=seed)


def run(stack: Stack, *, walks: int, seed: int, victims: Sequence[str] = VICTIMS) -> list[Row]:
    """Do it on a running stack; everything is released in the end."""
    stack.allow()
    dice = random.Random(seed)
    numbered = [(number, "namespace" if number % 2 else "vm") for number in range(walks)]
    crowd = Walks(stack, numbered)
    threads = [threading.Thread(target=crowd.run, daemon=True) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    killed: Counter[str] = Counter()
    rounds: list[str] = []
    stop = threading.Event()
    while any(thread.is_alive() for thread in threads):
        stop.wait(dice.uniform(*EVERY_S))
        if not rounds:
            rounds = dice.sample(list(victims), len(victims))  # each of them before any comes again
        victim = rounds.pop()
        killed[victim] += stack.kill(victim)
    rows = [
        Row(NAME, "walks", f"{walks}, slowest {max(crowd.took):.1f} s", len(crowd.took) == walks),
        Row(NAME, "killed", ", ".join(f"{name} {count}" for name, count in sorted(killed.items())), ok=True),
        Row(NAME, "walks that did not end right", str(len(crowd.failed)), not crowd.failed),
        *(Row(NAME, "failed", failure, ok=False) for failure in crowd.failed),
        Row(
            NAME, "5xx other than 503", f"{len(crowd.answers.wrong)} {crowd.answers.wrong[:2]}", not crowd.answers.wrong
        ),
    ]
    took = facts.all_released(stack)
    rows.append(Row(NAME, "everything released", f"{took:.1f} s after the last walk", ok=True))
    return [*rows, *facts.once(stack, NAME), *facts.clean(stack, NAME, empty=True)]
