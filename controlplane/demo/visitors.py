"""`python -m controlplane.demo.visitors`: a little traffic on one endpoint of the demo, so that its charts move.

Does what any user could, through REST and the endpoint's own address: asks for a trial where a gateway runs as a
process of its own, makes a key, and sends a request every second or two until it is ended. Who answers is the sandbox's
stub, so the words are simulated; that they were asked for, counted and limited is not. No Django.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import threading
import time
import uuid
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx

WHO: Final = "mia@demo.test"
TENANT: Final = "aurora"
NAME: Final = "live-demo"
PLACE: Final = "k8s-sim"
"""The provider whose gateways are real processes, as `bootstrap --demo` makes it."""
KEY: Final = "visitors of the demo"
ASK: Final = {
    "name": NAME,
    "model": "llama-3-2-3b",
    "description": "A program of the demo sends requests here, so that its charts move.",
    "labels": {"simulated": "traffic"},
    "where": {"provider": PLACE, "kind": "namespace"},
    "unit": {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 4, "memory_gib": 16},
    "term": {"duration_s": 7 * 86400, "service_class": "trial"},
    "on_shortage": "request",
}
PAUSE_S: Final = 1.6
"""Between two requests, on average over the minutes of a wave."""
WAVE_S: Final = 900.0
AGAIN_S: Final = 15.0
"""After something did not work: the control plane may be stopping, or starting."""
QUESTIONS: Final = (
    "Where do you run?",
    "Summarise what a MIG device is for somebody who rents one.",
    "Which of my endpoints cost the most this month?",
    "Write a short note that the maintenance is over.",
)
MANNERS: Final = "You answer briefly and name your sources. " * 12
"""Prompts begin alike, as those of one application do."""


class Visitors:
    """One program that uses one endpoint."""

    def __init__(self, api: str, password: str) -> None:
        """Use the control plane at `api` (…/api/v1)."""
        self.api, self.password = api, password
        self.dice = random.Random()  # noqa: S311 - a rhythm, not a secret
        self.over = threading.Event()

    def stay(self) -> None:
        """Send requests until `over` is set; begin anew where something did not work."""
        while not self.over.is_set():
            try:
                self._visit()
            except (httpx.HTTPError, KeyError, ValueError) as error:
                sys.stderr.write(f"visitors: {type(error).__name__}: {error}\n")
                self.over.wait(AGAIN_S)

    def _visit(self) -> None:
        with httpx.Client(base_url=self.api, timeout=30, trust_env=False) as client:
            answer = client.post("/login", json={"email": WHO, "password": self.password}).raise_for_status()
            client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
            found = self._endpoint(client)
            if found is None:
                return
            key = self._key(client)
            try:
                self._ask(str(found["address"]), key["key"])
            finally:
                client.delete(f"/tenants/{TENANT}/endpoints/{NAME}/keys/{key['id']}")

    def _endpoint(self, client: httpx.Client) -> dict[str, Any] | None:
        """Return the endpoint once it is ready, asked for where it is not there; None when there is no more time."""
        path = f"/tenants/{TENANT}/endpoints/{NAME}"
        while not self.over.is_set():
            answer = client.get(path, params={"wait": 20, "for": "Ready"})
            if answer.status_code == httpx.codes.NOT_FOUND:
                made = client.post(f"/tenants/{TENANT}/endpoints", json=ASK, headers=_once())
                made.raise_for_status()
                continue
            found: dict[str, Any] = answer.raise_for_status().json()
            if found["phase"] == "Ready" and found["address"]:
                return found
            self.over.wait(2)
        return None

    def _key(self, client: httpx.Client) -> dict[str, Any]:
        path = f"/tenants/{TENANT}/endpoints/{NAME}/keys"
        ask = {"name": KEY, "requests_per_minute": 240}
        made: dict[str, Any] = client.post(path, json=ask, headers=_once()).raise_for_status().json()
        return made

    def _ask(self, address: str, key: str) -> None:
        """Ask until it is over, or until the endpoint has not answered a dozen times in a row."""
        failed = 0
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False) as client:
            while not self.over.is_set() and failed < 12:
                with client.stream("POST", f"{address}/chat/completions", json=self._body()) as answer:
                    failed = 0 if answer.is_success else failed + 1
                    for _ in answer.iter_raw():
                        pass
                wave = 1 + 0.7 * math.sin(time.time() / WAVE_S * 2 * math.pi)
                self.over.wait(self.dice.expovariate(1 / PAUSE_S) / wave)

    def _body(self) -> dict[str, Any]:
        question = self.dice.choice(QUESTIONS)
        return {
            "model": NAME,
            "messages": [{"role": "system", "content": MANNERS}, {"role": "user", "content": question}],
            "max_tokens": self.dice.randint(24, 160),
            "stream": self.dice.random() < 0.85,
        }


def _once() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def main() -> int:
    """Visit until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.demo.visitors", description=__doc__)
    parser.add_argument("--url", required=True, help="of the control plane")
    parser.add_argument("--logins", required=True, type=Path, help="the demo's file of log-ins")
    asked = parser.parse_args()
    visitors = Visitors(f"{asked.url}/api/v1", json.loads(asked.logins.read_text())[WHO])

    def end(_number: int, _frame: FrameType | None) -> None:
        visitors.over.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    visitors.stay()
    return 0


if __name__ == "__main__":
    sys.exit(main())
