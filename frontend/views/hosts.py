"""Hosts: their list with a strip per GPU, and one host with who has it, over time, its health and its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design.host_time import Band, host_over_time
from frontend.design.strip import FOR_PLATFORM
from frontend.kernel import estate, estate_windows, hosts, lists
from frontend.kernel.page import PageRequest, page
from frontend.views.estate import frame
from tenants import access
from tenants.models import Finding, GpuDevice, Hold, Host, HostPlan
from tenants.states import HoldKind, HostState

BACK: Final = timedelta(days=3)
RANGES: Final[Mapping[str, timedelta]] = {
    "2d": timedelta(days=2),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
"""How far a picture over time looks ahead."""
DEFAULT_RANGE: Final = "7d"


def rows_of() -> QuerySet[Host]:
    """Return hosts with what their pages show."""
    return Host.objects.select_related("provider", "dedicated_tenant")


# --- list -------------------------------------------------------------------------------------------------


@page("hosts.list")
def listed(request: PageRequest) -> HttpResponse:
    """List hosts, a strip per GPU: filters in the address, pages by name, export."""
    filters = estate.Filters.of(request.GET)
    rows = estate.hosts(filters).select_related("provider")
    if text := request.GET.get("q", "").replace("\0", "").strip()[:100]:
        rows = rows.filter(Q(name__icontains=text) | Q(short_id=text.lower()))
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(rows, form)
    shown, after = estate.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = after
    strips = _strips(shown, filters, request)
    count = rows.count()
    values = {
        **frame(filters, request),
        "query": {"name": "q", "label": _("Name of a host"), "value": text},
        "is_filtered": filters.any or bool(text),
        "lines": [
            {
                "row": row,
                "state": hosts.state_of(row),
                "url": reverse("frontend:host", kwargs={"key": row.short_id}),
                "strips": strips.get(row.pk, []),
            }
            for row in shown
        ],
        "empty": not shown,
        "count": ngettext("%(n)d host", "%(n)d hosts", count) % {"n": count},
        "more_url": f"?{query.urlencode()}" if after else "",
        "previous_url": f"{request.path}{filters.query()}" if request.GET.get("after") else "",
        "map_url": f"{reverse('frontend:estate')}{filters.query()}",
        "legend": FOR_PLATFORM,
        "read_at": request.now,
        "is_plain_page": True,
        "columns": [
            {"key": "name", "label": _("Host")},
            {"key": "state", "label": _("State")},
            {"key": "gpus", "label": _("GPUs")},
            {"key": "room", "label": _("Room beside the GPUs"), "numeric": True},
        ],
    }
    return render(request, "frontend/pages/hosts/list.html", values)


def _strips(shown: Sequence[Host], filters: estate.Filters, request: PageRequest) -> dict[Any, list[Any]]:
    """Return host → a strip per GPU; two statements."""
    devices = GpuDevice.objects.filter(host__in=shown, removed_at__isnull=True).order_by("host_id", "index")
    if filters.product:
        devices = devices.filter(product=filters.product)
    kept = estate_windows.held(Hold.objects.filter(host__in=shown), now=request.now)
    found: dict[Any, list[Any]] = {}
    for device in devices:
        url = reverse("frontend:gpu", kwargs={"key": device.short_id})
        strip = estate_windows.strip(device, kept.get(device.pk, ()), now=request.now, url=url)
        found.setdefault(device.host_id, []).append(strip)
    return found


def _exported(rows: QuerySet[Host], form: str) -> HttpResponse:
    columns = [
        "id", "name", "provider", "site", "state", "healthy", "takes_new_things", "gpu_product", "gpus", "empty_gpus",
        "vcpu", "free_vcpu", "memory_gib", "free_memory_gib", "seen_at",
    ]  # fmt: skip
    body = [
        {
            "id": row.short_id,
            "name": row.name,
            "provider": row.provider.name,
            "site": row.provider.site,
            "state": row.state,
            "healthy": row.healthy,
            "takes_new_things": row.placeable,
            "gpu_product": row.gpu_product,
            "gpus": row.gpu_count,
            "empty_gpus": row.empty_gpus,
            "vcpu": row.total_vcpu,
            "free_vcpu": row.free_vcpu,
            "memory_gib": row.total_memory_gib,
            "free_memory_gib": row.free_memory_gib,
            "seen_at": row.seen_at,
        }
        for row in rows.order_by("name", "pk")[: lists.MOST_EXPORTED]
    ]
    return lists.exported(body, columns, name="hosts", form=form)


# --- one --------------------------------------------------------------------------------------------------


@page("hosts.read")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one host."""
    return shown(request, access.find(rows_of(), key))


