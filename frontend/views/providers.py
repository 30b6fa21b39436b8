"""Providers for operators, auditors and approvers: all of them, and one with health, gaps, who waits, its hosts.

What changes one is in `provider_changes`, what connects one in `connect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.conf import settings
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.kernel import asks, lists, words
from frontend.kernel import providers as kernel
from frontend.kernel.page import PageRequest, page
from tenants import access, provider_kinds
from tenants.models import Boundary, Event, Finding, Hold, Host, Provider
from tenants.operations import providers
from tenants.states import HoldKind, HostState
from tenants.transactions import reading

SHOWN: Final = 50
"""Hosts, holders and findings on one page; the rest is behind a link."""
EVENTS: Final = 12

HAPPENED: Final[Mapping[str, str | Promise]] = {
    "provider.created": gettext_lazy("Registered"),
    "provider.updated": gettext_lazy("Site or settings changed"),
    "provider.enabled": gettext_lazy("Switched on"),
    "provider.disabled": gettext_lazy("Switched off"),
    "provider.deleted": gettext_lazy("Given up"),
    "provider.credential-set": gettext_lazy("A secret was stored"),
    "provider.credential-removed": gettext_lazy("A secret was destroyed"),
    "provider.test-requested": gettext_lazy("A test was asked for"),
    "provider.tested": gettext_lazy("Tested"),
    "provider.isolation-restored": gettext_lazy("What isolates tenants was put back"),
    "provider.unreachable": gettext_lazy("It stopped answering"),
    "provider.answers": gettext_lazy("It answers again"),
}


def rows_of() -> QuerySet[Provider]:
    """Return the providers that pages show."""
    return Provider.objects.all()


def found(request: PageRequest, key: str) -> Provider:
    """Return one provider by name, short id or id, in a read block of its own. Raises `NotVisible`."""
    with reading(request.actor):
        return access.find(rows_of(), key)


def back(row: Provider, route: str = "provider") -> HttpResponse:
    """Return to a page of a provider after a change."""
    return HttpResponseRedirect(reverse(f"frontend:{route}", kwargs={"provider": row.name}))


# --- all of them ------------------------------------------------------------------------------------------


@page("hosts.list")
def listed(request: PageRequest) -> HttpResponse:
    """List providers: how they are, what they have, who waits; filters in the address, export."""
    rows = _filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, rows, form)
    shown = lists.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = shown.after
    lines = _lines(shown.rows, request)
    values = {
        "lines": lines,
        "empty": not lines,
        "is_filtered": any(request.GET.get(key) for key in ("kind", "site", "state")),
        "clear_url": request.path,
        "fields": _filters(request),
        "more_url": f"?{query.urlencode()}" if shown.after else "",
        "previous_url": "" if shown.is_first else request.path,
        "may_connect": kernel.may(request.actor, "providers.create"),
        "columns": [
            {"key": "name", "label": _("Provider")},
            {"key": "health", "label": _("Health")},
            {"key": "hosts", "label": _("Hosts open"), "numeric": True},
            {"key": "gpus", "label": _("GPUs"), "numeric": True},
            {"key": "empty", "label": _("Empty GPUs"), "numeric": True},
            {"key": "waiting", "label": _("Under way"), "numeric": True},
            {"key": "findings", "label": _("Findings"), "numeric": True},
            {"key": "seen", "label": _("Last read")},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/providers/{template}.html", values)


def _filtered(request: PageRequest) -> QuerySet[Provider]:
    rows = rows_of()
    if kind := request.GET.get("kind", ""):
        rows = rows.filter(kind=kind)
    if site := request.GET.get("site", ""):
        rows = rows.filter(site=site)
    state = request.GET.get("state", "")
    if state == "gone":
        return rows.filter(released_at__isnull=False)
    rows = rows.filter(released_at__isnull=True)
    conditions = {"on": Q(enabled=True), "off": Q(enabled=False), "down": Q(enabled=True, healthy=False)}
    return rows.filter(conditions[state]) if state in conditions else rows


def _filters(request: PageRequest) -> list[dict[str, Any]]:
    every = {"value": "", "label": _("All")}
    known = list(rows_of().order_by("site").values_list("site", "kind").distinct())
    sites = sorted({site for site, _kind in known})
    kinds = sorted({kind for _site, kind in known})
    states = [
        ("on", _("Switched on")),
        ("off", _("Switched off")),
        ("down", _("Not answering")),
        ("gone", _("Given up")),
    ]
    return [
        _choice("site", _("Site"), request, [every, *({"value": site, "label": site} for site in sites)]),
        _choice("kind", _("Kind"), request, [every, *({"value": kind, "label": title(kind)} for kind in kinds)]),
        _choice("state", _("State"), request, [every, *({"value": key, "label": text} for key, text in states)]),
    ]


def _choice(name: str, label: str, request: PageRequest, options: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {"name": name, "label": label, "value": request.GET.get(name, ""), "options": options}


def title(kind: str) -> str:
    """Return a kind of provider as people call it."""
    described = provider_kinds.kind_of(kind)
    return _(described.title) if described is not None else kind


def _lines(rows: Sequence[Provider], request: PageRequest) -> list[dict[str, Any]]:
    counted = kernel.counts_of(rows)
    return [
        {
            "row": row,
            "url": reverse("frontend:provider", kwargs={"provider": row.name}),
            "kind": title(row.kind),
            "counts": counted[row.pk],
            "health": kernel.health(row, counted[row.pk], now=request.now),
            "simulated": kernel.is_simulated(row),
        }
        for row in rows
    ]


def _exported(request: PageRequest, rows: QuerySet[Provider], form: str) -> HttpResponse:
    columns = [
        "name", "short_id", "kind", "site", "health", "enabled", "simulated", "hosts", "hosts_open", "gpus",
        "empty_gpus", "under_way", "findings", "last_read_at",
    ]  # fmt: skip
    body = [
        {
            "name": line["row"].name,
            "short_id": line["row"].short_id,
            "kind": line["row"].kind,
            "site": line["row"].site,
            "health": line["health"].key,
            "enabled": line["row"].enabled,
            "simulated": line["simulated"],
            "hosts": line["counts"].hosts,
            "hosts_open": line["counts"].open,
            "gpus": line["counts"].gpus,
            "empty_gpus": line["counts"].empty,
            "under_way": line["counts"].building,
            "findings": line["counts"].findings,
            "last_read_at": line["row"].snapshot_at,
        }
        for line in _lines(list(rows.order_by("-created_at", "-id")[: lists.MOST_EXPORTED]), request)
    ]
    return lists.exported(body, columns, name="providers", form=form)


# --- one --------------------------------------------------------------------------------------------------


@page("hosts.list")
def show(request: PageRequest, provider: str) -> HttpResponse:
    """Show one provider; an htmx request gets what the last test found, again and again while one waits."""
    row = access.find(rows_of(), provider)
    return last_test(request, row) if request.htmx else _page(request, row)


def last_test(request: PageRequest, row: Provider) -> HttpResponse:
    """Return the part of the page that has the last test."""
    values = {
        "row": row,
        "test": kernel.tested(row, now=request.now),
        "simulated": kernel.is_simulated(row),
    }
    return render(request, "frontend/pages/providers/_test.html", values)


def _page(
    request: PageRequest, row: Provider, *, status: int = 200, errors: Mapping[str, str] | None = None
) -> HttpResponse:
    counts = kernel.counts_of([row])[row.pk]
    how = kernel.health(row, counts, now=request.now)
    may_change = kernel.may(request.actor, "providers.update") and row.released_at is None
    hosts = list(Host.objects.filter(provider=row).exclude(state=HostState.REMOVED.value).order_by("name")[:SHOWN])
    values = {
        "row": row,
        "kind": title(row.kind),
        "health": how,
        "counts": counts,
        "simulated": kernel.is_simulated(row),
        "test": kernel.tested(row, now=request.now),
        "capabilities": kernel.capabilities(row),
        "lots": kernel.lots(row),
        "hosts": [host_line(host) for host in hosts],
        "more_hosts": max(0, counts.hosts - len(hosts)),
        "estate_url": kernel.address("estate"),
        "foreign": foreign_on(row),
        "waiting": _waiting(row),
        "findings": _findings(row),
        "findings_url": f"{kernel.address('findings')}?provider={row.name}",
        "settings": [
            {"label": label(row.kind, key), "value": shown(value)} for key, value in sorted(row.config.items())
        ],
        "credentials": _credentials(row),
        "limits": _limits(row),
        "events": _events(row),
        "may_change": may_change,
        "errors": errors or {},
        "connect_url": reverse("frontend:connect", kwargs={"provider": row.name}) if may_change else "",
        "unfinished": how.key != "draft" and bool(counts.joining or counts.accepted),
        "twins": twins(row),
        "breadcrumbs": crumbs(row),
        "host_columns": [
            {"key": "name", "label": _("Host")},
            {"key": "state", "label": _("State")},
            {"key": "gpus", "label": _("GPUs")},
            {"key": "empty", "label": _("Empty"), "numeric": True},
            {"key": "vcpu", "label": _("Free CPUs"), "numeric": True},
            {"key": "memory", "label": _("Free memory"), "numeric": True},
        ],
    }
    return render(request, "frontend/pages/providers/show.html", values, status=status)


def crumbs(row: Provider, *rest: str) -> list[dict[str, str]]:
    """Return the way to a page of a provider; `rest` names the pages below it, the last without address."""
    here = "" if not rest else reverse("frontend:provider", kwargs={"provider": row.name})
    above = [{"label": _("Providers"), "url": reverse("frontend:providers")}, {"label": row.name, "url": here}]
    return [*above, *({"label": each, "url": ""} for each in rest)]


def host_line(host: Host) -> dict[str, Any]:
    """Return what a list of hosts says of one."""
    return {
        "row": host,
        "url": kernel.host_address(host),
        "state": kernel.host_state(host.state),
        "gpus": f"{host.gpu_count} × {host.gpu_product}" if host.gpu_product else str(host.gpu_count),
    }


def foreign_on(row: Provider) -> list[dict[str, Any]]:
    """Return what uses GPUs of a provider past this installation, one line each."""
    holds = Hold.objects.filter(host__provider=row, kind=HoldKind.FOREIGN.value)
    grouped = holds.values("note", "host__name").annotate(slots=Sum("size"), gpus=Count("device", distinct=True))
    return [
        {"name": one["note"] or _("unnamed"), "host": one["host__name"], "slots": one["slots"], "gpus": one["gpus"]}
        for one in grouped.order_by("host__name", "note")[:SHOWN]
    ]


def _waiting(row: Provider) -> list[dict[str, Any]]:
    """Return what is being built or given back there, longest first."""
    waiting: list[dict[str, Any]] = []
    for word, model in kernel.PRODUCTS:
        rows: Any = model._base_manager.filter(
            boundary__provider=row, released_at__isnull=True, phase__in=kernel.UNDER_WAY
        )
        waiting += [
            {
                "name": one.name,
                "tenant": one.tenant.name,
                "phase": one.phase,
                "since": one.deletion_requested_at or one.created_at,
                "url": reverse(f"frontend:{word}", kwargs={"tenant": one.tenant.name, "name": one.name}),
            }
            for one in rows.select_related("tenant").order_by("created_at")[:SHOWN]
        ]
    boundaries = Boundary.objects.filter(provider=row, released_at__isnull=True, phase__in=kernel.UNDER_WAY)
    for each in boundaries.select_related("tenant").order_by("created_at")[:SHOWN]:
        since = each.deletion_requested_at or each.created_at
        name = _("isolation of %(tenant)s") % {"tenant": each.tenant.name}
        waiting.append({"name": name, "tenant": each.tenant.name, "phase": each.phase, "since": since, "url": ""})
    return sorted(waiting, key=lambda one: one["since"])[:SHOWN]


def _findings(row: Provider) -> list[dict[str, Any]]:
    rows = Finding.objects.filter(provider=row, resolved_at__isnull=True).order_by("first_seen_at")[:5]
    return [{"row": each, "url": kernel.address("finding", key=each.short_id)} for each in rows]


def _credentials(row: Provider) -> list[dict[str, Any]]:
    """Return which secrets there are and how old they are, never what they hold."""
    described = provider_kinds.kind_of(row.kind)
    there = {one.name: one for one in row.credentials.defer("sealed").order_by("name")}
    wanted = {one.name: one for one in (described.credentials if described else ())}
    return [
        {
            "name": name,
            "label": _(wanted[name].label) if name in wanted else name,
            "sentence": _(wanted[name].sentence) if name in wanted else "",
            "set_at": there[name].created_at if name in there else None,
            "url": reverse("frontend:provider-credential", kwargs={"provider": row.name, "credential": name}),
        }
        for name in sorted({*there, *wanted})
    ]


def label(kind: str, key: str) -> str:
    """Return what a setting of a provider is called."""
    if key == providers.RANGES:
        return _("Networks of endpoints")
    described = provider_kinds.kind_of(kind)
    setting = described.setting(key) if described is not None else None
    return _(setting.label) if setting is not None else key


def shown(value: Any) -> str:
    """Return a setting's value for people."""
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return "" if value is None else str(value)


