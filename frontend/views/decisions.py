"""What was decided: by the person himself, in his place, by rules; for platform roles by everybody."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django.db.models import Aggregate, Count, DurationField, ExpressionWrapper, F, OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.kernel import asks, lists
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.models import Decision, Person
from tenants.policies import ROUTES
from tenants.states import PlatformRole, RequestKind

DAYS: Final = 90
"""What the figures at the top are about."""
VERDICTS: Final[dict[str, tuple[str | Promise, str, str]]] = {
    "approve": (gettext_lazy("Approved"), "ok", "circle-check"),
    "reduce": (gettext_lazy("Approved for less"), "ok", "circle-minus"),
    "deny": (gettext_lazy("Denied"), "bad", "circle-x"),
}
"""Verdict → word, tone, icon."""
WHOSE: Final[dict[str, str | Promise]] = {
    "mine": gettext_lazy("Mine"),
    "all": gettext_lazy("Everybody's"),
    "rules": gettext_lazy("By a rule"),
}


class Median(Aggregate):
    """The median of a span, by PostgreSQL."""

    function = "PERCENTILE_CONT"
    template = "%(function)s(0.5) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = DurationField()


def tabs(request: PageRequest, current: str) -> list[dict[str, Any]]:
    """Return the tabs of this part of the portal that the person may open."""
    found = [
        ("decisions", _("Decisions"), "scale", "requests.inbox"),
        ("rules", _("Rules"), "zap", "auto-approval-rules.list"),
        ("delegations", _("In whose place"), "users", "delegations.list"),
    ]
    return [
        {"label": label, "url": reverse(f"frontend:{route}"), "icon": icon, "current": route == current}
        for route, label, icon, operation in found
        if access.allowed(request.actor, None, ROUTES[operation])
    ]


@page("requests.inbox")
def listed(request: PageRequest) -> HttpResponse:
    """List decisions: one's own, or those of everybody for whoever sees the platform."""
    whose = _whose(request)
    rows = _filtered(request, whose)
    form = request.GET.get("format", "")
    if form in {"csv", "json"}:
        return _exported(rows, form)
    found = lists.page_of(rows, request.GET.get("after", ""))
    query = request.GET.copy()
    query["after"] = found.after
    values = {
        "lines": _lines(found.rows),
        "empty": not found.rows,
        "more_url": f"?{query.urlencode()}" if found.after else "",
        "previous_url": "" if found.is_first else request.path,
        "is_filtered": any(request.GET.get(key) for key in ("verdict", "kind", "tenant")),
        "clear_url": request.path,
        "fields": _filters(request),
        "whose": whose,
        "choices": _choices(request),
        "figures": _figures(request, whose),
        "days": DAYS,
        "tabs": tabs(request, "decisions"),
        "columns": [
            {"key": "at", "label": _("Decided")},
            {"key": "what", "label": _("What")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "verdict", "label": _("Verdict")},
            {"key": "by", "label": _("By")},
            {"key": "waited", "label": _("It waited"), "numeric": True},
            {"key": "cost", "label": _("Cost to the end"), "numeric": True},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/decisions/{template}.html", values)


def _whose(request: PageRequest) -> str:
    """Return whose decisions are shown: who decides sees his own first, who only watches sees all."""
    if not request.actor.sees_all:
        return "mine"
    given = request.GET.get("whose", "")
    return given if given in WHOSE else ("mine" if request.actor.has(PlatformRole.APPROVER) else "all")


def _rows(request: PageRequest, whose: str) -> QuerySet[Decision]:
    rows = Decision.objects.all()
    if whose == "mine":
        me = request.actor.person_id
        return rows.filter(Q(decider_id=me) | Q(on_behalf_of_id=me))
    return rows.filter(rule__isnull=False) if whose == "rules" else rows


def _filtered(request: PageRequest, whose: str) -> QuerySet[Decision]:
    # No joins to people: row-level security hides who shares no tenant, and an inner join would hide the decision.
    def name(of: str) -> Subquery:
        return Subquery(Person.objects.filter(pk=OuterRef(of)).values("display_name")[:1])

    rows = _rows(request, whose).select_related("request__tenant", "request__allocation", "rule", "tenant")
    rows = rows.annotate(
        asked_by=name("requester_id"), decided_by=name("decider_id"), in_place_of=name("on_behalf_of_id")
    )
    given = request.GET
    if given.get("verdict") in VERDICTS:
        rows = rows.filter(verdict=given["verdict"])
    if given.get("kind") in {kind.value for kind in RequestKind}:
        rows = rows.filter(request__kind=given["kind"])
    if given.get("tenant"):
        rows = rows.filter(tenant__name=given["tenant"])
    return rows


def _filters(request: PageRequest) -> list[dict[str, Any]]:
    given = request.GET
    every = {"value": "", "label": _("All")}
    verdicts = [{"value": key, "label": str(text)} for key, (text, _tone, _icon) in VERDICTS.items()]
    kinds = [{"value": key, "label": str(text)} for key, text in asks.KINDS.items()]
    return [
        {"name": "verdict", "label": _("Verdict"), "value": given.get("verdict", ""), "options": [every, *verdicts]},
        {"name": "kind", "label": _("Kind"), "value": given.get("kind", ""), "options": [every, *kinds]},
    ]


def _choices(request: PageRequest) -> list[dict[str, str]]:
    if not request.actor.sees_all:
        return []
    query = request.GET.copy()
    query.pop("after", None)
    found = []
    for key, label in WHOSE.items():
        query["whose"] = key
        found.append({"value": key, "label": str(label), "href": f"?{query.urlencode()}"})
    return found


def _lines(rows: list[Decision]) -> list[dict[str, Any]]:
    return [_line(row) for row in rows]


def _line(row: Any) -> dict[str, Any]:
    text, tone, icon = VERDICTS[row.verdict]
    tenant = row.tenant or row.request.tenant  # of a new tenant: the one that came of it
    cost = (row.proof or {}).get("cost") or {}
    granted = asks.amounts(asks.all_limits(row.granted)) if row.verdict == "reduce" else ""
    return {
        "row": row,
        "url": reverse("frontend:decide", kwargs={"key": row.request.short_id}),
        "what": asks.what(row.request),
        "granted": granted,
        "tenant": tenant.name if tenant is not None else "",
        "verdict": {"text": str(text), "tone": tone, "icon": icon},
        "by": _("Rule: %(name)s") % {"name": row.rule.name} if row.rule is not None else (row.decided_by or "--"),
        "by_rule": row.rule is not None,
        "in_place_of": row.in_place_of or "",
        "who": row.asked_by or _("somebody from outside"),
        "waited_s": (row.created_at - row.request.created_at).total_seconds(),
        "cost": cost.get("total"),
        "currency": cost.get("currency", ""),
        "state": asks.state(row.request),
    }


def _figures(request: PageRequest, whose: str) -> list[dict[str, str]]:
    """Return what the last days came to, in one statement."""
    wait = ExpressionWrapper(F("created_at") - F("request__created_at"), output_field=DurationField())
    rows = _rows(request, whose).filter(created_at__gt=request.now - timedelta(days=DAYS))
    found = rows.aggregate(
        approved=Count("pk", filter=Q(verdict="approve")),
        reduced=Count("pk", filter=Q(verdict="reduce")),
        denied=Count("pk", filter=Q(verdict="deny")),
        wait=Median(wait, filter=Q(rule__isnull=True)),
    )
    waited = numbers.duration(found["wait"].total_seconds()) if found["wait"] is not None else ""
    return [
        {"label": _("Approved"), "value": numbers.number(found["approved"]), "note": ""},
        {"label": _("Approved for less"), "value": numbers.number(found["reduced"]), "note": ""},
        {"label": _("Denied"), "value": numbers.number(found["denied"]), "note": ""},
        {
            "label": _("Usual wait for a person"),
            "value": waited,
            "note": _("half of them waited less") if waited else _("no person decided any"),
        },
    ]


def _exported(rows: QuerySet[Decision], form: str) -> HttpResponse:
    columns = [
        "request", "kind", "what", "tenant", "asked_by", "verdict", "by", "in_place_of", "rule", "reason", "asked_at",
        "decided_at", "cost_to_the_end", "currency",
    ]  # fmt: skip
    body = [
        {
            "request": line["row"].request.short_id,
            "kind": line["row"].request.kind,
            "what": line["what"],
            "tenant": line["tenant"],
            "asked_by": line["who"],
            "verdict": line["row"].verdict,
            "by": "" if line["by_rule"] else line["by"],
            "in_place_of": line["in_place_of"],
            "rule": line["row"].rule.name if line["by_rule"] else "",
            "reason": line["row"].reason,
            "asked_at": line["row"].request.created_at,
            "decided_at": line["row"].created_at,
            "cost_to_the_end": line["cost"],
            "currency": line["currency"],
        }
        for line in map(_line, rows.order_by("-created_at", "-id")[: lists.MOST_EXPORTED])
    ]
    return lists.exported(body, columns, name="decisions", form=form)
