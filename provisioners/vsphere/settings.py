"""Everything the driver is told of one vCenter: where it is, whom to trust, who we are, and by which limits.

Read once from a provider's config and credentials; frozen, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from provisioners.driver import Secret


class BadSettings(ValueError):
    """A setting of the provider cannot be used; the text says which and why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One vCenter as configured."""

    slug: str
    host: str
    user: str
    password: Secret
    port: int = 443
    ca_pem: str = ""
    """Certificates that the vCenter's is checked with; empty: the machine's own."""
    thumbprint: str = ""
    """SHA-256 of the vCenter's certificate, 64 hexadecimal digits: trusted in the place of any CA."""
    call_deadline_s: float = 30.0
    """For one call; without one a server that has lost itself is waited for without end."""
    page: int = 500
    """Objects per page of a read."""
    clones_per_host: int = 4
    """Full clones at a time; a host takes no more, and what waits should wait where it is seen."""
    clones: int = 16

    @property
    def url(self) -> str:
        """Its address for people."""
        return f"https://{self.host}:{self.port}"

    def __repr__(self) -> str:
        """Show which vCenter, and no credential."""
        return f"Settings({self.slug}, {self.url}, {self.user})"


_WHOLE: Final = ("page", "clones_per_host", "clones")


def settings_of(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Settings:
    """Return the settings of a provider's row: `url`, `user`, and the credential `password`.

    Raises `BadSettings`, and `KeyError` with the name of a setting or credential that is missing.
    """
    given = {name: value for name, value in config.items() if value not in {None, ""}}
    parts = urlsplit(str(given["url"]))
    if parts.scheme != "https" or not parts.hostname:
        raise BadSettings("url: the address of a vCenter starts with https:// and names a host")
    if parts.username or parts.password:
        raise BadSettings("url: no credential belongs in an address")
    if parts.path not in {"", "/", "/sdk"}:
        raise BadSettings("url: the address of a vCenter has no path")
    password = Secret(secrets["password"].reveal().rstrip("\r\n"))
    if not password.reveal():
        raise BadSettings("password: is empty")
    numbers: dict[str, Any] = {name: _number(name, given[name], int) for name in _WHOLE if name in given}
    if "call_deadline_s" in given:
        numbers["call_deadline_s"] = _number("call_deadline_s", given["call_deadline_s"], float)
    return Settings(
        slug=str(given.get("slug") or parts.hostname),
        host=parts.hostname,
        port=_port(parts.netloc, parts.scheme),
        user=str(given["user"]),
        password=password,
        ca_pem=_ca(str(given.get("ca_pem", ""))),
        thumbprint=_thumbprint(str(given.get("thumbprint", ""))),
        **numbers,
    )


def _port(netloc: str, scheme: str) -> int:
    try:
        return urlsplit(f"{scheme}://{netloc}").port or 443
    except ValueError as error:
        raise BadSettings("url: the port is a number up to 65535") from error


def _ca(text: str) -> str:
    if text and "-----BEGIN CERTIFICATE-----" not in text:
        raise BadSettings("ca_pem: holds no certificate (-----BEGIN CERTIFICATE-----)")
    return text


def _thumbprint(text: str) -> str:
    plain = text.replace(":", "").replace(" ", "").lower()
    if plain and not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise BadSettings("thumbprint: 64 hexadecimal digits, the SHA-256 of the vCenter's certificate")
    return plain


def _number(name: str, value: object, kind: type[int | float]) -> float:
    try:
        number = kind(str(value))
    except ValueError as error:
        raise BadSettings(f"{name}: no number") from error
    if number <= 0:
        raise BadSettings(f"{name}: must be above 0")
    return number
