"""Clocks that stand still until they are moved, shared by all processes of one run: one slot per job.

Passes, leases and the simulated provider of a point read the same slot, so a lease runs out and a task ends
because the point's time was moved on, never because anybody slept. Memory is shared across forks.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

SLOTS: Final = 256
_FORMAT: Final = struct.Struct("<d")


class Clocks:
    """Slots of one shared page; make it before the first fork."""

    def __init__(self) -> None:
        """Map the memory."""
        self._memory = mmap.mmap(-1, SLOTS * _FORMAT.size)

    def slot(self, number: int) -> Clock:
        """Return the clock of one job."""
        return Clock(self._memory, number)


@dataclass(frozen=True, slots=True)
class Clock:
    """One slot: seconds since the epoch."""

    memory: mmap.mmap
    number: int

    def seconds(self) -> float:
        """Return the time as the sandbox counts it."""
        value: float = _FORMAT.unpack_from(self.memory, self.number * _FORMAT.size)[0]
        return time.time() if math.isnan(value) else value

    def run(self) -> None:
        """Let the time be that of the wall, until it is set again: for real workers, which know no other."""
        self.set(math.nan)

    def __call__(self) -> datetime:
        """Return the time as passes count it."""
        return datetime.fromtimestamp(self.seconds(), UTC)

    def set(self, seconds: float) -> None:
        """Set the time."""
        _FORMAT.pack_into(self.memory, self.number * _FORMAT.size, seconds)

    def move(self, seconds: float) -> None:
        """Move the time on."""
        self.set(self.seconds() + seconds)
