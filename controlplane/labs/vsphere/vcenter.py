"""One lab vCenter: its process, port, readiness, adoption by a later caller, and its end.

A vCenter is a folder. Its process leads a group of its own and outlives the caller; the record of pid and start mark
in `run/` lets any later caller find it and stop it. What it holds is in memory: a restart is a new vCenter with new
object ids, on the old address with the old logins. It listens on a loopback address other than 127.0.0.1, where
pyVmomi, left to itself, checks no certificate.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from controlplane.embedded import places, ports, programs
from controlplane.embedded.places import Places
from controlplane.embedded.processes import ProcessId
from controlplane.embedded.programs import Program, Running
from controlplane.labs import waiting
from controlplane.labs.building import Tell
from controlplane.labs.certificates import Authority, store
from controlplane.labs.errors import LabError
from controlplane.labs.vsphere import build, worlds
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.worlds import World

ADDRESS: Final = "127.0.0.2"
HOST_NAMES: Final = ("localhost", "vcenter.lab.internal")
"""DNS names in its certificate, beside the loopback addresses."""
ADMIN: Final = "administrator@vsphere.local"
PROGRAM: Final = "vcenter"
GUESTS: Final = "guests"
"""Name of the process that plays guests (`guests.py`), and its folder."""
_GRACE_S: Final = 5.0
_GUESTS_GRACE_S: Final = 20.0
_FIRST_PORT: Final = 20_000
_POLL_S: Final = 0.02
_STARTED: Final[list[Running]] = []
"""Processes that this process started: a forgotten child would stay a zombie."""


@dataclass(frozen=True, slots=True)
class Status:
    """What runs of a vCenter now."""

    name: str
    folder: Path
    url: str
    pid: int | None
    ready: bool


def home(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of all lab vCenters: below the installation's state folder."""
    return places.state_dir(os.environ if environ is None else environ) / "labs" / "vsphere"


