"""Cells of the console's lists: one callable per column, with heading and order, moments in the person's zone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.utils.functional import Promise
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from frontend.design.moments import when
from frontend.design.numbers import UNKNOWN
from tenants.states import Role

LABELS: Final[Mapping[str, str | Promise]] = {
    "tenant__name": _("Tenant"), "provider__name": _("Provider"), "host__name": _("Host"), "parent__name": _("Parent"),
    "person__email": _("Person"), "request__short_id": _("Request"), "rule__name": _("Rule"),
    "device__index": _("GPU"), "short_id": _("Id"), "gpu_product": _("GPU"), "gpu_count": _("GPUs"),
    "empty_gpus": _("Empty"), "seen_at": _("Seen"), "snapshot_at": _("Read"), "created_at": _("Since"),
    "expires_at": _("Ends"), "decided_at": _("Decided"), "first_seen_at": _("First seen"),
    "resolved_at": _("Resolved"), "starts_at": _("Starts"), "ends_at": _("Ends"), "held_from": _("From"),
    "held_to": _("To"), "valid_from": _("From"), "disabled_at": _("Off since"), "left_at": _("Left"),
    "product_kind": _("For"), "service_class": _("Class"), "display_name": _("Shown as"), "is_active": _("May log in"),
    "object_kind": _("Object"), "object_id": _("Object's id"), "at": _("When"), "kind": _("Kind"), "who": _("Who"),
}  # fmt: skip
"""Column → its heading, where its name does not say it."""


@lru_cache(maxsize=1024)
def cell(model: type[models.Model], path: str) -> Callable[[Any], Any]:
    """Return the cell of a column: `path` is a column, or `tenant__name` for one of another table."""

    def show(row: Any) -> Any:
        value = _value(row, path)
        return shown(row.actor.partition(":")[0] if path == "who" and not value else value, path)

    field = _field(model, path)
    show.__name__ = path
    show.short_description = LABELS.get(path) or capfirst(str(getattr(field, "verbose_name", path)))  # type: ignore[attr-defined]
    if field is not None:
        show.admin_order_field = path  # type: ignore[attr-defined]
    if isinstance(field, models.BooleanField):
        show.boolean = True  # type: ignore[attr-defined]
    return show


def shown(value: Any, path: str) -> Any:
    """Return a value as a list shows it; what is not known is `--`."""
    if isinstance(value, bool):
        return value
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, datetime):
        return when(value)
    if path == "object_id":
        return f"{str(value)[:8]}…"
    if path == "role" and isinstance(value, int):
        return Role(value).word
    if hasattr(value, "lower") and hasattr(value, "upper") and not isinstance(value, str):  # a range
        return f"{_end(value.lower)} – {_end(value.upper)}"
    return str(value)


def _end(value: Any) -> str:
    return "…" if value is None else (value.strftime("%Y-%m-%d %H:%M") if isinstance(value, datetime) else str(value))


def _value(row: Any, path: str) -> Any:
    for name in path.split("__"):
        if row is None:
            return None
        row = getattr(row, name)
    return row


def _field(model: type[models.Model], path: str) -> Any:
    field: Any = None
    for name in path.split("__"):
        try:
            field = model._meta.get_field(name)
        except FieldDoesNotExist:
            return None
        model = field.related_model or model
    return field
