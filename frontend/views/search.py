"""Search: what the person may see, by name, short id or id; who has it, since when, until when.

At most one query per kind of thing, each through the scoped querysets: what is foreign is not found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.kernel import asks
from frontend.kernel.addresses import openable
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.models import (
    Endpoint,
    Finding,
    GpuDevice,
    Host,
    HostPlan,
    Machine,
    Namespace,
    Provider,
    Request,
    Tenant,
)

MOST: Final = 20
"""Rows of each kind."""
SHORTEST: Final = 2
PRODUCTS: Final[Mapping[str, tuple[type[Any], str | Promise]]] = {
    "endpoint": (Endpoint, gettext_lazy("Endpoint")),
    "machine": (Machine, gettext_lazy("Machine")),
    "namespace": (Namespace, gettext_lazy("Namespace")),
}


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing that was found."""

    kind: str
    title: str
    short_id: str
    url: str
    """`""` where it has no page."""
    holder: str
    phase: str = ""
    since: datetime | None = None
    until: datetime | None = None


@page("objects.find")
def find(request: PageRequest) -> HttpResponse:
    """Show what was found, exact matches first."""
    text = request.GET.get("q", "").replace("\0", "").strip()[:100]
    hits = _found(request, text) if len(text) >= SHORTEST else []
    values = {
        "text": text,
        "too_short": bool(text) and len(text) < SHORTEST,
        "hits": hits,
        "columns": [
            {"key": "name", "label": _("Name")},
            {"key": "kind", "label": _("Kind")},
            {"key": "state", "label": _("State")},
            {"key": "holder", "label": _("Holder")},
            {"key": "since", "label": _("Since")},
            {"key": "until", "label": _("Until")},
        ],
    }
    return render(request, "frontend/pages/search/results.html", values)


def _found(request: PageRequest, text: str) -> list[Hit]:
    hits = [*_products(request, text), *_requests(request, text), *_tenants(request, text)]
    if request.actor.platform_roles:
        hits += [*_hardware(request, text), *_providers(request, text), *_works(request, text)]
    wanted = text.casefold()
    return sorted(hits, key=lambda hit: wanted not in {hit.title.casefold(), hit.short_id})


def _by(text: str, *fields: str) -> Q:
    """Return the condition: the id, the short id, or a part of one of `fields`."""
    condition = Q(short_id=text.lower())
    with contextlib.suppress(ValueError):
        condition |= Q(pk=UUID(text))
    for field in fields:
        condition |= Q((f"{field}__icontains", text))
    return condition


def _first(rows: QuerySet[Any]) -> list[Any]:
    return list(rows.order_by("-created_at", "-id")[:MOST])


def _products(request: PageRequest, text: str) -> list[Hit]:
    hits = []
    for word, (model, title) in PRODUCTS.items():
        rows = access.scoped(model, request.actor).filter(_by(text, "name"))
        hits += [
            Hit(
                str(title),
                row.name,
                row.short_id,
                reverse(f"frontend:{word}", kwargs={"tenant": row.tenant.name, "name": row.short_id}),
                row.tenant.display_name,
                row.phase,
                row.created_at,
                row.released_at or row.allocation.expires_at,
            )
            for row in _first(rows.select_related("tenant", "allocation"))
        ]
    return hits


def _requests(request: PageRequest, text: str) -> list[Hit]:
    rows = access.scoped(Request, request.actor).filter(tenant__isnull=False)
    return [
        Hit(
            str(asks.KINDS.get(row.kind, row.kind)),
            row.short_id,
            row.short_id,
            openable(f"/t/{row.tenant.name}/requests/{row.short_id}", request.actor),
            row.tenant.display_name,
            since=row.created_at,
            until=row.decided_at,
        )
        for row in _first(rows.filter(_by(text)).select_related("tenant"))
    ]


def _tenants(request: PageRequest, text: str) -> list[Hit]:
    rows: QuerySet[Tenant] = access.tenants(request.actor).filter(_by(text, "name", "display_name"))
    return [
        Hit(
            _("Tenant"),
            row.display_name,
            row.short_id,
            reverse("frontend:home-of", kwargs={"tenant": row.name}),
            row.name,
            since=row.created_at,
        )
        for row in _first(rows)
    ]


def _hardware(request: PageRequest, text: str) -> list[Hit]:
    hosts = Host.objects.filter(_by(text, "name")).select_related("provider")
    gpus = GpuDevice.objects.filter(_by(text), removed_at__isnull=True).select_related("host__provider")
    return [
        *(
            _piece(row.provider, _("Host"), row.name, row, f"/ops/hosts/{row.short_id}", request)
            for row in _first(hosts)
        ),
        *(
            _piece(
                row.host.provider,
                row.product,
                f"{row.host.name} · GPU {row.index}",
                row,
                f"/ops/gpus/{row.short_id}",
                request,
            )
            for row in _first(gpus)
        ),
    ]


def _piece(provider: Provider, kind: str, title: str, row: Host | GpuDevice, path: str, request: PageRequest) -> Hit:
    """Return a piece of hardware; its page is for who may open it."""
    where = f"{provider.name}, {provider.site}"
    return Hit(kind, title, row.short_id, openable(path, request.actor), where, since=row.created_at)


def _providers(request: PageRequest, text: str) -> list[Hit]:
    rows = Provider.objects.filter(_by(text, "name"))
    return [
        Hit(
            _("Provider"),
            row.name,
            row.short_id,
            openable(f"/ops/providers/{row.name}", request.actor),
            row.site,
            since=row.created_at,
            until=row.released_at,
        )
        for row in _first(rows)
    ]


def _works(request: PageRequest, text: str) -> list[Hit]:
    """Return plans over hosts and findings."""
    plans = HostPlan.objects.filter(_by(text, "reason", "host__name")).select_related("host__provider")
    findings = Finding.objects.filter(_by(text, "subject", "detail")).select_related("provider")
    seen = findings.order_by("-first_seen_at", "-id")[:MOST]
    return [
        *(
            Hit(
                _("Plan"),
                f"{row.host.name}: {row.reason}",
                row.short_id,
                openable(f"/ops/plans/{row.short_id}", request.actor),
                row.host.provider.name,
                since=row.starts_at,
                until=row.ends_at,
            )
            for row in _first(plans)
        ),
        *(
            Hit(
                _("Finding"),
                row.detail,
                row.short_id,
                openable(f"/ops/findings/{row.short_id}", request.actor),
                row.provider.name if row.provider is not None else "",
                since=row.first_seen_at,
                until=row.resolved_at,
            )
            for row in seen
        ),
    ]
