"""Access review: every way into a tenant with who has it, since when and last used; kept or taken away line by line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.db import connection
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import lists
from frontend.kernel.page import PageRequest, page
from frontend.views import people
from tenants.errors import InvalidSpec
from tenants.models import ApiToken, EndpointKey, Membership, Person, ServiceAccount
from tenants.operations import access_reviews
from tenants.operations.access_reviews import WayIn
from tenants.states import Role
from tenants.transactions import reading

PAGE: Final = 60
"""Lines on one page."""
STALE: Final = timedelta(days=90)
"""What nobody used for so long, or looked at for so long, stands out."""
MODELS: Final[Mapping[str, type[Any]]] = {
    "member": Membership, "account": ServiceAccount, "token": ApiToken, "key": EndpointKey,
}  # fmt: skip


OWNED_BY: Final = {"account": "owner_id", "token": "person_id", "key": "author_id"}


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
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, _ways(request, _found(request, "", 0, lists.READ_FOR_EXPORT)), form)
    wanted = "stale" if request.GET.get("show", "") == "stale" else ""
    first = _first(request)
    found = _found(request, wanted, first, PAGE)
    if first and not found.lines:
        first, found = 0, _found(request, wanted, 0, PAGE)
    shown = found.stale if wanted else found.all
    values: dict[str, Any] = {
        "ways": _ways(request, found),
        "count": _("%(from)d-%(to)d of %(all)d") % {"from": first + 1, "to": min(first + PAGE, shown), "all": shown},
        "more_url": _page_url(wanted, first + PAGE) if first + PAGE < shown else "",
        "previous_url": _page_url(wanted, max(0, first - PAGE)) if first else "",
        "stale": found.stale,
        "all": found.all,
        "may_act": people.may_act(request),
        "fields": [
            {
                "name": "show",
                "label": _("Show"),
                "value": wanted,
                "options": [
                    {"value": "", "label": _("All"), "count": found.all},
                    {"value": "stale", "label": _("Unused for 90 days"), "count": found.stale},
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


@dataclass(frozen=True, slots=True)
class Found:
    """One page of ways in, and how many there are."""

    lines: list[tuple[str, UUID, bool, datetime | None, datetime | None]]
    """Kind, id, stale, last used, last looked at."""
    all: int
    stale: int


_FOUND: Final = """
WITH seen AS (
  SELECT e.person_id, max(e.at) AS at FROM tenants_event e
  WHERE e.tenant_id = %(tenant)s AND e.at >= %(seen)s AND e.person_id IN (
    SELECT m.person_id FROM tenants_membership m WHERE m.tenant_id = %(tenant)s) GROUP BY 1
),
way AS (
  SELECT 'member' AS kind, m.id, p.display_name AS name, m.created_at, s.at AS used_at
  FROM tenants_membership m JOIN tenants_person p ON p.id = m.person_id LEFT JOIN seen s ON s.person_id = m.person_id
  WHERE m.tenant_id = %(tenant)s
  UNION ALL
  SELECT 'account', a.id, a.name, a.created_at,
         (SELECT max(t.last_used_at) FROM tenants_apitoken t WHERE t.service_account_id = a.id)
  FROM tenants_serviceaccount a WHERE a.tenant_id = %(tenant)s AND a.disabled_at IS NULL
  UNION ALL
  SELECT 'token', t.id, t.name, t.created_at, t.last_used_at FROM tenants_apitoken t
  WHERE t.tenant_id = %(tenant)s AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > %(now)s)
  UNION ALL
  SELECT 'key', k.id, k.name, k.created_at, k.last_used_at FROM tenants_endpointkey k
  WHERE k.tenant_id = %(tenant)s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %(now)s)
),
looked AS (
  SELECT e.object_id, max(e.at) AS at FROM tenants_event e
  WHERE e.tenant_id = %(tenant)s AND e.kind = 'access.reviewed' GROUP BY 1
),
line AS (
  SELECT w.kind, w.id, w.name, coalesce(w.used_at, w.created_at) AS last_at, w.used_at, l.at AS looked_at,
         coalesce(w.used_at, w.created_at) < %(stale)s AND coalesce(l.at < %(stale)s, true) AS is_stale
  FROM way w LEFT JOIN looked l ON l.object_id = w.id
),
counted AS (SELECT count(*) AS whole, count(*) FILTER (WHERE is_stale) AS stale FROM line)
SELECT c.whole, c.stale, x.* FROM counted c LEFT JOIN LATERAL (
  SELECT kind, id, is_stale, used_at, looked_at FROM line WHERE is_stale OR NOT %(only_stale)s
  ORDER BY NOT is_stale, last_at, name, id OFFSET %(first)s LIMIT %(most)s
) x ON true
"""
"""What was not used or not looked at for long first, then what was used longest ago."""


def _found(request: PageRequest, wanted: str, first: int, most: int) -> Found:
    """Return a page of members, service accounts, tokens narrowed to the tenant, and keys of endpoints."""
    values: dict[str, Any] = {
        "tenant": request.tenant.pk,
        "now": request.now,
        "seen": request.now - people.SEEN,
        "stale": request.now - STALE,
        "only_stale": bool(wanted),
        "first": first,
        "most": most,
    }
    with connection.cursor() as cursor:
        cursor.execute(_FOUND, values)
        rows = cursor.fetchall()
    lines = [row[2:] for row in rows if row[2] is not None]
    return Found(lines, int(rows[0][0]), int(rows[0][1]))


def _ways(request: PageRequest, found: Found) -> list[Way]:
    """Return the lines as the page shows them; what they are about is read by kind."""
    keys: dict[str, list[UUID]] = {kind: [] for kind in MODELS}
    for kind, key, *_rest in found.lines:
        keys[kind].append(key)
    beside = {"member": "person", "token": "service_account", "key": "endpoint"}
    rows: dict[UUID, Any] = {}
    for kind, model in MODELS.items():
        wanted = model.objects.filter(pk__in=keys[kind])
        rows |= {row.pk: row for row in (wanted.select_related(beside[kind]) if kind in beside else wanted)}
    owners = {owner for kind, key, *_rest in found.lines if (owner := _owner_of(kind, rows[key])) is not None}
    names = dict(Person.objects.filter(pk__in=owners).values_list("pk", "display_name"))
    return [
        _way(request, kind, rows[key], names, is_stale=is_stale, used_at=used_at, looked_at=looked_at)
        for kind, key, is_stale, used_at, looked_at in found.lines
    ]


def _owner_of(kind: str, row: Any) -> UUID | None:
    key: UUID | None = getattr(row, OWNED_BY[kind]) if kind in OWNED_BY else None
    return key


def _way(
    request: PageRequest,
    kind: str,
    row: Any,
    names: Mapping[UUID, str],
    *,
    is_stale: bool,
    used_at: datetime | None,
    looked_at: datetime | None,
) -> Way:
    where = {"tenant": request.tenant.name}
    name, word, may, owner, url = row.name if kind != "member" else row.person.display_name, "", "", "--", ""
    if kind == "member":
        word, may, owner = _("Person"), str(people.ROLES[Role(row.role)]), row.person.email
        is_me = row.person_id == request.actor.person_id
        url = (
            reverse("frontend:member-leave", kwargs=where)
            if is_me
            else reverse("frontend:member-remove", kwargs={**where, "member": row.pk})
        )
    elif kind == "account":
        word, may, owner = _("Service account"), str(people.ROLES[Role(row.role)]), names.get(row.owner_id, "--")
        url = reverse("frontend:service-account", kwargs={**where, "name": row.name})
    elif kind == "token":
        account = row.service_account
        word, owner = _("Token"), account.name if account else names.get(row.person_id, "--")
        may = _("may only read") if row.read_only else _("as its account") if account else _("as the person")
        url = reverse("frontend:service-account", kwargs={**where, "name": account.name}) if account else ""
    else:
        word, owner = _("Key"), names.get(row.author_id, "--")
        may = _("call %(endpoint)s") % {"endpoint": row.endpoint.name}
        url = reverse("frontend:endpoint-keys", kwargs={**where, "name": row.endpoint.short_id})
    return Way(f"{kind}:{row.pk}", word, name, may, owner, row.created_at, used_at, looked_at, is_stale, url)


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
