"""Garbage collection of processes that live long: what is loaded is looked over once, and then left alone."""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (50_000, 20, 20)
"""Objects made, above those gone, before the youngest are looked over; a page makes and drops ten thousand."""


def settle() -> None:
    """Set aside all that there is; call it at the end of a process's start.

    Looking it over held up a request for 0.2 s now and then, and Python's own threshold of 700 objects costs a page
    a tenth of its time. Forks of the process share what was set aside.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
