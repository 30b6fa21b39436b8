"""What a lab can fail with: one error with a cause and the line that mends it."""

from __future__ import annotations

from controlplane.embedded.errors import EmbeddedError


class LabError(EmbeddedError):
    """A lab cannot be built, started or asked; `mend` is one line a person can act on."""


class NotBuilt(LabError):
    """The programs are not in the cache and cannot be built here: Go is missing or too old."""
