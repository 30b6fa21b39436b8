"""Clients that create and delete through REST, repeat what got no answer, and remember each acknowledgement."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import httpx

from tests.chaos.stack import TENANT, ChaosFailed, Stack, pause

Json = dict[str, Any]
PROFILE: Final = {"product": "H100-80GB", "profile": "1g.10gb"}
MODEL: Final = "llama-3-1-8b"
TRIES_S: Final = 90.0
"""So long one change is repeated until it is answered."""
UNAVAILABLE: Final = 503


@dataclass(slots=True)
class Acknowledged:
    """One create that was answered with 201, and the delete that was."""

    noun: str
    name: str
    uid: UUID
    key: str
    at: float
    body: Json = field(repr=False)
    """What was answered."""
    tries: int = 1
    deleted: bool = False


@dataclass(slots=True)
class Answers:
    """What came back, counted; everything that must not come is kept in words."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, response: httpx.Response) -> None:
        """Count one answer and look whether it may be given at all."""
        with self.lock:
            self.statuses[str(response.status_code)] += 1
            if response.status_code < 500:
                return
            kind = response.headers.get("Content-Type", "")
            is_good = (
                response.status_code == UNAVAILABLE
                and kind.startswith("application/problem+json")
                and response.headers.get("Retry-After", "").isdigit()
            )
            if not is_good:
                request = response.request
                self.wrong.append(
                    f"{response.status_code} {kind} to {request.method} {request.url.path}: {response.text[:160]}"
                )

    def lost(self) -> None:
        """Count a request that got no answer."""
        with self.lock:
            self.statuses["no answer"] += 1


class Client:
    """One caller; every change is repeated with the same key until it is answered."""

    def __init__(self, stack: Stack, answers: Answers) -> None:
        """Log in as the demo's member."""
        self.stack, self.answers = stack, answers
        self.path = f"{stack.url}/tenants/{TENANT}"
        self.http = httpx.Client(trust_env=False, timeout=20, headers=stack.headers())

    def close(self) -> None:
        """Give the connection back."""
        self.http.close()

    def call(self, method: str, path: str, **words: Any) -> httpx.Response | None:
        """Send one request; None where no answer came."""
        try:
            response = self.http.request(method, f"{self.path}{path}", **words)
        except httpx.TransportError:
            self.answers.lost()
            return None
        self.answers.take(response)
        return response

    def insist(self, method: str, path: str, **words: Any) -> tuple[httpx.Response, int]:
        """Repeat one safe request until it gets an answer other than 503; return it and the number of tries."""
        began, tries = time.monotonic(), 0
        while time.monotonic() - began < TRIES_S:
            tries += 1
            response = self.call(method, path, **words)
            if response is not None and response.status_code != UNAVAILABLE and not _is_running(response):
                return response, tries
            pause(0.3)
        raise ChaosFailed(f"{method} {path} got no answer in {TRIES_S:.0f} s")

    def create(self, noun: str, name: str, *, kind: str = "namespace") -> Acknowledged:
        """Create an allocation or an endpoint and remember what was acknowledged."""
        key = str(uuid4())
        body = asked(noun, name, kind)
        response, tries = self.insist("POST", f"/{noun}", json=body, headers={"Idempotency-Key": key})
        if response.status_code != 201:
            raise ChaosFailed(f"creating {name} was answered {response.status_code}: {response.text[:300]}")
        made = response.json()
        return Acknowledged(noun, name, UUID(made["id"]), key, time.monotonic(), made, tries)

    def repeat(self, made: Acknowledged, *, kind: str = "namespace") -> None:
        """Send the same create again and insist on the same object. Raises `ChaosFailed`."""
        body = asked(made.noun, made.name, kind)
        response, _ = self.insist("POST", f"/{made.noun}", json=body, headers={"Idempotency-Key": made.key})
        if response.status_code >= 300 or UUID(response.json()["id"]) != made.uid:
            raise ChaosFailed(f"{made.name} was made as {made.uid}; the repeat says {response.text[:200]}")

    def read(self, made: Acknowledged) -> Json:
        """Read an object by its id."""
        response, _ = self.insist("GET", f"/{made.noun}/{made.uid}")
        if response.status_code != 200:
            raise ChaosFailed(f"{made.name} was acknowledged and is answered {response.status_code}")
        return dict(response.json())

    def delete(self, made: Acknowledged) -> None:
        """Ask for an object's end until that is acknowledged."""
        began = time.monotonic()
        while time.monotonic() - began < TRIES_S:
            seen = self.read(made)
            if seen["deletion_requested_at"] is not None or seen["phase"] == "Released":
                made.deleted = True
                return
            headers = {"If-Match": f'"{seen["version"]}"'}
            response = self.call("DELETE", f"/{made.noun}/{made.uid}", headers=headers)
            if response is not None and response.status_code < 300:
                made.deleted = True
                return
            pause(0.2)
        raise ChaosFailed(f"the end of {made.name} was not acknowledged")


def asked(noun: str, name: str, kind: str) -> Json:
    """Return the body of a create."""
    where = {"kind": kind}
    if noun == "allocations":
        return {"name": name, "units": [{"gpu": PROFILE, "vcpu": 1, "memory_gib": 4}], "where": where}
    gpu: Mapping[str, str] = PROFILE if kind == "namespace" else {"product": "A100-80GB", "profile": "3g.40gb"}
    if kind == "namespace":
        gpu = {"product": "H100-80GB", "profile": "2g.20gb"}
    unit = {"gpu": gpu, "vcpu": 4, "memory_gib": 16}
    return {"name": name, "model": MODEL, "unit": unit, "where": where}


def _is_running(response: httpx.Response) -> bool:
    """Whether the answer says that the twin of this request is still at work, or that rivals were too many."""
    return response.status_code == 409 and response.json().get("code") in {"idempotency-running", "busy"}


@dataclass
class Load:
    """Several clients at once, each making and deleting one thing after the other, some kept to the end."""

    stack: Stack
    prefix: str
    clients: int = 6
    keep_every: int = 8
    answers: Answers = field(default_factory=Answers)
    made: list[Acknowledged] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Log in, then start."""
        self.stack.token("mia@demo.test")
        for number in range(self.clients):
            thread = threading.Thread(target=self._work, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def finish(self) -> None:
        """Let every client end what it is at."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TRIES_S * 2)

    def _work(self, number: int) -> None:
        client = Client(self.stack, self.answers)
        count = 0
        try:
            while not self._stop.is_set():
                count += 1
                noun = "endpoints" if number == 0 else "allocations"
                made = client.create(noun, f"{self.prefix}-{number}-{count}")
                self.made.append(made)
                if count % 2:
                    client.repeat(made)
                if count % self.keep_every:
                    self._stop.wait(0.5)
                    client.delete(made)
                self._stop.wait(0.2)
        except Exception as error:  # noqa: BLE001 - the thread's trouble is the scenario's to tell
            self.troubles.append(f"client {number}: {type(error).__name__}: {error}")
        finally:
            client.close()
