"""`Idempotency-Key`: the same key and request give the same object, done once.

The record is written in the operation's own transaction (`transactions.before_commit`), so it exists exactly
when the change does. One-time secrets are kept sealed for 24 hours, so that a lost answer can be repeated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import IntegrityError, connection, transaction
from django.http import HttpRequest

from tenants import vault
from tenants.actor import Actor
from tenants.api.parsing import canonical
from tenants.errors import Conflict, IdempotencyMismatch, InvalidSpec, PreconditionRequired
from tenants.models import IdempotencyRecord
from tenants.policies import Policy

KEEP_SECRETS: Final = timedelta(hours=24)
KEY: Final = re.compile(r"^[A-Za-z0-9._:-]{1,100}\Z")
_TABLE: Final = "idempotency"
_COLUMN: Final = "secret"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST under one key."""

    principal: str
    key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What an earlier request under the same key made."""

    ids: tuple[UUID, ...]
    status: int
    secrets: Mapping[str, str] = field(repr=False, default_factory=dict)


def attempt_of(request: HttpRequest, actor: Actor, policy: Policy, body: Any, *, planning: bool) -> Attempt | None:
    """Return the attempt a POST makes, None without a key.

    Raises `PreconditionRequired` for a token without one, `InvalidSpec` for a key of the wrong form.
    """
    key = request.headers.get("Idempotency-Key")
    if request.method != "POST" or not policy.idempotency:
        return None
    if key is not None and not KEY.match(key):
        raise InvalidSpec("Use 1 to 100 letters, digits and . _ : -", field="Idempotency-Key")
    if planning:
        return None
    if key is None:
        if actor.token_id is not None:
            raise PreconditionRequired(
                "A POST with a token needs the header Idempotency-Key: any text of your own, new for each thing you "
                "want done.",
                field="Idempotency-Key",
            )
        return None
    hashed = hashlib.sha256(b"\x1f".join([b"POST", request.path.encode(), canonical(body)])).hexdigest()
    return Attempt(actor.word, key, hashed)


def replay_of(attempt: Attempt, *, now: datetime) -> Replay | None:
    """Return what this attempt made earlier, None if it is new. Inside a read block of its actor.

    Raises `IdempotencyMismatch` when the key was used for another request.
    """
    record = IdempotencyRecord.objects.filter(principal=attempt.principal, key=attempt.key).first()
    if record is None:
        return None
    if record.body_hash != attempt.body_hash:
        raise IdempotencyMismatch(field="Idempotency-Key")
    ids: tuple[UUID, ...] = (record.result_id,) if record.result_id else ()
    secrets: dict[str, str] = {}
    if record.secret_sealed is not None and (now - record.created_at < KEEP_SECRETS or not ids):
        kept = json.loads(vault.unseal(record.secret_sealed, table=_TABLE, column=_COLUMN, row=record.pk))
        secrets = kept.get("secrets", {}) if now - record.created_at < KEEP_SECRETS else {}
        ids = tuple(UUID(each) for each in kept.get("ids", [])) or ids
    return Replay(ids, record.status, secrets)


def record(
    attempt: Attempt,
    *,
    kind: str,
    ids: Sequence[UUID],
    secrets: Mapping[str, str],
    status: int,
    now: datetime,
) -> None:
    """Write what the attempt made, in the operation's transaction. Raises `Conflict` while its twin is running."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [f"{attempt.principal}\x1f{attempt.key}"]
        )
        answer = cursor.fetchone()
    if not (answer and answer[0]):
        raise twin()
    key = uuid4()
    kept: dict[str, Any] = {"secrets": dict(secrets)} if secrets else {}
    if len(ids) > 1:
        kept["ids"] = [str(each) for each in ids]
    try:
        with transaction.atomic():
            IdempotencyRecord.objects.create(
                id=key,
                principal=attempt.principal,
                key=attempt.key,
                body_hash=attempt.body_hash,
                result_kind=kind,
                result_id=ids[0] if len(ids) == 1 else None,
                secret_sealed=(vault.seal(json.dumps(kept), table=_TABLE, column=_COLUMN, row=key) if kept else None),
                status=status,
                created_at=now,
            )
    except IntegrityError as error:
        raise twin() from error


def twin() -> Conflict:
    """Return the error of a request whose twin is running or has just ended; the caller looks again."""
    return Conflict("A request with the same Idempotency-Key is running.", code="idempotency-running")
