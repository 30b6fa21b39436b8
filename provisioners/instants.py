"""Named instants of a pass at which a test may kill the process; nothing happens here otherwise.

Each step passes five of them, in this order. A hook is installed by a test in its own process; for a real
worker the setting `TENANTRY_CRASH_AT` (`<step>:<instant>`) makes it kill itself there with SIGKILL: no
clean-up runs, as with a lost machine. Undoing steps are called `undo:<step>`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

from django.conf import settings


class Instant(StrEnum):
    """Where within a step."""

    BEFORE_INTENT = "before-intent"
    """Nothing is written yet."""
    AFTER_INTENT = "after-intent"
    """The intent is committed, the provider was not called."""
    AFTER_CALL = "after-call"
    """The provider has done it; its answer was not looked at."""
    BEFORE_COMMIT = "before-commit"
    """The answer is known, its consequence is written and not committed."""
    AFTER_COMMIT = "after-commit"
    """The consequence is committed; the process has not gone on."""


Hook = Callable[[str, Instant], None]
_hooks: list[Hook] = []


def reach(step: str, instant: Instant) -> None:
    """Say that a step (or `undo:<step>`, or `<kind>.conclude`) has come to an instant."""
    for hook in _hooks:
        hook(step, instant)
    aim = _aim()
    if aim and aim == (step, instant.value):
        os.kill(os.getpid(), signal.SIGKILL)


def install(hook: Hook) -> Callable[[], None]:
    """Call `hook` at each instant from now on, in this process; return what removes it again."""
    _hooks.append(hook)
    return lambda: _hooks.remove(hook)


@lru_cache(maxsize=1)
def _aim() -> tuple[str, str] | None:
    """Return (step, instant) to die at, from the settings. Raises `ValueError` for an instant that is none."""
    text = settings.TENANTRY_CRASH_AT
    if not text:
        return None
    step, _, instant = text.rpartition(":")
    return step, Instant(instant).value
