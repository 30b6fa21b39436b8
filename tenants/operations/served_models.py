"""The catalogue of served models: a repository pinned to one commit, switched on and off by an operator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from django.db import IntegrityError, transaction

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import ServedModel
from tenants.models.fields import SLUG_PATTERN
from tenants.operations.guards import allow, clean_text, locked
from tenants.operations.payloads import read_object
from tenants.transactions import operation

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_SLUG: Final = re.compile(SLUG_PATTERN)


@operation
def create(
    *,
    name: str,
    repository: str,
    commit: str,
    actor: Actor,
    now: datetime,
    licence: str = "",
    geometry: Mapping[str, Any] | None = None,
    quantisation: str = "native",
) -> ServedModel:
    """Add a model, pinned: what serves it is this commit and nothing later. Raises `InvalidSpec`, `Conflict`."""
    allow(actor, None, "served-models.create")
    if not _SLUG.fullmatch(name):
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field="name")
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        raise InvalidSpec("Give owner/name of a repository.", field="repository")
    row = ServedModel(
        name=name,
        repository=repository,
        commit=_commit(commit),
        licence=clean_text(licence, "licence", most=80),
        geometry=read_object(geometry or {}, "geometry"),
        quantisation=clean_text(quantisation, "quantisation", most=20, least=1),
        created_at=now,
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        msg = f"A served model {name} exists already."
        raise Conflict(msg, code="name-taken", name=name) from error
    desired.created(
        row, "served-model.created", actor=actor, at=now, name=name, repository=repository, commit=row.commit
    )
    return row


@operation
def update(
    *, model: ServedModel, actor: Actor, now: datetime, version: int | None = None, enabled: bool | None = None,
    licence: str | None = None,
) -> ServedModel:  # fmt: skip
    """Switch a model on or off, or correct its licence. What runs goes on; a new commit is a new model.

    Repository and commit never change: revisions point here and are immutable.
    """
    allow(actor, None, "served-models.update")
    row = locked(model, version)
    fields = []
    if enabled is not None:
        row.enabled = enabled
        fields.append("enabled")
    if licence is not None:
        row.licence = clean_text(licence, "licence", most=80)
        fields.append("licence")
    row.save(update_fields=fields)
    desired.changed(row, "served-model.changed", actor=actor, at=now, enabled=row.enabled, fields=fields)
    return row


def _commit(text: str) -> str:
    if not COMMIT.fullmatch(text):
        msg = "Pin a full commit: 40 to 64 hexadecimal digits, no branch and no tag."
        raise InvalidSpec(msg, field="commit", code="not-pinned")
    return text
