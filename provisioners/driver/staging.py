"""Files of served models at a provider: what is brought there, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A served model's files at its commit."""

    uid: UUID
    """Of the served model."""
    source: str
    """Repository id."""
    commit: str
    mirror: str = ""
    """Where they are instead of the hub, as in `ServingSpec`."""
    bytes_expected: int | None = None
    """What the weights weigh, as far as it is known."""


class StageProgress(StrEnum):
    """How far files are."""

    ABSENT = "absent"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class StagedModel:
    """What a provider has of a model's files."""

    progress: StageProgress
    bytes_done: int
    bytes_total: int | None
    """None while the provider does not say."""
    message: str = ""
