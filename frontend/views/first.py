"""First steps: ask for a tenant with what is to run in it first, ask to join one, and follow what becomes of it.

The one way in for people who belong to no tenant yet. What an approval started is opened here: its first key is made
for its owner then, and shown once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from django.contrib import messages
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.forms import wishes
from frontend.kernel import asks, once, outlook, plans, problems, words
from frontend.kernel.page import PageRequest, page
from frontend.views import new
from frontend.views.requests import read_number
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec, NotVisible
from tenants.models import Endpoint, EndpointKey, Request
from tenants.operations import endpoints, first_wishes, requests
from tenants.states import ROLE_BY_WORD, OnShortage, RequestKind, RequestState
from tenants.transactions import reading

NEWS: Final = timedelta(days=14)
"""So long what an approval started waits to be opened here before Home shows it like everything else."""
SHOWN: Final = 20
GRANTED: Final = (RequestState.APPROVED.value, RequestState.REDUCED.value)
KINDS: Final = (RequestKind.TENANT.value, RequestKind.JOIN.value)
ROLES: Final = {
    "viewer": gettext_lazy("Viewer: sees everything, changes nothing"),
    "member": gettext_lazy("Member: deploys and gives back"),
    "owner": gettext_lazy("Owner: also people, limits and first decisions"),
}
FIELDS: Final[Mapping[str, str]] = {
    "payload.name": "tenant_name",
    "payload.display_name": "title",
    "payload.until": "days",
    "payload.wish": "model",
    "payload.wish.endpoint.name": "model",
    "payload.wish.endpoint.model": "model",
    "payload.role": "role",
    "reason": "reason",
    "model": "model",
    "size": "model",
}
"""Field of an operation → field of the form."""


def mine(request: PageRequest) -> QuerySet[Request]:
    """Return what the person asked for himself: tenants and ways in."""
    rows = requests.visible(request.actor).filter(requester_id=request.actor.person_id, kind__in=KINDS)
    return rows.select_related(*asks.JOINED).prefetch_related("stages", "decisions")


def unopened(request: PageRequest) -> str:
    """Return the page on which the person opens what his approved tenant started, `""` without such; one query."""
    keys = EndpointKey.objects.filter(endpoint__allocation=OuterRef("allocation"))
    living = Endpoint.objects.filter(allocation=OuterRef("allocation"), deletion_requested_at__isnull=True)
    rows = Request.objects.filter(
        ~Exists(keys), Exists(living), requester_id=request.actor.person_id, kind=RequestKind.TENANT.value,
        state__in=GRANTED, decided_at__gt=request.now - NEWS,
    )  # fmt: skip
    found = rows.order_by("-decided_at").values_list("short_id", flat=True).first()
    return reverse("frontend:first-request", kwargs={"name": found}) if found else ""


@page("who.read")
def show(request: PageRequest) -> HttpResponse:
    """Show what one can do without a tenant, and what was asked already."""
    rows = mine(request).order_by("-created_at", "-pk")[:SHOWN]
    values = {"asked": [_line(row) for row in rows]}
    return render(request, "frontend/pages/first/steps.html", values)


def _line(row: Request) -> dict[str, Any]:
    return {
        "row": row,
        "what": asks.what(row),
        "state": asks.state(row),
        "next": asks.next_decider(row),
        "url": reverse("frontend:first-request", kwargs={"name": row.short_id}),
    }


# --- asking for a tenant ----------------------------------------------------------------------------------


@page("requests.create_tenant", methods=("GET", "POST"), own_blocks=True)
def tenant(request: PageRequest) -> HttpResponse:
    """Ask for a tenant together with the first thing that is to run in it: one form, one decision."""
    given = _filled(request.POST if request.method == "POST" else request.GET)
    with reading(request.actor):
        screen = new.endpoint_screen(None, given, now=request.now)
    if request.method == "POST":
        try:
            made = _ask(request, screen, given)
        except (InvalidSpec, Conflict) as error:
            return _form(request, screen, given, _at_fields(error), status=problems.status_of(error))
        messages.success(request, _("Asked for: %(what)s.") % {"what": asks.what(made)})
        return HttpResponseRedirect(reverse("frontend:first-request", kwargs={"name": made.short_id}))
    deciders: list[str] = []
    errors: dict[str, str] = {}
    if given.get("tenant_name"):
        try:
            deciders = plans.planned(lambda: _ask(request, screen, given), _deciders)
        except (InvalidSpec, Conflict) as error:
            errors = _at_fields(error)
    template = "_answer" if request.htmx else "tenant"
    return _form(request, screen, given, errors, deciders=deciders, template=template)


def _filled(given: QueryDict) -> QueryDict:
    """Return the form with the tenant's name made from its title where nobody wrote one."""
    found = given.copy()
    if not found.get("tenant_name", "").strip() and found.get("title", "").strip():
        found["tenant_name"] = wishes.free_name(slugify(found.get("title", "")), ())
    return found


