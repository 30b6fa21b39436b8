"""Following files of models on their way to providers, beside the dispatcher, in a thread of its own.

A driver begins and says how far it is in one call that can be repeated, so two processes that follow the same stage do
no harm, and one that died leaves nothing to mend. A provider that is away is asked again; what it refuses has failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.db.models import F
from django.utils import timezone

from provisioners import connections, lookout
from provisioners.driver import (
    Driver,
    DriverError,
    ModelFiles,
    StagedModel,
    StageProgress,
    StagesModels,
    TransientDriverError,
)
from tenants import served_facts
from tenants.actor import SYSTEM
from tenants.errors import DependencyDown
from tenants.models import ModelStage, Provider
from tenants.operations import model_stages
from tenants.states import STAGE_FINAL, StageState
from tenants.transactions import acting

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
AT_ONCE: Final = 20
NOT_HERE: Final = "this provider cannot hold files of models"


def follow(clock: Callable[[], datetime], *, driver_of: Callable[[Provider], Driver] = connections.driver_of) -> int:
    """Look at every stage that has not ended, the longest unseen first; return how many were looked at."""
    with acting(SYSTEM):
        open_ = model_stages.rows().exclude(state__in=sorted(STAGE_FINAL)).filter(provider__enabled=True)
        waiting = list(open_.order_by(F("looked_at").asc(nulls_first=True), "asked_at", "pk")[:AT_ONCE])
    for row in waiting:
        try:
            state, found, message = _looked(row, driver_of)
        except DependencyDown:
            raise
        except Exception:  # one stage's trouble is not the others'
            log.exception("files of a model could not be followed")
            continue
        model_stages.seen(
            stage=row,
            state=state,
            bytes_done=row.bytes_done if found is None else found.bytes_done,
            bytes_total=None if found is None else found.bytes_total,
            message=message,
            actor=SYSTEM,
            now=clock(),
        )
    return len(waiting)


def _looked(row: ModelStage, driver_of: Callable[[Provider], Driver]) -> tuple[StageState, StagedModel | None, str]:
    """Return (state, what the provider has, in words what is to be known)."""
    try:
        driver = driver_of(row.provider)
        if not isinstance(driver, StagesModels):
            return StageState.FAILED, None, NOT_HERE
        files = _files(row)
        found = driver.drop_model(files) if row.removing else driver.stage_model(files)
    except TransientDriverError as error:
        return StageState(row.state), None, f"It is asked again: {error.detail}."
    except DriverError as error:
        return StageState.FAILED, None, error.detail
    if row.removing:
        return (StageState.REMOVED if found.progress is StageProgress.ABSENT else StageState.RUNNING), found, ""
    done = found.progress is StageProgress.DONE
    return (StageState.DONE if done else StageState.RUNNING), found, found.message


def _files(row: ModelStage) -> ModelFiles:
    model = row.model
    facts = served_facts.of(model)
    expected = None if facts is None else facts.weights.get(served_facts.quantisation_of(model))
    mirror = "" if model.source == "hub" else model.source
    return ModelFiles(model.pk, model.repository, model.commit, mirror, expected)


def beside(stop: threading.Event, *, clock: Callable[[], datetime] = timezone.now) -> threading.Thread:
    """Start the thread that follows stages until `stop` is set; whatever goes wrong is logged and tried again."""
    return lookout.start(
        "staging-models", lambda: follow(clock), stop, pause_s=PAUSE_S, waits="no files of models are followed"
    )
