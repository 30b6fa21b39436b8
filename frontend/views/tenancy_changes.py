"""Changing a tenant from above: its limits, with a plan where something shrinks; suspending and resuming it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Count, Q, QuerySet, Sum
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.design import numbers
from frontend.kernel import asks, problems, risks, words
from frontend.kernel.page import PageRequest, page
from frontend.views.quota import EVERYDAY
from frontend.views.requests import read_number
from frontend.views.tenancies import rank
from tenants import access, tenancies
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec, PreconditionFailed
from tenants.gpu_catalogue import is_optional, slices_dimension
from tenants.models import Allocation, Endpoint, EndpointUsage, Host, Machine, Namespace, Quota, Tenant
from tenants.operations import quotas
from tenants.operations import tenants as operations
from tenants.operations.payloads import read_moment
from tenants.policies import ROUTES
from tenants.states import ServiceClass, SuspensionDepth
from tenants.transactions import reading

BOXED: Final = 100
HIT: Final = 50
"""Objects listed in the plan of a suspension; the figures count all."""


# --- limits -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One dimension of the table: now, new, difference."""

    key: str
    label: str
    used: int
    now: int | None
    """The lasting limit of its own, None without one."""
    inherited: bool
    version: int
    boxed: int
    """What limits that end add."""
    given: str
    inherit: bool
    promised: int
    """What the tenants below are promised."""
    above: int | None
    """The limit of the tenant right above, None where there is none of its own."""
    optional: bool
    """Counts only where somebody set a limit."""
    error: str = ""

    @property
    def new(self) -> int | None:
        """Return what was given as a number, None for no limit."""
        try:
            return int(self.given.replace(",", "")) if self.given else None
        except ValueError:
            return None

    @property
    def changes(self) -> bool:
        """Whether it would differ from now."""
        return self.inherit != self.inherited or (not self.inherit and self.new != self.now)

    @property
    def difference(self) -> int | None:
        """Return new minus now where both are numbers."""
        if not self.changes or self.inherit:
            return None
        return (self.new or 0) - (self.now or 0) if not self.inherited else None

    @property
    def shrinks(self) -> bool:
        """Whether it takes something away: a smaller number, or none where there was one."""
        if not self.changes:
            return False
        if self.inherited:
            return True  # what the tenant above has was larger or equal, or unknown
        return not self.inherit and (self.new or 0) < (self.now or 0)

    @property
    def warning(self) -> str:
        """Return what follows that one might not expect, `""` if nothing does."""
        limit = (self.new or 0) + self.boxed
        if self.inherit or not self.changes:
            return ""
        if self.used > limit:
            return _("%(used)s in use: nothing is taken away, and nothing new starts until less than %(limit)s is.") % {
                "used": numbers.number(self.used), "limit": numbers.number(limit),
            }  # fmt: skip
        if self.promised > limit:
            return _("The tenants below are promised %(n)s together.") % {"n": numbers.number(self.promised)}
        if self.above is not None and limit > self.above:
            return _("The tenant above has %(n)s: more than that is never used.") % {"n": numbers.number(self.above)}
        return ""


@page("quotas.set", methods=("GET", "POST"), own_blocks=True)
def limits(request: PageRequest) -> HttpResponse:
    """Set limits of a tenant: current, new, difference; what shrinks is shown as a plan first."""
    given = request.POST if request.method == "POST" else request.GET
    with reading(request.actor):
        lines = _lines(request, given)
        must_type = _must_type(request.tenant) if any(line.shrinks for line in lines) else ""
    if request.method != "POST":
        return _limits_page(request, lines, {}, template="_limits_plan" if request.htmx else "limits")
    errors = _wrong(lines)
    if not errors and not any(line.changes for line in lines):
        errors = {"": _("Nothing would change.")}
    if errors:
        return _limits_page(request, lines, errors, status=422)
    shrinks = any(line.shrinks for line in lines)
    if shrinks and given.get("planned") != "yes":
        return _limits_page(request, lines, {}, template="limits_plan", must_type=must_type)
    if must_type and given.get("confirm", "").strip() != must_type:
        errors = {"confirm": _("Type the tenant's name: production runs here.")}
        return _limits_page(request, lines, errors, template="limits_plan", must_type=must_type, status=422)
    try:
        changed = quotas.set_limits(
            tenant=request.tenant,
            limits={line.key: line.new for line in lines if line.changes and not line.inherit},
            inherit={line.key for line in lines if line.changes and line.inherit},
            versions={
                line.key: read_number(given.get(f"version:{line.key}", "0"), field="") for line in lines if line.changes
            },
            actor=request.actor,
            now=request.now,
        )
    except PreconditionFailed:
        text = _("Somebody changed these limits meanwhile. The table shows them as they are now.")
        with reading(request.actor):
            lines = _lines(request, given)
        return _limits_page(request, lines, {"": text}, status=412)
    except (InvalidSpec, Conflict) as error:
        return _limits_page(request, lines, _at_limits(error), status=problems.status_of(error))
    text = ngettext("%(n)d limit of %(tenant)s changed.", "%(n)d limits of %(tenant)s changed.", len(changed))
    messages.success(request, text % {"n": len(changed), "tenant": request.tenant.display_name})
    return HttpResponseRedirect(_back(request))


