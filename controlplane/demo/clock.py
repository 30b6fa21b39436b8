"""The clock of the simulated past: stands still until it is moved, and never goes back."""

from __future__ import annotations

from datetime import datetime, timedelta


class SimulatedClock:
    """Tells the time that it was last set to."""

    def __init__(self, start: datetime) -> None:
        """Begin at an aware moment."""
        self.now = start

    def __call__(self) -> datetime:
        """Return the time, as passes ask for it."""
        return self.now

    def seconds(self) -> float:
        """Return the time as the sandbox counts it: seconds since the epoch."""
        return self.now.timestamp()

    def set(self, moment: datetime) -> None:
        """Go on to a moment; an earlier one changes nothing."""
        self.now = max(self.now, moment)

    def move(self, seconds: float) -> None:
        """Go on by some seconds."""
        self.set(self.now + timedelta(seconds=seconds))
