"""What a person asks for on New: read leniently from the address or the form, everything preset.

Validation truth is the operation's; here only what makes a sensible question of half-filled input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tenants.specs import Term, Where
from tenants.states import BoundaryKind, ServiceClass, Tier

USERS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS: Final = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
DEFAULT_USERS: Final = 4
DEFAULT_CONTEXT: Final = 8192
DEFAULT_DAYS: Final = 30
DAYS: Final = (7, 30, 90, 180, 365)
TRIAL_DAYS: Final = 7
NAME_LENGTH: Final = 40


@dataclass(frozen=True, slots=True)
class Place:
    """One choice of where it may run."""

    key: str
    label: str | Promise
    help: str | Promise
    kind: BoundaryKind | None
    tier: Tier

    @property
    def where(self) -> Where:
        """Return it as the spec says it."""
        return Where(kind=self.kind, tier=self.tier)


PLACES: Final = (
    Place("any", _("Anywhere allowed"), _("The first place with room, on shared hosts."), None, Tier.SHARED),
    Place("shared", _("Shared cluster"), _("In a namespace of its own."), BoundaryKind.NAMESPACE, Tier.SHARED),
    Place("vm", _("Own VM"), _("In a virtual machine of its own."), BoundaryKind.VM, Tier.SHARED),
    Place("host", _("Dedicated host"), _("No other tenant on its host. Whole GPUs only."), None, Tier.DEDICATED_HOST),
)
PLACE_BY_KEY: Final[Mapping[str, Place]] = {place.key: place for place in PLACES}


@dataclass(frozen=True, slots=True)
class EndpointWish:
    """A model endpoint as asked for on its screen."""

    model: str
    users: int
    context: int
    place: Place
    days: int
    name: str
    size: str
    """Key of the chosen size; `""`: the best that fits."""

    @classmethod
    def read(cls, given: QueryDict, *, models: Iterable[str], name: str) -> EndpointWish:
        """Return the wish; what is missing or senseless is preset."""
        known = list(models)
        model = given.get("model", "")
        return cls(
            model=model if model in known else (known[0] if known else ""),
            users=number(given.get("users"), DEFAULT_USERS, least=1, most=4096),
            context=number(given.get("context"), DEFAULT_CONTEXT, least=256, most=2_097_152),
            place=PLACE_BY_KEY.get(given.get("where", ""), PLACES[0]),
            days=number(given.get("days"), DEFAULT_DAYS, least=1, most=1826),
            name=given.get("name", "").strip() or name,
            size=given.get("size", ""),
        )


@dataclass(frozen=True, slots=True)
class CapacityWish:
    """A machine or a namespace as asked for on its screen."""

    size: str
    count: int
    place: Place
    days: int
    name: str
    image: str = ""
    disk_gib: int = 0
    ssh_key: str = ""

    @classmethod
    def read(cls, given: QueryDict, *, name: str, image: str = "", ssh_key: str = "") -> CapacityWish:
        """Return the wish; what is missing or senseless is preset."""
        return cls(
            size=given.get("size", ""),
            count=number(given.get("count"), 1, least=1, most=16),
            place=PLACE_BY_KEY.get(given.get("where", ""), PLACES[0]),
            days=number(given.get("days"), DEFAULT_DAYS, least=1, most=1826),
            name=given.get("name", "").strip() or name,
            image=given.get("image", "") or image,
            disk_gib=number(given.get("disk_gib"), 100, least=1, most=10**6),
            ssh_key=given.get("ssh_key", ssh_key).strip(),
        )


def number(given: str | None, default: int, *, least: int, most: int) -> int:
    """Return a whole number within bounds; the default for anything else."""
    try:
        found = int(str(given or "").replace(",", "").strip())
    except ValueError:
        return default
    return min(max(found, least), most)


def term_of(days: int) -> Term:
    """Return the term of so many days; up to a week it is a trial."""
    kind = ServiceClass.TRIAL if days <= TRIAL_DAYS else ServiceClass.STANDARD
    return Term(duration_s=days * 86400, service_class=kind)


def ends(now: datetime, days: int) -> datetime:
    """Return when it would end if it were ready now."""
    return now + timedelta(days=days)


def free_name(base: str, taken: Iterable[str]) -> str:
    """Return `base` as a DNS label, with a number where it is taken."""
    plain = re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-")[: NAME_LENGTH - 4].strip("-") or "thing"
    if not plain[0].isalpha():
        plain = f"x{plain}"
    used = set(taken)
    if plain not in used:
        return plain
    return next(f"{plain}-{n}" for n in range(2, 10_000) if f"{plain}-{n}" not in used)


def step(values: tuple[int, ...], present: int, direction: int) -> int:
    """Return the next value of a stepper from `present`: up (1) or down (-1), or the same at its end."""
    if direction > 0:
        return next((value for value in values if value > present), present)
    return next((value for value in reversed(values) if value < present), present)
