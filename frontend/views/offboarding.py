"""Taking somebody out of a tenant, or going oneself: a page that says what goes, what stays and who gets it, first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.kernel import plans, problems, twins
from frontend.kernel.page import PageRequest, page
from frontend.views import people
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec, NotVisible
from tenants.models import ApiToken, Endpoint, EndpointKey, Machine, Membership, Namespace, Person, ServiceAccount
from tenants.operations import members
from tenants.states import Role
from tenants.transactions import reading

MOST: Final = 50
"""Lines of each kind that are named; the rest is counted."""
MOST_HEIRS: Final = 200
PRODUCTS: Final = ((Endpoint, "endpoint"), (Machine, "machine"), (Namespace, "namespace"))


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing that hangs on a person here."""

    kind: str
    name: str
    url: str
    becomes: str
    """What happens to it, in words."""


@page("members.delete", methods=("GET", "POST"), own_blocks=True)
def remove(request: PageRequest, member: UUID) -> HttpResponse:
    """Show what a person holds here and who could take it; on POST take him out."""
    return _leave(request, people.found(request, member))


@page("members.leave", methods=("GET", "POST"), own_blocks=True)
def leave(request: PageRequest) -> HttpResponse:
    """Show what one leaves behind; on POST go."""
    with reading(request.actor):
        rows = Membership.objects.filter(tenant=request.tenant, person=request.portal.person)
        row = rows.select_related("person", "tenant").first()
    if row is None:
        raise NotVisible
    return _leave(request, row)


def _leave(request: PageRequest, row: Membership) -> HttpResponse:
    given = request.POST if request.method == "POST" else request.GET
    successor = _successor(given.get("successor", ""))
    if request.method != "POST":
        return _plan(request, row, successor)
    if row.role == Role.OWNER and request.POST.get("confirm") != row.person.email:
        error = InvalidSpec(_("Type the e-mail to take an owner out."), field="confirm")
        return _plan(request, row, successor, error=error)
    try:
        done = members.remove(membership=row, successor=successor, actor=request.actor, now=request.now)
    except (Conflict, InvalidSpec) as error:
        return _plan(request, row, successor, error=error)
    if row.person_id == request.actor.person_id:
        messages.success(request, _("You left %(tenant)s.") % {"tenant": request.tenant.display_name})
        return HttpResponseRedirect("/")
    text = _("%(name)s has no access any more.") % {"name": row.person.display_name}
    if done.disabled:
        text += " " + _("Ended with it: %(names)s.") % {"names": ", ".join(done.disabled)}
    messages.success(request, text)
    return people.back(request)


def _successor(text: str) -> Person | None:
    return Person(pk=people.person_key(text)) if text else None


def _plan(
    request: PageRequest, row: Membership, successor: Person | None, *, error: ControlPlaneError | None = None
) -> HttpResponse:
    """Return the page of what would happen: the operation itself, tried and undone."""
    problem = error
    done: members.Handover | None = None
    try:
        done = plans.planned(
            lambda: members.remove(membership=row, successor=successor, actor=request.actor, now=request.now),
            lambda result: result,
        )
    except (Conflict, InvalidSpec) as refusal:
        problem = problem or refusal
    errors = problems.at_fields(problem) if problem is not None else {}
    with reading(request.actor):
        values = _values(request, row, successor, done)
    values |= {"errors": errors, "blocked": done is None, "code": problem.specific_code if problem else ""}
    status = problems.status_of(error) if error is not None else 200
    return render(request, "frontend/pages/people/remove.html", values, status=status)


