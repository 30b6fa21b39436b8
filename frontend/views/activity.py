"""What happened in a tenant: who did what, filtered and exported; one event; whether the trail is whole."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from frontend.kernel import asks, happenings, lists
from frontend.kernel.page import PageRequest, page
from tenants import trail
from tenants.errors import NotVisible
from tenants.models import Event, Membership, Person, ServiceAccount
from tenants.transactions import reading

SYSTEM: Final = "system"
PEOPLE: Final = "people"
KEYS: Final = ("show", "person", "about", "q", "from", "to")


@page("events.list")
def listed(request: PageRequest) -> HttpResponse:
    """List what happened, newest first: filters in the address, pages by key, export."""
    rows = filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""), moment="at")
    query = request.GET.copy()
    query["after"] = found.after
    plain = {key: value for key in KEYS if (value := request.GET.get(key, ""))}
    folder = reverse("frontend:activity", kwargs={"tenant": request.tenant.name})
    first = request.GET.copy()
    first.pop("after", None)
    values = {
        "lines": [
            {"one": one, "url": f"{folder}/{one.event.seq}"}
            for one in happenings.of(found.rows, tenant=request.tenant.name)
        ],
        "empty": not found.rows,
        "is_filtered": bool(plain),
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else f"{request.path}?{first.urlencode()}",
        "clear_url": request.path,
        "query": {"name": "q", "value": request.GET.get("q", ""), "label": _("Name or short id of an object")},
        "fields": _fields(request),
        "verify_url": f"{folder}/verify",
        "columns": [
            {"key": "at", "label": _("When")},
            {"key": "who", "label": _("Who")},
            {"key": "what", "label": _("What")},
        ],
    }
    return render(request, "frontend/pages/activity/list.html", values)


def filtered(request: PageRequest) -> QuerySet[Event]:
    """Return the events of the tenant that the address asks for; what it asks wrongly is left out."""
    rows = Event.objects.filter(tenant_id=request.tenant.pk)
    given = request.GET
    if given.get("show") != "all" and "format" not in given:
        rows = rows.exclude(kind__in=happenings.REPEATS)
    person = given.get("person", "")
    if person == SYSTEM:
        rows = rows.filter(actor__in=["system", "auth"])
    elif person == PEOPLE:
        rows = rows.filter(actor__startswith="person:")
    elif person and (key := _uuid(person)) is not None:
        rows = rows.filter(Q(person_id=key) | Q(actor=f"service-account:{key}"))
    if (about := given.get("about", "")) in happenings.NOUNS:
        rows = rows.filter(kind__startswith=f"{about}.")
    if text := given.get("q", "").strip()[:60]:
        rows = rows.filter(object_id__in=_objects(request, text))
    since, until = _day(given.get("from", "")), _day(given.get("to", ""))
    if since is not None:
        rows = rows.filter(at__gte=since)
    if until is not None:
        rows = rows.filter(at__lt=until + timedelta(days=1))
    return rows


def _objects(request: PageRequest, text: str) -> list[UUID]:
    """Return the ids of what is called so in the tenant, with the capacity that belongs to it."""
    found: list[UUID] = []
    for model in happenings.MODELS.values():
        fields = {each.name for each in model._meta.get_fields()}
        condition = Q(pk__in=[])
        for name in ("name", "short_id"):
            if name in fields:
                condition |= Q(**{name: text})
        rows = model._base_manager.filter(condition, tenant_id=request.tenant.pk)
        if "allocation" in fields:
            for pk, allocation in rows.values_list("pk", "allocation_id"):
                found += [pk, *([allocation] if allocation is not None else [])]
        else:
            found += rows.values_list("pk", flat=True)
    return found


def _day(text: str) -> datetime | None:
    """Return the beginning of a day in the person's zone."""
    try:
        return timezone.make_aware(datetime.combine(date.fromisoformat(text), time()))
    except (ValueError, OverflowError):
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _fields(request: PageRequest) -> list[dict[str, Any]]:
    given = request.GET
    everybody = [{"value": "", "label": _("Everybody")}, {"value": PEOPLE, "label": _("People alone")}]
    everybody.append({"value": SYSTEM, "label": _("The platform")})
    members = Membership.objects.filter(tenant_id__in=request.tenant.path).values("person_id")
    people = Person.objects.filter(pk__in=members).order_by("display_name", "pk")[:200]
    accounts = ServiceAccount.objects.filter(tenant=request.tenant).order_by("name")[:100]
    everybody += [{"value": str(row.pk), "label": row.display_name} for row in people]
    everybody += [{"value": str(row.pk), "label": row.name} for row in accounts]
    about = [{"value": key, "label": str(label)} for key, label in happenings.NOUNS.items()]
    return [
        {"name": "person", "label": _("Who"), "value": given.get("person", ""), "options": everybody},
        {
            "name": "about",
            "label": _("About"),
            "value": given.get("about", ""),
            "options": [{"value": "", "label": _("Everything")}, *about],
        },
        {
            "name": "show",
            "label": _("Show"),
            "value": given.get("show", ""),
            "options": [{"value": "", "label": _("Without repeats")}, {"value": "all", "label": _("Every entry")}],
        },
        {"name": "from", "label": _("From"), "value": given.get("from", ""), "type": "date"},
        {"name": "to", "label": _("To"), "value": given.get("to", ""), "type": "date"},
    ]


