"""What model servers report at their start goes into the next estimate (`tenants.operations.fit_corrections`).

In the transaction of the pass that saw it, for reports that are new; the same start, seen again, counts once. Where the
provider asks no model server itself, the gateway before it does, and says how many tokens its cache has room for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from provisioners.driver import EngineReport, Observed
from tenants.models import Endpoint, Revision, Unit
from tenants.operations import fit_corrections
from tenants.rollout_counts import gateways_of, shown

PROGRAM: Final = "vLLM"
"""What a gateway knows of the program behind it."""


def engines(observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return unit → what its model server said of itself, of what an endpoint's row remembers."""
    return {str(unit["unit"]): unit["engine"] for unit in observed.get("units", ()) if unit.get("engine")}


def with_gateways(row: Endpoint, observed: Observed) -> dict[str, Any]:
    """Return what an endpoint's row is to remember, with what gateways say of model servers that nobody else asked.

    Nothing of a simulated provider: through a gateway nobody sees that a model server's GPU is none.
    """
    known: dict[str, Any] = row.observed
    if observed.simulated or not any("engine" not in unit for unit in known.get("units", ())):
        return known
    room = {
        str(backend["unit_uid"]): int(backend["cache_tokens"])
        for replica in gateways_of(row)
        for backend in shown(replica, row.pk).get("backends", ())
        if backend.get("cache_tokens")
    }
    units = [
        unit
        if "engine" in unit or not unit.get("ready") or str(unit["unit"]) not in room
        else {**unit, "engine": asdict(EngineReport(PROGRAM, kv_cache_tokens=room[str(unit["unit"])]))}
        for unit in known["units"]
    ]
    return {**known, "units": units}


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
