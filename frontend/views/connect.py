"""Connecting a provider in five steps that can be left and resumed: everything is kept on its row, switched off.

credentials → test → what was found → what to hand over → acceptance of each host; the last two are in
`handing_over`. A worker does the calls; nothing is placed on a host before its acceptance passed and it was opened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from django.conf import settings
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.kernel import problems
from frontend.kernel import providers as kernel
from frontend.kernel.page import PageRequest, page
from frontend.views import providers as pages
from tenants import access, provider_kinds
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Finding, Provider
from tenants.operations import providers
from tenants.provider_kinds import Credential, ProviderKind, Setting
from tenants.transactions import reading

STEPS: Final[tuple[tuple[str, str | Promise], ...]] = (
    ("credentials", gettext_lazy("Credentials")),
    ("check", gettext_lazy("Test")),
    ("found", gettext_lazy("What was found")),
    ("hand-over", gettext_lazy("What to hand over")),
    ("acceptance", gettext_lazy("Acceptance")),
)
ORDER: Final = {key: number for number, (key, _label) in enumerate(STEPS)}
MODES: Final[Mapping[str, str | Promise]] = {
    "empty": gettext_lazy("empty, not carved yet"),
    "mig": gettext_lazy("carved into parts"),
    "full": gettext_lazy("used as wholes"),
    "unknown": gettext_lazy("not reported"),
}
LAYOUTS: Final[Mapping[str, str | Promise]] = {
    "dynamic": gettext_lazy("may be carved at any time"),
    "on-idle": gettext_lazy("may be carved while empty"),
    "fixed": gettext_lazy("stays as it is"),
}


# --- where one is -----------------------------------------------------------------------------------------


def reached(row: Provider, counts: kernel.Counts) -> str:
    """Return the step that comes next: everything before it is done, as it is for one with hosts in service."""
    if not kernel.is_draft(row, counts):
        return "acceptance"
    described = provider_kinds.kind_of(row.kind)
    there = set(row.credentials.values_list("name", flat=True))
    if described is not None and described.missing(row.config, there) is not None:
        return "credentials"
    return "found" if kernel.tested(row, now=row.created_at).passed else "check"


def _steps(row: Provider | None, now_at: str, far: str) -> list[dict[str, str]]:
    """Return the five steps for the guide on top; those that are done can be opened again."""
    last = ORDER[far] + (1 if far == "found" else 0)
    found = []
    for key, label in STEPS:
        is_done = ORDER[key] < max(ORDER[far], ORDER[now_at])
        state = "current" if key == now_at else ("done" if is_done else "todo")
        url = address(row, key) if row is not None and key != now_at and ORDER[key] <= last else ""
        found.append({"label": str(label), "state": state, "url": url})
    return found


def address(row: Provider, step: str) -> str:
    """Return the page of a step."""
    return reverse(f"frontend:connect-{step}", kwargs={"provider": row.name})


def _crumbs(row: Provider | None) -> list[dict[str, str]]:
    above = [{"label": _("Providers"), "url": reverse("frontend:providers")}]
    if row is not None:
        above.append({"label": row.name, "url": reverse("frontend:provider", kwargs={"provider": row.name})})
    return [*above, {"label": _("Connect"), "url": ""}]


def frame(row: Provider, step: str) -> dict[str, Any]:
    """Return what every step shows around its content, in a read block."""
    counts = kernel.counts_of([row])[row.pk]
    return {
        "row": row,
        "counts": counts,
        "kind": pages.title(row.kind),
        "simulated": kernel.is_simulated(row),
        "steps": _steps(row, step, reached(row, counts)),
        "step_title": str(dict(STEPS)[step]),
        "breadcrumbs": _crumbs(row),
        "provider_url": reverse("frontend:provider", kwargs={"provider": row.name}),
    }


@page("providers.update", own_blocks=True)
def resume(request: PageRequest, provider: str) -> HttpResponse:
    """Go to where one left off."""
    row = pages.found(request, provider)
    with reading(request.actor):
        step = reached(row, kernel.counts_of([row])[row.pk])
    return HttpResponseRedirect(address(row, step))


# --- 1. credentials ---------------------------------------------------------------------------------------


@page("providers.create", methods=("GET", "POST"), own_blocks=True)
def begin(request: PageRequest) -> HttpResponse:
    """Name a new provider, say where it is and give its secrets; it stays switched off."""
    kinds = provider_kinds.offered()
    kind = next((one for one in kinds if one.slug == request.POST.get("kind", request.GET.get("kind"))), None)
    kind = kind or (kinds[0] if len(kinds) == 1 else None)
    if request.method != "POST" or kind is None:
        return _first(request, kinds, kind, {})
    given = request.POST
    try:
        config, secrets = _config(kind, given), _secrets(kind, given)
        _complete(kind, config, secrets)
        row = providers.create(
            name=given.get("name", "").strip(),
            kind=kind.slug,
            site=given.get("site", "").strip(),
            config=config,
            enabled=False,
            actor=request.actor,
            now=request.now,
        )
        _store(request, row, secrets)
    except (InvalidSpec, Conflict) as error:
        return _first(request, kinds, kind, _at_fields(error), status=problems.status_of(error))
    providers.test(provider=row, actor=request.actor, now=request.now)
    return HttpResponseRedirect(address(row, "check"))


def _config(kind: ProviderKind, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a form. Raises `InvalidSpec` for one that is missing or is none of the choices.

    A choice that the form did not show is the first one.
    """
    found = {}
    for setting in kind.settings:
        first = setting.choices[0][0] if setting.choices else ""
        value = given.get(f"config.{setting.key}", first).strip()
        if setting.required and not value:
            raise InvalidSpec(_("This is needed."), field=f"config.{setting.key}")
        if setting.choices and value not in {choice for choice, _label in setting.choices}:
            raise InvalidSpec(_("Choose one of these."), field=f"config.{setting.key}")
        found[setting.key] = value
    return found


