"""Plays the guests of endpoint machines in a lab's vCenter: the agent that is installed in them, and what it starts.

A VM whose user-data holds our agent gets a folder for a disk and, while it is on, one `Agent` over a `Guest` whose
guestinfo is the lab's and whose units are processes here: the real gateway program, and a stub for vLLM that says that
no model ran. Both listen on loopback and are found by what the agent reports (access `lab`). A VM that is switched off
loses its processes and keeps its disk; one that is gone loses both. Nothing here knows the control plane or the driver.
"""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import logging
import os
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane.embedded import programs
from controlplane.embedded.places import Places
from controlplane.embedded.programs import Program, Running
from controlplane.labs.errors import LabError
from controlplane.labs.kubernetes.containers import PLACE_VARIABLE
from controlplane.labs.kubernetes.processes import Ports
from controlplane.labs.vsphere.control import Control, GuestVm
from controlplane.labs.vsphere.guest_texts import argv_of, directive, environment_of
from controlplane.labs.vsphere.vcenter import GUESTS, VCenter
from provisioners.vsphere import guest_agent
from provisioners.vsphere.guest_agent import GATEWAY, GATEWAY_ENVIRONMENT, REPLICA, REPLICA_ENVIRONMENT, REPLICA_UNIT
from provisioners.vsphere.units import AGENT_FILE

log = logging.getLogger("tenantry.lab.guests")

ROUND_S: Final = 0.2
GRACE_S: Final = 3.0
TRIES: Final = 5
"""A unit that ends so often is left alone, as systemd does it."""
_PROGRAMS: Final = (GATEWAY, REPLICA)


