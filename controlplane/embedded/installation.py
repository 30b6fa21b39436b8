"""What the programs of one installation are told: secrets, ports, addresses, folders. All by environment variable.

Whatever the caller's environment already says wins: DATABASE_URL and CELERY_BROKER_URL switch to external servers,
and a secret given there is not generated. Generated secrets are made once and never printed.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from controlplane.embedded import ports, postgres
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.places import Places
from controlplane.embedded.postgres import EmbeddedPostgres

Process = Literal["web", "worker", "owner"]
WEB_PORT: Final = 8420
SANDBOX_PORT: Final = 8430
ROOT: Final = Path(__file__).resolve().parents[2]
DATABASE_VARIABLES: Final = ("DATABASE_URL", "DATABASE_WORKER_URL", "DATABASE_OWNER_URL")
_ADDRESSES_HIDDEN_FROM: Final[Mapping[Process, tuple[str, ...]]] = {
    "web": ("DATABASE_WORKER_URL", "DATABASE_OWNER_URL"),
    "worker": ("DATABASE_OWNER_URL",),
    "owner": (),
}
"""An external address may hold a password: each process gets its own and no stronger one."""


@dataclass
class Installation:
    """One state folder and the environment it gives to programs."""

    places: Places
    given: Mapping[str, str] = field(repr=False)
    """The caller's environment."""
    ports: dict[str, int]
    """Port by program name: `web`, `sandbox`."""
    secrets: Mapping[str, str] = field(repr=False)

    @classmethod
    def load(cls, given: Mapping[str, str]) -> Installation:
        """Read what is stored, generate what is missing; starts nothing.

        Raises `EmbeddedError` when only some of the database's addresses are given.
        """
        places = Places.from_environ(given)
        places.make()
        partly = [name for name in DATABASE_VARIABLES if name in given]
        if partly and "DATABASE_URL" not in partly:
            raise EmbeddedError(
                f"{partly[0]} is set without DATABASE_URL", mend="set DATABASE_URL too, or none of them"
            )
        chosen = {"web": WEB_PORT, "sandbox": SANDBOX_PORT} | ports.remembered(places.ports_file)
        return cls(places, given, chosen, stored_secrets(places.secrets_file))

    @property
    def embeds_database(self) -> bool:
        """Whether the database is ours to start."""
        return "DATABASE_URL" not in self.given

    @property
    def embeds_broker(self) -> bool:
        """Whether the broker is a folder of ours."""
        return "CELERY_BROKER_URL" not in self.given

    @property
    def is_demo(self) -> bool:
        """Whether it is to be filled with the demo's people and sandbox; else it waits for its first operator."""
        return self.given.get("TENANTRY_DEMO", "").lower() in {"1", "true", "yes", "on"}

    @property
    def database(self) -> EmbeddedPostgres:
        """The embedded server of this state folder."""
        return EmbeddedPostgres(self.places.state)

    @property
    def public_url(self) -> str:
        """Base URL of the control plane."""
        return self.given.get("TENANTRY_PUBLIC_URL", f"http://{ports.LOOPBACK}:{self.ports['web']}").rstrip("/")

    @property
    def web_url(self) -> str:
        """Where our web process listens, whatever stands in front of it."""
        return f"http://{ports.LOOPBACK}:{self.ports['web']}"

    @property
    def sandbox_url(self) -> str:
        """Base URL of the sandbox."""
        return f"http://{ports.LOOPBACK}:{self.ports['sandbox']}"

    def settle_port(self, name: str) -> str:
        """Take the wanted port, or a free one instead of a busy one; returns what to tell, if anything."""
        wanted = self.ports[name]
        others = frozenset(port for other, port in self.ports.items() if other != name)
        self.ports[name] = ports.choose(wanted, taken=others)
        ports.remember(self.places.ports_file, self.ports)
        if self.ports[name] == wanted:
            return ""
        return f"port {wanted} is busy: {name} takes {self.ports[name]}"

    def environ(self, process: Process) -> dict[str, str]:
        """Return the whole environment of a program that uses the database as `process`."""
        told = {
            "TENANTRY_STATE_DIR": str(self.places.state),
            "TENANTRY_PUBLIC_URL": self.public_url,
            "TENANTRY_SANDBOX_URL": self.sandbox_url,
            **self.secrets,
        }
        if self.embeds_database:
            server = self.database
            told |= {
                "DATABASE_URL": server.dsn(postgres.APP),
                "DATABASE_WORKER_URL": server.dsn(postgres.WORKER),
                "DATABASE_OWNER_URL": server.dsn(postgres.OWNER),
            }
        if self.embeds_broker:
            told |= {"CELERY_BROKER_URL": "filesystem://", "TENANTRY_BROKER_DIR": str(self.places.broker)}
        # ours first, the caller's words over them, then what must hold whatever anybody says
        whole = {**told, **self.given, **self._machine(), "TENANTRY_PROCESS": process}
        for name in _ADDRESSES_HIDDEN_FROM[process]:
            whole.pop(name, None)
        return whole

    def sandbox_environ(self) -> dict[str, str]:
        """Return the environment of the sandbox and its gateways: its own token, no key and no database."""
        token = self.given.get("TENANTRY_SANDBOX_TOKEN") or self.secrets["TENANTRY_SANDBOX_TOKEN"]
        kept = {name: self.given[name] for name in ("HOME", "LANG", "LC_ALL", "TZ") if name in self.given}
        return {**kept, **self._machine(), "TENANTRY_SANDBOX_TOKEN": token}

    def _machine(self) -> dict[str, str]:
        """Return what holds for every program of ours."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{self.given.get('PATH', os.defpath)}"
        return {"PATH": programs, "TMPDIR": str(self.places.scratch), "PYTHONUNBUFFERED": "1"}

    def make_broker_folders(self) -> None:
        """Make the folders of the filesystem broker; it makes none itself."""
        for folder in (self.places.broker, self.places.broker / "data", self.places.broker / "control"):
            folder.mkdir(mode=0o700, exist_ok=True)


def stored_secrets(file: Path) -> dict[str, str]:
    """Return the secrets of `file`, adding those that are missing; the file is private to this user."""
    found: dict[str, str] = {}
    if file.exists():
        for line in file.read_text().splitlines():
            name, mark, value = line.partition("=")
            if mark and not name.startswith("#"):
                found[name.strip()] = value.strip()
    fresh: dict[str, Callable[[], str]] = {
        "TENANTRY_SECRET_KEY": lambda: secrets.token_urlsafe(48),
        "TENANTRY_MASTER_KEYS": lambda: "k1:" + base64.b64encode(secrets.token_bytes(32)).decode(),
        "TENANTRY_SANDBOX_TOKEN": lambda: secrets.token_urlsafe(32),
    }
    missing = {name: make() for name, make in fresh.items() if name not in found}
    if missing:
        found |= missing
        _write_private(file, "".join(f"{name}={value}\n" for name, value in found.items()))
    return found


def _write_private(file: Path, text: str) -> None:
    """Write a file of mode 0600 that is there whole or not at all: losing the master key loses every secret."""
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write("# Made once by Tenantry. The master key opens every stored secret: keep it with your backups.\n")
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
