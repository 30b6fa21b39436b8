"""One unit's GPU room at a node: what its pod asks for, and what it was really given. Pure.

With the device plugin a pod asks for the resource of its profile and is pinned to the ledger's node; which
device it gets is the kubelet's choice. With DRA it asks through a ResourceClaim of ours: by `uuid` where the
device is published, else by `parentUUID` and `profile`, and the claim's allocation tells the very device.

A claim's spec cannot be changed, so its name carries a digest of what it asks for: another placement is
another claim.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from provisioners.driver import Binding, DriverRejected, NoCapacity, ObservedUnit, UnitSpec, intent_hash
from provisioners.kubernetes.nodes import (
    HOSTNAME_LABEL,
    Node,
    Strategy,
    counts,
    derived_id,
    is_gpu,
    profile_of,
    quantity,
    resource_of,
)
from provisioners.kubernetes.objects import UNIT_LABEL, Object, dig, labels, name_of, namespace_of
from provisioners.kubernetes.slices import GPU, MIG, NVIDIA, Given, Pools, Published, allocated
from tenants import geometry, gpu_catalogue
from tenants.gpu_catalogue import WHOLE

API: Final = "resource.k8s.io/v1"
GPU_CLASS: Final = "gpu.nvidia.com"
MIG_CLASS: Final = "mig.nvidia.com"
WHOLE_RESOURCE: Final = "nvidia.com/gpu"
TOLERATIONS: Final = ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
"""The taint that keeps other pods from GPU nodes."""

_REPORTED: Final = re.compile(r"^gpu-(?P<gpu>\d+)(?:-mig-(?P<profile>.+)-\d+-(?P<start>\d+))?$")
_ENDED: Final = frozenset({"Succeeded", "Failed"})


# --- asking ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What a unit's pod needs so that it gets its GPUs and nothing else."""

    node_selector: Mapping[str, str]
    resources: Mapping[str, str] = field(default_factory=dict)
    """Extended resources of the container, both as request and limit."""
    claims: tuple[Object, ...] = ()
    """ResourceClaims to be made beforehand, without our mark yet."""
    pod_claims: tuple[Mapping[str, str], ...] = ()
    """`spec.resourceClaims` of the pod."""
    container_claims: tuple[Mapping[str, str], ...] = ()
    """`resources.claims` of its container."""
    tolerations: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Occupied:
    """What of a node is in use by others."""

    carved: Counter[str] = field(default_factory=Counter)
    """MIG profile (`""` whole) → devices of the device plugin in use."""
    windows: tuple[Taken, ...] = ()
    """Windows whose GPU is known."""


def request(unit: UnitSpec, node: Node, *, name: str, namespace: str, occupied: Occupied | None = None) -> Request:
    """Return what the pod of `unit` asks `node` for; claims are called after `name`.

    Raises `DriverRejected` where the unit and the node contradict each other (product, profile, start, device,
    binding), `NoCapacity` where what it names is not carved, tainted, or in use by others.
    """
    pinned = {HOSTNAME_LABEL: node.hostname} if unit.host else {}
    if not unit.product:
        return Request(pinned)
    _check(unit, node)
    if unit.binding is Binding.HOST:
        resource, number = _resource(unit, node, occupied or Occupied())
        return Request(pinned, {resource: str(number)}, tolerations=TOLERATIONS)
    selectors = _selectors(unit, node, occupied or Occupied())
    claim = _claim(unit, selectors, name, namespace)
    reference = {"name": "gpu", "resourceClaimName": name_of(claim)}
    return Request(pinned, {}, (claim,), (reference,), ({"name": "gpu"},), TOLERATIONS)


def _check(unit: UnitSpec, node: Node) -> None:
    """Refuse what no state of the node could satisfy."""
    if node.name != unit.host:
        raise DriverRejected(f"{unit.host} is another node than {node.name}")
    if node.product != unit.product:
        raise DriverRejected(f"{node.name} has {node.product or 'no GPUs'}, not {unit.product}")
    if node.binding is not unit.binding:
        raise DriverRejected(f"{node.name} binds GPUs by {node.binding}, the unit was placed by {unit.binding}")
    try:
        profile = gpu_catalogue.profile(unit.product, unit.profile)
    except LookupError as error:
        raise DriverRejected(str(error.args[0])) from error
    if unit.binding is Binding.HOST:
        return
    wanted = 1 if unit.profile else unit.gpu_count
    if len(unit.devices) != wanted:
        raise DriverRejected(f"a unit of {wanted} GPUs names {len(unit.devices)} of them")
    for device in unit.devices:
        if node.gpu(device) is None:
            raise DriverRejected(f"{node.name} has no GPU {device}")
    if unit.binding is Binding.DEVICE and any(start not in profile.starts for start in unit.starts):
        raise DriverRejected(f"{unit.profile or 'a whole GPU'} cannot start at {unit.starts[0]} on {unit.product}")


