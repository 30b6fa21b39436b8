"""Revisions of an endpoint: what it served, what differs, another one taking over, and the way back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.forms import wishes
from frontend.kernel import stock
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoint_changes, products
from frontend.views import endpoints as pages
from frontend.views.products import ENDPOINTS
from tenants import canary_figures, revision_diff
from tenants.feasibility import policy_of
from tenants.models import Endpoint, Revision, Rollout
from tenants.operations import endpoints, rollouts
from tenants.rollouts import SLOW_SHARE
from tenants.specs import RevisionAsk, RolloutAsk, RolloutLimits, RolloutStep
from tenants.states import RolloutState, RolloutStrategy

SHOWN: Final = 50
PAST_SHOWN: Final = 10
MOST_MINUTES: Final = 7 * 24 * 60
SHARES: Final = ((10, 50), (1, 10, 50), (50,), ())
"""Ways through a canary that the dialog offers, in percent."""
STATES: Final = {
    RolloutState.DRAINING: gettext_lazy("The old replicas end their requests"),
    RolloutState.PREPARING: gettext_lazy("Its first replica starts"),
    RolloutState.STEPPING: gettext_lazy("It gets its share of the requests"),
    RolloutState.PROMOTING: gettext_lazy("It takes the place of the old one"),
    RolloutState.ABORTING: gettext_lazy("The old one gets all requests again"),
    RolloutState.DONE: gettext_lazy("It took over"),
    RolloutState.ABORTED: gettext_lazy("It was aborted"),
}


@page("revisions.list")
def show(request: PageRequest, name: str) -> HttpResponse:
    """List what an endpoint served and what changed each time, and offer to serve something else."""
    row = products.find(ENDPOINTS, request, name)
    present = row.revision
    found = list(Revision.objects.filter(endpoint=row).select_related("model").order_by("-number")[: SHOWN + 1])
    older = {one.pk: before for one, before in pairwise(found)}
    past = Rollout.objects.filter(endpoint=row).select_related("before", "revision").order_by("-created_at", "-id")
    live = rollouts.live_of(row)
    ended = [_told(one) for one in past.exclude(ended_at=None)[:PAST_SHOWN]]
    refusal = "" if row.boundary is None else rollouts.refusal(row.boundary.kind, row.boundary.provider)
    values = pages.frame(request, row, "revisions") | {
        "revisions": [
            {
                "row": one,
                "differences": revision_diff.between(older[one.pk], one) if one.pk in older else (),
                "serves": present is not None and one.pk == present.pk,
                "is_first": one.number == 1,
            }
            for one in found[:SHOWN]
        ],
        "models": [
            {"value": one.name, "label": one.name}
            for one in stock.models(policy_of(request.tenant), request.tenant.path)
        ],
        "revision_columns": [
            {"key": "number", "label": _("Revision")},
            {"key": "model", "label": _("Model")},
            {"key": "settings", "label": _("Settings")},
            {"key": "changed", "label": _("Changed")},
            {"key": "made", "label": _("Made")},
        ],
        "rollout_columns": [
            {"key": "way", "label": _("From and to")},
            {"key": "state", "label": _("State")},
            {"key": "why", "label": _("Why")},
            {"key": "began", "label": _("Began")},
        ],
        "live": None if live is None else _live(request, row, live),
        "past": ended,
        "taken_back": ended[0]["row"] if live is None and ended and _is_taken_back(ended[0]["row"], present) else None,
        "model": present.model.name if present is not None else "",
        "arguments": present.arguments if present is not None else {},
        "no_canary": refusal,
        "ways": _ways(refusal),
    }
    return render(request, "frontend/pages/endpoints/revisions.html", values)


def _is_taken_back(last: Rollout, present: Revision | None) -> bool:
    """Whether the newest rollout was aborted and what served before it still does."""
    return last.state == RolloutState.ABORTED.value and present is not None and last.before_id == present.pk


def _ways(refusal: str) -> list[dict[str, str]]:
    """Return how another revision may take over, the way that hurts least first."""
    stops = {"value": "recreate", "label": _("The old one stops first")}
    if refusal:
        return [stops]
    beside = [
        {
            "value": "-".join(str(share) for share in shares) or "now",
            "label": _("Beside the old one: %(steps)s")
            % {"steps": " → ".join(f"{share} %" for share in (*shares, 100))},
        }
        for shares in SHARES
    ]
    return [*beside, stops]


def _live(request: PageRequest, row: Endpoint, live: Rollout) -> dict[str, Any]:
    """Return what is told of one that goes on: besides its state where it is on its way, and what came of its share."""
    told = _told(live)
    if live.state == RolloutState.STEPPING.value:
        seconds = told["seconds"]
        gone = max(0.0, (request.now - live.since).total_seconds())
        told |= {
            "left_s": None if seconds is None or live.held_at is not None else max(0.0, seconds - gone),
            "gone": None if seconds is None else min(100.0, gone * 100 / seconds),
        } | _standing(row, live)
    return told | {"way": _way(live)}


def _way(row: Rollout) -> list[dict[str, str]]:
    """Return the steps of one that goes on as a picture shows them: begun, each share, all of it."""
    shares = [f"{step['weight']} %" for step in row.steps if step["weight"] < 100]
    labels = [_("It starts"), *shares, _("100 %")] if row.steps else [_("It starts"), _("It takes over")]
    at = {
        RolloutState.STEPPING.value: min(row.step + 1, len(labels) - 1),
        RolloutState.PROMOTING.value: len(labels) - 1,
    }
    now = at.get(row.state, 0)
    return [
        {"label": label, "state": "done" if n < now else "current" if n == now else "todo"}
        for n, label in enumerate(labels)
    ]


def _told(row: Rollout) -> dict[str, Any]:
    stepping = row.state == RolloutState.STEPPING.value
    step = row.steps[row.step] if stepping else None
    return {
        "row": row,
        "state": STATES[RolloutState(row.state)],
        "weight": step["weight"] if step else None,
        "rest": 100 - step["weight"] if step else None,
        "step": row.step + 1,
        "steps": len(row.steps),
        "seconds": step["seconds"] if step else None,
        "can_promote": stepping,
        "can_hold": row.held_at is None and row.state in {RolloutState.STEPPING.value, RolloutState.PREPARING.value},
        "can_resume": row.held_at is not None,
        "can_abort": row.ended_at is None and row.state != RolloutState.ABORTING.value,
    }


def _standing(row: Endpoint, live: Rollout) -> dict[str, Any]:
    """Return what came of the new revision's requests at this step, beside what they may cost."""
    live.endpoint = row
    found = canary_figures.standing(live)
    told = [
        {
            "label": _("Failed"),
            "value": _ratio(found.errors, found.requests),
            "note": _("no limit")
            if found.most_error_share is None
            else _("at most %(share)s may") % {"share": numbers.percent(found.most_error_share)},
        }
    ]
    if found.most_ms is not None:
        told.append(
            {
                "label": _("Slower than %(ms)s ms") % {"ms": numbers.number(found.most_ms)},
                "value": _ratio(found.slow, found.answers),
                "note": _("at most %(share)s may") % {"share": numbers.percent(SLOW_SHARE)},
            }
        )
    return {"standing": found, "told": told}


