"""Guests that do at once what they are told and run nothing: for tests of the provider rather than of guests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from controlplane.labs.vsphere.control import Control, GuestVm
from provisioners.vsphere.guest_agent import CLEARED, ENROLMENT, GATEWAY_REPORT, REPLICA_REPORT, SERVING, STOPPED


class EasyGuests:
    """Every endpoint machine of one vCenter; call `round` whenever time may pass."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._disks: dict[str, dict[str, Any]] = {}
        """What the gateway of each machine keeps over a reboot, by the machine's UUID: `delivery`, and `state`."""

    def round(self) -> None:
        """Take tokens and pointers, and report that all is well."""
        for vm in self._control.guests():
            if vm.running:
                self._gateway(vm)
                self._replica(vm)

    def enrol(self, vm: GuestVm, told: Mapping[str, Any]) -> bool:  # noqa: ARG002 - for guests that have somewhere to go
        """Show the one-time token to whom it is for; return whether it was taken."""
        return True

    def kept(self) -> None:
        """Called when something new lies on a disk."""

    def _gateway(self, vm: GuestVm) -> None:
        text = vm.info.get(ENROLMENT, "")
        if text and text != CLEARED:
            told = json.loads(text)
            state = "enrolled" if self.enrol(vm, told) else "refused"
            self._disks[vm.uuid] = {"delivery": told["delivery"], "gateway": told["gateway_uid"], "state": state}
            self.kept()
            self._say(vm, ENROLMENT, CLEARED)
        if disk := self._disks.get(vm.uuid):
            shown = {name: disk[name] for name in ("delivery", "state")}
            self._say(vm, GATEWAY_REPORT, json.dumps({**shown, "message": "", "address": address_of(vm, 20_000)}))

    def _replica(self, vm: GuestVm) -> None:
        text = vm.info.get(SERVING, "")
        if text:
            told = {"want": json.loads(text)["want"], "state": "ready", "message": "", "licence": "simulated"}
            self._say(vm, REPLICA_REPORT, json.dumps({**told, "backend": address_of(vm, 30_000)}))
        elif vm.uuid in self._disks:
            self._say(vm, REPLICA_REPORT, json.dumps({"want": "", "state": STOPPED}))

    def _say(self, vm: GuestVm, key: str, value: str) -> None:
        if vm.info.get(key) != value:
            self._control.set_guestinfo(vm.id, key, value)


def address_of(vm: GuestVm, base: int) -> str:
    """Return an address that nobody listens on, the same for one machine at each look."""
    return f"http://127.0.0.1:{base + zlib.crc32(vm.uuid.encode()) % 10_000}/v1"
