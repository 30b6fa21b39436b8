"""The device plugin of every simulated node: the lab, not the ledger, chooses the device when a pod is admitted.

As on a real node, the scheduler only counts, and which MIG device a pod gets shows nowhere in the API. The choice
follows a policy: `first`, `spread`, `seeded` (any, by the seed) or `adversarial` (the one that a ledger expects
least: the last of the GPU that most others use). What was chosen, and every violation (double use, more than there
is, a device plugin's and a claim's at once), stands in `FOLDER/truth/`, for tests only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from controlplane.labs.kubernetes.carving import GPU, MIG, STRATEGY, BadLayout, NodeTruth, Slot, double_use, from_node
from controlplane.labs.kubernetes.ground import AdmissionRefused, NotYet
from controlplane.labs.kubernetes.nodes import Node
from controlplane.labs.kubernetes.rest import Api, path_of
from tenants import gpu_catalogue

Object = dict[str, Any]
CHOICES: Final = ("first", "spread", "seeded", "adversarial")
_DRA: Final = "resource.k8s.io/v1"
_DEVICE: Final = re.compile(r"^gpu-(?P<gpu>\d+)(?:-mig-.+-\d+-(?P<start>\d+))?$")

_log = logging.getLogger(__name__)


def choose(free: Iterable[Slot], count: int, *, policy: str, dice: random.Random, truth: NodeTruth) -> list[Slot]:
    """Return `count` of the free slots, or fewer where there are not as many."""
    slots = sorted(free)
    used = {index: 0 for index, _ in enumerate(truth.gpus)}
    for held in truth.held.values():
        for _, slot in held:
            used[slot.gpu] += 1
    match policy:
        case "first":
            pass
        case "spread":
            slots.sort(key=lambda slot: (used[slot.gpu], slot))
        case "seeded":
            dice.shuffle(slots)
        case "adversarial":
            slots.sort(key=lambda slot: (-used[slot.gpu], -slot.gpu, -slot.start))
        case _:
            msg = f"devices are chosen {', '.join(CHOICES)}, not {policy!r}"
            raise ValueError(msg)
    return slots[:count]


def requested(pod: Object) -> dict[str, int]:
    """Return GPU resource → count that a pod's containers ask of a device plugin."""
    found: dict[str, int] = {}
    for container in pod["spec"].get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        for name, count in limits.items():
            if (name == GPU or name.startswith(MIG)) and int(count):
                found[name] = found.get(name, 0) + int(count)
    return found


