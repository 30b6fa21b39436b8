"""Facts about processes of this machine: identity that survives pid reuse, life, folders, arguments.

Owns no process; `programs.py` starts and stops them. A pid alone is never trusted: the kernel hands it out
again, so every record keeps the start mark beside it. Linux reads /proc, other systems ask `ps`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
HAS_PROC = (_PROC / "self" / "stat").exists()
_STATE_FIELD, _THREADS_FIELD, _START_FIELD = 0, 17, 19
"""Fields of /proc/<pid>/stat after the command name: proc_pid_stat(5) numbers 3 (state), 20 (num_threads) and 22
(starttime)."""
POLL_S = 0.02


@dataclass(frozen=True)
class ProcessId:
    """One process of this boot: pid and the mark of its start."""

    pid: int
    started: str
    """Boot and clock ticks since then on Linux, `ps` lstart elsewhere: only compared for equality."""

    def is_alive(self) -> bool:
        """Whether this very process runs; a zombie or a reused pid does not count."""
        return started_mark(self.pid) == self.started

    def send(self, number: signal.Signals, *, group: bool = False) -> bool:
        """Send a signal to the process, or to the group that it leads; false when it is gone."""
        if not self.is_alive():
            return False
        try:
            if group and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the process is gone; false when it still runs after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a running pid, or None when nothing runs there."""
    mark = started_mark(pid)
    return None if mark is None else ProcessId(pid, mark)


def started_mark(pid: int) -> str | None:
    """Return the start mark of `pid`, None when it is gone or a zombie.

    A zombie with living threads counts as running: while the last one ends, files and ports are still held.
    """
    if not HAS_PROC:
        return _ps_mark(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (OSError, ValueError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name may hold blanks and brackets
    is_gone = fields[_STATE_FIELD] == "X" or (fields[_STATE_FIELD] == "Z" and int(fields[_THREADS_FIELD]) <= 1)
    return None if is_gone else f"{_boot()}-{fields[_START_FIELD]}"


@cache
def _boot() -> str:
    """Return what tells this boot from all others: ticks begin anew with each."""
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return "boot"


def _ps_mark(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    line = answer.stdout.strip()
    if not line or line.startswith("Z"):
        return None
    return line.split(maxsplit=1)[1]


def is_leader(process: ProcessId) -> bool:
    """Whether a process leads its group."""
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def working_folder(pid: int) -> Path | None:
    """Return the working folder of `pid`, None when it is gone, not ours to read, or unknown here."""
    try:
        return (_PROC / str(pid) / "cwd").readlink() if HAS_PROC else None
    except OSError:
        return None


def group_members(leader: int, folder: Path) -> list[ProcessId]:
    """Return the processes of a group that work in `folder`: the group's number alone may be somebody else's by now."""
    found = []
    for pid in running_pids():
        try:
            inside = os.getpgid(pid) == leader and working_folder(pid) == folder
        except ProcessLookupError:
            continue
        if inside and (process := identify(pid)) is not None:
            found.append(process)
    return found


def arguments(pid: int) -> list[str]:
    """Return the command line of `pid`; empty when it is gone or a kernel thread."""
    if not HAS_PROC:
        command = ["ps", "-o", "args=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0") if part]


def running_pids() -> Iterator[int]:
    """Yield the pids of this machine."""
    if HAS_PROC:
        yield from (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
        return
    listing = subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True, check=False).stdout
    yield from (int(pid) for pid in listing.split())
