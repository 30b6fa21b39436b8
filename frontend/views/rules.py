"""Rules of automatic approval: each with what it would have approved in the last 90 days; made and changed by preview.

The preview replays the requests that were really filed through the same code that approves them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.kernel import asks, problems, words
from frontend.kernel.page import PageRequest, page
from frontend.views.decisions import tabs
from frontend.views.quota import EVERYDAY
from frontend.views.requests import read_number
from tenants import access, approval, rule_history
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.gpu_catalogue import slices_dimension
from tenants.models import AutoApprovalRule, Host, Tenant
from tenants.operations import auto_approval_rules
from tenants.operations.pricing import all_prices, currency
from tenants.policies import ROUTES
from tenants.states import RequestKind
from tenants.transactions import reading

DAY_S: Final = 86400
SHOWN: Final = 100
"""Matches listed; the figures count all."""
TENANTS: Final = 1000
REASONS: Final = 6
NEW: Final = UUID(int=0)


@dataclass(slots=True)
class Wish:
    """What the form holds."""

    name: str = ""
    tenant: str = ""
    days: str = ""
    limits: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, row: AutoApprovalRule) -> Wish:
        """Return the form of a stored rule."""
        days = str(row.longest_s // DAY_S) if row.longest_s is not None else ""
        where = row.tenant.name if row.tenant is not None else ""
        return cls(row.name, where, days, {key: str(amount) for key, amount in row.limits.items()})

    @classmethod
    def read(cls, given: QueryDict) -> Wish:
        """Return the form as it was sent."""
        limits = {key.removeprefix("limit:"): str(given[key]).strip() for key in given if key.startswith("limit:")}
        return cls(given.get("name", ""), given.get("tenant", ""), given.get("days", "").strip(), limits)

    def amounts(self) -> dict[str, int]:
        """Return dimension → the most of it; empty and zero leave a dimension out. Raises `InvalidSpec`."""
        found = {key: read_number(text, field=f"limits.{key}") for key, text in sorted(self.limits.items()) if text}
        return {key: amount for key, amount in found.items() if amount}

    def longest_s(self) -> int | None:
        """Return the longest time, None for any. Raises `InvalidSpec`."""
        return read_number(self.days, field="longest_s") * DAY_S if self.days else None


# --- reading ------------------------------------------------------------------------------------------------


@page("auto-approval-rules.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the rules, each with what it would have approved."""
    rows = list(AutoApprovalRule.objects.select_related("tenant").order_by("created_at", "pk"))
    history, prices = rule_history.read(now=request.now), all_prices()
    granted = rule_history.granted_before(rows, history.since)
    lines = [
        {
            "row": row,
            "url": reverse("frontend:rule", kwargs={"key": row.pk}),
            "most": asks.amounts(row.limits),
            "days": row.longest_s // DAY_S if row.longest_s is not None else None,
            "found": _found(rule_history.matches(rule_history.pure(row), history, prices, granted.get(row.pk))),
        }
        for row in rows
    ]
    values = {
        "lines": lines,
        "empty": not lines,
        "asked": len(history.asks),
        "days": rule_history.DAYS,
        "may_write": _may(request),
        "currency": currency(),
        "tabs": tabs(request, "rules"),
        "columns": [
            {"key": "name", "label": _("Rule")},
            {"key": "most", "label": _("Approves at most, for one tenant in all")},
            {"key": "longest", "label": _("For at most")},
            {"key": "matches", "label": _("Would have matched, 90 days")},
            {"key": "cost", "label": _("Cost of these"), "numeric": True},
            {"key": "state", "label": _("State")},
        ],
    }
    return render(request, "frontend/pages/decisions/rules.html", values)


def _may(request: PageRequest) -> bool:
    return access.allowed(request.actor, None, ROUTES["auto-approval-rules.update"])


def _found(matches: rule_history.Matches) -> dict[str, Any]:
    return {
        "count": len(matches.asks),
        "sum": asks.amounts(matches.adds) if matches.adds else "",
        "cost": matches.cost if matches.asks else None,
        "people": matches.people,
        "waited_s": matches.waited.total_seconds(),
    }


