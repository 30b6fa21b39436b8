"""All tenants for the platform's people: the tree with use, cost and risks; one tenant; a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.accounts.views import send_invitation
from frontend.design import numbers
from frontend.kernel import asks, lists, once, problems, risks, words
from frontend.kernel.page import PageRequest, page
from frontend.views.quota import EVERYDAY
from tenants import access, tenancies
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.gpu_catalogue import is_optional
from tenants.models import Endpoint, Machine, Membership, Namespace, Request, Suspension, Tenant
from tenants.operations import accounts, people
from tenants.operations import tenants as operations
from tenants.operations.pricing import currency
from tenants.policies import ROUTES
from tenants.states import RequestState, Role, TenantStatus
from tenants.tenancies import Standing
from tenants.transactions import reading

ROWS: Final = 100
OWNERS_SHOWN: Final = 20
HISTORY: Final = 20
PARENTS: Final = 1000
STATUS: Final = {
    TenantStatus.ACTIVE.value: ("ok", "circle-check"),
    TenantStatus.SUSPENDED.value: ("warn", "circle-pause"),
    TenantStatus.CLOSING.value: ("quiet", "door-closed"),
    TenantStatus.CLOSED.value: ("quiet", "archive"),
}


@dataclass(frozen=True, slots=True)
class Use:
    """One GPU product in the list: what is used of what."""

    label: str
    used: int
    limit: int | None
    """None: what the tenant above has counts."""

    @property
    def tone(self) -> str:
        """Return the tone of its bar."""
        if self.limit is None or not self.limit:
            return ""
        return "bad" if self.used > self.limit else "warn" if self.used >= self.limit * 0.9 else ""


# --- the tree -----------------------------------------------------------------------------------------------


@page("people.list")
def listed(request: PageRequest) -> HttpResponse:
    """Show all tenants as a tree, or those that the filters leave."""
    found = tenancies.read(now=request.now)
    shown = _filtered(request, found)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(shown, form)
    start = max(0, _number(request.GET.get("page", "")) - 1) * ROWS
    query = request.GET.copy()
    is_filtered = any(request.GET.get(key) for key in ("q", "risk", "status", "sort"))
    values = {
        "lines": [_line(each, as_tree=not is_filtered) for each in shown[start : start + ROWS]],
        "empty": not shown,
        "is_filtered": is_filtered,
        "clear_url": request.path,
        "more_url": _page_url(query, start + ROWS) if start + ROWS < len(shown) else "",
        "previous_url": _page_url(query, max(0, start - ROWS)) if start else "",
        "count": ngettext("%(n)s tenant", "%(n)s tenants", len(shown)) % {"n": numbers.number(len(shown))},
        "search": {"name": "q", "value": request.GET.get("q", ""), "label": _("Name or title")},
        "fields": _filters(request, found),
        "promises": tenancies.promises(found),
        "currency": currency(),
        "may_write": access.allowed(request.actor, None, ROUTES["tenants.create"]),
        "columns": [
            {"key": "name", "label": _("Tenant"), "sort": True},
            {"key": "use", "label": _("GPUs in use"), "sort": True},
            {"key": "cost", "label": _("This month"), "numeric": True, "sort": True},
            {"key": "owners", "label": _("Owners"), "numeric": True},
            {"key": "risks", "label": _("To look at")},
        ],
    }
    return render(request, "frontend/pages/tenancies/list.html", values)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 9 else 0


def _page_url(query: Any, start: int) -> str:
    query["page"] = str(start // ROWS + 1)
    return f"?{query.urlencode()}"


def _filtered(request: PageRequest, found: list[Standing]) -> list[Standing]:
    given = request.GET
    q, risk, status = given.get("q", "").strip().lower(), given.get("risk", ""), given.get("status", "")
    shown = [
        each
        for each in found
        if (each.tenant.status == status if status else each.tenant.status != TenantStatus.CLOSED.value)
        and (not q or q in each.tenant.name or q in each.tenant.display_name.lower())
        and (not risk or any(one.kind == risk for one in each.risks))
    ]
    sort = given.get("sort", "")
    keys = {"name": lambda each: each.tenant.name, "cost": lambda each: each.cost, "use": _slots}
    key = keys.get(sort.removeprefix("-"))
    return sorted(shown, key=key, reverse=sort.startswith("-")) if key is not None else shown


def _slots(each: Standing) -> int:
    return sum(count for key, count in each.used.items() if key.endswith(".slices"))


def _filters(request: PageRequest, found: list[Standing]) -> list[dict[str, Any]]:
    counted: dict[str, int] = {}
    for each in found:
        for kind in {risk.kind.value for risk in each.risks}:
            counted[kind] = counted.get(kind, 0) + 1
    every = {"value": "", "label": _("All")}
    kinds = [
        {"value": kind.value, "label": str(text), "count": counted.get(kind.value, 0)}
        for kind, (text, _tone, _icon) in risks.WORDS.items()
        if counted.get(kind.value)
    ]
    states = [{"value": status.value, "label": _status_word(status.value)} for status in TenantStatus]
    return [
        {"name": "risk", "label": _("To look at"), "value": request.GET.get("risk", ""), "options": [every, *kinds]},
        {"name": "status", "label": _("State"), "value": request.GET.get("status", ""),
         "options": [{"value": "", "label": _("All but closed")}, *states]},
    ]  # fmt: skip


def _status_word(status: str) -> str:
    return {
        "active": _("Active"), "suspended": _("Suspended"), "closing": _("Closing"), "closed": _("Closed")
    }.get(status, status)  # fmt: skip


def _line(each: Standing, *, as_tree: bool = True) -> dict[str, Any]:
    uses = uses_of(each)
    return {
        "each": each,
        "tenant": each.tenant,
        "url": reverse("frontend:tenancy", kwargs={"name": each.tenant.name}),
        "tree": f"tree-{each.depth}" if as_tree and each.depth else "",
        "use": uses[0] if uses else None,
        "more": len(uses) - 1,
        "risks": risks.badges(each),
        "owners": len(each.owners),
    }


def uses_of(each: Standing) -> list[Use]:
    """Return what is used of each GPU product, the fullest first."""
    keys = {key for key in (*each.limits, *each.inherits, *each.used) if key.endswith(".slices")}
    found = [
        Use(asks.dimension(key), each.used.get(key, 0), None if key in each.inherits else each.limits.get(key, 0))
        for key in sorted(keys)
    ]
    return sorted(found, key=lambda use: -(use.used / use.limit if use.limit else bool(use.used)))


def _exported(shown: list[Standing], form: str) -> HttpResponse:
    columns = ["name", "title", "parent", "status", "cost_this_month", "currency", "slots_in_use", "owners", "risks"]
    money = currency()
    names = {each.tenant.pk: each.tenant.name for each in shown}
    body = [
        {
            "name": each.tenant.name,
            "title": each.tenant.display_name,
            "parent": names.get(each.tenant.parent_id, "") if each.tenant.parent_id is not None else "",
            "status": each.tenant.status,
            "cost_this_month": round(each.cost, 6),
            "currency": money,
            "slots_in_use": _slots(each),
            "owners": len(each.owners),
            "risks": " ".join(sorted({risk.kind.value for risk in each.risks})),
        }
        for each in shown[: lists.MOST_EXPORTED]
    ]
    return lists.exported(body, columns, name="tenants", form=form)


# --- one tenant -----------------------------------------------------------------------------------------------


@page("people.list")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one tenant as its operator sees it."""
    tenant = access.find(access.tenants(request.actor), name)
    found = tenancies.read(now=request.now, only=tenant)
    each = found[0]
    where = {"tenant": tenant.name}
    tone, icon = STATUS[tenant.status]
    values = {
        "tenant": tenant,
        "each": each,
        "status": {"text": _status_word(tenant.status), "tone": tone, "icon": icon},
        "facts": _facts(each, tenant),
        "conditions": risks.conditions(each),
        "limits": _limits(each),
        "children": [_line(child, as_tree=child.depth > each.depth + 1) for child in found[1:]],
        "owners": _owners(each),
        "suspensions": Suspension.objects.filter(tenant=tenant).order_by("-created_at")[:HISTORY],
        "levels": {key: str(text) for key, (text, _what) in risks.LEVELS.items()},
        "secret": once.peek(request),
        "currency": currency(),
        "may": {
            verb: access.allowed(request.actor, tenant, ROUTES[f"tenants.{verb}"])
            for verb in ("suspend", "resume", "create_child")
        },
        "may_limit": access.allowed(request.actor, tenant, ROUTES["quotas.set"]),
        "is_closed": tenant.status == TenantStatus.CLOSED.value,
        "home_url": reverse("frontend:home-of", kwargs=where),
        "limits_url": reverse("frontend:tenancy-limits", kwargs=where),
        "suspend_url": reverse("frontend:tenancy-suspend", kwargs=where),
        "resume_url": reverse("frontend:tenancy-resume", kwargs=where),
        "child_url": f"{reverse('frontend:tenancy-new')}?parent={tenant.name}",
        "child_columns": [
            {"key": "name", "label": _("Tenant")},
            {"key": "use", "label": _("GPUs in use")},
            {"key": "cost", "label": _("This month"), "numeric": True},
            {"key": "owners", "label": _("Owners"), "numeric": True},
            {"key": "risks", "label": _("To look at")},
        ],
        "limit_columns": [
            {"key": "what", "label": _("What")},
            {"key": "used", "label": _("In use"), "numeric": True},
            {"key": "limit", "label": _("Limit"), "numeric": True},
            {"key": "below", "label": _("Promised below"), "numeric": True},
        ],
        "breadcrumbs": [
            {"label": _("Tenants"), "url": reverse("frontend:tenants")},
            {"label": tenant.display_name, "url": ""},
        ],
    }
    response = render(request, "frontend/pages/tenancies/show.html", values)
    if values["secret"]:
        once.forget(request, response)
    return response


