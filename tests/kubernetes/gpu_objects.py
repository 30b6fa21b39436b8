"""Nodes, ResourceSlices, pods and claims as a cluster shows them, for tests of reading and asking."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from provisioners.driver import Binding, Kind, Ref, UnitSpec
from provisioners.kubernetes.objects import UNIT_LABEL, mark
from tenants import gpu_catalogue

H100 = "NVIDIA-H100-80GB-HBM3"
TENANT = UUID("33333333-3333-4333-8333-333333333333")
BOUNDARY = Ref(Kind.BOUNDARY, UUID("44444444-4444-4444-8444-444444444444"), TENANT)
ENDPOINT = Ref(Kind.ENDPOINT, UUID("55555555-5555-4555-8555-555555555555"), TENANT)
UNIT = UUID("66666666-6666-4666-8666-666666666666")

# gi_profile_id of the H100 profiles that names of DRA devices carry
PROFILE_IDS = {"1g.10gb": 19, "1g.20gb": 15, "2g.20gb": 14, "3g.40gb": 9, "4g.40gb": 5, "7g.80gb": 0}


def node(
    name: str = "n1",
    *,
    product: str = H100,
    gpus: int = 2,
    strategy: str = "mixed",
    offers: dict[str, int] | None = None,
    labels: dict[str, str] | None = None,
    ready: bool = True,
    cordoned: bool = False,
    capacity: dict[str, int] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a node of the device plugin; `offers` are its GPU resources (default: all GPUs whole)."""
    offers = {"nvidia.com/gpu": gpus} if offers is None else offers
    told = {"kubernetes.io/hostname": name}
    if product:
        told |= {"nvidia.com/gpu.product": product, "nvidia.com/gpu.count": str(gpus)}
    if strategy:
        told["nvidia.com/mig.strategy"] = strategy
    plain = {"cpu": "64", "memory": "512Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "7",
            "labels": told | (labels or {}),
            "annotations": annotations or {},
        },
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "allocatable": plain | {key: str(value) for key, value in offers.items()},
            "capacity": plain | {key: str(value) for key, value in (capacity or offers).items()},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "Unknown",
                    "message": "" if ready else "kubelet stopped",
                }
            ],
        },
    }


def bare_node(name: str = "n1", **options: Any) -> dict[str, Any]:
    """Return a node without device plugin and labels, as with DRA."""
    return node(name, product="", strategy="", gpus=0, offers={}, **options)


def gpu_uuid(node_name: str, index: int) -> str:
    return f"GPU-{node_name}-{index}"


def whole(
    node_name: str, index: int, *, counters: bool = False, product: str = "NVIDIA H100 80GB HBM3"
) -> dict[str, Any]:
    """Return the published device of a whole GPU."""
    device: dict[str, Any] = {
        "name": f"gpu-{index}",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": gpu_uuid(node_name, index)},
            "productName": {"string": product},
        },
        "capacity": {"memory": {"value": "80Gi"}},
    }
    if counters:
        device["consumesCounters"] = [
            {
                "counterSet": f"gpu-{index}-counter-set",
                "counters": {f"memory-slice-{slot}": {"value": "1"} for slot in range(8)},
            }
        ]
    return device


def mig(node_name: str, index: int, profile: str, start: int, *, uuid: str = "", told: str = "name") -> dict[str, Any]:
    """Return the published MIG device; `told`: how its start shows (`name`, `counters`, `capacity`, `never`)."""
    size = gpu_catalogue.profile("H100-80GB", profile).size
    name = f"gpu-{index}-mig-{profile.replace('.', '')}-{PROFILE_IDS[profile]}-{start}"
    device: dict[str, Any] = {
        "name": name if told == "name" else f"mig-{index}-{start}-{profile[0]}",
        "attributes": {
            "type": {"string": "mig"},
            "parentUUID": {"string": gpu_uuid(node_name, index)},
            "profile": {"string": profile},
            "productName": {"string": "NVIDIA H100 80GB HBM3"},
        },
        "capacity": {"memory": {"value": "9Gi"}},
    }
    if uuid:
        device["attributes"]["uuid"] = {"string": uuid}
    if told == "capacity":
        device["capacity"] |= {f"memorySlice{slot}": {"value": "1"} for slot in range(start, start + size)}
    if told == "counters":
        device["name"] = name
        device["consumesCounters"] = [
            {
                "counterSet": f"gpu-{index}-counter-set",
                "counters": {f"memory-slice-{slot}": {"value": "1"} for slot in range(start, start + size)},
            }
        ]
    return device


