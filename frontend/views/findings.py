"""Findings for operators: what does not fit together, whom it touches, since when; adopt, repair, delete, ignore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import discrepancies, hosts, lists, problems, providers
from frontend.kernel.page import PageRequest, page
from tenants import access, finding_actions, findings
from tenants.errors import Conflict, InvalidSpec
from tenants.models import Finding, Provider
from tenants.operations import findings as finding_operations
from tenants.transactions import reading

STATES = ("open", "ignored", "settled", "all")
EXPORTED = (
    "id", "kind", "state", "detail", "provider", "host", "gpu", "blocks_placement", "first_seen_at", "last_seen_at",
    "resolved_at", "resolution",
)  # fmt: skip


def rows_of() -> QuerySet[Finding]:
    """Return the findings with what every page of them shows."""
    return Finding.objects.select_related("provider", "host", "device")


def address(row: Finding) -> str:
    """Return the page of a finding."""
    return reverse("frontend:finding", kwargs={"key": row.short_id})


# --- list -------------------------------------------------------------------------------------------------


@page("findings.list")
def listed(request: PageRequest) -> HttpResponse:
    """List findings: open ones unless the address asks for others; filters, pages by key, export."""
    rows = _filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""), moment="first_seen_at")
    query = request.GET.copy()
    query["after"] = found.after
    values = {
        "lines": [_line(row) for row in found.rows],
        "empty": not found.rows,
        "is_filtered": any(request.GET.get(key) for key in ("state", "group", "provider", "blocks")),
        "clear_url": request.path,
        "fields": _filters(request),
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "count": _counted(rows, found),
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "state", "label": _("State")},
            {"key": "where", "label": _("Where")},
            {"key": "since", "label": _("Since")},
            {"key": "seen", "label": _("Last seen")},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/findings/{template}.html", values)


def _filtered(request: PageRequest) -> QuerySet[Finding]:
    rows = rows_of()
    state = request.GET.get("state", "") or "open"
    if state == "settled":
        rows = rows.filter(resolved_at__isnull=False)
    elif state != "all":
        rows = rows.filter(resolved_at__isnull=True)
        rows = rows.filter(data__has_key="ignored") if state == "ignored" else rows.exclude(data__has_key="ignored")
    if (group := request.GET.get("group", "")) in discrepancies.GROUPS:
        rows = rows.filter(kind__in=discrepancies.kinds_of(group))
    if provider := request.GET.get("provider", ""):
        rows = rows.filter(provider__name=provider)
    if request.GET.get("blocks") == "yes":
        rows = rows.filter(blocks_placement=True)
    return rows


def _filters(request: PageRequest) -> list[dict[str, Any]]:
    given = request.GET
    states = [("", _("Open")), ("ignored", _("Ignored")), ("settled", _("Settled")), ("all", _("All"))]
    groups = [("", _("All")), *((key, str(text).partition(":")[0]) for key, text in discrepancies.GROUPS.items())]
    names = Provider.objects.filter(released_at__isnull=True).order_by("name").values_list("name", flat=True)
    return [
        _choice("state", _("State"), given.get("state", ""), states),
        _choice("group", _("Kind"), given.get("group", ""), groups),
        _choice("provider", _("Provider"), given.get("provider", ""), [("", _("All")), *((n, n) for n in names)]),
        _choice("blocks", _("Blocks"), given.get("blocks", ""), [("", _("All")), ("yes", _("Keeps room closed"))]),
    ]


def _choice(name: str, label: str, value: str, options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "value": value,
        "options": [{"value": key, "label": text} for key, text in options],
    }


def _counted(rows: QuerySet[Finding], found: lists.Page[Finding]) -> str:
    total = len(found.rows) if found.is_first and not found.after else rows.order_by().select_related(None).count()
    return ngettext("%(n)d finding", "%(n)d findings", total) % {"n": total}


def _line(row: Finding) -> dict[str, Any]:
    return {
        "row": row,
        "url": address(row),
        "title": str(discrepancies.meaning(row.kind).title),
        "state": discrepancies.state_of(row),
        "host_url": providers.host_address(row.host),
    }


def _exported(rows: QuerySet[Finding], form: str) -> HttpResponse:
    body = [
        {
            "id": row.short_id,
            "kind": row.kind,
            "state": discrepancies.state_of(row).key,
            "detail": row.detail,
            "provider": row.provider.name if row.provider is not None else "",
            "host": row.host.name if row.host is not None else "",
            "gpu": row.device.short_id if row.device is not None else "",
            "blocks_placement": row.blocks_placement,
            "first_seen_at": row.first_seen_at,
            "last_seen_at": row.last_seen_at,
            "resolved_at": row.resolved_at,
            "resolution": row.resolution,
        }
        for row in rows.order_by("-first_seen_at", "-id")[: lists.MOST_EXPORTED]
    ]
    return lists.exported(body, EXPORTED, name="findings", form=form)


# --- one --------------------------------------------------------------------------------------------------


@page("findings.read")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one finding: what it means, whom it touches, what may be done."""
    return _page(request, access.find(rows_of(), key))


