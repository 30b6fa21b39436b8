"""People of a tenant: members and through which tenant they are, invitations, roles, ownership handed on.

Everybody who sees the tenant reads; its owners act. Taking access away has pages of its own (`offboarding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Max
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.accounts import mail
from frontend.accounts.views import send_invitation
from frontend.kernel import lists, once, problems, twins
from frontend.kernel.page import PageRequest, page
from tenants import access, second_factors
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import AccountLink, Event, Membership, Notice, Person, Tenant
from tenants.models.account import LinkKind
from tenants.operations import accounts, members
from tenants.policies import ROUTES
from tenants.states import ROLE_BY_WORD, Role
from tenants.transactions import reading

SEEN: Final = timedelta(days=90)
"""So far back what people did here is looked at."""
MOST: Final = 500
ROLES: Final[Mapping[Role, str | Promise]] = {
    Role.VIEWER: gettext_lazy("Viewer"),
    Role.MEMBER: gettext_lazy("Member"),
    Role.OWNER: gettext_lazy("Owner"),
}
DOES: Final[Mapping[Role, str | Promise]] = {
    Role.VIEWER: gettext_lazy("sees everything, changes nothing"),
    Role.MEMBER: gettext_lazy("deploys, renews and gives back"),
    Role.OWNER: gettext_lazy("also people, limits, policy and first decisions"),
}
TONES: Final[Mapping[Role, str]] = {Role.VIEWER: "quiet", Role.MEMBER: "info", Role.OWNER: "ok"}


@dataclass(frozen=True, slots=True)
class Line:
    """One person of the list."""

    row: Membership
    role: str
    word: str
    """The role as forms send it."""
    tone: str
    does: str
    has_factor: bool
    seen_at: datetime | None
    """When he last did something here, None if not in `SEEN`."""
    through: str
    """Title of the tenant above whose role counts here, `""` for a role of this tenant."""
    is_me: bool
    remove_url: str


@page("members.list")
def listed(request: PageRequest) -> HttpResponse:
    """List members with role, last activity and second factor; for owners also the open invitations."""
    lines = _lines(request)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, lines, form)
    secret = once.peek(request)
    values = {**_values(request, lines), "secret": secret}
    response = render(request, "frontend/pages/people/list.html", values)
    if secret:
        once.forget(request, response)
    return response


def tabs(request: PageRequest, current: str) -> list[dict[str, Any]]:
    """Return the tabs of People and access."""
    where = {"tenant": request.tenant.name}
    found = [
        ("people", _("Members"), "users"),
        ("service-accounts", _("Service accounts"), "bot"),
        ("access-review", _("Access review"), "clipboard-check"),
    ]
    reviews = access.allowed(request.actor, request.tenant, ROUTES["service-account-tokens.list"])
    shown = found if reviews else found[:2]
    return [
        {"label": label, "icon": icon, "url": reverse(f"frontend:{name}", kwargs=where), "current": name == current}
        for name, label, icon in shown
    ]


def may_act(request: PageRequest) -> bool:
    """Whether the person may change who is in: an owner of the tenant or above, an operator."""
    return access.allowed(request.actor, request.tenant, ROUTES["members.create"])


def _values(request: PageRequest, lines: list[Line], errors: Mapping[str, str] | None = None) -> dict[str, Any]:
    acts = may_act(request)
    columns: list[dict[str, Any]] = [
        {"key": "name", "label": _("Name")},
        {"key": "role", "label": _("Role")},
        {"key": "factor", "label": _("Second factor")},
        {"key": "seen", "label": _("Last active here")},
        {"key": "since", "label": _("Since")},
    ]
    if acts:
        columns.append({"key": "actions", "label": _("Actions"), "hidden_label": True})
    own = next((line for line in lines if line.is_me and not line.through), None)
    return {
        "lines": lines,
        "columns": columns,
        "role_filter": [
            {
                "name": "role",
                "label": _("Role"),
                "value": request.GET.get("role", ""),
                "options": [{"value": "", "label": _("All")}, *role_options()],
            }
        ],
        "is_filtered": request.GET.get("role", "") in ROLE_BY_WORD,
        "invitations": _invitations(request) if acts else [],
        "invitation_columns": [
            {"key": "email", "label": _("E-mail")},
            {"key": "role", "label": _("Role")},
            {"key": "sent", "label": _("Sent")},
            {"key": "ends", "label": _("Open until")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
        "may_act": acts,
        "sends_mail": mail.is_set_up(),
        "role_options": [
            {"value": role.word, "label": f"{ROLES[role]}: {DOES[role]}"}
            for role in (Role.MEMBER, Role.VIEWER, Role.OWNER)
        ],
        "own": own,
        "left_behind": _left_behind(request) if acts else [],
        "takers": [
            {"value": str(line.row.person_id), "label": line.row.person.display_name}
            for line in lines
            if line.row.role >= Role.MEMBER and line.row.person.is_active
        ],
        "may_hand_on": own is not None
        and own.row.role == Role.OWNER
        and any(not line.is_me and not line.through for line in lines),
        "heir_options": [
            {"value": str(line.row.pk), "label": line.row.person.display_name}
            for line in lines
            if not line.is_me and not line.through
        ],
        "errors": errors or {},
        "given": request.POST,
        "tabs": tabs(request, "people"),
        "twins": twins.pair(
            f"tenantry --tenant {request.tenant.name} member add nia@example.org --role member",
            twins.api("POST", f"tenants/{request.tenant.name}/members", {"email": "nia@example.org", "role": "member"}),
        ),
    }


def role_options() -> list[dict[str, str]]:
    """Return the roles as a select offers them."""
    return [{"value": role.word, "label": str(word)} for role, word in ROLES.items()]


def _lines(request: PageRequest) -> list[Line]:
    tenant = request.tenant
    rows = Membership.objects.filter(tenant_id__in=tenant.path).select_related("person", "tenant")
    wanted = request.GET.get("role", "")
    if wanted in ROLE_BY_WORD:
        rows = rows.filter(role=int(ROLE_BY_WORD[wanted]))
    found = list(rows.order_by("-role", "person__display_name", "pk")[:MOST])
    here = {row.person_id for row in found if row.tenant_id == tenant.pk}
    found = [row for row in found if row.tenant_id == tenant.pk or row.person_id not in here]
    people = {row.person_id for row in found}
    factors = second_factors.having(people)
    seen = last_active(tenant, people, now=request.now)
    return [
        Line(
            row=row,
            role=str(ROLES[Role(row.role)]),
            word=Role(row.role).word,
            tone=TONES[Role(row.role)],
            does=str(DOES[Role(row.role)]),
            has_factor=row.person_id in factors,
            seen_at=seen.get(row.person_id),
            through="" if row.tenant_id == tenant.pk else row.tenant.display_name,
            is_me=row.person_id == request.actor.person_id,
            remove_url=reverse("frontend:member-remove", kwargs={"tenant": tenant.name, "member": row.pk}),
        )
        for row in found
    ]


def last_active(tenant: Tenant, people: set[UUID], *, now: datetime) -> dict[UUID, datetime]:
    """Return person → when he last did something in the tenant, within `SEEN`; in the caller's read block."""
    rows = Event.objects.filter(tenant_id=tenant.pk, at__gte=now - SEEN, person_id__in=people)
    found = rows.values_list("person_id").annotate(last=Max("at")).values_list("person_id", "last")
    return {person: at for person, at in found if person is not None}


