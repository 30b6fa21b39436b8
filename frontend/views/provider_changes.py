"""What operators do with a provider: test it, switch it, change its settings and secrets, give it up.

Each goes through `tenants.operations.providers`. A test is only asked for here: a worker calls the provider, and the
page fetches what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.contrib import messages
from django.db.models import Count, F
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design.numbers import number
from frontend.kernel import estate, problems
from frontend.kernel import providers as kernel
from frontend.kernel.page import PageRequest, page
from frontend.views.providers import SHOWN, back, crumbs, found, host_line, label, last_test, rows_of
from tenants import access, provider_kinds
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Boundary, Host, Provider
from tenants.operations import providers
from tenants.states import HostState
from tenants.transactions import reading

RANGE_EXAMPLE: Final = "10.20.0.0/16"
SWITCH: Final[Mapping[str, Any]] = {"enable": providers.enable, "disable": providers.disable}


# --- testing and switching --------------------------------------------------------------------------------


@page("providers.test", methods=("POST",))
def test(request: PageRequest, provider: str) -> HttpResponse:
    """Ask for a test; the answer comes from a worker."""
    row = found(request, provider)
    providers.test(provider=row, actor=request.actor, now=request.now)
    if request.htmx:
        with reading(request.actor):
            return last_test(request, access.find(rows_of(), provider))
    return HttpResponseRedirect(f"{reverse('frontend:provider', kwargs={'provider': row.name})}#test")


@page("providers.enable", methods=("POST",))
def enable(request: PageRequest, provider: str) -> HttpResponse:
    """Switch a provider on."""
    return _switch(request, provider, "enable", _("%(name)s is used again."))


@page("providers.disable", methods=("POST",))
def disable(request: PageRequest, provider: str) -> HttpResponse:
    """Switch a provider off."""
    return _switch(request, provider, "disable", _("Nothing is built at %(name)s any more until it is switched on."))


def _switch(request: PageRequest, provider: str, verb: str, text: str) -> HttpResponse:
    row = found(request, provider)
    try:
        SWITCH[verb](provider=row, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, text % {"name": row.name})
    return back(row)


# --- settings and secrets ---------------------------------------------------------------------------------


@page("providers.set_credential", methods=("POST",))
def set_credential(request: PageRequest, provider: str, credential: str) -> HttpResponse:
    """Replace one secret of a provider."""
    row = found(request, provider)
    try:
        providers.set_credential(
            provider=row,
            name=credential,
            secret=request.POST.get("secret", ""),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return back(row)
    providers.test(provider=row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s is stored, sealed. It is being tested.") % {"name": credential})
    return HttpResponseRedirect(f"{reverse('frontend:provider', kwargs={'provider': row.name})}#test")


@page("providers.update", methods=("GET", "POST"), own_blocks=True)
def edit(request: PageRequest, provider: str) -> HttpResponse:
    """Change site and settings of a provider."""
    row = found(request, provider)
    if request.method != "POST":
        return _form(request, row, {})
    config = dict(row.config)
    for one in _fields(row, request.POST, {}):
        if one["key"] == providers.RANGES:
            config = with_ranges(config, one["value"])
        else:
            config[one["key"]] = one["value"]
    try:
        version = int(request.POST.get("version", "0"))
        providers.update(
            provider=row,
            site=request.POST.get("site", "").strip(),
            config=config,
            version=version,
            actor=request.actor,
            now=request.now,
        )
    except ValueError as error:
        raise InvalidSpec(_("Reload the page and try again."), field="version") from error
    except (InvalidSpec, Conflict) as error:
        return _form(request, row, problems.at_fields(error), status=problems.status_of(error))
    messages.success(request, _("Stored. A worker uses it from its next call on."))
    return back(row)


def with_ranges(config: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a configuration with the networks that were typed, one a line or with commas between; none: as default."""
    found_ranges = text.replace(",", " ").split()
    rest = {key: value for key, value in config.items() if key != providers.RANGES}
    return {**rest, providers.RANGES: found_ranges} if found_ranges else rest


def _fields(row: Provider, given: Mapping[str, Any], errors: Mapping[str, str]) -> list[dict[str, Any]]:
    described = provider_kinds.kind_of(row.kind)
    keys = [one.key for one in described.settings] if described is not None else []
    if described is None:
        keys = [key for key, value in sorted(row.config.items()) if key != providers.RANGES and isinstance(value, str)]
    keys.append(providers.RANGES)
    found_fields = []
    for key in keys:
        setting = described.setting(key) if described is not None else None
        stored = row.config.get(key, "")
        kept = "\n".join(stored) if isinstance(stored, list) else provider_kinds.text_of(stored)
        found_fields.append(
            {
                "key": key,
                "name": f"config.{key}",
                "label": label(row.kind, key),
                "sentence": _sentence(key, setting),
                "example": setting.example if setting is not None else RANGE_EXAMPLE if key == providers.RANGES else "",
                "required": setting is not None and setting.required,
                "options": [{"value": v, "label": _(text)} for v, text in setting.choices] if setting else [],
                "is_long": key == providers.RANGES or (setting is not None and setting.is_long),
                "is_advanced": setting is not None and setting.is_advanced,
                "value": given.get(f"config.{key}", kept),
                "error": errors.get(f"config.{key}", ""),
            }
        )
    return sorted(found_fields, key=lambda one: bool(one["is_advanced"]))


