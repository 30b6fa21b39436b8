"""What operators do with a host: steps of a click, and pages that say what comes of it before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.kernel import commands, estate_windows, hosts, problems
from frontend.kernel.page import PageRequest, View, page
from frontend.views.hosts import crumbs, rows_of
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec, PreconditionFailed
from tenants.models import Allocation, GpuDevice, Hold, Host, HostPlan
from tenants.operations import inventory
from tenants.states import HoldKind, ServiceClass
from tenants.transactions import reading

Done = Callable[..., Any]
SAID: Final[Mapping[str, str | Promise]] = {
    "accept": gettext_lazy("Acceptance of %(host)s is asked for; it runs with the provider's next look."),
    "open": gettext_lazy("%(host)s is open."),
    "cordon": gettext_lazy("Nothing new is placed on %(host)s."),
    "uncordon": gettext_lazy("%(host)s is open again."),
    "remove": gettext_lazy("%(host)s is removed."),
}


def found(request: PageRequest, key: str) -> Host:
    """Return a host in a read block of its own. Raises `NotVisible`."""
    with reading(request.actor):
        return access.find(rows_of(), key)


def address(row: Host) -> str:
    """Return the page of a host."""
    return reverse("frontend:host", kwargs={"key": row.short_id})


def version_of(request: PageRequest) -> int | None:
    """Return the version that the form was made from, None without one."""
    text = request.POST.get("version", "")
    return int(text) if text.isdecimal() else None


def _step(key: str, operation_id: str, run: Done) -> View:
    @page(operation_id, methods=("POST",))
    def view(request: PageRequest, key: str) -> HttpResponse:
        row = found(request, key)
        try:
            run(host=row, actor=request.actor, now=request.now, version=version_of(request))
        except (Conflict, PreconditionFailed) as error:
            messages.error(request, error.detail)
        else:
            messages.success(request, str(SAID[view_key]) % {"host": row.name})
        return HttpResponseRedirect(address(row))

    view_key = key
    return view


accept = _step("accept", "hosts.accept", inventory.accept)
open_host = _step("open", "hosts.open", inventory.open_host)
cordon = _step("cordon", "hosts.cordon", inventory.cordon)
uncordon = _step("uncordon", "hosts.uncordon", inventory.uncordon)


# --- drain ------------------------------------------------------------------------------------------------


@page("hosts.preview_drain", own_blocks=True)
def drain(request: PageRequest, key: str) -> HttpResponse:
    """Say what a drain would do now: who moves where, who has to leave, when."""
    return _drain_page(request, found(request, key))


@page("hosts.drain", methods=("POST",))
def start_drain(request: PageRequest, key: str) -> HttpResponse:
    """Begin a drain."""
    row = found(request, key)
    try:
        _confirmed(request, row, needed=_holds_production(request, row))
        plan = inventory.drain(
            host=row,
            reason=request.POST.get("reason", ""),
            starts_at=moment(request, "starts_at"),
            ends_at=moment(request, "ends_at"),
            actor=request.actor,
            now=request.now,
            version=version_of(request),
        )
    except (InvalidSpec, Conflict, PreconditionFailed) as error:
        return _drain_page(request, row, error=error)
    messages.success(request, _("%(host)s is being emptied; its tenants are told.") % {"host": row.name})
    return HttpResponseRedirect(hosts.plan_url(plan) or address(row))


def _drain_page(request: PageRequest, row: Host, *, error: ControlPlaneError | None = None) -> HttpResponse:
    try:
        seen = inventory.preview_drain(host=row, actor=request.actor, now=request.now)
    except Conflict as trouble:
        seen, error = {"touched": [], "tenants": [], "move": 0, "no_room": 0, "wait": 0}, error or trouble
    with reading(request.actor):
        row = access.find(rows_of(), row.short_id)
        production = _production([entry["unit"] for entry in seen["touched"]])
        values = {
            **shared(request, row, error),
            "seen": seen,
            "touched": object_lines(seen["touched"]),
            "production": production,
            "must_type": row.name if production else "",
            "offered": row.state in {state.value for state in hosts.STEPS["drain"][3]},
            "twins": commands.twins(
                f'tenantry host drain {row.name} --reason "…" --at +24h',
                f"/hosts/{row.short_id}/drain",
                {"reason": "…"},
            ),
            "columns": [
                {"key": "what", "label": _("What")},
                {"key": "tenant", "label": _("Tenant")},
                {"key": "becomes", "label": _("What becomes of it")},
            ],
            "breadcrumbs": crumbs(row, _("Drain")),
        }
    return render(request, "frontend/pages/hosts/drain.html", values, status=status(error))


def _production(units: list[str]) -> list[str]:
    """Return the names of production things among some units; in the read block."""
    rows = Allocation.objects.filter(units__pk__in=units, service_class=ServiceClass.PRODUCTION.value)
    return sorted(set(rows.values_list("name", flat=True)))


def _holds_production(request: PageRequest, row: Host) -> bool:
    with reading(request.actor):
        units = Hold.objects.filter(host=row, kind=HoldKind.TENANT.value).values_list("unit_id", flat=True)
        return bool(_production([str(unit) for unit in units]))


def object_lines(touched: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a plan touches as lines of a table: what, whose, what becomes of it."""
    return [{**entry, "url": _object_url(entry), "word": _word(entry), "kind_word": _kind(entry)} for entry in touched]


