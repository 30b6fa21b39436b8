"""Payloads of requests: read strictly from JSON, stored normalised, reduced by a decision. No database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tenants.errors import InvalidSpec
from tenants.models_catalogue import Quantisation
from tenants.operations import first_wishes
from tenants.operations.quotas import MOST, parsed
from tenants.operations.served_models import ModelAsk, pinned
from tenants.states import ROLE_BY_WORD, ModelTask, RequestKind

MOST_DIMENSIONS: Final = 50
MOST_OBJECT: Final = 4000
KEYS: Final[Mapping[str, frozenset[str]]] = {
    RequestKind.QUOTA.value: frozenset({"mode", "limits", "ancestors", "until"}),
    RequestKind.TENANT.value: frozenset({"name", "display_name", "description", "parent", "limits", "until", "wish"}),
    RequestKind.JOIN.value: frozenset({"role"}),
    RequestKind.WRITE_OFF.value: frozenset({"allocation"}),
    RequestKind.MODEL.value: frozenset(
        {
            "name",
            "repository",
            "commit",
            "licence",
            "gating",
            "source",
            "quantisation",
            "task",
            "config",
            "files",
        }
    ),
}


@dataclass(frozen=True, slots=True)
class QuotaAsk:
    """More quota: what to add (or set), for how long, and what is missing further up."""

    mode: str
    limits: Mapping[str, int]
    ancestors: Mapping[str, Mapping[str, int]]
    """Name of an ancestor → dimension → amount."""
    until: datetime | None

    @classmethod
    def read(cls, payload: Mapping[str, Any], *, now: datetime) -> QuotaAsk:
        """Raises `InvalidSpec` naming the field."""
        mode = payload.get("mode", "add")
        if mode not in {"add", "set"}:
            msg = "Say `add` (to what is there) or `set`."
            raise InvalidSpec(msg, field="payload.mode")
        above = payload.get("ancestors") or {}
        if not isinstance(above, Mapping) or len(above) > MOST_DIMENSIONS:
            msg = "Give limits by the name of an ancestor."
            raise InvalidSpec(msg, field="payload.ancestors")
        limits = read_limits(payload.get("limits") or {}, "payload.limits", least=0 if mode == "set" else 1)
        ancestors = {
            str(name): read_limits(amounts, f"payload.ancestors.{str(name)[:40]}", least=1)
            for name, amounts in above.items()
        }
        until = read_moment(payload.get("until"), "payload.until", now=now)
        if not limits and not any(ancestors.values()):
            msg = "Ask for at least one dimension."
            raise InvalidSpec(msg, field="payload.limits")
        if mode == "set" and (ancestors or until is not None):
            msg = "`set` is for a lasting limit of the tenant itself; use `add` otherwise."
            raise InvalidSpec(msg, field="payload.mode")
        return cls(mode, limits, ancestors, until)

    def as_json(self) -> dict[str, Any]:
        """Return the stored shape."""
        return {
            "mode": self.mode,
            "limits": dict(self.limits),
            "ancestors": {name: dict(amounts) for name, amounts in self.ancestors.items()},
            "until": self.until.isoformat() if self.until else None,
        }


def checked(kind: str, payload: Any, *, now: datetime) -> dict[str, Any]:
    """Return a payload as stored. Raises `InvalidSpec` naming the field, code `not-supported` for a later kind."""
    if kind not in KEYS:
        msg = f"Requests of kind {kind[:40]!r} are not offered yet."
        raise InvalidSpec(msg, field="kind", code="not-supported")
    if not isinstance(payload, Mapping):
        msg = "Give an object."
        raise InvalidSpec(msg, field="payload")
    unknown = sorted(str(key)[:40] for key in payload if key not in KEYS[kind])
    if unknown:
        msg = f"A request of kind {kind} has no field {unknown[0]!r}."
        raise InvalidSpec(msg, field=f"payload.{unknown[0]}", code="unknown-field")
    if kind == RequestKind.QUOTA.value:
        return QuotaAsk.read(payload, now=now).as_json()
    if kind == RequestKind.TENANT.value:
        until = read_moment(payload.get("until"), "payload.until", now=now)
        wish = read_object(payload.get("wish") or {}, "payload.wish")
        first = first_wishes.read(wish)
        limits = payload.get("limits") or (first_wishes.demand(first) if first is not None else {})
        return {
            "name": read_text(payload.get("name"), "payload.name", most=40),
            "display_name": read_text(payload.get("display_name", ""), "payload.display_name", most=120),
            "description": read_text(payload.get("description", ""), "payload.description", most=500),
            "parent": read_text(payload.get("parent") or "", "payload.parent", most=40),
            "limits": read_limits(limits, "payload.limits", least=1),
            "until": until.isoformat() if until else None,
            "wish": wish,
        }
    if kind == RequestKind.JOIN.value:
        return {"role": read_role(payload.get("role", "member"), "payload.role")}
    if kind == RequestKind.MODEL.value:
        return _model(payload)
    return {"allocation": read_text(payload.get("allocation"), "payload.allocation", most=40)}


def _model(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model as it would be offered, checked: its `config.json` itself is not kept, what it says is."""
    words = {
        key: read_text(payload.get(key) or usual, f"payload.{key}", most=200)
        for key, usual in {
            "name": "", "repository": "", "commit": "", "licence": "", "gating": "", "source": "hub",
            "quantisation": Quantisation.NATIVE.value,
        }.items()
    }  # fmt: skip
    task, files = payload.get("task"), payload.get("files")
    if task is not None and task not in {one.value for one in ModelTask}:
        raise InvalidSpec(f"A model does {', '.join(one.value for one in ModelTask)}.", field="payload.task")
    if files is not None and not (isinstance(files, Mapping) and all(isinstance(path, str) for path in files)):
        raise InvalidSpec("Give bytes by path.", field="payload.files")
    try:
        ask = ModelAsk(
            **words, task=None if task is None else ModelTask(task), config=payload.get("config"), files=files
        )
        return pinned(ask).as_json()
    except InvalidSpec as error:
        field = f"payload.{error.errors[0]['field']}" if error.errors else "payload"
        raise InvalidSpec(error.detail, field=field, code=error.specific_code) from error


