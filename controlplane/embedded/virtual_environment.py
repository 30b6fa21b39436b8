"""The checkout's `.venv`: made once, filled from the hashed lock, made anew only when the lock changes.

Standard library only, because it runs before anything is installed. Two levels: what the product needs
(`requirements.lock`), and with `--dev` also what tests and checks need (`requirements-dev.lock`, same versions).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from controlplane.embedded import machine
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.places import state_dir

ROOT = Path(__file__).resolve().parents[2]
_PIP_OPTIONS = ("--progress-bar", "off")
_PIP_ENVIRON = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}


@dataclass(frozen=True)
class VirtualEnvironment:
    """`.venv` of one checkout."""

    root: Path

    @property
    def folder(self) -> Path:
        """The environment itself."""
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def lock(self, *, dev: bool) -> Path:
        """Return the lock file of a level."""
        return self.root / ("requirements-dev.lock" if dev else "requirements.lock")

    def fingerprint(self, *, dev: bool) -> str:
        """Return a digest of all that decides what is installed."""
        digest = hashlib.sha256(sys.version.encode())
        for file in (self.lock(dev=dev), self.root / "pyproject.toml"):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def stamp(self) -> dict[str, str]:
        """Return what the last complete set-up left: level and fingerprint; empty when there is none."""
        try:
            stored = json.loads((self.folder / "tenantry-setup.json").read_text())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def is_complete(self, *, dev: bool) -> bool:
        """Whether the last set-up was of this level or above, from the same files, and still runs."""
        stamp = self.stamp()
        stamped_dev = stamp.get("level") == "dev"
        if not stamp or (dev and not stamped_dev) or stamp.get("fingerprint") != self.fingerprint(dev=stamped_dev):
            return False
        return self._runs()

    def build(self, *, dev: bool) -> None:
        """Make or refresh the environment. Raises `EmbeddedError` with the end of pip's words."""
        dev = dev or self.stamp().get("level") == "dev"  # never takes test tools away again
        began = time.monotonic()
        (self.folder / "tenantry-setup.json").unlink(missing_ok=True)
        if not self._runs():
            say(f"virtual environment  {self.folder}")
            made = subprocess.run(
                [sys.executable, "-m", "venv", "--clear", str(self.folder)], capture_output=True, text=True, check=False
            )
            if made.returncode != 0:
                raise EmbeddedError(
                    f"no virtual environment could be made:\n{(made.stdout + made.stderr).strip()}",
                    mend=machine.ensurepip().mend or f"rm -r {self.folder}, then start this again",
                )
        if not self._runs("pip"):  # made by another tool, which left pip out
            self._module("ensurepip", "--upgrade")
        lock = self.lock(dev=dev)
        count = len(re.findall(r"(?m)^[A-Za-z0-9][\w.\-\[\],]*==", lock.read_text()))
        say(f"dependencies         {lock.name}, up to {count} packages with their hashes")
        self._module("pip", "install", *_PIP_OPTIONS, "--require-hashes", "-r", str(lock), count=count)
        self._module("pip", "install", *_PIP_OPTIONS, "--no-deps", "--no-build-isolation", "-e", str(self.root))
        stamp = {"level": "dev" if dev else "product", "fingerprint": self.fingerprint(dev=dev)}
        (self.folder / "tenantry-setup.json").write_text(json.dumps(stamp) + "\n")
        say(f"set up in            {time.monotonic() - began:.0f} s")

    def _runs(self, module: str = "sys") -> bool:
        """Whether the interpreter is there, starts, is of our version and has `module`."""
        question = f"import sys, {module}; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
        try:
            return subprocess.run([self.python, "-c", question], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def _module(self, *words: str, count: int = 0) -> None:
        """Run a module of the environment, as pip; on a terminal count the packages as they come."""
        last: deque[str] = deque(maxlen=15)
        seen, live = 0, sys.stdout.isatty()
        with subprocess.Popen(
            [self.python, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root,
            env=os.environ | _PIP_ENVIRON,
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                last.append(line.rstrip())
                seen += line.startswith(("Collecting ", "Requirement already satisfied"))
                if live and count:
                    doing = "installing" if line.startswith("Installing") else f"{min(seen, count)}/{count}"
                    print(f"\r  {doing:<20}", end="", flush=True)
        if live and count:
            print("\r" + " " * 24 + "\r", end="", flush=True)
        if child.returncode != 0:
            raise EmbeddedError(
                f"{words[0]} failed:\n" + "\n".join(last),
                mend="see that pip reaches its package index (`pip config list`), then start this again",
            )


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    """Check the machine, complete the environment, then become the command in it."""
    parser = argparse.ArgumentParser(prog="first_run.py", description="Set Tenantry up on this machine and run it.")
    parser.add_argument("--dev", action="store_true", help="also install what tests and checks need")
    parser.add_argument(
        "command", help="setup · run PROGRAM … (of .venv/bin) · up · demo · down · reset · status · doctor"
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the command")
    asked = parser.parse_args(arguments)
    environment = VirtualEnvironment(ROOT)
    try:
        if not environment.is_complete(dev=asked.dev):
            if not machine_is_fit(fresh=True):
                return 1
            environment.build(dev=asked.dev)
    except EmbeddedError as error:
        print(error, file=sys.stderr)
        return 1
    if asked.command == "setup":
        say(f"ready: {environment.folder}")
        return 0
    if asked.command == "run":
        program = environment.folder / "bin" / asked.rest[0]
        command = [str(program), *asked.rest[1:]]
    else:
        command = [str(environment.python), "-m", "controlplane.embedded", asked.command, *asked.rest]
    os.chdir(ROOT)
    sys.stdout.flush()
    return replace_us(command)


def replace_us(command: list[str]) -> NoReturn:
    """Become that program: signals and the exit status are then its own."""
    os.execv(command[0], command)  # noqa: S606 - the words of the person at the terminal


def machine_is_fit(*, fresh: bool) -> bool:
    """Check the machine and print what fails with the line that mends it."""
    findings = machine.check(root=ROOT, state=state_dir(os.environ), fresh=fresh)
    for finding in findings:
        if not finding.ok:
            print(finding.line(), file=sys.stderr)
    return all(finding.ok for finding in findings)