def _object_url(entry: Mapping[str, Any]) -> str:
    try:
        return reverse(
            f"frontend:{entry['object_kind']}", kwargs={"tenant": entry["tenant_name"], "name": entry["object_id"]}
        )
    except NoReverseMatch:
        return ""


def _kind(entry: Mapping[str, Any]) -> str:
    words = {"endpoint": _("Endpoint"), "machine": _("Machine"), "namespace": _("Namespace")}
    return words.get(entry["object_kind"], _("Capacity"))


def _word(entry: Mapping[str, Any]) -> dict[str, str]:
    if entry["action"] == "stop":
        return {"tone": "warn", "icon": "hourglass", "text": _("stays until its tenant gives it back")}
    if entry["to"]:
        return {"tone": "ok", "icon": "arrow-right", "text": _("moves to %(host)s") % {"host": entry["to"]}}
    return {"tone": "bad", "icon": "octagon-x", "text": _("has nowhere to go now; waits for room")}


# --- maintenance, return, remove --------------------------------------------------------------------------


@page("hosts.maintenance", methods=("GET", "POST"))
def maintenance(request: PageRequest, key: str) -> HttpResponse:
    """Take an empty host out of use: what that means, then the deed."""
    if request.method != "POST":
        return _ask(request, access.find(rows_of(), key), "maintenance")
    row = found(request, key)

    def run(**who: Any) -> HostPlan:
        reason, end = request.POST.get("reason", ""), moment(request, "ends_at")
        return inventory.maintenance(host=row, reason=reason, ends_at=end, **who)

    return _do(request, row, "maintenance", run)


@page("hosts.return", methods=("GET", "POST"))
def bring_back(request: PageRequest, key: str) -> HttpResponse:
    """Bring a host back from maintenance: what that means, then the deed."""
    if request.method != "POST":
        return _ask(request, access.find(rows_of(), key), "return")
    row = found(request, key)
    return _do(
        request,
        row,
        "return",
        lambda **who: inventory.return_host(host=row, reason=request.POST.get("reason", ""), **who),
    )


@page("hosts.remove", methods=("GET", "POST"))
def remove(request: PageRequest, key: str) -> HttpResponse:
    """Take a host out for good: what goes, its name typed, then the deed."""
    if request.method != "POST":
        return _ask(request, access.find(rows_of(), key), "remove")
    row = found(request, key)

    def run(**who: Any) -> None:
        _confirmed(request, row, needed=True)
        inventory.remove(host=row, **who)

    return _do(request, row, "remove", run)


def _do(request: PageRequest, row: Host, key: str, run: Done) -> HttpResponse:
    """Run an operation and go where it leads, or show its page again with what was wrong."""
    try:
        plan = run(actor=request.actor, now=request.now, version=version_of(request))
    except (InvalidSpec, Conflict, PreconditionFailed) as error:
        with reading(request.actor):
            return _ask(request, access.find(rows_of(), row.short_id), key, error=error)
    said = SAID.get(key) or gettext_lazy("A plan for %(host)s runs.")
    messages.success(request, str(said) % {"host": row.name})
    return HttpResponseRedirect(hosts.plan_url(plan) or address(row))


