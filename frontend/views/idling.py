"""Endpoints at zero: put to sleep, woken, and when one sleeps by itself."""

from __future__ import annotations

from typing import Any, Final

from django.http import HttpResponse
from django.utils.translation import gettext as _

from frontend.forms import wishes
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoint_changes
from tenants.models import Endpoint
from tenants.operations import idling
from tenants.states import IdleUnits

MINUTE_S: Final = 60
MOST_MINUTES: Final = 30 * 24 * 60


def offered(row: Endpoint) -> dict[str, Any]:
    """Return what the page of an endpoint needs to offer it."""
    refusal = "" if row.boundary is None else idling.refusal(row.boundary.kind, row.boundary.provider)
    stays = row.boundary is not None and bool(idling.keeps_units(row.boundary.kind))
    return {
        "can_sleep": not refusal and row.ready_at is not None and row.slept_at is None,
        "can_wake": row.slept_at is not None,
        "can_idle": not refusal,
        "idle_minutes": None if row.idle_after_s is None else row.idle_after_s // MINUTE_S,
        "wait_minutes": max(1, row.wake_wait_s // MINUTE_S),
        "idle_units": row.idle_units,
        "idle_choices": [
            {"value": IdleUnits.KEEP.value, "label": _("Keep them: it wakes as fast as its model loads")},
            *(
                []
                if stays
                else [{"value": IdleUnits.RELEASE.value, "label": _("Give them back: waking queues for room")}]
            ),
        ],
    }


@page("endpoints.sleep", methods=("POST",))
def sleep(request: PageRequest, name: str) -> HttpResponse:
    """Let it go to zero."""

    def change(row: Endpoint) -> str:
        idling.sleep(endpoint=row, actor=request.actor, now=request.now)
        return _("It goes to sleep. Running requests end first; the next one wakes it.")

    return endpoint_changes.done(request, name, "", change)


@page("endpoints.wake", methods=("POST",))
def wake(request: PageRequest, name: str) -> HttpResponse:
    """Start it again."""

    def change(row: Endpoint) -> str:
        idling.wake(endpoint=row, actor=request.actor, now=request.now)
        return _("It is being woken.")

    return endpoint_changes.done(request, name, "", change)


@page("endpoints.set_idle", methods=("POST",))
def set_idle(request: PageRequest, name: str) -> HttpResponse:
    """Say when it sleeps by itself; without a number it never does."""
    given = request.POST.get("minutes", "").strip()
    minutes = wishes.number(given, 0, least=1, most=MOST_MINUTES) if given else 0
    units = IdleUnits.RELEASE if request.POST.get("units") == IdleUnits.RELEASE.value else IdleUnits.KEEP
    wait_s = wishes.number(request.POST.get("wait"), 5, least=1, most=60) * MINUTE_S

    def change(row: Endpoint) -> str:
        idling.set_idle(
            endpoint=row,
            after_s=minutes * MINUTE_S or None,
            units=units,
            wait_s=wait_s,
            actor=request.actor,
            now=request.now,
        )
        return _("Saved.")

    return endpoint_changes.done(request, name, "", change)