class SimulatedGuest:
    """One guest as its agent sees it (`guest_agent.Guest`)."""

    def __init__(self, vm: GuestVm, control: Control, folder: Path, ports: Ports) -> None:
        """Live in `folder`; processes that an earlier player left there are ended."""
        self.vm = vm
        self._control = control
        self._disk = folder / "disk"
        self._places = Places(folder)
        self._ports = ports
        self._listens: dict[str, int] = {}
        self._running: dict[str, Running] = {}
        self._tries: dict[str, int] = {}
        for each in (self._disk, self._places.logs, self._places.run):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unit in _PROGRAMS:
            programs.stop_recorded(self._places.run / f"{unit}.json", folder, grace_s=GRACE_S)

    # --- guestinfo and disk -----------------------------------------------------------------------

    def info_get(self, key: str) -> str:
        """Return a value as the last look at the lab showed it."""
        return self.vm.info.get(key, "")

    def info_set(self, key: str, value: str) -> None:
        """Write it through the lab. Raises `OSError`."""
        try:
            self._control.set_guestinfo(self.vm.id, key, value)
        except LabError as error:
            raise OSError(str(error)) from error
        self.vm.info[key] = value

    def machine_uuid(self) -> str:
        """Return what the VM's firmware says."""
        return self.vm.uuid

    def read(self, path: str) -> str:
        """Return a file of the disk."""
        at = self._at(path)
        return at.read_text() if at.is_file() else ""

    def write(self, path: str, text: str, mode: int) -> None:
        """Replace a file of the disk."""
        at = self._at(path)
        at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = at.with_name(f"{at.name}.new")
        fresh.touch(mode=mode)
        fresh.write_text(text)
        fresh.replace(at)

    def remove(self, path: str) -> None:
        """Remove a file of the disk."""
        self._at(path).unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        return self._disk / path.lstrip("/")

    # --- the world outside ------------------------------------------------------------------------

    def fetch(self, url: str, ca_pem: str, credential: str) -> tuple[int, bytes]:
        """Ask the control plane, as a guest does."""
        return guest_agent.fetch(url, ca_pem, credential)

    def gateway_health(self) -> Mapping[str, Any]:
        """Ask the gateway."""
        port = self._listens.get(GATEWAY)
        return guest_agent.health(f"http://127.0.0.1:{port}/healthz") if port else {}

    def is_replica_healthy(self) -> bool:
        """Ask the stub."""
        port = self._listens.get(REPLICA)
        return bool(port) and guest_agent.answers(f"http://127.0.0.1:{port}/health")

    def licence(self) -> str:
        """Say that there is none to have."""
        return "simulated"

    def addresses(self) -> tuple[str, str]:
        """Return where gateway and stub are, on loopback."""
        gateway, replica = (self._listens.get(unit) for unit in _PROGRAMS)
        return (
            f"http://127.0.0.1:{gateway}/v1" if gateway else "",
            f"http://127.0.0.1:{replica}/v1" if replica else "",
        )

    # --- units ------------------------------------------------------------------------------------

    def status(self, unit: str) -> str:
        """Return whether a unit's process runs, or has been given up."""
        running = self._running.get(unit)
        if running is not None and running.is_alive():
            return "active"
        return "failed" if self._tries.get(unit, 0) >= TRIES else "inactive"

    def restart(self, unit: str) -> None:
        """Start a unit's process anew. Raises `OSError`, `ValueError` for a unit that cannot be played."""
        again = self.status(unit) == "inactive" and unit in self._running
        self._end(unit)
        self._tries[unit] = self._tries.get(unit, 0) + 1 if again else 1
        if again:  # perhaps somebody else has its port
            self._ports.give_back({self._listens.pop(unit, 0)})
        command, environment = self._gateway() if unit == GATEWAY else self._replica()
        program = Program(unit, tuple(command), environment, lambda _: True, self._disk, grace_s=GRACE_S)
        running = Running(program, self._places)
        running.start()
        self._running[unit] = running
        log.info("VM %s: %s started", self.vm.name, unit)

    def stop(self, unit: str) -> None:
        """End a unit's process."""
        self._end(unit)
        self._running.pop(unit, None)
        self._ports.give_back({self._listens.pop(unit, 0)})

    def _end(self, unit: str) -> None:
        running = self._running.get(unit)
        if running is not None:
            running.ask_to_end()
            running.end()

    def halt(self) -> None:
        """Switch the guest off: its processes end, its disk stays."""
        for unit in _PROGRAMS:
            self.stop(unit)

    def _gateway(self) -> tuple[list[str], dict[str, str]]:
        told = environment_of(self.read(GATEWAY_ENVIRONMENT))
        state = self._at(told.pop("TENANTRY_GATEWAY_FOLDER"))
        if "TENANTRY_GATEWAY_CA_FILE" in told:
            told["TENANTRY_GATEWAY_CA_FILE"] = str(self._at(told["TENANTRY_GATEWAY_CA_FILE"]))
        port = str(self._listen(GATEWAY))
        command = [sys.executable, "-m", "provisioners.gateway", "--port", port, "--state", str(state)]
        return command, {**_own_environment(), **told}

    def _replica(self) -> tuple[list[str], dict[str, str]]:
        environment = environment_of(self.read(REPLICA_ENVIRONMENT))
        program, *words = argv_of(directive(self.read(REPLICA_UNIT), "ExecStart"), environment)
        if program != guest_agent.PROGRAMS["vllm"]:
            raise ValueError("this guest plays vLLM only")
        kept = [word for word in words if not word.startswith(("--host=", "--port="))]
        own = ["--host=127.0.0.1", f"--port={self._listen(REPLICA)}"]
        command = [sys.executable, "-m", "controlplane.labs.kubernetes.model_stub", *kept, *own]
        place = {PLACE_VARIABLE: json.dumps(self._place())}
        return command, {**_own_environment(), **environment, **place, "HOME": str(self._disk)}

    def _place(self) -> dict[str, Any]:
        """Return what the stub says of its origin, as the lab knows it for true."""
        told = json.loads(self.info_get(guest_agent.SERVING) or "{}")
        held = [(gpu, window) for gpu in self._control.gpus() for window in gpu.held if window.vm == self.vm.id]
        return {
            "origin": f"from simulated VM {self.vm.name} of the vSphere lab",
            "revision": told.get("revision", 0),
            "node": next((gpu.host for gpu, _ in held), ""),
            "slots": [f"{gpu.pci_id} slots {one.start}-{one.start + one.size - 1} ({one.type})" for gpu, one in held],
        }

    def _listen(self, unit: str) -> int:
        if unit not in self._listens:
            self._listens[unit] = self._ports.free()
        return self._listens[unit]


@dataclass(slots=True)
class _Played:
    guest: SimulatedGuest
    agent: guest_agent.Agent


