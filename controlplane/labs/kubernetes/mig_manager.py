"""A scripted MIG manager that behaves as NVIDIA's does (GPU operator 26.3, mig-parted), on every device-plugin node.

It reacts to a changed label `nvidia.com/mig.config` only and says how it is in `….config.state`: `failed` for an entry
that is missing or wrong, `success` at once for a layout that is there, else `pending`, `rebooting` where asked for,
each GPU that differs made anew, then `success` or `failed`, with no second try until the value changes. Entries and new
counts are seen late; a pod on a differing GPU makes the change fail, for it evicts nobody. Faults on demand, by node
annotation `lab.tenantry.internal/mig-script`: `fail` (half-way), `hang`, `lose` (the node dies), `reboot`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import yaml

from controlplane.labs.kubernetes import nodes as published_nodes
from controlplane.labs.kubernetes.carving import BadLayout, Gpu, NodeTruth, Slot, place
from controlplane.labs.kubernetes.devices import Devices
from controlplane.labs.kubernetes.ground import LAB, LOST_ANNOTATION, Ground
from controlplane.labs.kubernetes.rest import ApiError, path_of

Object = dict[str, Any]
CONFIG: Final = "nvidia.com/mig.config"
STATE: Final = "nvidia.com/mig.config.state"
MANAGED: Final = "nvidia.com/gpu.deploy.mig-manager"
SCRIPT_ANNOTATION: Final = f"{LAB}/mig-script"
NAMESPACE: Final = "gpu-operator"
STATIC_CONFIG: Final = "default-mig-parted-config"
PAUSED: Final = "paused-for-mig-change"
_DAEMONS: Final = ("device-plugin", "gpu-feature-discovery", "dcgm-exporter", "dcgm", "nvsm")
FILE_DELAY_S: Final = 60.0
"""How late a changed ConfigMap reaches the manager's file (the kubelet's seconds)."""
STEP_S: Final = 10.0
"""How long daemons take to stop, instances to be made, a node to boot (the kubelet's seconds)."""
PLUGIN_S: Final = 20.0
"""How late the device plugin publishes after `success`."""

_log = logging.getLogger(__name__)


class BadEntry(ValueError):
    """The configuration has no such entry, or it is wrong."""


def layouts(text: str, entry: str, gpus: list[Gpu]) -> dict[int, Gpu]:
    """Return GPU index → wanted GPU of one mig-parted entry; GPUs that it does not list keep what they have.

    Raises `BadEntry`.
    """
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise BadEntry(f"error parsing config file: {error}") from error
    entries = document.get("mig-configs") if isinstance(document, Mapping) else None
    if not isinstance(entries, Mapping) or document.get("version") != "v1":
        raise BadEntry("error parsing config file: no version v1 with mig-configs")
    if entry not in entries:
        raise BadEntry(f"selected mig-config not present: {entry}")
    wanted: dict[int, Gpu] = {}
    for part in entries[entry] or ():
        chosen = range(len(gpus)) if part.get("devices") == "all" else part.get("devices") or ()
        for index in chosen:
            if not isinstance(index, int) or not 0 <= index < len(gpus):
                raise BadEntry(f"invalid device index: {index}")
            product = gpus[index].product
            if not part.get("mig-enabled"):
                wanted[index] = Gpu(product)
                continue
            counts = {str(name): int(count) for name, count in (part.get("mig-devices") or {}).items()}
            try:
                wanted[index] = Gpu(product, mig=True, windows=place(product, counts))
            except BadLayout as error:
                raise BadEntry(f"error creating MIG device configs: {error}") from error
    return wanted


def differing(gpus: list[Gpu], wanted: Mapping[int, Gpu]) -> dict[int, Gpu]:
    """Return the GPUs whose layout is to be another: mig-parted compares counts of profiles, not where they lie."""
    return {
        index: gpu
        for index, gpu in wanted.items()
        if gpu.mig != gpus[index].mig
        or sorted(w.profile for w in gpu.windows) != sorted(w.profile for w in gpus[index].windows)
    }


def published(name: str, truth: NodeTruth) -> published_nodes.Node:
    """Return the node as its device plugin and GFD know it."""
    gpus = tuple(
        published_nodes.Gpu(index, tuple((w.profile, w.start) for w in gpu.windows) if gpu.mig else None)
        for index, gpu in enumerate(truth.gpus)
    )
    product = truth.gpus[0].product if truth.gpus else ""
    strategy = published_nodes.Strategy(truth.strategy)
    return published_nodes.Node(name, product, gpus, published_nodes.Kind.DEVICE_PLUGIN, strategy)


class MigManager:
    """The managers of all nodes of one cluster."""

    def __init__(self, ground: Ground, devices: Devices) -> None:
        """Go on where an earlier player stopped."""
        self._ground = ground
        self._devices = devices
        self._file = ground.folder / "truth" / "mig.json"
        self._handled: dict[str, str] = {}
        """Node → the value that was handled last."""
        with contextlib.suppress(FileNotFoundError):
            self._handled = json.loads(self._file.read_text())
        self._work: dict[str, asyncio.Task[None]] = {}
        self._awake = asyncio.Event()
        self._seen_files: dict[str, list[tuple[float, str]]] = {}
        """ConfigMap → (when it was changed, text), oldest first."""

    def wake(self) -> None:
        """Look at all nodes soon."""
        self._awake.set()

    async def run(self) -> None:
        """Manage until cancelled."""
        files = asyncio.create_task(self._follow_files())
        try:
            while True:
                await self._awake.wait()
                self._awake.clear()
                for name, node in list(self._ground.nodes.items()):
                    self._look(name, node)
        finally:
            for task in (files, *self._work.values()):
                task.cancel()
            await asyncio.gather(files, *self._work.values(), return_exceptions=True)

    def _look(self, name: str, node: Object) -> None:
        labels = node["metadata"].get("labels") or {}
        entry = labels.get(CONFIG, "")
        if labels.get(MANAGED) not in {"true", PAUSED} or name in self._work or self._ground.lost(name):
            return
        if not entry or entry == self._handled.get(name):
            return
        task = asyncio.create_task(self._change(name, entry), name=f"mig manager of {name}")
        self._work[name] = task
        task.add_done_callback(lambda done: self._done(name, done))

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        self._work.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the MIG manager of %s ended by a bug", name, exc_info=error)
        self.wake()

    # --- the configuration, seen late -------------------------------------------------------------

    async def _follow_files(self) -> None:
        loop = asyncio.get_running_loop()
        first = True
        async for event in self._ground.api.watch(path_of("v1", "configmaps", namespace=NAMESPACE)):
            for found in event.objects:
                name = found["metadata"]["name"]
                text = (found.get("data") or {}).get("config.yaml")
                if text is None:
                    continue
                if event.kind == "DELETED":
                    self._seen_files.pop(name, None)
                    continue
                versions = self._seen_files.setdefault(name, [])
                if not versions or versions[-1][1] != text:
                    versions.append((float("-inf") if first else loop.time(), text))
            first = False

    async def _text_for(self, node: str) -> str:
        """Return the configuration file as a node's manager sees it now. Raises `BadEntry` where there is none."""
        own = ""
        with contextlib.suppress(ApiError):
            policy = await self._ground.api.get(path_of("nvidia.com/v1", "clusterpolicies", name="cluster-policy"))
            if policy is not None:
                config = ((policy.get("spec") or {}).get("migManager") or {}).get("config") or {}
                own = config.get("name", "")
        late = asyncio.get_running_loop().time() - FILE_DELAY_S * self._ground.hurry
        for name in (own, f"{node}-mig-config", STATIC_CONFIG):
            there = [text for since, text in self._seen_files.get(name, ()) if since <= late]
            if there:
                return there[-1]
        raise BadEntry("error opening config file: no such file or directory")

    # --- one change -------------------------------------------------------------------------------

    async def _change(self, name: str, entry: str) -> None:
        self._handled[name] = entry
        self._store()
        truth = self._devices.truths.get(name)
        if truth is None or not truth.gpus:
            await self._say(name, "failed")
            return
        try:
            wanted = layouts(await self._text_for(name), entry, truth.gpus)
        except BadEntry as error:
            _log.info("mig manager of %s: %s", name, error)
            await self._say(name, "failed")
            return
        changes = differing(truth.gpus, wanted)
        if not changes:
            await self._say(name, "success")
            return
        await self._say(name, "pending")
        await self._daemons(name, PAUSED)
        await self._ground.rest(STEP_S)
        script = self._script(name)
        if script == "hang":
            return  # gave up waiting for a daemon to end: nothing says so but the label
        if script == "reboot":
            await self._say(name, "rebooting")
            await self._ground.rest(STEP_S)
        in_use = sorted(uid for uid, held in truth.held.items() if any(slot.gpu in changes for _, slot in held))
        if in_use:
            _log.info("mig manager of %s: In use by another client: pods %s", name, ", ".join(in_use))
            await self._end(name, truth, "failed")
            return
        for number, (index, gpu) in enumerate(sorted(changes.items())):
            truth.gpus[index] = Gpu(gpu.product, mig=gpu.mig)  # everything on it is destroyed first
            self._devices.store()
            if number == 0 and script == "lose":
                await self._patch(name, {"metadata": {"annotations": {LOST_ANNOTATION: "dead"}}})
                return
            if number == 0 and script == "fail":
                await self._end(name, truth, "failed")
                return
            await self._ground.rest(STEP_S / 5)
            truth.gpus[index] = gpu
            self._devices.store()
        await self._end(name, truth, "success")

    async def _end(self, name: str, truth: NodeTruth, state: str) -> None:
        """Start the daemons again, say how it went, and let the counts follow late."""
        await self._daemons(name, "true")
        await self._say(name, state)
        await self._ground.rest(PLUGIN_S)
        await self._publish(name, truth)

    async def _publish(self, name: str, truth: NodeTruth) -> None:
        node = published(name, truth)
        seen = self._ground.nodes.get(name)
        if seen is None:
            return
        wanted = published_nodes.labels(node)
        drop = {
            label: None
            for label in seen["metadata"].get("labels") or {}
            if published_nodes._is_published(label) and label not in wanted
        }
        deployed = {label for label in wanted if label.startswith("nvidia.com/gpu.deploy.")}
        kept = {label: value for label, value in wanted.items() if label not in deployed}
        await self._patch(name, {"metadata": {"labels": {**kept, **drop}}})
        counts = {resource: str(count) for resource, count in published_nodes.allocatable(node).items()}
        before = (seen.get("status") or {}).get("allocatable") or {}
        for resource in before:  # the kubelet keeps a resource that its plugin stopped to name, with nothing of it
            if resource.startswith(("nvidia.com/mig-", published_nodes.GPU)) and resource not in counts:
                counts[resource] = "0"
        await self._patch(name, {"status": {"capacity": counts, "allocatable": counts}}, sub="status")

    async def _daemons(self, name: str, value: str) -> None:
        labels = (self._ground.nodes.get(name) or {"metadata": {}})["metadata"].get("labels") or {}
        there = {f"nvidia.com/gpu.deploy.{daemon}": value for daemon in _DAEMONS}
        await self._patch(name, {"metadata": {"labels": {k: v for k, v in there.items() if k in labels}}})

    async def _say(self, name: str, state: str) -> None:
        await self._patch(name, {"metadata": {"labels": {STATE: state}}})

    def _script(self, name: str) -> str:
        node = self._ground.nodes.get(name) or {"metadata": {}}
        return str((node["metadata"].get("annotations") or {}).get(SCRIPT_ANNOTATION, ""))

    async def _patch(self, name: str, body: Object, *, sub: str = "") -> None:
        while True:
            try:
                await self._ground.api.patch(path_of("v1", "nodes", name=name, sub=sub), body)
            except ApiError as error:
                if error.status == 404:
                    return
                if error.status and error.status < 500 and error.status != 429:
                    raise
                await asyncio.sleep(0.3)
            else:
                return

    def _store(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._handled))
        fresh.replace(self._file)


def users_of(truth: NodeTruth, gpu: int) -> list[tuple[str, Slot]]:
    """Return (pod uid, slot) of everybody on one GPU. For tests."""
    return [(uid, slot) for uid, held in truth.held.items() for _, slot in held if slot.gpu == gpu]
