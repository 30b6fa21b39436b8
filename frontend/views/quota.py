"""Quota of a tenant by dimension: own and inherited limits, who holds what, limits that end; asking for more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design.moments import absolute
from frontend.design.quota_bar import QuotaLine
from frontend.kernel import asks, lists, outlook, plans, problems, stock, token_budgets, words
from frontend.kernel.page import PageRequest, page
from frontend.views.requests import read_number
from tenants.budget_periods import end_of
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.gpu_catalogue import TOKEN_DIMENSIONS, is_optional
from tenants.models import Quota, Request, Tenant
from tenants.operations import quotas, requests
from tenants.quota import TenantLimits
from tenants.states import BudgetPeriod, RequestKind, RequestState
from tenants.transactions import reading

HOLDERS: Final = 20
OPEN: Final = 200
"""Open requests that the bars count."""
EVERYDAY: Final = ("vcpu", "memory_gib", "storage_gib", "machines", "endpoints", "boundaries")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of the tenant."""

    key: str
    label: str
    bar: QuotaLine
    url: str


# --- the page -------------------------------------------------------------------------------------------


@page("quotas.list")
def show(request: PageRequest) -> HttpResponse:
    """Show limits and use, and the holders of one dimension."""
    tenant = request.tenant
    levels = quotas.position(tenant)
    found = _dimensions(request, levels)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(request, found, form)
    chosen = next((one for one in found if one.key == request.GET.get("of")), None)
    if chosen is None and found:
        chosen = max(found, key=lambda one: (one.key.startswith("gpu."), int(one.bar.used or 0)))
    boxed = Quota.objects.filter(tenant=tenant, until__gt=request.now).select_related("granted_by").order_by("until")
    values = {
        "gpus": [one for one in found if one.key.startswith("gpu.")],
        "others": [one for one in found if not one.key.startswith("gpu.")],
        "chosen": chosen,
        "holders": _holders(tenant, chosen, now=request.now) if chosen is not None else [],
        "troubles": token_budgets.troubles(tenant, now=request.now),
        "boxed": [
            {
                "row": row,
                "words": asks.amount(row.dimension, row.amount),
                "url": _granted_url(tenant, row),
            }
            for row in boxed[:HOLDERS]
        ],
        "empty": not found,
        "holder_columns": [
            {"key": "name", "label": _("Used by")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "amount", "label": _("Amount"), "numeric": True},
        ],
    }
    return render(request, "frontend/pages/quota/show.html", values)


def _granted_url(tenant: Tenant, row: Quota) -> str:
    granted = row.granted_by
    if granted is None or granted.tenant_id != tenant.pk:
        return ""
    return reverse("frontend:request", kwargs={"tenant": tenant.name, "name": granted.short_id})


def _dimensions(request: PageRequest, levels: Sequence[TenantLimits]) -> list[Dimension]:
    """Return every dimension with its bar, GPUs first, those with neither limit nor use left out."""
    if not levels:
        return []
    tenant = request.tenant
    keys = sorted({key for level in levels for key in _keys(level)}, key=_rank)
    requested = _requested(tenant)
    here = reverse("frontend:quota", kwargs={"tenant": tenant.name})
    found = []
    for key in keys:
        if not _is_limited(levels, key):
            continue
        line = outlook.line_of(levels, key, requested=requested.get(key, 0))
        url = f"{here}?of={key}#holders"
        ends = _ends(levels[-1], key) or (_anew(request.now) if key in TOKEN_DIMENSIONS else "")
        line = replace(line, label=_title(key), url=url, ends=ends)
        if line.limit or line.used or line.pending or line.requested or key in levels[-1].inherits:
            found.append(Dimension(key, line.label, line, url))
    return found


def _is_limited(levels: Sequence[TenantLimits], key: str) -> bool:
    """Whether a dimension counts here: those of single sizes do only where somebody set a limit."""
    return not is_optional(key) or any(each.dimension == key for level in levels for each in level.limits)


def _title(key: str) -> str:
    """Return a dimension as a heading."""
    label = asks.dimension(key)
    return label[:1].upper() + label[1:]


def _keys(level: TenantLimits) -> set[str]:
    own = {limit.dimension for limit in level.limits}
    return own | set(level.inherits) | set(level.usage.held) | set(level.usage.pending)


def _rank(key: str) -> tuple[int, str]:
    """Order dimensions: slots of GPUs, counts of sizes, the everyday ones in their order."""
    if key.startswith("gpu."):
        return (0 if key.endswith(".slices") else 1, key)
    return (2 + EVERYDAY.index(key) if key in EVERYDAY else 9, key)