def _limits(row: Provider) -> list[dict[str, str]]:
    slots = max(1, int(settings.TENANTRY_WORKER_SLOTS) // 2)
    return [
        {"label": _("Read every"), "value": _("%(n)s seconds") % {"n": round(settings.TENANTRY_INVENTORY_S)}},
        {
            "label": _("At once"),
            "value": ngettext("%(n)d call of each worker", "%(n)d calls of each worker", slots) % {"n": slots},
            "note": _("Half of what a worker can do, so that a slow provider holds up its own things only."),
        },
        {
            "label": _("A call may take"),
            "value": _("%(n)s seconds") % {"n": shown(row.config.get("deadline_s")) or "10"},
        },
        {
            "label": _("Left alone"),
            "value": _("after 5 readings in a row that failed"),
            "note": _("For 2 seconds first, then longer, at most a minute."),
        },
    ]


def _events(row: Provider) -> list[dict[str, Any]]:
    rows = list(Event.objects.filter(object_id=row.pk).order_by("-seq")[:EVENTS])
    known = asks.names(one.person_id for one in rows if one.person_id is not None)
    return [
        {
            "text": str(HAPPENED.get(one.kind) or words.event(one.kind)),
            "by": known.get(one.person_id, _("somebody")) if one.person_id else _("a worker"),
            "at": one.at,
        }
        for one in rows
    ]


def twins(row: Provider) -> list[dict[str, str]]:
    """Return the same by command line and API."""
    command, api = [f"tenantry get provider/{row.name} -o yaml"], [f"GET  /api/v1/providers/{row.name}"]
    if row.released_at is None:
        verb = "disable" if row.enabled else "enable"
        command += [
            f"tenantry provider test {row.name}",
            f"tenantry provider set-credential {row.name} token",
            f"tenantry provider {verb} {row.name}",
        ]
        api += [
            f"POST /api/v1/providers/{row.name}/test",
            f"PUT  /api/v1/providers/{row.name}/credentials/token",
            f"POST /api/v1/providers/{row.name}/{verb}",
        ]
    lines = [f"name: {row.name}", f"kind: {row.kind}", f"site: {row.site}", "config:"]
    for key, value in sorted(row.config.items()):
        lines += (
            [f"  {key}:", *(f"    - {each}" for each in value)] if isinstance(value, list) else [f"  {key}: {value}"]
        )
    return [
        {"label": "CLI", "text": "\n".join(command), "lang": "sh"},
        {"label": "API", "text": "\n".join(api), "lang": "http"},
        {"label": "YAML", "text": "\n".join(lines), "lang": "yaml"},
    ]
