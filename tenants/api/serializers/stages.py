"""Files of served models at providers, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import StringConstraints

from tenants.api.serializers.base import In, Out, PageQuery
from tenants.models import ModelStage
from tenants.states import StageState


class ModelStageOut(Out):
    """Files of a served model at one provider, or on their way there."""

    id: str
    provider: str
    model: str
    state: StageState
    removing: bool
    bytes_done: int
    bytes_total: int | None
    message: str
    asked_at: datetime
    looked_at: datetime | None
    ended_at: datetime | None
    version: int

    @classmethod
    def of(cls, row: ModelStage) -> ModelStageOut:
        """Return a stage; provider and model must be loaded."""
        return cls(
            id=str(row.pk),
            provider=row.provider.name,
            model=row.model.name,
            state=StageState(row.state),
            removing=row.removing,
            bytes_done=row.bytes_done,
            bytes_total=row.bytes_total,
            message=row.message,
            asked_at=row.asked_at,
            looked_at=row.looked_at,
            ended_at=row.ended_at,
            version=row.version,
        )


class ModelStageIn(In):
    """Which model's files, and where."""

    model: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,58}[a-z0-9])?$", max_length=60)]
    provider: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]


class ModelStageQuery(PageQuery):
    """Filters of stages."""

    model: str | None = None
    """Name of a served model."""
    provider: str | None = None
    """Name of a provider."""
