"""The control plane about itself: reports of the doctor; and what a tenant was at a moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet

from tenants import evidence
from tenants.api.serializers.base import Out, Page, PageQuery, page_of
from tenants.api.serializers.system import AsOfOut, AsOfQuery, SystemCheckIn, SystemReportOut
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.models import SystemReport
from tenants.operations import system

SystemReportPage = page_of(SystemReportOut)


class SystemReports(ApiView):
    """Reports of the doctor."""

    def rows(self, call: Call) -> QuerySet[SystemReport]:  # noqa: ARG002
        """Return all reports."""
        return SystemReport.objects.all()

    def show(self, row: SystemReport, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a report."""
        return SystemReportOut.of(row)

    @reads("system.read", answers=SystemReportPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List reports of the doctor: how each part of the control plane does, and what to do about it."""
        return self.page(call, self.rows(call), SystemReportPage, at="asked_at")

    @writes("system.check", body=SystemCheckIn, answers=SystemReportOut, status=201)
    def post(self, call: Call) -> Any:
        """Run the doctor: the report is answered by a worker within seconds."""
        return system.check(thorough=call.body.thorough, actor=call.actor, now=call.now)


class AsOf(ApiView):
    """What a tenant was at a moment."""

    @reads("evidence.as_of", answers=AsOfOut, query=AsOfQuery)
    def get(self, call: Call) -> Out:
        """Say which GPU windows a tenant held at a moment, for what, and who belonged to it."""
        return AsOfOut.of(evidence.as_of(call.home, call.query.at or call.now, children=call.query.children))
