"""Access review: every way into a tenant with who has it, since when and last used; kept or taken away line by line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.db.models import Max, Q
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import lists
from frontend.kernel.page import PageRequest, page
from frontend.views import people
from tenants.errors import InvalidSpec
from tenants.models import ApiToken, EndpointKey, Event, Membership, Person, ServiceAccount
from tenants.operations import access_reviews
from tenants.operations.access_reviews import WayIn
from tenants.states import Role
from tenants.transactions import reading

MOST: Final = 500
"""Ways of each kind."""
PAGE: Final = 60
"""Lines on one page."""
STALE: Final = timedelta(days=90)
"""What nobody used for so long, or looked at for so long, stands out."""
MODELS: Final[Mapping[str, type[Any]]] = {
    "member": Membership, "account": ServiceAccount, "token": ApiToken, "key": EndpointKey,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    """One line."""

    value: str
    """Kind and id, as the form sends it."""
    kind: str
    name: str
    may: str
    owner: str
    since: datetime
    used_at: datetime | None
    reviewed_at: datetime | None
    is_stale: bool
    url: str
    """Page on which it is taken away."""


@page("service-account-tokens.list")
def show(request: PageRequest) -> HttpResponse:
    """List every way in; what was not used or not looked at for long first."""
    ways = _ways(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, ways, form)
    wanted = request.GET.get("show", "")
    shown = [way for way in ways if way.is_stale] if wanted == "stale" else ways
    first = _first(request) if _first(request) < len(shown) else 0
    values = {
        "ways": shown[first : first + PAGE],
        "count": _("%(from)d-%(to)d of %(all)d")
        % {"from": first + 1, "to": min(first + PAGE, len(shown)), "all": len(shown)},
        "more_url": _page_url(wanted, first + PAGE) if first + PAGE < len(shown) else "",
        "previous_url": _page_url(wanted, max(0, first - PAGE)) if first else "",
        "stale": sum(1 for way in ways if way.is_stale),
        "all": len(ways),
        "may_act": people.may_act(request),
        "fields": [
            {
                "name": "show",
                "label": _("Show"),
                "value": wanted,
                "options": [
                    {"value": "", "label": _("All"), "count": len(ways)},
                    {"value": "stale", "label": _("Unused for 90 days"), "count": sum(w.is_stale for w in ways)},
                ],
            }
        ],
        "columns": [
            {"key": "keep", "label": _("Keep")},
            {"key": "way", "label": _("Way in")},
            {"key": "may", "label": _("May")},
            {"key": "owner", "label": _("Whose")},
            {"key": "since", "label": _("Since")},
            {"key": "used", "label": _("Last used")},
            {"key": "reviewed", "label": _("Looked at")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
        "tabs": people.tabs(request, "access-review"),
    }
    return render(request, "frontend/pages/people/review.html", values)


def _first(request: PageRequest) -> int:
    """Return how many lines come before this page."""
    text = request.GET.get("from", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _page_url(wanted: str, first: int) -> str:
    return "?" + urlencode({key: value for key, value in {"show": wanted, "from": first}.items() if value})


@page("members.update", methods=("POST",))
def keep(request: PageRequest) -> HttpResponse:
    """Record that the chosen ways were looked at and stay."""
    chosen = request.POST.getlist("way")
    if not chosen:
        raise InvalidSpec(_("Choose at least one line."), field="way")
    with reading(request.actor):
        ways = _rows(request, chosen)
    count = access_reviews.keep(tenant=request.tenant, ways=ways, actor=request.actor, now=request.now)
    text = ngettext(
        "%(n)d way in is kept; that is written down.", "%(n)d ways in are kept; that is written down.", count
    )
    messages.success(request, text % {"n": count})
    return people.back(request, "access-review")


def _rows(request: PageRequest, chosen: list[str]) -> list[WayIn]:
    wanted: dict[str, list[UUID]] = {}
    for text in chosen[: access_reviews.MOST]:
        kind, _dot, key = text.partition(":")
        if kind not in MODELS:
            raise InvalidSpec(_("Choose lines of the list."), field="way")
        wanted.setdefault(kind, []).append(people.person_key(key))
    found: list[WayIn] = []
    for kind, keys in wanted.items():
        found += list(MODELS[kind].objects.filter(tenant=request.tenant, pk__in=keys))
    return found


def _ways(request: PageRequest) -> list[Way]:
    """Return every way in: members, service accounts, tokens narrowed to the tenant, keys of endpoints."""
    tenant, now = request.tenant, request.now
    live = Q(revoked_at__isnull=True) & (Q(expires_at__isnull=True) | Q(expires_at__gt=now))
    members = list(Membership.objects.filter(tenant=tenant).select_related("person")[:MOST])
    accounts: list[Any] = list(
        ServiceAccount.objects.filter(tenant=tenant, disabled_at__isnull=True).annotate(
            used_at=Max("tokens__last_used_at")
        )[:MOST]
    )
    tokens = list(ApiToken.objects.filter(live, tenant=tenant).select_related("service_account")[:MOST])
    keys = list(EndpointKey.objects.filter(live, tenant=tenant).select_related("endpoint")[:MOST])
    seen = people.last_active(tenant, {row.person_id for row in members}, now=now)
    wanted = {*(row.owner_id for row in accounts), *(row.person_id for row in tokens), *(row.author_id for row in keys)}
    names = dict(Person.objects.filter(pk__in=wanted - {None}).values_list("pk", "display_name"))
    every = [row.pk for row in (*members, *accounts, *tokens, *keys)]
    reviewed = dict(
        Event.objects.filter(object_id__in=every, kind=access_reviews.REVIEWED)
        .values_list("object_id")
        .annotate(last=Max("at"))
        .values_list("object_id", "last")
    )
    where = {"tenant": tenant.name}

    def way(row: Any, word: str, kind: str, name: str, may: str, owner: str, used: datetime | None, url: str) -> Way:
        at = reviewed.get(row.pk)
        idle = (used or row.created_at) < now - STALE and (at is None or at < now - STALE)
        return Way(f"{word}:{row.pk}", kind, name, may, owner, row.created_at, used, at, idle, url)

    found = [
        way(
            row, "member", _("Person"), row.person.display_name, str(people.ROLES[Role(row.role)]),
            row.person.email, seen.get(row.person_id),
            reverse("frontend:member-leave", kwargs=where)
            if row.person_id == request.actor.person_id
            else reverse("frontend:member-remove", kwargs={**where, "member": row.pk}),
        )
        for row in members
    ]  # fmt: skip
    found += [
        way(
            row, "account", _("Service account"), row.name, str(people.ROLES[Role(row.role)]),
            names.get(row.owner_id, "--"), row.used_at,
            reverse("frontend:service-account", kwargs={**where, "name": row.name}),
        )
        for row in accounts
    ]  # fmt: skip
    for row in tokens:
        account = row.service_account
        url = reverse("frontend:service-account", kwargs={**where, "name": account.name}) if account else ""
        may = _("may only read") if row.read_only else _("as its account") if account else _("as the person")
        owner = account.name if account else names.get(row.person_id, "--")
        found.append(way(row, "token", _("Token"), row.name, may, owner, row.last_used_at, url))
    for key in keys:
        url = reverse("frontend:endpoint-keys", kwargs={**where, "name": key.endpoint.short_id})
        may = _("call %(endpoint)s") % {"endpoint": key.endpoint.name}
        found.append(way(key, "key", _("Key"), key.name, may, names.get(key.author_id, "--"), key.last_used_at, url))
    return sorted(found, key=lambda each: (not each.is_stale, each.used_at or each.since, each.name))


def _exported(request: PageRequest, ways: list[Way], form: str) -> HttpResponse:
    columns = ["kind", "name", "may", "whose", "since", "last_used", "looked_at"]
    body = [
        {
            "kind": way.kind,
            "name": way.name,
            "may": way.may,
            "whose": way.owner,
            "since": way.since,
            "last_used": way.used_at,
            "looked_at": way.reviewed_at,
        }
        for way in ways
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-access", form=form)
