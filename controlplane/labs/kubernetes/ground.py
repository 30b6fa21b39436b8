"""What the lives of all played pods of one cluster share: its API, folders, ports, clock, and the nodes' state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import aiohttp

from controlplane.labs.kubernetes.processes import Ports
from controlplane.labs.kubernetes.rest import Api, ApiError, path_of
from controlplane.labs.kubernetes.statuses import stamp
from controlplane.labs.kubernetes.volumes import Folders

Object = dict[str, Any]
LAB: Final = "lab.tenantry.internal"
PORT_ANNOTATION: Final = f"{LAB}/port"
LOST_ANNOTATION: Final = f"{LAB}/lost"
PLAYER_ANNOTATION: Final = f"{LAB}/player"
"""On a pod that the player looks after: KWOK's stages do not remove it."""
LOAD_ANNOTATION: Final = f"{LAB}/load-s"
"""On a pod: how long its model loads (seconds), instead of the player's own figure."""
FAKE_NODE: Final = "kwok.x-k8s.io/node"
PLAYED_LABEL: Final = "tenantry.internal/uid"

_log = logging.getLogger(__name__)


class AdmissionRefused(Exception):
    """The node refuses a pod for good; `reason` and text go into the pod's status."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the kubelet's words."""
        super().__init__(message)
        self.reason = reason


class NotYet(Exception):
    """Something that a pod needs is not there yet; (reason, text) become an event and it is tried again."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the kubelet's words."""
        super().__init__(message)
        self.reason = reason


class Node(Protocol):
    """What looks after the GPUs of all nodes: `devices.Devices`."""

    async def admit(self, pod: Object) -> None:
        """Give a pod its devices. Raises `AdmissionRefused`, `NotYet`."""
        ...

    async def listed_by_smi(self, pod: Object) -> list[str]:
        """Return the lines that `nvidia-smi -L` prints in a pod."""
        ...


@dataclass(slots=True)
class Ground:
    """Shared by all lives of one cluster."""

    api: Api
    folder: Path
    client: aiohttp.ClientSession
    ports: Ports
    devices: Node
    hurry: float = 0.1
    """Length of one of the kubelet's seconds (periods, delays, back-off)."""
    load_s: float = 0.0
    """How long a simulated model loads."""
    run_programs: bool = True
    """False: environment and argv are resolved and checked, but nothing runs, and pods are Ready at once."""
    nodes: dict[str, Object] = field(default_factory=dict)
    marked: dict[str, int] = field(default_factory=dict)
    """Marker → pid of the processes that an earlier player left running."""
    _told: set[tuple[str, str, str]] = field(default_factory=set)

    def now(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC)

    async def rest(self, seconds: float) -> None:
        """Let some of the kubelet's seconds pass."""
        await asyncio.sleep(seconds * self.hurry)

    def folders(self, uid: str) -> Folders:
        """Return where a pod's things lie."""
        return Folders(self.folder / "pods" / uid, self.folder / "claims", self.folder / "exports")

    def lost(self, node: str) -> str:
        """Return `dead` or `cut` for a node that is lost, "" for one that is there; a removed node is dead."""
        found = self.nodes.get(node)
        if found is None:
            return "dead"
        return str((found["metadata"].get("annotations") or {}).get(LOST_ANNOTATION, ""))

    def host_ip(self, node: str) -> str:
        """Return a node's address."""
        addresses = ((self.nodes.get(node) or {}).get("status") or {}).get("addresses") or ()
        return next((str(a["address"]) for a in addresses if a["type"] == "InternalIP"), "127.0.0.1")

    async def tell(self, pod: Object, kind: str, reason: str, message: str) -> None:
        """Write an event about a pod, once per reason and text."""
        meta = pod["metadata"]
        known = (meta["uid"], reason, message)
        if known in self._told:
            return
        self._told.add(known)
        moment = stamp(self.now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{uuid4().hex[:16]}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1000],
            "source": {"component": "kubelet", "host": pod["spec"].get("nodeName", "")},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        try:
            await self.api.create(path_of("v1", "events", namespace=meta["namespace"]), event)
        except ApiError as error:  # its namespace may be going
            _log.debug("event about %s was not taken: %s", meta["name"], error)

    def forget(self, uid: str) -> None:
        """Forget what was told of a pod that is gone."""
        self._told = {known for known in self._told if known[0] != uid}


def is_played(pod: Object, nodes: Mapping[str, Object]) -> bool:
    """Whether a pod is ours and bound to a played node."""
    meta = pod["metadata"]
    if PLAYED_LABEL not in (meta.get("labels") or {}):
        return False
    node = nodes.get(pod["spec"].get("nodeName", ""))
    return node is not None and is_fake(node)


def is_fake(node: Object) -> bool:
    """Whether a node is KWOK's."""
    return (node["metadata"].get("annotations") or {}).get(FAKE_NODE) == "fake"