def _facts(each: Standing, tenant: Tenant) -> list[dict[str, Any]]:
    below = Q(tenant__path__contains=[tenant.pk])
    running = {
        label: model._base_manager.filter(below, released_at=None).count()
        for label, model in (("endpoint", Endpoint), ("machine", Machine), ("namespace", Namespace))
    }
    counted = Membership.objects.filter(tenant=tenant).aggregate(
        members=Count("pk"), owners=Count("pk", filter=Q(role=int(Role.OWNER)))
    )
    open_requests = Request.objects.filter(below, state=RequestState.SUBMITTED.value).count()
    cost = numbers.money(each.cost, currency())
    runs = ", ".join(numbers.quantity(n, unit) for unit, n in running.items() if n)
    parent = tenant.parent
    return [
        {"label": _("This month so far"), "value": cost, "note": _("with the tenants below")},
        {"label": _("Runs now"), "value": runs or _("nothing")},
        {"label": _("Members"), "value": numbers.number(counted["members"])},
        {"label": _("Open requests"), "value": numbers.number(open_requests)},
        {"label": _("Above it"), "value": parent.display_name if parent is not None else _("nothing: it is a root"),
         "href": reverse("frontend:tenancy", kwargs={"name": parent.name}) if parent is not None else ""},
        {"label": _("Short id"), "value": tenant.short_id, "mono": True, "copy_text": tenant.short_id},
    ]  # fmt: skip


