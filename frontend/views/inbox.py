"""The inbox of whoever may decide, the page of one decision with its forecast, and bulk decisions of equal requests.

Every decision goes through `requests.decide` with the version and the forecast that were shown: a worse outcome
changes nothing, and the page shows what got worse. One's own requests are listed with the reason why not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import asks, forecast, lists, outlook, problems, verdicts, words
from frontend.kernel.page import PageRequest, page
from frontend.views.requests import read_number, thread
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Person, Request
from tenants.operations import requests
from tenants.operations.pricing import all_prices, currency
from tenants.states import RequestKind, RequestState
from tenants.transactions import reading

SHOWN: Final = 100
"""Lines of the inbox; the oldest come first, so the rest comes up as these are decided."""
MOST_AT_ONCE: Final = 20
"""Equal requests decided together."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the inbox."""

    row: Request
    url: str
    who: str
    what: str
    verdict: verdicts.Verdict
    cost: outlook.Price | None


def rows_of(request: PageRequest) -> QuerySet[Request]:
    """Return the requests the person may see, with what every page of them shows."""
    # No join to people: row-level security hides who shares no tenant, and an inner join would hide the request.
    name = Person.objects.filter(pk=OuterRef("requester_id")).values("display_name")[:1]
    rows = requests.visible(request.actor).select_related(*asks.JOINED)
    return rows.prefetch_related("stages").annotate(asked_by=Subquery(name))


def waiting(request: PageRequest) -> list[Request]:
    """Return what the person may decide now, oldest first."""
    keys = [row.pk for row in requests.inbox(request.actor, now=request.now)]
    found = {row.pk: row for row in rows_of(request).filter(pk__in=keys)}
    return [found[key] for key in keys if key in found]


def address(row: Request) -> str:
    """Return the page on which a request is decided."""
    return reverse("frontend:decide", kwargs={"key": row.short_id})


# --- the inbox ------------------------------------------------------------------------------------------


@page("requests.inbox")
def listed(request: PageRequest) -> HttpResponse:
    """List what waits for the person's decision."""
    rows = waiting(request)
    form = request.GET.get("format", "")
    lines = _lines(rows[: lists.MOST_EXPORTED if form else SHOWN], request)
    if form in {"csv", "json"}:
        return _exported(lines, form)
    own = rows_of(request).filter(requester_id=request.actor.person_id, state=RequestState.SUBMITTED.value)
    values = {
        "lines": lines,
        "empty": not lines,
        "count": ngettext("%(n)d waits", "%(n)d wait", len(rows)) % {"n": len(rows)},
        "groups": [
            {
                "count": len(group),
                "what": asks.what(group[0]),
                "url": f"{reverse('frontend:inbox-equal')}?key={asks.equal_key(group[0])}",
            }
            for group in asks.groups(rows[:SHOWN])
        ],
        "own": [
            {"row": row, "what": asks.what(row), "next": asks.next_decider(row), "url": _own_url(row)}
            for row in own.order_by("created_at", "pk")[:SHOWN]
        ],
        "columns": [
            {"key": "age", "label": _("Asked")},
            {"key": "who", "label": _("Who")},
            {"key": "what", "label": _("What")},
            {"key": "verdict", "label": _("If approved")},
            {"key": "cost", "label": _("Cost to the end"), "numeric": True},
        ],
    }
    template = "_table" if request.htmx else "list"
    return render(request, f"frontend/pages/inbox/{template}.html", values)


def _own_url(row: Request) -> str:
    if row.tenant is None:
        return ""
    return reverse("frontend:request", kwargs={"tenant": row.tenant.name, "name": row.short_id})


def _lines(rows: list[Request], request: PageRequest) -> list[Line]:
    found, known, money = verdicts.of(rows, now=request.now), all_prices(), currency()
    return [
        Line(
            row,
            address(row),
            _who(row),
            asks.what(row),
            found[row.pk],
            asks.cost(row, known, currency=money, now=request.now),
        )
        for row in rows
    ]


def _who(row: Any) -> str:
    return str(row.asked_by or _("somebody from outside"))


def _exported(lines: list[Line], form: str) -> HttpResponse:
    columns = ["id", "asked_at", "who", "tenant", "what", "if_approved", "why", "cost_to_the_end", "currency"]
    body = [
        {
            "id": line.row.short_id,
            "asked_at": line.row.created_at,
            "who": line.who,
            "tenant": line.row.tenant.name if line.row.tenant is not None else "",
            "what": line.what,
            "if_approved": line.verdict.key,
            "why": line.verdict.sentence,
            "cost_to_the_end": line.cost.to_the_end if line.cost is not None else None,
            "currency": line.cost.currency if line.cost is not None else "",
        }
        for line in lines
    ]
    return lists.exported(body, columns, name="inbox", form=form)


# --- one decision ---------------------------------------------------------------------------------------


@page("requests.proof")
def show(request: PageRequest, key: str) -> HttpResponse:
    """Show one request with what approving it would do."""
    return _page(request, access.find(rows_of(request), key))


