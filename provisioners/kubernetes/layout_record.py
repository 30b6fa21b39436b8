"""What is written on a node about its layout change: the only memory of one, so that any process can go on with it.

Pure. One annotation holds the change that runs (or got stuck), another the outcome of the last one. A node that
carries the first is taken: who wants another layout waits. Times are the writer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from provisioners.driver import MARK_DOMAIN
from provisioners.kubernetes.objects import Object, dig

CHANGE_ANNOTATION: Final = f"{MARK_DOMAIN}/layout-change"
OUTCOME_ANNOTATION: Final = f"{MARK_DOMAIN}/layout-outcome"


class Phase(StrEnum):
    """How far a change is."""

    DRAIN = "drain"
    """Cordoned; entries are on their way to the node, pods are on their way off it."""
    CARVE = "carve"
    """The label names the entry; the MIG manager is at work."""
    COMPARE = "compare"
    """It says that it is done; the node has to offer what was asked for."""
    RESTORE = "restore"
    """The label names the old layout again."""
    STUCK = "stuck"
    """Neither the new nor the old layout came to be: people must look."""


@dataclass(frozen=True, slots=True)
class Change:
    """One layout change of one node."""

    entry: str
    """Name of the new layout among the `mig-configs`."""
    back: str
    """Name of the old one."""
    after: Mapping[str, tuple[str, ...]]
    """GPU → profiles it shall have; every GPU of the node."""
    before: Mapping[str, tuple[str, ...]]
    evict: bool
    cordoned: bool
    """We cordoned it; a node that was cordoned before stays so."""
    begun: datetime
    since: datetime
    """When its phase began."""
    phase: Phase = Phase.DRAIN
    why: str = ""
    """What went wrong, once something did."""

    @property
    def differing(self) -> frozenset[str]:
        """GPUs that are destroyed and made anew."""
        return frozenset(gpu for gpu, wanted in self.after.items() if self.before.get(gpu) != wanted)

    def at(self, phase: Phase, now: datetime, *, why: str = "") -> Change:
        """Return it in another phase."""
        return replace(self, phase=phase, since=now, why=why or self.why)

    def text(self) -> str:
        """Return it as its annotation's value; the inverse of `change_of`."""
        values = asdict(self) | {"begun": self.begun.isoformat(), "since": self.since.isoformat()}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last change of a node ended."""

    entry: str
    why: str
    """`""`: as asked for."""

    def text(self) -> str:
        """Return it as its annotation's value."""
        return json.dumps(asdict(self), sort_keys=True)


def change_of(node: Object) -> Change | None:
    """Return the change that is written on a node, None without one that can be read."""
    found = _read(node, CHANGE_ANNOTATION)
    try:
        return Change(
            entry=str(found["entry"]),
            back=str(found["back"]),
            after={str(gpu): tuple(names) for gpu, names in found["after"].items()},
            before={str(gpu): tuple(names) for gpu, names in found["before"].items()},
            evict=bool(found["evict"]),
            cordoned=bool(found["cordoned"]),
            begun=datetime.fromisoformat(found["begun"]),
            since=datetime.fromisoformat(found["since"]),
            phase=Phase(found["phase"]),
            why=str(found.get("why", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def outcome_of(node: Object) -> Outcome | None:
    """Return how the last change of a node ended."""
    found = _read(node, OUTCOME_ANNOTATION)
    return Outcome(str(found["entry"]), str(found.get("why", ""))) if "entry" in found else None


def _read(node: Object, name: str) -> dict[str, Any]:
    try:
        found = json.loads(dig(node, "metadata", "annotations", name, default="{}"))
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