def _limits(each: Standing) -> list[dict[str, Any]]:
    """Return limits and use: slots of GPUs, the everyday ones, then counts of sizes that somebody limited."""
    keys = {*each.limits, *each.inherits, *(key for key in each.used if not is_optional(key))}
    return [
        {
            "label": asks.dimension(key)[:1].upper() + asks.dimension(key)[1:],
            "unit": _("slots") if key.endswith(".slices") else "",
            "used": each.used.get(key, 0),
            "limit": each.limits.get(key),
            "inherits": key in each.inherits,
            "tone": "bad" if key in each.limits and each.used.get(key, 0) > each.limits[key] else "",
        }
        for key in sorted(keys, key=rank)
    ]


def rank(key: str) -> tuple[int, str]:
    """Order dimensions: slots of GPUs, the everyday ones in their order, the rest."""
    if key.endswith(".slices"):
        return (0, key)
    return (1 + EVERYDAY.index(key) if key in EVERYDAY else 9, key)


def _owners(each: Standing) -> list[dict[str, Any]]:
    rows = Membership.objects.filter(tenant=each.tenant, role=int(Role.OWNER), person__is_active=True)
    return [
        {
            "name": row.person.display_name,
            "email": row.person.email,
            "url": reverse("frontend:everybody-one", kwargs={"person": row.person_id}),
            "has_factor": row.person_id not in each.without_factor,
        }
        for row in rows.select_related("person").order_by("created_at", "pk")[:OWNERS_SHOWN]
    ]


