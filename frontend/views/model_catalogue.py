"""The operators' list of models: offer one, pinned to a commit; retire it; offer it again; correct its licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib import messages
from django.db.models import Count, F, Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.forms import models as model_forms
from frontend.kernel import lists, problems, stock
from frontend.kernel.page import PageRequest, page
from frontend.views import model_files
from frontend.views.models import parameters
from frontend.views.requests import read_number
from tenants import access
from tenants.errors import Conflict, InvalidSpec, PreconditionFailed
from tenants.models import Revision, ServedModel
from tenants.operations import served_models
from tenants.policies import ROUTES
from tenants.transactions import reading


@page("platform.read")
def offered(request: PageRequest) -> HttpResponse:
    """Show every served model with its use, and to operators the form that offers another one."""
    if request.GET.get("format") in {"csv", "json"}:
        return _exported_all(request)
    return _offered(request, {}, {})


@page("served-models.create", methods=("POST",))
def offer(request: PageRequest) -> HttpResponse:
    """Offer another model, pinned to a commit."""
    given = request.POST
    try:
        made = served_models.create(ask=model_forms.read(given), actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        errors = {"name": error.detail} if error.specific_code == "name-taken" else problems.at_fields(error)
        with reading(request.actor):
            return _offered(request, given, errors, status=problems.status_of(error))
    messages.success(request, _("%(name)s is offered now.") % {"name": made.name})
    return HttpResponseRedirect(reverse("frontend:served-models"))


def _all(given: Mapping[str, str]) -> QuerySet[ServedModel]:
    rows = ServedModel.objects.select_related("tenant").order_by("-enabled", "name")
    text, state = given.get("q", "").strip()[:60], given.get("state", "")
    if text:
        rows = rows.filter(Q(name__icontains=text) | Q(repository__icontains=text))
    if state in {"offered", "retired"}:
        rows = rows.filter(enabled=state == "offered")
    return rows


def _used(rows: Iterable[ServedModel]) -> dict[Any, int]:
    """Return model → endpoints that serve it now; one statement."""
    live = Revision.objects.filter(model__in=[row.pk for row in rows], endpoint__released_at__isnull=True)
    current = live.filter(endpoint__revision_id=F("pk"))
    return dict(current.values_list("model_id").annotate(n=Count("endpoint_id", distinct=True)))


def _offered(
    request: PageRequest, given: Mapping[str, str], errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    rows = list(_all(request.GET))
    used = _used(rows)
    can_change = access.allowed(request.actor, None, ROUTES["served-models.create"])
    values = {
        "lines": [
            {"row": row, "parameters": parameters(stock.served(row)), "used": used.get(row.pk, 0)} for row in rows
        ],
        "can_change": can_change,
        **model_forms.fields(given, errors),
        "is_filtered": any(request.GET.get(key) for key in ("q", "state")),
        "clear_url": request.path,
        "query": {"name": "q", "value": request.GET.get("q", ""), "label": _("Name or repository")},
        "fields": [
            {
                "name": "state",
                "label": _("State"),
                "value": request.GET.get("state", ""),
                "options": [
                    {"value": "", "label": _("All")},
                    {"value": "offered", "label": _("Offered")},
                    {"value": "retired", "label": _("Retired")},
                ],
            }
        ],
        "columns": [
            {"key": "name", "label": _("Name")},
            {"key": "state", "label": _("State")},
            {"key": "parameters", "label": _("Parameters")},
            {"key": "licence", "label": _("Licence")},
            {"key": "used", "label": _("Endpoints"), "numeric": True},
            {"key": "since", "label": _("Since")},
            {"key": "act", "label": _("Change"), "hidden_label": True},
        ],
        "is_empty": not rows,
    }
    return render(request, "frontend/pages/models/offered.html", values, status=status)


def _exported_all(request: PageRequest) -> HttpResponse:
    rows = list(_all(request.GET)[: lists.MOST_EXPORTED])
    used = _used(rows)
    columns = (
        "name", "repository", "commit", "licence", "gating", "source", "task", "tenant", "quantisation", "enabled",
        "endpoints", "created_at",
    )  # fmt: skip
    told = {row.pk: {"endpoints": used.get(row.pk, 0), "tenant": row.tenant.name if row.tenant else ""} for row in rows}
    body = [{**{key: getattr(row, key) for key in columns if key not in told[row.pk]}, **told[row.pk]} for row in rows]
    return lists.exported(body, columns, name="served-models", form=request.GET["format"])


@page("platform.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one model with what retiring it would mean."""
    return _one(request, access.find(ServedModel.objects.select_related("tenant"), name), {}, {})


@page("served-models.update", methods=("POST",))
def change(request: PageRequest, name: str) -> HttpResponse:
    """Retire a model, offer it again, or correct its licence."""
    given = request.POST
    with reading(request.actor):
        row = access.find(ServedModel.objects.select_related("tenant"), name)
    wanted = {"retire": False, "offer": True}.get(given.get("do", ""))
    try:
        served_models.update(
            model=row,
            version=read_number(given.get("version"), field="version"),
            enabled=wanted,
            licence=given.get("licence") if "licence" in given else None,
            gating=given.get("gating") if "gating" in given else None,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, PreconditionFailed) as error:
        with reading(request.actor):
            fresh = access.find(ServedModel.objects.select_related("tenant"), name)
            return _one(request, fresh, given, problems.at_fields(error), status=problems.status_of(error))
    said = {False: _("%(name)s is retired."), True: _("%(name)s is offered again.")}.get(
        wanted,  # type: ignore[arg-type]  # None: neither
        _("The licence of %(name)s is corrected."),
    )
    messages.success(request, said % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:served-models"))


def _one(
    request: PageRequest, row: ServedModel, given: Mapping[str, str], errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    served = stock.served(row)
    values = {
        "row": row,
        "served": served,
        "parameters": parameters(served),
        "used": _used([row]).get(row.pk, 0),
        "can_change": access.allowed(request.actor, None, ROUTES["served-models.update"]),
        **model_files.shown(row),
        "form_word": str(model_forms.FORMS.get(row.quantisation, row.quantisation)),
        "task_word": str(model_forms.TASKS.get(row.task, row.task)),
        "licence": given.get("licence", row.licence),
        "gating": given.get("gating", row.gating),
        "errors": errors,
        "breadcrumbs": [
            {"label": _("Model catalogue"), "url": reverse("frontend:served-models")},
            {"label": row.name, "url": ""},
        ],
    }
    return render(request, "frontend/pages/models/one.html", values, status=status)
