"""The form of a token or key: `tnt_<env>_<id>_<secret><crc>`. Pure.

`env` and `id` are public, `secret` has about 190 bits, `crc` tells a typing error or a cut copy from a wrong
secret without a look at any table. Only SHA-256 digests are stored: the secret is random and long, so no slow
hash is needed. Gateways read the same form in `provisioners.gateway.keys`; a test holds both together.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 32
_CRC_LENGTH: Final = 6
"""62**6 > 2**32."""
_ENV: Final = re.compile(r"[a-z][a-z0-9]{0,15}")
_KEY: Final = re.compile(
    rf"tnt_({_ENV.pattern})_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CRC_LENGTH}}}"
)
FINDER: Final = re.compile(rf"\b{_KEY.pattern}\b")
"""Finds tokens and keys in a text, for log scrubbing and for *leaked?*."""


class MalformedSecret(ValueError):
    """Not a secret of ours, or one that was mistyped; the text never shows it."""


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A token or key just made. `plain` is shown once and kept nowhere; it is left out of the repr."""

    plain: str
    id: str
    digest: bytes
    """SHA-256 of `plain`."""

    def __repr__(self) -> str:
        """Show the public part only."""
        return f"NewSecret(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class PresentedSecret:
    """A well-formed token or key somebody showed; whether it opens anything is another question."""

    env: str
    id: str
    digest: bytes


def make(env: str) -> NewSecret:
    """Make a token or key. `env` (lower-case letters and digits, a letter first) says where it belongs."""
    if not _ENV.fullmatch(env):
        msg = "env must be 1-16 lower-case letters or digits, starting with a letter"
        raise ValueError(msg)
    public_id = _random(_ID_LENGTH)
    body = f"tnt_{env}_{public_id}_{_random(_SECRET_LENGTH)}"
    plain = body + _crc(body)
    return NewSecret(plain, public_id, digest(plain))


def parse(plain: str) -> PresentedSecret:
    """Read a token or key. Raises `MalformedSecret` when form or checksum is wrong."""
    found = _KEY.fullmatch(plain)
    if found is None or plain[-_CRC_LENGTH:] != _crc(plain[:-_CRC_LENGTH]):
        msg = "not a well-formed token or key"
        raise MalformedSecret(msg)
    return PresentedSecret(found[1], found[2], digest(plain))


def digest(plain: str) -> bytes:
    """Return the SHA-256 of a secret; the only form in which it is stored."""
    return hashlib.sha256(plain.encode(errors="surrogateescape")).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _crc(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CRC_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
