"""Providers for operators: all of them, one with health, gaps, who waits and its hosts; testing, switching, giving up.

Auditors and approvers read; what changes goes through `tenants.operations.providers`. A test is only asked for here:
a worker calls the provider, and the page fetches what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.conf import settings
from django.contrib import messages
from django.db.models import Count, F, Q, QuerySet, Sum
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import asks, lists, plans, problems, words
from frontend.kernel import providers as kernel
from frontend.kernel.page import PageRequest, page
from tenants import access, provider_kinds
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Boundary, Event, Finding, GpuDevice, Hold, Host, Provider
from tenants.operations import providers
from tenants.states import HoldKind, HostState
from tenants.transactions import reading

SHOWN: Final = 100
"""Hosts, holders and findings on one page; the rest is behind a link."""
EVENTS: Final = 12
SWITCH: Final[Mapping[str, Any]] = {"enable": providers.enable, "disable": providers.disable}


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
    """Show one provider."""
    return _page(request, access.find(rows_of(), provider))


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
        "test": kernel.tested(row),
        "capabilities": kernel.capabilities(row),
        "hosts": [_host(host) for host in hosts],
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


def _host(host: Host) -> dict[str, Any]:
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
            "text": words.event(one.kind),
            "by": known.get(one.person_id, _("somebody")) if one.person_id else _("the system"),
            "at": one.at,
        }
        for one in rows
    ]


def twins(row: Provider) -> list[dict[str, str]]:
    """Return the same by command line and API."""
    command = (
        f"tenantry get provider/{row.name} -o yaml\n"
        f"tenantry provider test {row.name}\n"
        f"tenantry provider set-credential {row.name} token\n"
        f"tenantry provider {'disable' if row.enabled else 'enable'} {row.name}"
    )
    api = (
        f"GET  /api/v1/providers/{row.name}\n"
        f"POST /api/v1/providers/{row.name}/test\n"
        f"PUT  /api/v1/providers/{row.name}/credentials/token\n"
        f"POST /api/v1/providers/{row.name}/{'disable' if row.enabled else 'enable'}"
    )
    lines = [f"name: {row.name}", f"kind: {row.kind}", f"site: {row.site}", "config:"]
    for key, value in sorted(row.config.items()):
        lines += (
            [f"  {key}:", *(f"    - {each}" for each in value)] if isinstance(value, list) else [f"  {key}: {value}"]
        )
    return [
        {"label": "CLI", "text": command, "lang": "sh"},
        {"label": "API", "text": api, "lang": "http"},
        {"label": "YAML", "text": "\n".join(lines), "lang": "yaml"},
    ]


# --- testing and switching --------------------------------------------------------------------------------


@page("providers.test", methods=("POST",))
def test(request: PageRequest, provider: str) -> HttpResponse:
    """Ask for a test; the answer comes from a worker."""
    row = found(request, provider)
    providers.test(provider=row, actor=request.actor, now=request.now)
    if request.htmx:
        with reading(request.actor):
            return _tested(request, access.find(rows_of(), provider))
    return HttpResponseRedirect(f"{reverse('frontend:provider', kwargs={'provider': row.name})}#test")


@page("hosts.list")
def tested(request: PageRequest, provider: str) -> HttpResponse:
    """Return what the last test found; asks again by itself while one waits for a worker."""
    return _tested(request, access.find(rows_of(), provider))


def _tested(request: PageRequest, row: Provider) -> HttpResponse:
    values = {
        "row": row,
        "test": kernel.tested(row),
        "may_change": kernel.may(request.actor, "providers.test"),
        "simulated": kernel.is_simulated(row),
    }
    return render(request, "frontend/pages/providers/_test.html", values)


@page("providers.enable", methods=("POST",))
def enable(request: PageRequest, provider: str) -> HttpResponse:
    """Switch a provider on."""
    return _switch(request, provider, "enable", _("%(name)s is used again."))


@page("providers.disable", methods=("POST",))
def disable(request: PageRequest, provider: str) -> HttpResponse:
    """Switch a provider off."""
    return _switch(request, provider, "disable", _("Nothing is built at %(name)s any more until it is switched on."))


def _switch(request: PageRequest, provider: str, verb: str, text: str) -> HttpResponse:
    row = found(request, provider)
    try:
        SWITCH[verb](provider=row, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, text % {"name": row.name})
    return back(row)


# --- settings and secrets ---------------------------------------------------------------------------------


@page("providers.set_credential", methods=("POST",))
def set_credential(request: PageRequest, provider: str, credential: str) -> HttpResponse:
    """Replace one secret of a provider."""
    row = found(request, provider)
    try:
        providers.set_credential(
            provider=row,
            name=credential,
            secret=request.POST.get("secret", ""),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return back(row)
    providers.test(provider=row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s is stored, sealed. It is being tested.") % {"name": credential})
    return HttpResponseRedirect(f"{reverse('frontend:provider', kwargs={'provider': row.name})}#test")


@page("providers.update", methods=("GET", "POST"), own_blocks=True)
def edit(request: PageRequest, provider: str) -> HttpResponse:
    """Change site and settings of a provider."""
    row = found(request, provider)
    if request.method != "POST":
        return _form(request, row, {})
    config = dict(row.config)
    for one in _fields(row, request.POST, {}):
        if one["key"] == providers.RANGES:
            config[one["key"]] = ranges(one["value"])
        else:
            config[one["key"]] = one["value"]
    try:
        version = int(request.POST.get("version", "0"))
        providers.update(
            provider=row,
            site=request.POST.get("site", "").strip(),
            config=config,
            version=version,
            actor=request.actor,
            now=request.now,
        )
    except ValueError as error:
        raise InvalidSpec(_("Reload the page and try again."), field="version") from error
    except (InvalidSpec, Conflict) as error:
        return _form(request, row, problems.at_fields(error), status=problems.status_of(error))
    messages.success(request, _("Stored. A worker uses it from its next call on."))
    return back(row)


def ranges(text: str) -> list[str]:
    """Return the networks that were typed, one a line or with commas between."""
    return [each for each in text.replace(",", " ").split() if each]


def _fields(row: Provider, given: Mapping[str, Any], errors: Mapping[str, str]) -> list[dict[str, Any]]:
    described = provider_kinds.kind_of(row.kind)
    keys = [one.key for one in described.settings] if described is not None else []
    keys += [key for key, value in sorted(row.config.items()) if key not in keys and isinstance(value, str | list)]
    if providers.RANGES not in keys:
        keys.append(providers.RANGES)
    found_fields = []
    for key in keys:
        setting = described.setting(key) if described is not None else None
        stored = row.config.get(key, "")
        value = given.get(f"config.{key}", "\n".join(stored) if isinstance(stored, list) else str(stored))
        found_fields.append(
            {
                "key": key,
                "name": f"config.{key}",
                "label": label(row.kind, key),
                "sentence": _sentence(key, setting),
                "example": setting.example if setting is not None else "",
                "required": setting is not None and setting.required,
                "options": [{"value": v, "label": _(text)} for v, text in setting.choices] if setting else [],
                "is_long": key == providers.RANGES,
                "value": value,
                "error": errors.get(f"config.{key}", ""),
            }
        )
    return found_fields


def _sentence(key: str, setting: provider_kinds.Setting | None) -> str:
    if key == providers.RANGES:
        return _("Where its endpoints may be; the playground calls no other address. One network a line.")
    return _(setting.sentence) if setting is not None else ""


def _form(request: PageRequest, row: Provider, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    values = {
        "row": row,
        "fields": _fields(row, request.POST, errors),
        "site": request.POST.get("site", row.site),
        "errors": errors,
        "other_errors": [text for field, text in errors.items() if field != "site" and not field.startswith("config.")],
        "back_url": reverse("frontend:provider", kwargs={"provider": row.name}),
        "breadcrumbs": crumbs(row, _("Settings")),
    }
    with reading(request.actor):
        return render(request, "frontend/pages/providers/edit.html", values, status=status)


# --- giving one up ----------------------------------------------------------------------------------------


@page("providers.delete", methods=("GET", "POST"), own_blocks=True)
def delete(request: PageRequest, provider: str) -> HttpResponse:
    """Give up a provider: first what goes and what stands in the way, then its name typed."""
    row = found(request, provider)
    if request.method != "POST":
        return _plan(request, row)
    if request.POST.get("confirm") != row.name:
        return _plan(request, row, errors={"confirm": _("Type the provider's name to give it up.")}, status=422)
    try:
        providers.delete(provider=row, actor=request.actor, now=request.now)
    except ControlPlaneError as error:
        if error.status != Conflict.status:
            raise
        return _plan(request, row, status=error.status)
    messages.success(request, _("%(name)s was given up; its secrets are destroyed.") % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:providers"))


def _plan(
    request: PageRequest, row: Provider, *, errors: Mapping[str, str] | None = None, status: int = 200
) -> HttpResponse:
    """Say what giving it up takes away; the operation itself decides whether it may be, and is rolled back."""
    used: Mapping[str, int] = {}
    problem = ""
    try:
        plans.planned(lambda: providers.delete(provider=row, actor=request.actor, now=request.now), lambda _row: None)
    except Conflict as error:
        problem, used = error.detail, error.data.get("used", {})
    with reading(request.actor):
        counts = kernel.counts_of([row])[row.pk]
        values = {
            "row": row,
            "counts": counts,
            "devices": GpuDevice.objects.filter(provider=row, removed_at__isnull=True).count(),
            "credentials": row.credentials.count(),
            "tenants": list(
                Boundary.objects.filter(provider=row, released_at__isnull=True)
                .values(name=F("tenant__name")).annotate(n=Count("pk")).order_by("name")[:SHOWN]
            ),
            "used": used,
            "problem": problem,
            "errors": errors or {},
            "back_url": reverse("frontend:provider", kwargs={"provider": row.name}),
            "breadcrumbs": crumbs(row, _("Give up")),
        }  # fmt: skip
        return render(request, "frontend/pages/providers/delete.html", values, status=status)
