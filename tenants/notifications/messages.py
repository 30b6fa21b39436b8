"""What is sent: bodies of webhooks and texts of mails. Written once per delivery, the same in every attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from tenants.models import Event, Notification
from tenants.notifications import registry

MOST_IN_DIGEST: Final = 50


def webhook_body(kind: str, data: Mapping[str, Any], event: Event) -> str:
    """Return the JSON of one event for webhooks: Standard Webhooks' `type`, `timestamp`, `data`. Names no person."""
    found = registry.KINDS[kind]
    path = found.path(data)
    return json.dumps(
        {
            "type": kind,
            "timestamp": event.at.astimezone(UTC).isoformat(),
            "data": {
                "tenant": data["tenant"],
                "title": str(found.title),
                "text": found.text(data),
                "link": f"{settings.TENANTRY_PUBLIC_URL}{path}" if path else None,
                "object": {
                    "kind": event.object_kind,
                    "id": str(event.object_id) if event.object_id else None,
                    "name": data.get("request") or data.get("name"),
                },
                "event": {"id": str(event.pk), "kind": event.kind},
            },
        }
    )


def test_body(tenant: str, webhook: str, *, now: datetime) -> str:
    """Return the JSON that `test` sends."""
    text = f"A test of the webhook {webhook}, asked for by one of its owners. Nothing happened."
    data = {"tenant": tenant, "title": "Test", "text": text, "link": None, "object": None, "event": None}
    return json.dumps({"type": registry.TEST, "timestamp": now.astimezone(UTC).isoformat(), "data": data})


def mail_of(row: Notification) -> tuple[str, str]:
    """Return subject and text of a mail about one notification."""
    return _one_line(f"{registry.title_of(row)}: {registry.text_of(row)}"), "\n".join(
        [registry.text_of(row), "", *_links(row), *_footer()]
    )


def digest_of(rows: Sequence[Notification]) -> tuple[str, str]:
    """Return subject and text of a daily mail over a person's rows, the newest first, the rest counted."""
    count = len(rows)
    subject = ngettext("One thing you may want to know", "%(count)d things you may want to know", count) % {
        "count": count
    }
    lines: list[str] = []
    for row in rows[:MOST_IN_DIGEST]:
        lines += [f"{registry.title_of(row)} ({row.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC)", registry.text_of(row)]
        lines += _links(row)
    if count > MOST_IN_DIGEST:
        lines.append(_("and %(count)d more in the portal.") % {"count": count - MOST_IN_DIGEST})
    return subject, "\n".join([*lines, *_footer()])


def _links(row: Notification) -> list[str]:
    path = registry.link_of(row)
    return [f"{settings.TENANTRY_PUBLIC_URL}{path}", ""] if path else [""]


def _footer() -> list[str]:
    return [_("Which mails you get: %(url)s") % {"url": f"{settings.TENANTRY_PUBLIC_URL}/me"}]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