@page("auto-approval-rules.list")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one rule and the requests it would have approved."""
    row = _find(key)
    history = rule_history.read(now=request.now)
    granted = rule_history.granted_before([row], history.since).get(row.pk)
    found = rule_history.matches(rule_history.pure(row), history, all_prices(), granted)
    where = {"key": row.pk}
    values = {
        "row": row,
        "most": [
            {"label": asks.dimension(name), "words": asks.amount(name, int(amount))}
            for name, amount in sorted(row.limits.items(), key=lambda one: (not one[0].startswith("gpu."), one[0]))
        ],
        "longest_days": row.longest_s // DAY_S if row.longest_s is not None else None,
        "edit_url": reverse("frontend:rule-edit", kwargs=where) if _may(request) else "",
        "switch_url": reverse("frontend:rule-switch", kwargs=where),
        "breadcrumbs": [
            {"label": _("Rules"), "url": reverse("frontend:rules")},
            {"label": row.name, "url": ""},
        ],
        **_shown(found, history),
    }
    return render(request, "frontend/pages/decisions/rule.html", values)


def _shown(found: rule_history.Matches, history: rule_history.History) -> dict[str, Any]:
    """Return what the list of matches shows."""
    lines = [_match(ask, history) for ask in reversed(found.asks[-SHOWN:])]
    return {
        "found": _found(found),
        "matches": lines,
        "refused": _refused(found),
        "more": len(found.asks) - len(lines),
        "asked": len(history.asks),
        "days": rule_history.DAYS,
        "currency": currency(),
        "match_columns": [
            {"key": "at", "label": _("Asked")},
            {"key": "what", "label": _("What")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "state", "label": _("What came of it")},
            {"key": "waited", "label": _("It waited"), "numeric": True},
        ],
    }


def _refused(found: rule_history.Matches) -> list[dict[str, Any]]:
    """Return what kept the other requests out, the commonest first, in words."""
    said: dict[approval.Refused, str] = {
        approval.Refused.TENANT: _("are of another tenant"),
        approval.Refused.TIME: _("ask for longer than the rule allows, or for good"),
        approval.Refused.NOT_NAMED: _("ask for something that is not named here: %(what)s"),
        approval.Refused.AMOUNT: _("ask for more than the rule allows: %(what)s"),
    }
    ordered = sorted(found.refused.items(), key=lambda entry: (-entry[1], entry[0].why, entry[0].dimension))
    return [{"count": count, "text": _filled(said[why.why], why.dimension)} for why, count in ordered[:REASONS]]


def _filled(text: str, dimension: str) -> str:
    return text % {"what": _label(dimension)} if dimension else text


def _match(ask: approval.PastAsk, history: rule_history.History) -> dict[str, Any]:
    row = history.rows[ask.id]
    wait = rule_history.waited(row)
    return {
        "row": row,
        "url": reverse("frontend:decide", kwargs={"key": row.short_id}),
        "what": asks.what(row),
        "tenant": row.tenant.name if row.tenant is not None else "",
        "state": asks.state(row),
        "waited_s": wait.total_seconds() if wait is not None else None,
        "by_rule": any(one.rule_id is not None for one in row.decisions.all()),
    }


def _find(key: str) -> AutoApprovalRule:
    return access.find(AutoApprovalRule.objects.select_related("tenant"), key)


# --- making and changing ----------------------------------------------------------------------------------------


@page("auto-approval-rules.create", methods=("GET", "POST"), own_blocks=True)
def create(request: PageRequest) -> HttpResponse:
    """Make a rule; what it would have approved is shown while it is written."""
    if request.method != "POST":
        return _form(request, None, Wish.read(request.GET), {})
    wish = Wish.read(request.POST)
    try:
        with reading(request.actor):
            tenant = access.find(access.tenants(request.actor), wish.tenant) if wish.tenant else None
        made = auto_approval_rules.create(
            name=wish.name,
            limits=wish.amounts(),
            tenant=tenant,
            longest_s=wish.longest_s(),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _form(request, None, wish, _at_fields(error), status=problems.status_of(error))
    messages.success(request, _("The rule %(name)s is on.") % {"name": made.name})
    return HttpResponseRedirect(reverse("frontend:rule", kwargs={"key": made.pk}))


@page("auto-approval-rules.update", methods=("GET", "POST"), own_blocks=True)
def edit(request: PageRequest, key: str) -> HttpResponse:
    """Change what a rule approves; what it granted stands."""
    with reading(request.actor):
        row = _find(key)
    if request.method != "POST":
        wish = Wish.of(row)
        if any(name.startswith("limit:") for name in request.GET):
            given = Wish.read(request.GET)
            wish.days, wish.limits = given.days, given.limits
        return _form(request, row, wish, {})
    given = Wish.read(request.POST)
    wish = Wish(row.name, row.tenant.name if row.tenant is not None else "", given.days, given.limits)
    try:
        longest = wish.longest_s()
        auto_approval_rules.update(
            rule=row,
            limits=wish.amounts(),
            longest_s=longest,
            any_length=longest is None,
            version=read_number(request.POST.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _form(request, row, wish, _at_fields(error), status=problems.status_of(error))
    messages.success(request, _("The rule %(name)s holds as it stands here now.") % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:rule", kwargs={"key": row.pk}))


@page("auto-approval-rules.update", methods=("POST",))
def switch(request: PageRequest, key: str) -> HttpResponse:
    """Switch a rule on or off."""
    with reading(request.actor):
        row = _find(key)
    turned_on = request.POST.get("enabled") == "on"
    auto_approval_rules.update(
        rule=row,
        enabled=turned_on,
        version=read_number(request.POST.get("version"), field="version"),
        actor=request.actor,
        now=request.now,
    )
    text = (
        _("%(name)s is on: small requests pass at once.") if turned_on else _("%(name)s is off: people decide again.")
    )
    messages.success(request, text % {"name": row.name})
    return HttpResponseRedirect(reverse("frontend:rule", kwargs={"key": row.pk}))


def _at_fields(error: ControlPlaneError) -> dict[str, str]:
    found = {}
    for name, text in problems.at_fields(error).items():
        at = f"limit:{name.removeprefix('limits.')}" if name.startswith("limits.") else name
        known = {"longest_s": "days", "limits": "", "kind": ""}.get(at, at)
        if error.specific_code == "name-taken":
            known = "name"
        found[known] = words.plain(text)
    return found


def _form(
    request: PageRequest,
    row: AutoApprovalRule | None,
    wish: Wish,
    errors: Mapping[str, str],
    *,
    status: int = 200,
) -> HttpResponse:
    with reading(request.actor):
        history = rule_history.read(now=request.now)
        wrong = dict(errors)
        preview: dict[str, Any] = {}
        if not wrong:
            preview, wrong = _preview(row, wish, history)
        here = (
            reverse("frontend:rule-edit", kwargs={"key": row.pk}) if row is not None else reverse("frontend:rule-new")
        )
        limits = _fields(history, wish, wrong)
        values = {
            "row": row,
            "wish": wish,
            "gpu_limits": [one for one in limits if one["key"].startswith("gpu.")],
            "other_limits": [one for one in limits if not one["key"].startswith("gpu.")],
            "errors": wrong,
            "here": here,
            "tenants": [{"value": "", "label": _("Any tenant")}, *_tenants(request)] if row is None else [],
            "back_url": reverse("frontend:rule", kwargs={"key": row.pk}) if row else reverse("frontend:rules"),
            "twins": _twins(row, wish, wrong),
            "breadcrumbs": [
                {"label": _("Rules"), "url": reverse("frontend:rules")},
                {"label": row.name if row is not None else _("New rule"), "url": ""},
            ],
            **preview,
        }
        template = "_rule_preview" if request.htmx and request.method != "POST" else "rule_form"
        return render(request, f"frontend/pages/decisions/{template}.html", values, status=status)


def _preview(
    row: AutoApprovalRule | None, wish: Wish, history: rule_history.History
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the rule of the form would have approved, and what is wrong with the form."""
    try:
        limits, longest = wish.amounts(), wish.longest_s()
    except InvalidSpec as error:
        return {}, _at_fields(error)
    where = Tenant.objects.filter(name=wish.tenant).first() if wish.tenant else None
    rule = approval.Rule(
        row.pk if row is not None else NEW,
        wish.name,
        RequestKind.QUOTA.value,
        where.pk if where is not None else None,
        limits,
        longest,
    )
    granted = rule_history.granted_before([row], history.since).get(row.pk) if row is not None else None
    return {**_shown(rule_history.matches(rule, history, all_prices(), granted), history), "given": bool(limits)}, {}


