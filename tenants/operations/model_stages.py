"""Files of served models brought to a provider before an endpoint asks for them: asked, followed, taken away.

Operators ask; workers follow and write how far it is (`provisioners.staging_models`). A provider has the files of a
model once. What failed stays to be read, and is asked for anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Endpoint, ModelStage, Provider, ServedModel
from tenants.models.serving import LIVE
from tenants.operations.guards import allow, locked
from tenants.states import STAGE_FINAL, StageState
from tenants.transactions import operation

FEATURE: Final = "model-staging"
"""The capability of providers that can."""
MOST_MESSAGE: Final = 500
_BY: Final[Mapping[str, str]] = {
    "hub": "its model servers load models of the hub by themselves. Give the model a mirror on NFS that they share "
    "(source nfs://server/export) to have its files there beforehand.",
    "s3": "its model servers stream from the bucket by themselves, so who fills the bucket puts them there.",
    "nfs": "its model servers mount no mirror on NFS.",
}
"""Where files of a source come from, where nothing can be brought there beforehand: providers say so by
`model-staging:<source>` among their features."""


def rows() -> QuerySet[ModelStage]:
    """Return every stage with its provider and model."""
    return ModelStage.objects.select_related("provider", "model")


def live_of(provider: Provider, model: ServedModel) -> ModelStage | None:
    """Return what a provider has of a model's files, or what is on its way."""
    return rows().filter(provider=provider, model=model, state__in=LIVE).first()


def refusal(provider: Provider, model: ServedModel) -> str:
    """Return why a model's files cannot be brought to a provider, `""` where they can."""
    features = provider.capabilities.get("features", {})
    source = model.source.partition(":")[0]
    if features.get(f"{FEATURE}:{source}") is False:
        return f"{provider.name} has no place for the files of {model.name}: {_BY[source]}"
    if not features.get(FEATURE):
        why = provider.capabilities.get("missing", {}).get(FEATURE, "it has no place that its model servers share")
        return f"{provider.name} cannot hold files of models: {why.rstrip('.')}."
    return ""


@operation
def stage(*, provider: Provider, model: ServedModel, actor: Actor, now: datetime) -> ModelStage:
    """Ask for a model's files at a provider. Raises `Conflict`: `staged-already`, `not-supported`, `model-retired`."""
    allow(actor, None, "model-stages.create")
    if not model.enabled:
        raise Conflict(f"{model.name} is retired: nobody can deploy it.", code="model-retired")
    if why := refusal(provider, model):
        raise Conflict(why, code="not-supported")
    row = ModelStage(provider=provider, model=model, asked_at=now)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        msg = f"{provider.name} has the files of {model.name}, or they are on their way."
        raise Conflict(msg, code="staged-already") from error
    desired.created(row, "model-stage.asked", actor=actor, at=now, model=model.name, provider=provider.name)
    return row


@operation
def remove(*, stage: ModelStage, actor: Actor, now: datetime, version: int | None = None) -> ModelStage:
    """Have a model's files taken away from a provider; what serves from copies of them goes on.

    Safe to repeat. Raises `Conflict` while the provider has them anew (`staged-already`), and while endpoints start
    from the mirror that they were brought into (`in-use`).
    """
    allow(actor, None, "model-stages.remove")
    row = locked(stage, version)
    if row.state == StageState.REMOVED.value or row.removing:
        return row
    if row.state == StageState.DONE.value:
        _check_unused(row.model)
    row.removing, row.state, row.ended_at, row.message = True, StageState.RUNNING.value, None, ""
    try:
        with transaction.atomic():
            row.save(update_fields=["removing", "state", "ended_at", "message"])
    except IntegrityError as error:
        msg = f"{row.provider.name} has the files of {row.model.name} by a later stage: take that one away."
        raise Conflict(msg, code="staged-already") from error
    desired.changed(
        row, "model-stage.removal-asked", actor=actor, at=now, model=row.model.name, provider=row.provider.name
    )
    return row


def _check_unused(model: ServedModel) -> None:
    """Raise `Conflict` (`in-use`) while endpoints anywhere load the same files of the same mirror when they start."""
    if model.source == "hub":
        return
    same = {f"revision__model__{name}": getattr(model, name) for name in ("source", "repository", "commit")}
    serving = Endpoint.objects.filter(released_at__isnull=True, **same).count()
    if serving:
        msg = f"{serving} of the endpoints start from these files in {model.source}: delete or change them first."
        raise Conflict(msg, code="in-use", endpoints=serving)


@operation
def seen(
    *,
    stage: ModelStage,
    state: StageState,
    actor: Actor,
    now: datetime,
    bytes_done: int = 0,
    bytes_total: int | None = None,
    message: str = "",
) -> bool:
    """Write how far a worker saw it; return whether that counts. An end is an event.

    Whoever asked for something else meanwhile (its removal) has moved its version on: then this is stale.
    """
    allow(actor, None, "model-stages.create")
    row = ModelStage.objects.select_for_update(no_key=True).filter(pk=stage.pk, version=stage.version).first()
    if row is None or row.state in STAGE_FINAL:
        return False
    ended = state in STAGE_FINAL
    row.state, row.looked_at, row.ended_at = state.value, now, now if ended else None
    row.bytes_total = bytes_total if bytes_total is not None else row.bytes_total
    row.bytes_done = bytes_done if row.bytes_total is None else min(bytes_done, row.bytes_total)
    row.message = message[:MOST_MESSAGE]
    row.save(update_fields=["state", "looked_at", "ended_at", "bytes_total", "bytes_done", "message"])
    if ended:
        desired.happened(
            row, f"model-stage.{state.value}", actor=actor, at=now, model=stage.model.name,
            provider=stage.provider.name, bytes=row.bytes_done,
        )  # fmt: skip
    return True
