"""Events into notifications and deliveries, exactly once.

Each chain of events has a cursor. Events of a chain commit in the order of their numbers (the chain's head is
locked to the end of the transaction), so a number once passed has nothing behind it. The cursor moves in the
transaction that writes the rows: a worker killed anywhere has told all of a batch or nothing of it. Operations
know nothing of this and wait for none of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, transaction

from tenants.actor import SYSTEM
from tenants.models import Delivery, Event, FanoutCursor, Notification, NotificationPreference, Webhook
from tenants.notifications import messages, stories
from tenants.notifications.registry import BY_EVENT, Audience, Kind, Mail
from tenants.notifications.stories import Story
from tenants.transactions import acting

log = logging.getLogger(__name__)

AT_ONCE: Final = 100
"""Events of one chain in one transaction."""
CHAINS: Final = 500
OLD_NEWS: Final = timedelta(days=2)
"""What happened earlier is put into the bell only: a mail of it would be history."""
KEEP_TRYING: Final = timedelta(days=1)


def run(now: datetime, *, most: int = 2_000) -> int:
    """Make at most about `most` waiting events into notifications; return how many events were read."""
    read = 0
    for chain in _behind():
        while read < most and (count := _advance(chain, now=now)):
            read += count
            if count < AT_ONCE:
                break
    return read


def _behind() -> list[UUID]:
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute(
            "SELECT h.chain FROM tenants_chainhead h LEFT JOIN tenants_fanoutcursor c ON c.chain = h.chain "
            "WHERE h.seq > coalesce(c.seq, 0) ORDER BY h.chain LIMIT %s",
            [CHAINS],
        )
        return [row[0] for row in cursor.fetchall()]


def _advance(chain: UUID, *, now: datetime) -> int:
    """Tell the next events of a chain; 0 where there are none or another worker is at it."""
    with acting(SYSTEM):
        FanoutCursor.objects.bulk_create([FanoutCursor(chain=chain)], ignore_conflicts=True)
        cursor = FanoutCursor.objects.select_for_update(skip_locked=True).filter(chain=chain).first()
        if cursor is None:
            return 0
        events = list(Event.objects.filter(chain=chain, seq__gt=cursor.seq).order_by("seq")[:AT_ONCE])
        if not events:
            return 0
        for event in events:
            for kind in BY_EVENT.get(event.kind, ()):
                _tell_safely(event, kind, now=now)
        FanoutCursor.objects.filter(chain=chain).update(seq=events[-1].seq)
        return len(events)


def _tell_safely(event: Event, kind: Kind, *, now: datetime) -> None:
    """One event that cannot be told (a bug) is logged and passed, so that it does not silence all that follow."""
    try:
        with transaction.atomic():
            for story in stories.of(event, kind, now=now):
                _tell(event, story, now=now)
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        log.exception("an event could not be told", extra={"event": event.pk, "kind": kind.id})


def _tell(event: Event, story: Story, *, now: datetime) -> None:
    wishes = wishes_of(story.people, [story.kind])
    rows = [
        Notification(
            person_id=person,
            tenant_id=None if story.personal else story.tenant,
            kind=story.kind.id,
            event_id=event.pk,
            object_kind=event.object_kind,
            object_id=event.object_id,
            data=story.data,
            at=event.at,
            created_at=now,
            bell=wishes[person, story.kind.id].bell,
            digest=wishes[person, story.kind.id].mail is Mail.DIGEST and now - event.at < OLD_NEWS,
        )
        for person in sorted(story.people)
    ]
    Notification.objects.bulk_create(rows, ignore_conflicts=True)
    deliveries = []
    if now - event.at < OLD_NEWS:
        deliveries += [
            mail(row.person_id, f"event:{event.pk}:{row.person_id}", *messages.mail_of(row), kind=row.kind, now=now)
            for row in rows
            if wishes[row.person_id, row.kind].mail is Mail.NOW
        ]
    settled = story.kind.audience is Audience.DECIDERS and not story.people  # decided before it could be told
    if story.kind.webhook and story.tenant is not None and not settled:
        deliveries += [_webhook(webhook, event, story, now=now) for webhook in _webhooks(event, story, story.tenant)]
    Delivery.objects.bulk_create(deliveries, ignore_conflicts=True)


def _webhooks(event: Event, story: Story, tenant: UUID) -> Iterable[Webhook]:
    rows = Webhook.objects.filter(
        tenant_id=tenant, removed_at__isnull=True, disabled_at__isnull=True, created_at__lte=event.at
    )
    return [row for row in rows.order_by("pk") if not row.kinds or story.kind.id in row.kinds]


def _webhook(webhook: Webhook, event: Event, story: Story, *, now: datetime) -> Delivery:
    return Delivery(
        medium="webhook",
        key=f"event:{event.pk}:{story.kind.id}:{webhook.pk}",
        tenant_id=webhook.tenant_id,
        webhook=webhook,
        kind=story.kind.id,
        event_id=event.pk,
        body=messages.webhook_body(story.kind.id, story.data, event),
        created_at=now,
        next_at=now,
        give_up_at=now + KEEP_TRYING,
    )


def mail(person: UUID, key: str, subject: str, text: str, *, kind: str, now: datetime) -> Delivery:
    """Return a mail that waits to be sent."""
    return Delivery(
        medium="mail",
        key=key,
        person_id=person,
        kind=kind,
        body=json.dumps({"subject": subject, "text": text}),
        created_at=now,
        next_at=now,
        give_up_at=now + KEEP_TRYING,
    )


# --- what people wish ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """How one person wants one kind."""

    bell: bool
    mail: Mail


def wishes_of(people: Iterable[UUID], kinds: Iterable[Kind]) -> Mapping[tuple[UUID, str], Wish]:
    """Return everybody's wish for each kind: his own, else the kind's default."""
    wanted = {kind.id: kind for kind in kinds}
    found: dict[tuple[UUID, str], Wish] = {
        (person, kind.id): Wish(bell=True, mail=kind.mail) for person in people for kind in wanted.values()
    }
    rows = NotificationPreference.objects.filter(person_id__in=list(people), kind__in=list(wanted))
    for row in rows:
        found[row.person_id, row.kind] = Wish(bell=row.bell, mail=Mail(row.mail))
    return found
