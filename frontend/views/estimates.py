"""What real starts of model servers have made of the estimates, for operators: see the difference, forget it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.kernel import lists
from frontend.kernel.page import PageRequest, page
from frontend.views.requests import read_number
from tenants import access
from tenants.errors import PreconditionFailed
from tenants.fit import Size
from tenants.fit_corrections import Correction
from tenants.models import FitCorrection, FitMeasurement
from tenants.operations import fit_corrections
from tenants.operations.fit_corrections import Standing
from tenants.policies import ROUTES
from tenants.transactions import reading

EXPORTED: Final = (
    "id", "model", "product", "profile", "gpus", "token_factor", "fixed_factor", "starts", "bounded", "reset_at",
)  # fmt: skip


@page("fit-corrections.list")
def listed(request: PageRequest) -> HttpResponse:
    """Show every model and size of which something was learnt, with each start that counts."""
    rows = fit_corrections.rows().order_by("model__name", "product", "profile", "gpus")
    found = [fit_corrections.standing(row) for row in rows[: lists.MOST_EXPORTED]]
    text = request.GET.get("q", "").strip()[:60].casefold()
    found = [one for one in found if text in f"{one.row.model.name} {_size(one.row)}".casefold()]
    if request.GET.get("format") in {"csv", "json"}:
        return lists.exported([_exported(one) for one in found], EXPORTED, name="estimates", form=request.GET["format"])
    base = request.build_absolute_uri("/").rstrip("/")
    values = {
        "lines": [_line(one) for one in found],
        "is_empty": not found,
        "is_filtered": bool(text),
        "clear_url": request.path,
        "query": {"name": "q", "value": request.GET.get("q", ""), "label": _("Model or size")},
        "can_change": access.allowed(request.actor, None, ROUTES["fit-corrections.reset"]),
        "columns": [
            {"key": "model", "label": _("Model and size")},
            {"key": "cache", "label": _("Cache of a token"), "numeric": True},
            {"key": "fixed", "label": _("Weights and runtime"), "numeric": True},
            {"key": "starts", "label": _("Starts"), "numeric": True},
            {"key": "last", "label": _("Last")},
            {"key": "act", "label": _("Change"), "hidden_label": True},
        ],
        "breadcrumbs": [
            {"label": _("Model catalogue"), "url": reverse("frontend:served-models")},
            {"label": _("Estimates and starts"), "url": ""},
        ],
        "twins": [
            {"label": _("CLI"), "text": "tenantry get fit-corrections"},
            {
                "label": _("API"),
                "text": f'curl -H "Authorization: Bearer $TENANTRY_TOKEN" {base}/api/v1/fit-corrections',
            },
        ],
    }
    return render(request, "frontend/pages/models/estimates.html", values)


@page("fit-corrections.reset", methods=("POST",))
def reset(request: PageRequest, correction: str) -> HttpResponse:
    """Forget what was learnt about one size."""
    with reading(request.actor):
        row = access.find(FitCorrection.objects.select_related("model"), correction)
    try:
        fit_corrections.reset(
            correction=row,
            version=read_number(request.POST.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except PreconditionFailed:
        messages.error(request, _("Somebody else has reset it meanwhile; look again."))
    else:
        said = _("Estimates of %(model)s on %(size)s are as computed until the next start.")
        messages.success(request, said % {"model": row.model.name, "size": _size(row)})
    return HttpResponseRedirect(reverse("frontend:estimates"))


def _size(row: FitCorrection) -> str:
    return Size(row.product, row.profile, row.gpus, 0, 0, 0, 0).name


def _line(found: Standing) -> dict[str, Any]:
    made = found.correction
    return {
        "row": found.row,
        "size": _size(found.row),
        "token": _factor(made, made.token if made else None),
        "fixed": _factor(made, made.fixed if made else None),
        "starts": 0 if made is None else made.starts,
        "sentence": _("No start counts: estimates are as computed.") if made is None else made.sentence,
        "last": found.measurements[0].at if found.measurements else None,
        "each": [_start(one) for one in found.measurements],
    }


def _start(row: FitMeasurement) -> dict[str, Any]:
    def beside(reported: int | None, estimated: int | None) -> str:
        if reported is None or estimated is None:
            return "--"
        return _("%(reported)s, estimated %(estimated)s") % {
            "reported": numbers.number(reported), "estimated": numbers.number(estimated),
        }  # fmt: skip

    return {
        "at": row.at,
        "program": row.program,
        "token": beside(row.token_reported, row.token_estimated),
        "fixed": beside(row.fixed_reported, row.fixed_estimated),
    }


def _factor(made: Correction | None, factor: Decimal | None) -> str:
    return "--" if made is None or factor is None else f"× {numbers.number(factor, 3)}"


def _exported(found: Standing) -> dict[str, Any]:
    made, row = found.correction, found.row
    return {
        "id": row.pk,
        "model": row.model.name,
        "product": row.product,
        "profile": row.profile,
        "gpus": row.gpus,
        "token_factor": None if made is None else str(made.token),
        "fixed_factor": None if made is None else str(made.fixed),
        "starts": 0 if made is None else made.starts,
        "bounded": made is not None and made.is_bounded,
        "reset_at": row.reset_at,
    }
