"""Closing a tenant for good: what is still there and must go first, what ends with it; its name typed."""

from __future__ import annotations

from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.kernel import plans, problems, twins
from frontend.kernel.page import PageRequest, page
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import (
    Allocation,
    ApiToken,
    Boundary,
    Endpoint,
    Machine,
    Membership,
    Namespace,
    Request,
    ServiceAccount,
    Tenant,
    Webhook,
)
from tenants.operations import tenants
from tenants.states import RequestState
from tenants.transactions import reading

SHOWN: Final = 20
PRODUCTS: Final = ((Endpoint, "endpoint"), (Machine, "machine"), (Namespace, "namespace"))


@page("tenants.close", methods=("GET", "POST"), own_blocks=True)
def close(request: PageRequest) -> HttpResponse:
    """Show what closing would do, from the operation itself; on POST do it."""
    if request.method != "POST":
        return _plan(request)
    try:
        check_typed(request)
        tenants.close(tenant=request.tenant, actor=request.actor, now=request.now)
    except (Conflict, InvalidSpec) as error:
        return _plan(request, error)
    messages.success(request, _("%(tenant)s is closed.") % {"tenant": request.tenant.display_name})
    return HttpResponseRedirect("/")


def check_typed(request: PageRequest) -> None:
    """Raise `InvalidSpec` unless the tenant's name was typed."""
    if request.POST.get("confirm") != request.tenant.name:
        raise InvalidSpec(_("Type the name of the tenant."), field="confirm")


def _plan(request: PageRequest, error: ControlPlaneError | None = None) -> HttpResponse:
    blocked: ControlPlaneError | None = None
    try:
        plans.planned(
            lambda: tenants.close(tenant=request.tenant, actor=request.actor, now=request.now), lambda row: row
        )
    except Conflict as refusal:
        blocked = refusal
    with reading(request.actor):
        values = _values(request)
    values |= {
        "blocked": blocked is not None,
        "why": blocked.detail if blocked is not None and blocked.specific_code != "not-empty" else "",
        "errors": problems.at_fields(error) if isinstance(error, InvalidSpec) else {},
    }
    status = problems.status_of(error) if error is not None else 200
    return render(request, "frontend/pages/settings/close.html", values, status=status)


def _values(request: PageRequest) -> dict[str, Any]:
    tenant = request.tenant
    where = {"tenant": tenant.name}
    words = {"endpoint": _("Endpoint"), "machine": _("Machine"), "namespace": _("Namespace")}
    there = [
        {
            "kind": words[word],
            "name": row.name,
            "url": reverse(f"frontend:{word}", kwargs={**where, "name": row.short_id}),
            "phase": row.phase,
        }
        for model, word in PRODUCTS
        for row in model._base_manager.filter(tenant=tenant, released_at__isnull=True).order_by("name")[:SHOWN]
    ]
    there += [
        {"kind": _("Capacity"), "name": row.name, "url": "", "phase": row.phase}
        for row in Allocation.objects.filter(tenant=tenant, released_at__isnull=True, product_kind="bare")[:SHOWN]
    ]
    there += [
        {"kind": _("Tenant"), "name": row.display_name, "url": reverse("frontend:home-of", kwargs={"tenant": row.name}),
         "phase": ""}
        for row in Tenant.objects.filter(parent=tenant).exclude(status="closed").order_by("name")[:SHOWN]
    ]  # fmt: skip
    up = reverse("frontend:settings", kwargs=where)
    return {
        "row": tenant,
        "there": there,
        "isolations": Boundary.objects.filter(tenant=tenant, released_at__isnull=True).count(),
        "columns": [
            {"key": "kind", "label": _("Kind")},
            {"key": "name", "label": _("Name")},
            {"key": "state", "label": _("State")},
        ],
        "members": Membership.objects.filter(tenant=tenant).count(),
        "accounts": ServiceAccount.objects.filter(tenant=tenant, disabled_at__isnull=True).count(),
        "tokens": ApiToken.objects.filter(tenant=tenant, revoked_at__isnull=True).count(),
        "requests": Request.objects.filter(tenant=tenant, state=RequestState.SUBMITTED.value).count(),
        "webhooks": Webhook.objects.filter(tenant=tenant, removed_at__isnull=True).count(),
        "up": up,
        "twins": twins.pair(
            f"tenantry tenant close {tenant.name}",
            twins.api("DELETE", f"tenants/{tenant.name}", version=tenant.version),
        ),
        "breadcrumbs": [{"label": _("Settings"), "url": up}, {"label": _("Close"), "url": ""}],
    }
