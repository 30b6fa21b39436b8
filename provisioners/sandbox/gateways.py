"""Keeps the gateway processes of all estates as their records want them: started, probed, restarted, ended.

A gateway is the real program (`python -m provisioners.gateway`) in a process group of its own, so it
outlives this server; after a restart a running one is adopted, by pid and only if that process really
carries our state folder in its command line. The one-time token travels in the environment, never in
argv, file or store; a gateway that dies before it enrolled, or whose token is refused, is therefore reported
lost (its part is absent, its files are gone) and comes back only with a fresh token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

import provisioners
from provisioners.driver import Secret
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.hosting import Hosting
from provisioners.sandbox.keeping import Keeper
from provisioners.sandbox.ports import free_port, is_free
from provisioners.sandbox.records import GatewayRecord

PROBE_DEADLINE_S: Final = 1.0
TERM_TO_KILL_S: Final = 5.0
LONGEST_BACKOFF_S: Final = 30.0
PORTS: Final = range(18500, 28500)
"""Below the ports that the kernel gives to outgoing connections, so a restart finds its port free."""
_GONE: Final = 0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Process:
    """What this server remembers of one gateway's process."""

    child: subprocess.Popen[bytes] | None = None
    """None for an adopted one."""
    token: Secret | None = None
    """The token it was started with."""
    started_at: float = 0.0
    asked_to_end_at: float = 0.0
    hopeless: str = ""
    """Why it can never work again as it is, "" while it can."""


class GatewayKeeper(Keeper):
    """One loop over all gateways; `wake` makes it look at once."""

    what = "gateways"
    deadline_s = PROBE_DEADLINE_S

    def __init__(self, hosting: Hosting, state_dir: Path, *, python: str = sys.executable) -> None:
        """Keep gateways' files under `state_dir`/<estate>/<gateway>."""
        super().__init__(hosting)
        self._state_dir = state_dir
        self._python = python
        self._processes: dict[tuple[str, str], _Process] = {}

    async def stop_all(self, name: str) -> None:
        """End every gateway of an estate and wait until they are gone; before the estate is removed."""
        estate = self._hosting.find(name)
        real = [gateway for gateway in estate.state.gateways.values() if not gateway.simulated]
        for gateway in real:
            gateway.wanted = False
        while any(gateway.uid in estate.state.gateways for gateway in real):
            for gateway in real:
                await self._look(name, estate, gateway)
            await asyncio.sleep(0.05)

    async def _look_at_estate(self, name: str) -> None:
        estate = self._hosting.find(name)
        real = [gateway for gateway in estate.state.gateways.values() if not gateway.simulated]
        if real:
            await asyncio.gather(*(self._look(name, estate, gateway) for gateway in real))

    async def _look(self, name: str, estate: Estate, gateway: GatewayRecord) -> None:
        folder = self._state_dir / name / gateway.uid
        process = self._processes.setdefault((name, gateway.uid), _Process())
        alive = _is_alive(gateway.pid, folder, process)
        with self._hosting.using(name) as current:
            if current is not estate:
                return
            workload = estate.state.workloads.get(gateway.unit)
            should_run = gateway.wanted and (not gateway.unit or (workload is not None and workload.running))
            token = estate.tokens.get(gateway.uid)
            if alive and not gateway.enrolled and token is not None and process.token != token:
                should_run = False  # a newer token was delivered: the old one may never be good again
            if alive and (process.hopeless or gateway.started_with != gateway.call):
                should_run = False
            if alive and not should_run:
                _end(gateway.pid, process)
                if gateway.wanted:
                    _note(estate, gateway, running=False, message="stopping")
            elif not gateway.wanted:
                self._forget(name, gateway, folder)
                estate.gateway_gone(gateway.uid)
            elif process.hopeless or (should_run and not alive and token is None and not gateway.enrolled):
                self._forget(name, gateway, folder)
                estate.gateway_lost(gateway.uid, process.hopeless or "it ended before it had enrolled")
            elif should_run and not alive:
                self._restart(estate, gateway, folder, process, token)
            elif not should_run and gateway.running:
                _note(estate, gateway, running=False, message="the machine is off")
        if alive and should_run:
            await self._probe(name, gateway)

    def _restart(
        self, estate: Estate, gateway: GatewayRecord, folder: Path, process: _Process, token: Secret | None
    ) -> None:
        backoff_s = min(LONGEST_BACKOFF_S, 0.25 * 2 ** min(gateway.restarts, 10)) if gateway.restarts else 0.0
        if time.monotonic() - process.started_at < backoff_s:
            return
        taken = {other.port for other in self._all_gateways() if other.uid != gateway.uid}
        port = gateway.port if is_free(gateway.port) else free_port(PORTS, taken)
        environment = _environment(gateway, token)
        process.child = _spawn(self._python, folder, port, environment, tls=gateway.tls)
        process.token, process.started_at, process.asked_to_end_at = token, time.monotonic(), 0.0
        gateway.restarts += 1
        gateway.started_with = gateway.call
        _log.info("gateway %s started: pid %s, port %s", gateway.uid, process.child.pid, port)
        estate.gateway_seen(
            gateway.uid,
            running=False,
            enrolled=gateway.enrolled,
            pid=process.child.pid,
            port=port,
            message="starting",
        )

    def _forget(self, name: str, gateway: GatewayRecord, folder: Path) -> None:
        """Remove what is left of a gateway whose process has ended."""
        self._processes.pop((name, gateway.uid), None)
        shutil.rmtree(folder, ignore_errors=True)

    def _all_gateways(self) -> list[GatewayRecord]:
        return [
            gateway for name in self._hosting.names() for gateway in self._hosting.find(name).state.gateways.values()
        ]

    async def _probe(self, name: str, gateway: GatewayRecord) -> None:
        """Ask a running gateway how it is; no answer changes nothing but `running`."""
        health: object = None
        if self._client is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                # ours, on loopback: whether anybody trusts its certificate is another question
                async with self._client.get(f"{gateway.base_url}/healthz", ssl=False) as response:
                    health = await response.json(content_type=None)
        with self._hosting.using(name) as estate:
            if gateway.uid not in estate.state.gateways:
                return
            if not isinstance(health, dict) or health.get("gateway") != gateway.uid:
                _note(estate, gateway, running=False, message="the gateway does not answer yet")
                return
            enrolled = bool(health.get("enrolled"))
            message = "" if enrolled else "the gateway has not enrolled yet"
            if enrolled:
                gateway.restarts = 0
            process = self._processes.get((name, gateway.uid))
            if process is not None:
                process.hopeless = _why_hopeless(health)
            estate.gateway_seen(
                gateway.uid, running=True, enrolled=enrolled, pid=gateway.pid, port=gateway.port, message=message
            )