def ranges_sentence() -> str:
    """Return what the networks of a provider's endpoints are for."""
    return _(
        "The playground calls no address outside of them. One network a line; "
        "empty: none, or only this machine for a simulated provider."
    )


def _sentence(key: str, setting: provider_kinds.Setting | None) -> str:
    if key == providers.RANGES:
        return ranges_sentence()
    return _(setting.sentence) if setting is not None else ""


def _form(request: PageRequest, row: Provider, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    fields = _fields(row, request.POST, errors)
    shown_at = {"site", *(str(one["name"]) for one in fields)}
    values = {
        "row": row,
        "fields": fields,
        "site": request.POST.get("site", row.site),
        "errors": errors,
        "other_errors": [text for field, text in errors.items() if field not in shown_at],
        "back_url": reverse("frontend:provider", kwargs={"provider": row.name}),
        "breadcrumbs": crumbs(row, _("Settings")),
    }
    with reading(request.actor):
        return render(request, "frontend/pages/providers/edit.html", values, status=status)


# --- giving one up ----------------------------------------------------------------------------------------


@page("providers.delete", methods=("GET", "POST"), own_blocks=True)
def delete(request: PageRequest, provider: str) -> HttpResponse:
    """Give up a provider: first what goes and what stands in the way, then its name typed."""
    row = found(request, provider)
    if request.method != "POST":
        return _plan(request, row)
    if request.POST.get("confirm") != row.name:
        return _plan(request, row, errors={"confirm": _("Type the provider's name to give it up.")}, status=422)
    try:
        providers.delete(provider=row, actor=request.actor, now=request.now)
    except ControlPlaneError as error:
        if error.status != Conflict.status:
            raise
        return _plan(request, row, status=error.status)
    messages.success(request, _("%(name)s was given up; its secrets are destroyed.") % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:providers"))


def _plan(
    request: PageRequest, row: Provider, *, errors: Mapping[str, str] | None = None, status: int = 200
) -> HttpResponse:
    """Say what giving it up takes away; the check that decides is the operation's own."""
    used: Mapping[str, int] = {}
    problem = ""
    with reading(request.actor):
        try:
            providers.check_unused(row)
        except Conflict as error:
            problem, used = error.detail, error.data.get("used", {})
        hosts = Host.objects.filter(provider=row).exclude(state=HostState.REMOVED.value)
        shown, after = estate.page_of(hosts, request.GET.get("after", ""))
        values = {
            "row": row,
            "counts": kernel.counts_of([row])[row.pk],
            "hosts": [host_line(one) for one in shown],
            "more_url": f"?after={after}" if after else "",
            "previous_url": request.path if request.GET.get("after") else "",
            "columns": [
                {"key": "name", "label": _("Host")},
                {"key": "state", "label": _("State")},
                {"key": "gpus", "label": _("GPUs")},
                {"key": "empty", "label": _("Empty"), "numeric": True},
            ],
            "credentials": row.credentials.count(),
            "tenants": list(
                Boundary.objects.filter(provider=row, released_at__isnull=True)
                .values(name=F("tenant__name")).annotate(n=Count("pk")).order_by("name")[:SHOWN]
            ),
            "used": used,
            "problem": problem,
            "in_the_way": _in_the_way(used),
            "errors": errors or {},
            "back_url": reverse("frontend:provider", kwargs={"provider": row.name}),
            "breadcrumbs": crumbs(row, _("Give up")),
        }  # fmt: skip
        return render(request, "frontend/pages/providers/delete.html", values, status=status)


def _in_the_way(used: Mapping[str, int]) -> list[str]:
    """Return what keeps a provider from being given up, in words."""
    counted = {
        "boundaries": ngettext(
            "%(n)s tenant is set up there", "%(n)s tenants are set up there", used.get("boundaries", 0)
        ),
        "holds": ngettext("%(n)s part of a GPU is in use", "%(n)s parts of GPUs are in use", used.get("holds", 0)),
        "plans": ngettext("%(n)s plan runs", "%(n)s plans run", used.get("plans", 0)),
    }
    return [text % {"n": number(used[key])} for key, text in counted.items() if used.get(key)]