def _ratio(part: int, whole: int) -> str:
    """Return a part as per cent, and as nothing known where there is no whole."""
    return numbers.percent(part / whole if whole else None, 1)


@page("endpoints.revise", methods=("POST",))
def revise(request: PageRequest, name: str) -> HttpResponse:
    """Serve something else."""

    def make(row: Endpoint) -> str:
        arguments = dict(row.revision.arguments) if row.revision is not None else {}
        for field in ("max_model_len", "max_num_seqs"):
            if request.POST.get(field):
                arguments[field] = wishes.number(request.POST.get(field), 0, least=1, most=2_097_152)
        made = endpoints.revise(
            endpoint=row,
            ask=RevisionAsk(request.POST.get("model", ""), arguments),
            rollout=_asked(request),
            actor=request.actor,
            now=request.now,
        )
        return _("Revision %(n)d takes over.") % {"n": made.number}

    return endpoint_changes.done(request, name, "revisions", make)


def _asked(request: PageRequest) -> RolloutAsk:
    """Return what the dialog says about the way, and nothing where it says nothing."""
    way = request.POST.get("way", "recreate")
    shares = next((shares for shares in SHARES if ("-".join(map(str, shares)) or "now") == way), None)
    if shares is None:
        return RolloutAsk()
    minutes = wishes.number(request.POST.get("minutes"), 5, least=1, most=MOST_MINUTES)
    errors = wishes.number(request.POST.get("errors"), 5, least=0, most=99)
    return RolloutAsk(
        RolloutStrategy.CANARY,
        tuple(RolloutStep(share, minutes * 60) for share in shares),
        RolloutLimits(error_rate=errors / 100),
    )


@page("endpoints.promote", methods=("POST",))
def promote(request: PageRequest, name: str) -> HttpResponse:
    """Let the new revision take over now."""

    def change(row: Endpoint) -> str:
        rollouts.promote(endpoint=row, actor=request.actor, now=request.now)
        return _("It takes over now.")

    return endpoint_changes.done(request, name, "revisions", change)


@page("endpoints.hold", methods=("POST",))
def hold(request: PageRequest, name: str) -> HttpResponse:
    """Keep it at its step."""

    def change(row: Endpoint) -> str:
        rollouts.hold(endpoint=row, actor=request.actor, now=request.now)
        return _("It stays at its step until you let it go on.")

    return endpoint_changes.done(request, name, "revisions", change)


@page("endpoints.resume", methods=("POST",))
def resume(request: PageRequest, name: str) -> HttpResponse:
    """Let it go on."""

    def change(row: Endpoint) -> str:
        rollouts.resume(endpoint=row, actor=request.actor, now=request.now)
        return _("It goes on; its step begins anew.")

    return endpoint_changes.done(request, name, "revisions", change)


@page("endpoints.abort", methods=("POST",))
def abort(request: PageRequest, name: str) -> HttpResponse:
    """Go back to the revision before."""

    def change(row: Endpoint) -> str:
        reason = request.POST.get("reason", "").strip()[:500]
        rollouts.abort(endpoint=row, reason=reason, actor=request.actor, now=request.now)
        return _("The old revision gets all requests again.")

    return endpoint_changes.done(request, name, "revisions", change)


@page("endpoints.rollback", methods=("POST",))
def rollback(request: PageRequest, name: str) -> HttpResponse:
    """Serve an earlier revision again."""
    number = wishes.number(request.POST.get("revision"), 0, least=0, most=2**31 - 1)

    def change(row: Endpoint) -> str:
        rollouts.rollback(endpoint=row, number=number or None, actor=request.actor, now=request.now)
        return _("The earlier revision takes over again.")

    return endpoint_changes.done(request, name, "revisions", change)
