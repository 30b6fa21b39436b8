"""Service accounts of a tenant: programs' own ways in, who answers for them, their tokens (shown once), their end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from django.contrib import messages
from django.db.models import Count, Max, Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.forms import wishes
from frontend.kernel import lists, once, problems, twins
from frontend.kernel.page import PageRequest, page
from frontend.views import people
from tenants import access, tokens
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import ApiToken, Membership, Person, ServiceAccount
from tenants.operations import people as token_operations
from tenants.operations import service_accounts
from tenants.policies import ROUTES
from tenants.states import Role
from tenants.transactions import reading

LONGEST_DAYS: Final = 3650
MOST: Final = 500


def rows_of(request: PageRequest) -> QuerySet[ServiceAccount]:
    """Return the living service accounts of the tenant, with when they last came and how many tokens they have."""
    live = Q(tokens__revoked_at__isnull=True) & (
        Q(tokens__expires_at__isnull=True) | Q(tokens__expires_at__gt=request.now)
    )
    rows = ServiceAccount.objects.filter(tenant=request.tenant, disabled_at__isnull=True).select_related("tenant")
    return rows.annotate(used_at=Max("tokens__last_used_at"), live_tokens=Count("tokens", filter=live))


@page("service-accounts.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the service accounts with role, who answers, last use and end."""
    rows: list[Any] = list(rows_of(request).order_by("name")[:MOST])
    owners = dict(Person.objects.filter(pk__in={row.owner_id for row in rows}).values_list("pk", "display_name"))
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, rows, owners, form)
    return render(request, "frontend/pages/people/accounts.html", _values(request, rows, owners))


def _values(
    request: PageRequest, rows: list[Any], owners: Mapping[Any, str], errors: Mapping[str, str] | None = None
) -> dict[str, Any]:
    where = {"tenant": request.tenant.name}
    return {
        "lines": [
            {
                "row": row,
                "role": str(people.ROLES[Role(row.role)]),
                "owner": owners.get(row.owner_id, _("somebody from outside")),
                "is_over": row.expires_at is not None and row.expires_at <= request.now,
                "url": reverse("frontend:service-account", kwargs={**where, "name": row.name}),
            }
            for row in rows
        ],
        "columns": [
            {"key": "name", "label": _("Name")},
            {"key": "role", "label": _("Role")},
            {"key": "owner", "label": _("Answers for it")},
            {"key": "tokens", "label": _("Live tokens"), "numeric": True},
            {"key": "used", "label": _("Last used")},
            {"key": "ends", "label": _("Ends")},
        ],
        "may_act": may_act(request),
        "role_options": _role_options(),
        "errors": errors or {},
        "given": request.POST,
        "tabs": people.tabs(request, "service-accounts"),
        "twins": twins.pair(
            f"tenantry --tenant {request.tenant.name} service-account create nightly-evals --role member --for 365d",
            twins.api(
                "POST", f"tenants/{request.tenant.name}/service-accounts", {"name": "nightly-evals", "role": "member"}
            ),
        ),
    }


def may_act(request: PageRequest) -> bool:
    """Whether the person may make and end service accounts."""
    return access.allowed(request.actor, request.tenant, ROUTES["service-accounts.create"])


def _role_options() -> list[dict[str, str]]:
    roles = (Role.MEMBER, Role.VIEWER)
    return [{"value": role.word, "label": f"{people.ROLES[role]}: {people.DOES[role]}"} for role in roles]


