"""Shapes of reports of the doctor, and of what a tenant was at a moment."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from tenants import doctor
from tenants.api.serializers.base import Bound, In, Out, Query
from tenants.doctor import State
from tenants.evidence import AsOf
from tenants.models import SystemReport


class SystemCheckIn(In):
    """What to look at."""

    thorough: bool = Field(True, description="With the books: ledger, event chains and checkpoints are recomputed.")


class ResultOut(Out):
    """How one check came out."""

    code: str
    title: str
    state: State
    data: dict[str, Any]
    meaning: str
    remedy: str


class SystemReportOut(Out):
    """One report of the doctor."""

    id: str
    asked_at: datetime
    thorough: bool
    done_at: datetime | None = Field(description="null: a worker has not answered yet.")
    took_ms: int | None
    worker: str
    release: str
    state: State
    results: list[ResultOut]

    @classmethod
    def of(cls, row: SystemReport) -> SystemReportOut:
        """Return a report."""
        return cls(
            id=str(row.pk),
            asked_at=row.asked_at,
            thorough=row.thorough,
            done_at=row.done_at,
            took_ms=row.took_ms,
            worker=row.worker,
            release=row.release,
            state=doctor.worst(row.results),
            results=[_result(result) for result in row.results if result["code"] in doctor.CHECKS],
        )


def _result(result: dict[str, Any]) -> ResultOut:
    check = doctor.CHECKS[result["code"]]
    return ResultOut(
        code=result["code"],
        title=str(check.title),
        state=State(result["state"]),
        data=result["data"],
        meaning=str(check.meaning),
        remedy=str(check.remedy),
    )


class AsOfQuery(Query):
    """Which moment."""

    at: Bound | None = Field(None, description="The moment, default now; what ended then was not held any more.")
    children: bool = Field(True, description="With all tenants below.")


class WindowOut(Out):
    """One GPU window that was held."""

    tenant: str
    kind: str
    name: str
    allocation: str
    provider: str
    site: str
    host: str
    gpu: str
    product: str
    profile: str
    start: int
    size: int
    held_from: datetime
    held_to: datetime | None


class MemberAtOut(Out):
    """One person's role at that moment."""

    tenant: str
    person: str
    name: str
    role: str


class AsOfOut(Out):
    """What a tenant was at a moment."""

    at: datetime
    windows: list[WindowOut]
    members: list[MemberAtOut]

    @classmethod
    def of(cls, found: AsOf) -> AsOfOut:
        """Return it."""
        return cls(
            at=found.at,
            windows=[
                WindowOut(
                    tenant=one.tenant,
                    kind=one.subject.kind,
                    name=one.subject.name,
                    allocation=one.subject.short_id,
                    provider=one.provider,
                    site=one.site,
                    host=one.host,
                    gpu=one.gpu,
                    product=one.product,
                    profile=one.profile,
                    start=one.start,
                    size=one.size,
                    held_from=one.held_from,
                    held_to=one.held_to,
                )
                for one in found.windows
            ],
            members=[
                MemberAtOut(tenant=one.tenant, person=str(one.person), name=one.name, role=one.role)
                for one in found.members
            ],
        )
