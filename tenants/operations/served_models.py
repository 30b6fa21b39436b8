"""The catalogue of served models: a repository pinned to one commit, switched on and off by an operator.

A model that the catalogue of figures does not know is checked by its own `config.json` before it is offered
(`tenants.model_configs`), without anything being fetched. A tenant's own model comes from an approved request of kind
`model`, by the same check; it is that tenant's and of those below it, and its name begins with the tenant's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from django.db import IntegrityError, transaction

from tenants import desired, model_configs, models_catalogue
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.model_configs import Checked, ConfigRefused
from tenants.models import ServedModel, Tenant
from tenants.models.fields import SLUG_PATTERN
from tenants.models.product import MODEL_SOURCE
from tenants.operations.guards import allow, clean_text, locked
from tenants.states import ModelTask
from tenants.transactions import operation

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
QUANTISATIONS: Final = tuple(form.value for form in models_catalogue.Quantisation)
_SLUG: Final = re.compile(SLUG_PATTERN)
_OWN_NAME: Final = re.compile(r"^[a-z]([a-z0-9-]{0,58}[a-z0-9])?$")
_SOURCE: Final = re.compile(MODEL_SOURCE)


@dataclass(frozen=True, slots=True)
class ModelAsk:
    """A model as it is to be offered."""

    name: str
    repository: str
    commit: str
    licence: str = ""
    gating: str = ""
    """What its publisher asks for before the weights may be loaded; taken from the catalogue where it knows."""
    source: str = "hub"
    """`hub`, `s3://bucket/prefix`, `nfs://server/export`: in a mirror it lies at `<repository>/<commit>`."""
    quantisation: str = "native"
    task: ModelTask | None = None
    """None: what it is usually for."""
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    """Its `config.json`; needed where the catalogue does not know the repository."""
    files: Mapping[str, int] | None = field(default=None, repr=False)
    """Path → bytes of what lies at the commit, where that is known."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model that was checked: the columns of its row, and what people should know of it."""

    values: Mapping[str, Any]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what a request keeps of it."""
        return {**self.values, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, payload: Mapping[str, Any]) -> Pinned:
        """Return what a request kept."""
        return cls({key: value for key, value in payload.items() if key != "notes"}, tuple(payload["notes"]))


def pinned(ask: ModelAsk) -> Pinned:
    """Return a model as it would be offered, checked but for its name; nothing is written or fetched.

    Raises `InvalidSpec`.
    """
    if not REPOSITORY.fullmatch(ask.repository) or ".." in ask.repository:
        raise InvalidSpec("Give owner/name of a repository.", field="repository")
    if not _SOURCE.fullmatch(ask.source) or ".." in ask.source or len(ask.source) > 200:
        msg = "Say `hub`, `s3://bucket/prefix` or `nfs://server/export`."
        raise InvalidSpec(msg, field="source")
    if ask.quantisation not in QUANTISATIONS:
        raise InvalidSpec(f"Weights come as {', '.join(QUANTISATIONS)}.", field="quantisation")
    commit = _commit(ask.commit)
    known = _known(ask.repository)
    checked = _checked(ask, known)
    gating = clean_text(ask.gating, "gating", most=120) or (known.gated[:120] if known is not None else "")
    values = {
        "name": ask.name,
        "repository": ask.repository,
        "commit": commit,
        "licence": clean_text(ask.licence, "licence", most=80),
        "gating": gating,
        "source": ask.source,
        "quantisation": ask.quantisation,
        "task": (checked.task if checked is not None else ask.task or ModelTask.GENERATE).value,
        "geometry": dict(checked.geometry) if checked is not None else {},
        "config_digest": checked.digest if checked is not None else "",
    }
    return Pinned(values, checked.notes if checked is not None else ())


@operation
def create(*, ask: ModelAsk, actor: Actor, now: datetime) -> ServedModel:
    """Offer a model, pinned: what serves it is this commit and nothing later. Raises `InvalidSpec`, `Conflict`."""
    allow(actor, None, "served-models.create")
    if not _SLUG.fullmatch(ask.name):
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field="name")
    return offer(pinned(ask), tenant=None, actor=actor, now=now)


def offer(found: Pinned, *, tenant: Tenant | None, actor: Actor, now: datetime) -> ServedModel:
    """Make the row of a checked model, in the caller's operation. Raises `Conflict`."""
    row = ServedModel(tenant=tenant, created_at=now, **found.values)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        msg = f"A served model {row.name} exists already."
        raise Conflict(msg, code="name-taken", name=row.name) from error
    desired.created(
        row, "served-model.created", actor=actor, at=now, name=row.name, repository=row.repository, commit=row.commit,
        source=row.source, config=row.config_digest,
    )  # fmt: skip
    return row


@operation
def update(
    *, model: ServedModel, actor: Actor, now: datetime, version: int | None = None, enabled: bool | None = None,
    licence: str | None = None, gating: str | None = None,
) -> ServedModel:  # fmt: skip
    """Switch a model on or off, or correct its licence or gating. What runs goes on; a new commit is a new model.

    Repository, commit and source never change: revisions point here and are immutable.
    """
    allow(actor, None, "served-models.update")
    row = locked(model, version)
    fields = []
    if enabled is not None:
        row.enabled = enabled
        fields.append("enabled")
    if licence is not None:
        row.licence = clean_text(licence, "licence", most=80)
        fields.append("licence")
    if gating is not None:
        row.gating = clean_text(gating, "gating", most=120)
        fields.append("gating")
    row.save(update_fields=fields)
    desired.changed(row, "served-model.changed", actor=actor, at=now, enabled=row.enabled, fields=fields)
    return row


def check_own_name(name: str, tenant: Tenant, *, field: str = "name") -> None:
    """Raise `InvalidSpec` unless a tenant's own model may be called so.

    Names are one for all, and nobody is to learn by trying which names others have.
    """
    if not _OWN_NAME.fullmatch(name) or not name.startswith(f"{tenant.name}-"):
        msg = f"Begin the name with {tenant.name}- and use a-z, 0-9 and '-', at most 60 characters."
        raise InvalidSpec(msg, field=field)


def _known(repository: str) -> models_catalogue.ServedModelData | None:
    try:
        return models_catalogue.model(repository)
    except models_catalogue.UnknownModel:
        return None


def _checked(ask: ModelAsk, known: models_catalogue.ServedModelData | None) -> Checked | None:
    """Check a configuration; where the catalogue knows the repository none is needed. Raises `InvalidSpec`."""
    if ask.config is None:
        if known is not None:
            return None
        msg = "The catalogue has no figures of this repository: give its config.json, which is checked as it stands."
        raise InvalidSpec(msg, field="config", code="config-needed")
    try:
        return model_configs.check(ask.config, repository=ask.repository, files=ask.files, task=ask.task)
    except ConfigRefused as refused:
        raise InvalidSpec(str(refused), field=refused.field, code="model-refused") from refused


def _commit(text: str) -> str:
    if not COMMIT.fullmatch(text):
        msg = "Pin a full commit: 40 to 64 hexadecimal digits, no branch and no tag."
        raise InvalidSpec(msg, field="commit", code="not-pinned")
    return text
