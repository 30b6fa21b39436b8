"""Simulated GPU nodes: what a node with NVIDIA's device plugin and GPU feature discovery v0.20 publishes.

Pure but for `install` and `publish`. Labels say per-node totals and no device, as the real ones do
(NVIDIA/k8s-device-plugin, internal/lm): `single` needs one profile on every GPU, else the product ends in
`-MIG-INVALID`; `mixed` counts whole GPUs as `nvidia.com/gpu` and each profile by its own name; `none` counts GPUs
whatever their mode.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from controlplane.labs.kubernetes import stages
from controlplane.labs.kubernetes.catalogue import CUDA_VERSION, DRIVER_VERSION, MigProfile, Model, model
from controlplane.labs.kubernetes.client import Api, Object
from controlplane.labs.kubernetes.errors import LabError

GPU: Final = "nvidia.com/gpu"
MIG_PREFIX: Final = "nvidia.com/mig-"


class Strategy(StrEnum):
    """How the device plugin shows MIG devices."""

    NONE = "none"
    SINGLE = "single"
    MIXED = "mixed"


class Kind(StrEnum):
    """What publishes a node's GPUs."""

    DEVICE_PLUGIN = "device-plugin"
    PARTITIONABLE = "dra-partitionable"
    """NVIDIA's DRA driver with its gate DynamicMIG: every placement that could be, with shared counters."""
    STATIC = "dra-static"
    """NVIDIA's DRA driver with MIG devices that were carved before."""
    WHOLE = "dra-whole"
    """NVIDIA's DRA driver with whole GPUs only."""
    CPU = "cpu"
    """No GPU."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU of a node and what it is carved into."""

    index: int
    mig: tuple[tuple[str, int], ...] | None = None
    """None: MIG mode off. Else (profile, start) of each MIG device; empty: on, and nothing carved."""

    def uuid(self, node: str) -> str:
        """Return its UUID, the same each time for a node's name and index."""
        return f"GPU-{uuid5(NAMESPACE_URL, f'lab/{node}/{self.index}')}"


@dataclass(frozen=True, slots=True)
class Node:
    """One node to simulate."""

    name: str
    product: str = ""
    """Catalogue id; empty for a node without GPUs."""
    gpus: tuple[Gpu, ...] = ()
    kind: Kind = Kind.DEVICE_PLUGIN
    strategy: Strategy = Strategy.MIXED
    vcpu: int = 96
    memory_gib: int = 1024
    generation: int = 1
    """Of what is carved: a MIG device that is carved again has another UUID."""

    @property
    def model(self) -> Model:
        """The GPU model. Raises `KeyError` without one."""
        return model(self.product)

    def carved(self, layouts: dict[int, tuple[tuple[str, int], ...] | None]) -> Node:
        """Return the node with other layouts on the GPUs that `layouts` names."""
        gpus = tuple(replace(gpu, mig=layouts[gpu.index]) if gpu.index in layouts else gpu for gpu in self.gpus)
        return replace(self, gpus=gpus, generation=self.generation + 1)

    def mig_uuid(self, gpu: Gpu, profile: str, start: int) -> str:
        """Return the UUID of a carved MIG device."""
        return f"MIG-{uuid5(NAMESPACE_URL, f'lab/{self.name}/{gpu.index}/{profile}/{start}/{self.generation}')}"


def gpu_node(
    name: str,
    product: str,
    *,
    count: int = 8,
    kind: Kind = Kind.DEVICE_PLUGIN,
    strategy: Strategy = Strategy.MIXED,
    layouts: dict[int, tuple[tuple[str, int], ...]] | None = None,
    vcpu: int = 96,
    memory_gib: int = 1024,
) -> Node:
    """Return a node with `count` GPUs; `layouts` (index → (profile, start)…) turns MIG on where it names one.

    Raises `LabError` for a layout that no such GPU can have.
    """
    layouts = layouts or {}
    for index, layout in layouts.items():
        check_layout(product, layout)
        if not 0 <= index < count:
            raise LabError(f"{name} has no GPU {index}")
    gpus = tuple(Gpu(index, layouts.get(index)) for index in range(count))
    return Node(name, product, gpus, kind, strategy, vcpu, memory_gib)