def _ends(level: TenantLimits, key: str) -> str:
    """Return which part of the limit ends, and when, in words."""
    parts = [
        (each.until, int(each.amount)) for each in level.limits if each.dimension == key and each.until is not None
    ]
    if not parts:
        return ""
    until, amount = min(parts)
    return _("%(n)d of it end %(when)s") % {"n": amount, "when": absolute(until)}


def _anew(now: datetime) -> str:
    """Return when a budget of a month begins anew, in words."""
    return _("begins anew %(when)s") % {"when": absolute(end_of(BudgetPeriod.MONTH, now))}


def _requested(tenant: Tenant) -> dict[str, int]:
    """Return dimension → what open requests of the tenant ask for."""
    rows = Request.objects.filter(
        tenant=tenant, kind=RequestKind.QUOTA.value, state=RequestState.SUBMITTED.value
    ).order_by("created_at")
    total: dict[str, int] = {}
    for payload in rows.values_list("payload", flat=True)[:OPEN]:
        if payload.get("mode", "add") != "add":
            continue
        for key, count in (payload.get("limits") or {}).items():
            total[key] = total.get(key, 0) + int(count)
    return total


def _holders(tenant: Tenant, chosen: Dimension, *, now: datetime) -> list[dict[str, Any]]:
    """Return who holds most of a dimension, as far as the actor may see; the rest in one line."""
    if chosen.key == "tokens_month":
        most = token_budgets.largest(tenant, most=HOLDERS, now=now)
    else:
        most, _all = quotas.largest(tenant.pk, chosen.key, most=HOLDERS)
    found: list[dict[str, Any]] = [
        {
            "name": each.name or _("isolation of the tenant"),
            "kind": each.kind,
            "tenant": each.tenant,
            "amount": each.amount,
            "url": _holder_url(each),
        }
        for each in most
    ]
    used = int(chosen.bar.used or 0) + int(chosen.bar.pending)
    rest = used - sum(int(row["amount"]) for row in found)
    if rest > 0:
        found.append({"name": _("others"), "kind": "", "tenant": "", "amount": rest, "url": ""})
    return found


def _holder_url(holder: quotas.Holder) -> str:
    if holder.kind not in asks.PRODUCTS or not holder.name:
        return ""
    return reverse(f"frontend:{holder.kind}", kwargs={"tenant": holder.tenant, "name": holder.name})


def _exported(request: PageRequest, found: Sequence[Dimension], form: str) -> HttpResponse:
    columns = ["dimension", "used", "pending", "requested", "limit"]
    body = [
        {
            "dimension": one.key,
            "used": one.bar.used,
            "pending": one.bar.pending,
            "requested": one.bar.requested,
            "limit": one.bar.limit,
        }
        for one in found
    ]
    return lists.exported(body, columns, name=f"{request.tenant.name}-quota", form=form)


# --- asking for more --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """One line of the form."""

    key: str
    label: str
    name: str
    """Of the field."""
    used: int
    now: int
    new: str
    difference: int | None
    above: str
    """Tenant whose limit is inherited, `""` for an own one."""
    error: str


@page("requests.create", methods=("GET", "POST"), own_blocks=True)
def ask(request: PageRequest) -> HttpResponse:
    """Ask for more: present limit, new one, difference, until, reason; says who decides before it is sent."""
    given = request.POST if request.method == "POST" else request.GET
    with reading(request.actor):
        wishes = _wishes(request, given)
    if request.method == "POST":
        return _submit(request, wishes, given)
    errors: dict[str, str] = {}
    preview = None
    if any(wish.difference for wish in wishes):
        try:
            preview = plans.planned(lambda: _sent(request, wishes, given), _look)
        except (InvalidSpec, Conflict) as error:
            errors = _at_fields(error)
    template = "_answer" if request.htmx else "ask"
    return _form(request, wishes, given, errors, preview=preview, template=template)


def _submit(request: PageRequest, wishes: Sequence[Wish], given: QueryDict) -> HttpResponse:
    try:
        made = _sent(request, wishes, given)
    except (InvalidSpec, Conflict) as error:
        return _form(request, wishes, given, _at_fields(error), status=problems.status_of(error))
    if made.state == RequestState.SUBMITTED.value:
        messages.success(request, _("Asked for: %(what)s.") % {"what": asks.what(made)})
    else:
        messages.success(request, _("Granted at once by a rule: %(what)s.") % {"what": asks.what(made)})
    where = {"tenant": request.tenant.name, "name": made.short_id}
    return HttpResponseRedirect(reverse("frontend:request", kwargs=where))


