"""The only way to say that something changed: event and outbox row, in the transaction of the change.

`changed` also bumps generation and version of a spec; `happened` is for events without a spec change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, models
from django.db.models import F

from tenants.actor import Actor

PLATFORM_CHAIN: Final = UUID(int=0)

KIND_OF: Final[dict[str, str]] = {"GpuDevice": "gpu-device", "MigDevice": "mig-device"}


def kind_of(row: models.Model) -> str:
    """Return the word events, outbox and intents use for a row: the model's name in kebab case."""
    name = type(row).__name__
    return KIND_OF.get(name) or "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


def tenant_id_of(row: models.Model) -> UUID | None:
    """Return the tenant a row belongs to; a tenant belongs to itself."""
    if type(row).__name__ == "Tenant":
        return UUID(str(row.pk))
    return getattr(row, "tenant_id", None)


def happened(
    row: models.Model,
    kind: str,
    /,
    *,
    actor: Actor,
    at: datetime,
    nudge: bool = True,
    **data: Any,
) -> None:
    """Append one event about `row`, and put it into the outbox. `data` holds numbers, words and ids: no secrets."""
    tenant_id = tenant_id_of(row)
    body = json.dumps(data, cls=DjangoJSONEncoder)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT " + ("outbox_put(%s, %s, %s, %s), " if nudge else "")
            + "event_append(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *([kind_of(row), row.pk, tenant_id, at] if nudge else []),
                tenant_id or PLATFORM_CHAIN, at, tenant_id, kind, kind_of(row), row.pk, actor.word, actor.person_id,
                body,
            ],
        )  # fmt: skip


def changed(row: models.Model, kind: str, /, *, actor: Actor, at: datetime, **data: Any) -> None:
    """Bump version (and generation where there is one), make the row due now, and say that it happened."""
    updates: dict[str, Any] = {"version": F("version") + 1}
    if hasattr(row, "generation"):
        updates |= {"generation": F("generation") + 1, "due_at": at, "failures": 0}
    type(row)._base_manager.filter(pk=row.pk).update(**updates)
    row.refresh_from_db(fields=list(updates))
    happened(row, kind, actor=actor, at=at, **data)


def created(row: models.Model, kind: str, /, *, actor: Actor, at: datetime, **data: Any) -> None:
    """Say that a row, just inserted and due, was created."""
    happened(row, kind, actor=actor, at=at, **data)


def nudge_now(row: models.Model, *, at: datetime) -> None:
    """Make a reconciled row due now and put it into the outbox, without an event: nothing happened, just look."""
    type(row)._base_manager.filter(pk=row.pk).update(due_at=at)
    with connection.cursor() as cursor:
        cursor.execute("SELECT outbox_put(%s, %s, %s, %s)", [kind_of(row), row.pk, tenant_id_of(row), at])


def respecified(row: models.Model, *, at: datetime) -> None:
    """Bump a row's generation and make it due, without an event of its own: another row's event tells why."""
    type(row)._base_manager.filter(pk=row.pk).update(generation=F("generation") + 1, due_at=at, failures=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT outbox_put(%s, %s, %s, %s)", [kind_of(row), row.pk, tenant_id_of(row), at])


def backoff(failures: int, *, base_s: float = 1.0, cap_s: float = 300.0) -> timedelta:
    """Return the pause after `failures` failed passes in a row, before jitter."""
    return timedelta(seconds=min(cap_s, base_s * 2 ** min(failures, 20)))


def created_many(
    rows: Sequence[models.Model], kind: str, *, actor: Actor, at: datetime, data: Sequence[dict[str, Any]]
) -> None:
    """Say for many rows of one tenant that they were created; one statement, in the order given."""
    if not rows:
        return
    tenant_id = tenant_id_of(rows[0])
    bodies = [json.dumps(item, cls=DjangoJSONEncoder) for item in data]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT outbox_put(%s, x.id, %s, %s), event_append(%s, %s, %s, %s, %s, x.id, %s, %s, x.data::jsonb) "
            "FROM unnest(%s::uuid[], %s::text[]) WITH ORDINALITY AS x(id, data, n) ORDER BY x.n",
            [
                kind_of(rows[0]), tenant_id, at, tenant_id or PLATFORM_CHAIN, at, tenant_id, kind, kind_of(rows[0]),
                actor.word, actor.person_id, [row.pk for row in rows], bodies,
            ],
        )  # fmt: skip