def _ask(request: PageRequest, screen: new.EndpointScreen, given: QueryDict) -> Request:
    """File the request. Raises `InvalidSpec`, `Conflict`."""
    wish: dict[str, Any] = {}
    until = None
    if given.get("first", "model") != "nothing":
        ask = screen.ask()
        ask = replace(ask, allocation=replace(ask.allocation, on_shortage=OnShortage.FAIL))
        wish = first_wishes.stored(ask, days=screen.wish.days)
        until = wishes.ends(request.now, screen.wish.days).isoformat()
    payload = {
        "name": given.get("tenant_name", "").strip(),
        "display_name": given.get("title", "").strip(),
        "until": until,
        "wish": wish,
    }
    return requests.submit(
        kind=RequestKind.TENANT.value, payload=payload, reason=given.get("reason", ""), actor=request.actor,
        now=request.now,
    )  # fmt: skip


def _deciders(row: Request) -> list[str]:
    return [outlook.decider(stage.decider) for stage in sorted(row.stages.all(), key=lambda one: one.order)]


def _form(
    request: PageRequest,
    screen: new.EndpointScreen,
    given: QueryDict,
    errors: Mapping[str, str],
    *,
    deciders: list[str] | None = None,
    template: str = "tenant",
    status: int = 200,
) -> HttpResponse:
    values: dict[str, Any] = {
        "screen": screen,
        "wish": screen.wish,
        "errors": errors,
        "title": given.get("title", ""),
        "tenant_name": given.get("tenant_name", ""),
        "reason": given.get("reason", ""),
        "first": given.get("first", "model"),
        "first_options": [
            {"value": "model", "label": _("Yes, start this model")},
            {"value": "nothing", "label": _("No, only the tenant")},
        ],
        "deciders": deciders or [],
        "ends": wishes.ends(request.now, screen.wish.days),
        "here": reverse("frontend:first-tenant"),
        "breadcrumbs": _crumbs(_("Ask for a tenant")),
        **new.endpoint_options(screen),
        "days_options": new.days_options(screen.wish.days),
    }
    return render(request, f"frontend/pages/first/{template}.html", values, status=status)


def _crumbs(label: str) -> list[dict[str, str]]:
    return [{"label": _("First steps"), "url": reverse("frontend:first")}, {"label": label, "url": ""}]


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    """Return field of the form → sentence; what belongs to none stands above it."""
    return {FIELDS.get(name, ""): words.plain(text) for name, text in problems.at_fields(error).items()}


# --- asking to join ---------------------------------------------------------------------------------------


@page("requests.create_join", methods=("GET", "POST"), own_blocks=True)
def join(request: PageRequest) -> HttpResponse:
    """Ask the owners of a tenant to be let in."""
    given = request.POST if request.method == "POST" else request.GET
    errors: dict[str, str] = {}
    status = 200
    if request.method == "POST":
        try:
            made = requests.submit(
                kind=RequestKind.JOIN.value,
                payload={"role": given.get("role", "member")},
                reason=given.get("reason", ""),
                join=given.get("tenant_name", "").strip(),
                actor=request.actor,
                now=request.now,
            )
        except NotVisible:
            errors, status = {"tenant_name": _("No tenant has this name. Ask a colleague how yours is called.")}, 422
        except (InvalidSpec, Conflict) as error:
            errors, status = _at_fields(error), problems.status_of(error)
        else:
            messages.success(request, _("Asked. The owners of %(name)s decide.") % {"name": given["tenant_name"]})
            return HttpResponseRedirect(reverse("frontend:first-request", kwargs={"name": made.short_id}))
    values = {
        "errors": errors,
        "tenant_name": given.get("tenant_name", ""),
        "reason": given.get("reason", ""),
        "role": given.get("role", "member"),
        "roles": [{"value": word, "label": str(ROLES[word])} for word in ROLE_BY_WORD],
        "breadcrumbs": _crumbs(_("Ask to join")),
    }
    return render(request, "frontend/pages/first/join.html", values, status=status)


