"""Simulated DRA nodes: the ResourceSlices and DeviceClasses of NVIDIA's DRA driver v0.5.

Attributes and capacities are those of the driver (kubernetes-sigs/dra-driver-nvidia-gpu, deviceinfo.go, mig.go,
partitions.go) that a tenant platform may count on, and no others. Partitionable devices follow KEP-4815 as Kubernetes
1.36 wants it: the counter sets stand in slices of their own, devices in further slices of the same pool.
Pure but for `publish`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from controlplane.labs.kubernetes.catalogue import CUDA_VERSION, DRIVER_VERSION, MigProfile
from controlplane.labs.kubernetes.client import Api, Object
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.nodes import Gpu, Kind, Node

DRIVER: Final = "gpu.nvidia.com"
MIG_CLASS: Final = "mig.nvidia.com"
API: Final = "resource.k8s.io/v1"
_DEVICES_PER_SLICE: Final = 64
"""resource.k8s.io/v1 allows 64 devices in a slice where one of them consumes counters (128 else)."""
_SETS_PER_SLICE: Final = 8
_MIB: Final = 2**20
_ARCHITECTURES: Final = {"hopper": "Hopper", "ampere": "Ampere", "ada": "Ada Lovelace"}


def device_classes(*, extended_resource: bool = False) -> list[Object]:
    """Return the driver's classes; `extended_resource` maps whole GPUs to `nvidia.com/gpu`, as its own chart does."""
    made = []
    for name, kind in ((DRIVER, "gpu"), (MIG_CLASS, "mig")):
        expression = f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == '{kind}'"
        spec: Object = {"selectors": [{"cel": {"expression": expression}}]}
        if extended_resource and kind == "gpu":
            spec["extendedResourceName"] = "nvidia.com/gpu"
        made.append({"apiVersion": API, "kind": "DeviceClass", "metadata": {"name": name}, "spec": spec})
    return made


def resource_slices(node: Node) -> list[Object]:
    """Return the node's slices: one pool, complete, in the node's generation; none for a device-plugin node."""
    if node.kind in {Kind.DEVICE_PLUGIN, Kind.CPU} or not node.gpus:
        return []
    specs: list[Object] = []
    if node.kind == Kind.PARTITIONABLE:
        sets = [_counter_set(node, gpu) for gpu in node.gpus if node.model.profiles]
        specs += [{"sharedCounters": part} for part in _chunks(sets, _SETS_PER_SLICE)]
    devices = [device for gpu in node.gpus for device in _devices(node, gpu)]
    specs += [{"devices": part} for part in _chunks(devices, _DEVICES_PER_SLICE)] or [{"devices": []}]
    pool = {"name": node.name, "generation": node.generation, "resourceSliceCount": len(specs)}
    return [
        {
            "apiVersion": API,
            "kind": "ResourceSlice",
            "metadata": {"name": f"{node.name}-{DRIVER}-{node.generation}-{number}"},
            "spec": {"driver": DRIVER, "nodeName": node.name, "pool": pool, **spec},
        }
        for number, spec in enumerate(specs)
    ]


def publish(api: Api, node: Node) -> None:
    """Write the node's slices of this generation, then take away those of earlier ones (the order a driver keeps).

    The node must be there: it owns its slices, so they go with it.
    """
    owner = api.get("v1", "Node", node.name)
    if owner is None:
        raise LabError(f"there is no node {node.name}")
    wanted = resource_slices(node)
    for made in wanted:
        made["metadata"]["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": owner["metadata"]["uid"]}
        ]
        api.apply(made)
    names = {made["metadata"]["name"] for made in wanted}
    for seen in api.list(API, "ResourceSlice", fields=f"spec.nodeName={node.name}"):
        if seen["spec"]["driver"] == DRIVER and seen["metadata"]["name"] not in names:
            api.delete(API, "ResourceSlice", seen["metadata"]["name"])


def device_name(gpu: Gpu, profile: MigProfile | None = None, start: int = 0) -> str:
    """Return the driver's canonical name: `gpu-<minor>`, or with `-mig-<profile>-<GI profile id>-<start>`."""
    if profile is None:
        return f"gpu-{gpu.index}"
    short = profile.name.replace(".", "").replace("+", "-").lower()
    return f"gpu-{gpu.index}-mig-{short}-{profile.gi_profile_id}-{start}"


# --- devices --------------------------------------------------------------------------------------