def reduced(kind: str, payload: Mapping[str, Any], granted: Any, *, now: datetime) -> tuple[dict[str, Any], bool]:
    """Return what a decision grants of a payload, and whether that is less than was asked.

    `granted` names only what changes: `limits`, `ancestors`, `until`, `role`; None grants all. Raises
    `InvalidSpec` for more than was asked.
    """
    if granted is None or granted == {}:
        return dict(payload), False
    allowed = {"limits", "ancestors", "until"} if kind in {"quota", "tenant"} else {"role"} if kind == "join" else set()
    if not isinstance(granted, Mapping) or any(key not in allowed or key not in payload for key in granted):
        msg = f"Of a request of kind {kind} one can reduce: {', '.join(sorted(allowed & set(payload))) or 'nothing'}."
        raise InvalidSpec(msg, field="granted")
    result = dict(payload)
    if "limits" in granted:
        result["limits"] = _fewer(payload["limits"], granted["limits"], "granted.limits")
    if "ancestors" in granted:
        above = granted["ancestors"]
        if not isinstance(above, Mapping) or any(name not in payload["ancestors"] for name in above):
            raise InvalidSpec("Only ancestors that were asked for can be granted.", field="granted.ancestors")
        result["ancestors"] = {
            name: _fewer(payload["ancestors"][name], amounts, "granted.ancestors") for name, amounts in above.items()
        }
    if "until" in granted:
        until = read_moment(granted["until"], "granted.until", now=now)
        asked = read_moment(payload["until"], "until", now=None)
        if asked is not None and (until is None or until > asked):
            raise InvalidSpec("This is longer than was asked for.", field="granted.until", code="more-than-asked")
        result["until"] = until.isoformat() if until else None
    if "role" in granted:
        role = read_role(granted["role"], "granted.role")
        if ROLE_BY_WORD[role] > ROLE_BY_WORD[payload["role"]]:
            raise InvalidSpec("This is more than was asked for.", field="granted.role", code="more-than-asked")
        result["role"] = role
    if kind == RequestKind.QUOTA.value and not result["limits"] and not any(result["ancestors"].values()):
        raise InvalidSpec("Nothing is left of it: deny it instead.", field="granted", code="nothing-left")
    return result, result != dict(payload)


def _fewer(asked: Mapping[str, int], granted: Any, field: str) -> dict[str, int]:
    amounts = read_limits(granted, field, least=0)
    for dimension, amount in amounts.items():
        if amount > asked.get(dimension, 0):
            msg = f"{dimension}: {amount} is more than was asked for ({asked.get(dimension, 0)})."
            raise InvalidSpec(msg, field=f"{field}.{dimension}", code="more-than-asked")
    return {dimension: amount for dimension, amount in amounts.items() if amount}


def read_limits(value: Any, field: str, *, least: int) -> dict[str, int]:
    """Return dimension → whole amount. Raises `InvalidSpec`."""
    if not isinstance(value, Mapping) or len(value) > MOST_DIMENSIONS:
        msg = f"Give at most {MOST_DIMENSIONS} amounts by dimension."
        raise InvalidSpec(msg, field=field)
    for dimension, amount in value.items():
        parsed(str(dimension), field)
        if isinstance(amount, bool) or not isinstance(amount, int) or not least <= amount <= MOST:
            msg = f"{dimension}: give a whole number from {least} to {MOST}."
            raise InvalidSpec(msg, field=f"{field}.{dimension}", code="out-of-range")
    return {str(dimension): int(amount) for dimension, amount in sorted(value.items())}


def read_moment(value: Any, field: str, *, now: datetime | None) -> datetime | None:
    """Return an aware moment after `now`, None for none. Raises `InvalidSpec`."""
    if value is None or value == "":
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise InvalidSpec("Give a moment as RFC 3339 writes it.", field=field) from error
    if moment.tzinfo is None:
        raise InvalidSpec("Give a moment with its time zone.", field=field)
    if now is not None and moment <= now:
        raise InvalidSpec("This time is over already.", field=field)
    return moment


def read_object(value: Any, field: str) -> dict[str, Any]:
    """Return a small JSON object that PostgreSQL can store. Raises `InvalidSpec`."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidSpec("Give a plain JSON object.", field=field) from error
    if not isinstance(value, Mapping) or len(text) > MOST_OBJECT or b"\\u0000" in text:
        msg = f"Give an object of at most {MOST_OBJECT} characters, without control characters."
        raise InvalidSpec(msg, field=field)
    return dict(value)


def read_text(value: Any, field: str, *, most: int) -> str:
    """Return one line of plain text. Raises `InvalidSpec`."""
    if not isinstance(value, str) or len(value) > most or not (value.isprintable() or not value):
        msg = f"Give one line of at most {most} characters."
        raise InvalidSpec(msg, field=field)
    return value


def read_role(value: Any, field: str) -> str:
    """Return the word of a role. Raises `InvalidSpec`."""
    if not isinstance(value, str) or value not in ROLE_BY_WORD:
        msg = f"A role is one of {', '.join(ROLE_BY_WORD)}."
        raise InvalidSpec(msg, field=field)
    return value
