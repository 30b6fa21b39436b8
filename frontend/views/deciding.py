"""What the pages of decisions show and read, for the portal and for the admin console alike.

The pages of both include the same template parts; only their frame and their addresses (`Addresses`) differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import OuterRef, QuerySet, Subquery
from django.http import QueryDict
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import asks, forecast, outlook, verdicts, words
from frontend.kernel.page import PageRequest
from frontend.views.requests import read_number, thread
from tenants.errors import ControlPlaneError, InvalidSpec
from tenants.models import Person, Request
from tenants.operations import requests
from tenants.operations.pricing import all_prices, currency
from tenants.states import RequestKind, RequestState

SHOWN: Final = 100
"""Lines of the inbox; the oldest come first, so the rest comes up as these are decided."""
MOST_AT_ONCE: Final = 20
"""Equal requests decided together."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the pages of decisions live: `frontend` for the portal, `admin` for the console."""

    space: str

    @property
    def inbox(self) -> str:
        """Return the page of what waits."""
        return reverse(f"{self.space}:inbox")

    @property
    def approve_equal(self) -> str:
        """Return where equal requests are approved together."""
        return reverse(f"{self.space}:inbox-equal-approve")

    def equal(self, row: Request) -> str:
        """Return the page of all requests that equal this one."""
        return f"{reverse(f'{self.space}:inbox-equal')}?key={asks.equal_key(row)}"

    def page(self, row: Request) -> str:
        """Return the page on which a request is decided."""
        return self._of("decide", row)

    def decide(self, row: Request) -> str:
        """Return where its decision goes."""
        return self._of("request-decide", row)

    def comment(self, row: Request) -> str:
        """Return where its comments go."""
        return self._of("decide-comment", row)

    def _of(self, name: str, row: Request) -> str:
        return reverse(f"{self.space}:{name}", kwargs={"key": row.short_id})


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


def order(row: Request) -> tuple[datetime, str]:
    """Return what requests are sorted by: oldest first."""
    return row.created_at, row.pk.hex


def who(row: Any) -> str:
    """Return who asked, as far as the person may know."""
    return str(row.asked_by or _("somebody from outside"))


# --- the inbox ------------------------------------------------------------------------------------------


