"""The mail backend of an installation without a mail server: mails are kept in a table, labelled as not sent.

`/outbox` of the demo shows them. Never use it where real people wait for mail.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from email.utils import make_msgid
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection
from django.utils import timezone

from tenants.actor import AUTH
from tenants.models import OutboxMail
from tenants.transactions import acting, current_actor


class OutboxBackend(BaseEmailBackend):
    """Keeps each mail once, by its Message-ID; in the open transaction, else in one of its own."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Keep the mails; return how many."""
        inside = current_actor() is not None or connection.in_atomic_block
        with nullcontext() if inside else acting(AUTH):
            rows = [row for message in email_messages for row in _rows(message)]
            OutboxMail.objects.bulk_create(rows, ignore_conflicts=True)
        return len(email_messages)


def _rows(message: EmailMessage) -> list[OutboxMail]:
    headers: dict[str, Any] = dict(message.extra_headers)
    message_id = str(headers.get("Message-ID") or make_msgid(domain="outbox.invalid"))
    recipients = message.recipients()
    return [
        OutboxMail(
            message_id=message_id if len(recipients) == 1 else f"{message_id}:{number}"[:200],
            recipient=recipient[:254],
            subject=str(message.subject)[:300],
            text=str(message.body),
            at=timezone.now(),
        )
        for number, recipient in enumerate(recipients)
    ]
