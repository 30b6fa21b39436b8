"""Reads shaped for people: why a thing is as it is, what was built, the proof behind a decision.

Every function runs inside the caller's read block; row-level security and the scoped querysets decide
what shows. Other tenants appear as "another tenant".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, models
from django.db.models import Q

from tenants import ledger
from tenants.desired import kind_of
from tenants.models import Allocation, Boundary, Endpoint, Event, Intent, Machine, Namespace, Provider, Request, Unit
from tenants.specs import AllocationSpec
from tenants.states import ConditionType, Phase, ProductKind

TIMELINE_ROWS = 100
Explainable = Allocation | Boundary | Endpoint | Machine | Namespace

NEXT_STEPS: dict[str, str] = {
    Phase.AWAITING_APPROVAL: "Wait for the decision, or withdraw the request and ask for less.",
    Phase.WAITING: "Wait for room, or ask for what fits now.",
    Phase.PROVISIONING: "Nothing to do: it is being built.",
    Phase.READY: "Use it.",
    Phase.DEGRADED: "Nothing to do: it is being repaired. The reason names what is wrong.",
    Phase.SUSPENDED: "Ask who suspended it; the reason names why.",
    Phase.EXPIRING: "Renew it, or let it go.",
    Phase.DELETING: "Nothing to do: it is being given back.",
    Phase.RELEASED: "It is gone; ask for a new one.",
    Phase.FAILED: "Change what is asked for: the provider refuses it as it is.",
}


def explain(row: Explainable, *, now: datetime) -> dict[str, Any]:
    """Return why an object is in its phase: conditions in words, what runs, where it is, what comes next."""
    allocation = row if isinstance(row, Allocation) else getattr(row, "allocation", None)
    boundary = row if isinstance(row, Boundary) else row.boundary
    worst = next((c for c in row.conditions if c["status"] != "True" and c["type"] != ConditionType.EXPIRING), None)
    answer: dict[str, Any] = {
        "kind": kind_of(row),
        "id": str(row.pk),
        "short_id": row.short_id,
        "name": getattr(row, "name", ""),
        "phase": row.phase,
        "why": worst["message"] if worst else "",
        "reason": worst["reason"] if worst else "",
        "next_step": NEXT_STEPS[row.phase],
        "conditions": row.conditions,
        "running_step": running_step(row),
        "timeline": timeline([row.pk, *([allocation.pk] if allocation and allocation.pk != row.pk else [])]),
        "at": now.isoformat(),
    }
    if allocation is not None:
        answer["placement"] = placement_of(allocation)
        answer["waiting"] = waiting_of(allocation)
        answer["ends"] = {
            "expires_at": allocation.expires_at.isoformat() if allocation.expires_at else None,
            "service_class": allocation.service_class,
            "grace_until": allocation.grace_until.isoformat() if allocation.grace_until else None,
        }
        answer["requests"] = [
            {"id": str(r.pk), "short_id": r.short_id, "state": r.state}
            for r in Request.objects.filter(allocation=allocation).order_by("created_at")
        ]
    if boundary is not None:
        provider = Provider.objects.get(pk=boundary.provider_id)
        answer["boundary"] = {
            "short_id": boundary.short_id,
            "kind": boundary.kind,
            "tier": boundary.tier,
            "phase": boundary.phase,
            "provider": provider.name,
            "provider_healthy": provider.healthy,
            "simulated": bool(provider.capabilities.get("simulated")),
        }
    return answer


def running_step(row: models.Model) -> dict[str, Any] | None:
    """Return the step under way or the last one that failed, None when nothing runs."""
    intent = (
        Intent.objects.filter(object_id=row.pk)
        .filter(Q(settled_at__isnull=True) | Q(outcome__in=["failed", "unknown"]))
        .order_by("-started_at")
        .first()
    )
    if intent is None:
        return None
    return {
        "step": intent.step,
        "undo": intent.undo,
        "attempt": intent.attempt,
        "started_at": intent.started_at.isoformat(),
        "settled_at": intent.settled_at.isoformat() if intent.settled_at else None,
        "outcome": intent.outcome or "running",
        "error": (intent.error or {}).get("detail", ""),
    }


def timeline(objects: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return events and steps of objects, oldest first, at most `TIMELINE_ROWS` of each."""
    events = Event.objects.filter(object_id__in=list(objects)).order_by("-at", "-seq")[:TIMELINE_ROWS]
    steps = Intent.objects.filter(object_id__in=list(objects)).order_by("-started_at")[:TIMELINE_ROWS]
    rows: list[dict[str, Any]] = [
        {"at": e.at.isoformat(), "what": e.kind, "by": e.actor.partition(":")[0], "data": e.data} for e in events
    ]
    rows += [
        {
            "at": s.started_at.isoformat(),
            "what": f"step {s.step}{' undone' if s.undo else ''}",
            "by": "system",
            "seconds": (s.settled_at - s.started_at).total_seconds() if s.settled_at else None,
            "outcome": s.outcome or "running",
            "attempt": s.attempt,
        }
        for s in steps
    ]
    return sorted(rows, key=lambda r: r["at"])


