"""The life of one played pod: admission, volumes, claims, containers, deletion; its status is written as it goes.

A pod becomes Ready only through its containers' own probes. What keeps it waiting stands in its status and events in
the kubelet's words. A deleted pod's processes get SIGTERM, and SIGKILL when its grace is over; then the pod is
removed. The player may end and come again at any moment: `state.json` in the pod's folder says what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from controlplane.labs.kubernetes.container_life import ContainerLife, Record
from controlplane.labs.kubernetes.environment import Sources, referred
from controlplane.labs.kubernetes.ground import PLAYER_ANNOTATION, PORT_ANNOTATION, AdmissionRefused, Ground, NotYet
from controlplane.labs.kubernetes.rest import ApiError, path_of
from controlplane.labs.kubernetes.statuses import failed_status, stamp, status_of
from controlplane.labs.kubernetes.volumes import MountFailed, remove, set_up

Object = dict[str, Any]
RETRY_S: Final = 2.0
WRITE_RETRY_S: Final = 0.3

_log = logging.getLogger(__name__)


class PodLife:
    """Plays one pod; `run` in a task of its own."""

    def __init__(self, ground: Ground, pod: Object) -> None:
        """Begin, or go on where an earlier player stopped."""
        self._ground = ground
        self.pod = pod
        self.uid = str(pod["metadata"]["uid"])
        self._folders = ground.folders(self.uid)
        state = self._read_state()
        self._admitted = bool(state.get("admitted"))
        self._started_at = state.get("started_at") or stamp(ground.now())
        records = state.get("containers") or {}
        self._containers = [
            ContainerLife(
                ground,
                lambda: self.pod,
                container,
                Record.of(records.get(container["name"], {})),
                changed=self._write,
                store=self._store,
                sources=self._sources,
            )
            for container in pod["spec"]["containers"]
        ]
        self._deletion = asyncio.Event()
        self._gone = asyncio.Event()
        self._lock = asyncio.Lock()
        self._written: Object = {}
        self.seen(pod)

    def seen(self, pod: Object) -> None:
        """Take the pod as it is now."""
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deletion.set()

    def vanished(self) -> None:
        """Take that the pod is no more: somebody removed it by force."""
        self._gone.set()

    async def run(self) -> None:
        """Play until the pod is gone. Cancelling leaves its processes running."""
        living = asyncio.create_task(self._live(), name=f"pod {self.pod['metadata']['name']}")
        asked = asyncio.create_task(self._deletion.wait())
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
            if not self._gone.is_set():
                ending = asyncio.create_task(self._end())
                await asyncio.wait({ending, gone}, return_when=asyncio.FIRST_COMPLETED)
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
            await self.kill()
            for container in self._containers:
                container.give_back()
            remove(self._folders)
            self._ground.forget(self.uid)
        finally:
            for task in (living, asked, gone):
                task.cancel()
            await asyncio.gather(living, asked, gone, return_exceptions=True)

    async def kill(self) -> None:
        """End all processes at once, as a machine that loses its power does."""
        await asyncio.gather(*(container.stop(0, with_hook=False) for container in self._containers))

    # --- living -----------------------------------------------------------------------------------

    async def _live(self) -> None:
        while True:
            try:
                await self._live_once()
            except ApiError as error:
                _log.info("pod %s: %s", self.pod["metadata"]["name"], error)
                await asyncio.sleep(WRITE_RETRY_S)
            except Exception:  # noqa: BLE001
                # One pod's trouble must not end the others'; it is not Ready, and the log says why.
                _log.exception("playing pod %s failed", self.pod["metadata"]["name"])
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _live_once(self) -> None:
        if (self.pod.get("status") or {}).get("phase") in {"Failed", "Succeeded"}:
            return
        await self._write()
        if not self._admitted:
            try:
                await self._until_there(lambda: self._ground.devices.admit(self.pod))
            except AdmissionRefused as refused:
                await self._refuse(refused)
                return
            self._admitted = True
            self._store()
        await self._until_there(self._mount)
        async with asyncio.TaskGroup() as tasks:
            for container in self._containers:
                tasks.create_task(container.live())

    async def _until_there(self, step: Any) -> None:
        """Do a step, again and again while something that it needs is missing."""
        while True:
            try:
                await step()
            except NotYet as missing:
                await self._ground.tell(self.pod, "Warning", missing.reason, str(missing))
                await self._write()
                await self._ground.rest(RETRY_S)
            else:
                return

    async def _mount(self) -> None:
        try:
            volumes = await asyncio.to_thread(set_up, self.pod, self._folders, await self._sources())
        except MountFailed as error:
            raise NotYet("FailedMount", str(error)) from error
        for container in self._containers:
            container.volumes = volumes

    async def _sources(self) -> Sources:
        """Read what the pod refers to, as it is now."""
        namespace = self.pod["metadata"]["namespace"]
        secrets, config_maps = referred(self.pod)
        api = self._ground.api
        found: dict[str, dict[str, Object]] = {"secrets": {}, "configmaps": {}}
        for plural, names in (("secrets", secrets), ("configmaps", config_maps)):
            for name in sorted(names):
                there = await api.get(path_of("v1", plural, namespace=namespace, name=name))
                if there is not None:
                    found[plural][name] = there
        links = self.pod["spec"].get("enableServiceLinks", True)
        services = await api.list(path_of("v1", "services", namespace=namespace)) if links else []
        return Sources(
            secrets=found["secrets"],
            config_maps=found["configmaps"],
            services=services,
            kubernetes_service=await api.get(path_of("v1", "services", namespace="default", name="kubernetes")),
            host_ip=self._ground.host_ip(self.pod["spec"]["nodeName"]),
            pod_ip=self._pod_ip,
        )

    @property
    def _pod_ip(self) -> str:
        known = (self.pod.get("status") or {}).get("podIP", "")
        if known:
            return str(known)
        digest = hashlib.sha256(self.uid.encode()).digest()
        return f"10.{200 + digest[0] % 16}.{digest[1]}.{1 + digest[2] % 254}"

    # --- ending -----------------------------------------------------------------------------------

    async def _end(self) -> None:
        """End the processes in the pod's grace and remove the pod."""
        while self._ground.lost(self.pod["spec"]["nodeName"]):  # an unreachable node acknowledges nothing
            await self._ground.rest(1)
        grace_s = self._grace_left_s()
        await asyncio.gather(*(container.stop(grace_s, with_hook=True) for container in self._containers))
        for container in self._containers:
            container.ended_by_stop()
        await self._write()
        meta = self.pod["metadata"]
        path = path_of("v1", "pods", namespace=meta["namespace"], name=meta["name"])
        while True:
            try:
                await self._ground.api.delete(path, uid=self.uid, grace_s=0)
            except ApiError as error:
                _log.info("pod %s is not removed yet: %s", meta["name"], error)
                await asyncio.sleep(WRITE_RETRY_S)
            else:
                return

    def _grace_left_s(self) -> float:
        """Return how much of the grace is left: `deletionTimestamp` is the end of it."""
        meta = self.pod["metadata"]
        if not meta.get("deletionGracePeriodSeconds"):
            return 0.0
        end = datetime.fromisoformat(meta["deletionTimestamp"])
        left = (end - self._ground.now()).total_seconds()
        return max(0.0, min(float(meta["deletionGracePeriodSeconds"]), left))

    # --- status -----------------------------------------------------------------------------------

    async def _refuse(self, refused: AdmissionRefused) -> None:
        status = failed_status(self.pod, reason=refused.reason, message=str(refused), now=self._ground.now())
        await self._patch({"status": status}, sub="status")
        await self._ground.tell(self.pod, "Warning", refused.reason, str(refused))

    async def _write(self) -> None:
        """Write port, status and record as they are now; nothing where nothing changed or the node is lost."""
        self._store()
        node = self.pod["spec"]["nodeName"]
        if self._ground.lost(node):
            return
        async with self._lock:
            wanted = {PLAYER_ANNOTATION: "playing", **({PORT_ANNOTATION: port} if (port := self._port()) else {})}
            there = self.pod["metadata"].get("annotations") or {}
            if any(there.get(name) != value for name, value in wanted.items()):
                self.pod = await self._patch({"metadata": {"annotations": wanted}}) or self.pod
            status = status_of(
                self.pod,
                [container.view for container in self._containers],
                host_ip=self._ground.host_ip(node),
                pod_ip=self._pod_ip,
                now=self._ground.now(),
                started_at=self._started_at,
            )
            if status == self._written:
                return
            found = await self._patch({"metadata": {"uid": self.uid}, "status": status}, sub="status")
            if found is not None:
                self._written = status

    def _port(self) -> str:
        """Return the loopback port of the pod's first container port, "" while none can be reached."""
        first = self._containers[0]
        declared = [port["containerPort"] for port in first.spec.get("ports") or ()]
        reachable = first.record.ports
        wanted = next((port for port in declared if port in reachable), None)
        if wanted is None:
            wanted = next(iter(reachable), None)
        return "" if wanted is None else str(reachable[wanted])

    async def _patch(self, body: Object, *, sub: str = "") -> Object | None:
        meta = self.pod["metadata"]
        path = path_of("v1", "pods", namespace=meta["namespace"], name=meta["name"], sub=sub)
        while True:
            try:
                found = await self._ground.api.patch(path, body)
            except ApiError as error:
                if error.status in {404, 409}:  # gone, or another one with its name
                    return None
                if error.status and error.status != 429 and error.status < 500:
                    raise
                await asyncio.sleep(WRITE_RETRY_S)
            else:
                return found

    # --- record -----------------------------------------------------------------------------------

    def _read_state(self) -> Object:
        with contextlib.suppress(OSError, ValueError):
            found: Object = json.loads((self._folders.pod / "state.json").read_text())
            return found
        return {}

    def _store(self) -> None:
        self._folders.pod.mkdir(mode=0o700, parents=True, exist_ok=True)
        meta = self.pod["metadata"]
        text = json.dumps(
            {
                "pod": f"{meta['namespace']}/{meta['name']}",
                "admitted": self._admitted,
                "started_at": self._started_at,
                "containers": {c.spec["name"]: c.record.as_json() for c in self._containers},
            }
        )
        fresh = self._folders.pod / "state.json.new"
        fresh.write_text(text)
        fresh.replace(self._folders.pod / "state.json")


def recorded(folder: Path) -> list[tuple[str, int, str]]:
    """Return (pod uid, pid, marker) of every process that the pods' folder knows."""
    found = []
    for state in (folder / "pods").glob("*/state.json"):
        with contextlib.suppress(OSError, ValueError):
            for name, given in (json.loads(state.read_text()).get("containers") or {}).items():
                record = Record.of(given)
                if record.pid:
                    found.append((state.parent.name, record.pid, f"{state.parent.name}/{name}/{record.run}"))
    return found