def check_layout(product: str, layout: tuple[tuple[str, int], ...]) -> None:
    """Raise `LabError` unless the MIG devices exist for the product, start where they may, and do not overlap."""
    known = model(product).profiles
    taken: set[int] = set()
    for profile, start in layout:
        if profile not in known or start not in known[profile].starts:
            raise LabError(f"{product} has no MIG device {profile} at {start}")
        window = set(range(start, start + known[profile].size))
        if window & taken:
            raise LabError(f"{product}: {profile} at {start} overlaps another MIG device")
        taken |= window
    if sum(profile.endswith("+me") for profile, _ in layout) > 1:
        raise LabError(f"{product} has one media extension unit")


# --- what device plugin and GFD say ---------------------------------------------------------------


def allocatable(node: Node) -> dict[str, int]:
    """Return the device plugin's resources → counts; empty for DRA nodes and where a `single` layout is invalid."""
    if node.kind != Kind.DEVICE_PLUGIN or not node.gpus:
        return {}
    whole = sum(gpu.mig is None for gpu in node.gpus)
    devices = Counter(profile for gpu in node.gpus for profile, _ in gpu.mig or ())
    if node.strategy == Strategy.NONE:
        return {GPU: len(node.gpus)}
    if node.strategy == Strategy.SINGLE and whole < len(node.gpus):
        return {GPU: devices.total()} if _single_profile(node) else {}
    found = {GPU: whole} if whole else {}
    return found | {node.model.profiles[name].resource_name: count for name, count in sorted(devices.items())}


def _single_profile(node: Node) -> MigProfile | None:
    """Return the one profile of a valid `single` node, None where there is no one."""
    names = {profile for gpu in node.gpus for profile, _ in gpu.mig or ()}
    valid = len(names) == 1 and all(gpu.mig for gpu in node.gpus)
    return node.model.profiles[names.pop()] if valid else None


def labels(node: Node, *, now: int | None = None) -> dict[str, str]:
    """Return the labels that GPU feature discovery and the GPU operator put on the node.

    A DRA node has no GFD (the operator's GPUCluster runs without it): only the operator's `gpu.present`.
    """
    if not node.gpus:
        return {}
    if node.kind != Kind.DEVICE_PLUGIN:
        return {"nvidia.com/gpu.present": "true"}
    of = node.model
    major, minor, revision = DRIVER_VERSION.split(".")
    cuda_major, cuda_minor = CUDA_VERSION.split(".")
    compute_major, compute_minor = of.compute_capability.split(".")
    found: dict[str, object] = {
        "gpu.present": "true",
        "gfd.timestamp": now if now is not None else int(time.time()),
        "cuda.driver-version.major": major,
        "cuda.driver-version.minor": minor,
        "cuda.driver-version.revision": revision,
        "cuda.driver-version.full": DRIVER_VERSION,
        "cuda.runtime-version.major": cuda_major,
        "cuda.runtime-version.minor": cuda_minor,
        "cuda.runtime-version.full": CUDA_VERSION,
        "gpu.machine": of.machine,
        "gpu.mode": "compute",
        "gpu.compute.major": compute_major,
        "gpu.compute.minor": compute_minor,
        "gpu.family": of.family,
        "gpu.count": len(node.gpus),
        "gpu.product": of.label,
        "gpu.memory": of.memory_mib,
        # a node whose every GPU is in MIG mode has no whole GPU that could be shared
        "gpu.replicas": int(any(gpu.mig is None for gpu in node.gpus)),
        "gpu.sharing-strategy": "none",
        "mig.capable": str(bool(of.profiles)).lower(),
        "mps.capable": "false",
        "vgpu.present": "false",
    }
    if node.strategy != Strategy.NONE:
        found["mig.strategy"] = node.strategy
    found |= _deployed(bool(of.profiles))
    found |= _mig_labels(node)
    return {f"nvidia.com/{name}": str(value) for name, value in found.items()}


def _deployed(mig_capable: bool) -> dict[str, object]:  # noqa: FBT001
    """Labels by which the GPU operator places its daemons."""
    names = [
        "device-plugin",
        "gpu-feature-discovery",
        "dcgm-exporter",
        "driver",
        "container-toolkit",
        "operator-validator",
    ]
    if mig_capable:
        names.append("mig-manager")
    return {f"gpu.deploy.{name}": "true" for name in names}


