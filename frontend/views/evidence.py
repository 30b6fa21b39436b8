"""Evidence: packs for those who check, what a tenant was at a moment, and whether the chain of events holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import IO, Any, Final
from uuid import UUID

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse, HttpResponseBase, QueryDict, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.kernel import diagnosis, lists, problems
from frontend.kernel.page import PageRequest, page
from tenants import access, evidence
from tenants.desired import PLATFORM_CHAIN
from tenants.errors import InvalidSpec, NotVisible
from tenants.evidence import HeldWindow
from tenants.models import ChainHead, Checkpoint, Event, Person, SystemReport, Tenant
from tenants.operations import evidence as operations
from tenants.policies import ROUTES
from tenants.transactions import reading

PIECE: Final = 256 * 1024
PACKS_SHOWN: Final = 50
MOST_TENANTS: Final = 500
PRESET: Final = timedelta(days=30)
PACK_COLUMNS: Final = ("tenant", "since", "until", "children", "events", "windows", "by", "at", "manifest")
WINDOW_COLUMNS: Final = (
    "tenant", "kind", "name", "product", "profile", "start", "size", "gpu", "host", "provider", "site", "held_from",
    "held_to",
)  # fmt: skip


def _tabs(current: str) -> list[dict[str, Any]]:
    pages = (
        ("packs", _("Packs"), "evidence"),
        ("as-of", _("As of"), "evidence-as-of"),
        ("chain", _("Chain"), "evidence-chain"),
    )
    return [
        {"label": label, "url": reverse(f"frontend:{name}"), "current": key == current} for key, label, name in pages
    ]


def _tenants() -> list[dict[str, str]]:
    rows = Tenant.objects.order_by("name").values_list("name", "display_name")[:MOST_TENANTS]
    return [{"value": name, "label": f"{title} ({name})"} for name, title in rows]


def _tenant(request: PageRequest, name: str) -> Tenant:
    """Return a tenant by name. Raises `InvalidSpec` at its field."""
    try:
        return access.find(access.tenants(request.actor), name)
    except NotVisible as error:
        raise InvalidSpec(_("Choose a tenant."), field="tenant") from error


# --- packs --------------------------------------------------------------------------------------------


@page("checkpoints.list")
def packs(request: PageRequest) -> HttpResponse:
    """Show the form that makes a pack, and who made which."""
    if request.GET.get("format") in {"csv", "json"}:
        return lists.exported(_made(lists.MOST_EXPORTED), PACK_COLUMNS, name="packs", form=request.GET["format"])
    return _packs(request, request.GET, {})


def _made(most: int) -> list[dict[str, Any]]:
    """Return who made which pack, the newest first."""
    rows = list(Event.objects.filter(kind="evidence.made").order_by("-at", "-seq")[:most])
    people = dict(Person.objects.filter(pk__in={row.person_id for row in rows}).values_list("pk", "display_name"))
    names = dict(Tenant.objects.filter(pk__in={row.tenant_id for row in rows}).values_list("pk", "name"))
    return [
        {
            "by": people.get(row.person_id, "--") if row.person_id else "--",
            "tenant": names.get(row.tenant_id, "--") if row.tenant_id else "--",
            "at": row.at,
            "since": _moment(row.data.get("since")),
            "until": _moment(row.data.get("until")),
            "children": row.data.get("children"),
            "events": row.data.get("events"),
            "windows": row.data.get("windows"),
            "manifest": row.data.get("manifest", ""),
        }
        for row in rows
    ]


def _packs(request: PageRequest, given: QueryDict, errors: Mapping[str, str], *, status: int = 200) -> HttpResponse:
    today = timezone.localdate(request.now)
    made = _made(PACKS_SHOWN)
    values = {
        "tabs": _tabs("packs"),
        "tenants": _tenants(),
        "tenant": given.get("tenant", ""),
        "since": given.get("since", (today - PRESET).isoformat()),
        "until": given.get("until", today.isoformat()),
        "children": given.get("children", "") == "on",
        "errors": errors,
        "can_make": access.allowed(request.actor, None, ROUTES["evidence.make"]),
        "lines": made,
        "empty": not made,
        "columns": [
            {"key": "tenant", "label": _("Tenant")},
            {"key": "time", "label": _("Time")},
            {"key": "holds", "label": _("Holds")},
            {"key": "by", "label": _("Made by")},
            {"key": "at", "label": _("Made")},
            {"key": "manifest", "label": _("SHA-256 of its manifest")},
        ],
    }
    return render(request, "frontend/pages/evidence/packs.html", values, status=status)


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


@page("evidence.make", methods=("POST",))
def make(request: PageRequest) -> HttpResponseBase:
    """Make a pack and send it; that it was made is an event of its tenant."""
    given = request.POST
    try:
        with reading(request.actor):
            tenant = _tenant(request, given.get("tenant", ""))
        pack = operations.make(
            tenant=tenant,
            since=_day(given.get("since"), "since"),
            until=min(_day(given.get("until"), "until") + timedelta(days=1), request.now),
            children=given.get("children") == "on",
            actor=request.actor,
            now=request.now,
        )
    except InvalidSpec as error:
        with reading(request.actor):
            return _packs(request, given, problems.at_fields(error), status=problems.status_of(error))
    whole = isinstance(request, ASGIRequest)
    response = StreamingHttpResponse(
        _apieces(pack.file) if whole else _pieces(pack.file), content_type="application/zip"
    )
    response["Content-Disposition"] = f'attachment; filename="{pack.name}"'
    response["X-Evidence-Manifest"] = pack.written.digest
    return response


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece


async def _apieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


def _day(text: str | None, field: str) -> datetime:
    """Return the beginning of a day in the person's zone. Raises `InvalidSpec` at its field."""
    try:
        day = date.fromisoformat(text or "")
    except ValueError as error:
        raise InvalidSpec(_("Give a day."), field=field) from error
    return datetime.combine(day, time(), tzinfo=timezone.get_current_timezone())


