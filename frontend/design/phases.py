"""How each phase looks and what it says: colour, icon and word together, so that none is needed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from tenants.states import Phase


@dataclass(frozen=True, slots=True)
class Look:
    """Tone (ok, info, warn, bad, quiet), icon, word and one sentence."""

    tone: str
    icon: str
    word: str | Promise
    sentence: str | Promise
    is_moving: bool = False
    """Whether something is being done right now; its icon turns unless motion is unwanted."""
    page_state: str = ""
    """What title and favicon show: building, ready or failed."""


PHASES: Final = {
    Phase.AWAITING_APPROVAL: Look(
        "warn", "stamp", _("Awaiting approval"), _("A person has to decide first."), page_state="building"
    ),
    Phase.WAITING: Look(
        "warn", "hourglass", _("Waiting"), _("There is no room for it yet; it starts by itself."), page_state="building"
    ),
    Phase.PROVISIONING: Look(
        "info", "loader-circle", _("Provisioning"), _("It is being built."), is_moving=True, page_state="building"
    ),
    Phase.READY: Look("ok", "circle-check", _("Ready"), _("It can be used."), page_state="ready"),
    Phase.DEGRADED: Look(
        "warn", "heart-pulse", _("Degraded"), _("It works only in part and is being repaired."), page_state="failed"
    ),
    Phase.SUSPENDED: Look(
        "quiet", "circle-pause", _("Suspended"), _("It is kept, and does not serve until it is resumed.")
    ),
    Phase.EXPIRING: Look("warn", "calendar-clock", _("Expiring"), _("Its term has ended or ends soon.")),
    Phase.DELETING: Look("quiet", "loader-circle", _("Deleting"), _("It is being given back."), is_moving=True),
    Phase.RELEASED: Look("quiet", "circle-dashed", pgettext_lazy("phase", "Released"), _("Everything was given back.")),
    Phase.FAILED: Look("bad", "circle-x", _("Failed"), _("It has stopped until it is changed."), page_state="failed"),
}

OTHER: Final = Look("quiet", "circle-question-mark", _("Unknown"), _("Its state could not be read."))


def look(phase: str | None) -> Look:
    """Return how a phase looks; a word that is no phase looks unknown."""
    try:
        return PHASES[Phase(phase or "")]
    except ValueError:
        return OTHER