def _page(
    request: PageRequest,
    row: Request,
    *,
    status: int = 200,
    errors: Mapping[str, str] | None = None,
    given: QueryDict | None = None,
    worse: list[str] | None = None,
) -> HttpResponse:
    """Return the page of a decision, in a read block."""
    is_open = row.state == RequestState.SUBMITTED.value
    own = row.requester_id == request.actor.person_id
    standing = requests.standing(request.actor, row, now=request.now) if is_open else None
    seen = forecast.of(row, request.actor, now=request.now) if is_open else None
    last = len([stage for stage in row.stages.all() if stage.done_at is None]) <= 1
    product = asks.product_of(row)
    rest = [other for other in waiting(request) if other.pk != row.pk] if standing is not None else []
    values = {
        "row": row,
        "what": asks.what(row),
        "full": asks.what(row, full=True),
        "kind": asks.kind(row),
        "who": _who(row),
        "reason": asks.reason(row),
        "state": asks.state(row),
        "steps": asks.stages(row),
        "next_decider": asks.next_decider(row),
        "until": asks.until_of(row.payload),
        "seen": seen,
        "bars": [pair for pair in seen.bars if pair.is_gpu] if seen is not None else [],
        "other_bars": [pair for pair in seen.bars if not pair.is_gpu] if seen is not None else [],
        "proof_text": json.dumps(seen.proof) if seen is not None and seen.proof is not None and last else "",
        "simulated": request.portal.is_simulated,
        "may_decide": standing is not None,
        "in_place_of": standing is not None and standing.on_behalf_of is not None,
        "own": own and is_open,
        "is_last": last,
        "can_approve": seen is not None and (seen.proof is not None or not last),
        "limits": _fields(row, given, errors or {}),
        "until_value": given.get("until", "") if given is not None else asks.day_of(asks.until_of(row.payload)),
        "can_reduce": row.kind in {RequestKind.QUOTA.value, RequestKind.TENANT.value},
        "errors": errors or {},
        "given_reason": given.get("reason", "") if given is not None else "",
        "open_part": given.get("verdict", "") if given is not None and errors else "",
        "worse": worse or [],
        "thread": thread(row),
        "product": product,
        "product_url": asks.product_url(product) if product is not None else "",
        "product_word": asks.product_word(product) if product is not None else "",
        "left": len(rest),
        "next_url": address(rest[0]) if rest else "",
        "breadcrumbs": [
            {"label": _("Inbox"), "url": reverse("frontend:inbox")},
            {"label": row.short_id, "url": ""},
        ],
    }
    return render(request, "frontend/pages/inbox/decide.html", values, status=status)


