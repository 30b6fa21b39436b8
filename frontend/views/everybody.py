"""All people of the platform, for operators: roles, suspending, leaving, erasing. Each that takes away is planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Max, OuterRef, Prefetch, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.design.moments import absolute
from frontend.kernel import lists, problems, words
from frontend.kernel.page import PageRequest, page
from tenants import access, second_factors
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import (
    ApiToken,
    Delegation,
    Endpoint,
    Event,
    Machine,
    Membership,
    Namespace,
    Person,
    PlatformMembership,
    Request,
    ServiceAccount,
)
from tenants.operations import leavers, people
from tenants.operations.members import other_owners
from tenants.policies import ROUTES
from tenants.states import PlatformRole, RequestState, Role
from tenants.transactions import reading

ROLES: Final[Mapping[str, tuple[str | Promise, str | Promise]]] = {
    PlatformRole.OPERATOR.value: (
        gettext_lazy("Operator"),
        gettext_lazy("Runs the platform: tenants, people, providers, hosts, prices, rules."),
    ),
    PlatformRole.APPROVER.value: (
        gettext_lazy("Approver"),
        gettext_lazy("Decides requests for the platform. Sees everything, changes nothing else."),
    ),
    PlatformRole.AUDITOR.value: (
        gettext_lazy("Auditor"),
        gettext_lazy("Sees everything and changes nothing."),
    ),
}
STATES: Final[Mapping[str, tuple[str | Promise, str, str]]] = {
    "active": (gettext_lazy("Active"), "ok", "circle-check"),
    "suspended": (gettext_lazy("Suspended"), "warn", "circle-pause"),
    "left": (gettext_lazy("Left"), "quiet", "log-out"),
    "erased": (gettext_lazy("Erased"), "quiet", "eraser"),
}
LOG_INS: Final = ("person.logged-in", "person.demo-log-in")
TENANTS_SHOWN: Final = 100
HELD_SHOWN: Final = 50
OWNED: Final = (("endpoint", Endpoint), ("machine", Machine), ("namespace", Namespace))


def state_of(row: Person) -> str:
    """Return the key of a person's state."""
    if row.left_at is not None:
        return "erased" if row.display_name == people.ERASED else "left"
    return "active" if row.is_active else "suspended"


def _badge(row: Person) -> dict[str, str]:
    text, tone, icon = STATES[state_of(row)]
    return {"text": str(text), "tone": tone, "icon": icon}


# --- the list -----------------------------------------------------------------------------------------------


