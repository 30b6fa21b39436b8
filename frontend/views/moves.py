"""An endpoint on its way to another place: begun, its address over there, finished, undone."""

from __future__ import annotations

from typing import Any, Final

from django.http import HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.forms import wishes
from frontend.kernel import stock
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoint_changes, products
from frontend.views import endpoints as pages
from frontend.views.products import ENDPOINTS
from tenants import gpu_catalogue
from tenants.models import Endpoint, Move, Provider
from tenants.operations import moves
from tenants.specs import GpuAsk, MoveAsk
from tenants.states import BoundaryKind, MoveState

PAST_SHOWN: Final = 10
MOST_MINUTES: Final = 7 * 24 * 60
KINDS: Final = {
    BoundaryKind.NAMESPACE.value: gettext_lazy("A shared place (namespace)"),
    BoundaryKind.VM.value: gettext_lazy("Machines of its own (VM)"),
}
STATES: Final = {
    MoveState.PREPARING: gettext_lazy("It is built there; it goes on here"),
    MoveState.BESIDE: gettext_lazy("It works at both places; its address leads here"),
    MoveState.CUTTING: gettext_lazy("Its address goes over"),
    MoveState.WATCHING: gettext_lazy("Its address leads there; the old place stays for a while"),
    MoveState.LEAVING: gettext_lazy("The old place is given up once nobody asks there"),
    MoveState.UNDOING: gettext_lazy("It goes back"),
    MoveState.DONE: gettext_lazy("It moved"),
    MoveState.UNDONE: gettext_lazy("It was undone"),
}

WAY: Final = tuple(
    state.value
    for state in (
        MoveState.PREPARING, MoveState.BESIDE, MoveState.CUTTING, MoveState.WATCHING, MoveState.LEAVING,
    )
)  # fmt: skip


