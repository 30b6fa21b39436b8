"""Who has a second factor or a passkey. The factors themselves are their owner's alone; only the fact is told."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.conf import settings
from django.db import connection

from tenants.models import Person


def having(people: Iterable[UUID]) -> set[UUID]:
    """Return those of `people` who have a second factor, as far as the caller sees them; in his read block."""
    wanted = list(people)
    if not wanted:
        return set()
    with connection.cursor() as cursor:
        cursor.execute("SELECT person_id FROM people_with_factor(%s)", [wanted])
        return {row[0] for row in cursor.fetchall()}


def needed_by(person: Person) -> bool:
    """Whether TENANTRY_SECOND_FACTOR asks this person for one, be there one or not; in a block that sees his roles."""
    if settings.TENANTRY_SECOND_FACTOR == "operators":
        return bool(person.platform_memberships.all())
    return bool(settings.TENANTRY_SECOND_FACTOR == "everybody")
