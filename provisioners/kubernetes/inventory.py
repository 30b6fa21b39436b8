"""A whole cluster at once: nodes, GPUs, who uses them, what carries our mark. Pure but for `read`, which lists.

The number of lists is fixed: it does not grow with nodes, pods or tenants (large lists come in pages). Uses are
ours only by our mark on the pod, in a namespace with our mark and of the same tenant; everybody else's is
foreign, whatever its labels say.

Invariants: an incomplete pool of ResourceSlices makes the snapshot incomplete, and contradictions of a node
stand in its host's `contradictions`, never in a guess.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import yaml

from provisioners.driver import (
    BoundaryKind,
    Capabilities,
    Kind,
    ObservedGpu,
    ObservedHost,
    ObservedObject,
    ObservedProvider,
    ObservedUse,
    Ref,
)
from provisioners.kubernetes import access, admission, nodes, slices
from provisioners.kubernetes import gpu as gpus
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.layout_record import Phase, change_of
from provisioners.kubernetes.nodes import Node, Strategy
from provisioners.kubernetes.objects import (
    EVERYTHING,
    UNIT_LABEL,
    Object,
    dig,
    fingerprint,
    labels,
    name_of,
    namespace_of,
    ref_of,
)
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE
from provisioners.kubernetes.slices import Given, Pools
from provisioners.kubernetes.vm_service import kinds

OPERATOR_NAMESPACE: Final = "gpu-operator"
CLUSTER_POLICY: Final = ("nvidia.com/v1", "ClusterPolicy", "cluster-policy")
GENERATED_LABEL: Final = "nvidia.com/node-name"
"""On the ConfigMap that the MIG manager writes per node."""
DEFAULT_LAYOUTS: Final = "default-mig-parted-config"
LAYOUTS_KEY: Final = "config.yaml"
_ENDED: Final = frozenset({"Succeeded", "Failed"})

MARKED: Final = (
    ("v1", "Namespace"), ("v1", "ResourceQuota"), ("v1", "LimitRange"), ("v1", "ServiceAccount"), ("v1", "Service"),
    ("v1", "ConfigMap"), ("v1", "Secret"), ("v1", "PersistentVolumeClaim"),
    ("networking.k8s.io/v1", "NetworkPolicy"), ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"), ("apps/v1", "Deployment"), ("policy/v1", "PodDisruptionBudget"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"), ("monitoring.coreos.com/v1", "PodMonitor"),
    ("cert-manager.io/v1", "Certificate"),
)  # fmt: skip
"""Kinds of what our steps make, besides pods and claims; of Secrets only the metadata are read."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything that a snapshot reads of a cluster."""

    nodes: tuple[Object, ...]
    pods: tuple[Object, ...]
    slices: tuple[Object, ...] = ()
    claims: tuple[Object, ...] = ()
    marked: tuple[Object, ...] = ()
    """What carries our mark, without pods and claims."""
    policy: Object | None = None
    """The GPU operator's ClusterPolicy."""
    layouts: tuple[Object, ...] = ()
    """ConfigMaps of the MIG manager."""
    version: str = ""


def read(cluster: Cluster) -> Listed:
    """List a cluster. Raises `DriverError` where any list cannot be read whole."""
    dra = cluster.serves(gpus.API, "ResourceSlice")
    marked: list[Object] = []
    held = ((one.api, one.kind) for one in kinds.held(cluster.serves))
    for api, kind in (*MARKED, *held):
        if cluster.serves(api, kind):
            marked += cluster.list(api, kind, labels=EVERYTHING, bare=kind == "Secret").items
    policy, layouts = layouts_of(cluster)
    found = cluster.list("v1", "Node")
    return Listed(
        nodes=found.items,
        pods=cluster.list("v1", "Pod").items,
        slices=cluster.list(gpus.API, "ResourceSlice").items if dra else (),
        claims=cluster.list(gpus.API, "ResourceClaim").items if dra else (),
        marked=tuple(marked),
        policy=policy,
        layouts=layouts,
        version=found.resource_version,
    )


