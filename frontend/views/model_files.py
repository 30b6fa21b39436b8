"""Files of one model at providers: where they are, how far those on their way are; bring them, take them away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.kernel import words
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.errors import Conflict
from tenants.models import ModelStage, Provider, ServedModel
from tenants.operations import model_stages
from tenants.states import StageState
from tenants.transactions import reading

MOST_SHOWN: Final = 50
STATES: Final[Mapping[str, tuple[str | Promise, str, str]]] = {
    StageState.WAITING.value: (gettext_lazy("Asked for"), "info", "hourglass"),
    StageState.RUNNING.value: (gettext_lazy("On their way"), "info", "loader-circle"),
    StageState.DONE.value: (gettext_lazy("There"), "ok", "circle-check"),
    StageState.FAILED.value: (gettext_lazy("Failed"), "bad", "circle-x"),
    StageState.REMOVED.value: (gettext_lazy("Taken away"), "quiet", "archive"),
}


def shown(row: ServedModel) -> dict[str, Any]:
    """Return what a model's page says of its files, in the caller's read block."""
    stages = list(model_stages.rows().filter(model=row).order_by("-asked_at")[:MOST_SHOWN])
    has = {stage.provider_id for stage in stages if stage.state not in {"failed", "removed"}}
    able = [
        one
        for one in Provider.objects.filter(enabled=True, released_at__isnull=True).order_by("name")
        if not model_stages.refusal(one, row)
    ]
    return {
        "stages": [_line(stage, has_others=stage.provider_id in has) for stage in stages],
        "stage_options": [{"value": one.name, "label": one.name} for one in able if one.pk not in has],
        "nobody_can_stage": not able,
    }


def _line(stage: ModelStage, *, has_others: bool) -> dict[str, Any]:
    text, tone, icon = STATES[stage.state]
    if stage.removing and stage.state == StageState.RUNNING.value:
        text = _("Being taken away")
    return {
        "row": stage,
        "text": str(text),
        "tone": tone,
        "icon": icon,
        "done": numbers.size(stage.bytes_done),
        "whole": numbers.size(stage.bytes_total),
        "percent": stage.bytes_done * 100 // stage.bytes_total if stage.bytes_total else 0,
        "is_moving": stage.state in {StageState.WAITING.value, StageState.RUNNING.value},
        # What failed may have left bytes at its provider; where it was asked anew since, those go on with that.
        "can_leave": stage.state == StageState.DONE.value
        or (stage.state == StageState.FAILED.value and not has_others)
        or (stage.ended_at is None and not stage.removing),
    }


@page("model-stages.create", methods=("POST",))
def stage(request: PageRequest, name: str) -> HttpResponse:
    """Ask for a model's files at a provider."""
    with reading(request.actor):
        row = access.find(ServedModel.objects.all(), name)
        provider = access.find(Provider.objects.all(), request.POST.get("provider", "-"))
    try:
        model_stages.stage(provider=provider, model=row, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, words.plain(error.detail))
    else:
        said = _("The files of %(model)s are asked for at %(provider)s.")
        messages.success(request, said % {"model": row.name, "provider": provider.name})
    return HttpResponseRedirect(reverse("frontend:served-model", kwargs={"name": row.name}))


@page("model-stages.remove", methods=("POST",))
def unstage(request: PageRequest, name: str) -> HttpResponse:
    """Have a model's files taken away from a provider."""
    with reading(request.actor):
        row = access.find(ServedModel.objects.all(), name)
        found = access.find(model_stages.rows().filter(model=row), request.POST.get("stage", "-"))
    try:
        model_stages.remove(stage=found, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, words.plain(error.detail))
    else:
        messages.success(request, _("The files leave %(provider)s.") % {"provider": found.provider.name})
    return HttpResponseRedirect(reverse("frontend:served-model", kwargs={"name": row.name}))
