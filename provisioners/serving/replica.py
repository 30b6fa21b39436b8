"""What a replica of a revision comes down to: one value for the driver that wants it and the guest that runs it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from provisioners.driver import ServingSpec


def want_of(serving: ServingSpec, unit: UUID) -> dict[str, Any]:
    """Return what one replica runs, in JSON types and without secrets: those change with the revision only."""
    return {
        "unit": str(unit),
        "revision_uid": str(serving.revision_uid),
        "revision": serving.revision,
        "model": serving.model,
        "source": serving.source,
        "commit": serving.commit,
        "runtime": serving.runtime,
        "argv": list(serving.argv),
        "environment": dict(sorted(serving.environment.items())),
        "secrets": sorted(serving.secrets),
    }
