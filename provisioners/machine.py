"""The machine pass: one GPU VM with SSH."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from django.conf import settings

from provisioners import lease
from provisioners.driver import Observed, Power, Presence, Spec, UnitSpec
from provisioners.passes import Prepared, Wait
from provisioners.product import ProductKind
from provisioners.specs_from_rows import machine_spec
from tenants import unit_sizes
from tenants.models import Boundary, Intent, Machine, Unit
from tenants.states import SuspensionDepth

CLONE: Final = "vm.clone"
"""The step whose part has the disk."""
POWER: Final = "vm.power"


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
        del now
        former = unit_sizes.former([row.allocation_id]).get(rows[0].pk) if row.resizes else None
        made_with = former[0].size if former else None
        url = settings.TENANTRY_PUBLIC_URL
        return machine_spec(row, boundary, unit=units[0], depth=depth, url=url, made_with=made_with)

    def fields(self) -> list[str]:
        """Return the machine's own columns."""
        return ["address", "fitted", "kept"]

    def kept(self, row: Machine) -> Mapping[str, str]:
        """Return the disk that was last seen working: of an image alone it would come back empty."""
        if not row.kept:
            return {}
        # A removal of ours whose answer never came may arrive late, and take what was made after it.
        removals = Intent.objects.filter(object_kind=self.word, object_id=row.pk, step=CLONE, undo=True)
        return {} if removals.exclude(outcome="done").exists() else {CLONE: row.kept}

    def looked(self, row: Machine, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Keep where SSH answers, and which disk has worked."""
        super().looked(row, observed, prepared, now=now)
        row.address = observed.address
        power = observed.part(POWER)
        if observed.power is Power.ON and power.presence is Presence.PRESENT and power.ready:
            row.kept = observed.part(CLONE).have or row.kept

    def complete(self, row: Machine, prepared: Prepared, *, now: datetime) -> None:
        """Keep which size it has; what is smaller now needs less of its isolation, which is narrowed after it."""
        size = prepared.facts.size
        if row.fitted == size:
            return
        row.fitted = size
        if row.boundary is not None:
            lease.nudge(row.boundary, at=now)


PASS = MachineKind()
