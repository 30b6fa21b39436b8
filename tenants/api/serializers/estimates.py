"""What real starts have taught about the estimates of models on sizes, as JSON."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from tenants.api.serializers.base import Out, PageQuery
from tenants.operations.fit_corrections import Standing


class MeasurementOut(Out):
    """One start of a model server: bytes on each device as reported and as estimated, null where nothing compares."""

    at: datetime
    program: str
    token_estimated: int | None
    token_reported: int | None
    fixed_estimated: int | None
    fixed_reported: int | None


class FitCorrectionOut(Out):
    """What starts of a model on one size make of the next estimate: two factors, 1 where nothing was measured."""

    id: str
    model: str
    product: str
    profile: str
    gpus: int
    token_factor: Decimal
    fixed_factor: Decimal
    starts: int
    bounded: bool
    sentence: str
    reset_at: datetime | None
    measurements: list[MeasurementOut]
    version: int

    @classmethod
    def of(cls, found: Standing) -> FitCorrectionOut:
        """Return a correction as it stands."""
        row, made = found.row, found.correction
        return cls(
            id=str(row.pk),
            model=row.model.name,
            product=row.product,
            profile=row.profile,
            gpus=row.gpus,
            token_factor=Decimal(1) if made is None else made.token,
            fixed_factor=Decimal(1) if made is None else made.fixed,
            starts=0 if made is None else made.starts,
            bounded=made is not None and made.is_bounded,
            sentence="No start counts: estimates are as computed." if made is None else made.sentence,
            reset_at=row.reset_at,
            measurements=[
                MeasurementOut(
                    at=one.at,
                    program=one.program,
                    token_estimated=one.token_estimated,
                    token_reported=one.token_reported,
                    fixed_estimated=one.fixed_estimated,
                    fixed_reported=one.fixed_reported,
                )
                for one in found.measurements
            ],
            version=row.version,
        )


class FitCorrectionQuery(PageQuery):
    """Filters of corrections."""

    model: str | None = None
    """Name of a served model."""
