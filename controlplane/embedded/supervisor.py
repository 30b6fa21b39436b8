"""Starts all programs of one installation in order, watches them, and stops them in reverse.

PostgreSQL → sandbox, migrations → bootstrap → web, worker, beat, dispatcher. One supervisor per state folder, held by a
file lock. A supervisor that was killed leaves its programs running: the next one takes the database and the sandbox
over as they are and replaces the others. Nothing correct hangs on this program; it only keeps others alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Final

from controlplane.embedded import processes, programs, roster
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.installation import ROOT, Installation, Process
from controlplane.embedded.postgres import EmbeddedPostgres, Probe
from controlplane.embedded.processes import ProcessId
from controlplane.embedded.programs import Program, Running

TICK_S: Final = 0.25
READY_WITHIN_S: Final = 120.0
START_TRIES: Final = 3
"""So often may a program end before it was ready, until the whole start is given up."""
GATEWAY_MODULE: Final = "provisioners.gateway"
MODELS: Final = "models"
"""Folder of the sandbox's state below which its model servers work."""


class Supervisor:
    """All programs of one installation."""

    def __init__(self, installation: Installation, *, tell: Callable[[str], None] = print) -> None:
        """`tell` gets each line for people."""
        self.installation = installation
        self.places = installation.places
        self.tell = tell
        self.database: EmbeddedPostgres | None = installation.database if installation.embeds_database else None
        self.running: dict[str, Running] = {}
        self._stop = threading.Event()
        self._hurry = False
        self._database_not_before = 0.0
        self._last_trim = time.monotonic()

    # --- start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until it works.

        Raises `EmbeddedError` with the end of the log of what failed; whatever was started is still running then.
        """
        self._replace_leftovers()
        if self.installation.embeds_broker:
            if self.places.broker.is_file():
                self.places.broker.unlink()
            self.installation.make_broker_folders()
        self._settle("web")  # before bootstrap and sandbox learn the address
        self._start_sandbox()
        if self.database is not None:
            with self._timed("database"):
                self.database.start()
        with self._timed("migrations"):
            self.once("migrate", "owner", "migrate", "--no-input")
        self.wait_ready("sandbox")
        with self._timed("bootstrap"):
            said = self.once(
                "bootstrap", "worker", "bootstrap", "--demo" if self.installation.is_demo else "--first-link"
            )
        for make in (roster.web, roster.worker, roster.beat, roster.dispatcher):
            self._begin(make(self.installation))
        self.wait_ready("web", "worker", "beat", "dispatcher")
        self.write_status("running")
        self._tell_bootstrap(said)

    def _tell_bootstrap(self, said: str) -> None:
        """Tell what was made; of an installation without an operator the link that makes him, once it works."""
        for line in said.splitlines():
            if self.installation.is_demo:
                self.tell(f"  {line}")
            elif line.startswith("http"):
                self.tell(f"  first operator {line}   (open it within a day; it works once)")

    def once(self, name: str, process: Process, *command: str, timeout_s: float = 300.0) -> str:
        """Run one management command to its end and return its stdout, which no log keeps; stderr is its log.

        Raises `EmbeddedError` when it fails or takes too long.
        """
        log_file = self.places.logs / f"{name}.log"
        log_file.touch(mode=0o600)
        with log_file.open("r+b") as log, tempfile.TemporaryFile(dir=self.places.scratch) as out:
            log.truncate()
            child = subprocess.Popen(
                [sys.executable, "-m", "controlplane", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=self.installation.environ(process),
                cwd=ROOT,
                start_new_session=True,
            )
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                if self._stop.wait(processes.POLL_S) or time.monotonic() > deadline:
                    child.terminate()
                    child.wait()
                    raise EmbeddedError(f"{name} was stopped before its end; see {log_file}")
            out.seek(0)
            said = out.read().decode(errors="replace")
        if child.returncode != 0:
            tail = "\n".join([*said.splitlines()[-5:], *log_file.read_text(errors="replace").splitlines()[-20:]])
            raise EmbeddedError(
                f"{name} failed with status {child.returncode}; its last words (all: {log_file}):\n{tail}"
            )
        return said

    def wait_ready(self, *names: str) -> None:
        """Wait until these programs work; restarts one that ends, a few times."""
        waiting, began = set(names), time.monotonic()
        while waiting:
            for name in sorted(waiting):
                running = self.running[name]
                if running.is_ready():
                    self.tell(f"  {name:<12} ready after {running.age_s:4.1f} s")
                    waiting.discard(name)
                elif said := running.keep_alive():
                    self.tell(f"  {said}")
                    if running.restarts + 1 >= START_TRIES:
                        raise EmbeddedError(
                            f"{name} does not start; the end of {running.log_file}:\n{running.log_tail()}"
                        )
            if waiting and self._stop.wait(processes.POLL_S * 5):
                raise EmbeddedError("stopped before everything was ready")
            if time.monotonic() - began > READY_WITHIN_S:
                slow = self.running[min(waiting)]
                raise EmbeddedError(
                    f"{slow.program.name} was not ready within {READY_WITHIN_S:.0f} s; the end of {slow.log_file}:\n"
                    f"{slow.log_tail()}"
                )

    def _begin(self, program: Program) -> None:
        self.running[program.name] = Running(program, self.places)
        self.running[program.name].start()

    def _settle(self, name: str) -> None:
        if said := self.installation.settle_port(name):
            self.tell(f"  {said}")

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.tell(f"  {name:<12} ready after {time.monotonic() - began:4.1f} s")

    def _start_sandbox(self) -> None:
        """Take over a sandbox that still answers on its port; stop one that does not, and start anew."""
        file = self.places.run / "sandbox.json"
        left = programs.recorded(file)
        if left is not None and not programs.is_answering(roster.health_url(self.installation, "sandbox")):
            programs.stop_recorded(file, ROOT)
            left = None
        if left is None:
            self._settle("sandbox")
        self._begin(roster.sandbox(self.installation))

    @contextlib.contextmanager
    def paused(self, *names: str) -> Iterator[None]:
        """Stop these programs while the block runs, and start them again whatever happens in it."""
        here = [self.running.pop(name) for name in names if name in self.running]
        for running in here:
            running.ask_to_end()
        for running in here:
            running.end()
        try:
            yield
        finally:
            for running in here:
                self._begin(running.program)
            if not self.stop_asked:
                self.wait_ready(*(running.program.name for running in here))

    # --- watch ------------------------------------------------------------------------------------

    def watch(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Keep everything alive until a stop is asked for or `until` says so."""
        while not self._stop.is_set() and not until():
            for running in self.running.values():
                if said := running.keep_alive():
                    self.tell(f"  {said}")
            self._keep_database()
            if self.installation.embeds_broker:
                with contextlib.suppress(OSError):  # something stands in its place: the control plane goes on without
                    self.installation.make_broker_folders()  # emptied by somebody: hints are lost, nothing else
            self._trim_logs()
            self._stop.wait(TICK_S)

    def _keep_database(self) -> None:
        if self.database is None or self.database.server() is not None:
            return
        if time.monotonic() < self._database_not_before:
            return
        self._database_not_before = time.monotonic() + programs.BACKOFF_FIRST_S * 4
        self.tell("  PostgreSQL ended; starting it again")
        try:
            self.database.start()
        except EmbeddedError as error:
            self.tell(f"  {error}")

    def _trim_logs(self) -> None:
        if time.monotonic() - self._last_trim > 60:
            self._last_trim = time.monotonic()
            for log in self.places.logs.glob("*.log"):
                programs.trim(log)

    def ask_to_stop(self) -> None:
        """Make `watch` and `start` return; asked twice, stopping does not wait for work in progress."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop.is_set()

    # --- stop -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop everything in reverse order, also sandbox, gateways and the embedded database."""
        for group in roster.STOP_ORDER:
            here = [self.running.pop(name) for name in group if name in self.running]
            for running in here:
                running.ask_to_end()
            for running in here:
                running.end(hurry=self._hurry)
        stop_gateways(self.places.sandbox)
        stop_models(self.places.sandbox)
        if self.database is not None:
            self.database.stop("immediate" if self._hurry else "fast")
        self.write_status("stopped")

    def _replace_leftovers(self) -> None:
        """Stop what a killed supervisor left, other than the database and the sandbox."""
        for name in roster.REPLACED:
            if programs.stop_recorded(self.places.run / f"{name}.json", ROOT):
                self.tell(f"  {name} was left running by an earlier start: stopped")

    def write_status(self, state: str) -> None:
        """Store what `status` shows beside the live probes."""
        file = self.places.run / "status.json"
        facts = {"state": state, "url": self.installation.public_url, "sandbox": self.installation.sandbox_url}
        file.write_text(json.dumps(facts, indent=2) + "\n")


