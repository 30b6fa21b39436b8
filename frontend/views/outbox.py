"""Mail kept for the demo: nothing was sent. Each persona reads his own, people of the platform everybody's as well."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from frontend.kernel import lists
from frontend.kernel.page import PageRequest, page
from tenants import demo
from tenants.actor import AUTH
from tenants.errors import NotVisible
from tenants.models import OutboxMail
from tenants.notifications import reads
from tenants.transactions import reading

ADDRESS: Final = re.compile(r"https?://[^\s<>\"]+[^\s<>\".,;:!?)]")
PAGE_ROWS: Final = 20


@page("notifications.list", own_blocks=True)
def listed(request: PageRequest) -> HttpResponse:
    """List the person's kept mails, newest first; with `to=all` everybody's. Raises `NotVisible` outside a demo."""
    if not demo.is_demo():
        raise NotVisible
    assert request.portal.person is not None
    everybody = bool(request.actor.platform_roles) and request.GET.get("to") == "all"
    own = "" if everybody else str(request.portal.person.email)
    with reading(AUTH):  # what the log-in sends is for people who are nobody yet
        found = lists.page_of(reads.outbox(recipient=own), request.GET.get("after", ""), size=PAGE_ROWS, moment="at")
    kept = {"to": "all"} if everybody else {}
    values = {
        "mails": [_shown(row) for row in found.rows],
        "everybody": everybody,
        "email": request.portal.person.email,
        "fields": _filters(everybody=everybody) if request.actor.platform_roles else [],
        "more_url": f"?{urlencode({**kept, 'after': found.after})}" if found.after else "",
        "previous_url": (f"?{urlencode(kept)}" if kept else request.path) if not found.is_first else "",
    }
    return render(request, "frontend/pages/outbox/list.html", values)


def _filters(*, everybody: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": "to",
            "label": _("To"),
            "value": "all" if everybody else "",
            "options": [{"value": "", "label": _("Me")}, {"value": "all", "label": _("Everybody")}],
        }
    ]


def _shown(row: OutboxMail) -> dict[str, Any]:
    return {"id": row.pk, "to": row.recipient, "subject": row.subject, "at": row.at, "text": linked(row.text)}


def linked(text: str) -> SafeString:
    """Return a mail's text, escaped, with its links to this installation as links; others stay text."""
    pieces: list[Any] = []
    last = 0
    for match in ADDRESS.finditer(text):
        pieces.append(text[last : match.start()])
        pieces.append(_link(match[0]))
        last = match.end()
    pieces.append(text[last:])
    return format_html_join("", "{}", ((piece,) for piece in pieces))


def _link(address: str) -> SafeString | str:
    ours, theirs = urlsplit(settings.TENANTRY_PUBLIC_URL), urlsplit(address)
    if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
        return address
    path = f"{theirs.path or '/'}{f'?{theirs.query}' if theirs.query else ''}"
    path += f"#{theirs.fragment}" if theirs.fragment else ""
    return format_html('<a href="{}">{}</a>', path, address) if not path.startswith("//") else address