def _back(request: PageRequest) -> str:
    """Return the page of the tenant that the person may open: the operator's, or the tenant's own quota."""
    if access.allowed(request.actor, None, ROUTES["people.list"]):
        return reverse("frontend:tenancy", kwargs={"name": request.tenant.name})
    return reverse("frontend:quota", kwargs={"tenant": request.tenant.name})


def _lines(request: PageRequest, given: QueryDict) -> list[Line]:
    """Return a line per dimension that counts here or that the estate has; a sent form keeps what it held."""
    tenant = request.tenant
    found = tenancies.read(now=request.now, only=tenant)
    standings, each = {one.tenant.pk: one for one in found}, found[0]
    lasting = {row.dimension: row for row in Quota.objects.filter(tenant=tenant, until=None)}
    levels = quotas.position(tenant)
    above = {
        limit.dimension: sum(int(one.amount) for one in level.limits if one.dimension == limit.dimension)
        for level in levels[:-1]
        for limit in level.limits
    }
    products = Host.objects.exclude(gpu_product="").order_by().values_list("gpu_product", flat=True).distinct()
    keys = {*quotas.dimensions_of(tenant), *EVERYDAY, *(slices_dimension(name) for name in products)}
    sent = any(key.startswith("amount:") for key in given)
    lines = []
    for key in sorted(keys, key=rank):
        row = lasting.get(key)
        now = int(row.amount) if row is not None and not row.inherit else None
        inherited = row is not None and row.inherit
        text = given.get(f"amount:{key}", "").strip() if sent else ("" if now is None else str(now))
        lines.append(
            Line(
                key=key,
                label=_title(key),
                used=each.used.get(key, 0),
                now=now,
                inherited=inherited,
                version=row.version if row is not None else 0,
                boxed=each.limits.get(key, 0) - (now or 0),
                given=text,
                inherit=(given.get(f"inherit:{key}") == "on") if sent else inherited,
                promised=tenancies.promised_below(each, standings, key),
                above=above.get(key),
                optional=is_optional(key),
            )
        )
    return lines


def _title(key: str) -> str:
    label = asks.dimension(key)
    label = _("%(product)s, slots") % {"product": label} if key.endswith(".slices") else label
    return label[:1].upper() + label[1:]


def _wrong(lines: list[Line]) -> dict[str, str]:
    """Return what is no whole number, by field."""
    return {
        f"amount:{line.key}": _("Give a whole number, or nothing for no limit.")
        for line in lines
        if not line.inherit and line.given and (line.new is None or line.new < 0)
    }


def _at_limits(error: ControlPlaneError) -> dict[str, str]:
    return {
        (f"amount:{name.removeprefix('amount.')}" if name.startswith("amount.") else ""): words.plain(text)
        for name, text in problems.at_fields(error).items()
    }