class Keeper:
    """Plays every guest of one vCenter with our agent in it."""

    def __init__(self, control: Control, folder: Path) -> None:
        """Keep the disks below `folder`; `control` is closed by whoever made it."""
        self._control = control
        self._folder = folder
        self._ports = Ports(zlib.crc32(str(folder).encode()))
        self._played: dict[str, _Played] = {}

    def round(self) -> None:
        """Look once at the lab and let each guest's agent look once. Raises `LabError` when the lab does not answer."""
        disks = self._disks()  # what was told at the first boot may be redacted since
        listed = {vm.id: vm for vm in self._control.guests() if _disk_name(vm) in disks or is_ours(vm)}
        for vm_id in [one for one, played in self._played.items() if not _goes_on(played.guest.vm, listed.get(one))]:
            self._played.pop(vm_id).guest.halt()
        for gone in disks - {_disk_name(vm) for vm in listed.values()}:
            shutil.rmtree(self._folder / gone, ignore_errors=True)
        for vm in listed.values():
            if vm.running:
                try:
                    self._one(vm)
                except Exception:  # one guest's trouble is not the others'
                    log.exception("the guest of VM %s failed", vm.name)

    def _one(self, vm: GuestVm) -> None:
        played = self._played.get(vm.id)
        if played is None:
            guest = SimulatedGuest(vm, self._control, self._folder / _disk_name(vm), self._ports)
            played = self._played[vm.id] = _Played(guest, guest_agent.Agent(guest, fetch_every_s=ROUND_S))
        played.guest.vm = vm
        played.agent.round()

    def _disks(self) -> set[str]:
        return {entry.name for entry in self._folder.iterdir()} if self._folder.is_dir() else set()

    def run(self, stop: threading.Event) -> None:
        """Play until `stop` is set; a lab that is away is waited for, its guests go on."""
        try:
            while not stop.wait(ROUND_S):
                try:
                    self.round()
                except LabError as error:
                    log.warning("%s", error)
        finally:
            self.close()

    def close(self) -> None:
        """End every process; the disks stay."""
        for played in self._played.values():
            played.guest.halt()
        self._played.clear()


def _goes_on(played: GuestVm, now: GuestVm | None) -> bool:
    """Whether a guest runs as it did; one that was off between two looks has booted anew."""
    return now is not None and now.running and now.booted == played.booted


def is_ours(vm: GuestVm) -> bool:
    """Whether our agent is in what the VM is told at its first boot."""
    packed, encoding = vm.info.get("guestinfo.userdata", ""), vm.info.get("guestinfo.userdata.encoding", "")
    try:
        text = gzip.decompress(base64.b64decode(packed)) if encoding == "gzip+base64" else packed.encode()
        told = json.loads(text.decode().partition("\n")[2])
        return any(file.get("path") == AGENT_FILE for file in told.get("write_files", ()))
    except (ValueError, OSError, EOFError, AttributeError):
        return False


def _disk_name(vm: GuestVm) -> str:
    """Return a folder's name: an id is given out again by the next vCenter, the firmware's UUID is not."""
    return f"{vm.id}-{vm.uuid}".replace("/", "_")


def _own_environment() -> dict[str, str]:
    """Return a small environment: nothing of ours is handed on but where Python finds code."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return {**kept, "PYTHONPATH": str(Path(guest_agent.__file__).resolve().parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}


# --- as a process of its own ----------------------------------------------------------------------


def start(vcenter: VCenter) -> None:
    """Play the guests of a running vCenter in a process that outlives the caller; one that plays is left alone."""
    running = _running(vcenter)
    if not running.is_alive():
        running.start()


def _running(vcenter: VCenter) -> Running:
    folder = vcenter.folder / GUESTS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = ("guests", "--name", vcenter.name, "--folder", str(vcenter.folder))
    command = (sys.executable, "-m", "controlplane.labs.vsphere", *words)
    program = Program(GUESTS, command, _own_environment(), lambda _: True, folder, survives=True)
    running = Running(program, vcenter.places)
    running.process = programs.recorded(running.record_file)
    return running


def play(vcenter: VCenter) -> None:
    """Play in this process until SIGTERM or SIGINT. Raises `LabError` where another process plays already."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    folder = vcenter.folder / GUESTS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, vcenter.control() as control:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabError(f"another process plays the guests of vCenter {vcenter.name} already") from error
        Keeper(control, folder / "disks").run(ended)
