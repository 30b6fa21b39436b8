"""The endpoint pass: replicas of a revision on placed units, in a namespace or in VMs of its own.

Deleting goes keys off (with the asking) → drain → replicas gone, by exact look. Whatever a gateway must
know (backends that came or went, the end) bumps the configuration of the boundary's gateways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet

from provisioners import gateways, plan
from provisioners.driver import EndpointSpec, Observed, Presence, Spec, Step, UnitSpec
from provisioners.passes import Engine, Prepared, Wait, say
from provisioners.product import ProductKind, in_vm
from provisioners.specs_from_rows import endpoint_spec
from provisioners.steps import indexed, split
from tenants.models import Boundary, Endpoint, GatewayReplica, Revision, Unit
from tenants.operations.products import touch_gateways
from tenants.states import ConditionType, Reason, SuspensionDepth, condition_of

KEYS_OFF_WAIT: Final = timedelta(seconds=5)
"""So long a deletion waits for gateways that are there to take the configuration without its keys."""
DRAIN_LIMIT: Final = timedelta(seconds=30)
"""So long it waits for running requests."""
FRESH: Final = timedelta(seconds=30)
"""A gateway silent for longer is not waited for."""
DRAIN_POLL_S: Final = 0.5
STARTING_POLL_S: Final = 1.0
STARTING_LIMIT: Final = timedelta(minutes=15)
"""So long a model server that starts is looked at every second; one that takes longer is looked at ever less often."""
SERVES: Final = "serves"
"""Where an endpoint's row remembers the number of the revision that served last."""


