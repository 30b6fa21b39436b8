"""One container of a played pod, from its configuration to its end, and again after every crash.

Waits with the kubelet's words while something is missing, starts the process, runs its probes, backs off longer
after every crash, and never starts a second process while the first lives. All state that a new player needs to go
on stands in `record`, which the pod's life keeps on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from controlplane.labs.kubernetes import containers, processes
from controlplane.labs.kubernetes.containers import ImageMissing, NotStarted
from controlplane.labs.kubernetes.environment import ConfigError, Sources, argv_of, environment_of
from controlplane.labs.kubernetes.ground import LOAD_ANNOTATION, Ground
from controlplane.labs.kubernetes.probes import Probe, Verdict, ask
from controlplane.labs.kubernetes.processes import Process
from controlplane.labs.kubernetes.statuses import ContainerView, Ended, stamp
from controlplane.labs.kubernetes.volumes import mounts_of

Object = dict[str, Any]
FIRST_BACKOFF_S: Final = 10.0
LONGEST_BACKOFF_S: Final = 300.0
CONFIG_RETRY_S: Final = 10.0
LOG_TAIL: Final = 400
"""Characters of the log's end that stand in a terminated state (`FallbackToLogsOnError` shows as many lines)."""


@dataclass(slots=True)
class Record:
    """What outlives the player."""

    pid: int = 0
    run: int = 0
    """Number of the process: its marker is made of it."""
    since: str = ""
    restarts: int = 0
    ports: dict[int, int] = field(default_factory=dict)
    """Container port → loopback port; kept over restarts, so that an address stays."""
    exposed: bool = False
    """Whether the ports can be reached from outside the pod."""

    def as_json(self) -> Object:
        """Return it for the file."""
        return asdict(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Record:
        """Read it from the file."""
        ports = {int(port): int(real) for port, real in (given.get("ports") or {}).items()}
        return cls(**{**given, "ports": ports})


class ContainerLife:
    """Plays one container."""

    def __init__(
        self,
        ground: Ground,
        pod: Callable[[], Object],
        container: Object,
        record: Record,
        *,
        changed: Callable[[], Awaitable[None]],
        store: Callable[[], None],
        sources: Callable[[], Awaitable[Sources]],
    ) -> None:
        """`pod` returns the pod as it is now; `changed` writes status, `store` the record; `sources` reads anew."""
        self._ground = ground
        self._pod = pod
        self.spec = container
        self.record = record
        self.view = ContainerView(container["name"], container["image"], restarts=record.restarts)
        self.volumes: Mapping[str, Path] = {}
        self._changed = changed
        self._store = store
        self._sources = sources
        self._process: Process | None = None
        self._crashes = 0
        pid = ground.marked.get(self._marker, 0)
        if pid:  # also one that was started a moment before the player ended
            self._process, record.pid = processes.adopted(pid, self._marker), pid
        ground.ports.taken |= set(record.ports.values())

    @property
    def _marker(self) -> str:
        return f"{self._pod()['metadata']['uid']}/{self.spec['name']}/{self.record.run}"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.exit_code() is None

    async def live(self) -> None:
        """Play until it has ended for good; cancelling leaves the process as it is."""
        while self.view.ended is None:
            if not self.running and not (self.record.pid and self._process is None):
                await self._come_up()
            ended = await self._run_to_its_end()
            await self._over(ended)

    # --- coming up --------------------------------------------------------------------------------

    async def _come_up(self) -> None:
        """Start the process, waiting for whatever is missing."""
        while True:
            try:
                await self._start()
            except ImageMissing as error:
                await self._wait_with("ErrImagePull", str(error))
                await self._tell("Failed", f'Failed to pull image "{self.spec["image"]}": {error}')
                await self._ground.rest(1)
                await self._wait_with("ImagePullBackOff", f'Back-off pulling image "{self.spec["image"]}"')
                await self._ground.rest(CONFIG_RETRY_S)
            except ConfigError as error:
                await self._wait_with("CreateContainerConfigError", str(error))
                await self._tell("Failed", f"Error: {error}")
                await self._ground.rest(CONFIG_RETRY_S)
            except NotStarted as error:
                await self._tell("Failed", f"Error: {error}")
                moment = stamp(self._ground.now())
                await self._over(Ended(error.exit_code, error.reason, moment, moment, str(error)))
                if self.view.ended is not None:
                    return
            else:
                return

    async def _start(self) -> None:
        pod = self._pod()
        while self._ground.lost(pod["spec"]["nodeName"]) == "dead":
            await self._ground.rest(1)
        image = containers.image_of(self.spec["image"])
        try:
            containers.check_user(pod, self.spec, image)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        sources = await self._sources()
        environment = environment_of(pod, self.spec, sources)
        command, arguments = argv_of(self.spec, environment)
        words = [*command, *arguments] if command else [*image.entrypoint, *arguments]
        folders = self._ground.folders(pod["metadata"]["uid"])
        layer = folders.layer(self.spec["name"])
        folders.termination(self.spec["name"]).unlink(missing_ok=True)
        shutil.rmtree(layer, ignore_errors=True)  # a container's own layer ends with it
        self.record.run += 1
        known = iter([*self.record.ports.values()])
        annotations = pod["metadata"].get("annotations") or {}
        launch = containers.launch(
            pod,
            self.spec,
            words=words,
            environment=environment,
            mounts=mounts_of(self.spec, self.volumes),
            layer=layer,
            free_port=lambda: next(known, 0) or self._ground.ports.free(),
            marker=self._marker,
            termination=folders.termination(self.spec["name"]),
            smi=await self._ground.devices.listed_by_smi(pod),
            load_s=float(annotations.get(LOAD_ANNOTATION, self._ground.load_s)),
        )
        self.record.ports = dict(launch.ports)
        self._store()
        self.record.since = stamp(self._ground.now())
        if self._ground.run_programs:
            log = folders.log(self.spec["name"])
            self._process = await asyncio.to_thread(processes.start, launch, marker=self._marker, folder=layer, log=log)
            self.record.pid = self._process.pid
        self.view.running_since = self.record.since
        self.view.started = self.view.ready = False
        await self._changed()
        await self._tell("Started", "Started container (simulated pod)", kind="Normal")

    async def _wait_with(self, reason: str, message: str) -> None:
        self.view.running_since, self.view.waiting = "", (reason, message)
        await self._changed()

    # --- running ----------------------------------------------------------------------------------

    async def _run_to_its_end(self) -> Ended:
        """Run the probes until the process has ended; kill it where they say so."""
        self.view.running_since = self.record.since
        killed_by = ""
        probing = asyncio.create_task(self._probe_all())
        exiting = asyncio.create_task(self._exit_code())
        try:
            await asyncio.wait({probing, exiting}, return_when=asyncio.FIRST_COMPLETED)
            if not exiting.done():
                killed_by = probing.result()
                await self._tell(
                    "Killing", f"Container {self.spec['name']} failed {killed_by} probe, will be restarted"
                )
                await self.stop(self._grace_s(), with_hook=True)
            code = await exiting
        finally:
            for task in (probing, exiting):
                task.cancel()
            await asyncio.gather(probing, exiting, return_exceptions=True)
        adopted = self._process is None or self._process.child is None
        reason = "ContainerStatusUnknown" if adopted else "Completed" if code == 0 else "Error"
        return Ended(code, reason, self.record.since, stamp(self._ground.now()), self._last_words(code))

    async def _exit_code(self) -> int:
        if not self._ground.run_programs:
            await asyncio.Event().wait()
        if self._process is None:  # it had ended before it could be adopted
            return processes.UNKNOWN_EXIT
        await _ended(self._process.pid)
        code = self._process.exit_code()
        while code is None:
            await asyncio.sleep(0.01)
            code = self._process.exit_code()
        return code

    async def _probe_all(self) -> str:
        """Keep `started` and `ready` true; return which probe the container is to be killed for."""
        probe = Probe.of(self.spec, "startup", hurry=self._ground.hurry)
        if probe is not None and not await self._probe_once_up(probe):
            return "startup"
        self.view.started = True
        readiness = Probe.of(self.spec, "readiness", hurry=self._ground.hurry)
        if readiness is None or not self._ground.run_programs:
            self.view.ready = True
        await self._changed()
        if not self._ground.run_programs:
            await asyncio.Event().wait()
        liveness = Probe.of(self.spec, "liveness", hurry=self._ground.hurry)
        if readiness is not None and liveness is not None:
            ready = asyncio.create_task(self._probe_ready(readiness))
            try:
                return await self._probe_alive(liveness)
            finally:
                ready.cancel()
        if readiness is not None:
            await self._probe_ready(readiness)
        if liveness is not None:
            return await self._probe_alive(liveness)
        await asyncio.Event().wait()
        return ""

    async def _probe_once_up(self, probe: Probe) -> bool:
        verdict = Verdict(probe)
        async for said in self._asked(probe):
            verdict.take(succeeded=not said)
            if verdict.passed or verdict.failed:
                return verdict.passed
        return False

    async def _probe_ready(self, probe: Probe) -> None:
        verdict = Verdict(probe)
        async for said in self._asked(probe):
            verdict.take(succeeded=not said)
            if verdict.passed != self.view.ready:
                self.view.ready = verdict.passed
                await self._changed()

    async def _probe_alive(self, probe: Probe) -> str:
        verdict = Verdict(probe)
        async for said in self._asked(probe):
            verdict.take(succeeded=not said)
            if verdict.failed:
                return "liveness"
        return ""

    async def _asked(self, probe: Probe) -> Any:
        if not self._ground.run_programs:
            yield ""
            return
        await asyncio.sleep(probe.delay_s)
        while True:
            pod_ip = (self._pod().get("status") or {}).get("podIP", "")
            said = await ask(self._ground.client, probe, self.spec, self.record.ports, pod_ip)
            if said:
                await self._tell("Unhealthy", f"{probe.kind.capitalize()} probe failed: {said}")
            yield said
            await asyncio.sleep(probe.period_s)

    # --- ending -----------------------------------------------------------------------------------

    async def _over(self, ended: Ended) -> None:
        """Note how a run ended, and wait for the next one where there is one."""
        self._process, self.record.pid = None, 0
        self.view.running_since, self.view.started, self.view.ready = "", False, False
        self.view.last = ended
        policy = self._pod()["spec"].get("restartPolicy", "Always")
        if policy == "Never" or (policy == "OnFailure" and ended.exit_code == 0):
            self.view.last, self.view.ended = None, ended
            await self._changed()
            return
        self._crashes += 1
        self.view.restarts += 1
        self.record.restarts = self.view.restarts
        if self._crashes > 1:  # the first restart is at once, as with the kubelet
            wait_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self._crashes - 2))
            meta = self._pod()["metadata"]
            place = f"container={self.spec['name']} pod={meta['name']}_{meta['namespace']}({meta['uid']})"
            words = f"back-off {wait_s:.0f}s restarting failed {place}"
            await self._wait_with("CrashLoopBackOff", words)
            await self._tell("BackOff", f"Back-off restarting failed {place}")
            await self._ground.rest(wait_s)
        else:
            await self._wait_with("CrashLoopBackOff" if ended.exit_code else "ContainerCreating", "")

    async def stop(self, grace_s: float, *, with_hook: bool) -> None:
        """End the process: the hook, SIGTERM, and SIGKILL once `grace_s` real seconds are over."""
        if not self.running or self._process is None:
            return
        until = asyncio.get_running_loop().time() + grace_s
        hook = ((self.spec.get("lifecycle") or {}).get("preStop") or {}) if with_hook else {}
        if "sleep" in hook and grace_s > 0:
            await asyncio.sleep(min(grace_s, float(hook["sleep"]["seconds"]) * self._ground.hurry))
        if grace_s > 0:
            self._process.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - asyncio.get_running_loop().time())):
                    await _ended(self._process.pid)
        if self.running:
            self._process.send(signal.SIGKILL)
            await _ended(self._process.pid)

    def ended_by_stop(self) -> None:
        """Show a container whose pod was ended."""
        code = 0 if self._process is None else self._process.exit_code() or 0
        moment = stamp(self._ground.now())
        reason = "Completed" if code == 0 else "Error"
        self.view.ended = Ended(code, reason, self.record.since or moment, moment)
        self.view.running_since, self.view.started, self.view.ready = "", False, False

    def give_back(self) -> None:
        """Let others have its ports."""
        self._ground.ports.give_back(set(self.record.ports.values()))

    def _grace_s(self) -> float:
        return float(self._pod()["spec"].get("terminationGracePeriodSeconds") or 30)

    def _last_words(self, code: int) -> str:
        """Return the termination message: what the program wrote there, else the end of its log where it failed."""
        folders = self._ground.folders(self._pod()["metadata"]["uid"])
        with contextlib.suppress(OSError):
            return folders.termination(self.spec["name"]).read_bytes()[:4096].decode(errors="replace")
        return self._log_end() if code else ""

    def _log_end(self) -> str:
        log = self._ground.folders(self._pod()["metadata"]["uid"]).log(self.spec["name"])
        try:
            return log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
        except OSError:
            return ""

    async def _tell(self, reason: str, message: str, *, kind: str = "Warning") -> None:
        await self._ground.tell(self._pod(), kind, reason, message)


async def _ended(pid: int) -> None:
    """Wait until a process has ended, child or not."""
    try:
        number = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.add_reader(number, lambda: None if over.done() else over.set_result(None))
    try:
        await over
    finally:
        loop.remove_reader(number)
        os.close(number)