def _exported(request: PageRequest, rows: list[Any], owners: Mapping[Any, str], form: str) -> HttpResponse:
    columns = ["name", "role", "owner", "live_tokens", "last_used", "created_at", "expires_at"]
    body = [
        {
            "name": row.name,
            "role": Role(row.role).word,
            "owner": owners.get(row.owner_id, ""),
            "live_tokens": row.live_tokens,
            "last_used": row.used_at,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
        }
        for row in rows
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-service-accounts", form=form)


@page("service-accounts.create", methods=("POST",))
def create(request: PageRequest) -> HttpResponse:
    """Make a service account; its page offers the first token."""
    given = request.POST
    days = wishes.number(given.get("days"), 0, least=0, most=LONGEST_DAYS)
    try:
        row = service_accounts.create(
            tenant=request.tenant,
            name=given.get("name", "").strip(),
            role=people.role_of(given.get("role", "member")),
            expires_at=request.now + timedelta(days=days) if days else None,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _again(request, error)
    messages.success(request, _("%(name)s is made. Now make its token.") % {"name": row.name})
    return HttpResponseRedirect(_address(request, row))


def _again(request: PageRequest, error: ControlPlaneError) -> HttpResponse:
    errors = problems.at_fields(error)
    if error.specific_code == "name-taken":
        errors = {"name": error.detail}
    with reading(request.actor):
        rows: list[Any] = list(rows_of(request).order_by("name")[:MOST])
        owners = dict(Person.objects.filter(pk__in={row.owner_id for row in rows}).values_list("pk", "display_name"))
        values = _values(request, rows, owners, errors)
        return render(request, "frontend/pages/people/accounts.html", values, status=problems.status_of(error))


def _address(request: PageRequest, row: ServiceAccount) -> str:
    return reverse("frontend:service-account", kwargs={"tenant": request.tenant.name, "name": row.name})


def _found(request: PageRequest, name: str) -> Any:
    with reading(request.actor):
        return access.find(rows_of(request), name)


# --- one ----------------------------------------------------------------------------------------------


@page("service-accounts.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one service account; its tokens to owners only, one just made once."""
    row: Any = access.find(rows_of(request), name)
    secret = once.peek(request)
    owner = Person.objects.filter(pk=row.owner_id).first()
    acts = may_act(request)
    sees_tokens = acts or request.actor.sees_all
    heirs = Membership.objects.filter(
        tenant_id__in=request.tenant.path, role__gte=int(Role.MEMBER), person__is_active=True
    )
    live = ApiToken.objects.filter(service_account=row, revoked_at__isnull=True).order_by("-created_at")
    up = reverse("frontend:service-accounts", kwargs={"tenant": request.tenant.name})
    values = {
        "row": row,
        "secret": secret,
        "facts": [
            {"label": _("Role"), "value": str(people.ROLES[Role(row.role)]), "note": str(people.DOES[Role(row.role)])},
            {"label": _("Answers for it"), "value": owner.display_name if owner else _("somebody from outside")},
        ],
        "may_act": acts,
        "sees_tokens": sees_tokens,
        "tokens": list(live[: tokens.MOST_TOKENS]) if sees_tokens else [],
        "token_columns": [
            {"key": "name", "label": _("Name")},
            {"key": "made", "label": _("Made")},
            {"key": "used", "label": _("Last used")},
            {"key": "ends", "label": _("Ends")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
        "heir_options": [
            {"value": str(each.person_id), "label": each.person.display_name}
            for each in heirs.select_related("person").order_by("person__display_name")[:MOST]
        ]
        if acts
        else [],
        "role_options": _role_options(),
        "role": Role(row.role).word,
        "owner_value": str(row.owner_id),
        "up": up,
        "breadcrumbs": [
            {
                "label": _("People and access"),
                "url": reverse("frontend:people", kwargs={"tenant": request.tenant.name}),
            },
            {"label": _("Service accounts"), "url": up},
            {"label": row.name, "url": ""},
        ],
    }
    response = render(request, "frontend/pages/people/account.html", values)
    if secret:
        once.forget(request, response)
    return response


@page("service-accounts.update", methods=("POST",))
def change(request: PageRequest, name: str) -> HttpResponse:
    """Change role or who answers for it."""
    row = _found(request, name)
    owner = request.POST.get("owner", "")
    try:
        service_accounts.update(
            account=row,
            role=people.role_of(request.POST.get("role", "")),
            owner=Person(pk=people.person_key(owner)) if owner and owner != str(row.owner_id) else None,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("Changed."))
    return HttpResponseRedirect(_address(request, row))


@page("service-accounts.disable", methods=("POST",))
def end(request: PageRequest, name: str) -> HttpResponse:
    """End a service account for good, and its tokens with it; its name must be typed."""
    row = _found(request, name)
    if request.POST.get("confirm") != row.name:
        raise InvalidSpec(_("Type the name of the service account to end it."), field="confirm")
    service_accounts.disable(account=row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s and its tokens open nothing any more.") % {"name": row.name})
    return people.back(request, "service-accounts")


@page("service-account-tokens.create", methods=("POST",))
def create_token(request: PageRequest, name: str) -> HttpResponse:
    """Make a token; the next page shows it once."""
    row = _found(request, name)
    days = wishes.number(request.POST.get("days"), 0, least=0, most=LONGEST_DAYS)
    response = HttpResponseRedirect(_address(request, row))
    try:
        issued = service_accounts.issue_token(
            account=row,
            name=request.POST.get("name", "").strip(),
            read_only=bool(request.POST.get("read_only")),
            expires_at=request.now + timedelta(days=days) if days else None,
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return response
    once.put(request, response, issued.plain, path=response["Location"])
    return response


@page("service-account-tokens.revoke", methods=("POST",))
def revoke_token(request: PageRequest, name: str, token: str) -> HttpResponse:
    """End one token of a service account."""
    row = _found(request, name)
    with reading(request.actor):
        found = tokens.named(ApiToken.objects.filter(service_account=row).select_related("tenant"), token)
    token_operations.revoke_token(token=found, actor=request.actor, now=request.now)
    messages.success(request, _("The token %(name)s is revoked.") % {"name": found.name})
    return HttpResponseRedirect(_address(request, row))