def inbox_values(request: PageRequest, rows: list[Request], to: Addresses) -> dict[str, Any]:
    """Return what the inbox shows, in a read block; `rows` wait for the person."""
    shown = lines(request, rows[:SHOWN], to)
    own = rows_of(request).filter(requester_id=request.actor.person_id, state=RequestState.SUBMITTED.value)
    return {
        "lines": shown,
        "empty": not shown,
        "can_export": True,
        "count": ngettext("%(n)d waits", "%(n)d wait", len(rows)) % {"n": len(rows)},
        "groups": [
            {"count": len(group), "what": asks.what(group[0]), "url": to.equal(group[0])}
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


def _own_url(row: Request) -> str:
    if row.tenant is None:
        return ""
    return reverse("frontend:request", kwargs={"tenant": row.tenant.name, "name": row.short_id})


def lines(request: PageRequest, rows: list[Request], to: Addresses) -> list[Line]:
    """Return the lines of requests, each with its verdict and cost; a constant number of queries."""
    found, known, money = verdicts.of(rows, now=request.now), all_prices(), currency()
    return [
        Line(
            row,
            to.page(row),
            who(row),
            asks.what(row),
            found[row.pk],
            asks.cost(row, known, currency=money, now=request.now),
        )
        for row in rows
    ]


# --- one decision ---------------------------------------------------------------------------------------


def decision_values(
    request: PageRequest,
    row: Request,
    to: Addresses,
    *,
    errors: Mapping[str, str] | None = None,
    given: QueryDict | None = None,
    worse: list[str] | None = None,
) -> dict[str, Any]:
    """Return what the page of a decision shows, in a read block; `given` is the form that was wrong."""
    is_open = row.state == RequestState.SUBMITTED.value
    own = row.requester_id == request.actor.person_id
    standing = requests.standing(request.actor, row, now=request.now) if is_open else None
    seen = forecast.of(row, request.actor, now=request.now) if is_open else None
    last = _is_last(row)
    product = asks.product_of(row)
    rest = [other for other in waiting(request) if other.pk != row.pk] if standing is not None else []
    return {
        "row": row,
        "what": asks.what(row),
        "full": asks.what(row, full=True),
        "model_lines": asks.model_lines(row),
        "kind": asks.kind(row),
        "who": who(row),
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
        "next_url": to.page(rest[0]) if rest else "",
        "decide_url": to.decide(row),
        "comment_url": to.comment(row),
        "breadcrumbs": [{"label": _("Inbox"), "url": to.inbox}, {"label": row.short_id, "url": ""}],
    }


def _is_last(row: Request) -> bool:
    return len([stage for stage in row.stages.all() if stage.done_at is None]) <= 1


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


def form_field(name: str) -> str:
    """Return the form's field for a field of the operation."""
    if name.startswith("granted.limits."):
        return f"limits:{name.removeprefix('granted.limits.')}"
    return {"granted.until": "until", "granted.limits": "", "granted": "", "verdict": ""}.get(name, name)


def granted_of(row: Request, given: QueryDict) -> dict[str, Any]:
    """Return what the form grants of a request: only what differs from what was asked. Raises `InvalidSpec`."""
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


def proof_of(text: str) -> dict[str, Any] | None:
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


# --- equal ones -----------------------------------------------------------------------------------------


def equal_values(request: PageRequest, rows: list[Request], to: Addresses) -> dict[str, Any]:
    """Return what the page of equal requests shows: each with its own forecast. In a read block."""
    found = []
    for row in rows:
        seen, last = forecast.of(row, request.actor, now=request.now), _is_last(row)
        found.append(
            {
                "row": row,
                "url": to.page(row),
                "who": who(row),
                "seen": seen,
                "proof_text": json.dumps(seen.proof) if seen.proof is not None and last else "",
                "can_approve": seen.proof is not None or not last,
                "then": "" if last else _("Then the next stage decides."),
                "reason": asks.reason(row),
            }
        )
    return {
        "lines": found,
        "what": asks.what(rows[0]),
        "count": sum(1 for line in found if line["can_approve"]),
        "inbox_url": to.inbox,
        "approve_url": to.approve_equal,
        "columns": [
            {"key": "take", "label": _("Approve"), "hidden_label": True},
            {"key": "who", "label": _("Who")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "outcome", "label": _("If approved")},
            {"key": "cost", "label": _("Cost to the end"), "numeric": True},
        ],
        "breadcrumbs": [{"label": _("Inbox"), "url": to.inbox}, {"label": _("Equal requests"), "url": ""}],
    }


def approve_all(request: PageRequest, rows: list[Request]) -> tuple[list[str], list[str]]:
    """Approve equal requests one after the other, each by its own decision with the forecast that its page showed.

    Returns the short ids of those approved, and a sentence on each that stays. Raises `InvalidSpec`.
    """
    given = request.POST
    if not rows:
        raise InvalidSpec(_("Choose at least one."), field="take")
    if len({asks.equal_key(row) for row in rows}) > 1:
        raise InvalidSpec(_("Only equal requests are decided together."), field="take")
    done, kept = [], []
    raised: dict[tuple[str, str], int] = {}
    for row in rows:
        try:
            decision = requests.decide(
                request=row,
                version=read_number(given.get(f"version:{row.short_id}"), field="version"),
                verdict="approve",
                expect_proof=_beside(proof_of(given.get(f"proof:{row.short_id}", "")), raised),
                actor=request.actor,
                now=request.now,
            )
        except ControlPlaneError as error:
            kept.append(f"{row.short_id}: {words.plain(error.detail)}")
        else:
            done.append(row.short_id)
            for line in decision.proof.get("quota", ()):
                at = (line["tenant"], line["dimension"])
                raised[at] = raised.get(at, 0) + line["after"] - line["before"]
    return done, kept


def _beside(seen: dict[str, Any] | None, raised: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    """Return a forecast as it would have been beside what the same click has raised already: that is no surprise."""
    if seen is None or not raised:
        return seen
    try:
        lines = [
            {**one, "after": one["after"] + raised.get((one["tenant"], one["dimension"]), 0)} for one in seen["quota"]
        ]
    except (KeyError, TypeError):
        return seen  # no forecast of ours: the decision says so
    return {**seen, "quota": lines}