def every_partition(node_name: str, index: int) -> list[dict[str, Any]]:
    """Return the whole GPU and every legal MIG placement, as the driver with dynamic MIG publishes them."""
    return [
        whole(node_name, index, counters=True),
        *(
            mig(node_name, index, profile, start, told="counters")
            for profile in PROFILE_IDS
            for start in gpu_catalogue.profile("H100-80GB", profile).starts
        ),
    ]


def resource_slice(
    node_name: str, devices: list[dict[str, Any]], *, generation: int = 1, count: int = 1, part: int = 0
) -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node_name}-{generation}-{part}"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node_name,
            "pool": {"name": node_name, "generation": generation, "resourceSliceCount": count},
            "devices": devices,
        },
    }


def claim(
    name: str,
    *,
    namespace: str = BOUNDARY.name,
    devices: list[str] | None = None,
    pool: str = "n1",
    pods: list[str] | None = None,
    ours: bool = True,
    unit: UUID = UNIT,
) -> dict[str, Any]:
    """Return a ResourceClaim, allocated where `devices` are named."""
    made: dict[str, Any] = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": {}},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "mig.nvidia.com"}}]}},
        "status": {},
    }
    if ours:
        made["metadata"]["labels"] = {**mark(ENDPOINT), UNIT_LABEL: str(unit)}
    if devices is not None:
        made["status"]["allocation"] = {
            "devices": {
                "results": [
                    {"driver": "gpu.nvidia.com", "pool": pool, "device": device, "request": "gpu"} for device in devices
                ]
            }
        }
    if pods:
        made["status"]["reservedFor"] = [{"resource": "pods", "name": pod, "uid": f"uid-{pod}"} for pod in pods]
    return made


def pod(
    name: str,
    *,
    namespace: str = BOUNDARY.name,
    on: str = "n1",
    resources: dict[str, str] | None = None,
    claims: list[str] | None = None,
    ours: bool = True,
    unit: UUID = UNIT,
    phase: str = "Running",
    status: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a pod bound to a node, with 4 CPUs, 16 GiB and `resources`."""
    asked = {"cpu": "4", "memory": "16Gi", **(resources or {})}
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": {}},
        "spec": {
            "nodeName": on,
            "containers": [{"name": "vllm", "resources": {"requests": asked, "limits": asked}}],
        },
        "status": {"phase": phase, **(status or {})},
    }
    if ours:
        made["metadata"]["labels"] = {**mark(ENDPOINT), UNIT_LABEL: str(unit)}
    if claims:
        made["spec"]["resourceClaims"] = [
            {"name": f"c{number}", "resourceClaimName": one} for number, one in enumerate(claims)
        ]
    return made


def namespace(ref: Ref = BOUNDARY) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": ref.name, "uid": f"uid-{ref.name}", "labels": dict(mark(ref))},
    }


def unit(
    host: str = "n1",
    *,
    binding: Binding = Binding.HOST,
    profile: str = "1g.10gb",
    devices: tuple[str, ...] = (),
    starts: tuple[int, ...] = (),
    count: int = 0,
    product: str = "H100-80GB",
) -> UnitSpec:
    return UnitSpec(
        uid=UNIT,
        index=0,
        host=host,
        product=product,
        profile=profile,
        gpu_count=count,
        binding=binding,
        devices=devices,
        starts=starts,
        vcpu=4,
        memory_gib=16,
    )
