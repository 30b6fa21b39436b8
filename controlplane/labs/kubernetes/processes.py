"""The processes that play containers: started in a group of their own, found again after a restart, ended whole.

A process belongs to a container when its environment carries the container's marker (`CONTAINER_VARIABLE`); a number
that was given out again does not. Its log is appended to a file, as a container's is.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.labs.kubernetes.containers import CONTAINER_VARIABLE, Launch

PORTS: Final = range(10500, 18500)
"""Below the sandbox's gateways and below what the kernel gives to outgoing connections."""
UNKNOWN_EXIT: Final = 137
"""What a kubelet records for a container whose end it did not see (reason ContainerStatusUnknown)."""


@dataclass(slots=True)
class Process:
    """One container's process; `child` is None for an adopted one, whose exit code nobody can learn."""

    pid: int
    marker: str
    child: subprocess.Popen[bytes] | None = None

    def exit_code(self) -> int | None:
        """Return how it ended, None while it runs; 128 + signal for a killed one, as a container runtime counts."""
        if self.child is None:
            return None if is_alive(self.pid, self.marker) else UNKNOWN_EXIT
        code = self.child.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, if it is still this container's."""
        if self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def start(launch: Launch, *, marker: str, folder: Path, log: Path) -> Process:
    """Start a container's process in `folder`. Raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(launch.argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(launch.environment),
            cwd=folder,
            start_new_session=True,
        )
    return Process(child.pid, marker, child)


def is_alive(pid: int, marker: str) -> bool:
    """Tell whether `pid` is the process of the container with this marker."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return f"{CONTAINER_VARIABLE}={marker}".encode() in variables and state != b"Z"


def adopted(pid: int, marker: str) -> Process | None:
    """Return a process that an earlier player started, None if it is no more."""
    return Process(pid, marker) if is_alive(pid, marker) else None


class Ports:
    """Gives out ports on loopback that nobody listens on and no other container has."""

    def __init__(self, seed: int) -> None:
        """Look in an order of its own, so that several labs seldom meet."""
        self._dice = random.Random(seed)  # noqa: S311 - no secret
        self.taken: set[int] = set()

    def free(self) -> int:
        """Return a free port. Raises `RuntimeError` where there is none."""
        for port in self._dice.sample(PORTS, len(PORTS)):
            if port not in self.taken and _is_free(port):
                self.taken.add(port)
                return port
        msg = "no port is free for another simulated pod"
        raise RuntimeError(msg)

    def give_back(self, ports: set[int]) -> None:
        """Let others have ports again."""
        self.taken -= ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def marked() -> dict[str, int]:
    """Return marker → pid of every process of this user that plays a container."""
    found: dict[str, int] = {}
    name = f"{CONTAINER_VARIABLE}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for variable in (entry / "environ").read_bytes().split(b"\0"):
                marker = variable.removeprefix(name).decode(errors="replace")
                if variable.startswith(name) and is_alive(int(entry.name), marker):
                    found[marker] = int(entry.name)
    return found