def _limits_page(
    request: PageRequest,
    lines: list[Line],
    errors: Mapping[str, str],
    *,
    template: str = "limits",
    must_type: str = "",
    status: int = 200,
) -> HttpResponse:
    tenant = request.tenant
    changes = [line for line in lines if line.changes]
    pairs = " ".join(
        f"{line.key}={'inherit' if line.inherit else line.new}" for line in changes if line.inherit or line.given
    )
    dropped = " ".join(line.key for line in changes if not line.inherit and not line.given)
    commands = [f"tenantry quota set {tenant.name} {pairs}"] if pairs else []
    commands += [f"tenantry quota remove {tenant.name} {dropped}"] if dropped else []
    values = {
        "tenant": tenant,
        "lines": [{"line": line, "error": errors.get(f"amount:{line.key}", "")} for line in lines],
        "changes": changes,
        "errors": errors,
        "may_inherit": tenant.parent_id is not None,
        "must_type": must_type,
        "here": reverse("frontend:tenancy-limits", kwargs={"tenant": tenant.name}),
        "back_url": _back(request),
        "command": "\n".join(commands),
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "used", "label": _("In use"), "numeric": True},
            {"key": "now", "label": _("Current"), "numeric": True},
            {"key": "new", "label": _("New"), "numeric": True},
            *([{"key": "inherit", "label": _("Of the tenant above")}] if tenant.parent_id is not None else []),
        ],
        "change_columns": [
            {"key": "what", "label": _("What")},
            {"key": "now", "label": _("Current"), "numeric": True},
            {"key": "new", "label": _("New"), "numeric": True},
            {"key": "difference", "label": _("Difference"), "numeric": True},
            {"key": "warning", "label": _("What follows")},
        ],
        "breadcrumbs": _crumbs(request, _("Limits")),
    }
    with reading(request.actor):
        values |= {"boxed": _boxed_lines(request), "name_to_type": _must_type(tenant)}
        return render(request, f"frontend/pages/tenancies/{template}.html", values, status=status)


@page("quotas.remove", methods=("POST",))
def remove_limit(request: PageRequest, key: UUID) -> HttpResponse:
    """Remove one limit that ends, before its end; nothing that is in use is taken away."""
    with reading(request.actor):
        row = access.find(_boxed(request), key)
        must_type = _must_type(request.tenant)
    if must_type and request.POST.get("confirm", "").strip() != must_type:
        raise InvalidSpec(_("Type the tenant's name: production runs here."), field="confirm")
    version = read_number(request.POST.get("version"), field="version")
    quotas.remove(row=row, version=version, actor=request.actor, now=request.now)
    messages.success(request, _("Removed: %(what)s.") % {"what": asks.amount(row.dimension, row.amount)})
    return HttpResponseRedirect(reverse("frontend:tenancy-limits", kwargs={"tenant": request.tenant.name}))


def _boxed(request: PageRequest) -> QuerySet[Quota]:
    """Return the limits of the tenant that end."""
    return Quota.objects.filter(tenant=request.tenant, until__gt=request.now).select_related("granted_by")


def _boxed_lines(request: PageRequest) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "words": asks.amount(row.dimension, row.amount),
            "dialog": f"remove-{row.pk}",
            "url": reverse("frontend:tenancy-limit-remove", kwargs={"tenant": request.tenant.name, "key": row.pk}),
            "request_url": reverse("frontend:decide", kwargs={"key": row.granted_by.short_id})
            if row.granted_by
            else "",
        }
        for row in _boxed(request).order_by("until", "pk")[:BOXED]
    ]


def _crumbs(request: PageRequest, label: str) -> list[dict[str, str]]:
    up = [{"label": request.tenant.display_name, "url": _back(request)}, {"label": label, "url": ""}]
    if access.allowed(request.actor, None, ROUTES["people.list"]):
        return [{"label": _("Tenants"), "url": reverse("frontend:tenants")}, *up]
    return up


def _must_type(tenant: Tenant) -> str:
    """Return the name that must be typed: that of a tenant with production in it or below, else `""`."""
    production = Allocation.objects.filter(
        tenant__path__contains=[tenant.pk], service_class=ServiceClass.PRODUCTION.value, released_at=None
    )
    return str(tenant.name) if production.exists() else ""


# --- suspension ---------------------------------------------------------------------------------------------