def layouts_of(cluster: Cluster) -> tuple[Object | None, tuple[Object, ...]]:
    """Return the GPU operator's policy and the ConfigMaps that its MIG manager may read; empty without one."""
    if not cluster.serves(*CLUSTER_POLICY[:2]):
        return None, ()
    policy = cluster.get(*CLUSTER_POLICY)
    if policy is None:
        return None, ()
    namespace = OPERATOR_NAMESPACE
    found = [cluster.get("v1", "ConfigMap", name, namespace) for name in {DEFAULT_LAYOUTS, config_name(policy)}]
    generated = cluster.list("v1", "ConfigMap", namespace=namespace, labels=GENERATED_LABEL).items
    return policy, (*generated, *(one for one in found if one is not None))


def config_name(policy: Object | None) -> str:
    """Return the ConfigMap from which the MIG manager takes layouts for every node."""
    return str(dig(policy or {}, "spec", "migManager", "config", "name", default="") or DEFAULT_LAYOUTS)


def mig_configs(layouts: Iterable[Object], node: str) -> dict[str, Any]:
    """Return the `mig-configs` by which a node may have been carved, whatever file the manager reads now.

    The static defaults count least, then what was generated for the node, then a file of its own name.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    for one in layouts:
        of_node = labels(one).get(GENERATED_LABEL)
        if of_node is None:
            found.append((0 if name_of(one) == DEFAULT_LAYOUTS else 2, parsed(one)))
        elif of_node == node:
            found.append((1, parsed(one)))
    merged: dict[str, Any] = {}
    for _, configs in sorted(found, key=lambda pair: pair[0]):
        merged |= configs
    return merged


def parsed(config_map: Object | None) -> dict[str, Any]:
    """Return the `mig-configs` of one ConfigMap; what cannot be read as such is empty."""
    try:
        document = yaml.safe_load(str(dig(config_map or {}, "data", LAYOUTS_KEY, default="")))
    except yaml.YAMLError:
        return {}
    found = document.get("mig-configs") if isinstance(document, dict) else None
    return dict(found) if isinstance(found, dict) else {}


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the lists of a cluster mean."""

    nodes: Mapping[str, Node]
    raw: Mapping[str, Object]
    """Node → its object."""
    pools: Pools
    claims: Mapping[tuple[str, str], Object]
    given: Mapping[str, tuple[tuple[tuple[str, str], Given], ...]]
    """Node → (claim, device allocated to it)."""
    pods: Mapping[str, tuple[Object, ...]]
    """Node → pods that run or are about to run there."""
    boundaries: Mapping[str, Ref]
    """Namespace with our mark → whose it is."""


def understood(listed: Listed) -> Inventory:
    """Return nodes with their GPUs, and who is where."""
    pools = slices.read(listed.slices)
    read_nodes = {
        name_of(one): nodes.read(one, pools.on(name_of(one)), layouts=mig_configs(listed.layouts, name_of(one)))
        for one in listed.nodes
    }
    pods: dict[str, list[Object]] = defaultdict(list)
    for pod in listed.pods:
        node = str(dig(pod, "spec", "nodeName", default=""))
        if node and dig(pod, "status", "phase") not in _ENDED:
            pods[node].append(pod)
    claims = {(namespace_of(claim), name_of(claim)): claim for claim in listed.claims}
    given: dict[str, list[tuple[tuple[str, str], Given]]] = defaultdict(list)
    for key, claim in sorted(claims.items()):
        for one in slices.allocated(claim, pools):
            if one.device is not None:
                given[one.device.node].append((key, one))
    return Inventory(
        nodes=read_nodes,
        raw={name_of(one): one for one in listed.nodes},
        pools=pools,
        claims=claims,
        given={node: tuple(found) for node, found in given.items()},
        pods={node: tuple(found) for node, found in pods.items()},
        boundaries=boundaries_of(listed.marked),
    )


