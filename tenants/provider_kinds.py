"""The kinds of providers that can be connected, described for forms: settings, secrets, what each is for.

Pure. The domain knows no driver: whoever brings drivers offers their descriptions once at start (`offer`), and
interfaces read them. What a provider really needs is found by testing it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final


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
    is_long: bool = False
    """Several lines of text."""
    refuses: Callable[[str], str] | None = None
    """Returns why a text cannot be used, `""` for one that can; called only for texts that are not empty."""
    is_advanced: bool = False
    """Few need it: forms keep it folded away."""

    def refusal(self, value: object) -> str:
        """Return why a value that is not empty cannot be used, `""` for one that can."""
        text = text_of(value)
        if self.choices and text not in {choice for choice, _label in self.choices}:
            return f"Choose one of these: {', '.join(choice for choice, _label in self.choices if choice)}."
        return self.refuses(text) if self.refuses is not None else ""


@dataclass(frozen=True, slots=True)
class Credential:
    """One secret of a provider."""

    name: str
    label: str
    sentence: str
    own: str = ""
    """Name of a setting of the installation that holds it for the suggested address, `""` for none."""
    optional: bool = False
    """It can be left out; `ProviderKind.lacks` says what must be there together."""
    is_long: bool = False
    """Several lines of text."""
    refuses: Callable[[str], str] | None = None
    """Returns why a secret cannot be used, `""` for one that can; the answer never quotes the secret."""
    judges: Callable[[str, Mapping[str, Any], datetime], str] | None = None
    """(secret, configuration, now) → why the two do not fit, `""` where they do; asked when either is stored."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file for whoever runs the provider, to be copied: the rights of our account, for example."""

    title: str
    sentence: str
    file: str
    text: str


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
    documents: tuple[Document, ...] = ()
    lacks: Callable[[Mapping[str, Any], Collection[str]], tuple[str, str] | None] | None = None
    """(configuration, names of the secrets) → (field, sentence) of what is missing, None where nothing is."""
    more_keys: frozenset[str] = frozenset()
    """Entries of the configuration that are known too, and that no form asks for."""
    judges: Callable[[Mapping[str, Any]], tuple[str, str] | None] | None = None
    """Configuration → (key, sentence) of an entry that the driver could not use, None where it could use all.

    What is only missing is no refusal: it may be stored later, and a test names it.
    """

    def setting(self, key: str) -> Setting | None:
        """Return the description of one setting, None for one that the kind does not name."""
        return next((each for each in self.settings if each.key == key), None)

    def credential(self, name: str) -> Credential | None:
        """Return the description of one secret, None for one that the kind does not name."""
        return next((each for each in self.credentials if each.name == name), None)

    def unknown(self, key: str) -> str:
        """Return why an entry of this name is refused, `""` for one that the kind knows."""
        known = sorted({*self.more_keys, *(each.key for each in self.settings)})
        if key in known:
            return ""
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" There are: {', '.join(known)}."
        return f"{self.title} has no setting of this name.{hint}"

    def refusal(self, config: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return (key, sentence) of an entry that cannot be used, alone or beside the others; None where all can."""
        for key, value in config.items():
            setting = self.setting(key)
            sentence = setting.refusal(value) if setting is not None and value not in (None, "") else ""
            if sentence:
                return key, sentence
        return self.judges(config) if self.judges is not None else None

    def missing(self, config: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, str] | None:
        """Return (field, sentence) of a secret or setting that is not there and must be, None where all are."""
        for one in self.credentials:
            if not one.optional and one.name not in secrets:
                return f"secret.{one.name}", "This is needed."
        return self.lacks(config, secrets) if self.lacks is not None else None


def text_of(value: object) -> str:
    """Return a stored value as a form writes it: what is true is `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


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