def _fields(history: rule_history.History, wish: Wish, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a field per dimension that the estate has, the rule names, or somebody asked for lately."""
    products = Host.objects.exclude(gpu_product="").order_by().values_list("gpu_product", flat=True).distinct()
    asked = {key for ask in history.asks for key in ask.adds}
    keys = {*(slices_dimension(product) for product in products), *EVERYDAY, *wish.limits, *asked}
    return [
        {
            "key": key,
            "name": f"limit:{key}",
            "label": _label(key),
            "value": wish.limits.get(key, ""),
            "error": errors.get(f"limit:{key}", ""),
        }
        for key in sorted(keys, key=_rank)
    ]


def _label(key: str) -> str:
    label = asks.dimension(key)
    text = _("%(product)s, slots") % {"product": label} if key.endswith(".slices") else label
    return text[:1].upper() + text[1:]


def _rank(key: str) -> tuple[int, str]:
    if key.startswith("gpu."):
        return (0 if key.endswith(".slices") else 1, key)
    return (2 + EVERYDAY.index(key) if key in EVERYDAY else 9, key)


def _tenants(request: PageRequest) -> Sequence[dict[str, str]]:
    rows = access.tenants(request.actor).exclude(status="closed").order_by("name")[:TENANTS]
    return [{"value": row.name, "label": _("%(tenant)s and below") % {"tenant": row.display_name}} for row in rows]


def _twins(row: AutoApprovalRule | None, wish: Wish, errors: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the same rule as a call of the API."""
    if errors:
        return []
    body: dict[str, Any] = {"limits": wish.amounts(), "longest_s": wish.longest_s()}
    if row is None:
        body = {"name": wish.name or _("small"), **({"tenant": wish.tenant} if wish.tenant else {}), **body}
    verb, path = ("PATCH", f"auto-approval-rules/{row.pk}") if row is not None else ("POST", "auto-approval-rules")
    extra = f"-H 'If-Match: \"{row.version}\"'" if row is not None else "-H 'Idempotency-Key: '$(uuidgen)"
    text = (
        f'curl -X {verb} $TENANTRY/api/v1/{path} -H "Authorization: Bearer $TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' {extra} \\\n  -d '{json.dumps(body)}'"
    )
    return [{"label": "API", "text": text, "lang": "shell"}]