# --- a new one ------------------------------------------------------------------------------------------------


@page("tenants.create", methods=("GET", "POST"), own_blocks=True)
def create(request: PageRequest) -> HttpResponse:
    """Make a tenant; its owner is named at once, or invited where he has no account yet."""
    if request.method != "POST":
        return _form(request, request.GET, {})
    given = request.POST
    try:
        made, link = _make(request, given)
    except (InvalidSpec, Conflict) as error:
        return _form(request, given, _at_fields(error), status=problems.status_of(error))
    messages.success(request, _("%(title)s is there. Set its first limits, so that something can run.") % {
        "title": made.display_name
    })  # fmt: skip
    url = reverse("frontend:tenancy", kwargs={"name": made.name})
    response = HttpResponseRedirect(url)
    if link:
        once.put(request, response, link, path=url)
    elif given.get("owner", "").strip():
        messages.info(request, _("%(email)s owns it, or is invited by mail.") % {"email": given["owner"].strip()})
    return response


def _make(request: PageRequest, given: Any) -> tuple[Tenant, str]:
    """Make what the form asks for; return the tenant, and the owner's invitation where no mail carries it."""
    email = given.get("owner", "").strip()
    with reading(request.actor):
        parent = access.find(access.tenants(request.actor), given["parent"]) if given.get("parent") else None
        known = _is_known(people.check_email(email)) if email else False
    made = operations.create(
        name=given.get("name", "").strip(),
        display_name=given.get("display_name", ""),
        description=given.get("description", ""),
        parent=parent,
        owner_email=email if known else "",
        managed_by="portal",
        actor=request.actor,
        now=request.now,
    )
    if not email or known:
        return made, ""
    invited = accounts.invite(tenant=made, email=email, role=Role.OWNER, actor=request.actor, now=request.now)
    inviter = request.portal.person.display_name if request.portal.person is not None else ""
    return made, send_invitation(invited, tenant=made.display_name, inviter=inviter)


def _is_known(email: str) -> bool:
    try:
        people.active_person_by_email(email)
    except InvalidSpec:
        return False
    return True


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    names = {"email": "owner", "owner_email": "owner"}
    found = {names.get(name, name): words.plain(text) for name, text in problems.at_fields(error).items()}
    return {"name": found[""]} if error.specific_code == "name-taken" and "" in found else found


def _form(request: PageRequest, given: Any, errors: dict[str, str], *, status: int = 200) -> HttpResponse:
    with reading(request.actor):
        rows = access.tenants(request.actor).filter(status=TenantStatus.ACTIVE.value).order_by("name")
        parents = [row for row in rows[:PARENTS] if len(row.path) < 3]
        fields = {key: given.get(key, "") for key in ("name", "display_name", "description", "parent", "owner")}
        command = f"tenantry tenant create {fields['name'] or 'NAME'}"
        for option, key in (("title", "display_name"), ("parent", "parent"), ("owner", "owner")):
            command += f' --{option} "{fields[key]}"' if fields[key] else ""
        values = {
            "given": fields,
            "errors": errors,
            "parents": [
                {"value": "", "label": _("Nothing: a root of its own")},
                *({"value": row.name, "label": f"{row.display_name} ({row.name})"} for row in parents),
            ],
            "command": command,
            "breadcrumbs": [
                {"label": _("Tenants"), "url": reverse("frontend:tenants")},
                {"label": _("New tenant"), "url": ""},
            ],
        }
        return render(request, "frontend/pages/tenancies/new.html", values, status=status)