class VCenter:
    """A vCenter by name; nothing is started by making one of these."""

    def __init__(self, name: str = "lab", *, folder: Path | None = None, world: World | None = None) -> None:
        """`folder` holds this vCenter alone; `world` (default: `worlds.usual()`) matters at its start only.

        Raises `LabError` for a name that is no DNS label.
        """
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise LabError(f"a vCenter's name is a DNS label of at most 32 characters, not {name!r}")
        self.name = name
        self.folder = (folder or home() / name).absolute()
        self.world = world or worlds.usual()
        self.places = Places(self.folder)
        self._authority = Authority(self.folder / "pki")

    # --- what it offers ---------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The address to connect to."""
        return ADDRESS

    @property
    def port(self) -> int:
        """Its port; 0 before the first start."""
        return ports.remembered(self.places.ports_file).get(PROGRAM, 0)

    @property
    def url(self) -> str:
        """Base of its addresses; the API is at `/sdk`."""
        return f"https://{ADDRESS}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """Certificate of its CA."""
        return self._authority.certificate

    @property
    def ca_pem(self) -> str:
        """The same as a text."""
        return self.ca_file.read_text()

    @property
    def user(self) -> str:
        """The administrator's name."""
        return ADMIN

    @property
    def password_file(self) -> Path:
        """File with the administrator's password alone, mode 0600."""
        return self.folder / "password"

    @property
    def password(self) -> str:
        """The administrator's password."""
        return self.password_file.read_text().strip()

    def control(self) -> Control:
        """Return a client of its control address; close it."""
        return Control(self.url, ca=str(self.ca_file), user=self.user, password=self.password)

    # --- life -------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 60, tell: Tell | None = None) -> None:
        """Start it and return when it takes work; one that runs is adopted with the world it has.

        Raises `NotBuilt` without the program and without Go, `LabError` when it ends or is not ready in time.
        """
        program = build.ensure(tell=tell).path(PROGRAM)
        self.places.make()
        with self._locked():
            running = self._running(program)
            if not running.is_alive():
                self._prepare()
                _reap()
                running.start()
                _STARTED.append(running)
            self._await(running, time.monotonic() + timeout_s)

    def stop(self) -> bool:
        """Stop it by its recorded identity; false when it did not run. Its objects are gone, its logins stay."""
        if not self.folder.is_dir():
            return False
        self.stop_guests()
        with self._locked():
            ran = programs.stop_recorded(self._record, self._work, grace_s=_GRACE_S)
            _reap()
            shutil.rmtree(self.places.scratch, ignore_errors=True)  # datastores of one that was killed
        return ran

    def stop_guests(self) -> bool:
        """End the process that plays guests, and what it plays; false when none ran."""
        return programs.stop_recorded(self.places.run / f"{GUESTS}.json", self.folder / GUESTS, grace_s=_GUESTS_GRACE_S)

    def restart(self) -> None:
        """Lose everything and come back with new object ids, as a vCenter that was rebuilt."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it with SIGKILL. Raises `LabError` when it does not run."""
        process = self._recorded()
        if process is None:
            raise LabError(f"vCenter {self.name} does not run")
        programs.kill_group(process)
        _reap()
        process.wait_gone(10)

    def delete(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> Status:
        """Return what runs now."""
        process = self._recorded()
        ready = process is not None and self._answers()
        return Status(self.name, self.folder, self.url if self.port else "", process.pid if process else None, ready)

    # --- inside -----------------------------------------------------------------------------------

    @property
    def _record(self) -> Path:
        return self.places.run / f"{PROGRAM}.json"

    @property
    def _work(self) -> Path:
        """Working folder: tells its process from others."""
        return self.folder / "work"

    def _recorded(self) -> ProcessId | None:
        return programs.recorded(self._record)

    def _running(self, program: Path) -> Running:
        self._work.mkdir(exist_ok=True, mode=0o700)
        # the port is chosen after this, and before the start; so the command is read from the folder then
        listen = f'exec "$0" -world world.json -pki ../pki -logins logins.json -listen "{ADDRESS}:$(cat port)"'
        environ = {"PATH": "/usr/bin:/bin", "TMPDIR": str(self.places.scratch), "GOMEMLIMIT": "512MiB"}
        command = ("/bin/sh", "-c", listen, str(program))
        running = Running(
            Program(PROGRAM, command, environ, lambda _: self._answers(), self._work, survives=True), self.places
        )
        running.process = self._recorded()
        return running

    def _prepare(self) -> None:
        """Make CA, login and port once, and the world anew."""
        self._authority.make()
        if not (self._authority.folder / "vcenter.crt").exists():
            self._authority.sign_server("vcenter", "vcenter", names=HOST_NAMES, addresses=("127.0.0.1", ADDRESS))
        if not self.password_file.exists():
            store(self.password_file, f"{secrets.token_urlsafe(18)}\n".encode())
        logins = [{"user": self.user, "password": self.password}]
        store(self._work / "logins.json", json.dumps(logins).encode())
        world = self.world if self.world.instance_uuid else replace(self.world, instance_uuid=str(uuid4()))
        (self._work / "world.json").write_text(world.as_json())
        wanted = self.port or _FIRST_PORT + zlib.crc32(str(self.folder).encode()) % 12_000
        port = ports.choose(wanted, address=ADDRESS)
        ports.remember(self.places.ports_file, {PROGRAM: port})
        (self._work / "port").write_text(str(port))

    def _await(self, running: Running, deadline: float) -> None:
        def ready() -> bool:
            if not running.is_alive():
                raise LabError(f"vCenter {self.name} ended:\n{running.log_tail()}", mend=f"see {running.log_file}")
            return self._answers()

        if not waiting.until(ready, deadline, every_s=_POLL_S):
            raise LabError(
                f"vCenter {self.name} is not ready in time:\n{running.log_tail()}", mend=f"see {running.log_file}"
            )

    def _answers(self) -> bool:
        with self.control() as control:
            return control.is_ready()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One caller at a time starts or stops it."""
        with (self.folder / "vcenter.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def existing(*, base: Path | None = None) -> list[VCenter]:
    """Return the vCenters that have a folder below `base` (default: `home`)."""
    folder = base or home()
    if not folder.is_dir():
        return []
    return [VCenter(entry.name, folder=entry) for entry in sorted(folder.iterdir()) if (entry / "ports.json").is_file()]


def _reap() -> None:
    """Forget processes of ours that ended; asking reaps them."""
    _STARTED[:] = [one for one in _STARTED if one.is_alive()]