TITLES: Final[Mapping[str, tuple[str | Promise, str | Promise, str | Promise]]] = {
    "maintenance": (
        gettext_lazy("Take it into maintenance"),
        gettext_lazy("Nothing is placed on it from now on. It must be empty of tenants; drain it otherwise."),
        gettext_lazy("Into maintenance"),
    ),
    "return": (
        gettext_lazy("Bring it back"),
        gettext_lazy("The provider is told first; then its GPUs are free and things are placed on it again."),
        gettext_lazy("Bring back"),
    ),
    "remove": (
        gettext_lazy("Remove it"),
        gettext_lazy("It leaves the estate for good: its GPUs count no longer. Its history stays."),
        gettext_lazy("Remove"),
    ),
}
COMMANDS: Final[Mapping[str, str]] = {
    "maintenance": 'tenantry host maintenance {name} --reason "…"',
    "return": 'tenantry host return {name} --reason "…"',
    "remove": "tenantry host remove {name}",
}


def _ask(request: PageRequest, row: Host, key: str, *, error: ControlPlaneError | None = None) -> HttpResponse:
    """Return the page that says what a step means; in the caller's read block."""
    title, lead, submit = TITLES[key]
    kept = [
        one for each in estate_windows.held(Hold.objects.filter(host=row), now=request.now).values() for one in each
    ]
    devices = GpuDevice.objects.filter(host=row, removed_at__isnull=True).count()
    path = f"/hosts/{row.short_id}" + ("" if key == "remove" else f"/{key}")
    tenants_things = [one for one in kept if one.tenant]
    values = {
        **shared(request, row, error),
        "key": key,
        "title": str(title),
        "lead": str(lead),
        "submit": str(submit),
        "offered": row.state in {state.value for state in hosts.STEPS[key][3]},
        "is_danger": key == "remove",
        "with_reason": key != "remove",
        "with_end": key == "maintenance",
        "must_type": row.name if key == "remove" else "",
        "devices": devices,
        "tenants_things": tenants_things,
        "in_the_way": bool(tenants_things) and key != "return",
        "others": [one for one in kept if not one.tenant],
        "twins": commands.twins(
            COMMANDS[key].format(name=row.name),
            path,
            None if key == "remove" else {"reason": "…"},
            method="DELETE" if key == "remove" else "POST",
        ),
        "breadcrumbs": crumbs(row, str(hosts.STEPS[key][0])),
    }
    return render(request, "frontend/pages/hosts/ask.html", values, status=status(error))


# --- forms ------------------------------------------------------------------------------------------------


def shared(request: PageRequest, row: Host, error: ControlPlaneError | None) -> dict[str, Any]:
    """Return what every page of a step shows: the host, what was given, what was wrong."""
    posted = request.POST if request.method == "POST" else {}
    return {
        "row": row,
        "state": hosts.state_of(row),
        "given": {name: posted.get(name, "") for name in ("reason", "starts_at", "ends_at")},
        "errors": problems.at_fields(error) if error is not None else {},
        "back_url": address(row),
        "zone": timezone.get_current_timezone_name(),
    }


def status(error: ControlPlaneError | None) -> int:
    """Return the status of a page with an error, or without one."""
    return 200 if error is None else problems.status_of(error)


def moment(request: PageRequest, name: str) -> datetime | None:
    """Return a moment of a form in the person's zone, None for an empty field. Raises `InvalidSpec` naming it."""
    text = request.POST.get(name, "").strip()
    if not text:
        return None
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise InvalidSpec(_("Give a day and a time."), field=name)
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def _confirmed(request: PageRequest, row: Host, *, needed: bool) -> None:
    """Raise `InvalidSpec` unless the host's name was typed where it has to be."""
    if needed and request.POST.get("confirm", "").strip() != row.name:
        raise InvalidSpec(_("Type the name of the host: %(name)s.") % {"name": row.name}, field="confirm")