def _resource(unit: UnitSpec, node: Node, occupied: Occupied) -> tuple[str, int]:
    number = 1 if unit.profile else unit.gpu_count
    if node.strategy is Strategy.SINGLE and unit.profile:
        resource = WHOLE_RESOURCE
    else:
        resource = resource_of(unit.product, unit.profile)
    what = unit.profile or "whole GPU"
    offered = node.carved[unit.profile]
    if offered < number:
        raise NoCapacity(f"{node.name} offers {offered} of {what}, {number} are needed")
    left = offered - occupied.carved[unit.profile]
    if left < number:
        raise NoCapacity(f"{node.name} has {max(0, left)} of {offered} {what} left, {number} are needed")
    return resource, number


def _selectors(unit: UnitSpec, node: Node, occupied: Occupied) -> list[tuple[str, str]]:
    """Return (device class, CEL expression) for each GPU of the unit."""
    if not unit.profile:
        return [(GPU_CLASS, _by_uuid(GPU, _whole(device, node, occupied).uuid)) for device in unit.devices]
    (device,) = unit.devices
    if unit.binding is Binding.DEVICE:
        start = unit.starts[0] if unit.starts else None
        return [(MIG_CLASS, _by_uuid(MIG, _fixed(unit, node, device, start, occupied).uuid))]
    _room(unit, node, device, occupied)
    return [(MIG_CLASS, _by_parent(device, unit.profile))]


def _whole(device: str, node: Node, occupied: Occupied) -> Published:
    found = next((one for one in node.published if one.kind == GPU and one.uuid == device), None)
    if found is None:
        raise NoCapacity(f"{device} on {node.name} is carved and not offered whole")
    _usable(found, node)
    if any(taken.device == device for taken in occupied.windows):
        raise NoCapacity(f"{device} on {node.name} is in use")
    return found


def _fixed(unit: UnitSpec, node: Node, device: str, start: int | None, occupied: Occupied) -> Published:
    found = next(
        (
            one
            for one in node.published
            if one.kind == MIG and one.gpu == device and one.profile == unit.profile and one.start == start
        ),
        None,
    )
    if found is None:
        raise NoCapacity(f"{device} on {node.name} has no MIG device {unit.profile} at {start}")
    _usable(found, node)
    if any(taken.device == device and taken.start == start for taken in occupied.windows):
        raise NoCapacity(f"the MIG device {unit.profile} at {start} of {device} is in use")
    return found


def _room(unit: UnitSpec, node: Node, device: str, occupied: Occupied) -> None:
    """Refuse a GPU on which no window of the profile is left."""
    offered = [one for one in node.published if one.kind == MIG and one.gpu == device and one.profile == unit.profile]
    if not offered:
        raise NoCapacity(f"{device} on {node.name} offers no MIG device {unit.profile}")
    _usable(offered[0], node)
    size = gpu_catalogue.profile(unit.product, unit.profile).size
    taken = [one for one in occupied.windows if one.device == device]
    blocked = 0
    for one in taken:
        if one.start is not None:
            blocked |= geometry.window_mask(one.start, one.size)
    masks = [geometry.window_mask(one.start, size) for one in offered if one.start is not None]
    blind = sum(1 for one in taken if one.start is None and one.profile == unit.profile)
    free = sum(1 for mask in masks if not mask & blocked) if masks else len(offered)
    if free - blind < 1:
        raise NoCapacity(f"{device} on {node.name} has no {unit.profile} left")


def _usable(device: Published, node: Node) -> None:
    if device.taint:
        raise NoCapacity(f"{device.name} on {node.name} is tainted: {device.taint}")


def _by_uuid(kind: str, uuid: str) -> str:
    return _expression(kind, f"uuid == '{_text(uuid)}'")


def _by_parent(gpu: str, profile: str) -> str:
    return _expression(MIG, f"parentUUID == '{_text(gpu)}'", f"profile == '{_text(profile)}'")


def _expression(kind: str, *conditions: str) -> str:
    """Return CEL that looks at attributes of the type only: one that a device lacks would be an error."""
    named = [f"device.attributes['{NVIDIA}'].{condition}" for condition in (f"type == '{kind}'", *conditions)]
    return " && ".join([f"device.driver == '{NVIDIA}'", *named])


def _text(value: str) -> str:
    """Return text that may stand in a CEL string; ids and profiles hold no quotes."""
    if not re.fullmatch(r"[A-Za-z0-9.:+_-]+", value):
        raise DriverRejected(f"{value!r} is no id of a device")
    return value