def boundaries_of(marked: Iterable[Object]) -> dict[str, Ref]:
    """Return our namespaces: marked as a boundary and called as that boundary must be."""
    found = {}
    for one in marked:
        ref = ref_of(one) if one.get("kind") == "Namespace" else None
        if ref is not None and ref.kind is Kind.BOUNDARY and ref.name == name_of(one):
            found[name_of(one)] = ref
    return found


def provider(listed: Listed, capabilities: Capabilities) -> ObservedProvider:
    """Return the snapshot that the lists of a cluster show."""
    seen = understood(listed)
    uses = list(_uses(seen))
    of_node: dict[str, list[ObservedUse]] = defaultdict(list)
    for use in uses:
        of_node[use.host].append(use)
    hosts = tuple(
        _host(node, seen, of_node[name], capabilities.boundary_kinds)
        for name, node in sorted(seen.nodes.items())
        if node.gpus or not node.apart
    )
    return ObservedProvider(
        hosts=hosts,
        uses=tuple(uses),
        objects=objects_of((*listed.marked, *listed.pods, *listed.claims)),
        capabilities=capabilities,
        complete=not seen.pools.incomplete,
        version=f"{capabilities.version} at {listed.version}",
    )


def snapshot(cluster: Cluster, capabilities: Capabilities) -> ObservedProvider:
    """Read a whole cluster. Raises `DriverError`."""
    return provider(read(cluster), capabilities)


# --- hosts ----------------------------------------------------------------------------------------


def _host(
    node: Node, seen: Inventory, uses: Sequence[ObservedUse], boundary_kinds: frozenset[BoundaryKind]
) -> ObservedHost:
    change = change_of(seen.raw[node.name])
    stuck = (change.why,) if change is not None and change.phase is Phase.STUCK else ()
    contradictions = (*stuck, *node.problems, *_overdrawn(node, seen), *_doubles(node, seen, uses))
    busy = change is not None or node.mig_state in {"pending", "rebooting"}
    return ObservedHost(
        host=node.name,
        name=node.name,
        binding=node.binding,
        vcpu=node.vcpu,
        memory_gib=node.memory_gib,
        gpus=tuple(_gpu(node, gpu, uses) for gpu in node.gpus),
        healthy=node.ready,
        message=node.message,
        in_maintenance=node.cordoned or busy,
        boundary_kinds=boundary_kinds,  # the hosts of a Supervisor that are no control plane are ESXi
        contradictions=tuple(dict.fromkeys(contradictions)),
    )


def _gpu(node: Node, gpu: nodes.Gpu, uses: Sequence[ObservedUse]) -> ObservedGpu:
    return ObservedGpu(
        device=gpu.id,
        product=node.product,
        index=gpu.index,
        mode=_mode(node, gpu, uses),
        healthy=not gpu.taint,
        message=f"its driver took it out of service: {gpu.taint}" if gpu.taint else "",
        windows=_windows(node, gpu, uses),
        layout_change=layout_change(node),
    )


def layout_change(node: Node) -> str:
    """Return how the layouts of a node's GPUs come to be: `dynamic` by a claim, else `fixed`.

    A MIG manager carves when an operator's plan asks for it, never because a unit was placed: until then there is
    room for nothing but what is carved, and that is what placement must know.
    """
    return "dynamic" if node.partitions else "fixed"


def _windows(node: Node, gpu: nodes.Gpu, uses: Sequence[ObservedUse]) -> tuple[tuple[int, int, str], ...]:
    if not node.partitions:
        return gpu.windows
    found = {(use.start, use.size, use.profile) for use in uses if use.device == gpu.id and use.profile}
    return tuple(sorted((start, size, profile) for start, size, profile in found if start is not None))


