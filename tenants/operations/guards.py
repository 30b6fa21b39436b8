"""What every operation asks first: may he, is the row still the one he read, is it there at all.

Interfaces check the same policy before; an operation checks it again, so that none can forget it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import connection, models

from tenants import access
from tenants.actor import Actor
from tenants.errors import Forbidden, InvalidSpec, NotVisible, PreconditionFailed
from tenants.models import Tenant
from tenants.policies import ROUTES

M = TypeVar("M", bound=models.Model)

MOST_LABELS: Final = 32
LABEL_KEY: Final = re.compile(r"[a-z0-9]([a-z0-9./_-]{0,61}[a-z0-9])?")


def allow(actor: Actor, tenant: Tenant | None, operation_id: str) -> None:
    """Raise `Unauthenticated` or `Forbidden` unless the policy of a changing operation lets the actor do it."""
    policy = ROUTES[operation_id]
    access.require_principal(actor, policy)
    if actor.read_only:
        msg = "This token may only read."
        raise Forbidden(msg, code="token-read-only")
    access.check(actor, tenant, policy)


def locked(row: M, version: int | None = None) -> M:
    """Return the row read again under lock. Raises `NotVisible` when it is gone, `PreconditionFailed`."""
    found = (
        type(row)._base_manager.select_for_update(no_key=True).filter(pk=row.pk).first()  # the row's own key
    )
    if found is None:
        raise NotVisible
    expect_version(found, version)
    return found


def expect_version(row: Any, version: int | None) -> None:
    """Raise `PreconditionFailed` when the caller read another version; None asks for none."""
    if version is not None and row.version != version:
        raise PreconditionFailed(expected=version, present=row.version)


def lock_path(tenant_id: UUID) -> None:
    """Lock a tenant and its ancestors, root first: the first lock of every operation on people and limits."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM tenant_lock_path(%s)", [tenant_id])


def lock_paths(tenants: list[Tenant]) -> None:
    """Lock several paths in one order: by path, so parents come before children and everybody agrees."""
    for tenant in sorted(tenants, key=lambda t: [str(step) for step in t.path]):
        lock_path(tenant.pk)


def accountable(actor: Actor) -> UUID:
    """Return the person who answers for the actor. Raises `Forbidden` for a principal without one."""
    if actor.person_id is None:
        msg = "This needs an accountable person."
        raise Forbidden(msg)
    return actor.person_id


def clean_text(text: str, field: str, *, most: int, least: int = 0) -> str:
    """Return a line of text without outer blanks. Raises `InvalidSpec` for control characters or a wrong length."""
    value = text.strip()
    if any(not character.isprintable() and character != "\n" for character in value):
        msg = "Control characters are not allowed."
        raise InvalidSpec(msg, field=field, code="control-characters")
    if not least <= len(value) <= most:
        msg = f"Use {least} to {most} characters." if least else f"Use at most {most} characters."
        raise InvalidSpec(msg, field=field, code="length")
    return value


def clean_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels as stored. Raises `InvalidSpec` for too many, a bad key or a value that is no plain text."""
    if len(labels) > MOST_LABELS:
        msg = f"Use at most {MOST_LABELS} labels."
        raise InvalidSpec(msg, field="labels", code="too-many")
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key):
            msg = (
                "A label's key has a-z, 0-9, '.', '/', '_', '-', at most 63 characters, letters or digits at the ends."
            )
            raise InvalidSpec(msg, field="labels", code="label-key")
        clean_text(value, "labels", most=63)
    return dict(labels)
