"""The kinds of providers that can be connected, described for forms: settings, secrets, what each is for.

Pure. The domain knows no driver: whoever brings drivers offers their descriptions once at start (`offer`), and
interfaces read them. What a provider really needs is found by testing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Setting:
    """One entry of a provider's configuration."""

    key: str
    label: str
    sentence: str
    """What it is for."""
    example: str = ""
    required: bool = False
    choices: tuple[tuple[str, str], ...] = ()
    """(value, label); empty for free text."""
    suggests: str = ""
    """Name of a setting of the installation whose value is filled in, `""` for none."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One secret of a provider."""

    name: str
    label: str
    sentence: str
    own: str = ""
    """Name of a setting of the installation that holds it for the suggested address, `""` for none."""


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """One kind of provider."""

    slug: str
    title: str
    sentence: str
    icon: str
    settings: tuple[Setting, ...]
    credentials: tuple[Credential, ...]
    rights: tuple[str, ...] = ()
    """What the account behind the credentials must be allowed to do, one sentence each."""
    simulated: bool = False

    def setting(self, key: str) -> Setting | None:
        """Return the description of one setting, None for one that the kind does not name."""
        return next((each for each in self.settings if each.key == key), None)


_OFFERED: Final[dict[str, ProviderKind]] = {}


def offer(kind: ProviderKind) -> None:
    """Make a kind known to this process; a second offer of the same slug replaces the first."""
    _OFFERED[kind.slug] = kind


def offered() -> tuple[ProviderKind, ...]:
    """Return every kind that can be connected, real ones first."""
    return tuple(sorted(_OFFERED.values(), key=lambda kind: (kind.simulated, kind.title)))


def kind_of(slug: str) -> ProviderKind | None:
    """Return the description of a kind, None for one that nobody offers."""
    return _OFFERED.get(slug)