@page("tenants.suspend", methods=("GET", "POST"), own_blocks=True)
def suspend(request: PageRequest) -> HttpResponse:
    """Suspend a tenant: the page is the plan, who is hit and how; production needs the name typed."""
    if request.method != "POST":
        return _suspend_page(request, request.GET, {})
    given = request.POST
    with reading(request.actor):
        must_type = _must_type(request.tenant)
    try:
        operations.suspend(
            tenant=request.tenant,
            depth=_depth(given, must_type),
            reason=given.get("reason", ""),
            until=read_moment(asks.end_of_day(given.get("until", "")), "until", now=request.now),
            version=read_number(given.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        found = {name: words.plain(text) for name, text in problems.at_fields(error).items()}
        return _suspend_page(request, given, found, status=problems.status_of(error))
    messages.success(request, _("%(tenant)s is suspended. What it holds is kept.") % {
        "tenant": request.tenant.display_name
    })  # fmt: skip
    return HttpResponseRedirect(_back(request))


def _depth(given: QueryDict, must_type: str) -> SuspensionDepth:
    """Return how deep it cuts. Raises `InvalidSpec`, also where the name had to be typed and was not."""
    if must_type and given.get("confirm", "").strip() != must_type:
        raise InvalidSpec(_("Type the tenant's name: production runs here."), field="confirm")
    try:
        return SuspensionDepth(given.get("depth", ""))
    except ValueError as error:
        raise InvalidSpec(_("Choose how deep it cuts."), field="depth") from error


def _suspend_page(request: PageRequest, given: Any, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    tenant = request.tenant
    with reading(request.actor):
        present = tenant.suspensions.filter(ended_at=None).first()
        values = {
            "tenant": tenant,
            "present": present,
            "present_level": risks.LEVELS[present.depth][0] if present is not None else "",
            "given": {
                "depth": given.get("depth") or SuspensionDepth.KEYS.value,
                "reason": given.get("reason", ""),
                "until": given.get("until", ""),
            },
            "errors": errors,
            "levels": [
                {"value": key, "label": str(text), "text": str(what)} for key, (text, what) in risks.LEVELS.items()
            ],
            "hit": _hit(request, tenant),
            "must_type": _must_type(tenant),
            "back_url": _back(request),
            "command": f'tenantry tenant suspend {tenant.name} --depth keys --reason "…"',
            "columns": [
                {"key": "name", "label": _("Name")},
                {"key": "kind", "label": _("Kind")},
                {"key": "tenant", "label": _("Tenant")},
                {"key": "calls", "label": _("Requests, last day"), "numeric": True},
            ],
            "breadcrumbs": _crumbs(request, _("Suspend")),
        }
        return render(request, "frontend/pages/tenancies/suspend.html", values, status=status)


def _hit(request: PageRequest, tenant: Tenant) -> dict[str, Any]:
    """Return who is hit: endpoints with their callers first, then machines and namespaces, and tenants below."""
    within = Q(tenant__path__contains=[tenant.pk], released_at=None)
    since = request.now - timedelta(days=1)
    calls = dict(
        EndpointUsage.objects.filter(tenant__path__contains=[tenant.pk], hour__gte=since)
        .values_list("endpoint_id")
        .annotate(total=Sum("requests"))
    )
    rows: list[dict[str, Any]] = []
    counts = {}
    kinds = (
        ("endpoint", _("Endpoint"), Endpoint),
        ("machine", _("Machine"), Machine),
        ("namespace", _("Namespace"), Namespace),
    )
    for word, label, model in kinds:
        found = model._base_manager.filter(within)
        counts[word] = found.aggregate(n=Count("pk"))["n"]
        rows += [
            {
                "name": row.name,
                "kind": label,
                "tenant": row.tenant.name,
                "calls": int(calls.get(row.pk, 0)) if word == "endpoint" else None,
                "url": reverse(f"frontend:{word}", kwargs={"tenant": row.tenant.name, "name": row.short_id}),
            }
            for row in found.select_related("tenant").order_by("name", "pk")[:HIT]
        ]
    rows.sort(key=lambda row: -(row["calls"] or 0))
    below = Tenant.objects.filter(path__contains=[tenant.pk]).exclude(pk=tenant.pk).order_by("name")
    return {
        "rows": rows[:HIT],
        "more": max(0, sum(counts.values()) - HIT),
        "words": ", ".join(numbers.quantity(count, word) for word, count in counts.items() if count),
        "calls": sum(int(total or 0) for total in calls.values()),
        "below": [row.display_name for row in below[:HIT]],
    }


@page("tenants.resume", methods=("POST",))
def resume(request: PageRequest) -> HttpResponse:
    """End a suspension: everything goes back to what it was."""
    operations.resume(
        tenant=request.tenant,
        version=read_number(request.POST.get("version"), field="version"),
        actor=request.actor,
        now=request.now,
    )
    messages.success(request, _("%(tenant)s is resumed; what ran comes back.") % {
        "tenant": request.tenant.display_name
    })  # fmt: skip
    return HttpResponseRedirect(_back(request))