# --- as of --------------------------------------------------------------------------------------------


@page("checkpoints.list")
def as_of(request: PageRequest) -> HttpResponse:
    """Show what a tenant held at a moment and who belonged to it."""
    given, errors = request.GET, {}
    values: dict[str, Any] = {
        "tabs": _tabs("as-of"),
        "tenants": _tenants(),
        "tenant": given.get("tenant", ""),
        "at": given.get("moment", timezone.localtime(request.now).strftime("%Y-%m-%dT%H:%M")),
        "children": "tenant" not in given or given.get("children") == "on",
        "asked": bool(given.get("tenant")),
    }
    status = 200
    if values["asked"]:
        try:
            tenant = _tenant(request, given["tenant"])
            found = evidence.as_of(tenant, _at(given.get("moment"), request.now), children=bool(values["children"]))
        except InvalidSpec as error:
            errors, status = problems.at_fields(error), problems.status_of(error)
        else:
            if given.get("format") in {"csv", "json"}:
                rows = [_window(one) for one in found.windows]
                return lists.exported(rows, WINDOW_COLUMNS, name=f"{tenant.name}-as-of", form=given["format"])
            values |= _found(tenant, found)
    values["errors"] = errors
    return render(request, "frontend/pages/evidence/as_of.html", values, status=status)


def _at(text: str | None, now: datetime) -> datetime:
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError as error:
        raise InvalidSpec(_("Give a day and a time."), field="moment") from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=timezone.get_current_timezone())
    if found > now:
        raise InvalidSpec(_("That is still to come."), field="moment")
    return found.astimezone(UTC)


def _found(tenant: Tenant, found: evidence.AsOf) -> dict[str, Any]:
    return {
        "found": found,
        "of": tenant,
        "moment": found.at,
        "sums": [
            {"label": product, "value": numbers.number(slots), "unit": _("slots")}
            for product, slots in found.slots_by_product().items()
        ],
        "empty": not found.windows,
        "columns": [
            {"key": "what", "label": _("What for")},
            {"key": "size", "label": _("Window")},
            {"key": "gpu", "label": _("GPU")},
            {"key": "where", "label": _("Where")},
            {"key": "since", "label": _("Held since")},
            {"key": "until", "label": _("Held until")},
        ],
        "member_columns": [
            {"key": "person", "label": _("Person")},
            {"key": "tenant", "label": _("Tenant")},
            {"key": "role", "label": _("Role")},
        ],
    }


def _window(one: HeldWindow) -> dict[str, Any]:
    return {
        "tenant": one.tenant,
        "kind": one.subject.kind,
        "name": one.subject.name,
        "product": one.product,
        "profile": one.profile,
        "start": one.start,
        "size": one.size,
        "gpu": one.gpu,
        "host": one.host,
        "provider": one.provider,
        "site": one.site,
        "held_from": one.held_from,
        "held_to": one.held_to,
    }


# --- chain --------------------------------------------------------------------------------------------


@page("checkpoints.list")
def chain(request: PageRequest) -> HttpResponse:
    """Show every chain of events with its head, what seals it, and how its last recomputing came out."""
    sealed = Checkpoint.objects.order_by("-at").first()
    heads = list(ChainHead.objects.order_by("-seq", "chain")[: MOST_TENANTS + 1])
    names = dict(Tenant.objects.filter(pk__in=[row.chain for row in heads]).values_list("pk", "name"))
    lines = [_line(row, names, sealed) for row in heads[:MOST_TENANTS]]
    if request.GET.get("format") in {"csv", "json"}:
        body = [{key: line[key] for key in ("chain", "name", "seq", "hash", "sealed")} for line in lines]
        return lists.exported(
            body, ("chain", "name", "seq", "hash", "sealed"), name="chains", form=request.GET["format"]
        )
    report = SystemReport.objects.filter(done_at__isnull=False, thorough=True).order_by("-done_at").first()
    trail = next((one for one in diagnosis.findings(report) if one.code == "trail"), None) if report else None
    values = {
        "tabs": _tabs("chain"),
        "lines": lines,
        "empty": not lines,
        "sealed_at": sealed.at if sealed is not None else None,
        "checkpoints": Checkpoint.objects.count(),
        "report": report,
        "trail": trail,
        "waiting": SystemReport.objects.filter(done_at__isnull=True).exists(),
        "columns": [
            {"key": "name", "label": _("Whose")},
            {"key": "seq", "label": _("Events"), "numeric": True},
            {"key": "sealed", "label": _("Sealed up to"), "numeric": True},
            {"key": "open", "label": _("Newer"), "numeric": True},
            {"key": "hash", "label": _("Hash of the last")},
        ],
    }
    return render(request, "frontend/pages/evidence/chain.html", values)


def _line(row: ChainHead, names: Mapping[UUID, str], sealed: Checkpoint | None) -> dict[str, Any]:
    head: list[Any] = sealed.heads.get(str(row.chain), [0, ""]) if sealed is not None else [0, ""]
    return {
        "chain": str(row.chain),
        "name": _("the platform") if row.chain == PLATFORM_CHAIN else names.get(row.chain, "--"),
        "seq": row.seq,
        "hash": row.hash,
        "sealed": int(head[0]),
        "open": row.seq - int(head[0]),
    }
