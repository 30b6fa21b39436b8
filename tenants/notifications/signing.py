"""Standard Webhooks 1.0.0: secrets, ids and signatures. Pure.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md: headers `webhook-id`,
`webhook-timestamp` (Unix seconds), `webhook-signature`; `v1` is HMAC-SHA256 over `id.timestamp.body`, base64;
several signatures stand side by side, parted by a blank, while a secret is rolled.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
"""The specification allows 24 to 64."""


def new_secret() -> str:
    """Return a new secret, `whsec_` and base64."""
    return PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def message_id(delivery: UUID) -> str:
    """Return the message's id: the same in every attempt, so that a receiver can tell a repetition."""
    return f"msg_{delivery.hex}"


def headers(message: str, body: bytes, secrets: Sequence[str], *, at: datetime) -> dict[str, str]:
    """Return the three headers of one attempt, signed with each secret."""
    stamp = str(int(at.timestamp()))
    return {
        "webhook-id": message,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(signature(message, stamp, body, secret) for secret in secrets),
    }


def signature(message: str, stamp: str, body: bytes, secret: str) -> str:
    """Return `v1,<base64>` of one secret."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = b".".join([message.encode(), stamp.encode(), body])
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