def _mig_labels(node: Node) -> dict[str, object]:
    """Labels of MIG devices; `single` puts them in the place of the whole GPU's."""
    if node.strategy == Strategy.MIXED:
        devices = Counter(profile for gpu in node.gpus for profile, _ in gpu.mig or ())
        found: dict[str, object] = {}
        for name, count in sorted(devices.items()):
            profile = node.model.profiles[name]
            found |= _device_labels(profile.resource_name.removeprefix("nvidia.com/"), node.model, profile, count)
        return found
    if node.strategy == Strategy.NONE or all(gpu.mig is None for gpu in node.gpus):
        return {}
    single = _single_profile(node)
    if single is None:
        return {"gpu.product": f"{node.model.label}-MIG-INVALID", "gpu.count": 0, "gpu.replicas": 0, "gpu.memory": 0}
    return _device_labels("gpu", node.model, single, sum(len(gpu.mig or ()) for gpu in node.gpus))


def _device_labels(prefix: str, of: Model, profile: MigProfile, count: int) -> dict[str, object]:
    values: dict[str, object] = {
        "count": count,
        "product": f"{of.label}-MIG-{profile.name.replace('+', '.')}",
        "memory": profile.memory_mib,
        "multiprocessors": profile.multiprocessors,
        "replicas": 1,
        "sharing-strategy": "none",
        "slices.gi": profile.compute_slices,
        "slices.ci": profile.compute_slices,
        "engines.copy": profile.copy_engines,
        "engines.decoder": profile.decoders,
        "engines.encoder": 0,
        "engines.jpeg": profile.jpeg_engines,
        "engines.ofa": profile.ofa_engines,
    }
    return {f"{prefix}.{name}": value for name, value in values.items()}


# --- on a cluster ---------------------------------------------------------------------------------


def as_object(node: Node) -> Object:
    """Return the node as its kubelet would register it."""
    resources = {
        "cpu": str(node.vcpu),
        "memory": f"{node.memory_gib}Gi",
        "ephemeral-storage": "2Ti",
        "pods": "250",
        **{name: str(count) for name, count in allocatable(node).items()},
    }
    own = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        stages.SIMULATED: "true",
    }
    info = {
        "architecture": "amd64",
        "operatingSystem": "linux",
        "osImage": "simulated by the lab",
        "kernelVersion": "simulated",
        "kubeletVersion": "v1.36.3",
        "containerRuntimeVersion": "simulated://kwok",
        "kubeProxyVersion": "",
        **dict.fromkeys(("bootID", "machineID", "systemUUID"), str(uuid5(NAMESPACE_URL, f"lab/{node.name}"))),
    }
    key, _, value = stages.MANAGED.partition("=")
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": own | labels(node),
            "annotations": {key: value, stages.SIMULATED: "true"},
        },
        "spec": {},
        "status": {"capacity": resources, "allocatable": resources, "nodeInfo": info},
    }


def install(api: Api, node: Node) -> None:
    """Register the node, or publish anew what its GPUs are; its ResourceSlices are `slices.publish`'s."""
    if api.get("v1", "Node", node.name) is None:
        api.create(as_object(node))
    else:
        publish(api, node)


def publish(api: Api, node: Node, *, stale: frozenset[str] = frozenset()) -> None:
    """Write labels and allocatable after a change of layout, and take away what is no more.

    A resource named in `stale` stays with the value 0, as a kubelet keeps a resource whose plugin is gone.
    """
    seen = api.get("v1", "Node", node.name)
    if seen is None:
        raise LabError(f"there is no node {node.name}")
    wanted = labels(node)
    drop = {name: None for name in seen["metadata"].get("labels", {}) if _is_published(name) and name not in wanted}
    api.patch("v1", "Node", node.name, {"metadata": {"labels": wanted | drop}})
    counts: dict[str, str | None] = {name: str(count) for name, count in allocatable(node).items()}
    before = seen.get("status", {}).get("allocatable", {})
    for name in before:
        if (name == GPU or name.startswith(MIG_PREFIX)) and name not in counts:
            counts[name] = "0" if name in stale else None
    body = {"status": {"capacity": counts, "allocatable": counts}}
    api.patch("v1", "Node", node.name, body, subresource="status")


def _is_published(label: str) -> bool:
    """Whether GFD owns the label (the MIG manager's and the operator's are not GFD's to drop)."""
    own = ("nvidia.com/gpu.", "nvidia.com/mig-", "nvidia.com/cuda.", "nvidia.com/mps.", "nvidia.com/vgpu.")
    if label.startswith("nvidia.com/gpu.deploy."):
        return False
    return label.startswith(own) or label in {"nvidia.com/mig.capable", "nvidia.com/mig.strategy"}
