"""The living style page: every component in each of its states, with example content. Reads nothing, shows nobody's."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from frontend.design.charts import Chart, Series, Share
from frontend.design.quota_bar import Above, QuotaLine
from frontend.design.strip import Gpu, HostCell, Run, SlotState, Span
from frontend.design.timeline import StepState, Timeline, TimelineStep
from frontend.kernel.page import page
from tenants.states import Phase

FREE, MINE, OTHERS = SlotState.FREE, SlotState.MINE, SlotState.OTHERS
RESERVED, FOREIGN, FAULT, SERVICE = SlotState.RESERVED, SlotState.FOREIGN, SlotState.FAULT, SlotState.MAINTENANCE


SECTIONS = (
    ("strip", _("The strip")),
    ("quota", _("Quota bar")),
    ("timeline", _("Timeline")),
    ("charts", _("Charts")),
    ("badges", _("Badges")),
    ("table", _("Table")),
    ("conditions", _("Conditions")),
    ("tabs", _("Tabs, menus")),
    ("buttons", _("Buttons")),
    ("forms", _("Forms")),
    ("dialogs", _("Dialogs")),
    ("messages", _("Messages")),
    ("code", _("Code")),
    ("words", _("Numbers")),
)


@page("docs.read")
def show(request: HttpRequest) -> HttpResponse:
    """Show all components."""
    return render(request, "frontend/pages/style/show.html", examples(timezone.now()))


@page("docs.read")
def entrance(request: HttpRequest) -> HttpResponse:
    """Show the entrance layout."""
    return render(request, "frontend/pages/style/entrance.html", {"is_simulated": True})


def examples(now: datetime) -> dict[str, Any]:
    """Return the content of the page as of `now` (aware)."""
    return {
        **shell(),
        "sections": SECTIONS,
        **strips(now),
        **timelines(now),
        **charts(now),
        "phases": list(Phase),
        "quotas": quotas(),
        "now": now,
        "moments": [now - timedelta(seconds=40), now - timedelta(hours=5), now + timedelta(days=29, hours=3)],
        "rows": rows(now),
        "columns": [
            {"key": "name", "label": "Endpoint", "sort": True},
            {"key": "phase", "label": "State"},
            {"key": "strip", "label": "GPU"},
            {"key": "tokens", "label": "Tokens/s", "sort": True, "numeric": True},
            {"key": "cost", "label": "Cost a day", "sort": True, "numeric": True},
            {"key": "until", "label": "Until", "sort": True},
        ],
        "filters": [
            {
                "name": "phase",
                "label": "State",
                "value": "Ready",
                "options": [
                    {"value": "", "label": "All", "count": 12},
                    {"value": "Ready", "label": "Ready", "count": 9},
                ],
            },
            {
                "name": "class",
                "label": "Class",
                "value": "",
                "options": [
                    {"value": "", "label": "All"},
                    {"value": "trial", "label": "Trial"},
                ],
            },
        ],
        "query": {"name": "name", "value": "", "label": "Name or id"},
        "active_filters": [{"label": "State: Ready", "remove_url": "?"}],
        "conditions": conditions(now),
        "facts": [
            {
                "label": "Address",
                "value": "http://127.0.0.1:8511/v1",
                "copy_text": "http://127.0.0.1:8511/v1",
                "mono": True,
            },
            {
                "label": "Model",
                "value": "Llama 3.1 8B Instruct",
                "href": "#facts",
                "note": "Apache-2.0, 16 GiB of weights",
            },
            {"label": "Short id", "value": "ep-7k2m", "copy_text": "ep-7k2m", "mono": True},
            {"label": "First token", "value": ""},
        ],
        "twins": twins(),
        "error_text": "HTTP 503 from sandbox-a: clone of template tpl-ubuntu-22 refused\n"
        "  datastore ds-02 has 41 GiB free, 96 GiB wanted",
        **choices(),
    }


def shell() -> dict[str, Any]:
    """Return what the layout shows around the page."""
    items = [
        (
            "Work",
            [
                ("Home", "house", 0),
                ("New", "circle-plus", 0),
                ("Endpoints", "rocket", 12),
                ("Machines", "monitor", 0),
                ("Namespaces", "boxes", 0),
                ("Models", "brain", 0),
            ],
        ),
        (
            "Account",
            [
                ("Quota", "gauge", 0),
                ("Requests", "inbox", 2),
                ("Cost", "wallet", 0),
                ("People and access", "users", 0),
                ("Activity", "history", 0),
                ("Settings", "settings", 0),
            ],
        ),
    ]
    return {
        "navigation": [
            {
                "label": label,
                "items": [
                    {"label": word, "url": "/style", "icon": icon, "count": count, "current": word == "Endpoints"}
                    for word, icon, count in section
                ],
            }
            for label, section in items
        ],
        "tenant_choices": [
            {"name": "aurora", "title": "Aurora Research", "url": "/style", "role": "member", "current": True},
            {"name": "aurora-vision", "title": "Aurora Vision", "url": "/style", "role": "owner", "current": False},
        ],
        "person": {"name": "Mia Lindqvist", "email": "mia@aurora.example"},
        "unread_count": 3,
        "zone": "Europe/Berlin",
        "is_simulated": True,
        "persona_url": "/style",
        "personas": [
            {"key": "mia", "name": "Mia", "role": "member", "current": True},
            {"key": "omar", "name": "Omar", "role": "owner", "current": False},
            {"key": "ana", "name": "Ana", "role": "approver", "current": False},
            {"key": "ole", "name": "Ole", "role": "operator", "current": False},
            {"key": "aud", "name": "Aud", "role": "auditor", "current": False},
        ],
        "breadcrumbs": [{"label": "Aurora Research", "url": "/style"}, {"label": "Style"}],
    }


def strips(now: datetime) -> dict[str, Any]:
    """Return the strip at its zooms."""
    week = now + timedelta(days=7)
    chat = Run(MINE, 4, "chat-prod", "4g.40gb · endpoint", "ep-7k2m", "#strip", now - timedelta(days=3), week)
    notes = Run(MINE, 1, "notes", "1g.10gb", "mc-2x9q", "#strip", now - timedelta(hours=9), week)
    large = Gpu(
        "h100-03 · GPU 2", (chat, Run(OTHERS, 2, note="2g.20gb", holder="t-1", until=week), notes, Run(FREE, 1))
    )
    every = Gpu(
        "h100-07 · GPU 0",
        (
            Run(MINE, 2, "embed", "2g.20gb", "ep-41hd", "#strip", until=week),
            Run(OTHERS, 1, holder="t-1"),
            Run(FREE, 1),
            Run(RESERVED, 1, note="kept for a layout change"),
            Run(FOREIGN, 1, note="job slurm-8812"),
            Run(SERVICE, 1),
            Run(FAULT, 1, note="Xid 79"),
        ),
    )
    host = [
        Gpu("GPU 0", (Run(OTHERS, 8, holder="t-1"),)),
        Gpu(
            "GPU 1",
            (Run(MINE, 4, "chat-prod", holder="ep-7k2m", url="#strip"), Run(OTHERS, 3, holder="t-2"), Run(FREE, 1)),
        ),
        Gpu("GPU 2", (chat, Run(OTHERS, 2, holder="t-1"), notes, Run(FREE, 1))),
        Gpu("GPU 3", (Run(FREE, 8),)),
        Gpu("GPU 4", (Run(RESERVED, 4), Run(FREE, 4))),
        Gpu("GPU 5", (Run(FOREIGN, 8, note="not of this portal"),)),
        Gpu("GPU 6", (Run(SERVICE, 8),)),
        Gpu("GPU 7", (Run(FAULT, 8, note="Xid 79"),)),
    ]
    spans = [
        Span(0, 4, now - timedelta(days=9), now + timedelta(days=5), MINE, "chat-prod", "4g.40gb", "ep-7k2m", "#strip"),
        Span(4, 2, now - timedelta(days=12), now - timedelta(days=1), OTHERS, holder="t-1"),
        Span(4, 2, now + timedelta(days=1), now + timedelta(days=8), RESERVED, "for dr-test"),
        Span(6, 1, now - timedelta(hours=9), None, MINE, "notes", "1g.10gb", "mc-2x9q"),
        Span(7, 1, now - timedelta(days=6), now - timedelta(days=3), FAULT, "Xid 79"),
        Span(7, 1, now - timedelta(days=3), now - timedelta(days=1), SERVICE, "acceptance"),
        Span(6, 1, now - timedelta(days=11), now - timedelta(days=4), FOREIGN, "slurm"),
    ]
    return {
        "gpu_large": large,
        "gpu_every": every,
        "host_gpus": host,
        "spans": spans,
        "span_from": now - timedelta(days=12),
        "span_to": now + timedelta(days=10),
        "heat": heat(64),
    }


def heat(hosts: int, gpus: int = 8, seed: int = 7) -> list[HostCell]:
    """Return a plausible site of `hosts` hosts: whole GPUs, mixed ones, some of every other state."""
    chance = random.Random(seed)  # noqa: S311 - an example, the same each time
    shapes = [
        [(OTHERS, 8)],
        [(OTHERS, 8)],
        [(FREE, 8)],
        [(MINE, 8)],
        [(OTHERS, 4), (FREE, 4)],
        [(OTHERS, 4), (OTHERS, 2), (FREE, 2)],
        [(MINE, 4), (OTHERS, 4)],
        [(OTHERS, 7), (FREE, 1)],
        [(OTHERS, 2), (MINE, 2), (FREE, 4)],
    ]
    cells = []
    for number in range(hosts):
        roll = chance.random()
        if roll < 0.04:
            strip = [[(SERVICE, 8)]] * gpus
        elif roll < 0.08:
            strip = [[(FOREIGN, 8)]] * (gpus // 2) + [[(FREE, 8)]] * (gpus - gpus // 2)
        elif roll < 0.3:
            strip = [[(OTHERS, 8)]] * gpus
        elif roll < 0.42:
            strip = [[(FREE, 8)]] * gpus
        else:
            strip = [chance.choice(shapes) for _ in range(gpus)]
            if roll > 0.97:
                strip[3] = [(FAULT, 8)]
        cells.append(
            HostCell(
                f"gpu-{number:04d}", f"/ops/hosts/gpu-{number:04d}", strip, ("ep-7k2m",) if number % 13 == 5 else ()
            )
        )
    return cells


def timelines(now: datetime) -> dict[str, Any]:
    """Return the timeline in its forms."""
    done, running, todo = StepState.DONE, StepState.RUNNING, StepState.TODO
    first = [
        TimelineStep("Its GPU is reserved", done, 0.4, 0.5, 0.9),
        TimelineStep("Creating the resource pool", done, 4.0, 4.0, 7.0),
    ]
    return {
        "timeline_building": Timeline(
            "building",
            [
                *first,
                TimelineStep(
                    "Cloning the machine",
                    running,
                    74,
                    41,
                    62,
                    now - timedelta(seconds=74),
                    retries=1,
                    message="The template is copied to the host's own disk.",
                    slower_because="the template is not yet on this host; the next one here will be quick",
                ),
                TimelineStep("Starting the model server", todo, median_s=38, p90_s=55),
                TimelineStep("Publishing the address", todo, median_s=2, p90_s=3),
            ],
            now - timedelta(seconds=79),
            total_s=79,
            usual_s=92,
            usual_of="42 endpoints of this size on sandbox-a in 90 days",
        ),
        "timeline_waiting": Timeline(
            "building",
            [
                TimelineStep(
                    "Waiting for a decision",
                    StepState.WAITING,
                    5_400,
                    3_600,
                    14_400,
                    now - timedelta(seconds=5_400),
                    message="4 slots more than the quota allows.",
                    next_step="Ana Petrova or Ole Dahl decides; ask for less to start at once.",
                    help_url="#timeline",
                ),
                TimelineStep("Its GPU is reserved", todo, median_s=0.5, p90_s=0.9),
            ],
            now - timedelta(seconds=5_400),
            total_s=5_400,
        ),
        "timeline_ready": Timeline(
            "ready",
            [
                *first,
                TimelineStep("Cloning the machine", done, 39, 41, 62),
                TimelineStep("Publishing the address", done, 2, 2, 3),
            ],
            now - timedelta(minutes=8),
            now,
            45.6,
            47,
        ),
        "timeline_failed": Timeline(
            "failed",
            [
                *first,
                TimelineStep(
                    "Cloning the machine",
                    StepState.FAILED,
                    12,
                    41,
                    62,
                    retries=3,
                    message="The provider refuses what was asked for.",
                    next_step="Choose a smaller disk and deploy again.",
                    help_url="#timeline",
                    error="HTTP 503 from sandbox-a: clone refused: datastore ds-02 has 41 GiB free, 96 GiB wanted",
                ),
                TimelineStep("Publishing the address", StepState.SKIPPED),
            ],
            now - timedelta(minutes=3),
            now,
            19,
        ),
    }


def charts(now: datetime) -> dict[str, Any]:
    """Return charts in their forms."""
    start = (now - timedelta(minutes=60)).astimezone(UTC).replace(second=0, microsecond=0)
    times = [start + timedelta(minutes=n) for n in range(61)]
    tokens = [round(310 + 90 * math.sin(n / 7) + 25 * math.sin(n * 1.7), 1) for n in range(61)]
    waits: list[float | None] = [round(180 + 60 * math.sin(n / 9 + 1), 1) for n in range(61)]
    waits[30:36] = [None] * 6
    days = [start - timedelta(days=29 - n) for n in range(30)]
    spend = [round(14 + 5 * math.sin(n / 3) + n * 0.35, 2) for n in range(30)]
    return {
        "chart_tokens": Chart(
            "tokens", "Tokens per second", "tokens/s", times, [Series("chat-prod", tokens)], "area", note="simulated"
        ),
        "chart_latency": Chart(
            "latency",
            "First token",
            "ms",
            times,
            [
                Series("median", waits),
                Series("p95", [None if w is None else round(w * 1.8, 1) for w in waits]),
            ],
            limit=500,
            limit_label="goal 500 ms",
        ),
        "chart_cost": Chart(
            "cost",
            "Cost by day",
            "€",
            days,
            [
                Series("endpoints", spend),
                Series("machines", [round(v * 0.4, 2) for v in spend]),
            ],
            "bar",
        ),
        "chart_empty": Chart(
            "empty",
            "Tokens per second",
            "tokens/s",
            [],
            [Series("notes", [])],
            empty="Nothing has been asked yet. The first answer shows here.",
        ),
        "spark": tokens,
        "shares": [
            Share("chat-prod", 412.5, "€412.50", "#charts"),
            Share("embed", 180.2, "€180.20"),
            Share("notes", 33.0, "€33.00"),
        ],
    }


def quotas() -> list[QuotaLine]:
    """Return quota bars within, near, over, unknown and without limit."""
    return [
        QuotaLine("H100 memory", "slot", 14, 32, 4, 6, (Above("Aurora", 96, 128),), ends="8 of them until 30 Nov"),
        QuotaLine("L40S", "gpu", 3, 4, 0, 3),
        QuotaLine("Endpoints", "endpoint", 12, 10, 1),
        QuotaLine("Machines", "machine", Decimal(2), None, above=(Above("Aurora", 17, 20),)),
        QuotaLine("A100 memory", "slot", None, 16),
    ]


def rows(now: datetime) -> list[dict[str, Any]]:
    """Return rows of a table."""
    gpu = Gpu("GPU 2", (Run(MINE, 4), Run(OTHERS, 2), Run(FREE, 2)))
    full = Gpu("GPU 0", (Run(MINE, 8),))
    return [
        {
            "name": "chat-prod",
            "id": "ep-7k2m",
            "phase": "Ready",
            "gpu": gpu,
            "tokens": 381.4,
            "cost": 18.24,
            "until": now + timedelta(days=19),
        },
        {
            "name": "embed",
            "id": "ep-41hd",
            "phase": "Provisioning",
            "gpu": full,
            "tokens": None,
            "cost": 36.48,
            "until": now + timedelta(days=30),
        },
        {
            "name": "summaries-with-a-rather-long-name",
            "id": "ep-9xw1",
            "phase": "Waiting",
            "gpu": None,
            "tokens": None,
            "cost": None,
            "until": None,
        },
        {
            "name": "triage",
            "id": "ep-c0fe",
            "phase": "Degraded",
            "gpu": gpu,
            "tokens": 12,
            "cost": 9.12,
            "until": now + timedelta(hours=30),
        },
    ]


def conditions(now: datetime) -> list[dict[str, Any]]:
    """Return conditions as pages get them."""
    return [
        {
            "label": "Has its GPU",
            "status": "False",
            "good": False,
            "code": "NoCapacity",
            "reason": "No free window of that size",
            "message": "It needs 4 neighbouring slots; the largest free window has 2.",
            "next_step": "Take 2 slots now, or wait: room is expected at 14:20.",
            "help_url": "#conditions",
            "since": now - timedelta(minutes=12),
        },
        {
            "label": "Approved",
            "status": "True",
            "good": True,
            "reason": "by rule “small trials”",
            "since": now - timedelta(minutes=13),
        },
        {
            "label": "Healthy",
            "status": "Unknown",
            "good": False,
            "reason": "Last read 4 minutes ago",
            "since": now - timedelta(minutes=4),
        },
    ]


def twins() -> list[dict[str, str]]:
    """Return one wish as CLI, API and YAML."""
    return [
        {
            "label": "CLI",
            "text": "tenantry create endpoint chat-prod \\\n  --model llama-3.1-8b --profile 4g.40gb --days 30",
        },
        {
            "label": "API",
            "text": "curl -X POST https://gpu.example/api/v1/tenants/aurora/endpoints \\\n"
            '  -H "Authorization: Bearer $TOKEN" \\\n  -d \'{"name": "chat-prod", "model": "llama-3.1-8b"}\'',
        },
        {
            "label": "YAML",
            "text": "kind: Endpoint\nname: chat-prod\nspec:\n  model: llama-3.1-8b\n"
            "  profile: 4g.40gb\n  until: 2026-12-21",
        },
    ]


def choices() -> dict[str, Any]:
    """Return options of choices, tabs, menus and steps."""
    figures = [{"label": "Speed", "value": "≈ 380 tokens/s"}, {"label": "Per hour", "value": "€0.76"}]
    return {
        "sizes": [
            {
                "value": "s",
                "label": "Small",
                "text": "Up to 4 users, 8k context each.",
                "icon": "box",
                "figures": [*figures, {"label": "Fits", "value": "now"}],
            },
            {
                "value": "m",
                "label": "Medium",
                "text": "Up to 16 users, 16k context each.",
                "icon": "package",
                "badge": "Fits your wish",
                "tone": "ok",
                "figures": [
                    {"label": "Speed", "value": "≈ 920 tokens/s"},
                    {"label": "Per hour", "value": "€1.52"},
                    {"label": "Fits", "value": "after 14:20"},
                ],
            },
            {
                "value": "l",
                "label": "Whole GPU",
                "text": "Up to 64 users, 32k context each.",
                "icon": "cpu",
                "disabled": True,
                "reason": "Your policy allows at most 4 slots for a trial.",
                "figures": [{"label": "Per hour", "value": "€3.04"}],
            },
        ],
        "ranges": [
            {"value": "1h", "label": "Hour", "href": "?range=1h#segments"},
            {"value": "1d", "label": "Day", "href": "?range=1d#segments"},
            {"value": "30d", "label": "30 days", "href": "?range=30d#segments"},
        ],
        "views": [
            {"value": "rows", "label": "Rows", "icon": "rows-3"},
            {"value": "map", "label": "Map", "icon": "grid-2x2"},
        ],
        "tab_items": [
            {"label": "Overview", "url": "#tabs", "current": True},
            {"label": "Connect", "url": "#tabs"},
            {"label": "Playground", "url": "#tabs"},
            {"label": "Keys", "url": "#tabs", "count": 2},
            {"label": "Cost", "url": "#tabs"},
            {"label": "Timeline", "url": "#tabs"},
        ],
        "menu_items": [
            {"label": "Renew", "href": "#menu", "icon": "calendar-clock", "note": "30 days more"},
            {"label": "Suspend", "href": "#menu", "icon": "circle-pause"},
            None,
            {"label": "Delete …", "opens": "delete-example", "icon": "trash-2", "danger": True},
        ],
        "step_items": [
            {"label": "Credentials", "state": "done", "url": "#steps"},
            {"label": "Test", "state": "failed", "note": "2 rights missing"},
            {"label": "What was found", "state": "current"},
            {"label": "Hand over", "state": "todo"},
            {"label": "Acceptance", "state": "todo"},
        ],
        "select_options": [{"value": "30", "label": "30 days"}, {"value": "90", "label": "90 days"}],
    }
