"""What others did to objects of ours, as drivers remark on it: findings, and events about what keeps tenants apart.

A finding opens when a look first shows a remark and closes when a later look shows it no more, also within one pass:
what a step set right at once was there all the same, and stays to be read. What an unsettled step of our own may have
left behind is nobody else's doing: while that is in doubt nothing opens and nothing closes. Nor does a look that does
not know how a part is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from provisioners.driver import SECURITY, Observed, Presence, Remark, RemarkKind
from tenants import desired, findings
from tenants.actor import SYSTEM
from tenants.findings import Seen
from tenants.models import Provider

KINDS: Final = frozenset(
    str(kind)
    for kind in (
        RemarkKind.CHANGED,
        RemarkKind.SNAPSHOTS,
        RemarkKind.CARDS,
        RemarkKind.RULES,
        RemarkKind.ACCESS,
        RemarkKind.FIELD_FIGHT,
    )
)
"""Findings that open and close with what passes see of one object."""
SET_RIGHT: Final = "no longer so"
SAME_WITHIN: Final = timedelta(hours=1)
"""Set right and changed back within this, it is the same trouble: somebody keeps at it."""
WORDS: Final = {
    RemarkKind.CARDS: "A network card of it was changed by others and was cut off.",
    RemarkKind.RULES: "What keeps its network apart was changed by others and is set right.",
    RemarkKind.ACCESS: "Who may reach it was changed by others and is set right.",
}
"""What a tenant reads in its trail; who and what exactly is in the operators' finding."""


@dataclass(slots=True)
class Told:
    """What the looks of one pass remarked on."""

    ever: dict[tuple[str, Remark], None] = field(default_factory=dict)
    """(step, remark) of any look, without what may be our own doing."""
    last: tuple[tuple[str, Remark], ...] | None = None
    """Of the last look, with that; None where it does not know how everything is."""

    def look(self, observed: Observed, doubted_of: Callable[[Collection[str]], Collection[str]]) -> None:
        """Note one look; `doubted_of`: steps → those whose parts may be as they are by a step of ours."""
        found = tuple((part.step, remark) for part in observed.parts for remark in part.remarks)
        doubted = doubted_of({step for step, _remark in found}) if found else ()
        self.ever |= {one: None for one in found if one[0] not in doubted}
        is_known = all(part.presence is not Presence.UNKNOWN for part in observed.parts)
        self.last = found if is_known else None


def stored(row: Any) -> bool:
    """Whether the last look that a row remembers had remarks."""
    return any(part.get("remarks") for part in row.observed.get("parts", ()))


def tell(row: Any, provider: Provider, told: Told, *, had: bool, deleting: bool, now: datetime) -> None:
    """Bring the findings about a row in line with what a pass saw, in the open transaction; the row is locked.

    `had`: whether the look before had remarks. Of what is being deleted nothing new is told.
    """
    prefix = f"{desired.kind_of(row)}/{row.pk}/"
    ever, last = tuple(told.ever), told.last
    if row.released_at is not None:
        ever, last = (), ()
    elif deleting:
        return
    if not ever and not last and not had:
        return
    opened = findings.sync(
        provider.pk, _seen(row, prefix, ever), kinds=KINDS, complete=False, now=now, prefix=prefix, within=SAME_WITHIN
    )
    for item in opened.new:
        if item.kind in SECURITY:
            desired.happened(
                row, f"{desired.kind_of(row)}.tampered", actor=SYSTEM, at=now, nudge=False,
                finding=item.kind, message=WORDS[RemarkKind(item.kind)],
            )  # fmt: skip
    if last is not None:
        findings.sync(
            provider.pk, _seen(row, prefix, last), kinds=KINDS, complete=True, now=now, keep=0, prefix=prefix,
            resolution=SET_RIGHT,
        )  # fmt: skip


def _seen(row: Any, prefix: str, found: Iterable[tuple[str, Remark]]) -> list[Seen]:
    name = getattr(row, "name", "") or row.short_id
    return [
        Seen(
            str(remark.kind),
            f"{prefix}{step}/{remark.subject}",
            f"{desired.kind_of(row).capitalize()} {name}: {remark.text}.",
            data={"object": desired.kind_of(row), "uid": str(row.pk), "name": name, "step": step},
        )
        for step, remark in found
    ]
