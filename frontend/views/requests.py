"""Requests of a tenant: what was asked, who decides next, the thread, what came of it; withdrawing and changing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from frontend.kernel import asks, lists, live, problems, words
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Person, Request, RequestComment
from tenants.operations import requests
from tenants.operations.pricing import all_prices, currency
from tenants.states import RequestKind, RequestState
from tenants.transactions import reading

THREAD_ROWS: Final = 200
KINDS: Final = tuple(kind.value for kind in RequestKind)


@dataclass(frozen=True, slots=True)
class Comment:
    """One line of a thread."""

    by: str
    at: datetime
    text: str


def thread(row: Request) -> list[Comment]:
    """Return the thread of a request, oldest first, with names as far as the actor may see."""
    found = list(RequestComment.objects.filter(request=row).order_by("created_at", "pk")[:THREAD_ROWS])
    known = asks.names(one.author_id for one in found)
    # who decides for the platform shares no tenant with the requester and stays unnamed
    return [Comment(known.get(one.author_id, _("The platform")), one.created_at, one.text) for one in found]


def read_number(text: str | None, *, field: str) -> int:
    """Return a whole number of a form. Raises `InvalidSpec` naming the field."""
    try:
        return int(str(text or "").replace(",", "").strip())
    except ValueError as error:
        raise InvalidSpec(_("Give a whole number."), field=field) from error


def rows_of(request: PageRequest) -> QuerySet[Request]:
    """Return the requests of the tenant, with what every page of them shows."""
    # No join to people: row-level security hides who shares no tenant, and an inner join would hide the request.
    name = Person.objects.filter(pk=OuterRef("requester_id")).values("display_name")[:1]
    rows = requests.visible(request.actor).filter(tenant=request.tenant).select_related(*asks.JOINED)
    return rows.prefetch_related("stages", "decisions").annotate(asked_by=Subquery(name))


# --- list -------------------------------------------------------------------------------------------------


@page("requests.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the requests of a tenant: filters in the address, pages by key, export."""
    rows = _filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = found.after
    values = {
        "lines": [_line(row) for row in found.rows],
        "live_url": live.address("frontend:live-tenant", request, tenant=request.tenant.name),
        "empty": not found.rows,
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "is_filtered": any(request.GET.get(key) for key in ("state", "kind")),
        "clear_url": request.path,
        "fields": _filters(request.GET),
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "state", "label": _("State")},
            {"key": "next", "label": _("Next")},
            {"key": "who", "label": _("Asked by")},
            {"key": "at", "label": _("Asked")},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/requests/{template}.html", values)


def _filtered(request: PageRequest) -> QuerySet[Request]:
    rows = rows_of(request)
    state, kind = request.GET.get("state", ""), request.GET.get("kind", "")
    if state in {each.value for each in RequestState}:
        rows = rows.filter(state=state)
    if kind in KINDS:
        rows = rows.filter(kind=kind)
    return rows


def _filters(given: QueryDict) -> list[dict[str, Any]]:
    every = {"value": "", "label": _("All")}
    states = [{"value": key, "label": str(text)} for key, (text, _tone, _icon) in asks.STATES.items()]
    kinds = [{"value": key, "label": str(text)} for key, text in asks.KINDS.items()]
    return [
        {"name": "state", "label": _("State"), "value": given.get("state", ""), "options": [every, *states]},
        {"name": "kind", "label": _("Kind"), "value": given.get("kind", ""), "options": [every, *kinds]},
    ]


def _line(row: Any) -> dict[str, Any]:
    assert row.tenant is not None  # the list is of one tenant
    where = {"tenant": row.tenant.name, "name": row.short_id}
    return {
        "row": row,
        "url": reverse("frontend:request", kwargs=where),
        "kind": asks.kind(row),
        "what": asks.what(row),
        "state": asks.state(row),
        "next": asks.next_decider(row),
        "who": row.asked_by or _("somebody from outside"),
    }