def _invitations(request: PageRequest) -> list[AccountLink]:
    rows = AccountLink.objects.filter(
        kind=LinkKind.INVITATION.value, tenant=request.tenant, used_at=None, withdrawn_at=None,
        expires_at__gt=request.now,
    )  # fmt: skip
    found = list(rows.order_by("-created_at")[: accounts.MOST_INVITATIONS])
    for row in found:
        row.role_word = str(ROLES[Role(row.role or 1)])  # type: ignore[attr-defined]  # for the template
    return found


def _exported(request: PageRequest, lines: list[Line], form: str) -> HttpResponse:
    columns = ["name", "email", "role", "through", "second_factor", "last_active", "since"]
    body = [
        {
            "name": line.row.person.display_name,
            "email": line.row.person.email,
            "role": Role(line.row.role).word,
            "through": line.row.tenant.name if line.through else "",
            "second_factor": line.has_factor,
            "last_active": line.seen_at,
            "since": line.row.created_at,
        }
        for line in lines
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-people", form=form)


def _left_behind(request: PageRequest) -> list[dict[str, Any]]:
    """Return who is no member any more and still owns something here, with what it is."""
    tenant = request.tenant
    members_now = Membership.objects.filter(tenant_id__in=tenant.path).values("person_id")
    # Notices say who went: the members of a tenant above are not visible from here, and have not gone.
    gone = Notice.objects.filter(tenant=tenant, kind="handover", object_kind="person").values("object_id")
    found: dict[UUID, list[str]] = {}
    for model in members.OWNED:
        rows = model._base_manager.filter(tenant=tenant, released_at__isnull=True, owner_id__in=gone)
        for owner, name in (
            rows.exclude(owner_id__in=members_now).order_by("name").values_list("owner_id", "name")[:MOST]
        ):
            found.setdefault(owner, []).append(name)
    names = dict(Person.objects.filter(pk__in=found).values_list("pk", "display_name"))
    where = {"tenant": tenant.name}
    return [
        {
            "key": key,
            "name": names.get(key, _("somebody who left")),
            "things": things,
            "url": reverse("frontend:member-hand-over", kwargs={**where, "person": key}),
        }
        for key, things in found.items()
    ]


# --- invitations ------------------------------------------------------------------------------------------


@page("members.create", methods=("POST",))
def invite(request: PageRequest) -> HttpResponse:
    """Invite somebody; where no mail is set up the link is shown once to hand over."""
    given = request.POST
    try:
        return _send(request, given.get("email", ""), role_of(given.get("role", "member")))
    except (InvalidSpec, Conflict) as error:
        return _list_again(request, error)


def _send(request: PageRequest, email: str, role: Role) -> HttpResponse:
    made = accounts.invite(tenant=request.tenant, email=email, role=role, actor=request.actor, now=request.now)
    person = request.portal.person
    inviter = person.display_name if person is not None else ""
    address = send_invitation(made, tenant=request.tenant.display_name, inviter=inviter)
    response = back(request)
    if address:
        once.put(request, response, address, path=response["Location"])
        messages.success(request, _("The invitation for %(email)s is made.") % {"email": made.row.email})
    else:
        messages.success(request, _("The invitation was sent to %(email)s.") % {"email": made.row.email})
    return response


def role_of(word: str) -> Role:
    """Return the role a form names. Raises `InvalidSpec`."""
    if word not in ROLE_BY_WORD:
        raise InvalidSpec(_("Choose a role."), field="role")
    return ROLE_BY_WORD[word]


def back(request: PageRequest, name: str = "people") -> HttpResponse:
    """Return to a page of People and access."""
    return HttpResponseRedirect(reverse(f"frontend:{name}", kwargs={"tenant": request.tenant.name}))


def _list_again(request: PageRequest, error: ControlPlaneError) -> HttpResponse:
    with reading(request.actor):
        values = _values(request, _lines(request), problems.at_fields(error))
        return render(request, "frontend/pages/people/list.html", values, status=problems.status_of(error))


def _link(request: PageRequest, key: UUID) -> AccountLink:
    rows = AccountLink.objects.filter(kind=LinkKind.INVITATION.value, tenant=request.tenant, used_at=None)
    with reading(request.actor):
        return access.find(rows, key)


@page("members.create", methods=("POST",))
def invite_again(request: PageRequest, link: UUID) -> HttpResponse:
    """Send an invitation anew; the link before opens nothing any more."""
    row = _link(request, link)
    return _send(request, row.email, Role(row.role or int(Role.MEMBER)))


@page("members.delete", methods=("POST",))
def withdraw_invitation(request: PageRequest, link: UUID) -> HttpResponse:
    """End an open invitation."""
    row = _link(request, link)
    accounts.withdraw(link=row, actor=request.actor, now=request.now)
    messages.success(request, _("The invitation of %(email)s opens nothing any more.") % {"email": row.email})
    return back(request)


# --- roles ------------------------------------------------------------------------------------------------


def found(request: PageRequest, member: UUID) -> Membership:
    """Return a membership of this very tenant. Raises `NotVisible`."""
    with reading(request.actor):
        return access.find(Membership.objects.filter(tenant=request.tenant).select_related("person", "tenant"), member)


@page("members.update", methods=("POST",))
def change_role(request: PageRequest, member: UUID) -> HttpResponse:
    """Give a member another role."""
    row = found(request, member)
    role = role_of(request.POST.get("role", ""))
    try:
        members.change_role(membership=row, role=role, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        text = _("%(name)s is now %(role)s.") % {"name": row.person.display_name, "role": str(ROLES[role]).lower()}
        messages.success(request, text)
    return back(request)


@page("members.update", methods=("POST",))
def hand_on(request: PageRequest) -> HttpResponse:
    """Make another member the owner and become a member oneself, in one step."""
    row = found(request, person_key(request.POST.get("member", "")))
    members.pass_ownership(to=row, actor=request.actor, now=request.now)
    messages.success(request, _("%(name)s owns the tenant now; you are a member.") % {"name": row.person.display_name})
    return back(request)


def person_key(text: str) -> UUID:
    """Return the key that a select of members holds. Raises `InvalidSpec`."""
    try:
        return UUID(text)
    except ValueError as error:
        raise InvalidSpec(_("Choose a member."), field="member") from error