def _claim(unit: UnitSpec, selectors: Sequence[tuple[str, str]], name: str, namespace: str) -> Object:
    requests = [
        {
            "name": "gpu" if len(selectors) == 1 else f"gpu-{number}",
            "exactly": {
                "deviceClassName": device_class,
                "selectors": [{"cel": {"expression": expression}}],
                "allocationMode": "ExactCount",
                "count": 1,
            },
        }
        for number, (device_class, expression) in enumerate(selectors)
    ]
    return {
        "apiVersion": API,
        "kind": "ResourceClaim",
        "metadata": {
            "name": f"{name}-{intent_hash([unit.host, *requests])[:8]}",
            "namespace": namespace,
            "labels": {UNIT_LABEL: str(unit.uid)},
        },
        "spec": {"devices": {"requests": requests}},
    }


# --- what was given -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """One GPU or MIG device that a pod has."""

    device: str
    """`""` where the provider does not say."""
    start: int | None
    size: int
    profile: str
    exact: bool
    """Reported, and not concluded from the node having one GPU only."""


def taken_by(
    pod: Object,
    node: Node,
    claims: Mapping[tuple[str, str], Object],
    pools: Pools,
    *,
    told: Collection[tuple[str, str]] = (),
) -> tuple[Taken, ...]:
    """Return what a pod on `node` has; `claims` by (namespace, name). Empty for a pod that has ended.

    `told` are claims that are left out: pods may share one, and its devices are then counted once.
    """
    if dig(pod, "status", "phase") in _ENDED:
        return ()
    found: list[Taken] = []
    for name in dict.fromkeys(claim_names(pod)):
        key = (namespace_of(pod), name)
        claim = claims.get(key)
        if claim is not None and key not in told and name_of(pod) in _reserved_for(claim):
            found += [taken for one in allocated(claim, pools) if (taken := given(one, node)) is not None]
    if dig(pod, "status", "extendedResourceClaimStatus") is None:
        found += _from_plugin(pod, node)
    return tuple(found)


def claim_names(pod: Object) -> list[str]:
    """Return the ResourceClaims that a pod refers to: by name, made from a template, or for extended resources."""
    made = {
        str(one.get("name")): str(one.get("resourceClaimName") or "")
        for one in dig(pod, "status", "resourceClaimStatuses", default=[])
    }
    names = [
        str(one.get("resourceClaimName") or made.get(str(one.get("name")), ""))
        for one in dig(pod, "spec", "resourceClaims", default=[])
    ]
    names.append(str(dig(pod, "status", "extendedResourceClaimStatus", "resourceClaimName", default="")))
    return [name for name in names if name]


def _reserved_for(claim: Object) -> set[str]:
    return {
        str(one.get("name"))
        for one in dig(claim, "status", "reservedFor", default=[])
        if one.get("resource", "pods") == "pods"
    }


def given(one: Given, node: Node) -> Taken | None:
    """Return the window of an allocated device; one that is not published any more says no more than its name."""
    device = one.device
    if device is not None:
        return Taken(device.gpu, device.start, _size(node, device.profile), device.profile, exact=True)
    match = _REPORTED.match(one.name)
    if match is None:
        return None
    gpu = next((gpu.id for gpu in node.gpus if gpu.index == int(match["gpu"])), "")
    profile = _spelled(node, match["profile"])
    start = int(match["start"]) if match["start"] else None
    return Taken(gpu, start if profile else 0, _size(node, profile), profile, exact=bool(gpu))


def _spelled(node: Node, letters: str | None) -> str:
    """Return the profile whose name in a device's name is `letters`: `1g10gb` → `1g.10gb`."""
    if not letters:
        return WHOLE
    try:
        names = [one.name for one in gpu_catalogue.product(node.product).profiles]
    except LookupError:
        return letters
    return next((name for name in names if re.sub(r"[^a-z0-9]+", "-", name.replace(".", "")) == letters), letters)


def _size(node: Node, profile: str) -> int:
    try:
        return gpu_catalogue.profile(node.product, profile).size
    except LookupError:
        return 1


def _from_plugin(pod: Object, node: Node) -> list[Taken]:
    """Return what a pod has by extended resources: on which GPU only where the kubelet tells or there is but one."""
    asked = counts(gpu_resources(pod), node.strategy, single=node.single)
    told = _told(pod, node)
    only = node.gpus[0].id if len(node.gpus) == 1 else ""
    found = []
    for profile, number in sorted(asked.items()):
        size = _size(node, profile)
        known = told[profile][:number]
        found += [Taken(device, start, size, profile, exact=True) for device, start in known]
        alone = 0 if only and not profile else None
        found += [Taken(only, alone, size, profile, exact=False)] * (number - len(known))
    return found


