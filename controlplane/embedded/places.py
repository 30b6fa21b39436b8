"""Where the embedded running keeps everything: one state folder and the fixed layout below it.

Root keeps state in /var/lib/tenantry, so that the database's unprivileged user can reach it without
opening anybody's home; a plain user keeps it in ~/.local/state/tenantry. TENANTRY_STATE_DIR overrides both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT_STATE_DIR = Path("/var/lib/tenantry")


def is_root() -> bool:
    """Whether this process runs with uid 0."""
    return os.geteuid() == 0


def state_dir(environ: Mapping[str, str]) -> Path:
    """Return the absolute state folder that `environ` and the user ask for; makes nothing."""
    if given := environ.get("TENANTRY_STATE_DIR"):
        return Path(given).expanduser().absolute()
    if is_root():
        return ROOT_STATE_DIR
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "tenantry"


@dataclass(frozen=True)
class Places:
    """The layout below one state folder."""

    state: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Places:
        """Return the places of the state folder that `environ` asks for."""
        return cls(state_dir(environ))

    @property
    def logs(self) -> Path:
        """One file per started program."""
        return self.state / "logs"

    @property
    def run(self) -> Path:
        """Process records, the supervisor's lock, the last status."""
        return self.state / "run"

    @property
    def broker(self) -> Path:
        """Folders of the filesystem broker."""
        return self.state / "broker"

    @property
    def sandbox(self) -> Path:
        """The simulated estate's store and its gateways' state."""
        return self.state / "sandbox"

    @property
    def scratch(self) -> Path:
        """TMPDIR of the started programs: the filesystem broker moves files out of it, so same disk."""
        return self.state / "tmp"

    @property
    def home_of_database(self) -> Path:
        """Data, socket and log of the embedded PostgreSQL."""
        return self.state / "postgresql"

    @property
    def secrets_file(self) -> Path:
        """Generated once, mode 0600."""
        return self.state / "secrets.env"

    @property
    def logins_file(self) -> Path:
        """People of the demo and their passwords, written by `bootstrap --demo` with mode 0600."""
        return self.state / "demo-logins.json"

    @property
    def ports_file(self) -> Path:
        """Ports chosen last time; preferred on the next start so that addresses last."""
        return self.state / "ports.json"

    def make(self) -> None:
        """Make all folders, private to this user.

        Only the state folder itself can be passed through by others as root: the database's user needs that.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o711 if is_root() else 0o700)
        for folder in (self.logs, self.run, self.sandbox, self.scratch):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