def _page(
    request: PageRequest,
    row: Finding,
    *,
    status: int = 200,
    errors: Mapping[str, str] | None = None,
    confirms: bool = False,
) -> HttpResponse:
    means = discrepancies.meaning(row.kind)
    state = discrepancies.state_of(row)
    options = discrepancies.actions(row)
    said: Mapping[str, Any] = row.data.get("ignored") or row.data.get("asked") or {}
    values = {
        "row": row,
        "title": str(means.title),
        "sentence": str(means.sentence),
        "advice": str(means.advice),
        "group": str(discrepancies.GROUPS[means.group]),
        "state": state,
        "affected": discrepancies.affected(row),
        "host_url": providers.host_address(row.host),
        "gpu_url": providers.address("gpu", key=row.device.short_id) if row.device is not None else "",
        "provider_url": reverse("frontend:provider", kwargs={"provider": row.provider.name}) if row.provider else "",
        "data": [(name, value) for name, value in sorted(row.data.items()) if not isinstance(value, dict | list)],
        "said_reason": said.get("reason", ""),
        "said_at": parse_datetime(said["at"]) if said.get("at") else None,
        "may_act": row.resolved_at is None and providers.may(request.actor, "findings.resolve"),
        "actions": options,
        "chosen": request.POST.get("action") or _first(options),
        "confirms": confirms,
        "at_provider": _at_provider(row),
        "reason": request.POST.get("reason", ""),
        "errors": errors or {},
        "other_errors": [text for field, text in (errors or {}).items() if field not in {"action", "reason"}],
        "history": hosts.history([row.pk], words={}),
        "twins": _twins(row),
        "breadcrumbs": [
            {"label": _("Findings"), "url": reverse("frontend:findings")},
            {"label": row.short_id, "url": ""},
        ],
    }
    return render(request, "frontend/pages/findings/show.html", values, status=status)


def _first(options: Sequence[Mapping[str, Any]]) -> str:
    """Return the action that is chosen beforehand: never one that takes something away."""
    fitting = [str(one["value"]) for one in options if not one["disabled"]]
    return next(value for value in fitting if value in {"adopt", "repair"})


def _twins(row: Finding) -> list[dict[str, str]]:
    command = f'tenantry finding resolve {row.short_id} repair --reason "looked at it"'
    api = (
        f"POST /api/v1/findings/{row.short_id}/resolve\n"
        'Content-Type: application/json\n\n{"action": "repair", "reason": "looked at it"}'
    )
    return [{"label": "CLI", "text": command, "lang": "sh"}, {"label": "API", "text": api, "lang": "http"}]


@page("findings.resolve", methods=("POST",))
def resolve(request: PageRequest, key: str) -> HttpResponse:
    """Do something about a finding; deleting first says what goes."""
    with reading(request.actor):
        row = access.find(rows_of(), key)
        asked = request.POST.get("action") == "delete" and not request.POST.get("sure")
        if asked and row.resolved_at is None and finding_actions.choice(row, "delete").is_offered:
            return _page(request, row, confirms=True)
    try:
        version = int(request.POST["version"]) if request.POST.get("version", "").isdigit() else None
        finding_operations.resolve(
            finding=row,
            action=request.POST.get("action", ""),
            reason=request.POST.get("reason", ""),
            version=version,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        with reading(request.actor):
            fresh = access.find(rows_of(), key)
            return _page(request, fresh, status=problems.status_of(error), errors=problems.at_fields(error))
    done = request.POST["action"]
    messages.success(request, _DONE["taken-out" if done == "delete" and not _at_provider(row) else done]())
    return HttpResponseRedirect(address(row))


def _at_provider(row: Finding) -> bool:
    """Whether deleting takes something away at the provider, rather than out of our books."""
    return row.kind in {findings.ORPHAN, findings.LEFT_FILES}


_DONE: Mapping[str, Any] = {
    "ignore": lambda: _("Ignored. It stays silent while it is seen."),
    "repair": lambda: _("A worker looks again now; it closes by itself once it is gone."),
    "delete": lambda: _("A worker takes it away at its provider."),
    "taken-out": lambda: _("Taken out: it counts no longer."),
    "adopt": lambda: _("Adopted: what is there is what is written here now."),
}
