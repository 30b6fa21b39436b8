"""`python -m provisioners.sandbox serve` as a process, and specs driven on it until they are as wanted or gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from provisioners.driver import Observed, Presence, Secret, Spec, TransientDriverError, removal_of
from provisioners.sandbox.driver import SandboxDriver
from tests.conformance.rigs import DOCUMENT
from tests.gateway_lab import ROOT, until

TOKEN = "process-test-token"
QUICK = {"delays_s": {"": 0.0}, "boot_s": 0.0, "load_s": 0.0, "report_delay_s": 0.0}


class SandboxProcess:
    """`python -m provisioners.sandbox serve` on one port and folder, killed and started at will."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.words = words
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, verify=False, timeout=10)
        self.start()

    def start(self) -> None:
        with (self.folder / "sandbox.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "provisioners.sandbox", "serve", "--fast"),
                    *("--state", str(self.folder / "state"), "--port", str(self.port)),
                    *self.words,
                ],
                env={"PATH": os.environ["PATH"], "TENANTRY_SANDBOX_TOKEN": TOKEN},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self.wait_for(lambda: self.client.get(f"{self.url}/healthz").is_success)

    def wait_for(self, good: Callable[[], Any], *, within_s: float = 15.0) -> Any:
        async def look() -> Any:
            try:
                return await asyncio.to_thread(good)
            except (httpx.HTTPError, TransientDriverError):
                return None

        return asyncio.run(until(look, bool, within_s=within_s))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def estate(self, **settings: Any) -> SandboxDriver:
        name = f"e-{uuid4().hex[:8]}"
        document = {**DOCUMENT, "settings": {**QUICK, **settings}}
        assert self.client.put(f"{self.url}/estates/{name}", json=document).status_code == 201
        return SandboxDriver(self.url, token=Secret(TOKEN), estate=name)

    def stop(self) -> None:
        subprocess.run(
            [sys.executable, "-m", "provisioners.sandbox", "stop", "--state", str(self.folder / "state")],
            check=True,
            cwd=ROOT,
            timeout=30,
        )
        if self.process is not None:
            self.process.wait(15)
        self.client.close()

    def gateways(self) -> list[int]:
        """Return the pids of every gateway process of this folder, found without the server."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                command = (folder / "cmdline").read_bytes()
                dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if b"provisioners.gateway" in command and str(self.folder).encode() in command and not dead:
                found.append(int(folder.name))
        return found


def as_wanted(driver: SandboxDriver, spec: Spec) -> Observed | None:
    """Do what is missing and can be done now; return the object once all of it is ready."""
    seen = driver.observe(spec.ref)
    for step in driver.steps(spec):
        part = seen.part(step.name)
        if part.presence == Presence.ABSENT or (part.have != step.want and part.presence == Presence.PRESENT):
            driver.start(step)
            return None
        if not part.ready:
            return None
    return seen


def is_gone(driver: SandboxDriver, spec: Spec) -> bool:
    seen = driver.observe(spec.ref)
    if seen.exists and seen.parts[-1].presence != Presence.CHANGING:
        driver.start(removal_of(spec.ref, seen.parts[-1].step))
    return not seen.exists