def _exported(request: PageRequest, rows: QuerySet[Event], form: str) -> HttpResponse:
    columns = ["number", "at", "who", "what", "kind", "object_kind", "object_id", "actor", "person", "data", "hash"]
    events = list(rows.order_by("-at", "-id")[: lists.READ_FOR_EXPORT])
    body = [_record(one, form) for one in happenings.of(events, tenant=request.tenant.name)]
    return lists.exported(body, columns, name=f"{request.tenant.name}-activity", form=form)


def _record(one: happenings.Happening, form: str) -> dict[str, Any]:
    event = one.event
    return {
        "number": event.seq,
        "at": event.at.astimezone(UTC),
        "who": one.who,
        "what": one.what,
        "kind": event.kind,
        "object_kind": event.object_kind,
        "object_id": str(event.object_id or ""),
        "actor": event.actor,
        "person": str(event.person_id or ""),
        "data": event.data if form == "json" else lists.as_text(event.data),
        "hash": event.hash,
    }


# --- one ------------------------------------------------------------------------------------------


@page("events.list")
def show(request: PageRequest, number: int) -> HttpResponse:
    """Show one event by its number in the tenant's trail."""
    event = Event.objects.filter(tenant_id=request.tenant.pk, chain=request.tenant.pk, seq=number).first()
    if event is None:
        raise NotVisible
    one = happenings.of([event], tenant=request.tenant.name)[0]
    if request.GET.get("format") == "json":
        return lists.exported([_record(one, "json")], list(_record(one, "json")), name=f"event-{number}", form="json")
    people = asks.names({event.person_id, *(_uuid(str(event.data.get(key))) for key in happenings.PEOPLE)})
    values = {
        "one": one,
        "facts": happenings.facts(event, people),
        "source": _source(event, one, people),
        "breadcrumbs": [
            {"label": _("Activity"), "url": reverse("frontend:activity", kwargs={"tenant": request.tenant.name})},
            {"label": _("Number %(n)d") % {"n": event.seq}, "url": ""},
        ],
    }
    return render(request, "frontend/pages/activity/one.html", values)


def _source(event: Event, one: happenings.Happening, people: dict[UUID, str]) -> list[dict[str, Any]]:
    kind = event.actor.partition(":")[0]
    sources = {
        "person": _("a person, by portal, command line or API"),
        "service-account": _("a service account, by API"),
        "agent": _("a gateway of the tenant, calling home"),
        "auth": _("the log-in"),
        "anonymous": _("a visitor"),
    }
    found = [
        {"label": _("Who"), "value": one.who},
        {"label": _("Through"), "value": sources.get(kind, _("the platform by itself"))},
    ]
    if kind != "person" and event.person_id is not None:
        name = people.get(event.person_id, _("somebody who is no member"))
        found.append({"label": _("Answers for it"), "value": name})
    return found


# --- the trail ------------------------------------------------------------------------------------


@page("events.list", own_blocks=True)
def verify(request: PageRequest) -> HttpResponse:
    """Verify the tenant's trail: every event's hash worked out again from its content."""
    with reading(request.actor):
        upto = request.GET.get("upto", "")
        found = trail.verify(request.tenant.pk, upto=int(upto) if upto.isdecimal() and len(upto) < 18 else None)
        values = {
            "found": found,
            # the first of this part is the last of the next one, so that no link between two stays unlooked-at
            "before_url": f"?upto={found.first}" if found.first > 1 else "",
            "is_newest": not upto,
            "breadcrumbs": [
                {"label": _("Activity"), "url": reverse("frontend:activity", kwargs={"tenant": request.tenant.name})},
                {"label": _("Verify"), "url": ""},
            ],
        }
        return render(request, "frontend/pages/activity/verify.html", values)
