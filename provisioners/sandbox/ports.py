"""Ports of this machine's loopback for what estates start: below those of outgoing connections, so they stay free."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(ports: range, taken: Collection[int]) -> int:
    """Return a port of `ports` that nobody listens on and that is not `taken`."""
    candidates = random.sample(ports, 200)
    return next(port for port in candidates if port not in taken and is_free(port))
