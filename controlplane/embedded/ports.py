"""Loopback ports: is one free, which to take instead, and what was taken last time. Standard library only."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"


def is_free(port: int, *, address: str = LOOPBACK) -> bool:
    """Whether a server could listen on that port of a loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # without it a connection in TIME_WAIT counts as busy, as it would for no server of ours
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(preferred: int, *, taken: frozenset[int] = frozenset(), address: str = LOOPBACK) -> int:
    """Return `preferred` when it is free, else the next free one of 100, else any free one."""
    for port in range(preferred, min(preferred + 100, 65_536)):
        if port not in taken and is_free(port, address=address):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def remembered(file: Path) -> dict[str, int]:
    """Return the ports stored by `remember`; empty when there are none or the file is damaged."""
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(file.read_text())
        if isinstance(stored, dict):
            return {str(name): port for name, port in stored.items() if isinstance(port, int) and 0 < port < 65_536}
    return {}


def remember(file: Path, ports: dict[str, int]) -> None:
    """Store the ports for the next start."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(ports, indent=2) + "\n")
    fresh.replace(file)