# --- one supervisor per state folder --------------------------------------------------------------


@contextlib.contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Hold the state folder's lock. Raises `EmbeddedError` when another supervisor holds it."""
    with (run / "supervisor.lock").open("a+") as lock:
        if not _lock(lock):
            other = holder(run)
            raise EmbeddedError(
                f"Tenantry already runs from {run.parent}" + (f" (pid {other.pid})" if other else ""), mend="make down"
            )
        me = processes.identify(os.getpid())
        assert me is not None
        programs.record(run / "supervisor.json", me)
        try:
            yield
        finally:
            (run / "supervisor.json").unlink(missing_ok=True)


def holder(run: Path) -> ProcessId | None:
    """Return the running supervisor of that folder, None when there is none."""
    return programs.recorded(run / "supervisor.json")


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def stopping_on_signals(supervisor: Supervisor) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request to stop."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        supervisor.ask_to_stop()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- without a supervisor -------------------------------------------------------------------------


def stop_all(installation: Installation, *, tell: Callable[[str], None] = print) -> bool:
    """Stop a running supervisor, then whatever is left of its programs; false when nothing ran."""
    places, stopped = installation.places, False
    master = holder(places.run)
    if master is not None:
        master.send(signal.SIGTERM)
        stopped = True
        if not master.wait_gone(90.0):
            master.send(signal.SIGKILL)
            master.wait_gone(10.0)
    for name in roster.NAMES:
        if programs.stop_recorded(places.run / f"{name}.json", ROOT):
            tell(f"  {name} stopped")
            stopped = True
    stopped |= stop_gateways(places.sandbox) > 0
    stopped |= stop_models(places.sandbox) > 0
    if installation.embeds_database and installation.database.server() is not None:
        installation.database.stop()
        tell("  PostgreSQL stopped")
        stopped = True
    return stopped