def _sent(request: PageRequest, wishes: Sequence[Wish], given: QueryDict) -> Request:
    """File the request. Raises `InvalidSpec`, `Conflict`."""
    limits: dict[str, int] = {}
    above: dict[str, dict[str, int]] = {}
    for wish in wishes:
        more = read_number(wish.new, field=f"payload.limits.{wish.key}") - wish.now
        if more < 0:
            text = _("This is less than now. What is not used needs no request.")
            raise InvalidSpec(text, field=f"payload.limits.{wish.key}")
        if more and wish.above:
            above.setdefault(wish.above, {})[wish.key] = more
        elif more:
            limits[wish.key] = more
    if not limits and not above:
        raise InvalidSpec(_("Raise at least one limit."), field="payload.limits")
    return requests.submit(
        kind=RequestKind.QUOTA.value,
        payload={
            "mode": "add",
            "limits": limits,
            "ancestors": above,
            "until": asks.end_of_day(given.get("until", "")) or None,
        },
        reason=given.get("reason", ""),
        tenant=request.tenant,
        actor=request.actor,
        now=request.now,
    )


def _look(row: Request) -> dict[str, Any]:
    """Return what the request would be, inside the transaction that is undone."""
    deciders = [outlook.decider(stage.decider) for stage in sorted(row.stages.all(), key=lambda one: one.order)]
    is_granted = row.state != RequestState.SUBMITTED.value
    return {"what": asks.what(row), "granted": is_granted, "deciders": [] if is_granted else deciders}


def _wishes(request: PageRequest, given: QueryDict) -> list[Wish]:
    """Return a line per dimension that may be asked for, GPUs first, also those of which there is nothing yet."""
    held = stock.of(request.tenant)
    wanted = {*quotas.dimensions_of(request.tenant), *EVERYDAY, *(f"gpu.{product}.slices" for product in held.products)}
    levels = quotas.position(request.tenant, sorted(wanted))
    found = []
    for key in sorted((key for key in wanted if _is_limited(levels, key)), key=_rank):
        owner = next((level for level in reversed(levels) if key not in level.inherits), levels[-1])
        at = sum(int(each.amount) for each in owner.limits if each.dimension == key)
        name = f"new:{key}"
        text = given.get(name, str(at)).strip()
        inherited = owner.tenant if owner is not levels[-1] else ""
        used = int(owner.usage.of(key))
        found.append(Wish(key, _title(key), name, used, at, text, _difference(text, at), inherited, ""))
    return found


def _difference(text: str, at: int) -> int | None:
    try:
        return int(text.replace(",", "")) - at
    except ValueError:
        return None


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    return {_field(name): words.plain(text) for name, text in problems.at_fields(error).items()}


def _field(name: str) -> str:
    if name.startswith("payload.limits."):
        return f"new:{name.removeprefix('payload.limits.')}"
    return {"payload.until": "until", "reason": "reason"}.get(name, "")


def _form(
    request: PageRequest,
    wishes: Sequence[Wish],
    given: QueryDict,
    errors: Mapping[str, str],
    *,
    preview: Mapping[str, Any] | None = None,
    template: str = "ask",
    status: int = 200,
) -> HttpResponse:
    first = request.GET.get("of", "")
    shown = [replace(wish, error=errors.get(wish.name, "")) for wish in wishes]
    shown.sort(key=lambda wish: wish.key != first)
    up = reverse("frontend:quota", kwargs={"tenant": request.tenant.name})
    values = {
        "wishes": shown,
        "until_value": given.get("until", ""),
        "reason": given.get("reason", ""),
        "errors": errors,
        "preview": preview,
        "here": reverse("frontend:quota-ask", kwargs={"tenant": request.tenant.name}),
        "back_url": up,
        "columns": [
            {"key": "what", "label": _("What")},
            {"key": "used", "label": _("Used"), "numeric": True},
            {"key": "now", "label": _("Limit now"), "numeric": True},
            {"key": "new", "label": _("New limit"), "numeric": True},
            {"key": "difference", "label": _("Difference"), "numeric": True},
        ],
        "breadcrumbs": [{"label": _("Quota"), "url": up}, {"label": _("Ask for more"), "url": ""}],
    }
    return render(request, f"frontend/pages/quota/{template}.html", values, status=status)
