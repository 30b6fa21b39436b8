"""What the lab can fail with: the same as every lab."""

from __future__ import annotations

from controlplane.labs.errors import LabError, NotBuilt

__all__ = ["LabError", "NotBuilt"]
