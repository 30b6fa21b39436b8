"""Live: an endpoint's requests, tokens, times, queue and caches by the minute, drawn anew as its gateways report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode

from django.db.models import Max
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.design.charts import Chart, Series
from frontend.kernel import live, serving_cost
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoints as endpoint_pages
from frontend.views import live as streams
from frontend.views import products
from frontend.views.products import ENDPOINTS
from tenants import endpoint_minutes
from tenants.endpoint_minutes import Minute
from tenants.models import Endpoint, EndpointMinute, GatewayReplica
from tenants.operations.pricing import currency
from tenants.transactions import reading

RANGES: Final = (30, 60, 360)
"""Minutes that one may look at."""
NOW_MINUTES: Final = 5
"""What "now" is in figures: one minute alone is too few requests for a 99 in 100."""
SECONDS_FROM: Final = 10.0
"""From so many seconds on they are shown as such, below as milliseconds."""
SILENT: Final = timedelta(minutes=1)
"""Gateways report every ten seconds; after this what is shown is dated."""
Value = Callable[[Minute], float | None]


@page("endpoints.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show the charts of one endpoint."""
    row = products.find(ENDPOINTS, request, name)
    minutes = _minutes(request)
    path = reverse("frontend:endpoint-live", kwargs=_where(request, row))
    values = endpoint_pages.frame(request, row, "live") | told(request, row, minutes)
    values |= {
        "live_url": live.address("frontend:endpoint-live-stream", request, **_where(request, row)),
        "minutes": minutes,
        "ranges": [
            {"value": each, "label": numbers.duration(each * 60), "href": f"{path}?{urlencode({'minutes': each})}"}
            for each in RANGES
        ],
    }
    return render(request, "frontend/pages/endpoints/live.html", values)


@page("endpoints.read")
def part(request: PageRequest, name: str) -> HttpResponse:
    """Return the charts alone."""
    row = products.find(ENDPOINTS, request, name)
    values = products.frame(ENDPOINTS, request, row, current="live") | told(request, row, _minutes(request))
    return render(request, "frontend/pages/endpoints/_live.html", values)


@page("endpoints.read", own_blocks=True)
def stream(request: PageRequest, name: str) -> HttpResponseBase:
    """Stream that the charts of one endpoint have something new, or the endpoint itself has."""
    with reading(request.actor):
        row = products.find(ENDPOINTS, request, name)
    return streams.stream_of(request, live.load_topic(row.pk), live.object_topic(row.pk))


def told(request: PageRequest, row: Endpoint, minutes: int) -> dict[str, Any]:
    """Return what the charts' part shows."""
    found = endpoint_minutes.history(row, minutes=minutes, now=request.now)
    heard_at = _heard_at(row)
    recent = endpoint_minutes.summed(found[-NOW_MINUTES:])
    url = reverse("frontend:endpoint-live-part", kwargs=_where(request, row))
    return {
        "load_url": f"{url}?{urlencode({'minutes': minutes})}",
        "recent": recent,
        "now_requests": recent.requests * 60 / max(recent.seconds, 60.0) if recent.is_known else None,
        "now_tokens": recent.completion_tokens / max(recent.seconds, 60.0) if recent.is_known else None,
        "now_ttft": recent.ttft_s(0.5),
        "now_ttft_99": recent.ttft_s(0.99),
        "now_cost": serving_cost.per_million(
            serving_cost.hour_of(row, now=request.now), recent.prompt_tokens + recent.completion_tokens, recent.seconds
        ),
        "currency": currency(),
        "now_minutes": NOW_MINUTES,
        "charts": charts(found, note=_note(row)),
        "none": _nothing(row, found, heard_at),
        "heard_at": heard_at,
        "is_silent": heard_at is not None and request.now - heard_at > SILENT and row.slept_at is None,
        "is_idle": all(each.requests == 0 for each in found),
        "minutes_shown": minutes,
    }


