"""System: how the control plane itself does. Reports of the doctor, its figures over time, who looked, versions."""

from __future__ import annotations

import platform
from datetime import timedelta
from typing import Any, Final

import django
from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import charts, numbers
from frontend.kernel import diagnosis, lists
from frontend.kernel.page import PageRequest, page
from tenants import access
from tenants.models import SystemReport
from tenants.operations import system
from tenants.policies import ROUTES

HISTORY: Final = 48
"""Reports in the little charts: some four hours."""
SILENT: Final = timedelta(minutes=12)
"""Without a report for so long nobody looks any more: two were missed."""
SLOW: Final = timedelta(seconds=45)
"""A report that was asked for and is not there by then will not come by itself."""
COLUMNS: Final = ("at", "code", "title", "state", "seen", "remedy", "worker", "release")


@page("system.read")
def show(request: PageRequest) -> HttpResponse:
    """Show the last report with its history, and the one that is being made."""
    last, books, waiting = _reports()
    if request.GET.get("format") in {"csv", "json"} and last is not None:
        return _exported(last, request.GET["format"])
    recent = list(_done().order_by("-done_at")[:HISTORY])
    values = {
        **_answer(request, last, waiting),
        "books": books,
        "book_findings": [] if books is None else _books(books),
        "figures": _figures(last, recent[::-1]),
        "lookers": _lookers(recent),
        "versions": _versions(last),
        "can_check": access.allowed(request.actor, None, ROUTES["system.check"]),
        "twins": _twins(request),
    }
    template = "_answer" if request.htmx else "show"
    return render(request, f"frontend/pages/system/{template}.html", values)


def _done() -> Any:
    return SystemReport.objects.filter(done_at__isnull=False)


def _reports() -> tuple[SystemReport | None, SystemReport | None, SystemReport | None]:
    """Return the last report, the last thorough one, and the one that was asked for and is not there yet."""
    last = _done().order_by("-done_at").first()
    books = last if last is not None and last.thorough else _done().filter(thorough=True).order_by("-done_at").first()
    waiting = SystemReport.objects.filter(done_at__isnull=True).order_by("asked_at").first()
    return last, books, waiting


def _answer(request: PageRequest, last: SystemReport | None, waiting: SystemReport | None) -> dict[str, Any]:
    found = diagnosis.findings(last) if last is not None else []
    silent = last is None or last.done_at is None or request.now - last.done_at > SILENT
    late = waiting is not None and request.now - waiting.asked_at > SLOW
    word, tone, icon = diagnosis.summary(last) if last is not None else (_("Nobody has looked yet"), "quiet", "circle")
    if silent and last is not None:
        word, tone, icon = _("Nobody looks any more"), "bad", "octagon-x"
    return {
        "report": last,
        "findings": found,
        "bad": [one for one in found if one.remedy],
        "well": [one for one in found if not one.remedy],
        "waiting": waiting,
        "late": late,
        "silent": silent,
        "summary": {"text": word, "tone": tone, "icon": icon},
    }


def _books(report: SystemReport) -> list[diagnosis.Finding]:
    return [one for one in diagnosis.findings(report) if one.code in {"ledger", "trail"}]


def _figures(last: SystemReport | None, recent: list[SystemReport]) -> list[dict[str, Any]]:
    def line(code: str, key: str) -> Any:
        values = [diagnosis.figure(report, code, key) for report in recent]
        return [float(value) if isinstance(value, int | float) else None for value in values]

    wanted = (
        (_("Oldest due"), "passes", "oldest_s", _("s"), _("things are due at once")),
        (_("News waiting"), "outbox", "count", "", _("in the outbox")),
        (_("Messages waiting"), "notifications", "pending", "", _("to people and webhooks")),
        (_("Stuck"), "stuck", "count", "", _("fail again and again")),
        (_("Connections"), "database", "connections", "", _("to the database")),
    )
    found = [
        {
            "label": label,
            "value": numbers.number(diagnosis.figure(last, code, key)),
            "unit": unit,
            "note": note,
            "spark": charts.sparkline(line(code, key), label) if len(recent) > 1 else "",
        }
        for label, code, key, unit, note in wanted
    ]
    size = diagnosis.figure(last, "database", "size_bytes")
    return [
        *found,
        {"label": _("Database"), "value": numbers.size(size), "unit": "", "note": _("on disk"), "spark": ""},
    ]


def _lookers(recent: list[SystemReport]) -> list[dict[str, Any]]:
    """Return which processes looked lately, the last first."""
    found: dict[str, dict[str, Any]] = {}
    for report in recent:
        one = found.setdefault(
            report.worker, {"name": report.worker, "at": report.done_at, "release": report.release, "count": 0}
        )
        one["count"] += 1
    return list(found.values())


def _versions(last: SystemReport | None) -> list[dict[str, str]]:
    return [
        {"label": _("Release of the workers"), "value": last.release if last is not None else ""},
        {"label": _("Tables"), "value": str(diagnosis.figure(last, "migrations", "newest") or ""), "note": ""},
        {"label": "PostgreSQL", "value": str(diagnosis.figure(last, "database", "version") or "")},
        {"label": "Django", "value": django.get_version()},
        {"label": "Python", "value": platform.python_version()},
        {"label": _("Installation"), "value": settings.TENANTRY_ENVIRONMENT},
        {"label": _("Address"), "value": settings.TENANTRY_PUBLIC_URL},
    ]


def _twins(request: PageRequest) -> list[dict[str, str]]:
    base = request.build_absolute_uri("/").rstrip("/")
    return [
        {
            "label": _("API"),
            "text": f'curl -H "Authorization: Bearer $TENANTRY_TOKEN" {base}/api/v1/system-reports?limit=1',
        },
        {"label": _("CLI"), "text": "tenantry get system-reports"},
        {"label": _("On the machine"), "text": "make doctor"},
    ]


def _exported(last: SystemReport, form: str) -> HttpResponse:
    body = [
        {
            "at": last.done_at,
            "code": one.code,
            "title": one.title,
            "state": one.state.value,
            "seen": one.seen,
            "remedy": one.remedy,
            "worker": last.worker,
            "release": last.release,
        }
        for one in diagnosis.findings(last)
    ]
    return lists.exported(body, COLUMNS, name="system", form=form)


@page("system.check", methods=("POST",))
def check(request: PageRequest) -> HttpResponse:
    """Ask for a report with the books; the page shows it as soon as a worker has answered."""
    system.check(actor=request.actor, now=request.now)
    messages.info(request, _("Asked for. The answer shows here by itself."))
    back = "evidence-chain" if request.POST.get("back") == "chain" else "system"
    return HttpResponseRedirect(reverse(f"frontend:{back}"))
