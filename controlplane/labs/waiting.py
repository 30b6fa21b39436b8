"""Waiting for what has no event to wait for: a program that comes up, a server that takes something up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 0.1


def until(ready: Callable[[], bool], deadline: float, *, every_s: float = EVERY_S) -> bool:
    """Ask again and again; return whether `ready` said so before `deadline` (monotonic), asking once at least."""
    while not ready():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(every_s, left_s))
    return True
