"""How people read the log of what serves their endpoint: ask for its end, read it some hundred milliseconds later.

Only a worker talks to a provider. What it read is kept for minutes, shows to whoever may ask in the same tenant, and
stands in no event. Keys that a line repeats are taken out before it is kept. Lock order: endpoint, asking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction

from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.models import Endpoint, EndpointLog
from tenants.operations.guards import allow
from tenants.transactions import operation

LIFE: Final = timedelta(minutes=5)
"""How long an answer can be read."""
FRESH: Final = timedelta(seconds=5)
"""An answer as young as this is not read anew for the next one who asks."""
MOST_LINES: Final = 1000
LONGEST_LINE: Final = 2000
MOST_TEXT: Final = 1_000_000
"""Characters of one answer; the oldest lines are left out beyond it."""
_KEYS: Final = re.compile(
    r"\b(?:tnt_[a-z0-9]+_[A-Za-z0-9]+_[A-Za-z0-9]+|hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,})|(?<=[Bb]earer )\S+"
)
"""What looks like a key of ours, of a hub, of OpenAI's form, or stands behind `Bearer`."""


@operation
def ask(*, endpoint: Endpoint, tail: int, actor: Actor, now: datetime) -> EndpointLog:
    """Ask for the newest lines; asked again before it was answered, or just after, it is the same asking.

    Raises `Forbidden`, `InvalidSpec`, `Conflict` (`not-ready`: it has no place yet, so nothing runs).
    """
    allow(actor, endpoint.tenant, "endpoints.log")
    if not 1 <= tail <= MOST_LINES:
        msg = f"Ask for 1 to {MOST_LINES} lines."
        raise InvalidSpec(msg, field="tail")
    row = Endpoint.objects.select_related("boundary").get(pk=endpoint.pk)
    if row.boundary is None:
        msg = f"{row.name} has no place yet, so nothing of it runs that could have a log."
        raise Conflict(msg, code="not-ready")
    asked = EndpointLog.objects.filter(endpoint=row, tail=tail)
    found = asked.filter(answered_at=None).first() or asked.filter(answered_at__gt=now - FRESH, error="").first()
    if found is not None:
        return found
    try:
        with transaction.atomic():
            return EndpointLog.objects.create(tenant_id=row.tenant_id, endpoint=row, tail=tail, asked_at=now)
    except IntegrityError:  # somebody else asked in this moment, and a worker may have answered it since
        return asked.latest("asked_at")


def read(endpoint: Endpoint, key: UUID) -> EndpointLog:
    """Return an asking, answered or not; in a read block. Raises `NotVisible` for one that was kept long enough."""
    row = EndpointLog.objects.filter(pk=key, endpoint=endpoint).first()
    if row is None:
        raise NotVisible
    return row


@operation
def answered(
    *, log: EndpointLog, lines: Iterable[tuple[str, str, str]], error: str, actor: Actor, now: datetime
) -> None:
    """Store what a worker read: (moment, source, text) of each line, the oldest first."""
    del actor
    row = EndpointLog.objects.select_for_update(no_key=True).filter(pk=log.pk, answered_at=None).first()
    if row is None:
        return
    row.lines, row.error, row.answered_at = clean(lines), error[:300], now
    row.save(update_fields=["lines", "error", "answered_at"])


def clean(lines: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
    """Return lines as they are kept: without keys and control characters, none too long, not too many. Pure."""
    found = []
    left = MOST_TEXT
    for at, source, text in reversed(list(lines)[-MOST_LINES:]):
        shown = _KEYS.sub("…", "".join(c if c.isprintable() else " " for c in text.rstrip()))[:LONGEST_LINE]
        left -= len(shown)
        if left < 0:
            break
        found.append({"at": at[:40], "source": source[:200], "text": shown})
    return found[::-1]


def purge(now: datetime) -> int:
    """Delete what was kept long enough; in a worker's transaction."""
    gone, _each = EndpointLog.objects.filter(asked_at__lt=now - LIFE).delete()
    return gone
