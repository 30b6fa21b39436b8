"""One embedded installation of its own in a temporary folder: start it, hurt it, look into it.

All programs are the real ones, the database has its production settings; only the estate is simulated. Nothing
here touches an installation that it did not start.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psycopg

from controlplane.embedded import ports, processes, programs, supervisor
from controlplane.embedded.installation import Installation
from controlplane.embedded.places import Places
from controlplane.embedded.postgres import DATABASE, EmbeddedPostgres
from controlplane.embedded.processes import ProcessId

ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 180.0
LOOK_S: Final = 0.2
KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
ESTATES: Final = ("k8s-sim", "vsphere-sim")
TENANT: Final = "aurora"
LIMITS: Final[Mapping[str, int]] = {
    "gpu.H100-80GB.slices": 120,
    "gpu.A100-80GB.slices": 32,
    "vcpu": 400,
    "memory_gib": 2000,
    "endpoints": 60,
    "boundaries": 10,
}


class ChaosFailed(AssertionError):
    """Something that must hold did not."""


def pause(seconds: float) -> None:
    """Wait between two looks; conditions are awaited with `until`."""
    threading.Event().wait(seconds)


def until(condition: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Wait for a condition; return how long it took. Raises `ChaosFailed` when it does not come."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise ChaosFailed(f"not so within {within_s:.0f} s: {what}")
        pause(LOOK_S)
    return time.monotonic() - began


def free_port() -> int:
    """Return a port that is free now, below those that the system hands out by itself."""
    for _ in range(100):
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ChaosFailed("no port is free")


@dataclass
class Stack:
    """One running installation."""

    state: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="tenantry-chaos-")))
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment beside the plain one, such as CELERY_BROKER_URL."""
    _child: subprocess.Popen[bytes] | None = None
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def __enter__(self) -> Self:
        """Start, on ports that nobody else prefers: one that is taken while we are away would be another address."""
        ports.remember(self.places.ports_file, {"web": free_port(), "sandbox": free_port()})
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop, and forget everything unless something failed."""
        self.stop()
        if kind is None:
            shutil.rmtree(self.state, ignore_errors=True)
        else:
            print(f"logs are kept in {self.state}", flush=True)

    # --- life -----------------------------------------------------------------------------------------

    def environ(self) -> dict[str, str]:
        """Return the environment that the supervisor gets: nothing of ours leaks into it."""
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        return {**kept, "TENANTRY_STATE_DIR": str(self.state), "TENANTRY_DEMO": "1", **self.variables}

    def start(self) -> float:
        """Start all programs and wait until they work; return the seconds."""
        began = time.monotonic()
        log = self.state / "supervisor.log"
        log.touch()
        before = log.stat().st_size
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "controlplane.embedded", "up"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environ(),
                cwd=ROOT,
                start_new_session=True,
            )
        while "\nready after" not in log.read_bytes()[before:].decode(errors="replace"):
            if self._child.poll() is not None or time.monotonic() - began > START_S:
                raise ChaosFailed(f"the stack does not start; the end of its log:\n{log.read_text()[-2000:]}")
            pause(LOOK_S)
        self._tokens.clear()
        return time.monotonic() - began

    def stop(self) -> None:
        """Stop everything, also what was left by a killed supervisor."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(90)
        supervisor.stop_all(self.installation, tell=lambda _line: None)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    def kill_supervisor(self) -> None:
        """SIGKILL the supervisor; its programs run on without it."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    @property
    def places(self) -> Places:
        """The folders."""
        return Places(self.state)

    @property
    def installation(self) -> Installation:
        """Ports, secrets and addresses, as they are stored now."""
        return Installation.load(self.environ())

    @property
    def database(self) -> EmbeddedPostgres:
        """Its PostgreSQL."""
        return EmbeddedPostgres(self.state)

    @property
    def url(self) -> str:
        """Base URL of the API."""
        return f"{self.installation.web_url}/api/v1"

    # --- harm -----------------------------------------------------------------------------------------

    def process(self, name: str) -> ProcessId | None:
        """Return a program's process, None while it does not run."""
        return programs.recorded(self.places.run / f"{name}.json")

    def kill(self, name: str) -> bool:
        """SIGKILL one program (its children too); `worker-child`, `gateway`, `postgresql` are known too."""
        if name == "postgresql":
            return self.crash_database()
        victim: ProcessId | None
        if name == "worker-child":
            victim = self._worker_child()
            return victim is not None and victim.send(signal.SIGKILL)
        if name == "gateway":
            found = supervisor.gateways(self.places.sandbox)
            return bool(found) and found[int(time.monotonic() * 1000) % len(found)].send(signal.SIGKILL)
        victim = self.process(name)
        return victim is not None and victim.send(signal.SIGKILL, group=True)

    def _worker_child(self) -> ProcessId | None:
        worker = self.process("worker")
        if worker is None:
            return None
        members = processes.group_members(worker.pid, ROOT)
        children = [member for member in members if member.pid != worker.pid]
        return children[int(time.monotonic() * 1000) % len(children)] if children else None

    def crash_database(self) -> bool:
        """Stop PostgreSQL at once and unprepared (immediate): it recovers from its log at the next start."""
        server = self.database.server()
        if server is None or not server.send(signal.SIGQUIT):
            return False
        server.wait_gone(10.0)
        return True

    # --- looking --------------------------------------------------------------------------------------

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection]:
        """Give a superuser's connection, to compare what was acknowledged with what is stored."""
        connection = self.database.connect(database=DATABASE)
        try:
            yield connection
        finally:
            connection.close()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one query, waiting for a database that is just starting."""
        for number in range(1, 101):
            try:
                with self.connected() as connection:
                    return list(connection.execute(query.encode(), parameters).fetchall())
            except psycopg.OperationalError:
                if number == 100:
                    raise
                pause(LOOK_S)
        raise AssertionError

    def number(self, query: str, *parameters: Any) -> int:
        """Run a query that counts."""
        return int(self.rows(query, *parameters)[0][0] or 0)

    def command(self, *words: str) -> tuple[int, str]:
        """Run one management command as a worker; return (exit status, output)."""
        done = subprocess.run(
            [sys.executable, "-m", "controlplane", *words],
            env=self.installation.environ("worker"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout.strip() or done.stderr.strip()[-2000:]

    def helper(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a module of the tests as a process with a worker's environment; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**self.installation.environ("worker"), "DJANGO_SETTINGS_MODULE": "controlplane.settings"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def leftovers(self) -> list[str]:
        """Return what the simulated estates still hold of ours."""
        token = self.installation.sandbox_environ()["TENANTRY_SANDBOX_TOKEN"]
        found: list[str] = []
        with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {token}"}, timeout=20) as http:
            for estate in ESTATES:
                answer = http.get(f"{self.installation.sandbox_url}/estates/{estate}/control/leftovers")
                found += [f"{estate}: {line}" for line in answer.raise_for_status().json()["leftovers"]]
        return found

    # --- people ---------------------------------------------------------------------------------------

    def token(self, email: str) -> str:
        """Return an API token of one of the demo's people; waits for a web process that is starting."""
        if email not in self._tokens:
            password = json.loads(self.places.logins_file.read_text())[email]
            body = {"email": email, "password": password, "name": "chaos"}

            def logged_in() -> bool:
                try:
                    answer = httpx.post(f"{self.url}/login", json=body, timeout=20, trust_env=False)
                except httpx.TransportError:
                    return False
                if answer.status_code < 300:
                    self._tokens[email] = str(answer.json()["token"])
                return answer.status_code < 300

            until(logged_in, within_s=30, what=f"{email} can log in")
        return self._tokens[email]

    def headers(self, email: str = "mia@demo.test") -> dict[str, str]:
        """Return the headers of one of the demo's people."""
        return {"Authorization": f"Bearer {self.token(email)}"}

    def allow(self, limits: Mapping[str, int] = LIMITS) -> None:
        """Raise the quotas of the demo's tenant, as its operator."""
        with httpx.Client(trust_env=False, headers=self.headers("ole@demo.test"), timeout=20) as http:
            for dimension, amount in limits.items():
                body = {"dimension": dimension, "amount": amount, "until": None}
                http.put(f"{self.url}/tenants/{TENANT}/quotas", json=body).raise_for_status()

    def words(self, names: Sequence[str] = ("web", "worker", "dispatcher")) -> list[str]:
        """Return lines of the logs that tell of a bug of ours; beat only sends hints, and says when it cannot."""
        bugs = ("a pass failed by a bug", "unhandled error", "Traceback (most recent call last)")
        expected = (
            "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL)",  # told of children that we killed
            "reason:network:ConnectionError",  # Celery could not acknowledge a message while the broker was away
        )
        found = []
        for name in names:
            text = (self.places.logs / f"{name}.log").read_text(errors="replace")
            said = (line.replace("\\'", "'") for line in text.splitlines())
            lines = [line for line in said if not any(one in line for one in expected)]
            found += [f"{name}: {line[:300]}" for line in lines if any(bug in line for bug in bugs)]
        return found
