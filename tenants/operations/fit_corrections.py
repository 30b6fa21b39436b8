"""Learning from starts of model servers, and forgetting what was learnt: measurements, and an operator's reset.

`learn` is a part of the pass that saw the report; it runs in that pass's transaction and makes no event: nothing
happened to anybody. Which factors follow is `tenants.fit_corrections`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_OID, UUID, uuid5

from django.db.models import F, Prefetch, Q, QuerySet

from tenants import desired, fit_checks, fit_corrections, served_facts
from tenants.actor import Actor
from tenants.fit_corrections import Correction, Corrections, Measured, SizeKey
from tenants.models import FitCorrection, FitMeasurement, Revision, ServedModel, Unit
from tenants.operations.guards import allow, locked
from tenants.transactions import operation

MOST_KEPT: Final = 20
"""Measurements of one size; older ones go."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One correction as it stands: its row, the starts that count now, and what follows from them."""

    row: FitCorrection
    measurements: tuple[FitMeasurement, ...]
    """The latest first; those that count."""
    correction: Correction | None


def learn(revision: Revision, unit: Unit, engine: Mapping[str, Any], *, now: datetime) -> bool:
    """Keep what a start reported (`EngineReport` as JSON) beside its estimate; return whether it was new and teaches.

    In the caller's transaction. The same start, told again, counts once.
    """
    model = revision.model
    gpus = 1 if unit.profile else max(unit.gpu_count, 1)
    found = fit_checks.measured(
        engine,
        model=served_facts.of(model),
        arguments=revision.arguments,
        gpu=unit.product,
        mig_profile=unit.profile,
        gpus=gpus,
        quantisation=served_facts.quantisation_of(model),
    )
    if not found.teaches or not unit.product:
        return False
    row, _ = FitCorrection.objects.get_or_create(
        model=model, product=unit.product, profile=unit.profile, gpus=gpus, defaults={"created_at": now}
    )
    program = str(engine.get("program", ""))[:80]
    _, is_new = FitMeasurement.objects.get_or_create(
        correction=row,
        start=_start(unit.pk, revision.pk, program),
        defaults={
            "program": program,
            "at": now,
            "token_estimated": found.token_estimated,
            "token_reported": found.token_reported,
            "fixed_estimated": found.fixed_estimated,
            "fixed_reported": found.fixed_reported,
        },
    )
    if is_new:
        kept = FitMeasurement.objects.filter(correction=row).order_by("-at", "-pk").values("pk")[:MOST_KEPT]
        FitMeasurement.objects.filter(correction=row).exclude(pk__in=list(kept.values_list("pk", flat=True))).delete()
    return is_new


@operation
def reset(*, correction: FitCorrection, actor: Actor, now: datetime, version: int | None = None) -> FitCorrection:
    """Forget what starts up to now have taught about one size: estimates are as computed until the next start."""
    allow(actor, None, "fit-corrections.reset")
    row = locked(correction, version)
    row.reset_at = now
    row.save(update_fields=["reset_at"])
    desired.changed(
        row, "fit-correction.reset", actor=actor, at=now, model=row.model.name, product=row.product,
        profile=row.profile, gpus=row.gpus,
    )  # fmt: skip
    return row


def rows() -> QuerySet[FitCorrection]:
    """Return every correction with its model and with the measurements that count, the latest first."""
    counting = FitMeasurement.objects.filter(
        Q(correction__reset_at__isnull=True) | Q(at__gt=F("correction__reset_at"))
    ).order_by("-at", "-pk")
    return FitCorrection.objects.select_related("model").prefetch_related(
        Prefetch("measurements", counting, to_attr="counting")
    )


def standing(row: FitCorrection) -> Standing:
    """Return a row of `rows()` with what follows from it: starts of the program that was seen last."""
    counting: list[FitMeasurement] = row.counting  # type: ignore[attr-defined]  # of the prefetch
    same = tuple(one for one in counting if one.program == counting[0].program)
    return Standing(row, same, fit_corrections.correction([_measured(one) for one in same]))


def all_corrections() -> Mapping[UUID, Corrections]:
    """Return served model → size → correction; two statements, for a page that fits many models."""
    return _by_model(rows())


def corrections_of(model: ServedModel) -> Corrections:
    """Return size → correction of one model."""
    return _by_model(rows().filter(model=model)).get(model.pk, {})


def _by_model(found: Iterable[FitCorrection]) -> dict[UUID, dict[SizeKey, Correction]]:
    result: dict[UUID, dict[SizeKey, Correction]] = {}
    for row in found:
        made = standing(row).correction
        if made is not None:
            result.setdefault(row.model_id, {})[SizeKey(row.product, row.profile, row.gpus)] = made
    return result


def _measured(row: FitMeasurement) -> Measured:
    return Measured(row.token_estimated, row.token_reported, row.fixed_estimated, row.fixed_reported)


def _start(unit: UUID, revision: UUID, program: str) -> UUID:
    """Return what tells one start from another; it says nothing of whose it was to who has not both ids."""
    return uuid5(NAMESPACE_OID, f"{unit}/{revision}/{program}")
