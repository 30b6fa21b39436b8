"""Leaked? Paste what was found: whose token or key it is, when it was last used, and where it is rolled or revoked.

The pasted text is sent in a form, never in an address, is not kept, and is not shown again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from frontend.kernel.page import PageRequest, page
from tenants import access, tokens
from tenants.models import ApiToken, EndpointKey
from tenants.transactions import reading

MOST: Final = 100_000
"""Characters of a pasted text that are looked at."""


@dataclass(frozen=True, slots=True)
class Found:
    """A token or key that was in a text."""

    kind: str | Promise
    name: str
    public_id: str
    holder: str
    url: str
    """Where it is rolled or revoked; `""` where the reader cannot."""
    action: str | Promise
    last_used_at: datetime | None
    ended_at: datetime | None


@page("tokens.find", methods=("GET", "POST"))
def show(request: PageRequest) -> HttpResponse:
    """Ask for the text, or say what is in it."""
    if request.method != "POST":
        return render(request, "frontend/pages/leaked/show.html", {})
    public_id = tokens.of_text(request.POST.get("text", "")[:MOST])
    with reading(request.actor):
        found = _found(public_id, request) if public_id else None
        values = {"found": found, "is_over": found is not None and _is_over(found, request.now), "asked": True}
        return render(request, "frontend/pages/leaked/show.html", values)


def _found(public_id: str, request: PageRequest) -> Found | None:
    """Return what the id belongs to, if the reader may see it."""
    keys = access.scoped(EndpointKey, request.actor).select_related("endpoint", "tenant")
    key = keys.filter(public_id=public_id).first()
    if key is not None:
        names = {"tenant": key.tenant.name, "name": key.endpoint.short_id}
        return Found(
            _("Key of an endpoint"),
            key.name,
            key.public_id,
            f"{key.endpoint.name}, {key.tenant.display_name}",
            reverse("frontend:endpoint-keys", kwargs=names),
            _("Open its keys"),
            key.last_used_at,
            key.revoked_at or key.expires_at,
        )
    rows = ApiToken.objects.select_related("tenant", "person", "service_account")
    token = rows.filter(public_id=public_id).first()
    if token is None:
        return None
    is_mine = token.person_id is not None and token.person_id == request.actor.person_id
    holder = token.person.display_name if token.person else getattr(token.service_account, "name", "")
    return Found(
        _("Token"),
        token.name,
        token.public_id,
        holder,
        reverse("frontend:me") if is_mine else "",
        _("Open your tokens") if is_mine else "",
        token.last_used_at,
        token.revoked_at or token.expires_at,
    )


def _is_over(found: Found, now: datetime) -> bool:
    return found.ended_at is not None and found.ended_at <= now