def _mode(node: Node, gpu: nodes.Gpu, uses: Sequence[ObservedUse]) -> str:
    """Return `empty`, `mig`, `full` or `unknown` as far as it is really told.

    Of a GPU that is not carved and that a node's pods may or may not have, `empty` says that it is not carved.
    """
    if gpu.profiles is None:
        return "unknown"
    if gpu.profiles:
        return "mig"
    mine = [use for use in uses if use.device == gpu.id]
    if mine:
        return "full" if any(not use.profile for use in mine) else "mig"
    whole = sum(1 for use in uses if not use.device and not use.profile and use.size)
    plain = sum(1 for one in node.gpus if one.profiles == ())
    return "full" if node.strategy is not Strategy.DRA and 0 < plain <= whole else "empty"


def _overdrawn(node: Node, seen: Inventory) -> Iterable[str]:
    """Name what pods have more of than the node offers."""
    if node.strategy is Strategy.DRA:
        return
    used: Counter[str] = Counter()
    for pod in seen.pods.get(node.name, ()):
        used += gpus.occupied(node, (pod,), {}, seen.pools).carved
    offered = node.carved
    for profile, number in sorted(used.items()):
        if number > offered[profile]:
            what = profile or "whole GPUs"
            yield f"its pods have {number} {what} and it offers {offered[profile]}"


def _doubles(node: Node, seen: Inventory, uses: Sequence[ObservedUse]) -> Iterable[str]:
    """Name devices that are published or in use twice."""
    for name in seen.pools.doubles.get(node.name, ()):
        yield f"a device is published twice: {name}"
    taken: dict[str, list[ObservedUse]] = defaultdict(list)
    for use in uses:
        if use.device and use.start is not None:
            taken[use.device].append(use)
    for device, found in sorted(taken.items()):
        ordered = sorted(found, key=lambda use: (use.start or 0, use.size))
        for first, second in pairwise(ordered):
            if (second.start or 0) < (first.start or 0) + first.size:
                yield f"{device} is used twice at once, by {first.name} and by {second.name}"


# --- uses -----------------------------------------------------------------------------------------


def _uses(seen: Inventory) -> Iterable[ObservedUse]:
    """Yield every use of room: GPU windows one by one, the rest of a node's pods as one sum."""
    for name, node in sorted(seen.nodes.items()):
        vcpu, memory = Decimal(0), Decimal(0)
        told: set[tuple[str, str]] = set()  # claims whose devices were shown with an earlier pod
        for pod in seen.pods.get(name, ()):
            resources = gpus.pod_resources(pod)
            room = (resources.get("cpu", Decimal(0)), resources.get("memory", Decimal(0)) / 2**30)
            whose = owner_of(pod, seen.boundaries) or _by_claims(pod, seen)
            taken = gpus.taken_by(pod, node, seen.claims, seen.pools, told=told)
            told |= {(namespace_of(pod), claim) for claim in gpus.claim_names(pod)}
            if taken or whose is not None:
                yield from _pod_uses(pod, node, whose, taken, room)
            else:
                vcpu, memory = vcpu + room[0], memory + room[1]
        if vcpu or memory:
            yield ObservedUse(name, "", None, 0, "", None, None, "system and other pods", _up(vcpu), _up(memory))
        yield from _idle_claims(node, seen, told)


def _pod_uses(
    pod: Object, node: Node, whose: tuple[Ref, UUID] | None, taken: Sequence[gpus.Taken], room: tuple[Decimal, Decimal]
) -> Iterable[ObservedUse]:
    ref, unit = whose if whose is not None else (None, None)
    none = gpus.Taken("", None, 0, "", exact=False)
    for position, window in enumerate(taken or (none,)):
        first = position == 0
        yield ObservedUse(
            host=node.name,
            device=window.device,
            start=window.start,
            size=window.size,
            profile=window.profile,
            ref=ref,
            unit=unit,
            name=f"{namespace_of(pod)}/{name_of(pod)}",
            vcpu=_up(room[0]) if first else 0,
            memory_gib=_up(room[1]) if first else 0,
        )