def _values(
    request: PageRequest, row: Membership, successor: Person | None, done: members.Handover | None
) -> dict[str, Any]:
    tenant = request.tenant
    mine = row.person_id == request.actor.person_id
    others = Membership.objects.filter(tenant_id__in=tenant.path, role__gte=int(Role.MEMBER), person__is_active=True)
    heirs = others.exclude(person_id=row.person_id).select_related("person").order_by("person__display_name")
    chosen = str(successor.pk) if successor is not None else ""
    names = {str(each.person_id): each.person.display_name for each in heirs[:MOST_HEIRS]}
    heir = names.get(chosen, "")
    tokens = ApiToken.objects.filter(person_id=row.person_id, tenant=tenant, revoked_at__isnull=True)
    keys = EndpointKey.objects.filter(tenant=tenant, author_id=row.person_id, revoked_at__isnull=True)
    up = reverse("frontend:people", kwargs={"tenant": tenant.name})
    holdings = [*_products(request, row, heir), *_accounts(request, row, heir, done)]
    shown = list(keys.order_by("name", "pk").values_list("pk", flat=True)[:MOST])
    return {
        "row": row,
        "mine": mine,
        "role": str(people.ROLES[Role(row.role)]),
        "holdings": holdings,
        "holdings_more": _held(request, row) - len(holdings),
        "holding_columns": [
            {"key": "kind", "label": _("Kind")},
            {"key": "name", "label": _("Name")},
            {"key": "then", "label": _("Then")},
        ],
        "token_count": tokens.count(),
        "keys": list(keys.filter(pk__in=shown).select_related("endpoint").order_by("endpoint__name", "name")),
        "keys_more": keys.count() - len(shown) if len(shown) == MOST else 0,
        "heirs": [{"value": "", "label": _("Nobody yet")}, *({"value": k, "label": v} for k, v in names.items())],
        "successor": chosen,
        "must_type": row.person.email if row.role == Role.OWNER else "",
        "here": request.path,
        "twins": twins.pair(
            f"tenantry --tenant {tenant.name} member remove {row.person.email}",
            twins.api("DELETE", f"tenants/{tenant.name}/members/{row.person_id}", version=row.version),
        ),
        "back_url": up,
        "breadcrumbs": [
            {"label": _("People and access"), "url": up},
            {"label": _("Leave") if mine else _("Offboard %(name)s") % {"name": row.person.display_name}, "url": ""},
        ],
    }


def _held(request: PageRequest, row: Membership) -> int:
    """Return how much hangs on the person here, of all kinds."""
    mine: dict[str, Any] = {"tenant": request.tenant, "owner_id": row.person_id}
    accounts = ServiceAccount.objects.filter(disabled_at__isnull=True, **mine).count()
    return accounts + sum(model._base_manager.filter(released_at__isnull=True, **mine).count() for model, _ in PRODUCTS)


def _products(request: PageRequest, row: Membership, heir: str) -> list[Holding]:
    then = _("goes on; %(name)s owns it") % {"name": heir} if heir else _("goes on; an owner hands it over later")
    words = {"endpoint": _("Endpoint"), "machine": _("Machine"), "namespace": _("Namespace")}
    return [
        Holding(
            words[word],
            product.name,
            reverse(f"frontend:{word}", kwargs={"tenant": request.tenant.name, "name": product.short_id}),
            then,
        )
        for model, word in PRODUCTS
        for product in model._base_manager.filter(
            tenant=request.tenant, owner_id=row.person_id, released_at__isnull=True
        ).order_by("name")[:MOST]
    ]


def _accounts(request: PageRequest, row: Membership, heir: str, done: members.Handover | None) -> list[Holding]:
    rows = ServiceAccount.objects.filter(tenant=request.tenant, owner_id=row.person_id, disabled_at__isnull=True)
    found = []
    for account in rows.order_by("name")[:MOST]:
        where = {"tenant": request.tenant.name, "name": account.name}
        if done is not None and account.name in done.disabled:
            then = _("ends with its tokens: nobody can answer for it")
        else:
            then = _("%(name)s answers for it") % {"name": heir} if heir else _("an owner answers for it")
        found.append(
            Holding(_("Service account"), account.name, reverse("frontend:service-account", kwargs=where), then)
        )
    return found


@page("members.hand_over", methods=("POST",))
def hand_over(request: PageRequest, person: UUID) -> HttpResponse:
    """Give what somebody owns here, who may be gone already, to a member."""
    to = _successor(request.POST.get("successor", ""))
    if to is None:
        raise InvalidSpec(_("Choose a member."), field="successor")
    done = members.hand_over(tenant=request.tenant, person_id=person, to=to, actor=request.actor, now=request.now)
    count = len(done.objects) + len(done.service_accounts)
    messages.success(request, _("Handed over: %(n)d.") % {"n": count})
    return people.back(request)
