"""Me: who one is here, the way to the account's pages, one's own tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from frontend.forms import wishes
from frontend.kernel import once
from frontend.kernel.page import PageRequest, page
from tenants import tokens
from tenants.errors import Conflict, InvalidSpec, Unauthenticated
from tenants.models import ApiToken, Membership, Person
from tenants.operations import people
from tenants.states import Role
from tenants.transactions import reading

LONGEST_DAYS = 3650


@page("tokens.list")
def show(request: PageRequest) -> HttpResponse:
    """Show the person himself; a token that was just made is shown once."""
    secret = once.peek(request)
    memberships = Membership.objects.filter(person=_me(request)).select_related("tenant").order_by("tenant__name")
    person = _me(request)
    values: dict[str, Any] = {
        "facts": [
            {"label": _("Name"), "value": person.display_name},
            {"label": _("E-mail"), "value": person.email},
            {"label": _("Platform roles"), "value": ", ".join(request.portal.platform_roles)},
            {"label": _("Time zone"), "value": timezone.get_current_timezone_name()},
        ],
        "memberships": [{"tenant": each.tenant, "role": Role(each.role).word} for each in memberships],
        "tokens": list(_live(request).select_related("tenant").order_by("-created_at")[: tokens.MOST_TOKENS]),
        "secret": secret,
        "token_columns": [
            {"key": "name", "label": _("Name")},
            {"key": "made", "label": _("Made")},
            {"key": "used", "label": _("Last used")},
            {"key": "ends", "label": _("Ends")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
    }
    response = render(request, "frontend/pages/me/show.html", values)
    if secret:
        once.forget(request, response)
    return response


def _me(request: PageRequest) -> Person:
    person = request.portal.person
    if person is None:  # only people have sessions
        raise Unauthenticated
    return person


def _live(request: PageRequest) -> QuerySet[ApiToken]:
    rows = ApiToken.objects.filter(person=_me(request), revoked_at__isnull=True)
    return rows.filter(Q(expires_at__isnull=True) | Q(expires_at__gt=request.now))


@page("tokens.create", methods=("POST",))
def create_token(request: PageRequest) -> HttpResponse:
    """Make a token of the person's own."""
    response = HttpResponseRedirect(reverse("frontend:me"))
    days = wishes.number(request.POST.get("days"), 0, least=0, most=LONGEST_DAYS)
    try:
        issued = people.issue_token(
            name=request.POST.get("name", "").strip(),
            read_only=bool(request.POST.get("read_only")),
            expires_at=request.now + timedelta(days=days) if days else None,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return response
    once.put(request, response, issued.plain, path=response["Location"])
    return response


@page("tokens.revoke", methods=("POST",))
def revoke_token(request: PageRequest, token: str) -> HttpResponse:
    """End a token of the person's own; from the next request on it opens nothing."""
    with reading(request.actor):
        found = tokens.named(_live(request), token)
    people.revoke_token(token=found, actor=request.actor, now=request.now)
    messages.success(request, _("The token %(name)s is revoked.") % {"name": found.name})
    return HttpResponseRedirect(reverse("frontend:me"))