# --- what became of it ------------------------------------------------------------------------------------


@page("who.read")
def asked(request: PageRequest, name: str) -> HttpResponse:
    """Show one request of the person's own: who decides, what happens next, and what came of it."""
    row = access.find(mine(request), name)
    product = asks.product_of(row)
    granted = row.state in GRANTED
    wish = first_wishes.read(row.payload.get("wish") or {})
    decisions = sorted(row.decisions.all(), key=lambda one: one.created_at)
    values = {
        "row": row,
        "what": asks.what(row),
        "kind": asks.kind(row),
        "state": asks.state(row),
        "steps": _steps(row, product),
        "next_decider": asks.next_decider(row),
        "is_open": row.state == RequestState.SUBMITTED.value,
        "is_tenant": row.kind == RequestKind.TENANT.value,
        "granted": granted,
        "wish": wish,
        "wish_until": asks.until_of(row.payload),
        "product": product,
        "why_not": _why_not(decisions[-1].proof if decisions else {}) if granted and product is None else "",
        "has_key": product is not None and EndpointKey.objects.filter(endpoint_id=product.pk).exists(),
        "said": decisions[-1].reason if decisions and decisions[-1].reason else "",
        "home_url": reverse("frontend:home-of", kwargs={"tenant": row.tenant.name}) if row.tenant and granted else "",
        "here": reverse("frontend:first-request", kwargs={"name": row.short_id}),
        "breadcrumbs": _crumbs(row.short_id),
    }
    template = "_asked" if request.htmx else "asked"
    return render(request, f"frontend/pages/first/{template}.html", values)


def _why_not(proof: Mapping[str, Any]) -> str:
    found = proof.get("wish") or {}
    return words.plain(str(found.get("why", "")))


def _steps(row: Request, product: Any) -> list[dict[str, Any]]:
    """Return asked, the stages, what is made, ready: the whole way for people to see where they are."""
    found = [{"label": _("Asked"), "state": "done", "note": ""}, *asks.stages(row)]
    granted = row.state in GRANTED
    if row.kind == RequestKind.JOIN.value:
        return [*found, {"label": _("You are in"), "state": "done" if granted else "todo", "note": ""}]
    found.append({"label": _("Tenant made"), "state": "done" if granted else "todo", "note": ""})
    if product is not None or (row.payload.get("wish") or {}).get("endpoint"):
        ready = product is not None and product.phase == "Ready"
        state = "done" if ready else ("current" if product is not None else "todo")
        found.append({"label": _("Endpoint answers"), "state": state, "note": ""})
    return found


@page("requests.withdraw", methods=("POST",))
def withdraw(request: PageRequest, name: str) -> HttpResponse:
    """Take a request of one's own back."""
    with reading(request.actor):
        row = access.find(mine(request), name)
    version = read_number(request.POST.get("version"), field="version")
    try:
        requests.withdraw(request=row, version=version, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, words.plain(error.detail))
    else:
        messages.success(request, _("Withdrawn: %(what)s.") % {"what": asks.what(row)})
    return HttpResponseRedirect(reverse("frontend:first"))


@page("endpoints.create_key", methods=("POST",))
def open_it(request: PageRequest, name: str) -> HttpResponse:
    """Go to what the approval started; the first who opens it gets its first key, shown there once."""
    with reading(request.actor):
        row = access.find(mine(request).filter(state__in=GRANTED), name)
        endpoint = asks.product_of(row)
        if not isinstance(endpoint, Endpoint):
            raise NotVisible
        has_key = EndpointKey.objects.filter(endpoint=endpoint).exists()
    address = reverse("frontend:endpoint", kwargs={"tenant": endpoint.tenant.name, "name": endpoint.name})
    response = HttpResponseRedirect(address)
    if not has_key:
        _key, secret = endpoints.create_key(
            endpoint=endpoint, name="first", expires_at=None, actor=request.actor, now=request.now
        )
        once.put(request, response, secret, path=address)
    return response