def placement_of(allocation: Allocation) -> list[dict[str, Any]]:
    """Return each unit with the windows it holds."""
    units = list(
        Unit.objects.filter(allocation=allocation, released_at__isnull=True).select_related("host").order_by("index")
    )
    windows = ledger.windows_of([unit.pk for unit in units])
    return [
        {
            "unit": unit.index,
            "product": unit.product,
            "profile": unit.profile,
            "gpus": max(1, unit.gpu_count),
            "placed_at": unit.placed_at.isoformat() if unit.placed_at else None,
            "windows": [
                {
                    "host": unit.host.name if unit.host else "",
                    "gpu": w.device_index,
                    "start": w.start,
                    "size": w.size,
                    "reported": w.settled,
                }
                for w in windows[unit.pk]
            ],
        }
        for unit in units
    ]


def waiting_of(allocation: Allocation) -> dict[str, Any] | None:
    """Return since when and behind how many an allocation waits, and what fits instead; None when it does not wait."""
    if allocation.queued_at is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT queue_position(%s)", [allocation.pk])
        found = cursor.fetchone()
    return {
        "since": allocation.queued_at.isoformat(),
        "position": int(found[0]) if found and found[0] is not None else None,
        "numbers": allocation.observed.get("why", {}),
        "fits_instead": fits_instead(AllocationSpec.from_json(allocation.spec)),
    }


def fits_instead(spec: AllocationSpec) -> list[dict[str, Any]]:
    """Return smaller windows of the same products that are free right now, biggest first; at most five."""
    from tenants import geometry, gpu_catalogue
    from tenants.models import GpuDevice

    answer: list[dict[str, Any]] = []
    for product_id in sorted({u.gpu.product for u in spec.units if u.gpu is not None}):
        masks = set(
            GpuDevice.objects.filter(product=product_id, placeable=True).values_list("free", flat=True).distinct()
        )
        product = gpu_catalogue.product(product_id)
        asked = max(gpu_catalogue.profile(product, u.gpu.profile).size for u in spec.units if u.gpu is not None)
        fitting = [
            part
            for part in (product.whole, *product.placeable)
            if part.size <= asked and geometry.fits_anywhere(product_id, part.name, masks) and not part.media
        ]
        answer += [
            {"product": product_id, "profile": part.name, "slices": part.size}
            for part in sorted(fitting, key=lambda p: -p.size)[:5]
        ]
    return answer[:5]


def find_object(kind: str, key: UUID) -> models.Model | None:
    """Return a reconciled row by kind word and id."""
    table: dict[str, type[models.Model]] = {
        "allocation": Allocation,
        "boundary": Boundary,
        ProductKind.ENDPOINT: Endpoint,
        ProductKind.MACHINE: Machine,
        ProductKind.NAMESPACE: Namespace,
    }
    model = table.get(kind)
    return model._base_manager.filter(pk=key).first() if model is not None else None
