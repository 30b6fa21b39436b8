"""What may be done about a finding: adopt, repair, delete, ignore, and why one of them is not to be had. Pure.

Every kind has an entry for `adopt` and for `delete` (a test compares with what passes write); looking again and
ignoring always fit. *Adopt*: what is there becomes what is written here. *Repair*: look again now, set right what can
be. *Delete*: what nobody owns goes at its provider, what has gone at its provider goes here. Nothing here frees what a
tenant holds: the operation refuses that, whatever is offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tenants import findings
from tenants.models import Finding

ADOPT: Final = "adopt"
REPAIR: Final = "repair"
DELETE: Final = "delete"
IGNORE: Final = "ignore"
Text = str | Promise

ACTIONS: Final = (ADOPT, REPAIR, DELETE, IGNORE)

ADOPTED: Final[Mapping[str, Text]] = {
    findings.STRAY_USE: _("Give it the room it runs on, if that is free."),
    findings.WRONG_DEVICE: _("Let it have the room it runs on in place of the room it was given."),
    findings.PRODUCT_CHANGED: _("Take the GPU for the model that is shown; refused while a tenant has room on it."),
    findings.BINDING_CHANGED: _("Go by what the host says now; refused while a tenant has room on it."),
}
"""What adopting does, for the kinds that it fits."""
DELETED: Final[Mapping[str, Text]] = {
    findings.ORPHAN: _("Take it away at its provider. That cannot be undone."),
    findings.LEFT_FILES: _("Take it away at its provider. That cannot be undone."),
    findings.HOST_MISSING: _(
        "Take the host out here: its GPUs count no longer. Refused while a tenant has room on it."
    ),
    findings.GPU_MISSING: _(
        "Take the GPU out here; it comes back when it is shown. Refused while a tenant has room on it."
    ),
}
"""What deleting does, for the kinds that it fits."""

_BOOKS: Final = _("What it should be stands here and is its tenant's to change; repair sets it right again.")
_NOT_OURS: Final = _("It is not ours: what lacks our mark is never taken over.")
_NO_TRUTH: Final = _("Two things that are said cannot both be true; there is nothing to go by before that is mended.")
_GONE: Final = _("It is gone: there is nothing to take over.")
_NO_DELETE_THERE: Final = _("It is a tenant's and in use; whoever has it deletes it on its own page.")
_NO_DELETE_FOREIGN: Final = _("It is not ours: whoever runs the provider takes it away there.")
_NOTHING_TO_DELETE: Final = _("Nothing of ours is left over there that could be taken away.")
_HARDWARE: Final = _("Hardware that is there is drained and taken out on its host's page.")

NOT_ADOPTED: Final[Mapping[str, Text]] = {
    findings.ORPHAN: _(
        "What it should be, who pays for it and until when stands nowhere here any more. Have it made anew, "
        "copy over what is on it, then delete this one."
    ),
    "duplicate-object": _(
        "Which of the two is the real one cannot be told from here; remove the copy at the provider."
    ),
    "duplicates-in-lists": _("Each entry was counted once already; there is nothing to take over."),
    findings.STEP_OVERDUE: _("It is the provider's task that hangs: end it there, and the step goes on by itself."),
    "foreign-use-on-hold": _("It is not ours, and the room is a tenant's: nobody is evicted for it."),
    "duplicate-use": _("It would get more than was asked and paid for; ask for more on its own page, or rebuild it."),
    "unexplained-report": _NO_TRUTH,
    "use-without-place": _("No legal place is left that could be given to it."),
    "host-overcommitted": _("All that the host has left is kept for it already; the rest is not there."),
    "unknown-product": _("The catalogue does not know what it can be divided into; a later version may."),
    "layout-mismatch": _NO_TRUTH,
    "host-shrunk": _("More than it shows is given out already; nothing can be taken back from tenants."),
    findings.HOST_MISSING: _GONE,
    findings.GPU_MISSING: _GONE,
    "gpu-moved": _(
        "A tenant has room on it at the old host. It is taken in at the new one by itself once that is given back."
    ),
    "changed-by-others": _BOOKS,
    "snapshots-kept": _("Snapshots are nobody's here: whoever made them removes them."),
    "cards-changed": _BOOKS,
    "isolation-changed": _BOOKS,
    "access-changed": _BOOKS,
    "field-fight": _BOOKS,
    "foreign-object": _NOT_OURS,
    findings.LEFT_FILES: _("A machine is made of an image, never of files that were found."),
    "isolation-restored": _("It was put back: what keeps tenants apart is never taken over from others."),
    "contradictory-host": _NO_TRUTH,
}
"""Why adopting does not fit a kind."""
NOT_DELETED: Final[Mapping[str, Text]] = {
    "duplicate-object": _(
        "Which of the two is the real one cannot be told from here; remove the copy at the provider."
    ),
    "duplicates-in-lists": _NOTHING_TO_DELETE,
    findings.STEP_OVERDUE: _("Only at the provider can its task be cancelled; the finding names it."),
    findings.STRAY_USE: _NO_DELETE_THERE,
    findings.WRONG_DEVICE: _NO_DELETE_THERE,
    "foreign-use-on-hold": _NO_DELETE_FOREIGN,
    "duplicate-use": _NO_DELETE_THERE,
    "unexplained-report": _NOTHING_TO_DELETE,
    "use-without-place": _NO_DELETE_FOREIGN,
    "host-overcommitted": _NO_DELETE_FOREIGN,
    "unknown-product": _HARDWARE,
    findings.PRODUCT_CHANGED: _HARDWARE,
    "layout-mismatch": _HARDWARE,
    "host-shrunk": _HARDWARE,
    findings.BINDING_CHANGED: _HARDWARE,
    "gpu-moved": _HARDWARE,
    "changed-by-others": _NO_DELETE_THERE,
    "snapshots-kept": _("Nothing here removes a snapshot: whoever made it knows what it is for."),
    "cards-changed": _NO_DELETE_THERE,
    "isolation-changed": _NO_DELETE_THERE,
    "access-changed": _NO_DELETE_THERE,
    "field-fight": _NO_DELETE_THERE,
    "foreign-object": _NO_DELETE_FOREIGN,
    "isolation-restored": _("It keeps tenants apart and stays."),
    "contradictory-host": _HARDWARE,
}
"""Why deleting does not fit a kind."""
UNKNOWN_KIND: Final = _("This version does not know this kind of finding.")


@dataclass(frozen=True, slots=True)
class Choice:
    """One action on one finding."""

    action: str
    text: str
    """What it does; `""` where it is not offered."""
    reason: str
    """Why it is not offered, with what to do instead; `""` where it is."""

    @property
    def is_offered(self) -> bool:
        """Whether it may be asked for."""
        return not self.reason


def choices(row: Finding) -> tuple[Choice, ...]:
    """Return every action on a finding, offered or not, in the order of `ACTIONS`."""
    adopt, delete = _why_no_adopting(row), _why_no_deleting(row)
    return (
        Choice(ADOPT, "" if adopt else str(ADOPTED[row.kind]), adopt),
        Choice(REPAIR, str(_("Look again now and set right what can be; it closes by itself once it is gone.")), ""),
        Choice(DELETE, "" if delete else str(DELETED[row.kind]), delete),
        Choice(IGNORE, str(_("It is known and all right: stay silent while it is seen, and block nothing.")), ""),
    )


def choice(row: Finding, action: str) -> Choice:
    """Return one action on a finding. Raises `KeyError` for a word that is none."""
    return {one.action: one for one in choices(row)}[action]


def _why_no_adopting(row: Finding) -> str:
    if row.kind not in ADOPTED:
        return str(NOT_ADOPTED.get(row.kind, UNKNOWN_KIND))
    if row.kind == findings.STRAY_USE and not row.data.get("live"):
        return str(
            _("Its owner is gone or unknown: nobody is there to be given room. Its objects are told as orphans.")
        )
    if row.kind == findings.WRONG_DEVICE and (row.device_id is None or not row.data.get("unit")):
        return str(_("Where it runs is a GPU that is not known here, so there is no room to give."))
    if row.kind == findings.PRODUCT_CHANGED and row.device_id is None:
        return str(_GONE)
    if row.kind == findings.BINDING_CHANGED and not row.data.get("binding"):
        return str(_("What the host says now was not noted yet; repair looks again."))
    return ""


def _why_no_deleting(row: Finding) -> str:
    if row.kind not in DELETED:
        return str(NOT_DELETED.get(row.kind, UNKNOWN_KIND))
    if row.kind == findings.LEFT_FILES and not row.data.get("removable"):
        return str(_("It is not certain that it was ours and has gone: it may be somebody's data. Ask whose it is."))
    return ""
