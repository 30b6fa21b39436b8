"""Consoles of machines: a ticket of vCenter for one WebSocket to the screen of one VM (`webmks`).

A ticket lets in whoever has it, once and for minutes, so it is asked for when somebody wants it and kept nowhere here.
The address is that of the ESXi host, or of vCenter where it names none.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from provisioners.driver import Console, Secret, TransientDriverError
from provisioners.vsphere.client import VCenterClient, managed
from provisioners.vsphere.vms import Vm

KIND: Final = "webmks"
GOOD_FOR: Final = timedelta(minutes=2)
"""How long people are told that they have; vCenter says of none how long it is good."""
_PORT: Final = 443


def open_console(client: VCenterClient, vm: Vm, *, simulated: bool) -> Console:
    """Return a console of a VM. Raises `TransientDriverError` where it does not run."""
    if not vm.is_on:
        raise TransientDriverError("it is switched off, and shows a screen only while it runs")

    def ticket(si: Any) -> Any:
        return managed(vm.ref, si).AcquireTicket(KIND)

    told = client.changing(ticket)
    host, port = str(told.host or client.settings.host), int(told.port or _PORT)
    address = str(getattr(told, "url", "") or f"wss://{host}:{port}/ticket/{told.ticket}")
    return Console(Secret(address), datetime.now(UTC) + GOOD_FOR, str(told.sslThumbprint or ""), simulated)