def _devices(node: Node, gpu: Gpu) -> Iterator[Object]:
    """Yield what the driver publishes of one GPU."""
    if node.kind == Kind.PARTITIONABLE and node.model.profiles:
        yield _whole(node, gpu) | {"capacity": _largest(node), "consumesCounters": _consumed(node, gpu, None, 0)}
        for profile in node.model.profiles.values():
            for start in profile.starts:
                yield _mig(node, gpu, profile, start) | {"consumesCounters": _consumed(node, gpu, profile, start)}
    elif node.kind == Kind.STATIC and gpu.mig is not None:
        for name, start in gpu.mig:  # a GPU in MIG mode without devices is stranded: nothing is published
            profile = node.model.profiles[name]
            device = _mig(node, gpu, profile, start)
            device["attributes"]["uuid"] = {"string": node.mig_uuid(gpu, name, start)}
            yield device
    else:
        yield _whole(node, gpu) | {"capacity": {"memory": {"value": str(node.model.memory_mib * _MIB)}}}


def _whole(node: Node, gpu: Gpu) -> Object:
    own = {"type": {"string": "gpu"}, "uuid": {"string": gpu.uuid(node.name)}}
    return {"name": device_name(gpu), "attributes": own | _common(node, gpu)}


def _mig(node: Node, gpu: Gpu, profile: MigProfile, start: int) -> Object:
    own = {
        "type": {"string": "mig"},
        "parentUUID": {"string": gpu.uuid(node.name)},
        "profile": {"string": profile.name},
    }
    capacity = {name: {"value": str(count)} for name, count in _amounts(profile).items()}
    return {"name": device_name(gpu, profile, start), "attributes": own | _common(node, gpu), "capacity": capacity}


def _common(node: Node, gpu: Gpu) -> Object:
    bus = 0x1A + 0x10 * gpu.index
    return {
        "productName": {"string": node.model.name},
        "brand": {"string": "Nvidia"},
        "architecture": {"string": _ARCHITECTURES[node.model.architecture]},
        "cudaComputeCapability": {"version": f"{node.model.compute_capability}.0"},
        # semantic versions have no leading zeros
        "driverVersion": {"version": ".".join(str(int(part)) for part in DRIVER_VERSION.split("."))},
        "cudaDriverVersion": {"version": f"{CUDA_VERSION}.0"},
        "addressingMode": {"string": "HMM"},
        "resource.kubernetes.io/pciBusID": {"string": f"0000:{bus + 1:02x}:00.0"},
        "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:{bus:02x}"},
    }


# --- counters -------------------------------------------------------------------------------------


def _amounts(profile: MigProfile) -> dict[str, int]:
    """Return capacity name → amount of one MIG device."""
    return {"memory": profile.memory_mib * _MIB, **profile.engines}


def _largest(node: Node) -> Object:
    """Return the whole GPU's capacity: in each dimension the largest that a profile has, as the driver works it out."""
    return {name: {"value": str(count)} for name, count in _maximum(node).items()}


def _maximum(node: Node) -> dict[str, int]:
    every = [_amounts(profile) for profile in node.model.profiles.values()]
    return {name: max(amounts[name] for amounts in every) for name in every[0]}


def _counter_set(node: Node, gpu: Gpu) -> Object:
    return {"name": _set_name(gpu), "counters": _counters(_maximum(node), 0, node.model.slices)}


def _consumed(node: Node, gpu: Gpu, profile: MigProfile | None, start: int) -> list[Object]:
    """Return what a device takes of its GPU: the whole GPU everything, a MIG device its engines and memory slices."""
    if profile is None:
        counters = _counters(_maximum(node), 0, node.model.slices)
    else:
        counters = _counters(_amounts(profile), start, profile.size)
    return [{"counterSet": _set_name(gpu), "counters": counters}]


def _counters(amounts: dict[str, int], start: int, size: int) -> Object:
    hyphens = {"copyEngines": "copy-engines", "jpegEngines": "jpeg-engines", "ofaEngines": "ofa-engines"}
    found = {hyphens.get(name, name): {"value": str(count)} for name, count in amounts.items()}
    return found | {f"memory-slice-{number}": {"value": "1"} for number in range(start, start + size)}


def _set_name(gpu: Gpu) -> str:
    return f"{device_name(gpu)}-counter-set"


def _chunks(items: list[Object], size: int) -> list[list[Object]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