def _complete(kind: ProviderKind, config: Mapping[str, Any], secrets: Collection[str]) -> None:
    lacking = kind.missing(config, secrets)
    if lacking is not None:
        raise InvalidSpec(_(lacking[1]), field=lacking[0])


def _secrets(kind: ProviderKind, given: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets of a form; this installation's own where its own address is used and none was typed.

    Raises `InvalidSpec` for one that cannot be used: before anything is stored.
    """
    found = {}
    for one in kind.credentials:
        text = given.get(f"secret.{one.name}", "")
        if not text and _has_own(kind, one, given):
            text = str(getattr(settings, one.own))
        if not text.strip():
            continue
        refusal = one.refuses(text) if one.refuses is not None else ""
        if refusal:
            raise InvalidSpec(_(refusal), field=f"secret.{one.name}")
        found[one.name] = text
    return found


def _has_own(kind: ProviderKind, one: Credential, given: Mapping[str, str]) -> bool:
    """Whether this installation has the secret itself, for exactly the address that is given."""
    if not one.own or not getattr(settings, one.own, ""):
        return False
    suggested = [(each.key, getattr(settings, each.suggests, "")) for each in kind.settings if each.suggests]
    return all(given.get(f"config.{key}", "").strip().rstrip("/") == str(url).rstrip("/") for key, url in suggested)


def _store(request: PageRequest, row: Provider, secrets: Mapping[str, str]) -> None:
    for name, secret in secrets.items():
        try:
            providers.set_credential(provider=row, name=name, secret=secret, actor=request.actor, now=request.now)
        except InvalidSpec as error:
            raise InvalidSpec(error.detail, field=f"secret.{name}") from error


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    found = problems.at_fields(error)
    if error.specific_code == "name-taken":
        return {"name": error.detail}
    return found


def _first(
    request: PageRequest,
    kinds: Sequence[ProviderKind],
    kind: ProviderKind | None,
    errors: Mapping[str, str],
    *,
    status: int = 200,
) -> HttpResponse:
    values = {
        "kinds": [
            {"value": one.slug, "label": _(one.title), "text": _(one.sentence), "icon": one.icon,
             "badge": _("Simulated") if one.simulated else "", "tone": "warn"}
            for one in kinds
        ],
        "kind": kind,
        "title": _(kind.title) if kind is not None else "",
        "name": request.POST.get("name", ""),
        "site": request.POST.get("site", ""),
        "fields": _fields(kind, request.POST, errors) if kind is not None else [],
        "secrets": _secret_fields(kind, errors) if kind is not None else [],
        "rights": [_(right) for right in kind.rights] if kind is not None else [],
        "documents": _documents(kind),
        "errors": errors,
        "steps": _steps(None, "credentials", "credentials"),
        "breadcrumbs": _crumbs(None),
        "is_new": True,
    }  # fmt: skip
    return render(request, "frontend/pages/connect/credentials.html", values, status=status)


def _fields(
    kind: ProviderKind, given: Mapping[str, str], errors: Mapping[str, str], stored: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    return [
        {
            "name": f"config.{one.key}",
            "label": _(one.label),
            "sentence": _(one.sentence),
            "example": one.example,
            "required": one.required,
            "options": [{"value": value, "label": _(text)} for value, text in one.choices],
            "is_long": one.is_long,
            "is_advanced": one.is_advanced,
            "value": given.get(
                f"config.{one.key}",
                provider_kinds.text_of(stored.get(one.key, "")) if stored is not None else _suggested(one),
            ),
            "error": errors.get(f"config.{one.key}", ""),
        }
        for one in kind.settings
    ]  # fmt: skip


def _documents(kind: ProviderKind | None) -> list[dict[str, str]]:
    return [
        {"title": _(one.title), "sentence": _(one.sentence), "file": one.file, "text": one.text}
        for one in (kind.documents if kind is not None else ())
    ]


def _suggested(one: Setting) -> str:
    """Return what stands in a field at first: this installation's own value, or the first choice."""
    if one.suggests:
        return str(getattr(settings, one.suggests, ""))
    return one.choices[0][0] if one.choices else ""


def _secret_fields(
    kind: ProviderKind, errors: Mapping[str, str], there: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    found = []
    for one in kind.credentials:
        sentence = _(one.sentence)
        has_own = bool(one.own and getattr(settings, one.own, ""))
        if one.name in there:
            sentence += " " + _("One is stored; leave it empty to keep it.")
        elif has_own:
            sentence += " " + _("Leave it empty to use this installation's own, at its own address.")
        found.append(
            {
                "name": f"secret.{one.name}",
                "label": _(one.label),
                "sentence": sentence,
                "optional": has_own or one.name in there or one.optional,
                "is_long": one.is_long,
                "error": errors.get(f"secret.{one.name}", ""),
            }
        )
    return found


@page("providers.set_credential", methods=("GET", "POST"), own_blocks=True)
def credentials(request: PageRequest, provider: str) -> HttpResponse:
    """Change where a provider is and its secrets while it is being connected."""
    row = pages.found(request, provider)
    kind = provider_kinds.kind_of(row.kind)
    if kind is None:
        raise Conflict(_("This installation does not know this kind of provider."), code="not-supported")
    if request.method != "POST":
        return _again(request, row, kind, kernel.tested(row, now=request.now).at_fields)
    given = request.POST
    try:
        config = {**row.config, **_config(kind, given)}
        with reading(request.actor):
            there = frozenset(row.credentials.values_list("name", flat=True))
        secrets = _secrets(kind, given) if not _kept(kind, given, there) else {}
        _complete(kind, config, there | set(secrets))
        if config != row.config or given.get("site", row.site) != row.site:
            providers.update(
                provider=row, site=given.get("site", row.site).strip(), config=config, actor=request.actor,
                now=request.now,
            )  # fmt: skip
        _store(request, row, secrets)
    except (InvalidSpec, Conflict) as error:
        return _again(request, row, kind, _at_fields(error), status=problems.status_of(error))
    providers.test(provider=row, actor=request.actor, now=request.now)
    return HttpResponseRedirect(address(row, "check"))


def _kept(kind: ProviderKind, given: Mapping[str, str], there: frozenset[str]) -> bool:
    """Whether nothing was typed and every secret is stored already."""
    return not any(given.get(f"secret.{one.name}") for one in kind.credentials) and all(
        one.name in there or one.optional for one in kind.credentials
    )


def _again(
    request: PageRequest, row: Provider, kind: ProviderKind, errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    with reading(request.actor):
        there = frozenset(row.credentials.values_list("name", flat=True))
        values = frame(row, "credentials") | {
            "kind": kind,
            "title": _(kind.title),
            "name": row.name,
            "site": request.POST.get("site", row.site),
            "fields": _fields(kind, request.POST, errors, row.config),
            "secrets": _secret_fields(kind, errors, there),
            "rights": [_(right) for right in kind.rights],
            "documents": _documents(kind),
            "errors": errors,
            "is_new": False,
        }
        return render(request, "frontend/pages/connect/credentials.html", values, status=status)


# --- 2. test ----------------------------------------------------------------------------------------------


@page("providers.update")
def check(request: PageRequest, provider: str) -> HttpResponse:
    """Show the test while a worker does it, and what it found."""
    row = access.find(pages.rows_of(), provider)
    kind = provider_kinds.kind_of(row.kind)
    values = frame(row, "check") | {
        "test": kernel.tested(row, now=request.now),
        "rights": [_(right) for right in kind.rights] if kind is not None else [],
        "back_url": address(row, "credentials"),
        "next_url": address(row, "found"),
    }
    template = "_check" if request.htmx else "check"
    return render(request, f"frontend/pages/connect/{template}.html", values)


@page("providers.test", methods=("POST",))
def test(request: PageRequest, provider: str) -> HttpResponse:
    """Ask for another test."""
    row = pages.found(request, provider)
    providers.test(provider=row, actor=request.actor, now=request.now)
    return HttpResponseRedirect(address(row, "check"))


# --- 3. found ---------------------------------------------------------------------------------------------


@page("providers.update")
def found(request: PageRequest, provider: str) -> HttpResponse:
    """Show what the provider has: hosts, GPUs and how they are carved, what others use, what does not fit."""
    row = access.find(pages.rows_of(), provider)
    findings = Finding.objects.filter(provider=row, resolved_at__isnull=True).order_by("first_seen_at")[:20]
    values = frame(row, "found") | {
        "test": kernel.tested(row, now=request.now),
        "capabilities": kernel.capabilities(row),
        "boundary_kinds": [str(kernel.BOUNDARY_KINDS.get(k, k)) for k in row.capabilities.get("boundary_kinds", [])],
        "products": [
            {
                **one,
                "mode": str(MODES.get(one["mode"], one["mode"])),
                "layout": str(LAYOUTS.get(one["layout_change"], one["layout_change"])),
                "binding": str(kernel.BINDINGS.get(one["binding"], one["binding"])),
            }
            for one in kernel.gpus_of(row)
        ],
        "foreign": pages.foreign_on(row),
        "findings": [{"row": one, "url": kernel.address("finding", key=one.short_id)} for one in findings],
        "back_url": address(row, "check"),
        "next_url": address(row, "hand-over"),
        "columns": [
            {"key": "product", "label": _("GPU")},
            {"key": "gpus", "label": _("GPUs"), "numeric": True},
            {"key": "hosts", "label": _("Hosts"), "numeric": True},
            {"key": "mode", "label": _("Now")},
            {"key": "layout", "label": _("Parts")},
            {"key": "binding", "label": _("Who chooses the GPU")},
        ],
    }
    return render(request, "frontend/pages/connect/found.html", values)