def gateways(sandbox: Path) -> list[ProcessId]:
    """Return the gateway processes whose state lies below that sandbox's folder."""
    found = []
    for pid in processes.running_pids():
        words = processes.arguments(pid)
        if GATEWAY_MODULE in words and any(
            Path(word).is_relative_to(sandbox) for word in words if word.startswith("/")
        ):
            process = processes.identify(pid)
            if process is not None:
                found.append(process)
    return found


def stop_gateways(sandbox: Path, *, grace_s: float = 5.0) -> int:
    """Stop the gateways that the sandbox started; they lead groups of their own and outlive it."""
    ours = gateways(sandbox)
    for gateway in ours:
        gateway.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for gateway in ours:
        if not gateway.wait_gone(max(deadline - time.monotonic(), 0.0)):
            gateway.send(signal.SIGKILL, group=True)
    return len(ours)


def models(sandbox: Path) -> list[ProcessId]:
    """Return the processes of model servers: they work below that sandbox's folder of models, and nobody else does."""
    folder = (sandbox / MODELS).resolve()
    found = []
    for pid in processes.running_pids():
        inside = processes.working_folder(pid)
        if inside is not None and inside.is_relative_to(folder) and (process := processes.identify(pid)) is not None:
            found.append(process)
    return found


def stop_models(sandbox: Path, *, grace_s: float = 15.0) -> int:
    """Stop the model servers that the sandbox started, children included; return how many processes."""
    ours = models(sandbox)
    for process in ours:
        if processes.is_leader(process):
            process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in ours:
        if not process.wait_gone(max(deadline - time.monotonic(), 0.0)):
            process.send(signal.SIGKILL)
    return len(ours)


def liveness(installation: Installation) -> Mapping[str, str]:
    """Return a word about each program, by probing: `working`, `running`, `stopped` or what is wrong."""
    places = installation.places
    shown: dict[str, str] = {"supervisor": "running" if holder(places.run) else "stopped"}
    if installation.embeds_database:
        probe = installation.database.probe()
        shown["database"] = {Probe.ACCEPTING: "working", Probe.ABSENT: "stopped"}.get(probe, probe.value)
    else:
        shown["database"] = "external"
    for name in reversed(roster.NAMES):
        alive = programs.recorded(places.run / f"{name}.json") is not None
        if alive and name in {"web", "sandbox"}:
            url = roster.health_url(installation, name)
            shown[name] = "working" if programs.is_answering(url) else f"does not answer at {url}"
        else:
            shown[name] = "running" if alive else "stopped"
    shown["gateways"] = str(len(gateways(places.sandbox)))
    shown["models"] = str(sum(processes.is_leader(process) for process in models(places.sandbox)))
    return shown