def _idle_claims(node: Node, seen: Inventory, held: set[tuple[str, str]]) -> Iterable[ObservedUse]:
    """Yield devices that are allocated to a claim whose pods are gone: nobody else can have them."""
    for key, one in seen.given.get(node.name, ()):
        taken = gpus.given(one, node)
        if key not in held and taken is not None:
            whose = owner_of(seen.claims[key], seen.boundaries)
            ref, unit = whose if whose is not None else (None, None)
            name = f"claim {key[0]}/{key[1]}"
            yield ObservedUse(node.name, taken.device, taken.start, taken.size, taken.profile, ref, unit, name)


def owner_of(obj: Object, boundaries: Mapping[str, Ref]) -> tuple[Ref, UUID] | None:
    """Return whose a pod or claim is: our mark and a unit on it, in a namespace of ours of the same tenant."""
    ref, boundary = ref_of(obj), boundaries.get(namespace_of(obj))
    if ref is None or boundary is None or ref.tenant_uid != boundary.tenant_uid:
        return None
    try:
        return ref, UUID(labels(obj).get(UNIT_LABEL, ""))
    except ValueError:
        return None


def _by_claims(pod: Object, seen: Inventory) -> tuple[Ref, UUID] | None:
    """Return whose a pod of people is by the claims it uses: those are made by us, each for one unit."""
    keys = [(namespace_of(pod), name) for name in gpus.claim_names(pod)]
    owners = {owner_of(seen.claims[key], seen.boundaries) if key in seen.claims else None for key in keys}
    return owners.pop() if len(owners) == 1 else None


def _up(number: Decimal) -> int:
    """Round up to whole vCPU or GiB: room that is begun is gone."""
    return math.ceil(number)


# --- objects --------------------------------------------------------------------------------------


def objects_of(found: Iterable[Object]) -> tuple[ObservedObject, ...]:
    """Return one entry per ref that anything carries the mark of; what cannot belong to it is not counted to it.

    A namespace counts only under its own name and everything else only inside a namespace of ours: a boundary's, or
    the one where the accounts of people lie.
    """
    kept = [one for one in found if ref_of(one) is not None]
    boundaries = boundaries_of(kept)
    of: dict[Ref, list[Object]] = defaultdict(list)
    for one in kept:
        ref = ref_of(one)
        if ref is None or ref.kind is Kind.LAYOUT:
            continue
        if one.get("kind") == "Namespace":
            if name_of(one) in boundaries:
                of[ref].append(one)
        elif (ref.kind is Kind.NAMESPACE and namespace_of(one) == ACCESS_NAMESPACE) or (
            namespace_of(one) in boundaries and boundaries[namespace_of(one)].tenant_uid == ref.tenant_uid
        ):
            of[ref].append(one)
    told = {namespace_of(one): one.get("data") or {} for one in kept if name_of(one) == admission.PARAMS}
    return tuple(
        ObservedObject(ref, fingerprint(own, beside=_placements(own, told)))
        for ref, own in sorted(of.items(), key=lambda item: item[0].name)
    )


def _placements(own: Iterable[Object], told: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """Yield what admission is told of one ref, its units or its people: it lies on the boundary's object."""
    for one in own:
        boundary = dig(one, "data", access.BOUNDARY_KEY) if namespace_of(one) == ACCESS_NAMESPACE else None
        ref = ref_of(one) if boundary else None
        if boundary and ref is not None:
            yield f"{ref.uid} {told.get(boundary, {}).get(f'{admission.FREE}{ref.uid}', '')}"
        unit = labels(one).get(UNIT_LABEL)
        if unit and one.get("kind") == "Deployment":
            yield f"{unit} {told.get(namespace_of(one), {}).get(f'unit.{unit}', '')}"
