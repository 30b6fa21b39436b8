"""The signature over a gateway's configuration: Ed25519, made by the control plane, checked by the gateway.

A gateway pins the public key when it enrols and trusts nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from provisioners.gateway.protocol import ConfigDocument, Envelope, ProtocolError, canonical, parse

_SIGNED_AS: Final = b"tenantry.gateway.config.v1\n"
"""Put before the payload when signing, so that a signature for one purpose is none for another."""


class BadSignature(ProtocolError):
    """The envelope is not signed by a trusted key."""


class Signer:
    """The control plane's signing key; its repr shows the public part only."""

    def __init__(self, private_key: bytes) -> None:
        """`private_key` is the raw Ed25519 seed, 32 bytes."""
        self._private = Ed25519PrivateKey.from_private_bytes(private_key)
        raw = self._private.public_key().public_bytes_raw()
        self.public_key: Final = base64.b64encode(raw).decode()
        self.key_id: Final = hashlib.sha256(raw).hexdigest()[:16]

    @classmethod
    def generate(cls) -> tuple[Self, bytes]:
        """Return a new signer and its raw private key, to be kept encrypted."""
        seed = Ed25519PrivateKey.generate().private_bytes_raw()
        return cls(seed), seed

    def sign(self, document: ConfigDocument) -> Envelope:
        """Return `document` in a signed envelope."""
        payload = canonical(document)
        signature = self._private.sign(_SIGNED_AS + payload)
        return Envelope(
            payload=base64.b64encode(payload).decode(),
            signature=base64.b64encode(signature).decode(),
            key_id=self.key_id,
        )

    def __repr__(self) -> str:
        """Name the key without showing it."""
        return f"Signer({self.key_id})"


def verify(envelope: Envelope, trusted: Mapping[str, str]) -> ConfigDocument:
    """Return the document in `envelope` if a trusted key signed it.

    `trusted` maps key id to raw public key in base64. The payload is parsed only after the signature holds.
    Raises `BadSignature`, `BadDocument`.
    """
    public = trusted.get(envelope.key_id)
    if public is None:
        message = "signed by a key that is not trusted here"
        raise BadSignature(message)
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(envelope.signature, validate=True)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(signature, _SIGNED_AS + payload)
    except (InvalidSignature, binascii.Error, ValueError):
        message = "signature does not fit the payload"
        raise BadSignature(message) from None
    return parse(ConfigDocument, payload)