class Devices:
    """Devices of all simulated nodes of one cluster."""

    def __init__(self, api: Api, folder: Path, *, policy: str = "seeded", seed: int = 0) -> None:
        """Go on with what an earlier player chose."""
        self._api = api
        self._folder = folder / "truth"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._policy = policy
        self._dice = random.Random(seed)  # noqa: S311 - a choice that a test can repeat
        self.truths = {name: NodeTruth.of(given) for name, given in _read(self._folder / "devices.json").items()}
        self._claimed: dict[str, dict[tuple[str, str, str], str]] = {}
        """Claims: (driver, pool, device) → pod uid, by pod uid."""
        self.violations: list[str] = list(_read(self._folder / "violations.json").get("violations", ()))
        choose((), 0, policy=policy, dice=self._dice, truth=NodeTruth("none", []))

    # --- nodes ------------------------------------------------------------------------------------

    def node_seen(self, node: Object) -> None:
        """Learn of a node: its truth is what the cluster's maker wrote, else what explains its allocatable."""
        name = node["metadata"]["name"]
        if name in self.truths:
            return
        written = _read(self._folder / "nodes.json").get(name)
        strategy = (node["metadata"].get("labels") or {}).get(STRATEGY, "none")
        try:
            truth = NodeTruth.of({"strategy": strategy, "gpus": written}) if written else None
            self.truths[name] = truth or NodeTruth(strategy, from_node(node))
        except (BadLayout, LookupError) as error:
            self._violation(f"nothing explains what node {name} publishes: {error}")
            self.truths[name] = NodeTruth(strategy, [])
        self.store()

    def node_gone(self, name: str) -> None:
        """Forget a removed node."""
        if self.truths.pop(name, None) is not None:
            self.store()

    # --- pods -------------------------------------------------------------------------------------

    async def admit(self, pod: Object) -> None:
        """Give a pod its devices, once. Raises `AdmissionRefused` for good, `NotYet` while a claim is not ready."""
        await self._prepare_claims(pod)
        wanted = requested(pod)
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        truth = self.truths.get(node)
        if not wanted or (truth is not None and uid in truth.held):
            return
        if truth is None:
            truth = self.truths[node] = NodeTruth("none", [])
        given: list[tuple[str, Slot]] = []
        for resource, count in sorted(wanted.items()):
            free = [slot for slot in truth.free(resource) if not any(slot.overlaps(taken) for _, taken in given)]
            chosen = choose(free, count, policy=self._policy, dice=self._dice, truth=truth)
            if len(chosen) < count:
                if self._overcommitted(truth, resource):
                    self._violation(f"node {node} publishes more {resource} than it has")
                raise AdmissionRefused(
                    "UnexpectedAdmissionError",
                    "Allocate failed due to requested number of devices unavailable for "
                    f"{resource}. Requested: {count}, Available: {len(free)}, which is unexpected",
                )
            given += [(resource, slot) for slot in chosen]
        truth.held[uid] = given
        for sentence in double_use([(node, truth)]):
            self._violation(sentence)
        self.store()

    def _overcommitted(self, truth: NodeTruth, resource: str) -> bool:
        held = sum(name == resource for entries in truth.held.values() for name, _ in entries)
        return held >= len(truth.slots().get(resource, ()))

    def released(self, uid: str) -> None:
        """Take the devices of a pod that is gone or over."""
        self._claimed.pop(uid, None)
        for truth in self.truths.values():
            if truth.held.pop(uid, None) is not None:
                self.store()

    def keep_only(self, uids: set[str]) -> None:
        """Take the devices of all pods but these."""
        for uid in {uid for truth in self.truths.values() for uid in truth.held} - uids:
            self.released(uid)

    # --- claims -----------------------------------------------------------------------------------

    async def _prepare_claims(self, pod: Object) -> None:
        """Check the claims of a pod as the kubelet's DRA manager does, and that no device is in use twice."""
        meta = pod["metadata"]
        names = {
            s["name"]: s.get("resourceClaimName") for s in (pod.get("status") or {}).get("resourceClaimStatuses") or ()
        }
        devices: dict[tuple[str, str, str], str] = {}
        for entry in pod["spec"].get("resourceClaims") or ():
            name = entry.get("resourceClaimName") or names.get(entry["name"])
            failed = f"Failed to prepare dynamic resources: prepare dynamic resources: claim {entry['name']}: "
            if not name:
                raise NotYet("FailedPrepareDynamicResources", f"{failed}no ResourceClaim was made for it yet")
            claim = await self._api.get(path_of(_DRA, "resourceclaims", namespace=meta["namespace"], name=name))
            if claim is None:
                raise NotYet("FailedPrepareDynamicResources", f'{failed}resourceclaim "{name}" not found')
            status = claim.get("status") or {}
            if "allocation" not in status:
                raise NotYet("FailedPrepareDynamicResources", f"{failed}ResourceClaim {name} is not allocated")
            if meta["uid"] not in {user.get("uid") for user in status.get("reservedFor") or ()}:
                raise NotYet("FailedPrepareDynamicResources", f"{failed}pod is not allowed to use ResourceClaim {name}")
            for result in (status["allocation"].get("devices") or {}).get("results") or ():
                if not result.get("adminAccess"):
                    devices[result["driver"], result["pool"], result["device"]] = claim["metadata"]["uid"]
        for other, held in self._claimed.items():
            for device, claim_uid in devices.items():
                if other != meta["uid"] and held.get(device, claim_uid) != claim_uid:
                    self._violation(f"pods {other} and {meta['uid']} use device {'/'.join(device)} by different claims")
        if devices:
            self._claimed[meta["uid"]] = devices

    # --- what a program in a pod sees -------------------------------------------------------------

    async def listed_by_smi(self, pod: Object) -> list[str]:
        """Return the lines that `nvidia-smi -L` prints in a pod: the one place where a program learns its devices."""
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        truth = self.truths.get(node)
        if truth is not None and uid in truth.held:
            product = gpu_catalogue.product(truth.gpus[0].product).names[0]
            seen = [(slot.gpu, slot.profile, slot.start) for _, slot in truth.held[uid]]
            return listing(node, product, seen)
        lists = await self._api.list(path_of(_DRA, "resourceslices"), fields=f"spec.nodeName={node}")
        there = {device["name"]: device for one in lists for device in one["spec"].get("devices") or ()}
        found: list[tuple[int, str, int]] = []
        product = ""
        for _, pool, name in self._claimed.get(uid, {}):
            match = _DEVICE.match(name)
            if pool != node or match is None or name not in there:
                continue
            attributes = there[name].get("attributes") or {}
            product = attributes.get("productName", {}).get("string", "")
            profile = attributes.get("profile", {}).get("string", "")
            found.append((int(match["gpu"]), profile, int(match["start"] or 0)))
        return listing(node, product, found)

    # --- truth ------------------------------------------------------------------------------------

    def _violation(self, sentence: str) -> None:
        if sentence not in self.violations:
            _log.error("lab violation: %s", sentence)
            self.violations.append(sentence)
            _write(self._folder / "violations.json", {"violations": self.violations})

    def store(self) -> None:
        """Keep the truth for the next player and for tests."""
        _write(self._folder / "devices.json", {name: truth.as_json() for name, truth in sorted(self.truths.items())})


