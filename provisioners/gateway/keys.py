"""Formats of the secrets that open an endpoint or name a gateway; pure, used by both sides of `/agent/v1/`.

Endpoint key: `tnt_<env>_<id>_<secret><crc>`: `env` and `id` are public, `secret` has about 190 bits, `crc`
tells a typing error or a cut copy from a wrong key without a look at any table. Only SHA-256 digests are
stored: the secret is random and long, so no slow hash is needed. Comparison is constant-time. The control plane makes
keys in `tenants.credentials`, which may not import us: one test holds the two forms together.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 12
_SECRET_LENGTH: Final = 32
_CRC_LENGTH: Final = 6
"""62**6 > 2**32."""
_ENV: Final = re.compile(r"[a-z][a-z0-9]{0,15}")
_KEY: Final = re.compile(
    rf"tnt_({_ENV.pattern})_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH + _CRC_LENGTH}}}"
)
_AGENT: Final = re.compile(rf"tna_([0-9a-f]{{32}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}")
FINDER: Final = re.compile(rf"\b{_KEY.pattern}\b")
"""Finds endpoint keys in a text, for log scrubbing and for *leaked?*."""


class MalformedKey(ValueError):
    """Not a secret of ours, or one that was mistyped; the text never shows it."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. `plain` is shown once and kept nowhere; it is left out of the repr."""

    plain: str
    id: str
    digest: str

    def __repr__(self) -> str:
        """Show the public part only."""
        return f"NewKey(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A well-formed key somebody showed; whether it opens anything is another question."""

    env: str
    id: str
    digest: str


def make(env: str = "live") -> NewKey:
    """Make an endpoint key. `env` (lower-case letters and digits) says at a glance where it belongs."""
    if not _ENV.fullmatch(env):
        message = "env must be 1-16 lower-case letters or digits, starting with a letter"
        raise ValueError(message)
    key_id = _random(_ID_LENGTH)
    body = f"tnt_{env}_{key_id}_{_random(_SECRET_LENGTH)}"
    plain = body + checksum(body)
    return NewKey(plain, key_id, digest(plain))


def parse(plain: str) -> PresentedKey:
    """Read an endpoint key. Raises `MalformedKey` when form or checksum is wrong."""
    found = _KEY.fullmatch(plain)
    if found is None or plain[-_CRC_LENGTH:] != checksum(plain[:-_CRC_LENGTH]):
        message = "not a well-formed endpoint key"
        raise MalformedKey(message)
    return PresentedKey(found[1], found[2], digest(plain))


def make_agent_credential(gateway_uid: UUID) -> NewKey:
    """Make the bearer credential of one gateway; `id` is the gateway's uid in hex."""
    plain = f"tna_{gateway_uid.hex}_{_random(_SECRET_LENGTH)}"
    return NewKey(plain, gateway_uid.hex, digest(plain))


def parse_agent_credential(plain: str) -> tuple[UUID, str]:
    """Return (gateway uid, digest) of an agent credential. Raises `MalformedKey`."""
    found = _AGENT.fullmatch(plain)
    if found is None:
        message = "not a well-formed agent credential"
        raise MalformedKey(message)
    return UUID(hex=found[1]), digest(plain)


def make_enrolment_token() -> NewKey:
    """Make a one-time enrolment token; the control plane stores its digest, use and end."""
    token_id = _random(_ID_LENGTH)
    plain = f"tne_{token_id}_{_random(_SECRET_LENGTH)}"
    return NewKey(plain, token_id, digest(plain))


def digest(plain: str) -> str:
    """Return the SHA-256 of a secret in hex; the only form in which it is stored."""
    return hashlib.sha256(plain.encode(errors="surrogateescape")).hexdigest()


def equal(left: str, right: str) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(left, right)


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def checksum(text: str) -> str:
    """Return what ends a key, of all that stands before it."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CRC_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