@page("moves.list")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Say where an endpoint is, whether it is on its way, and offer to move it."""
    row = products.find(ENDPOINTS, request, name)
    found = list(
        Move.objects.filter(endpoint=row).select_related("stand_in").order_by("-created_at", "-id")[: PAST_SHOWN + 1]
    )
    live = next((one for one in found if one.ended_at is None), None)
    refusal = "" if row.boundary is None else moves.refusal(row.boundary.provider)
    can_move = live is None and row.ready_at is not None and row.deletion_requested_at is None and not refusal
    values = pages.frame(request, row, "moves") | {
        "live": None if live is None else _live(request, live),
        "past": [_told(one) for one in found if one.ended_at is not None][:PAST_SHOWN],
        "here": None if row.boundary is None else _place(moves.place_of(row.boundary)),
        "refusal": refusal,
        "can_move": can_move,
        "kinds": _kinds(request, row) if can_move else [],
        "gpus": _gpus(request) if can_move else [],
        "move_columns": [
            {"key": "way", "label": _("From and to")},
            {"key": "state", "label": _("State")},
            {"key": "why", "label": _("Why")},
            {"key": "began", "label": _("Began")},
        ],
    }
    return render(request, "frontend/pages/endpoints/moves.html", values)


def _kinds(request: PageRequest, row: Endpoint) -> list[dict[str, str]]:
    """Return where it may go: each provider that can take it over, with the kind of place, the other kind first.

    Of providers of which none can, the kinds alone: what is refused then says why.
    """
    here = "" if row.boundary is None else row.boundary.kind
    found = stock.of(request.tenant)
    offered = sorted((kind for kind in KINDS if kind in found.kinds), key=lambda kind: kind == here)
    able = [
        provider
        for provider in Provider.objects.filter(enabled=True, deletion_requested_at__isnull=True).order_by("name")
        if not moves.refusal(provider) and found.policy.forbids("sites", provider.site) is None
    ]
    places = [
        {
            "value": f"{kind}/{provider.name}",
            "label": ", ".join(filter(None, (str(KINDS[kind]), provider.name, provider.site))),
        }
        for kind in offered
        for provider in able
        if kind in provider.capabilities.get("boundary_kinds", ())
    ]
    return places or [{"value": kind, "label": str(KINDS[kind])} for kind in offered]


def _gpus(request: PageRequest) -> list[dict[str, str]]:
    """Return the GPUs and parts of GPUs that there are."""
    found = [{"value": "", "label": _("The same as now")}]
    for key in stock.of(request.tenant).products:
        product = gpu_catalogue.product(key)
        parts = product.profiles if product.sold_by_window is not gpu_catalogue.SoldByWindow.NEVER else ()
        found += [{"value": key, "label": key}]
        found += [
            {"value": f"{key}/{part.name}", "label": f"{key} {part.name}"}
            for part in parts
            if part.starts and part.name
        ]
    return found


def _live(request: PageRequest, row: Move) -> dict[str, Any]:
    """Return what is told of one that goes on: besides its state where it is on its way, and how long a stay lasts."""
    told = _told(row)
    if row.state == MoveState.WATCHING.value and row.watch_s:
        gone = max(0.0, (request.now - row.since).total_seconds())
        told |= {"gone": min(100.0, gone * 100 / row.watch_s), "left_s": max(0.0, row.watch_s - gone)}
    return told | {"way": _way(row)}


def _way(row: Move) -> list[dict[str, str]]:
    """Return the steps of one that goes on as a picture shows them; one that goes back shows the way back."""
    if row.state == MoveState.UNDOING.value:
        return [{"label": _("It was built there"), "state": "done"}, {"label": _("It goes back"), "state": "current"}]
    labels = [_("Built there"), _("Works at both"), _("Address goes over"), _("Both stay"), _("Old place given up")]
    now = WAY.index(row.state)
    return [
        {"label": label, "state": "done" if n < now else "current" if n == now else "todo"}
        for n, label in enumerate(labels)
    ]


def _told(row: Move) -> dict[str, Any]:
    other = row.stand_in
    said = [] if other is None else [one for one in other.conditions if one["type"] == "Ready"]
    waits = row.state == MoveState.PREPARING.value
    return {
        "row": row,
        "source": _place(row.source),
        "target": _place(row.target),
        "state": STATES[MoveState(row.state)],
        "message": "".join(str(one["message"]) for one in said if one["status"] != "True") if waits else "",
        "can_cut": row.state == MoveState.BESIDE.value,
        "can_finish": row.state == MoveState.WATCHING.value,
        "can_undo": row.ended_at is None and row.state not in {MoveState.LEAVING.value, MoveState.UNDOING.value},
    }


def _place(found: dict[str, str]) -> str:
    kind = found.get("kind", "")
    words = str(KINDS.get(kind, kind))
    return f"{words}, {found['provider']}" if found.get("provider") else words


@page("endpoints.move", methods=("POST",))
def begin(request: PageRequest, name: str) -> HttpResponse:
    """Build it a second time elsewhere."""
    word, _slash, provider = request.POST.get("kind", "").partition("/")
    kind = BoundaryKind.VM if word == BoundaryKind.VM.value else BoundaryKind.NAMESPACE
    product, _slash, profile = request.POST.get("gpu", "").partition("/")
    minutes = wishes.number(request.POST.get("minutes"), 5, least=0, most=MOST_MINUTES)
    ask = MoveAsk(
        kind,
        provider=provider[:63],
        gpu=GpuAsk(product, profile) if product else None,
        by_hand=bool(request.POST.get("by_hand")),
        watch_s=minutes * 60,
    )

    def change(row: Endpoint) -> str:
        moves.begin(endpoint=row, ask=ask, actor=request.actor, now=request.now)
        return _("It is built at the other place, and goes on here meanwhile.")

    return endpoint_changes.done(request, name, "moves", change)


@page("endpoints.cut_over", methods=("POST",))
def cut_over(request: PageRequest, name: str) -> HttpResponse:
    """Let its address go over now."""

    def change(row: Endpoint) -> str:
        moves.cut_over(endpoint=row, actor=request.actor, now=request.now)
        return _("Its address goes over now.")

    return endpoint_changes.done(request, name, "moves", change)


@page("endpoints.finish_move", methods=("POST",))
def finish(request: PageRequest, name: str) -> HttpResponse:
    """Give the old place up now."""

    def change(row: Endpoint) -> str:
        moves.finish(endpoint=row, actor=request.actor, now=request.now)
        return _("The old place is given up once nobody asks there.")

    return endpoint_changes.done(request, name, "moves", change)


@page("endpoints.undo_move", methods=("POST",))
def undo(request: PageRequest, name: str) -> HttpResponse:
    """Go back."""

    def change(row: Endpoint) -> str:
        reason = request.POST.get("reason", "").strip()[:500]
        moves.undo(endpoint=row, reason=reason, actor=request.actor, now=request.now)
        return _("It goes back; its address first.")

    return endpoint_changes.done(request, name, "moves", change)
