"""The namespace pass: hand a namespace boundary to the tenant's people, and take it back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from provisioners import lease
from provisioners.boundary import people_of
from provisioners.driver import Spec, UnitSpec
from provisioners.passes import Prepared, Wait
from provisioners.product import ProductKind
from provisioners.specs_from_rows import namespace_spec
from tenants.models import Boundary, Namespace, Unit
from tenants.states import SuspensionDepth


class NamespaceKind(ProductKind):
    """Namespaces."""

    word = "namespace"
    model = Namespace

    def spec(
        self,
        row: Namespace,
        boundary: Boundary,
        rows: Sequence[Unit],
        units: tuple[UnitSpec, ...],
        depth: SuspensionDepth | None,
        *,
        now: datetime,
    ) -> Spec | Wait:
        """Return the accounts of the tenant's people."""
        del rows, now
        return namespace_spec(row, boundary, units=units, access=people_of(boundary), depth=depth)

    def gone(self, row: Any, prepared: Prepared, *, now: datetime) -> None:
        """Let the boundary narrow, or go."""
        super().gone(row, prepared, now=now)
        if row.boundary is not None and row.boundary.released_at is None:
            lease.nudge(row.boundary, at=now)


PASS = NamespaceKind()