def _fields(row: Request, given: QueryDict | None, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the amounts that can be reduced, each with its field."""
    found = []
    for dimension, count in sorted((row.payload.get("limits") or {}).items()):
        name = f"limits:{dimension}"
        found.append(
            {
                "name": name,
                "label": asks.dimension(dimension),
                "asked": int(count),
                "value": given.get(name, count) if given is not None else count,
                "error": errors.get(name, ""),
            }
        )
    return found


@page("requests.decide", methods=("POST",))
def decide(request: PageRequest, key: str) -> HttpResponse:
    """Approve, reduce, time-box or deny the version that was shown."""
    with reading(request.actor):
        row = access.find(rows_of(request), key)
    given = request.POST
    verdict = given.get("verdict", "")
    try:
        decision = requests.decide(
            request=row,
            version=read_number(given.get("version"), field="version"),
            verdict=verdict,
            granted=_granted(row, given) if verdict == "reduce" else None,
            reason=given.get("reason", ""),
            expect_proof=_proof(given.get("proof", "")) if verdict == "approve" else None,
            actor=request.actor,
            now=request.now,
        )
    except ControlPlaneError as error:
        if not isinstance(error, InvalidSpec | Conflict):
            raise
        return _again(request, key, error)
    text = {
        "approve": _("Approved: %(what)s."),
        "reduce": _("Approved for less: %(what)s."),
        "deny": _("Denied: %(what)s."),
    }[decision.verdict]
    messages.success(request, text % {"what": asks.what(row)})
    return HttpResponseRedirect(_next(request, row))


def _again(request: PageRequest, key: str, error: ControlPlaneError) -> HttpResponse:
    """Show the page once more with what was wrong, at its field, or with what got worse."""
    worse = [words.plain(text) for text in error.data.get("differences", [])]
    with reading(request.actor):
        row = access.find(rows_of(request), key)
        if error.specific_code == "decided":
            messages.warning(request, _("Somebody else decided this in the meantime."))
            return HttpResponseRedirect(_next_inside(request, row))
        errors: dict[str, str] = {}
        if not worse:
            errors = {_field(name): words.plain(text) for name, text in problems.at_fields(error).items()}
        return _page(request, row, status=problems.status_of(error), errors=errors, given=request.POST, worse=worse)


def _field(name: str) -> str:
    """Return the form's field for a field of the operation."""
    if name.startswith("granted.limits."):
        return f"limits:{name.removeprefix('granted.limits.')}"
    return {"granted.until": "until", "granted.limits": "", "granted": "", "verdict": ""}.get(name, name)


def _granted(row: Request, given: QueryDict) -> dict[str, Any]:
    """Return what the form grants of a request: only what differs from what was asked."""
    asked = requests.asked(row)
    granted: dict[str, Any] = {}
    limits = {
        name: read_number(given.get(f"limits:{name}"), field=f"granted.limits.{name}")
        for name in asked.get("limits") or {}
        if f"limits:{name}" in given
    }
    if limits and limits != asked["limits"]:
        granted["limits"] = {**asked["limits"], **limits}
    until = given.get("until", "")
    if until and until != asks.day_of(asks.until_of(asked)):
        granted["until"] = asks.end_of_day(until)
    return granted


def _proof(text: str) -> dict[str, Any] | None:
    """Return the forecast that was shown; None where the page showed none. Raises `InvalidSpec`."""
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidSpec(_("Reload the page and decide again."), field="proof") from error
    if not isinstance(found, dict):
        raise InvalidSpec(_("Reload the page and decide again."), field="proof")
    return found


def _next(request: PageRequest, row: Request) -> str:
    """Return the next page of work: the next request after this one, else the oldest, else the inbox."""
    with reading(request.actor):
        return _next_inside(request, row)


def _next_inside(request: PageRequest, row: Request) -> str:
    rest = [other for other in requests.inbox(request.actor, now=request.now) if other.pk != row.pk]
    later = [other for other in rest if _order(other) > _order(row)]
    return address((later or rest)[0]) if rest else reverse("frontend:inbox")


def _order(row: Request) -> tuple[datetime, str]:
    return row.created_at, row.pk.hex


@page("requests.comment", methods=("POST",))
def comment(request: PageRequest, key: str) -> HttpResponse:
    """Ask the requester something, in the thread."""
    with reading(request.actor):
        row = access.find(rows_of(request), key)
    try:
        requests.comment(request=row, text=request.POST.get("text", ""), actor=request.actor, now=request.now)
    except InvalidSpec as error:
        return _again(request, key, error)
    messages.success(request, _("Sent. The requester sees it in the request."))
    return HttpResponseRedirect(f"{address(row)}#thread")


# --- equal ones -----------------------------------------------------------------------------------------


@page("requests.proof")
def equal(request: PageRequest) -> HttpResponse:
    """Show equal requests together, each with its own forecast, to approve them at once."""
    key = request.GET.get("key", "")
    rows = [row for row in waiting(request) if asks.equal_key(row) == key][:MOST_AT_ONCE]
    if not rows:
        messages.info(request, _("None of these waits any more."))
        return HttpResponseRedirect(reverse("frontend:inbox"))
    lines = []
    for row in rows:
        seen = forecast.of(row, request.actor, now=request.now)
        last = len([stage for stage in row.stages.all() if stage.done_at is None]) <= 1
        lines.append(
            {
                "row": row,
                "url": address(row),
                "who": _who(row),
                "seen": seen,
                "proof_text": json.dumps(seen.proof) if seen.proof is not None and last else "",
                "can_approve": seen.proof is not None or not last,
            }
        )
    values = {
        "lines": lines,
        "what": asks.what(rows[0]),
        "count": sum(1 for line in lines if line["can_approve"]),
        "columns": [
            {"key": "take", "label": _("Approve"), "hidden_label": True},
            {"key": "who", "label": _("Who")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "outcome", "label": _("If approved")},
            {"key": "cost", "label": _("Cost to the end"), "numeric": True},
        ],
        "breadcrumbs": [
            {"label": _("Inbox"), "url": reverse("frontend:inbox")},
            {"label": _("Equal requests"), "url": ""},
        ],
    }
    return render(request, "frontend/pages/inbox/equal.html", values)


@page("requests.decide", methods=("POST",))
def approve_equal(request: PageRequest) -> HttpResponse:
    """Approve the chosen ones of several equal requests, each by its own decision; what got worse stays."""
    given = request.POST
    with reading(request.actor):
        found = {
            row.short_id: row for row in rows_of(request).filter(short_id__in=given.getlist("take")[:MOST_AT_ONCE])
        }
    rows = sorted(found.values(), key=_order)
    if not rows:
        raise InvalidSpec(_("Choose at least one."), field="take")
    if len({asks.equal_key(row) for row in rows}) > 1:
        raise InvalidSpec(_("Only equal requests are decided together."), field="take")
    done, kept = [], []
    for row in rows:
        try:
            requests.decide(
                request=row,
                version=read_number(given.get(f"version:{row.short_id}"), field="version"),
                verdict="approve",
                expect_proof=_proof(given.get(f"proof:{row.short_id}", "")),
                actor=request.actor,
                now=request.now,
            )
        except ControlPlaneError as error:
            kept.append(f"{row.short_id}: {words.plain(error.detail)}")
        else:
            done.append(row.short_id)
    if done:
        text = ngettext("%(n)d request approved.", "%(n)d requests approved.", len(done))
        messages.success(request, text % {"n": len(done)})
    for text in kept:
        messages.error(request, text)
    return HttpResponseRedirect(reverse("frontend:inbox"))
