"""Events as the console lists them: when, what and who, by the names of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.urls import reverse
from django.utils.translation import gettext as _

from tenants.models import Event, Person


@dataclass(frozen=True, slots=True)
class Line:
    """One event."""

    at: datetime
    kind: str
    who: str
    url: str


def columns() -> list[dict[str, Any]]:
    """Return the columns of a table of events."""
    labels = {"at": _("When"), "kind": _("What"), "actor": _("Who")}
    return [{"key": key, "label": label} for key, label in labels.items()]


def lines(events: Sequence[Event]) -> list[Line]:
    """Return events as lines; one query for the names of all."""
    keys = {event.person_id for event in events if event.person_id is not None}
    names: dict[UUID, str] = dict(Person.objects.filter(pk__in=keys).values_list("pk", "display_name"))
    return [
        Line(
            event.at,
            event.kind,
            _who(event, names),
            reverse("admin:tenants_event_change", args=[event.pk]),
        )
        for event in events
    ]


def _who(event: Event, names: dict[UUID, str]) -> str:
    if event.person_id is not None and event.person_id in names:
        return names[event.person_id]
    return event.actor.partition(":")[0]
