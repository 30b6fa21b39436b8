"""One program under supervision: its command, its log, its record on disk, how it is ready, how it ends.

A program leads a process group of its own, so that a signal for it reaches its children and Ctrl-C in a terminal does
not. The record (pid and start mark) lets a later supervisor find what an earlier, killed one left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from controlplane.embedded import processes
from controlplane.embedded.places import Places
from controlplane.embedded.processes import ProcessId

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_LAST_S: Final = 30.0
STEADY_S: Final = 30.0
"""A program that ran so long starts its backoff anew."""
LOG_LIMIT_BYTES: Final = 50 * 2**20


@dataclass(frozen=True)
class Program:
    """What to run and how to tell that it works."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    ready: Callable[[Running], bool]
    folder: Path = Path("/")
    """Working folder."""
    grace_s: float = 10.0
    """How long it may take to end after SIGTERM before its group is killed."""
    survives: bool = False
    """Whether one left by a killed supervisor is taken over instead of stopped."""


class Running:
    """The one process of a program, started or taken over by us."""

    def __init__(self, program: Program, places: Places) -> None:
        """Nothing is started yet."""
        self.program = program
        self.log_file = places.logs / f"{program.name}.log"
        self.record_file = places.run / f"{program.name}.json"
        self.process: ProcessId | None = None
        self.restarts = 0
        self.log_from = 0
        """Size of the log when this process began: readiness looks only behind it."""
        self._child: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._backoff_s = BACKOFF_FIRST_S
        self._not_before = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since this process began under our eyes."""
        return time.monotonic() - self._began

    def is_alive(self) -> bool:
        """Whether the process runs; reaps it when it ended."""
        if self._child is not None:
            return self._child.poll() is None
        return self.process is not None and self.process.is_alive()

    def is_ready(self) -> bool:
        """Whether it runs and works."""
        return self.is_alive() and self.program.ready(self)

    def start(self) -> None:
        """Start the process and record it; a survivor that runs already is taken over."""
        self._began = time.monotonic()
        left = recorded(self.record_file)
        if left is not None and self.program.survives:
            self.process = left
            return
        self.log_file.touch(mode=0o600)
        trim(self.log_file)
        self.log_from = self.log_file.stat().st_size
        with self.log_file.open("ab") as log:
            self._child = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.program.environ),
                start_new_session=True,
                cwd=self.program.folder,
            )
        self.process = processes.identify(self._child.pid)
        if self.process is not None:
            record(self.record_file, self.process)

    def keep_alive(self) -> str:
        """Start the process again when it ended and its backoff is over; returns what to tell, if anything."""
        if self.is_alive():
            if self.age_s > STEADY_S:
                self._backoff_s = BACKOFF_FIRST_S
            return ""
        now = time.monotonic()
        if self.process is not None:  # just found dead
            status = self._child.returncode if self._child is not None else "unknown"
            kill_group(self.process)  # its children may hold the port or take work
            self.process, self._child = None, None
            self._not_before = now + self._backoff_s
            told = f"{self.program.name} ended (status {status}), starts again in {self._backoff_s:.1f} s"
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_LAST_S)
            return told
        if now >= self._not_before:
            self.restarts += 1
            self.start()
        return ""

    def ask_to_end(self) -> None:
        """Send SIGTERM to the process; its children are its own business."""
        if self.process is not None:
            self.process.send(signal.SIGTERM)

    def end(self, *, hurry: bool = False) -> None:
        """Wait for the end that was asked for; kill the whole group after the grace time, or at once."""
        if self.process is not None:
            deadline = time.monotonic() + (0.0 if hurry else self.program.grace_s)
            while self.is_alive() and time.monotonic() < deadline:
                time.sleep(processes.POLL_S)
            kill_group(self.process)
            while self.is_alive():
                time.sleep(processes.POLL_S)
        self.process, self._child = None, None
        self.record_file.unlink(missing_ok=True)

    def fresh_log(self) -> str:
        """Return what this process wrote so far."""
        with contextlib.suppress(OSError), self.log_file.open("rb") as log:
            log.seek(self.log_from)
            return log.read().decode(errors="replace")
        return ""

    def log_tail(self, lines: int = 20) -> str:
        """Return its last lines."""
        return "\n".join(self.fresh_log().splitlines()[-lines:])


# --- readiness ------------------------------------------------------------------------------------


def answers(url: str) -> Callable[[Running], bool]:
    """Ready when a GET of `url` gives 200."""

    def ready(_: Running) -> bool:
        return is_answering(url)

    return ready


def says(*words: str) -> Callable[[Running], bool]:
    """Ready when its log holds one of `words`; one taken over was ready before."""

    def ready(running: Running) -> bool:
        return any(word in running.fresh_log() for word in words)

    return ready


def lives(seconds: float) -> Callable[[Running], bool]:
    """Ready when it has run for so long: for programs that have nothing to answer."""

    def ready(running: Running) -> bool:
        return running.age_s >= seconds

    return ready


def is_answering(url: str, *, timeout_s: float = 5.0) -> bool:
    """Whether a GET of that loopback `url` gives 200; proxies of the environment are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


# --- records and logs -----------------------------------------------------------------------------


def record(file: Path, process: ProcessId) -> None:
    """Store which process a program is."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps({"pid": process.pid, "started": process.started}) + "\n")
    fresh.replace(file)


def recorded(file: Path) -> ProcessId | None:
    """Return the recorded process when that very process still runs."""
    try:
        stored = json.loads(file.read_text())
        process = ProcessId(int(stored["pid"]), str(stored["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return process if process.is_alive() else None


def kill_group(process: ProcessId) -> None:
    """Kill the group that `process` led, also when the leader itself ended, seen by us, a moment ago."""
    if process.send(signal.SIGKILL, group=True):
        return
    # the kernel hands out no pid that names a group with members, so with the leader gone and nobody
    # else under its pid, whoever is in the group is of that program
    if processes.identify(process.pid) is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def stop_recorded(file: Path, folder: Path, *, grace_s: float = 10.0) -> bool:
    """End the recorded process, and what is left of its group in its working `folder`; false when nothing ran."""
    process = recorded(file)
    if process is not None:
        process.send(signal.SIGTERM)
        process.wait_gone(grace_s)
    left = processes.group_members(recorded_pid(file), folder)
    for member in left:
        member.send(signal.SIGKILL)
    for member in left:
        member.wait_gone(grace_s)
    file.unlink(missing_ok=True)
    return process is not None or bool(left)


def recorded_pid(file: Path) -> int:
    """Return the recorded pid whether it runs or not, 0 when there is none."""
    try:
        return int(json.loads(file.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def trim(log: Path) -> None:
    """Keep one older copy of a log that has grown too big; writers append, so they go on at its new end."""
    if log.stat().st_size > LOG_LIMIT_BYTES:
        older = log.with_suffix(".log.1")
        shutil.copyfile(log, older)
        older.chmod(0o600)
        os.truncate(log, 0)
