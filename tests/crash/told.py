"""What a driver says of a provider whose time is its own: of what it is still at work."""

from __future__ import annotations

from typing import Any

from provisioners.driver import Done, Driver, Handle, Observed, Poll, Presence, Ref, Step


class Told:
    """A driver that remembers of which objects it last said that the provider is still at work on them."""

    def __init__(self, driver: Driver) -> None:
        """Listen to `driver`."""
        self._driver = driver
        self._of: dict[str, Ref] = {}
        self.waiting: set[Ref | str] = set()
        """Objects; by its handle, one whose handle another process was given."""

    def __getattr__(self, name: str) -> Any:
        """Leave everything else as it is."""
        return getattr(self._driver, name)

    def observe(self, ref: Ref) -> Observed:
        """Read one object; one with a part that is not ready or on its way out is waited for."""
        seen = self._driver.observe(ref)
        moving = any(part.presence is Presence.CHANGING or (part.have and not part.ready) for part in seen.parts)
        self._note(ref, waiting=moving)
        return seen

    def start(self, step: Step) -> Handle | Done:
        """Start a step; what has a handle is waited for."""
        answer = self._driver.start(step)
        if isinstance(answer, Handle):
            self._of[answer.value] = step.ref
            self._note(step.ref, waiting=True)
        return answer

    def poll(self, handle: Handle) -> Poll:
        """Look at what has a handle."""
        answer = self._driver.poll(handle)
        self._note(self._of.get(handle.value, handle.value), waiting=answer.state == "running")
        return answer

    def _note(self, what: Ref | str, *, waiting: bool) -> None:
        (self.waiting.add if waiting else self.waiting.discard)(what)
