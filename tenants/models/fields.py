"""Pieces shared by the models: names, choices, checks, short ids."""

from __future__ import annotations

import re
import uuid
from enum import Enum, StrEnum
from typing import Any, Final

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Func, Q, Value

SLUG_PATTERN: Final = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
"""A DNS label of at most 40 characters that starts with a letter (RFC 1035)."""

slug_validator = RegexValidator(re.compile(SLUG_PATTERN), "Use a DNS label: a-z, 0-9, '-', at most 40 characters.")


class SlugField(models.CharField):  # type: ignore[type-arg]
    """A DNS label, checked here and by the database (`slug_check`)."""

    def __init__(self, **kwargs: Any) -> None:
        """Set the length and the validator."""
        kwargs.setdefault("max_length", 40)
        super().__init__(**kwargs)
        self.validators.append(slug_validator)


def slug_check(name: str, column: str = "name") -> models.CheckConstraint:
    """Return the database's own check that a column is a DNS label."""
    return models.CheckConstraint(condition=Q(**{f"{column}__regex": SLUG_PATTERN}), name=name)


def choice_check(name: str, column: str, enum: type[StrEnum]) -> models.CheckConstraint:
    """Return a check that a column holds a word of `enum`."""
    return models.CheckConstraint(condition=Q(**{f"{column}__in": [str(m.value) for m in enum]}), name=name)


class WordField(models.CharField):  # type: ignore[type-arg]
    """A short word of an enum; the check constraint stands beside it."""

    def __init__(self, **kwargs: Any) -> None:
        """Set the length; turn an enum default into its plain word."""
        kwargs.setdefault("max_length", 32)
        default = kwargs.get("default")
        if isinstance(default, Enum):
            kwargs["default"] = str(default.value)
        super().__init__(**kwargs)


def primary_key() -> models.UUIDField:  # type: ignore[type-arg]
    """Return a UUID primary key made in Python, so that names derive from it before the insert."""
    return models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)


def short_id(prefix: str) -> models.CharField:  # type: ignore[type-arg]
    """Return a unique short id such as `ep-7k2m`, made by the database."""
    return models.CharField(
        max_length=16,
        unique=True,
        editable=False,
        db_default=Func(Value(prefix), function="app_short_id", output_field=models.CharField()),
    )
