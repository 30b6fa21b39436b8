"""One GPU: who has which part of it now and next, who had it before, how it is carved, what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.design.strip import FOR_PLATFORM
from frontend.design.strip import positions as slots_in_words
from frontend.kernel import commands, estate_stock, estate_windows, hosts, lists, problems
from frontend.kernel.page import PageRequest, page
from frontend.views.hosts import RANGES, crumbs
from tenants import access, gpu_catalogue
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Event, Finding, GpuDevice, Hold, HostPlan, MigDevice, UsageRecord
from tenants.operations import inventory
from tenants.policies import ROUTES
from tenants.transactions import reading

DEFAULT_RANGE: Final = "30d"
BEFORE_SHOWN: Final = 50
ERRORS: Final = ("host.gpu-faulty", "host.gpu-recovered", "host.gpu-replaced", "host.gpu-removed", "host.gpu-added")


def rows_of() -> QuerySet[GpuDevice]:
    """Return GPUs with what their page shows; also those that were taken out."""
    return GpuDevice.objects.select_related("host__provider")


@page("devices.read")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one GPU."""
    device = access.find(rows_of(), key)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(device, form, now=request.now)
    return _page(request, device)


@page("devices.repair", methods=("POST",))
def repair(request: PageRequest, key: str) -> HttpResponse:
    """Move what can be moved off a faulty GPU."""
    with reading(request.actor):
        device = access.find(rows_of(), key)
    reason = request.POST.get("reason", "")
    try:
        plan = inventory.repair_gpu(device=device, reason=reason, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        with reading(request.actor):
            return _page(request, access.find(rows_of(), key), error=error)
    messages.success(request, _("What can be moved off it is being moved; its tenants are told."))
    return HttpResponseRedirect(hosts.plan_url(plan) or reverse("frontend:gpu", kwargs={"key": device.short_id}))


def _page(request: PageRequest, device: GpuDevice, *, error: ControlPlaneError | None = None) -> HttpResponse:
    chosen = request.GET.get("range", DEFAULT_RANGE)
    reach = RANGES.get(chosen, RANGES[DEFAULT_RANGE])
    begin, end = request.now - reach, request.now + reach
    host = device.host
    kept = estate_windows.held(Hold.objects.filter(device=device), now=request.now).get(device.pk, [])
    past = estate_windows.ended(UsageRecord.objects.filter(device=device))
    before = past[:BEFORE_SHOWN]
    findings = list(Finding.objects.filter(device=device, resolved_at__isnull=True).order_by("-first_seen_at", "pk"))
    running = HostPlan.objects.filter(host=host, state="running").first()
    name = _("GPU %(n)d") % {"n": device.index}
    present = [one for one in kept if one.since <= request.now]
    values = {
        "device": device,
        "host": host,
        "name": name,
        "host_url": reverse("frontend:host", kwargs={"key": host.short_id}),
        "host_state": hosts.state_of(host),
        "is_simulated": bool(host.provider.capabilities.get("simulated")),
        "strip": estate_windows.strip(device, kept, now=request.now, name=name),
        "spans": estate_windows.spans(kept, past, begin=begin, end=end),
        "begin": begin,
        "end": end,
        "ranges": [
            {"value": value, "label": label, "href": f"?range={value}#times"}
            for value, label in (("2d", _("2 days")), ("7d", _("7 days")), ("30d", _("30 days")))
        ],
        "range": chosen if chosen in RANGES else DEFAULT_RANGE,
        "present": [_line(one) for one in present],
        "later": [_line(one) for one in kept if one.since > request.now],
        "before": [_line(one) for one in before],
        "more_before": len(past) > BEFORE_SHOWN,
        "fits": _fits(device),
        "layout": _layout(device, present),
        "findings": findings,
        "errors_before": _errors(device),
        "running": running,
        "running_url": hosts.plan_url(running),
        "layout_url": _layout_url(request, device) if running is None else "",
        "can_repair": _can_repair(request, device) and running is None,
        "errors": problems.at_fields(error) if error is not None else {},
        "given": request.POST.get("reason", "") if error is not None else "",
        "api_call": commands.call(f"/devices/{device.short_id}/repair", {"reason": "…"}),
        "facts": _facts(device),
        "legend": FOR_PLATFORM,
        "read_at": request.now,
        "is_plain_page": True,
        "holder_columns": [
            {"key": "what", "label": _("What")},
            {"key": "where", "label": _("Slots")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "from", "label": _("From")},
            {"key": "until", "label": _("Until")},
        ],
        "breadcrumbs": crumbs(host, name),
    }
    return render(
        request, "frontend/pages/devices/show.html", values, status=200 if error is None else problems.status_of(error)
    )


def _can_repair(request: PageRequest, device: GpuDevice) -> bool:
    faulty = not device.healthy and device.removed_at is None
    return faulty and access.allowed(request.actor, None, ROUTES["devices.repair"])


def _layout_url(request: PageRequest, device: GpuDevice) -> str:
    """Return where its layout is changed, `""` where that cannot be."""
    host = device.host
    offered = host.state in {state.value for state in hosts.STEPS["layout"][3]}
    if device.layout_change == "dynamic" or device.removed_at is not None or not device.healthy or not offered:
        return ""
    if not hosts.may_carve(host):
        return ""
    if not access.allowed(request.actor, None, ROUTES["hosts.layout"]):
        return ""
    return reverse("frontend:host-layout", kwargs={"key": host.short_id})


def _line(one: estate_windows.Kept) -> dict[str, Any]:
    return {"kept": one, "where": slots_in_words(one.start, one.size)}


def _fits(device: GpuDevice) -> list[estate_stock.Fit]:
    """Return the sizes that fit on it now, each alone."""
    if not device.placeable:
        return []
    return [fit for fit in estate_stock.sizes(device.product, {device.free: 1}) if fit.count]


def _layout(device: GpuDevice, present: Sequence[estate_windows.Kept]) -> list[dict[str, Any]]:
    """Return the parts that the provider reports, each with whom we know to be on it."""
    reported = MigDevice.objects.filter(device=device).order_by("start")
    return [
        {
            "profile": part.profile,
            "where": slots_in_words(part.start, part.size),
            "seen_at": part.seen_at,
            "holder": next((one for one in present if one.start == part.start and one.size == part.size), None),
        }
        for part in reported
    ]


def _errors(device: GpuDevice) -> list[dict[str, Any]]:
    """Return what happened to the GPU itself, the latest first."""
    rows = Event.objects.filter(object_id=device.host_id, kind__in=ERRORS, data__device=device.provider_ref)
    return [
        {
            "at": row.at,
            "what": str(hosts.WORDS[row.kind]),
            "message": str(row.data.get("message") or ""),
        }
        for row in rows.order_by("-at", "-seq")[: hosts.EVENTS_SHOWN]
    ]


def _facts(device: GpuDevice) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = [
        {"label": _("Product"), "value": device.product},
        {"label": _("Memory"), "value": _memory(device.product)},
        {"label": _("Slots"), "value": str(device.slots)},
        {
            "label": _("Layout"),
            "value": _("carved when asked for") if device.layout_change == "dynamic" else _("changed by a plan"),
        },
        {
            "label": _("Takes new things"),
            "value": _("yes") if device.placeable else _("no"),
            "note": "" if device.placeable else _why_shut(device),
        },
        {"label": _("At the provider"), "value": device.provider_ref, "mono": True, "copy_text": device.provider_ref},
        {"label": _("Number in the ledger"), "value": str(device.number)},
    ]
    if not device.windows_trusted:
        note = _("Only whole until the provider has shown a layout that fits our table.")
        facts.append({"label": _("Parts"), "value": _("not sold yet"), "note": note})
    if device.unsettled:
        note = _("The provider has not said yet where they lie.")
        facts.append({"label": _("Not yet reported"), "value": str(device.unsettled), "note": note})
    return facts


def _memory(product: str) -> str:
    try:
        return f"{numbers.number(gpu_catalogue.product(product).total_memory_gib)} GiB"
    except gpu_catalogue.UnknownProduct:
        return numbers.UNKNOWN


def _why_shut(device: GpuDevice) -> str:
    if device.removed_at is not None:
        return _("It was taken out.")
    if not device.healthy:
        return _("It is faulty.")
    return _("Its host is not available.") if not device.host.placeable else _("A finding keeps it out of use.")


def _exported(device: GpuDevice, form: str, *, now: datetime) -> HttpResponse:
    columns = ["slots", "state", "what", "profile", "tenant", "from", "until"]
    kept = estate_windows.held(Hold.objects.filter(device=device), now=now)
    past = estate_windows.ended(UsageRecord.objects.filter(device=device), most=lists.MOST_EXPORTED)
    body = [
        {
            "slots": f"{one.start}-{one.start + one.size - 1}",
            "state": str(one.state),
            "what": one.label,
            "profile": one.profile,
            "tenant": one.tenant,
            "from": one.since,
            "until": one.until,
        }
        for one in [*kept.get(device.pk, []), *past]
    ]
    return lists.exported(body, columns, name=f"{device.short_id}-holders", form=form)
