"""Delegations: who decides in whose place, from when to when; one's own are made and ended here."""

from __future__ import annotations

from datetime import datetime, time
from typing import Any, Final

from django.contrib import messages
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.translation import gettext as _

from frontend.kernel import asks, lists, problems, words
from frontend.kernel.page import PageRequest, page
from frontend.views.decisions import tabs
from tenants import access
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Delegation, Person
from tenants.operations import delegations, people
from tenants.operations.guards import accountable
from tenants.transactions import reading

SHOWN: Final = 200


@page("delegations.list")
def listed(request: PageRequest) -> HttpResponse:
    """List delegations from and to the person; for whoever sees the platform all of them."""
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, form)
    return _page(request, {}, {})


def _rows(request: PageRequest) -> QuerySet[Delegation]:
    # No joins to people: row-level security hides who shares no tenant, and an inner join would hide the row.
    def name(of: str) -> Subquery:
        return Subquery(Person.objects.filter(pk=OuterRef(of)).values("display_name")[:1])

    rows = Delegation.objects.all()
    if not request.actor.sees_all:
        me = request.actor.person_id
        rows = rows.filter(Q(person_id=me) | Q(delegate_id=me))
    rows = rows.annotate(absent=name("person_id"), stands_in=name("delegate_id"))
    return rows.order_by("-ends_at", "-created_at", "pk")


def _line(row: Any, request: PageRequest) -> dict[str, Any]:
    over, begun = row.ends_at <= request.now, row.starts_at <= request.now
    state = (
        {"text": _("Over"), "tone": "quiet", "icon": "clock"}
        if over
        else {"text": _("Now"), "tone": "ok", "icon": "circle-check"}
        if begun
        else {"text": _("Later"), "tone": "info", "icon": "calendar"}
    )
    mine = row.person_id == request.actor.person_id
    return {
        "row": row,
        "absent": row.absent or "--",
        "stands_in": row.stands_in or "--",
        "mine": mine,
        "to_me": row.delegate_id == request.actor.person_id,
        "state": state,
        "may_end": mine and not over,
        "end_url": reverse("frontend:delegation-end", kwargs={"key": row.pk}),
    }


def _page(request: PageRequest, given: Any, errors: dict[str, str], *, status: int = 200) -> HttpResponse:
    rows = list(_rows(request)[: SHOWN + 1])
    today = timezone.localdate(request.now).isoformat()
    values = {
        "lines": [_line(row, request) for row in rows[:SHOWN]],
        "empty": not rows,
        "more": len(rows) > SHOWN,
        "errors": errors,
        "given": {key: given.get(key, "") for key in ("delegate", "until")} | {"since": given.get("since") or today},
        "open_form": bool(errors),
        "tabs": tabs(request, "delegations"),
        "columns": [
            {"key": "absent", "label": _("In the place of")},
            {"key": "delegate", "label": _("Decides")},
            {"key": "from", "label": _("From")},
            {"key": "until", "label": _("Until")},
            {"key": "state", "label": _("State")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
    }
    return render(request, "frontend/pages/decisions/delegations.html", values, status=status)


@page("delegations.create", methods=("POST",))
def create(request: PageRequest) -> HttpResponse:
    """Let somebody decide in the person's place between two days."""
    given = request.POST
    try:
        starts, ends = _day(given.get("since", ""), "starts_at"), _day(given.get("until", ""), "ends_at", last=True)
        with reading(request.actor):
            delegate = people.active_person_by_email(given.get("delegate", ""))
        delegations.create(
            delegate=delegate,
            starts_at=max(starts, request.now) if starts.date() <= request.now.date() else starts,
            ends_at=ends,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        fields = {"email": "delegate", "starts_at": "since", "ends_at": "until"}
        found = {fields.get(name, name): words.plain(text) for name, text in problems.at_fields(error).items()}
        with reading(request.actor):
            return _page(request, given, found, status=problems.status_of(error))
    messages.success(request, _("From then on %(who)s may decide in your place.") % {"who": given["delegate"]})
    return HttpResponseRedirect(reverse("frontend:delegations"))


@page("delegations.end", methods=("POST",))
def end(request: PageRequest, key: str) -> HttpResponse:
    """End one's own delegation now."""
    with reading(request.actor):
        row = access.find(Delegation.objects.filter(person_id=accountable(request.actor)), key)
    delegations.end(delegation=row, actor=request.actor, now=request.now)
    messages.success(request, _("Ended: from now on you decide alone again."))
    return HttpResponseRedirect(reverse("frontend:delegations"))


def _day(text: str, field: str, *, last: bool = False) -> datetime:
    """Return the first or last second of a day in the person's zone. Raises `InvalidSpec`."""
    try:
        day = parse_date(text.strip())
    except ValueError:
        day = None
    if day is None:
        raise InvalidSpec(_("Give a day."), field=field)
    if last:
        return datetime.fromisoformat(asks.end_of_day(text))
    return datetime.combine(day, time.min, tzinfo=timezone.get_current_timezone())


def _exported(request: PageRequest, form: str) -> HttpResponse:
    columns = ["in_the_place_of", "decides", "from", "until"]
    body = [
        {
            "in_the_place_of": line["absent"],
            "decides": line["stands_in"],
            "from": line["row"].starts_at,
            "until": line["row"].ends_at,
        }
        for line in (_line(row, request) for row in _rows(request)[: lists.MOST_EXPORTED])
    ]
    return lists.exported(body, columns, name="delegations", form=form)