def _why_hopeless(health: Mapping[str, object]) -> str:
    """Return why a gateway that says `health` of itself needs a fresh start with a fresh token, or ""."""
    if health.get("state") == "removed":
        return "the control plane has removed it"
    if not health.get("enrolled") and health.get("control_plane") == "token-refused":
        return "the control plane refused its token"
    return ""


def _note(estate: Estate, gateway: GatewayRecord, *, running: bool, message: str) -> None:
    estate.gateway_seen(
        gateway.uid,
        running=running,
        enrolled=gateway.enrolled,
        pid=gateway.pid,
        port=gateway.port,
        message=message,
    )


# --- processes ------------------------------------------------------------------------------------


def _environment(gateway: GatewayRecord, token: Secret | None) -> dict[str, str]:
    """Return a small environment of its own: nothing of the server's is handed on but where Python finds code."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(Path(provisioners.__file__).resolve().parent.parent),
        "TENANTRY_GATEWAY_CONTROL_URL": gateway.control_plane_url,
        "TENANTRY_GATEWAY_UID": gateway.uid,
        **({} if token is None else {"TENANTRY_GATEWAY_TOKEN": token.reveal()}),
    }


def _spawn(
    python: str, folder: Path, port: int, environment: Mapping[str, str], *, tls: bool
) -> subprocess.Popen[bytes]:
    more = ["--tls"] if tls else []
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "gateway.log").open("ab") as log:
        return subprocess.Popen(
            [python, "-m", "provisioners.gateway", "--state", str(folder), "--port", str(port), *more],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )


def _is_alive(pid: int, folder: Path, process: _Process) -> bool:
    """Tell whether `pid` is this gateway's process: a number that was given out again is not."""
    if process.child is not None and process.child.poll() is not None:
        process.child = None
    if pid == _GONE:
        return False
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"provisioners.gateway" in argv and str(folder).encode() in argv


def _end(pid: int, process: _Process) -> None:
    """Ask the process group to end; the second time, long after, make it."""
    now = time.monotonic()
    if process.asked_to_end_at == 0.0:
        process.asked_to_end_at = now
        number = signal.SIGTERM
    elif now - process.asked_to_end_at > TERM_TO_KILL_S:
        number = signal.SIGKILL
    else:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def end_recorded(hosting: Hosting, state_dir: Path) -> int:
    """End every recorded gateway process without a running server; return how many. For `sandbox stop`."""
    ended = []
    for name in hosting.names():
        for gateway in hosting.find(name).state.gateways.values():
            if not gateway.simulated and _is_alive(gateway.pid, state_dir / name / gateway.uid, _Process()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(gateway.pid, signal.SIGTERM)
                ended.append(gateway.pid)
    return len(ended)
