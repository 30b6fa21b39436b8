"""Envelope encryption of secrets at rest, and hashes of secrets that are only ever compared.

AES-256-GCM under a data key of its own per secret; the data key is wrapped by a master key of the ring
(`TENANTRY_MASTER_KEYS`). Associated data names table, column and row, so a ciphertext that is moved
to another row does not open.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from functools import lru_cache
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from tenants.errors import ControlPlaneError

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_WRAPPED_BYTES: Final = 32 + 16


class VaultError(ControlPlaneError):
    """A sealed secret does not open: wrong row, wrong key or damaged."""

    code, status, title = "sealed", 503, "A stored secret cannot be opened"


@lru_cache(maxsize=4)
def _ring(text: str) -> dict[str, bytes]:
    ring: dict[str, bytes] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key_id, _, encoded = part.partition(":")
        key = base64.b64decode(encoded, validate=True)
        if len(key) != 32 or not 1 <= len(key_id) <= 16:
            msg = "TENANTRY_MASTER_KEYS: each entry is id:base64 of 32 bytes"
            raise ImproperlyConfigured(msg)
        ring[key_id] = key
    if not ring:
        msg = "TENANTRY_MASTER_KEYS is empty: secrets cannot be stored"
        raise ImproperlyConfigured(msg)
    return ring


def seal(plain: str, *, table: str, column: str, row: UUID) -> bytes:
    """Return `plain` sealed for one place."""
    ring = _ring(settings.TENANTRY_MASTER_KEYS)
    key_id, master = next(iter(ring.items()))
    place = f"{table}:{column}:{row}".encode()
    data_key, outer, inner = os.urandom(32), os.urandom(_NONCE_BYTES), os.urandom(_NONCE_BYTES)
    wrapped = AESGCM(master).encrypt(outer, data_key, place)
    body = AESGCM(data_key).encrypt(inner, plain.encode(), place)
    name = key_id.encode()
    return _VERSION + bytes([len(name)]) + name + outer + wrapped + inner + body


def unseal(sealed: bytes | memoryview, *, table: str, column: str, row: UUID) -> str:
    """Return the plain text. Raises `VaultError`."""
    blob = bytes(sealed)
    place = f"{table}:{column}:{row}".encode()
    try:
        size = blob[1]
        key_id = blob[2 : 2 + size].decode()
        rest = blob[2 + size :]
        outer, wrapped = rest[:_NONCE_BYTES], rest[_NONCE_BYTES : _NONCE_BYTES + _WRAPPED_BYTES]
        tail = rest[_NONCE_BYTES + _WRAPPED_BYTES :]
        data_key = AESGCM(_ring(settings.TENANTRY_MASTER_KEYS)[key_id]).decrypt(outer, wrapped, place)
        return AESGCM(data_key).decrypt(tail[:_NONCE_BYTES], tail[_NONCE_BYTES:], place).decode()
    except (InvalidTag, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        msg = "A stored secret does not open with the master keys that are set. Tell an operator."
        raise VaultError(msg) from error


def derived(purpose: str) -> list[bytes]:
    """Return 32 bytes for one purpose from each master key, the current one first; the same at every start."""
    return [
        HKDF(algorithm=SHA256(), length=32, salt=None, info=f"tenantry/{purpose}".encode()).derive(master)
        for master in _ring(settings.TENANTRY_MASTER_KEYS).values()
    ]


def digest(secret: str) -> bytes:
    """Return the SHA-256 of a 256-bit random secret (no salt or stretching needed at that entropy)."""
    return hashlib.sha256(secret.encode()).digest()


def same(one: bytes | memoryview, other: bytes) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(bytes(one), other)