class EndpointKind(ProductKind):
    """Endpoints, in both kinds of boundaries."""

    word = "endpoint"
    model = Endpoint

    def spec(
        self,
        row: Endpoint,
        boundary: Boundary,
        rows: Sequence[Unit],
        units: tuple[UnitSpec, ...],
        depth: SuspensionDepth | None,
        *,
        now: datetime,
    ) -> Spec | Wait:
        """Return the spec of the wanted revision. Raises `NotSupported`, `DriverRejected` for what cannot be served."""
        if row.revision_id is None or not units:
            return Wait(ConditionType.READY, Reason.WAITING_FOR_PLACEMENT, "It has nothing to serve yet.", None)
        revision = Revision.objects.select_related("model").get(pk=row.revision_id)
        replicas = gateways.of_units(boundary, rows, now=now) if in_vm(boundary) else []
        return endpoint_spec(
            row,
            boundary,
            revision,
            units=units,
            gateways=tuple(gateways.spec_of(replica) for replica in replicas),
            depth=depth,
        )

    def arm(self, row: Endpoint, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """Make the one-time token of a VM's gateway about to start."""
        del row
        bare, index = split(step.name)
        if bare != "vm.gateway" or not isinstance(prepared.spec, EndpointSpec):
            return None
        uid = next(unit.uid for unit in prepared.spec.units if unit.index == index)
        replica = GatewayReplica.objects.get(pk=uid)
        armed = gateways.spec_of(replica, gateways.arm(replica, now=now))
        others = tuple(gateway for gateway in prepared.spec.gateways if gateway.uid != uid)
        return replace(prepared.spec, gateways=(*others, armed))

    def stale(self, row: Endpoint, *, now: datetime) -> frozenset[str]:
        """Return the gateways in its VMs whose token ran out before they enrolled."""
        mine = gateways_of(row).filter(unit__isnull=False).select_related("unit")
        return frozenset(
            indexed("vm.gateway", replica.unit.index)
            for replica in mine
            if replica.unit is not None and gateways.too_late(replica, now=now)
        )

    def fields(self) -> list[str]:
        """Return the endpoint's own columns."""
        return ["address", "reachable_from"]

    def looked(self, row: Endpoint, observed: Observed, prepared: Prepared, *, now: datetime) -> None:
        """Keep address and backends; tell the gateways when those change."""
        before = _routes(row.observed)
        super().looked(row, observed, prepared, now=now)
        if observed.address:  # the address is a contract: a gateway that is away for a while does not take it
            row.address, row.reachable_from = observed.address, observed.reachable_from
        if _routes(row.observed) != before:
            touch_gateways([row.boundary_id], now=now)

    def readiness(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        """An endpoint can be used when its replicas work and its address is known."""
        missing = self._missing(row, observed, action, prepared)
        before = row.observed.get(SERVES)
        if not missing or before is None or not isinstance(prepared.spec, EndpointSpec):
            return missing
        wanted = prepared.spec.serving.revision
        if wanted == before:
            return missing
        # The ledger holds no unit beside those of the endpoint, so the old replica makes way for the new one.
        return f"Revision {wanted} takes over; revision {before} stopped first, as no room is held for both: {missing}"

    def _missing(self, row: Any, observed: Observed, action: plan.Nothing, prepared: Prepared) -> str:
        missing = super().readiness(row, observed, action, prepared)
        if missing:
            return missing
        if not observed.address:
            return "Its address is not known yet: the gateway has not come up."
        return self._missing_at_gateways(row)

    def _missing_at_gateways(self, row: Endpoint) -> str:
        """Return what the gateways in front of it say: not up to date (before it is ready), or no way to a replica.

        Simulated gateways never enrol and are not asked; a provider's word that a real one has is no proof.
        """
        ready = condition_of(row.conditions, ConditionType.READY)
        real = gateways_of(row)
        if row.boundary is None or row.boundary.provider.kind not in gateways.KINDS_THAT_SHOW_THE_MACHINE:
            real = real.filter(enrolled_at__isnull=False)
        for replica in real:
            if replica.enrolled_at is None:
                return "Its gateway has not enrolled."
            behind = replica.reported_version < replica.config_version
            if behind and (ready is None or ready["status"] != "True"):
                return "Its gateway is taking the configuration."
            for backend in _shown(replica, row).get("backends", ()):
                if backend.get("reachable") is False:
                    return f"Its gateway does not reach a replica. {backend.get('message', '')}".strip()
        return ""

    def look_again(self, began: datetime, now: datetime, engine: Engine) -> datetime:
        """Look every second while a model server starts: somebody waits for its first token."""
        patient = super().look_again(began, now, engine)
        return patient if now >= began + STARTING_LIMIT else min(patient, engine.after(STARTING_POLL_S, now))

    def still_works(self, row: Endpoint, observed: Observed) -> bool:
        """Whether at least one replica serves behind a published address."""
        del row
        published = observed.part("serving.service").presence is Presence.PRESENT and bool(observed.address)
        return published and any(
            part.presence is Presence.PRESENT and part.ready and split(part.step)[0] == "serving.replica"
            for part in observed.parts
        )

    def became_ready(self, row: Endpoint, prepared: Prepared, *, now: datetime) -> None:
        """Say that it serves."""
        super().became_ready(row, prepared, now=now)
        say(row, ConditionType.SERVING, "True", Reason.DONE, "", now=now)
        if isinstance(prepared.spec, EndpointSpec):
            row.observed = {**row.observed, SERVES: prepared.spec.serving.revision}

    def drained(self, row: Endpoint, *, now: datetime) -> Wait | None:
        """Wait, for a bounded time, until gateways refuse the keys and running requests have ended."""
        asked = row.deletion_requested_at
        assert asked is not None
        if now >= asked + DRAIN_LIMIT:
            return None
        in_flight = 0
        for replica in gateways_of(row).filter(last_seen_at__gt=now - FRESH):
            if replica.reported_version < replica.config_version and now < asked + KEYS_OFF_WAIT:
                return _draining("Its keys are being switched off.")
            in_flight += int(_shown(replica, row).get("in_flight", 0))
        if in_flight:
            return _draining(f"{in_flight} running requests are being finished.")
        return None

    def gone(self, row: Endpoint, prepared: Prepared, *, now: datetime) -> None:
        """End the gateways of its VMs, and take it out of the configuration of the others."""
        super().gone(row, prepared, now=now)
        row.address = ""
        if row.boundary_id is not None:
            units = list(Unit.objects.filter(allocation_id=row.allocation_id).values_list("pk", flat=True))
            gateways.removed(row.boundary_id, units=units, now=now)
            touch_gateways([row.boundary_id], now=now)


def gateways_of(row: Endpoint) -> QuerySet[GatewayReplica]:
    """Return the live gateways in front of an endpoint: its boundary's, or those in its VMs."""
    mine = Q(unit__isnull=True) | Q(unit__allocation_id=row.allocation_id)
    return GatewayReplica.objects.filter(mine, boundary_id=row.boundary_id or UUID(int=0), removed_at__isnull=True)


def _shown(replica: GatewayReplica, row: Endpoint) -> Mapping[str, Any]:
    """Return what a gateway last reported of an endpoint."""
    endpoints = replica.report.get("endpoints", ()) if isinstance(replica.report, dict) else ()
    return next((shown for shown in endpoints if shown.get("uid") == str(row.pk)), {})


def _draining(message: str) -> Wait:
    return Wait(ConditionType.DELETED, Reason.STEP_RUNNING, message, DRAIN_POLL_S)


def _routes(observed: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a gateway routes by: the backends of units that work, and the revision they serve."""
    units = observed.get("units", ())
    working = sorted((str(unit["unit"]), str(unit["backend"])) for unit in units if unit["backend"] and unit["ready"])
    return (working, observed.get("revision") if working else None)


PASS = EndpointKind()