def charts(found: Sequence[Minute], *, note: str) -> list[Chart]:
    """Return the six charts of minutes; where nobody says a figure, why."""
    times = [each.at for each in found]
    slowest = max((each.ttft_s(0.99) or 0.0 for each in found), default=0.0)
    scale, unit = (1.0, _("seconds")) if slowest >= SECONDS_FROM else (1000.0, _("ms"))

    def ttft(part: float) -> Value:
        return lambda m: None if (value := m.ttft_s(part)) is None else value * scale

    def draw(key: str, title: str, unit: str, series: dict[str, Value], **more: Any) -> Chart:
        lines = [Series(name, [value(each) for each in found]) for name, value in series.items()]
        shown = any(value is not None for line in lines for value in line.values)
        lines = lines if shown else [Series(name, []) for name in series]
        return Chart(f"load-{key}", title, unit, times if shown else [], lines, note=note, height=150, **more)

    return [
        draw("requests", _("Requests"), _("per minute"), {
            _("Answered"): lambda m: float(m.requests - m.errors) if m.is_known else None,
            _("Failed"): lambda m: float(m.errors) if m.is_known else None,
        }, kind="bar", empty=_("No gateway has reported in this time.")),
        draw("tokens", _("Tokens per second"), _("tokens/s"), {
            _("Written"): lambda m: m.tokens_s,
            _("Read"): lambda m: m.read_s,
        }, empty=_("No gateway has reported in this time.")),
        draw("ttft", _("Time to first token"), unit, {
            _("Half of the streams"): ttft(0.5),
            _("99 of 100 streams"): ttft(0.99),
        }, empty=_("Nothing was streamed in this time. Ask with stream=true: only then is there a first token.")),
        draw("queue", _("Queue depth"), _("requests"), {
            _("Being answered"): lambda m: None if m.running is None else float(m.running),
            _("Waiting"): lambda m: None if m.queued is None else float(m.queued),
        }, empty=_("No model server said how much it has to do. It says so on /metrics once it runs.")),
        draw("kv", _("KV cache in use"), _("%"), {
            _("Fullest replica"): lambda m: None if m.kv_cache is None else m.kv_cache * 100,
        }, kind="area", top=100.0,
            empty=_("No model server said how full its KV cache is. It says so on /metrics once it runs.")),
        draw("prefix", _("Prefix-cache hits"), _("% of prompt tokens"), {
            _("Found in the cache"): lambda m: None if m.hit_rate is None else m.hit_rate * 100,
        }, kind="area", top=100.0,
            empty=_("No prompt was looked up in a prefix cache. Prompts that begin alike are found there.")),
    ]  # fmt: skip


def _minutes(request: PageRequest) -> int:
    asked = request.GET.get("minutes", "")
    return int(asked) if asked in {str(each) for each in RANGES} else 60


def _where(request: PageRequest, row: Endpoint) -> dict[str, str]:
    return {"tenant": request.tenant.name, "name": row.short_id}


def _heard_at(row: Endpoint) -> Any:
    """Return when a gateway in front of it was last heard of; None for never."""
    if row.boundary_id is None:
        return None
    rows = GatewayReplica.objects.filter(boundary_id=row.boundary_id, removed_at=None, enrolled_at__isnull=False)
    return rows.aggregate(at=Max("last_seen_at"))["at"]


def _note(row: Endpoint) -> str:
    """Return what figures of a simulated provider must say."""
    if row.boundary is None or not row.boundary.provider.capabilities.get("simulated"):
        return ""
    if any(unit.get("engine") for unit in row.observed.get("units", ())):
        return _("a real model server; its GPU is simulated")
    return _("simulated")


def _nothing(row: Endpoint, found: Sequence[Minute], heard_at: object) -> dict[str, str]:
    """Return why there is nothing to draw, and what to do; {} where there is."""
    if any(each.is_known for each in found):
        return {}
    if row.ready_at is None:
        return {"title": _("It is not ready yet"), "reason": _("Charts begin with the first report of its gateway."),
                "action": _("See how it is built"), "route": "endpoint", "query": ""}  # fmt: skip
    if row.slept_at is not None:
        return {"title": _("It sleeps"), "reason": _("No replica runs. The next request wakes it, and charts go on."),
                "action": _("Open playground"), "route": "endpoint-playground", "query": ""}  # fmt: skip
    if len(found) < RANGES[-1] and EndpointMinute.objects.filter(endpoint_id=row.pk).exists():
        return {"title": _("Nothing was reported in this time"),
                "reason": _("Its last figures are older than this."),
                "action": _("Look at the last six hours"), "route": "endpoint-live",
                "query": f"?minutes={RANGES[-1]}"}  # fmt: skip
    if heard_at is None:
        return {"title": _("Nobody counts here"), "reason": _("No gateway of it has ever reported."),
                "action": _("See why it is as it is"), "route": "endpoint", "query": ""}  # fmt: skip
    return {"title": _("Nothing was reported in this time"),
            "reason": _("Its gateway goes on answering while it cannot reach the control plane, and reports later."),
            "action": _("See why it is as it is"), "route": "endpoint", "query": ""}  # fmt: skip
