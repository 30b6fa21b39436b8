"""Guests of points on a vCenter: they enrol at the core itself and take its configurations, and run nothing.

What is on their disks outlives every process of a point: it lies in a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from controlplane.labs.vsphere.control import Control, GuestVm
from provisioners import gateways
from provisioners.agent_api import config
from provisioners.agent_api.polling import acting_gateway
from provisioners.gateway import keys
from provisioners.gateway.protocol import BackendReport, EndpointReport, Report
from tenants.actor import SYSTEM
from tenants.errors import Gone, Unauthenticated
from tenants.models import GatewayReplica
from tenants.operations import agents
from tenants.transactions import acting
from tests.crash.clock import Clock
from tests.vsphere.easy_guests import EasyGuests

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Guests(EasyGuests):
    """Every endpoint machine of one vCenter."""

    def __init__(self, control: Control, disks: Path, clock: Clock) -> None:
        """Play guests whose disks lie in the file `disks`."""
        super().__init__(control)
        self._file, self._clock = disks, clock
        if disks.exists():
            self._disks = json.loads(disks.read_text())

    def round(self) -> None:
        """Do what guests do; then each gateway that has enrolled serves the newest configuration."""
        super().round()
        running = {vm.uuid for vm in self._control.guests() if vm.running}
        for machine, disk in self._disks.items():
            if machine in running and disk["state"] == "enrolled":
                self._serve(UUID(disk["gateway"]), credential_of(disk))

    def enrol(self, vm: GuestVm, told: Mapping[str, Any]) -> bool:
        """Show the token to the core, from the machine that this is."""
        gateway, shown = UUID(told["gateway_uid"]), keys.digest(told["token"])
        try:
            agents.enrol(
                gateway=gateway,
                token_digest=shown,
                credential_digest=credential_of(told),
                version="crash",
                belongs=lambda row: gateways.shows_its_machine(row, UUID(vm.uuid)),
                actor=acting_gateway(gateway),
                now=self._clock(),
            )
        except (Unauthenticated, Gone):
            return False
        return True

    def kept(self) -> None:
        """Write the disks."""
        self._file.write_text(json.dumps(self._disks))

    def _serve(self, gateway: UUID, credential: str) -> None:
        with acting(SYSTEM):
            row = GatewayReplica.objects.filter(pk=gateway, removed_at=None, credential_digest=credential).first()
        if row is not None:  # one whose credential has ended is not answered
            now, actor = self._clock(), acting_gateway(gateway)
            agents.serves(gateway=gateway, version=row.config_version, actor=actor, now=now)
            version = row.config_version
            agents.report(gateway=gateway, body=self._report(row, now), version=version, actor=actor, now=now)

    def _report(self, row: GatewayReplica, now: datetime) -> dict[str, Any]:
        """Return what a gateway says that reaches its replicas and has no request."""
        with acting(SYSTEM):
            document = config.document_of(row, now=now)
        shown = tuple(
            EndpointReport(
                uid=one.uid,
                state=one.state,
                backends=tuple(BackendReport(unit_uid=each.unit_uid, reachable=True) for each in one.backends),
            )
            for one in document.endpoints
        )
        report = Report(
            gateway_uid=row.pk, gateway_version="crash", started_at=BEGAN, config_version=document.version, in_flight=0,
            endpoints=shown,
        )  # fmt: skip
        return report.model_dump(mode="json")


def credential_of(told: Mapping[str, Any]) -> str:
    """Return the digest of the credential that a gateway makes with a delivery; the same at each try."""
    return keys.digest(f"credential of {told['delivery']}")
