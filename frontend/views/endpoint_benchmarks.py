"""Benchmarks of an endpoint: ask for a bounded load, watch it, end it, compare what came of it by revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.forms import wishes
from frontend.kernel import live, serving_cost
from frontend.kernel.page import PageRequest, page
from frontend.views import endpoints as endpoint_pages
from frontend.views import products
from frontend.views.products import ENDPOINTS
from tenants.benchmarks import BOUNDS, Load, Result
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.models import Benchmark, Endpoint
from tenants.operations import benchmarks
from tenants.operations.pricing import currency
from tenants.states import BENCHMARK_LIVE, BenchmarkState
from tenants.transactions import reading

SHOWN: Final = 30
STATES: Final[dict[BenchmarkState, tuple[str, Promise]]] = {
    BenchmarkState.WAITING: ("info", gettext_lazy("waits for a worker")),
    BenchmarkState.RUNNING: ("info", gettext_lazy("runs")),
    BenchmarkState.DONE: ("ok", gettext_lazy("done")),
    BenchmarkState.FAILED: ("bad", gettext_lazy("failed")),
    BenchmarkState.CANCELLED: ("quiet", gettext_lazy("cancelled")),
}
LABELS: Final = {
    "requests": gettext_lazy("Requests"), "input_tokens": gettext_lazy("Tokens of each prompt"),
    "output_tokens": gettext_lazy("Tokens of each answer"), "concurrency": gettext_lazy("At once"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """One benchmark as pages show it."""

    row: Benchmark
    load: Load
    result: Result | None
    tone: str
    state: str
    per_million: Decimal | None

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.row.state in BENCHMARK_LIVE


@page("benchmarks.list")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show the benchmarks of one endpoint."""
    row = products.find(ENDPOINTS, request, name)
    values = endpoint_pages.frame(request, row, "benchmarks") | told(request, row)
    values |= {
        "live_url": live.address("frontend:endpoint-live-stream", request, **_where(request, row)),
        "ask_url": reverse("frontend:endpoint-benchmark-new", kwargs=_where(request, row)),
        "fields": [
            {"name": key, "label": LABELS[key], "value": getattr(Load(), key), "least": least, "most": most}
            for key, (least, most) in BOUNDS.items()
        ],
    }
    return render(request, "frontend/pages/endpoints/benchmarks.html", values)


@page("benchmarks.list")
def part(request: PageRequest, name: str) -> HttpResponse:
    """Return what changes while one runs."""
    row = products.find(ENDPOINTS, request, name)
    values = products.frame(ENDPOINTS, request, row, current="benchmarks") | told(request, row)
    return render(request, "frontend/pages/endpoints/_benchmarks.html", values)


@page("endpoints.benchmark", methods=("POST",))
def ask(request: PageRequest, name: str) -> HttpResponse:
    """Ask for a load."""
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
    given = {
        key: wishes.number(request.POST.get(key), getattr(Load(), key), least=least, most=most)
        for key, (least, most) in BOUNDS.items()
    }
    try:
        benchmarks.ask(endpoint=row, load=Load(**given), actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    return products.back(ENDPOINTS, request, row, "benchmarks")


@page("endpoints.cancel_benchmark", methods=("POST",))
def cancel(request: PageRequest, name: str, benchmark: str) -> HttpResponse:
    """End one."""
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
        found = Benchmark.objects.filter(endpoint=row, short_id=benchmark).first()
    if found is None:
        raise NotVisible
    benchmarks.cancel(benchmark=found, actor=request.actor, now=request.now)
    return products.back(ENDPOINTS, request, row, "benchmarks")


def told(request: PageRequest, row: Endpoint) -> dict[str, Any]:
    """Return what the changing part shows."""
    rows = Benchmark.objects.filter(endpoint=row).order_by("-created_at", "-id")[:SHOWN]
    hour = serving_cost.hour_of(row, now=request.now)
    found = [_shown(one, hour) for one in rows]
    running = next((one for one in found if one.is_live), None)
    ended = [one for one in found if not one.is_live]
    newest = next((one for one in ended if one.result is not None and one.result.answered), None)
    where = _where(request, row)
    return {
        "part_url": reverse("frontend:endpoint-benchmarks-part", kwargs=where),
        "running": running,
        "cancel_url": "" if running is None else reverse(
            "frontend:endpoint-benchmark-cancel", kwargs={**where, "benchmark": running.row.short_id}
        ),
        "newest": newest,
        "before": None if newest is None else other_revision(newest, ended),
        "changes": [] if newest is None else changes(newest, other_revision(newest, ended)),
        "last_failed": ended[0] if ended and ended[0].row.state == BenchmarkState.FAILED else None,
        "ended": ended,
        "can_measure": running is None and benchmarks.is_usable(row),
        "currency": currency(),
        "benchmark_columns": [
            {"key": "id", "label": _("Benchmark")},
            {"key": "revision", "label": _("Revision")},
            {"key": "load", "label": _("Load")},
            {"key": "tokens", "label": _("Tokens/s written"), "numeric": True},
            {"key": "ttft", "label": _("First token"), "numeric": True},
            {"key": "between", "label": _("Between tokens"), "numeric": True},
            {"key": "failed", "label": _("Failed"), "numeric": True},
            {"key": "cost", "label": _("Per million tokens"), "numeric": True},
            {"key": "when", "label": _("When")},
        ],
    }  # fmt: skip


def other_revision(newest: Shown, ended: Sequence[Shown]) -> Shown | None:
    """Return the newest benchmark of another revision that ran the same load to its end; None where there is none."""
    found = (one for one in ended if one.row.revision != newest.row.revision and one.load == newest.load)
    return next((one for one in found if one.row.state == BenchmarkState.DONE and not one.row.reason), None)


def changes(newest: Shown, before: Shown | None) -> list[dict[str, str]]:
    """Return how much better or worse a benchmark is than one before, figure by figure."""
    if before is None or before.result is None or newest.result is None:
        return []
    pairs = [
        (_("Tokens/s written"), newest.result.written_s, before.result.written_s, True),
        (_("First token, half of all"), newest.result.ttft_ms.p50, before.result.ttft_ms.p50, False),
        (_("First token, 99 of 100"), newest.result.ttft_ms.p99, before.result.ttft_ms.p99, False),
        (_("Between tokens, half of all"), newest.result.between_ms.p50, before.result.between_ms.p50, False),
        (_("Between tokens, 99 of 100"), newest.result.between_ms.p99, before.result.between_ms.p99, False),
    ]
    found = []
    for label, now, then, more_is_better in pairs:
        if not now or not then:
            continue
        share = now / then - 1
        words = _("%(n)s %% more") if share >= 0 else _("%(n)s %% less")
        text = words % {"n": numbers.number(abs(share) * 100, 1)}
        good = (share >= 0) is more_is_better
        tone = "quiet" if abs(share) < 0.02 else "ok" if good else "bad"
        found.append({"label": label, "text": text, "tone": tone})
    return found


def _shown(row: Benchmark, hour: Decimal | None) -> Shown:
    tone, words = STATES[BenchmarkState(row.state)]
    result = Result.of(row.result)
    cost = None
    if result is not None and result.answered:
        cost = serving_cost.per_million(hour, result.prompt_tokens + result.completion_tokens, result.duration_s)
    return Shown(row, Load.of(row.load), result, tone, str(words), cost)


def _where(request: PageRequest, row: Endpoint) -> dict[str, str]:
    return {"tenant": request.tenant.name, "name": row.short_id}
