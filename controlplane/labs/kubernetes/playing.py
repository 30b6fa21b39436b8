"""`python -m controlplane.labs.kubernetes.playing --cluster FOLDER`: plays the nodes of one lab cluster.

One process for pods (`pods.py`), devices (`devices.py`) and MIG layouts (`mig_manager.py`) of all KWOK nodes. It ends
at SIGTERM and leaves the pods' processes running; the next one adopts them. `--end` ends all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.labs.kubernetes import pods, processes
from controlplane.labs.kubernetes.devices import CHOICES, Devices
from controlplane.labs.kubernetes.ground import AdmissionRefused, Ground, NotYet, is_fake, is_played
from controlplane.labs.kubernetes.mig_manager import MigManager
from controlplane.labs.kubernetes.pods import PodLife
from controlplane.labs.kubernetes.processes import Ports
from controlplane.labs.kubernetes.rest import Access, Api, ApiError, Event, path_of
from controlplane.labs.kubernetes.statuses import failed_status
from controlplane.labs.kubernetes.volumes import remove

Object = dict[str, Any]
_OVER = frozenset({"Failed", "Succeeded"})

_log = logging.getLogger(__name__)


class Player:
    """Follows nodes and pods of one cluster and lives their lives."""

    def __init__(self, ground: Ground, devices: Devices, manager: MigManager) -> None:
        """Play on `ground`."""
        self._ground = ground
        self._devices = devices
        self._manager = manager
        self._lives: dict[str, tuple[PodLife, asyncio.Task[None]]] = {}
        self._bound: dict[str, Object] = {}
        """Pods on played nodes, ours or not, by uid."""
        self._admitting: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Play until cancelled."""
        api = self._ground.api
        nodes_known = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_nodes(api, nodes_known))
                await nodes_known.wait()
                tasks.create_task(self._follow_pods(api))
                tasks.create_task(self._manager.run())
        finally:
            everything = [*(task for _, task in self._lives.values()), *self._admitting.values()]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    # --- nodes ------------------------------------------------------------------------------------

    async def _follow_nodes(self, api: Api, known: asyncio.Event) -> None:
        async for event in api.watch(path_of("v1", "nodes")):
            before = dict(self._ground.nodes)
            if event.kind == "LISTED":
                self._ground.nodes.clear()
            for node in event.objects:
                name = node["metadata"]["name"]
                if event.kind == "DELETED":
                    self._ground.nodes.pop(name, None)
                    self._devices.node_gone(name)
                elif is_fake(node):
                    self._ground.nodes[name] = node
                    self._devices.node_seen(node)
            known.set()
            self._manager.wake()
            await self._kill_lost(before)

    async def _kill_lost(self, before: dict[str, Object]) -> None:
        """End the processes of nodes that have died."""
        dead = {name for name in before if self._ground.lost(name) == "dead"}
        for life, _ in list(self._lives.values()):
            if life.pod["spec"].get("nodeName") in dead:
                await life.kill()

    # --- pods -------------------------------------------------------------------------------------

    async def _follow_pods(self, api: Api) -> None:
        async for event in api.watch(path_of("v1", "pods")):
            if event.kind == "LISTED":
                self._listed(event)
            for pod in event.objects:
                if event.kind == "DELETED":
                    self._gone(pod["metadata"]["uid"])
                else:
                    self._seen(pod)
            self._manager.wake()

    def _listed(self, event: Event) -> None:
        there = {pod["metadata"]["uid"] for pod in event.objects}
        for uid in [*self._bound]:
            if uid not in there:
                self._gone(uid)
        self._devices.keep_only(there)
        for uid, pid, marker in pods.recorded(self._ground.folder):
            if uid not in there and uid not in self._lives and processes.is_alive(pid, marker):
                os.killpg(pid, signal.SIGKILL)
        for folder in (self._ground.folder / "pods").glob("*"):
            if folder.name not in there and folder.name not in self._lives:
                remove(self._ground.folders(folder.name))

    def _seen(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName", "") not in self._ground.nodes:
            return
        self._bound[uid] = pod
        if (pod.get("status") or {}).get("phase") in _OVER:
            self._devices.released(uid)
        if uid in self._lives:
            self._lives[uid][0].seen(pod)
        elif is_played(pod, self._ground.nodes):
            life = PodLife(self._ground, pod)
            task = asyncio.create_task(life.run(), name=f"life of {uid}")
            self._lives[uid] = (life, task)
            task.add_done_callback(lambda done: self._lived(uid, done))
        elif uid not in self._admitting and (pod.get("status") or {}).get("phase") not in _OVER:
            self._admitting[uid] = asyncio.create_task(self._admit_foreign(pod))

    def _lived(self, uid: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the life of pod %s ended by a bug", uid, exc_info=error)
        self._lives.pop(uid, None)

    async def _admit_foreign(self, pod: Object) -> None:
        """Give a pod that KWOK plays its devices; a refused one fails, as on a real node."""
        meta = pod["metadata"]
        while True:
            try:
                await self._devices.admit(pod)
            except NotYet:
                await self._ground.rest(5)
            except AdmissionRefused as refused:
                status = failed_status(pod, reason=refused.reason, message=str(refused), now=self._ground.now())
                path = path_of("v1", "pods", namespace=meta["namespace"], name=meta["name"], sub="status")
                with contextlib.suppress(ApiError):
                    await self._ground.api.patch(path, {"metadata": {"uid": meta["uid"]}, "status": status})
                return
            except ApiError:
                await self._ground.rest(1)
            else:
                return

    def _gone(self, uid: str) -> None:
        self._bound.pop(uid, None)
        self._devices.released(uid)
        if (admitting := self._admitting.pop(uid, None)) is not None:
            admitting.cancel()
        if uid in self._lives:
            self._lives[uid][0].vanished()


async def play(folder: Path, options: argparse.Namespace) -> None:
    """Play a cluster until SIGTERM or SIGINT."""
    async with Api(Access.of(folder)) as api, aiohttp.ClientSession(trust_env=False) as client:
        devices = Devices(api, folder, policy=options.choice, seed=options.seed)
        ground = Ground(
            api,
            folder,
            client,
            Ports(options.seed + os.getpid()),
            devices,
            hurry=options.hurry,
            load_s=options.load_s,
            run_programs=options.programs == "run",
            marked=processes.marked(),
        )
        manager = MigManager(ground, devices)
        playing = asyncio.create_task(Player(ground, devices, manager).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, playing.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await playing


def end(folder: Path) -> int:
    """End the processes of all pods of a cluster at once; return how many there were."""
    ended = 0
    for _, pid, marker in pods.recorded(folder):
        if processes.is_alive(pid, marker):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
                ended += 1
    return ended


def main(arguments: list[str]) -> int:
    """Play, or end what is played."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.labs.kubernetes.playing", description=__doc__)
    parser.add_argument("--cluster", type=Path, required=True, help="the cluster's folder")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of devices")
    parser.add_argument("--choice", choices=CHOICES, default="seeded", help="how devices are chosen")
    parser.add_argument("--hurry", type=float, default=0.1, help="length of one of the kubelet's seconds")
    parser.add_argument("--load-s", type=float, default=0.0, help="how long a simulated model loads")
    parser.add_argument("--programs", choices=("run", "none"), default="run", help="none: pods are Ready unplayed")
    parser.add_argument("--end", action="store_true", help="end all processes of pods and nothing else")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    folder = options.cluster.absolute()
    if options.end:
        return 0 if end(folder) >= 0 else 1
    asyncio.run(play(folder, options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
