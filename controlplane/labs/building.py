"""Builds a lab's programs from Go modules into a cache outside the repository, once per set of versions.

Owns the cache's layout, its lock, and the check for Go. One folder per module, named by the SHA-256 of its files, so
that a changed module is built anew and the others are not. A program appears in its folder whole or not at all. Go
itself is the machine's; module and build caches are Go's own. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.labs.errors import LabError, NotBuilt

SOURCES: Final = Path(__file__).resolve().parents[2] / "deploy" / "labs"
PLAIN_LINKER_FLAGS: Final = "-s -w"
_USUAL_PLACES: Final = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Module:
    """One Go module and the programs built in it."""

    name: str
    """Of its folder below the workshop's `sources`."""
    packages: tuple[str, ...]
    """Import paths or `./` folders; a program is called like the last part of its path."""
    linker_flags: str = PLAIN_LINKER_FLAGS
    renamed: tuple[tuple[str, str], ...] = ()
    """(last part of the path, name wanted) where the path does not give a good name."""
    tags: str = ""
    cgo: bool = False
    minutes: float = 1.0
    """How long it took on two cores with cold caches: for the announcement only."""

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the built files, in the order of `packages`."""
        names = dict(self.renamed)
        last = (package.rstrip("/").rpartition("/")[2] for package in self.packages)
        return tuple(names.get(name, name) for name in last)


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the built programs are."""

    folders: tuple[Path, ...]
    command: str = "python -m controlplane.labs"
    """What builds them, for whoever asks for one that is missing."""

    def path(self, name: str) -> Path:
        """Return the file of one program. Raises `LabError` for a name that was not built."""
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise LabError(f"the lab's program {name} is not built", mend=f"{self.command} build")


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where one lab's modules are and its programs go."""

    lab: str
    """Its package and folder: kubernetes, vsphere."""
    title: str
    """For people: the Kubernetes lab."""
    sources: Path

    def cache_folder(self) -> Path:
        """Return the folder of all built programs: TENANTRY_LAB_CACHE, else below XDG_CACHE_HOME or ~/.cache."""
        if given := os.environ.get("TENANTRY_LAB_CACHE"):
            return Path(given).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser().absolute() / "tenantry" / "labs" / self.lab

    def folder_of(self, module: Module) -> Path:
        """Return where a module's programs lie for what its files say now."""
        digest = hashlib.sha256()
        source = self.sources / module.name
        for file in sorted(source.rglob("*")):
            if file.is_file() and file.suffix != ".md" and not file.name.endswith("_test.go"):
                digest.update(file.relative_to(source).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
        digest.update(repr((module.packages, module.linker_flags, module.tags)).encode())
        return self.cache_folder() / f"{module.name}-{digest.hexdigest()[:16]}"

    def is_built(self, modules: Sequence[Module]) -> bool:
        """Whether every program of `modules` is in the cache."""
        return all((self.folder_of(module) / name).is_file() for module in modules for name in module.programs)

    def why_not_here(self, modules: Sequence[Module]) -> str:
        """Return why the programs can neither be found nor built here; empty when they can."""
        if self.is_built(modules):
            return ""
        try:
            self._go_for(modules)
        except NotBuilt as error:
            return str(error)
        return ""

    def ensure(self, modules: Sequence[Module], *, tell: Tell | None = None) -> Programs:
        """Return the programs of `modules`, built first where the cache lacks them; others building wait for us.

        Raises `NotBuilt` where something is missing and Go is not here or too old, `LabError` when a build fails.
        """
        say = tell or say_on_stderr
        missing = [module for module in modules if not self.is_built((module,))]
        if missing:
            go = self._go_for(missing)
            with self.locked(say):
                for module in missing:
                    if not self.is_built((module,)):  # else somebody built it while we waited
                        self._build(go, module, say)
        return Programs(tuple(self.folder_of(one) for one in modules), f"python -m controlplane.labs.{self.lab}")

    def _go_for(self, modules: Sequence[Module]) -> Path:
        """Return a Go that is new enough for all of `modules`. Raises `NotBuilt`."""
        if not self.sources.is_dir():
            raise NotBuilt(f"{self.title} is built from deploy/labs/{self.lab}, which only a checkout has")
        found = shutil.which("go") or next((place for place in _USUAL_PLACES if Path(place).is_file()), None)
        needed = max((self._needed_version(module) for module in modules), default=(0, 0, 0))
        text = ".".join(map(str, needed))
        if found is None:
            raise NotBuilt(
                f"{self.title} is built from Go modules and there is no Go here",
                mend=f"install Go {text} or newer (go.dev/dl) and put it on PATH",
            )
        answer = subprocess.run(
            [found, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
        have = _version(answer.stdout)
        if answer.returncode != 0 or have < needed:
            raise NotBuilt(
                f"{self.title} needs Go {text}; {found} is {answer.stdout.strip() or 'not working'}",
                mend=f"install Go {text} or newer (go.dev/dl) and put it on PATH",
            )
        return Path(found)

    def _needed_version(self, module: Module) -> tuple[int, ...]:
        text = (self.sources / module.name / "go.mod").read_text()
        found = re.search(r"^go (\S+)$", text, re.MULTILINE)
        return _version(found.group(1) if found else "")

    def _build(self, go: Path, module: Module, say: Tell) -> None:
        """Build one module's programs, telling how far it is. Raises `LabError` with the compiler's last words."""
        target = self.folder_of(module)
        target.mkdir(parents=True, exist_ok=True)
        say(
            f"building {', '.join(module.programs)} (about {module.minutes:g} min on two cores the first time, "
            f"seconds when Go's caches are warm) into {target}"
        )
        environ = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "1" if module.cgo else "0"}
        for package, name in zip(module.packages, module.programs, strict=True):
            fresh = target / f".{name}.{os.getpid()}"
            command = [str(go), "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", module.linker_flags]
            if module.tags:
                command += ["-tags", module.tags]
            began = time.monotonic()
            status, words = _run([*command, "-o", str(fresh), package], self.sources / module.name, environ, name, say)
            if status != 0:
                fresh.unlink(missing_ok=True)
                raise LabError(f"building {name} failed:\n" + "\n".join(words[-20:]))
            fresh.replace(target / name)
            size = (target / name).stat().st_size / 2**20
            say(f"built {name}: {size:.0f} MiB in {time.monotonic() - began:.0f} s")

    @contextlib.contextmanager
    def locked(self, say: Tell) -> Iterator[None]:
        """Hold the cache's lock; whoever waits says so once."""
        cache = self.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "build.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process builds {self.title}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)


def _run(command: list[str], folder: Path, environ: dict[str, str], name: str, say: Tell) -> tuple[int, list[str]]:
    """Run a build; `go build -v` names each package as it is compiled. Return its status and what else it said."""
    words: list[str] = []
    compiled, told_at = 0, time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                if re.fullmatch(r"[\w./~@+-]+\n?", line):
                    compiled += 1
                else:
                    words.append(line.rstrip())
                if time.monotonic() - told_at > 10:
                    told_at = time.monotonic()
                    say(f"  {name}: {compiled} packages compiled" if compiled else f"  {name}: {line.strip()}")
        except BaseException:
            child.terminate()  # go ends its compilers with itself
            raise
    return child.returncode, words


def say_on_stderr(text: str) -> None:
    """Tell people how far a build is; answers go to standard output."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