def _told(pod: Object, node: Node) -> dict[str, list[tuple[str, int | None]]]:
    """Return profile → (GPU, start) of the devices that the kubelet reports for a pod.

    Devices whose ids name no GPU of the node (bare UUIDs, as NVIDIA's plugin has them) tell nothing: no label and no
    other object of the cluster says which GPU a UUID is of.
    """
    found: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    for name, ids in reported(pod).items():
        profile = profile_of(name)
        if profile is None:
            profile = node.single if node.strategy is Strategy.SINGLE else WHOLE
        for match in filter(None, map(_REPORTED.match, ids)):
            start = int(match["start"]) if match["start"] else None
            device = derived_id(node.name, int(match["gpu"]))
            if node.gpu(device) is not None:
                found[profile].append((device, start if profile else 0))
    return found


def reported(pod: Object) -> dict[str, tuple[str, ...]]:
    """Return GPU resource → ids of the devices that the kubelet gave a pod, in the words of their device plugin.

    The kubelet writes them into the pod's status (feature `ResourceHealthStatus`, on by default in 1.36); an older one
    tells nobody but programs on its node.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for container in dig(pod, "status", "containerStatuses", default=[]):
        for resource in container.get("allocatedResourcesStatus") or ():
            name = str(resource.get("name", ""))
            if is_gpu(name):
                found[name] += [str(one.get("resourceID", "")) for one in resource.get("resources") or ()]
    return {name: tuple(ids) for name, ids in found.items()}


def gpu_resources(pod: Object) -> dict[str, int]:
    """Return GPU resource → number that a pod takes of its node; init containers as the scheduler counts them."""
    return {name: int(number) for name, number in pod_resources(pod).items() if is_gpu(name) and number >= 1}


def pod_resources(pod: Object) -> dict[str, Decimal]:
    """Return resource → quantity that a pod takes of its node (requests, else limits; overhead included)."""
    total: dict[str, Decimal] = defaultdict(Decimal)
    peak: dict[str, Decimal] = defaultdict(Decimal)
    for container in dig(pod, "spec", "containers", default=[]):
        for name, number in _asked(container).items():
            total[name] += number
    beside: dict[str, Decimal] = defaultdict(Decimal)
    for container in dig(pod, "spec", "initContainers", default=[]):
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":  # a sidecar, which stays
            for name, number in asked.items():
                beside[name] += number
        else:
            for name, number in asked.items():
                peak[name] = max(peak[name], beside[name] + number)
    found = {name: max(total[name] + beside[name], peak[name]) for name in {*total, *beside, *peak}}
    for name, number in dig(pod, "spec", "overhead", default={}).items():
        found[name] = found.get(name, Decimal(0)) + quantity(number)
    return found


def _asked(container: Mapping[str, Any]) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    both = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(number) for name, number in both.items()}


def occupied(
    node: Node,
    pods: Iterable[Object],
    claims: Mapping[tuple[str, str], Object],
    pools: Pools,
    *,
    but: UUID | None = None,
) -> Occupied:
    """Return what pods and allocated claims have of a node; `but` leaves out a unit of ours.

    An allocated claim without a pod takes its devices too.
    """
    mine = {key for key, claim in claims.items() if but is not None and labels(claim).get(UNIT_LABEL) == str(but)}
    windows: list[Taken] = []
    for key, claim in claims.items():
        if key in mine:
            continue
        for one in allocated(claim, pools):
            if one.device is not None and one.device.node == node.name:
                taken = given(one, node)
                windows += [taken] if taken is not None else []
    carved: Counter[str] = Counter()
    for pod in pods:
        if dig(pod, "spec", "nodeName") != node.name or dig(pod, "status", "phase") in _ENDED:
            continue
        if but is not None and labels(pod).get(UNIT_LABEL) == str(but):
            continue
        if dig(pod, "status", "extendedResourceClaimStatus") is None:
            carved += counts(gpu_resources(pod), node.strategy, single=node.single)
    return Occupied(carved, tuple(windows))


def observed(
    uid: UUID,
    pod: Object | None,
    node: Node | None,
    claims: Mapping[tuple[str, str], Object],
    pools: Pools,
    *,
    backend: str = "",
) -> tuple[ObservedUnit, ...]:
    """Return where a unit really runs, one entry per GPU; nothing while its pod has no node.

    A unit without a GPU, or one whose devices are not told yet, is one entry with an empty device.
    """
    host = str(dig(pod or {}, "spec", "nodeName", default=""))
    if pod is None or not host or dig(pod, "status", "phase") in _ENDED:
        return ()
    taken = taken_by(pod, node, claims, pools) if node is not None else ()
    if not taken:
        return (ObservedUnit(uid, host, "", None, "", exact=False, backend=backend),)
    return tuple(
        ObservedUnit(uid, host, one.device, one.start, one.profile, one.exact and bool(one.device), index, backend)
        for index, one in enumerate(taken)
    )
