"""Rules of a whole provider that isolate everybody on it: somebody changed them, they were put back, people are told.

They belong to no row of ours. While they were away anything could have been let through, so every namespace there is
tried again: its next certificate is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.db.models import F, Func, JSONField, Value

from provisioners.driver import Restored
from tenants import certificates
from tenants.findings import Seen
from tenants.models import Boundary
from tenants.states import BoundaryKind

RESTORED: Final = "isolation-restored"
KINDS: Final = frozenset({RESTORED})
PAUSE: Final = timedelta(minutes=10)
"""Between two times that every namespace of a provider is tried again."""


def findings_of(restored: Sequence[Restored]) -> list[Seen]:
    """Return what operators have to find out: who may change what only the platform should."""
    return [Seen(RESTORED, one.name, _detail(one), data={"by": one.by}) for one in restored]


def _detail(one: Restored) -> str:
    fields = f" ({', '.join(one.fields[:3])})" if one.fields else ""
    what = f"was changed by {one.by}{fields}" if one.by else "was not there"
    return f"{one.name} {what}; it was put back at {one.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC."


def words(restored: Sequence[Restored]) -> list[str]:
    """Return what tells one restoration from the next, to be remembered until no snapshot tells it any more."""
    return sorted(f"{one.name} at {one.at.isoformat()}" for one in restored)


def news(told: Sequence[str], before: Sequence[str], *, shaken: Sequence[str], now: datetime) -> set[str]:
    """Return what was not told yet; nothing within `PAUSE` of the last time that all was tried again (`shaken`).

    What is left out is news after that: somebody who keeps changing rules back has everything tried again now and then.
    """
    if shaken and now - datetime.fromisoformat(shaken[0]) < PAUSE:
        return set()
    return set(told) - set(before)


def shake(provider: UUID, now: datetime) -> int:
    """Make a new certificate due for every namespace at a provider; in the open transaction, before events.

    Returns how many there are.
    """
    rows = Boundary.objects.filter(
        provider_id=provider, kind=BoundaryKind.NAMESPACE.value, released_at__isnull=True, ready_at__isnull=False
    )
    locked = [row.pk for row in rows.select_for_update(no_key=True).order_by("pk").only("pk")]
    entry = Value({certificates.SHAKEN: {"at": now.isoformat()}}, JSONField())
    merged = Func(F("observed"), entry, template="%(expressions)s", arg_joiner=" || ", output_field=JSONField())
    return Boundary.objects.filter(pk__in=locked).update(observed=merged)
