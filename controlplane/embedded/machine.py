"""What this machine must have before anything is installed or started. Standard library only.

Each check gives one finding; a failed one carries the one line that mends it. Nothing is changed here.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from controlplane.embedded import ports

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
"""As `requires-python` of pyproject.toml; `tests/architecture` compares them."""
GLIBC_FROM = (2, 28)
"""The lowest of the wheels in requirements.lock that carry programs (manylinux_2_28)."""
PROGRAMS_MIB = 1_500
STATE_MIB = 1_000
MEMORY_MIB = 1_500
_ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    name: str
    detail: str
    mend: str = ""
    """One line for a shell or a person; empty when all is well."""

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return not self.mend

    def line(self) -> str:
        """Return one or two lines for a terminal."""
        text = f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.detail}"
        return text if self.ok else f"{text}\n     mend: {self.mend}"


def check(*, root: Path, state: Path, fresh: bool) -> list[Finding]:
    """Run all checks; `fresh` also asks for what only building the virtual environment needs.

    `root` is the checkout, which gets `.venv`; `state` is the state folder, which need not exist.
    """
    checks: list[Callable[[], Finding]] = [python, architecture, c_library]
    if fresh:
        checks += [ensurepip, lambda: room("programs", root, PROGRAMS_MIB), lambda: writable("checkout", root)]
    checks += [lambda: room("state", state, STATE_MIB), lambda: writable("state", state), memory, loopback]
    return [one() for one in checks]


def python() -> Finding:
    """The running Python is one that the locked dependencies are for."""
    version = platform.python_version()
    ok = PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW
    wanted = f"{'.'.join(map(str, PYTHON_FROM))} or newer, below {'.'.join(map(str, PYTHON_BELOW))}"
    return Finding(
        "python", f"{version} at {sys.executable}", "" if ok else f"use Python {wanted}: {_install('python3.11')}"
    )


def ensurepip() -> Finding:
    """A virtual environment can be made: Debian and its children split this off."""
    specs = {name: importlib.util.find_spec(name) for name in ("venv", "ensurepip")}
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]  # an empty folder is none
    if not missing:
        return Finding("venv", "venv and ensurepip are there")
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    return Finding("venv", f"this Python lacks {' and '.join(missing)}", _install(package))


def architecture() -> Finding:
    """The wheels with programs exist for this processor and system."""
    system, processor = platform.system(), platform.machine()
    ok = system in {"Linux", "Darwin"} and processor.lower() in _ARCHITECTURES
    mend = "use a Linux or macOS machine with an x86_64 or aarch64 processor (on Windows: WSL 2)"
    return Finding("architecture", f"{system} {processor}", "" if ok else mend)


def c_library() -> Finding:
    """Linux wheels need glibc of a certain age."""
    if platform.system() != "Linux":
        return Finding("libc", "not asked here")
    name, version = platform.libc_ver()
    number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    ok = name == "glibc" and number >= GLIBC_FROM
    wanted = ".".join(map(str, GLIBC_FROM))
    mend = f"use a distribution with glibc {wanted} or newer, as Debian 11, Ubuntu 20.04 or RHEL 8 and later"
    return Finding("libc", f"{name or 'no glibc'} {version}".strip(), "" if ok else mend)


def room(name: str, folder: Path, needed_mib: int) -> Finding:
    """The disk below `folder` has `needed_mib` MiB left."""
    place = _existing(folder)
    free_mib = shutil.disk_usage(place).free // 2**20
    ok = free_mib >= needed_mib
    mend = f"free {needed_mib - free_mib} MiB more on the disk of {place}"
    if name == "state":
        mend += ", or set TENANTRY_STATE_DIR to a folder on another disk"
    return Finding(f"disk for {name}", f"{free_mib:,} MiB free at {place}, {needed_mib:,} needed", "" if ok else mend)


def writable(name: str, folder: Path) -> Finding:
    """This user may write to `folder`, or make it."""
    place = _existing(folder)
    ok = os.access(place, os.W_OK | os.X_OK)
    mend = f"sudo chown -R $(id -un) {place}"
    if name == "state":
        mend = f"mkdir -p {folder} as a user who may, or set TENANTRY_STATE_DIR to a folder of yours"
    return Finding(f"{name} folder", f"{folder} {'can' if ok else 'cannot'} be written", "" if ok else mend)


def memory() -> Finding:
    """Enough memory is left for the database, the web process and five workers."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Finding("memory", "not known here")
    facts = dict(line.split(":", 1) for line in lines)
    free_mib = int(facts.get("MemAvailable", facts["MemFree"]).split()[0]) // 1024
    ok = free_mib >= MEMORY_MIB
    mend = f"end other programs or add memory: {MEMORY_MIB - free_mib} MiB are missing"
    return Finding("memory", f"{free_mib:,} MiB available, {MEMORY_MIB:,} needed", "" if ok else mend)


def loopback() -> Finding:
    """A server can listen on the loopback interface; single busy ports are replaced at start."""
    ok = ports.is_free(0)
    return Finding(
        "loopback",
        f"{ports.LOOPBACK} {'can' if ok else 'cannot'} be listened on",
        "" if ok else "ip link set lo up",
    )


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _install(package: str) -> str:
    """Return the line that installs `package` with this system's package manager."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    for manager, line in _managers(package):
        if shutil.which(manager):
            return sudo + line if manager != "brew" else line
    return f"install {package} with this system's package manager"


def _managers(package: str) -> Iterator[tuple[str, str]]:
    plain = package.removesuffix("-venv")  # only Debian splits it off; reinstalling brings it back elsewhere
    yield "apt-get", f"apt-get update && {'sudo ' if os.geteuid() else ''}apt-get install -y {package}"
    yield "dnf", f"dnf install -y {plain}"
    yield "zypper", f"zypper install -y {plain.replace('.', '')}"
    yield "pacman", "pacman -S --needed python"
    yield "brew", f"brew install {plain.replace('python', 'python@')}"
