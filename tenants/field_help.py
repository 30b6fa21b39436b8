"""Help of every input field: a sentence that says what it is for, and an example. Pure data.

Shown under the fields of the portal, in the help, and by the OpenAPI document. A field is known by its name; where
the same name means two things, by its shape and name (`DeliveryQuery.state`). `tests/portal/test_texts.py` fails for
an input field of the API or of a form of the portal that is missing here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tenants.field_texts import PLAIN, SHAPED


@dataclass(frozen=True, slots=True)
class FieldHelp:
    """What a field is for."""

    sentence: str
    """English; interfaces translate it."""
    example: Any
    """As JSON has it."""

    @property
    def example_text(self) -> str:
        """Return the example as people type it."""
        return self.example if isinstance(self.example, str) else json.dumps(self.example)


FIELDS: Final[Mapping[str, FieldHelp]] = MappingProxyType(
    {name: FieldHelp(*entry) for name, entry in {**PLAIN, **SHAPED}.items()}
)
"""`field` or `Shape.field` → help."""


def help_of(field: str, shape: str = "") -> FieldHelp | None:
    """Return the help of a field, of that shape where it has its own; None for one that is unknown.

    Only the part before a colon counts: `limits:vcpu` is a row of `limits`.
    """
    name = field.partition(":")[0]
    return FIELDS.get(f"{shape}.{name}") or FIELDS.get(name)
