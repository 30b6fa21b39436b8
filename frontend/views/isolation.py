"""What keeps a tenant apart from others, place by place, and what was last tried against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.kernel.page import PageRequest, page
from tenants import access, certificates
from tenants.certificates import Check, Stored
from tenants.errors import Conflict
from tenants.models import Boundary
from tenants.operations import boundaries

SHOWN: Final = 20
OUTCOMES: Final[Mapping[str, tuple[str, str, str | Promise]]] = {
    "failed": ("warn", "circle-alert", gettext_lazy("did not hold")),
    "unknown": ("warn", "circle-question-mark", gettext_lazy("could not be tried")),
    "passed": ("ok", "circle-check", gettext_lazy("held")),
    "withheld": ("quiet", "circle-minus", gettext_lazy("withheld on purpose")),
}
"""Outcome → tone, icon, words; in the order in which checks are shown."""
KINDS: Final[Mapping[str, str | Promise]] = {
    "namespace": gettext_lazy("Kubernetes namespace"),
    "vm": gettext_lazy("Virtual machines"),
}


@page("boundaries.certificate")
def show(request: PageRequest) -> HttpResponse:
    """Show every place where a tenant has something, with its newest certificate."""
    rows = (
        access.scoped(Boundary, request.actor, tenant=request.tenant)
        .filter(released_at__isnull=True)
        .select_related("provider")
        .order_by("created_at", "pk")[:SHOWN]
    )
    values = {
        "places": [_place(row, request) for row in rows],
        "can_write": request.portal.can_write,
        "breadcrumbs": [{"label": _("Isolation"), "url": ""}],
    }
    template = "_places" if request.htmx else "show"
    return render(request, f"frontend/pages/isolation/{template}.html", values)


def _place(row: Boundary, request: PageRequest) -> dict[str, Any]:
    made = certificates.history(row.pk)
    return {
        "row": row,
        "title": f"{row.provider.name}, {row.provider.site}",
        "kind": str(KINDS.get(row.kind, row.kind)),
        "certificate": _shown(made[0]) if made else None,
        "earlier": [_shown(one) for one in made[1:]],
        "is_asked": certificates.ASKED in row.observed,
        "can_be": certificates.can_be(row),
        "simulated": bool(row.provider.capabilities.get("simulated")),
        "certify_url": reverse(
            "frontend:isolation-certify", kwargs={"tenant": request.tenant.name, "place": row.short_id}
        ),
    }


def _shown(stored: Stored) -> dict[str, Any]:
    failed, unknown = stored.count("failed"), stored.count("unknown")
    words = ngettext("%(n)d check held", "%(n)d checks held", stored.count("passed")) % {"n": stored.count("passed")}
    if failed:
        words = ngettext("%(n)d check did not hold", "%(n)d checks did not hold", failed) % {"n": failed}
    elif unknown:
        words = ngettext("%(n)d check could not be tried", "%(n)d checks could not be tried", unknown) % {"n": unknown}
    order = list(OUTCOMES)
    return {
        "at": stored.at,
        "passed": stored.passed,
        "words": words,
        "version": stored.version,
        "checks": [_check(one) for one in sorted(stored.checks, key=lambda one: order.index(one.outcome))],
        "unshown": [_(line) for line in stored.unshown],
        "seq": stored.seq,
        "hash": stored.hash,
    }


def _check(check: Check) -> dict[str, Any]:
    tone, icon, word = OUTCOMES[check.outcome]
    return {
        "key": check.key,
        "title": _(check.title),
        "seen": check.seen,
        "tone": tone,
        "icon": icon,
        "word": str(word),
    }


@page("boundaries.certify", methods=("POST",))
def certify(request: PageRequest, place: str) -> HttpResponse:
    """Ask for another certificate."""
    row = access.find(
        access.scoped(Boundary, request.actor, tenant=request.tenant).select_related("provider", "tenant"), place
    )
    try:
        boundaries.certify(boundary=row, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("It is tried now; what held shows here in some seconds."))
    return HttpResponseRedirect(reverse("frontend:isolation", kwargs={"tenant": request.tenant.name}))
