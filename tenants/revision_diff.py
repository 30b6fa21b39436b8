"""What is different between two revisions of an endpoint, field by field. Pure, given loaded rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tenants.models import Revision


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not the same in both."""

    field: str
    """`model`, `repository`, `commit`, `quantisation`, `runtime`, or an engine argument as `arguments.<name>`."""
    before: Any
    """None where it was not set."""
    after: Any


def between(before: Revision, after: Revision) -> tuple[Difference, ...]:
    """Return what changes from one revision to another; their models must be loaded. Empty: they serve the same."""
    was, becomes = _facts(before), _facts(after)
    return tuple(
        Difference(name, was.get(name), becomes.get(name))
        for name in {**was, **becomes}
        if was.get(name) != becomes.get(name)
    )


def _facts(row: Revision) -> dict[str, Any]:
    model = row.model
    return {
        "model": model.name,
        "repository": model.repository,
        "commit": model.commit,
        "quantisation": model.quantisation,
        "runtime": row.runtime,
        **{f"arguments.{name}": value for name, value in sorted(row.arguments.items())},
    }
