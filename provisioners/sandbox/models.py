"""Keeps the model servers of estates whose setting `models` is `local`: a real `vllm serve` for each replica.

What is started is what the `vllm` runtime rendered, moved to a port of this machine: same program, same arguments, same
environment, nothing from a tenant beside it. The key of the last hop travels in the environment only and is kept in
memory only; a server that died, and whose key a restart of ours has forgotten, is reported lost and built anew.

Each runs in a process group and a folder of its own and outlives this server; it is found again by pid and start, or
by that folder. Only what carries both is ever ended. Its GPU is simulated still, and whoever shows it says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from provisioners.driver import DriverRejected, NotSupported, Secret
from provisioners.sandbox import processes, vllm_words
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.hosting import Hosting
from provisioners.sandbox.keeping import Keeper
from provisioners.sandbox.ports import free_port
from provisioners.sandbox.processes import Mark
from provisioners.sandbox.records import ModelRecord, WorkloadRecord
from provisioners.sandbox.views import call_of
from provisioners.serving.runtime import Place, runtime
from provisioners.serving.vllm import KEY_VARIABLE

STEADY_S: Final = 2.0
"""Between looks at one that is ready."""
PROBE_DEADLINE_S: Final = 2.0
TERM_TO_KILL_S: Final = 20.0
LONGEST_BACKOFF_S: Final = 60.0
LOOPBACK: Final = "127.0.0.1"
LOG: Final = "vllm.log"
LOG_BYTES_A_LOOK: Final = 65_536
KV_CACHE_GIB: Final = "1"
PORTS: Final = range(12000, 18000)
"""Below those of gateways."""
NOT_HERE: Final = "this sandbox was started without a vLLM (`make vllm`, then serve --vllm)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Programs:
    """The vLLM of this machine."""

    vllm: Path
    """Its program, in the environment that it was installed into."""
    home: Path
    """HF_HOME: the only place that weights come from."""

    def environment(self, folder: Path, cache: Path) -> dict[str, str]:
        """Return what this machine adds to a call, without secrets; no TMPDIR, as sockets need short paths."""
        return {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.home),
            "HOME": str(folder),
            "PATH": os.pathsep.join((str(self.vllm.parent), "/usr/local/bin", "/usr/bin", "/bin")),
            "LANG": "C.UTF-8",
            "VLLM_CACHE_ROOT": str(cache),
            "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
        }


@dataclass(slots=True)
class _Process:
    """What this server remembers of one model server."""

    child: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    asked_to_end_at: float = 0.0
    looked_at: float = 0.0
    log_at: int = 0
    """How far its log was read."""
    lines: list[str] = field(default_factory=list)
    """The last of them."""


class ModelKeeper(Keeper):
    """One loop over all model servers; `wake` makes it look at once."""

    what = "models"
    deadline_s = PROBE_DEADLINE_S

    def __init__(self, hosting: Hosting, state_dir: Path, *, programs: Programs | None) -> None:
        """Keep model servers' files under `state_dir`/<estate>/<unit>; without `programs` none is started."""
        super().__init__(hosting)
        self._state_dir = state_dir
        self._programs = programs
        self._processes: dict[tuple[str, str], _Process] = {}
        self._closing: set[str] = set()
        """Estates that are being emptied: nothing is started there."""

    async def stop_all(self, name: str) -> None:
        """End every model server of an estate and wait until they are gone; before the estate is removed."""
        estate = self._hosting.find(name)
        self._closing.add(name)
        try:
            while estate.state.models:
                for record in list(estate.state.models.values()):
                    await self._look(name, estate, record.uid)
                await asyncio.sleep(0.05)
        finally:
            self._closing.discard(name)

    async def _look_at_estate(self, name: str) -> None:
        estate = self._hosting.find(name)
        uids = set(estate.state.models)
        if estate.state.settings.models == "local":
            uids |= {uid for uid, workload in estate.state.workloads.items() if workload.serving is not None}
        await asyncio.gather(*(self._look(name, estate, uid) for uid in sorted(uids)))

    # --- one model server ---------------------------------------------------------------------------

    async def _look(self, name: str, estate: Estate, uid: str) -> None:
        """Do for one replica what is to be done now: start, end, ask how it is, or forget it."""
        process = self._processes.setdefault((name, uid), _Process())
        if process.child is not None and process.child.poll() is not None:
            process.child = None
        folder = (self._state_dir / name / uid).resolve()
        ready = False
        with self._hosting.using(name) as current:
            if current is not estate:
                return
            estate.advance()
            record = estate.state.models.get(uid)
            wanted = None if name in self._closing else self._wanted(estate, uid)
            alive = record is not None and processes.is_alive(Mark(record.pid, record.started))
            if record is None:
                if wanted is not None:
                    self._begin(name, estate, wanted, folder, process)
                return
            self._read_log(estate, record, folder, process)
            if wanted is None or record.call != call_of(wanted) or not record.wanted:
                self._end(name, estate, record, folder, process, alive=alive)
            elif alive:
                ready = True
            else:
                self._ended(name, estate, record, wanted, folder, process)
        if ready and record is not None:
            await self._probe(name, record, process)

    def _wanted(self, estate: Estate, uid: str) -> WorkloadRecord | None:
        """Return the replica that a model server should run for now, None while none should."""
        state = estate.state
        workload = state.workloads.get(uid)
        if state.settings.models != "local" or workload is None or workload.serving is None or not workload.running:
            return None
        is_well = state.hosts[workload.host].healthy and all(state.gpus[w[0]].healthy for w in workload.windows)
        return workload if is_well and estate.advance() >= workload.ready_at else None

    def _begin(
        self, name: str, estate: Estate, workload: WorkloadRecord, folder: Path, process: _Process, *, restarts: int = 0
    ) -> None:
        """Start a model server; what cannot be started is said and tried again after a while."""
        serving: Mapping[str, Any] = workload.serving or {}
        record = ModelRecord(uid=workload.uid, owner=workload.owner, call=call_of(workload), restarts=restarts)
        if list(processes.working_in(folder)):
            # One that was started just before this server died, unrecorded: it is ours, but nobody knows its state.
            processes.kill(folder)
            return
        key = estate.keys.get(workload.uid)
        if serving.get("key_digest") and key is None:
            if self._is_built(estate, workload):
                self._forget(name, folder, workload.uid)
                estate.model_lost(workload.uid, "its key went with the last restart of the sandbox")
            return
        try:
            process.child, record.port = self._spawned(serving, key, folder)
        except (DriverRejected, NotSupported, OSError) as error:
            record.message = f"vLLM cannot be started: {getattr(error, 'detail', error)}"
            record.restarts += 1
            estate.model_seen(record)
            process.started_at = time.monotonic()
            return
        mark = processes.mark_of(process.child.pid) or Mark(process.child.pid, "")
        record.pid, record.started, record.message = mark.pid, mark.started, "vLLM is starting"
        record.began_at = time.time()
        process.started_at, process.asked_to_end_at = time.monotonic(), 0.0
        process.log_at, process.lines = 0, []
        _log.info("vLLM of %s started: pid %s, port %s", workload.uid, record.pid, record.port)
        estate.model_seen(record)

    def _spawned(
        self, serving: Mapping[str, Any], key: Secret | None, folder: Path
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start what the runtime rendered, moved here. Raises `NotSupported`, `DriverRejected`, `OSError`."""
        programs = self._programs
        if programs is None:
            raise NotSupported(NOT_HERE)
        port = free_port(PORTS, {other.port for other in self._all_records()})
        place = Place(LOOPBACK, port, programs.environment(folder, self._state_dir / "cache"))
        rendered = runtime(str(serving["runtime"])).moved(serving["argv"], serving["environment"], place)
        secret = {} if key is None else {KEY_VARIABLE: key}
        return _spawn(programs.vllm, rendered.argv, folder, rendered.environment, secret), port

    def _is_built(self, estate: Estate, workload: WorkloadRecord) -> bool:
        owner = estate.state.objects.get(workload.owner)
        part = None if owner is None else owner.parts.get(f"serving.replica[{workload.index}]")
        return part is not None and not part.changing

    def _ended(
        self, name: str, estate: Estate, record: ModelRecord, workload: WorkloadRecord, folder: Path, process: _Process
    ) -> None:
        """It ended by itself: say why, clear what is left of it, start it again after a pause."""
        if list(processes.working_in(folder)):
            processes.kill(folder)
            return
        if record.pid:
            why = vllm_words.why_it_ended(process.lines)
            record = ModelRecord(uid=record.uid, owner=record.owner, call=record.call, restarts=record.restarts + 1)
            record.message = f"vLLM ended by itself: {why}"
            estate.model_seen(record)
            estate.state.log(record.owner, time.time(), record.message, "vllm")
            return
        backoff_s = min(LONGEST_BACKOFF_S, 2.0 ** min(record.restarts, 10))
        if time.monotonic() - process.started_at >= backoff_s:
            self._begin(name, estate, workload, folder, process, restarts=record.restarts)

    def _end(
        self, name: str, estate: Estate, record: ModelRecord, folder: Path, process: _Process, *, alive: bool
    ) -> None:
        """End what is not wanted any more, or not as it is; forget it once nothing of it runs."""
        now = time.monotonic()
        left = alive or bool(list(processes.working_in(folder)))
        if not left:
            self._forget(name, folder, record.uid)
            estate.model_gone(record.uid)
        elif process.asked_to_end_at == 0.0:
            process.asked_to_end_at = now
            processes.ask_to_end(Mark(record.pid, record.started), folder)
            record.ready, record.message = False, "vLLM is stopping"
            estate.model_seen(record)
        elif now - process.asked_to_end_at > TERM_TO_KILL_S or not alive:
            processes.kill(folder)

    def _forget(self, name: str, folder: Path, uid: str) -> None:
        self._processes.pop((name, uid), None)
        shutil.rmtree(folder, ignore_errors=True)

    def _all_records(self) -> list[ModelRecord]:
        return [record for name in self._hosting.names() for record in self._hosting.find(name).state.models.values()]

    # --- how it is ----------------------------------------------------------------------------------

    async def _probe(self, name: str, record: ModelRecord, process: _Process) -> None:
        """Ask a running server whether it is ready; once it is, what it says of itself."""
        now = time.monotonic()
        if record.ready and now - process.looked_at < STEADY_S:
            return
        process.looked_at = now
        ready = await self._get(record.port, "/health") is not None
        told = dict(record.told)
        if ready and not told:
            metrics, version = await self._get(record.port, "/metrics"), await self._get(record.port, "/version")
            told = vllm_words.told(metrics or "", version or "", process.lines)
            told["load_s"] = round(time.time() - record.began_at, 1)
        with self._hosting.using(name) as estate:
            current = estate.state.models.get(record.uid)
            if current is None or (current.pid, current.started) != (record.pid, record.started):
                return
            said = "" if ready else vllm_words.doing(process.lines) or "vLLM is starting"
            if (current.ready, current.told, current.message) != (ready, told, said):
                current.ready, current.told, current.message = ready, told, said
                current.restarts = 0 if ready else current.restarts
                estate.model_seen(current)

    async def _get(self, port: int, path: str) -> str | None:
        if self._client is None:
            return None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            async with self._client.get(f"http://{LOOPBACK}:{port}{path}") as response:
                text = await response.text()
                return text if response.ok else None
        return None

    def _read_log(self, estate: Estate, record: ModelRecord, folder: Path, process: _Process) -> None:
        """Take what it has written since the last look into the object's log; one that was adopted from its end."""
        if process.child is None and process.log_at == 0 and record.ready:
            with contextlib.suppress(OSError):
                process.log_at = (folder / LOG).stat().st_size
        try:
            with (folder / LOG).open("rb") as log:
                log.seek(process.log_at)
                raw = log.read(LOG_BYTES_A_LOOK)
        except OSError:
            return
        whole = raw[: raw.rfind(b"\n") + 1]
        process.log_at += len(whole)
        lines = [line for line in whole.decode(errors="replace").splitlines() if vllm_words.is_worth_keeping(line)]
        process.lines = [*process.lines, *lines][-200:]
        now = time.time()
        for line in lines:
            estate.state.log(record.owner, now, line[:500], "vllm")


def _spawn(
    program: Path,
    argv: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    secrets: Mapping[str, Secret],
) -> subprocess.Popen[bytes]:
    """Start a rendered call in a session and a folder of its own, with nothing of this server's environment."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(
            argv,
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, **{name: secret.reveal() for name, secret in secrets.items()}},
            cwd=folder,
            start_new_session=True,
        )


def end_recorded(hosting: Hosting, state_dir: Path, *, grace_s: float = TERM_TO_KILL_S) -> int:
    """End every recorded model server without a running sandbox, and wait; return how many. For `sandbox stop`."""
    folders = {
        (state_dir / name / record.uid).resolve(): Mark(record.pid, record.started)
        for name in hosting.names()
        for record in hosting.find(name).state.models.values()
    }
    running = [folder for folder in folders if list(processes.working_in(folder))]
    for folder in running:
        processes.ask_to_end(folders[folder], folder)
    end = time.monotonic() + grace_s
    for folder in running:
        while list(processes.working_in(folder)):
            if time.monotonic() > end or not processes.is_alive(folders[folder]):
                processes.kill(folder)  # what is left without its leader has nobody to end it
            _pause()
    return len(running)


def _pause() -> None:
    """Wait a moment; `sandbox stop` has nothing else to do."""
    with contextlib.suppress(TimeoutError):
        asyncio.run(asyncio.sleep(0.05))
