"""VLAN ranges as people write them: `1200-1299, 1400`. Pure."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

FIRST: Final = 1
LAST: Final = 4094
_RANGE: Final = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")


def vlan_ranges(text: object) -> tuple[tuple[int, int], ...]:
    """Return the ranges of a text with commas, lines, or a list of such, both ends included, in order.

    Raises `ValueError` with what is wrong, for people.
    """
    if isinstance(text, dict):
        raise ValueError("a list of ranges, not a mapping")  # noqa: TRY004 - people read it, whatever they wrote
    items = text if isinstance(text, list | tuple) else re.split(r"[,\n]", str(text))
    found: list[tuple[int, int]] = []
    for part in (stripped for item in items if (stripped := str(item).strip())):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is no range; write 1200-1299")
        first, last = int(match[1]), int(match[2] or match[1])
        if not FIRST <= first <= last <= LAST:
            raise ValueError("a VLAN is a number from 1 to 4094, and a range goes upwards")
        found.append((first, last))
    found.sort()
    for (_first, last), (following, _end) in pairwise(found):
        if following <= last:
            raise ValueError(f"VLAN {following} is named twice")
    return tuple(found)
