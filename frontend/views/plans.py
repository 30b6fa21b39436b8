"""Plans over hosts for operators: whom one touches and how hard, who was told, how far it is; begin now, abort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design.strip import FOR_PLATFORM
from frontend.kernel import asks, hosts, lists, providers, works
from frontend.kernel.page import PageRequest, page
from tenants import access, host_plans
from tenants.errors import Conflict, PreconditionFailed
from tenants.models import HostPlan
from tenants.operations import inventory
from tenants.transactions import reading

EXPORTED = (
    "id", "kind", "state", "host", "provider", "reason", "tenants", "touched", "over", "starts_at", "ends_at",
    "created_at",
)  # fmt: skip
STARTED_EARLY = frozenset({host_plans.DRAIN, host_plans.LAYOUT})


def rows_of() -> QuerySet[HostPlan]:
    """Return the plans with what every page of them shows."""
    return HostPlan.objects.select_related("host__provider")


def address(row: HostPlan) -> str:
    """Return the page of a plan."""
    return reverse("frontend:plan", kwargs={"key": row.short_id})


# --- list -------------------------------------------------------------------------------------------------


@page("plans.list")
def listed(request: PageRequest) -> HttpResponse:
    """List plans: running ones unless the address asks for others; filters, pages by key, export."""
    rows = _filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = found.after
    values = {
        "lines": [_line(row, request) for row in found.rows],
        "empty": not found.rows,
        "is_filtered": any(request.GET.get(key) for key in ("state", "kind", "host")),
        "clear_url": request.path,
        "fields": _filters(request),
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "estate_url": providers.address("estate"),
        "columns": [
            {"key": "plan", "label": _("Plan")},
            {"key": "state", "label": _("State")},
            {"key": "host", "label": _("Host")},
            {"key": "touched", "label": _("Touches"), "numeric": True},
            {"key": "over", "label": _("Over"), "numeric": True},
            {"key": "starts", "label": _("Begins")},
            {"key": "ends", "label": _("Ends")},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/plans/{template}.html", values)


def _filtered(request: PageRequest) -> QuerySet[HostPlan]:
    rows = rows_of()
    state = request.GET.get("state", "") or "running"
    if state == "notice":
        rows = rows.filter(state="running", starts_at__gt=request.now).exclude(observed__has_key="started")
    elif state != "all":
        rows = rows.filter(state=state)
    if (kind := request.GET.get("kind", "")) in works.KINDS:
        rows = rows.filter(kind=kind)
    if host := request.GET.get("host", ""):
        rows = rows.filter(Q(host__name=host) | Q(host__short_id=host))
    return rows


def _filters(request: PageRequest) -> list[dict[str, Any]]:
    states = [
        ("", _("Running")), ("notice", _("Notice runs")), ("done", _("Done")), ("cancelled", _("Cancelled")),
        ("failed", _("Failed")), ("all", _("All")),
    ]  # fmt: skip
    kinds = [("", _("All")), *((key, str(word)) for key, (word, _icon) in works.KINDS.items())]
    return [
        {"name": name, "label": label, "value": request.GET.get(name, ""),
         "options": [{"value": key, "label": text} for key, text in options]}
        for name, label, options in (("state", _("State"), states), ("kind", _("Kind"), kinds))
    ]  # fmt: skip


def _line(row: HostPlan, request: PageRequest) -> dict[str, Any]:
    return {
        "row": row,
        "url": address(row),
        "kind": works.kind(row),
        "state": works.badge(row, now=request.now),
        "host_url": providers.host_address(row.host),
        "over": sum(entry["state"] in works.OVER for entry in row.touched),
    }


def _exported(request: PageRequest, rows: QuerySet[HostPlan], form: str) -> HttpResponse:
    body = [
        {
            "id": row.short_id,
            "kind": row.kind,
            "state": works.stands(row, now=request.now),
            "host": row.host.name,
            "provider": row.host.provider.name,
            "reason": row.reason,
            "tenants": len({entry["tenant"] for entry in row.touched}),
            "touched": len(row.touched),
            "over": sum(entry["state"] in works.OVER for entry in row.touched),
            "starts_at": row.starts_at,
            "ends_at": row.ends_at,
            "created_at": row.created_at,
        }
        for row in rows.order_by("-created_at", "-id")[: lists.MOST_EXPORTED]
    ]
    return lists.exported(body, EXPORTED, name="plans", form=form)


# --- one --------------------------------------------------------------------------------------------------


@page("plans.read")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one plan; an htmx request gets the part that changes while it runs."""
    row = access.find(rows_of(), key)
    values = _values(request, row)
    template = "_state" if request.htmx else "show"
    return render(request, f"frontend/pages/plans/{template}.html", values)


