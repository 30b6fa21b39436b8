"""Asking for a model of the tenant's own: checked by its config.json at once, offered once it is approved."""

from __future__ import annotations

from collections.abc import Mapping

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.forms import models as model_forms
from frontend.kernel import problems
from frontend.kernel.page import PageRequest, page
from tenants.errors import Conflict, InvalidSpec
from tenants.operations import requests
from tenants.states import RequestKind
from tenants.transactions import reading


@page("requests.create_model", methods=("GET", "POST"), own_blocks=True)
def ask(request: PageRequest) -> HttpResponse:
    """Show the form, or file the request; its page says who decides."""
    if request.method != "POST":
        with reading(request.actor):
            return _form(request, {}, {})
    given = request.POST
    try:
        made = requests.submit(
            kind=RequestKind.MODEL.value,
            payload=model_forms.as_payload(model_forms.read(given)),
            reason=given.get("reason", ""),
            tenant=request.tenant,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        with reading(request.actor):
            return _form(request, given, problems.at_fields(error), status=problems.status_of(error))
    messages.success(request, _("Asked. You are told as soon as it is decided."))
    where = {"tenant": request.tenant.name, "name": made.short_id}
    return HttpResponseRedirect(reverse("frontend:request", kwargs=where))


def _form(
    request: PageRequest, given: Mapping[str, str], errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    up = reverse("frontend:models", kwargs={"tenant": request.tenant.name})
    values = {
        **model_forms.fields(given or {"name": f"{request.tenant.name}-"}, errors),
        "name_sentence": _("What people choose it by; it begins with the tenant's name."),
        "name_example": f"{request.tenant.name}-support-7b",
        "breadcrumbs": [{"label": _("Models"), "url": up}, {"label": _("Ask for a model"), "url": ""}],
        "twins": [
            {
                "label": _("CLI"),
                "text": f"tenantry request model {request.tenant.name}-NAME --repository OWNER/NAME --commit SHA "
                "--folder CHECKOUT",
            }
        ],
    }
    return render(request, "frontend/pages/models/ask.html", values, status=status)
