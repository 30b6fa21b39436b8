"""What model servers report at their start goes into the next estimate (`tenants.operations.fit_corrections`).

In the transaction of the pass that saw it, for reports that are new; the same start, seen again, counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from provisioners.driver import Observed
from tenants.models import Endpoint, Revision, Unit
from tenants.operations import fit_corrections


def engines(observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return unit → what its model server said of itself, of what an endpoint's row remembers."""
    return {str(unit["unit"]): unit["engine"] for unit in observed.get("units", ()) if unit.get("engine")}


def from_starts(row: Endpoint, new: Mapping[str, Any], observed: Observed, *, now: datetime) -> None:
    """Learn from `new` reports (unit → report), each beside the estimate for the revision that its unit runs."""
    numbers = {str(unit.uid): unit.revision or observed.revision for unit in observed.units}
    units = Unit.objects.filter(allocation_id=row.allocation_id, pk__in=sorted(new))
    for unit in units.order_by("pk"):  # in this order, so that two passes wait for one another in one direction only
        number = numbers.get(str(unit.pk))
        of_row = Revision.objects.filter(endpoint_id=row.pk).select_related("model")
        revision = of_row.filter(number=number).first() if number else None
        if revision is not None:
            fit_corrections.learn(revision, unit, new[str(unit.pk)], now=now)
