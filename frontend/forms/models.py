"""A model as a form gives it: the same fields for operators, who offer one, and tenants, who ask for their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from tenants import models_catalogue
from tenants.errors import InvalidSpec
from tenants.models_catalogue import Quantisation
from tenants.operations.served_models import ModelAsk
from tenants.states import ModelTask

FORMS: Final[Mapping[str, str | Promise]] = {
    Quantisation.NATIVE.value: gettext_lazy("As published"),
    Quantisation.EIGHT_BIT.value: gettext_lazy("8 bit"),
    Quantisation.FOUR_BIT.value: gettext_lazy("4 bit"),
}
TASKS: Final[Mapping[str, str | Promise]] = {
    "": gettext_lazy("What it is usually for"),
    ModelTask.GENERATE.value: gettext_lazy("Writes (chat, completions)"),
    ModelTask.EMBED.value: gettext_lazy("Embeds (vectors of texts)"),
}
_FILE: Final = re.compile(r"(\d{1,16})\s+(\S.{0,199})")


def read(given: Mapping[str, str]) -> ModelAsk:
    """Return what a form asks for. Raises `InvalidSpec` at a field that cannot be read."""
    task = given.get("task", "")
    return ModelAsk(
        name=given.get("name", "").strip(),
        repository=given.get("repository", "").strip(),
        commit=given.get("commit", "").strip().lower(),
        licence=given.get("licence", "").strip(),
        gating=given.get("gating", "").strip(),
        source=given.get("source", "").strip() or "hub",
        quantisation=given.get("quantisation", Quantisation.NATIVE.value),
        task=ModelTask(task) if task in {one.value for one in ModelTask} else None,
        config=_config(given.get("config", "")),
        files=_files(given.get("files", "")),
    )


def as_payload(ask: ModelAsk) -> dict[str, Any]:
    """Return it as the payload of a request."""
    payload: dict[str, Any] = {
        "name": ask.name, "repository": ask.repository, "commit": ask.commit, "licence": ask.licence,
        "gating": ask.gating, "source": ask.source, "quantisation": ask.quantisation, "config": ask.config,
        "files": ask.files, "task": None if ask.task is None else ask.task.value,
    }  # fmt: skip
    return {key: value for key, value in payload.items() if value is not None}


def fields(given: Mapping[str, str], errors: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template of the fields shows; faults inside the configuration stand at its field."""
    shown: dict[str, str] = {}
    for name, sentence in errors.items():
        bare = name.removeprefix("payload.")
        shown.setdefault(bare.partition(".")[0], sentence)
    return {
        "given": given,
        "errors": shown,
        "forms": [{"value": key, "label": str(text)} for key, text in FORMS.items()],
        "tasks": [{"value": key, "label": str(text)} for key, text in TASKS.items()],
        "known": [model.id for model in models_catalogue.models()],
        "list_attribute": SafeString('list="known-models"'),
    }


def _config(text: str) -> Mapping[str, Any] | None:
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidSpec(_("This is no JSON. Paste the whole file."), field="config") from error
    if not isinstance(found, dict):
        raise InvalidSpec(_("A config.json is one object: {…}."), field="config")
    return found


def _files(text: str) -> Mapping[str, int] | None:
    if not text.strip():
        return None
    found = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        match = _FILE.fullmatch(line.strip())
        if match is None:
            raise InvalidSpec(_("One file a line: its bytes, then its path."), field="files")
        found[match[2].removeprefix("./")] = int(match[1])
    return found