def shown(request: PageRequest, row: Host) -> HttpResponse:
    """Return the page of a host, in the caller's read block."""
    chosen = request.GET.get("range", DEFAULT_RANGE)
    ahead = RANGES.get(chosen, RANGES[DEFAULT_RANGE])
    begin, end = request.now - min(BACK, ahead), request.now + ahead
    devices = list(GpuDevice.objects.filter(host=row, removed_at__isnull=True).order_by("index", "number"))
    kept = estate_windows.held(Hold.objects.filter(host=row), now=request.now)
    before = estate_windows.ended(estate_windows.past_of((one.pk for one in devices), since=begin))
    findings = list(Finding.objects.filter(host=row, resolved_at__isnull=True).order_by("-first_seen_at", "pk"))
    plans = list(HostPlan.objects.filter(host=row).order_by("-created_at", "-pk")[:5])
    running = next((plan for plan in plans if plan.state == "running"), None)
    gpus = [_gpu(one, kept.get(one.pk, []), before, begin, end, request) for one in devices]
    values = {
        "row": row,
        "state": hosts.state_of(row),
        "is_simulated": bool(row.provider.capabilities.get("simulated")),
        "steps": hosts.steps(row, request.actor),
        "gpus": gpus,
        "strips": [one["strip"] for one in gpus],
        "faulty": [one for one in gpus if not one["device"].healthy],
        "times": host_over_time([one["band"] for one in gpus], begin, end, request.now) if gpus else "",
        "ranges": [
            {"value": value, "label": label, "href": f"?range={value}#times"}
            for value, label in (("2d", _("2 days")), ("7d", _("7 days")), ("30d", _("30 days")))
        ],
        "range": chosen if chosen in RANGES else DEFAULT_RANGE,
        "conditions": hosts.conditions(row, findings, running),
        "findings": findings,
        "findings_url": frame_url("findings"),
        "plans": [{"row": plan, "url": hosts.plan_url(plan), "gone": _gone(plan)} for plan in plans],
        "running": running,
        "running_url": hosts.plan_url(running),
        "acceptance": hosts.acceptance(row),
        "holders": _holders(kept),
        "foreign": [one for each in kept.values() for one in each if one.state == HoldKind.FOREIGN.value],
        "facts": _facts(row),
        "history": hosts.history([row.pk, *(plan.pk for plan in plans)]),
        "legend": FOR_PLATFORM,
        "read_at": request.now,
        "is_plain_page": True,
        "breadcrumbs": crumbs(row),
    }
    return render(request, "frontend/pages/hosts/show.html", values)


def frame_url(name: str, **where: str) -> str:
    """Return the address of another page of the platform, `""` where there is none."""
    try:
        return reverse(f"frontend:{name}", kwargs=where)
    except NoReverseMatch:
        return ""


def crumbs(row: Host, last: str = "") -> list[dict[str, str]]:
    """Return the way to a host, or to a page below it."""
    found = [
        {"label": _("Estate"), "url": reverse("frontend:estate")},
        {
            "label": row.provider.site,
            "url": f"{reverse('frontend:hosts')}{estate.Filters(site=row.provider.site).query()}",
        },
        {"label": row.name, "url": reverse("frontend:host", kwargs={"key": row.short_id}) if last else ""},
    ]
    return [*found, {"label": last, "url": ""}] if last else found


def _gpu(
    device: GpuDevice,
    kept: Sequence[estate_windows.Kept],
    before: Sequence[estate_windows.Kept],
    begin: Any,
    end: Any,
    request: PageRequest,
) -> dict[str, Any]:
    url = reverse("frontend:gpu", kwargs={"key": device.short_id})
    name = _("GPU %(n)d") % {"n": device.index}
    past = [one for one in before if one.device == device.pk]
    return {
        "device": device,
        "url": url,
        "strip": estate_windows.strip(device, kept, now=request.now, url=url),
        "band": Band(name, url, device.slots, estate_windows.spans(kept, past, begin=begin, end=end)),
        "name": name,
    }


def _holders(kept: Mapping[Any, Sequence[estate_windows.Kept]]) -> list[dict[str, Any]]:
    """Return the tenants of a host with their things, by name."""
    found: dict[str, dict[str, Any]] = {}
    for one in (each for several in kept.values() for each in several if each.tenant):
        entry = found.setdefault(one.tenant, {"name": one.tenant, "title": one.tenant_title, "slots": 0, "things": {}})
        entry["slots"] += one.size
        entry["things"].setdefault(one.label, {"url": one.url, "until": one.until})
    return [found[name] for name in sorted(found)]


def _gone(plan: HostPlan) -> int:
    """Return how many of a plan's units have left, as its last pass stored it."""
    return sum(entry.get("state") in {"moved", "gone"} for entry in plan.touched)


def _facts(row: Host) -> list[dict[str, Any]]:
    kinds = [str(hosts.BOUNDARIES.get(kind, kind)) for kind in row.boundary_kinds]
    facts: list[dict[str, Any]] = [
        {
            "label": _("Provider"),
            "value": row.provider.name,
            "note": row.provider.site,
            "href": frame_url("provider", provider=row.provider.short_id),
        },
        {
            "label": _("GPUs"),
            "value": f"{row.gpu_count} × {row.gpu_product}" if row.gpu_product else str(row.gpu_count),
        },
        {
            "label": "vCPU",
            "value": _("%(free)d of %(all)d free") % {"free": row.free_vcpu, "all": row.total_vcpu},
        },
        {
            "label": _("Memory"),
            "value": _("%(free)d of %(all)d GiB free") % {"free": row.free_memory_gib, "all": row.total_memory_gib},
        },
        {"label": _("Takes"), "value": ", ".join(kinds) or _("anything")},
        {"label": _("Who chooses the place"), "value": str(hosts.BINDINGS.get(row.binding, row.binding))},
        {"label": _("At the provider"), "value": row.provider_ref, "mono": True, "copy_text": row.provider_ref},
    ]
    if row.unsettled:
        note = _("The provider has not said yet where they lie.")
        facts.append({"label": _("Not yet reported"), "value": str(row.unsettled), "note": note})
    if row.dedicated_tenant is not None:
        facts.append({"label": _("Kept for"), "value": row.dedicated_tenant.display_name})
    if row.state == HostState.REMOVED:
        facts.append({"label": _("Removed"), "value": _("it counts no longer")})
    return facts
