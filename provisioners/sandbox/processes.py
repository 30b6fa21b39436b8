"""Processes of replicas: who they are beyond a reused pid, who belongs to them, and how they end. Linux.

A process is known by its pid and the moment of its start; a whole program by the folder that it works in, which is ours
alone and nobody else's. Signals go through a pidfd or to a group whose leader was just seen: never to a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_STATE, _THREADS, _START = 0, 17, 19
"""Fields of /proc/<pid>/stat behind the name: 3 (state), 20 (threads), 22 (start) of proc_pid_stat(5)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One process of one boot."""

    pid: int
    started: str
    """Boot and clock ticks; only compared."""


def mark_of(pid: int) -> Mark | None:
    """Return who runs under a pid, None for nobody or a zombie without living threads."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except (OSError, ValueError):
        return None
    ended = fields[_STATE] == "X" or (fields[_STATE] == "Z" and int(fields[_THREADS]) <= 1)
    return None if ended else Mark(pid, f"{boot}-{fields[_START]}")


def is_alive(mark: Mark) -> bool:
    """Whether this very process runs."""
    return mark.pid > 0 and mark_of(mark.pid) == mark


def argv_of(pid: int) -> tuple[str, ...]:
    """Return a process's command line; empty when it is gone."""
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")) if raw else ()


def working_in(folder: Path) -> Iterator[Mark]:
    """Yield every process whose working folder is `folder`."""
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            inside = (entry / "cwd").readlink() == folder
        except OSError:
            continue
        if inside and (mark := mark_of(int(entry.name))) is not None:
            yield mark


def send(mark: Mark, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone."""
    try:
        handle = os.pidfd_open(mark.pid)
    except OSError:
        return False
    try:
        if not is_alive(mark):  # looked at behind the pidfd: nobody can take the pid's place any more
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
            return True
        return False
    finally:
        os.close(handle)


def ask_to_end(leader: Mark, folder: Path) -> None:
    """Ask a program to end: its leader ends its own; without one, whoever is left of it."""
    if not send(leader, signal.SIGTERM):
        for mark in working_in(folder):
            send(mark, signal.SIGTERM)


def kill(folder: Path) -> int:
    """Kill everything that works in a folder of ours; return how many that were."""
    return sum(send(mark, signal.SIGKILL) for mark in list(working_in(folder)))