def _values(request: PageRequest, row: HostPlan) -> dict[str, Any]:
    stands = works.stands(row, now=request.now)
    found = works.things(row, now=request.now)
    author = asks.names([row.author]).get(row.author, _("somebody"))
    left: Mapping[str, Any] = row.observed.get("left") or {}
    running = row.state == "running"
    may_start = stands == "notice" and row.kind in STARTED_EARLY and providers.may(request.actor, "plans.start")
    may_abort = running and stands != "cancelling" and row.kind != host_plans.RETURN
    may_abort = may_abort and providers.may(request.actor, "plans.cancel")
    return {
        "row": row,
        "kind": works.kind(row),
        "stands": stands,
        "state": works.badge(row, now=request.now),
        "is_running": running,
        "steps": works.steps(row, now=request.now),
        "things": found,
        "blast": works.blast(found),
        "notices": works.notices(row),
        "legend": FOR_PLATFORM,
        "pictures": works.pictures(row, now=request.now),
        "trouble": row.observed.get("trouble", "") if running else "",
        "left": left if running else {},
        "why": row.observed.get("why", ""),
        "waits_for": row.observed.get("waits_for", []) if running else [],
        "started_at": works.moment(row, "started"),
        "ended_at": works.moment(row, "ended"),
        "author": author,
        "host_url": providers.host_address(row.host),
        "provider_url": reverse("frontend:provider", kwargs={"provider": row.host.provider.name}),
        "simulated": providers.is_simulated(row.host.provider),
        "may_start": may_start,
        "may_abort": may_abort,
        "history": hosts.history([row.pk], words=_EVENTS),
        "twins": _twins(row, may_start=may_start, may_abort=may_abort),
        "columns": [
            {"key": "name", "label": _("What")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "happens", "label": _("What happens")},
            {"key": "used", "label": _("Requests in a day"), "numeric": True},
            {"key": "keys", "label": _("Keys in use"), "numeric": True},
            {"key": "state", "label": _("State")},
        ],
        "breadcrumbs": [
            {"label": _("Plans"), "url": reverse("frontend:plans")},
            {"label": row.short_id, "url": ""},
        ],
    }  # fmt: skip


_EVENTS: Mapping[str, Any] = {
    "host-plan.created": gettext_lazy("Planned"),
    "host-plan.started": gettext_lazy("Begun"),
    "host-plan.notice-ended": gettext_lazy("Begun before the end of the notice"),
    "host-plan.cancel-requested": gettext_lazy("Abort asked for"),
    "host-plan.carve": gettext_lazy("Carving began"),
    "host-plan.compare": gettext_lazy("Carved; the provider is looked at"),
    "host-plan.restore": gettext_lazy("Being taken back"),
    "host-plan.failed": gettext_lazy("Failed"),
    "host-plan.done": gettext_lazy("Done"),
    "host-plan.cancelled": gettext_lazy("Cancelled"),
}


def _twins(row: HostPlan, *, may_start: bool, may_abort: bool) -> list[dict[str, str]]:
    """Return the same by command line and API, with what can be done now."""
    command, api = [f"tenantry get plan/{row.short_id} --watch"], [f"GET  /api/v1/plans/{row.short_id}"]
    for verb, fits in (("start", may_start), ("cancel", may_abort)):
        if fits:
            command.append(f"tenantry host {verb}-plan {row.short_id}")
            api.append(f"POST /api/v1/plans/{row.short_id}/{verb}")
    return [
        {"label": "CLI", "text": "\n".join(command), "lang": "sh"},
        {"label": "API", "text": "\n".join(api), "lang": "http"},
    ]


# --- begin now, abort -------------------------------------------------------------------------------------


@page("plans.start", methods=("POST",))
def start(request: PageRequest, key: str) -> HttpResponse:
    """End the notice of a plan: it begins now, and its tenants are told again."""
    row = _found(request, key)
    try:
        begun = inventory.start_plan(plan=row, version=_version(request), actor=request.actor, now=request.now)
    except (Conflict, PreconditionFailed) as error:
        messages.error(request, error.detail)
    else:
        count = len({entry["tenant"] for entry in begun.touched})
        text = ngettext("It begins now. %(n)d tenant was told.", "It begins now. %(n)d tenants were told.", count)
        messages.success(request, text % {"n": count})
    return HttpResponseRedirect(address(row))


@page("plans.cancel", methods=("POST",))
def abort(request: PageRequest, key: str) -> HttpResponse:
    """Roll a running plan back."""
    row = _found(request, key)
    try:
        inventory.cancel_plan(plan=row, version=_version(request), actor=request.actor, now=request.now)
    except (Conflict, PreconditionFailed) as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("It is rolled back. What was moved stays where it is now."))
    return HttpResponseRedirect(address(row))


def _found(request: PageRequest, key: str) -> HostPlan:
    with reading(request.actor):
        return access.find(rows_of(), key)


def _version(request: PageRequest) -> int | None:
    text = request.POST.get("version", "")
    return int(text) if text.isdigit() else None