def _exported(request: PageRequest, rows: QuerySet[Request], form: str) -> HttpResponse:
    columns = ["id", "kind", "what", "state", "next", "who", "asked_at", "decided_at"]
    body = [
        {
            "id": line["row"].short_id,
            "kind": line["row"].kind,
            "what": line["what"],
            "state": line["row"].state,
            "next": line["next"],
            "who": line["who"],
            "asked_at": line["row"].created_at,
            "decided_at": line["row"].decided_at,
        }
        for line in map(_line, rows.order_by("-created_at", "-id")[: lists.READ_FOR_EXPORT])
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-requests", form=form)


# --- one --------------------------------------------------------------------------------------------------


@page("requests.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one request."""
    return _page(request, access.find(rows_of(request), name))


def _page(
    request: PageRequest, row: Any, *, status: int = 200, errors: Mapping[str, str] | None = None
) -> HttpResponse:
    decisions = sorted(row.decisions.all(), key=lambda one: one.created_at)
    known = asks.names(one.decider_id for one in decisions)
    is_open = row.state == RequestState.SUBMITTED.value
    mine = is_open and row.requester_id == request.actor.person_id
    product = asks.product_of(row)
    values = {
        "row": row,
        "what": asks.what(row),
        "kind": asks.kind(row),
        "state": asks.state(row),
        "reason": asks.reason(row),
        "who": row.asked_by or _("somebody from outside"),
        "until": asks.until_of(row.payload),
        "steps": asks.stages(row),
        "next_decider": asks.next_decider(row),
        "cost": asks.cost(row, all_prices(), currency=currency(), now=request.now),
        "asked": _asked(row),
        "model_lines": asks.model_lines(row),
        "decisions": [
            {
                "row": one,
                "by": known.get(one.decider_id, _("The platform")) if one.decider_id else _("A rule"),
                "verdict": str(asks.VERDICTS[one.verdict]),
                "granted": asks.amounts(asks.all_limits(one.granted)) if one.verdict == "reduce" else "",
            }
            for one in decisions
        ],
        "thread": thread(row),
        "product": product,
        "product_url": asks.product_url(product) if product is not None else "",
        "product_word": asks.product_word(product) if product is not None else "",
        "is_open": is_open,
        "can_withdraw": mine,
        "can_edit": mine and row.kind == RequestKind.QUOTA.value,
        "decide_url": _decide_url(request, row) if is_open else "",
        "errors": errors or {},
        "breadcrumbs": _crumbs(request, row),
    }
    return render(request, "frontend/pages/requests/show.html", values, status=status)


def _crumbs(request: PageRequest, row: Request) -> list[dict[str, str]]:
    up = reverse("frontend:requests", kwargs={"tenant": request.tenant.name})
    return [{"label": _("Requests"), "url": up}, {"label": row.short_id, "url": ""}]


def _asked(row: Request) -> list[dict[str, Any]]:
    """Return what is asked for, line by line: of whom and how much."""
    assert row.tenant is not None  # the page is of one tenant
    found = [(row.tenant.name, row.payload.get("limits") or {}), *(row.payload.get("ancestors") or {}).items()]
    return [
        {"tenant": tenant, "label": asks.dimension(name), "amount": int(count), "words": asks.amount(name, int(count))}
        for tenant, limits in found
        for name, count in sorted(limits.items(), key=lambda entry: (not entry[0].startswith("gpu."), entry[0]))
    ]


def _decide_url(request: PageRequest, row: Request) -> str:
    if requests.standing(request.actor, row, now=request.now) is None:
        return ""
    try:
        return reverse("frontend:decide", kwargs={"key": row.short_id})
    except NoReverseMatch:
        return ""


@page("requests.comment", methods=("POST",))
def comment(request: PageRequest, name: str) -> HttpResponse:
    """Write a line into the thread."""
    row = _found(request, name)
    try:
        requests.comment(request=row, text=request.POST.get("text", ""), actor=request.actor, now=request.now)
    except InvalidSpec as error:
        with reading(request.actor):
            return _page(request, access.find(rows_of(request), name), status=422, errors=problems.at_fields(error))
    return HttpResponseRedirect(f"{_address(request, row)}#thread")


@page("requests.withdraw", methods=("POST",))
def withdraw(request: PageRequest, name: str) -> HttpResponse:
    """Take a request back."""
    row = _found(request, name)
    version = read_number(request.POST.get("version"), field="version")
    try:
        requests.withdraw(request=row, version=version, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, words.plain(error.detail))
    else:
        messages.success(request, _("Withdrawn: %(what)s.") % {"what": asks.what(row)})
    return HttpResponseRedirect(_address(request, row))


def _found(request: PageRequest, name: str) -> Request:
    with reading(request.actor):
        return access.find(rows_of(request), name)


def _address(request: PageRequest, row: Request) -> str:
    return reverse("frontend:request", kwargs={"tenant": request.tenant.name, "name": row.short_id})


# --- changing one ---------------------------------------------------------------------------------------


@page("requests.revise", methods=("GET", "POST"), own_blocks=True)
def edit(request: PageRequest, name: str) -> HttpResponse:
    """Ask for something else in the same request; everybody decides anew."""
    row = _found(request, name)
    if row.kind != RequestKind.QUOTA.value:
        raise Conflict(_("This kind of request is withdrawn and asked again, not changed."), code="not-supported")
    if request.method != "POST":
        return _form(request, row, {}, {})
    given = request.POST
    try:
        requests.revise(
            request=row,
            payload=_payload(row, given),
            reason=given.get("reason", ""),
            version=read_number(given.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _form(request, row, given, _at_fields(error), status=problems.status_of(error))
    messages.success(request, _("Changed. Everybody who decides looks at it anew."))
    return HttpResponseRedirect(_address(request, row))


def _payload(row: Request, given: QueryDict) -> dict[str, Any]:
    """Return the payload that the form asks for; what is emptied or zero is left out."""

    def read(name: str, present: Mapping[str, Any]) -> dict[str, int]:
        found = {
            key: read_number(given.get(f"{name}:{key}", str(count)), field=f"payload.{name}.{key}")
            for key, count in present.items()
        }
        return {key: count for key, count in found.items() if count or row.payload.get("mode") == "set"}

    asked: Mapping[str, Any] = row.payload
    above = {tenant: read(f"above:{tenant}", limits) for tenant, limits in (asked.get("ancestors") or {}).items()}
    until = given.get("until", "")
    same = until == asks.day_of(asks.until_of(asked))
    return {
        "mode": asked.get("mode", "add"),
        "limits": read("limits", asked.get("limits") or {}),
        "ancestors": {tenant: limits for tenant, limits in above.items() if limits},
        "until": asked.get("until") if same else (asks.end_of_day(until) or None),
    }


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    return {_field(name): words.plain(text) for name, text in problems.at_fields(error).items()}


def _field(name: str) -> str:
    for prefix, instead in (("payload.limits.", "limits:"), ("payload.above:", "above:")):
        if name.startswith(prefix):
            return f"{instead}{name.removeprefix(prefix)}".replace("payload.", "")
    return {"payload.until": "until"}.get(name, name if name in {"reason", "version"} else "")


def _form(
    request: PageRequest, row: Request, given: Mapping[str, Any], errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    fields = []
    for prefix, limits in (
        ("limits", row.payload.get("limits") or {}),
        *((f"above:{tenant}", found) for tenant, found in (row.payload.get("ancestors") or {}).items()),
    ):
        for key, count in sorted(limits.items()):
            name = f"{prefix}:{key}"
            of = prefix.removeprefix("above:") if prefix != "limits" else request.tenant.name
            fields.append(
                {
                    "name": name,
                    "label": _("%(what)s of %(tenant)s") % {"what": asks.dimension(key), "tenant": of},
                    "value": given.get(name, count),
                    "error": errors.get(name, ""),
                }
            )
    until = asks.until_of(row.payload)
    values = {
        "row": row,
        "what": asks.what(row),
        "fields": fields,
        "until_value": given.get("until", asks.day_of(until)),
        "has_until": row.payload.get("mode") != "set",
        "reason": given.get("reason", row.reason),
        "errors": errors,
        "back_url": _address(request, row),
        "breadcrumbs": [
            {"label": _("Requests"), "url": reverse("frontend:requests", kwargs={"tenant": request.tenant.name})},
            {"label": row.short_id, "url": _address(request, row)},
            {"label": _("Change"), "url": ""},
        ],
    }
    return render(request, "frontend/pages/requests/edit.html", values, status=status)
