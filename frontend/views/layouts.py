"""Changing how the GPUs of a host are carved: choose, see who is concerned and what it looks like after, begin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext as _

from frontend.design.strip import FOR_PLATFORM
from frontend.kernel import commands, estate_stock, estate_windows, hosts, works
from frontend.kernel.page import PageRequest, page
from frontend.views.host_steps import address, found, moment, object_lines, shared, status, version_of
from frontend.views.hosts import crumbs, rows_of
from tenants import access, geometry, gpu_catalogue, layout_plans
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec, PreconditionFailed
from tenants.layout_plans import Gpu
from tenants.models import GpuDevice, Hold, Host
from tenants.operations import layouts
from tenants.transactions import reading

KEEP: Final = "keep"
WHOLE: Final = "whole"
MIX: Final = "mix"
_ALIKE: Final = re.compile(r"^(\d{1,2})x([0-9a-z][0-9a-z.+-]{0,39})$")
MOST_PARTS: Final = 16


@page("hosts.preview_layout", own_blocks=True)
def choose(request: PageRequest, key: str) -> HttpResponse:
    """Choose layouts; once some are chosen, say what the change would do now."""
    return _page(request, found(request, key), request.GET)


@page("hosts.layout", methods=("POST",))
def begin(request: PageRequest, key: str) -> HttpResponse:
    """Begin a layout change."""
    row = found(request, key)
    try:
        plan = layouts.change_layout(
            host=row,
            layouts=asked(request.POST),
            evict=bool(request.POST.get("evict")),
            reason=request.POST.get("reason", ""),
            starts_at=moment(request, "starts_at"),
            actor=request.actor,
            now=request.now,
            version=version_of(request),
        )
    except (InvalidSpec, Conflict, PreconditionFailed) as error:
        return _page(request, row, request.POST, error=error)
    messages.success(request, _("The layout of %(host)s is being changed; its tenants are told.") % {"host": row.name})
    return HttpResponseRedirect(hosts.plan_url(plan) or address(row))


def asked(given: QueryDict) -> dict[str, list[str]]:
    """Return GPU → profiles of a form: `layout:<index>` is `keep`, `whole`, `mix` or `7x1g.10gb`."""
    parts = [part for part in re.split(r"[\s,;]+", given.get("mix", "").strip()) if part][: MOST_PARTS + 1]
    wanted: dict[str, list[str]] = {}
    for name, value in given.items():
        index, alike = name.removeprefix("layout:"), _ALIKE.match(str(value))
        if index == name or value in {KEEP, ""}:
            continue
        if value == WHOLE:
            wanted[index] = []
        elif value == MIX:
            wanted[index] = parts
        elif alike is not None:
            wanted[index] = [alike[2]] * min(int(alike[1]), MOST_PARTS)
    return wanted


def _page(request: PageRequest, row: Host, given: QueryDict, *, error: ControlPlaneError | None = None) -> HttpResponse:
    wanted, evict = asked(given), bool(given.get("evict"))
    seen: Mapping[str, Any] | None = None
    if wanted:
        try:
            seen = layouts.preview_layout(host=row, layouts=wanted, evict=evict, actor=request.actor, now=request.now)
        except (Conflict, InvalidSpec) as trouble:
            error = error or trouble
    with reading(request.actor):
        row = access.find(rows_of(), row.short_id)
        devices = list(GpuDevice.objects.filter(host=row, removed_at__isnull=True).order_by("index", "number"))
        shown = layout_plans.shown_on(device.pk for device in devices)
        held = estate_windows.held(Hold.objects.filter(host=row), now=request.now)
        gpus = [Gpu.from_json(one) for one in seen["gpus"]] if seen else []
        values = {
            **shared(request, row, error),
            "seen": seen,
            "touched": object_lines(seen["touched"]) if seen else [],
            "offered": row.state in {state.value for state in hosts.STEPS["layout"][3]},
            "carvable": any(device.layout_change != "dynamic" for device in devices),
            "choices": [
                {
                    "name": f"layout:{device.index}",
                    "label": _("GPU %(n)d") % {"n": device.index},
                    "sentence": _("Now: %(layout)s") % {"layout": works.layout_words(shown[device.pk])},
                    "value": given.get(f"layout:{device.index}", KEEP),
                    "options": _options(device.product),
                }
                for device in devices
                if device.layout_change != "dynamic"
            ],
            "hidden": [(name, value) for name, value in given.items() if name.startswith("layout:") or name == "mix"],
            "mix": given.get("mix", ""),
            "evict": evict,
            "pictures": [
                {
                    "now": estate_windows.strip(device, held.get(device.pk, ()), now=request.now),
                    "before": works.layout_strip(gpu.index, gpu.product, device.slots, gpu.before),
                    "after": works.layout_strip(gpu.index, gpu.product, device.slots, gpu.after),
                }
                for gpu in gpus
                if gpu.differs
                for device in devices
                if device.pk == gpu.id
            ],
            "legend": FOR_PLATFORM,
            "twins": _twins(row, wanted, evict=evict),
            "columns": [
                {"key": "what", "label": _("What")},
                {"key": "tenant", "label": _("Tenant")},
                {"key": "becomes", "label": _("What becomes of it")},
            ],
            "breadcrumbs": crumbs(row, _("Change layout")),
        }
    return render(request, "frontend/pages/hosts/layout.html", values, status=status(error))


def _options(product: str) -> list[dict[str, str]]:
    """Return what one GPU may become, in the order of a select."""
    found = [{"value": KEEP, "label": _("as it is")}, {"value": WHOLE, "label": _("whole")}]
    for part in gpu_catalogue.product(product).placeable:
        count = estate_stock.most(product, part.name, geometry.full_mask(product))
        if part.kind in estate_stock.SHOWN_KINDS and count:
            found.append({"value": f"{count}x{part.name}", "label": f"{count} × {part.name}"})
    return [*found, {"value": MIX, "label": _("the mix below")}]


def _twins(row: Host, wanted: Mapping[str, Sequence[str]], *, evict: bool) -> list[dict[str, str]]:
    """Return the same by command line and API."""
    chosen = wanted or {"0": ["3g.40gb", "3g.40gb"]}
    words = " ".join(f"--gpu {index}={short(names)}" for index, names in chosen.items())
    return commands.twins(
        f'tenantry host layout {row.name} {words}{" --evict" if evict else ""} --reason "…"',
        f"/hosts/{row.short_id}/layout",
        {
            "reason": "…",
            "layouts": [{"device": index, "profiles": list(names)} for index, names in chosen.items()],
            **({"evict": True} if evict else {}),
        },
    )


def short(names: Sequence[str]) -> str:
    """Return a list of profiles as the command line takes it: `2x3g.40gb,1g.10gb`, `whole`."""
    counted = Counter(names)
    return ",".join(name if count == 1 else f"{count}x{name}" for name, count in counted.items()) or "whole"