def write_truth(folder: Path, nodes: Iterable[Node]) -> None:
    """Say which GPU of a node is carved how, before the node is made: its labels tell counts only."""
    file = folder / "truth" / "nodes.json"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = dict(_read(file))
    for node in nodes:
        sizes = {name: profile.size for name, profile in node.model.profiles.items()} if node.gpus else {}
        known[node.name] = [
            {
                "product": node.product,
                "mig": gpu.mig is not None,
                "windows": [[start, sizes[profile], profile] for profile, start in gpu.mig or ()],
            }
            for gpu in node.gpus
        ]
    _write(file, known)


def truths(folder: Path) -> dict[str, NodeTruth]:
    """Return node → truth of a cluster's folder. For tests."""
    return {name: NodeTruth.of(given) for name, given in _read(folder / "truth" / "devices.json").items()}


def violations(folder: Path) -> list[str]:
    """Return every violation that the lab has seen in a cluster, and what is wrong now. For tests."""
    seen = list(_read(folder / "truth" / "violations.json").get("violations", ()))
    return seen + [sentence for sentence in double_use(truths(folder).items()) if sentence not in seen]


def listing(node: str, product: str, seen: Iterable[tuple[int, str, int]]) -> list[str]:
    """Return `nvidia-smi -L` for (GPU, profile or "", start)."""
    lines: list[str] = []
    by_gpu: dict[int, list[tuple[str, int]]] = {}
    for gpu, profile, start in sorted(seen):
        by_gpu.setdefault(gpu, [])
        if profile:
            by_gpu[gpu].append((profile, start))
    for number, (gpu, parts) in enumerate(by_gpu.items()):
        lines.append(f"GPU {number}: {product} (UUID: GPU-{uuid5(NAMESPACE_URL, f'lab/{node}/{gpu}')})")
        for device, (profile, start) in enumerate(parts):
            own = uuid5(NAMESPACE_URL, f"lab/{node}/{gpu}/{profile}/{start}")
            lines.append(f"  MIG {profile:<10} Device {device:>2}: (UUID: MIG-{own})")
    return lines


def _read(file: Path) -> Mapping[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        found: Mapping[str, Any] = json.loads(file.read_text())
        return found
    return {}


def _write(file: Path, value: Mapping[str, Any]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(value, indent=1))
    fresh.replace(file)