@page("people.list")
def listed(request: PageRequest) -> HttpResponse:
    """List everybody who has an account, newest first."""
    rows = _filtered(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = found.after
    safe, seen = second_factors.having(row.pk for row in found.rows), _seen(found.rows)
    every = {"value": "", "label": _("All")}
    given = request.GET
    values = {
        "lines": [_line(row, safe, seen) for row in found.rows],
        "empty": not found.rows,
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "is_filtered": any(given.get(key) for key in ("q", "state", "role")),
        "clear_url": request.path,
        "search": {"name": "q", "value": given.get("q", ""), "label": _("Name or e-mail")},
        "fields": [
            {
                "name": "state",
                "label": _("State"),
                "value": given.get("state", ""),
                "options": [
                    every,
                    *({"value": key, "label": str(STATES[key][0])} for key in ("active", "suspended", "left")),
                ],
            },
            {
                "name": "role",
                "label": _("Platform role"),
                "value": given.get("role", ""),
                "options": [
                    every,
                    *({"value": key, "label": str(text)} for key, (text, _does) in ROLES.items()),
                    {"value": "none", "label": _("None")},
                ],
            },
        ],
        "columns": [
            {"key": "name", "label": _("Who")},
            {"key": "state", "label": _("State")},
            {"key": "roles", "label": _("Platform roles")},
            {"key": "tenants", "label": _("Tenants"), "numeric": True},
            {"key": "factor", "label": _("Second factor")},
            {"key": "seen", "label": _("Last log-in")},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/everybody/{template}.html", values)


def _filtered(request: PageRequest) -> QuerySet[Person]:
    given = request.GET
    roles = Prefetch("platform_memberships", PlatformMembership.objects.order_by("role"))
    of_person = Membership.objects.filter(person=OuterRef("pk")).order_by().values("person")
    counted = Coalesce(Subquery(of_person.annotate(n=Count("pk")).values("n")), 0)
    rows = Person.objects.prefetch_related(roles).annotate(tenant_count=counted)
    if q := given.get("q", "").strip():
        rows = rows.filter(Q(display_name__icontains=q) | Q(email__icontains=q))
    state, role = given.get("state", ""), given.get("role", "")
    if state == "active":
        rows = rows.filter(is_active=True)
    elif state == "suspended":
        rows = rows.filter(is_active=False, left_at=None)
    elif state == "left":
        rows = rows.filter(left_at__isnull=False)
    if role in ROLES:
        rows = rows.filter(pk__in=PlatformMembership.objects.filter(role=role).values("person_id"))
    elif role == "none":
        rows = rows.exclude(pk__in=PlatformMembership.objects.values("person_id"))
    return rows


def _seen(rows: Iterable[Person]) -> dict[UUID, datetime]:
    """Return person → the last log-in, as far as events go back; one query."""
    events = Event.objects.filter(object_id__in=[row.pk for row in rows], kind__in=LOG_INS)
    return dict(events.order_by().values_list("object_id").annotate(last=Max("at")))


def _line(row: Any, safe: set[UUID], seen: Mapping[UUID, datetime]) -> dict[str, Any]:
    return {
        "seen": seen.get(row.pk),
        "row": row,
        "url": reverse("frontend:everybody-one", kwargs={"person": row.pk}),
        "state": _badge(row),
        "roles": [str(ROLES[one.role][0]) for one in row.platform_memberships.all()],
        "tenants": row.tenant_count,
        "has_factor": row.pk in safe,
    }


def _exported(rows: QuerySet[Person], form: str) -> HttpResponse:
    columns = [
        "id",
        "name",
        "email",
        "state",
        "platform_roles",
        "tenants",
        "second_factor",
        "last_log_in",
        "created_at",
    ]
    found = list(rows.order_by("-created_at", "-id")[: lists.MOST_EXPORTED])
    safe, seen = second_factors.having(row.pk for row in found), _seen(found)
    body = [
        {
            "id": str(row.pk),
            "name": row.display_name,
            "email": row.email,
            "state": state_of(row),
            "platform_roles": " ".join(one.role for one in row.platform_memberships.all()),
            "tenants": getattr(row, "tenant_count", 0),
            "second_factor": row.pk in safe,
            "last_log_in": seen.get(row.pk),
            "created_at": row.created_at,
        }
        for row in found
    ]
    return lists.exported(body, columns, name="people", form=form)


# --- one person -----------------------------------------------------------------------------------------------


@page("people.read")
def show(request: PageRequest, person: UUID) -> HttpResponse:
    """Show one person: roles, tenants, what hangs on him."""
    return _page(request, _find(person), {})


def _find(person: UUID) -> Person:
    return access.find(Person.objects.all(), person)


def _page(request: PageRequest, row: Person, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    state = state_of(row)
    own = row.pk == request.actor.person_id
    mine = {one.role for one in row.platform_memberships.all()}
    may = access.allowed(request.actor, None, ROUTES["people.update"])
    where = {"person": row.pk}
    memberships = row.memberships.select_related("tenant").order_by("tenant__name")
    has_factor = bool(second_factors.having([row.pk]))
    values = {
        "row": row,
        "badge": _badge(row),
        "is_active": state == "active",
        "is_suspended": state == "suspended",
        "has_left": state == "left",
        "own": own,
        "may": may,
        "errors": errors,
        "roles": [
            {"key": key, "label": str(text), "does": str(does), "checked": key in mine}
            for key, (text, does) in ROLES.items()
        ],
        "role_words": ", ".join(str(ROLES[key][0]) for key in sorted(mine)),
        "memberships": [
            {
                "tenant": one.tenant,
                "role": Role(one.role).word,
                "since": one.created_at,
                "url": reverse("frontend:tenancy", kwargs={"name": one.tenant.name}),
            }
            for one in memberships[:TENANTS_SHOWN]
        ],
        "facts": _facts(row, has_factor=has_factor),
        "has_factor": has_factor,
        "seen": _seen([row]).get(row.pk),
        "roles_url": reverse("frontend:everybody-roles", kwargs=where),
        "suspend_url": reverse("frontend:everybody-suspend", kwargs=where),
        "resume_url": reverse("frontend:everybody-resume", kwargs=where),
        "leave_url": reverse("frontend:everybody-leave", kwargs=where),
        "erase_url": reverse("frontend:everybody-erase", kwargs=where),
        "recover_url": reverse("account_recover", kwargs=where),
        "breadcrumbs": [
            {"label": _("All people"), "url": reverse("frontend:everybody")},
            {"label": row.display_name, "url": ""},
        ],
    }
    return render(request, "frontend/pages/everybody/show.html", values, status=status)


def _facts(row: Person, *, has_factor: bool) -> list[dict[str, Any]]:
    live = Q(revoked_at=None)
    tokens = ApiToken.objects.filter(live, person=row).count()
    accounts = ServiceAccount.objects.filter(owner=row, disabled_at=None).count()
    return [
        {"label": _("E-mail"), "value": row.email},
        {"label": _("Account since"), "value": absolute(row.created_at)},
        {"label": _("Second factor"), "value": _("yes") if has_factor else _("none")},
        {"label": _("Tokens"), "value": numbers.number(tokens)},
        {"label": _("Answers for service accounts"), "value": numbers.number(accounts)},
    ]


# --- changes ------------------------------------------------------------------------------------------------


@page("people.set_roles", methods=("POST",))
def set_roles(request: PageRequest, person: UUID) -> HttpResponse:
    """Make the ticked ones the platform roles of a person."""
    wanted = {PlatformRole(key) for key in request.POST.getlist("role") if key in ROLES}
    row = _locked_in(request, person)
    try:
        people.set_roles(person=row, roles=wanted, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        return _again(request, person, error)
    if wanted:
        said = ", ".join(str(ROLES[role.value][0]) for role in sorted(wanted))
        messages.success(request, _("%(name)s is now: %(roles)s.") % {"name": row.display_name, "roles": said})
    else:
        messages.success(request, _("%(name)s has no platform role any more.") % {"name": row.display_name})
    return _to(row)


@page("people.suspend", methods=("POST",))
def suspend(request: PageRequest, person: UUID) -> HttpResponse:
    """Keep a person out until he is resumed."""
    row = _locked_in(request, person)
    try:
        people.suspend(person=row, reason=request.POST.get("reason", ""), actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        return _again(request, person, error)
    messages.success(request, _("%(name)s is kept out; nothing was taken away.") % {"name": row.display_name})
    return _to(row)


@page("people.resume", methods=("POST",))
def resume(request: PageRequest, person: UUID) -> HttpResponse:
    """Let a suspended person in again."""
    row = _locked_in(request, person)
    try:
        people.resume(person=row, actor=request.actor, now=request.now)
    except Conflict as error:
        return _again(request, person, error)
    messages.success(request, _("%(name)s may log in again.") % {"name": row.display_name})
    return _to(row)


@page("people.leave", methods=("GET", "POST"), own_blocks=True)
def leave(request: PageRequest, person: UUID) -> HttpResponse:
    """Let a person go: the page is the plan of what ends and who takes over what."""
    row = _locked_in(request, person)
    if request.method != "POST":
        return _leave_page(request, row, request.GET, {})
    given = request.POST
    try:
        if given.get("confirm", "").strip().lower() != row.email.lower():
            return _leave_page(request, row, given, {"confirm": _("Type the e-mail of the person.")}, status=422)
        successor = _successor(request, given.get("successor", "").strip())
        done = leavers.leave(person=row, successor=successor, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        return _leave_page(request, row, given, _at_fields(error), status=problems.status_of(error))
    text = _("%(name)s has left: %(sessions)d sessions and %(tokens)d tokens ended.")
    said = {"name": row.display_name, "sessions": done.sessions, "tokens": done.tokens}
    messages.success(request, text % said)
    return _to(row)


def _successor(request: PageRequest, email: str) -> Person | None:
    if not email:
        return None
    with reading(request.actor):
        try:
            return people.active_person_by_email(email)
        except InvalidSpec as error:
            raise InvalidSpec(error.detail, field="successor", code=error.specific_code) from error


def _leave_page(
    request: PageRequest, row: Person, given: Any, errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    with reading(request.actor):
        owned = [
            {
                "name": one.name,
                "tenant": one.tenant.name,
                "url": reverse(f"frontend:{word}", kwargs={"tenant": one.tenant.name, "name": one.short_id}),
            }
            for word, model in OWNED
            for one in model._base_manager.filter(owner=row, released_at=None).select_related("tenant")[:HELD_SHOWN]
        ]
        owns = Membership.objects.filter(person=row, role=int(Role.OWNER)).select_related("tenant")
        alone = [one.tenant.display_name for one in owns if other_owners(one.tenant, one.person_id) == 0]
        values = {
            "row": row,
            "given": {key: given.get(key, "") for key in ("successor", "confirm")},
            "errors": errors,
            "owned": owned,
            "alone": alone,
            "tokens": ApiToken.objects.filter(person=row, revoked_at=None).count(),
            "accounts": ServiceAccount.objects.filter(owner=row, disabled_at=None).count(),
            "tenants": Membership.objects.filter(person=row).count(),
            "delegations": Delegation.objects.filter(Q(person=row) | Q(delegate=row), ends_at__gt=request.now).count(),
            "requests": Request.objects.filter(requester=row, state=RequestState.SUBMITTED.value).count(),
            "has_left": row.left_at is not None,
            "back_url": reverse("frontend:everybody-one", kwargs={"person": row.pk}),
            "command": f"tenantry person leave {row.email}" + (" --successor E-MAIL" if alone or owned else ""),
            "breadcrumbs": [
                {"label": _("All people"), "url": reverse("frontend:everybody")},
                {"label": row.display_name, "url": reverse("frontend:everybody-one", kwargs={"person": row.pk})},
                {"label": _("Leaves"), "url": ""},
            ],
        }
        return render(request, "frontend/pages/everybody/leave.html", values, status=status)


@page("people.erase", methods=("POST",))
def erase(request: PageRequest, person: UUID) -> HttpResponse:
    """Forget name and e-mail of somebody who left."""
    row = _locked_in(request, person)
    if request.POST.get("confirm", "").strip() != row.display_name:
        raise InvalidSpec(_("Type the name of the person to erase it."), field="confirm")
    try:
        people.erase(person=row, actor=request.actor, now=request.now)
    except Conflict as error:
        return _again(request, person, error)
    messages.success(request, _("Name and e-mail are gone; what was done stays under the id."))
    return _to(row)


def _locked_in(request: PageRequest, person: UUID) -> Person:
    with reading(request.actor):
        return _find(person)


def _to(row: Person) -> HttpResponse:
    return HttpResponseRedirect(reverse("frontend:everybody-one", kwargs={"person": row.pk}))


def _again(request: PageRequest, person: UUID, error: ControlPlaneError) -> HttpResponse:
    with reading(request.actor):
        return _page(request, _find(person), _at_fields(error), status=problems.status_of(error))


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    return {name: words.plain(text) for name, text in problems.at_fields(error).items()}
