"""The machine pass: one GPU VM with SSH."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.conf import settings

from provisioners.driver import Observed, Spec, UnitSpec
from provisioners.passes import Prepared, Wait
from provisioners.product import ProductKind
from provisioners.specs_from_rows import machine_spec
from tenants.models import Boundary, Machine, Unit
from tenants.states import SuspensionDepth


class MachineKind(ProductKind):
    """Machines."""

    word = "machine"
    model = Machine

    def spec(
        self,
        row: Machine,
        boundary: Boundary,
        rows: Sequence[Unit],
        units: tuple[UnitSpec, ...],
        depth: SuspensionDepth | None,
        *,
        now: datetime,
    ) -> Spec | Wait:
        """Return the spec of the VM on its one unit."""
        del rows, now
        return machine_spec(row, boundary, unit=units[0], depth=depth, url=settings.TENANTRY_PUBLIC_URL)

    def fields(self) -> list[str]:
        """Return the machine's own columns."""
        return ["address"]

    def looked(self, row: Machine, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Keep where SSH answers."""
        super().looked(row, observed, prepared, now=now)
        row.address = observed.address


PASS = MachineKind()
