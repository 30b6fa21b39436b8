"""BoundarySpec → the objects of each step of a namespace boundary. Pure.

The namespace comes with its default-deny policy, so nothing in it can talk before the allows are there, nor
after they are withdrawn: undoing a step never opens anything. What depends on the cluster (names of GPU
resources, device classes, addresses) is handed in; a step's want holds the spec alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import MARK_DOMAIN, BoundaryKind, BoundarySpec, NotSupported, Ref, Step
from provisioners.kubernetes import admission, gateways, rbac
from provisioners.kubernetes.objects import (
    COMPONENT_LABEL,
    CUT_OFF_LABEL,
    Object,
)
from provisioners.kubernetes.settings import GATEWAY_PORT, SERVING_PORT, Peer, Settings
from provisioners.steps import in_order, make
from tenants import gpu_catalogue

KIND_MISSING: Final = "a cluster makes namespace boundaries only; use one, or a vm boundary elsewhere"
CLUSTER_MISSING: Final = "no clusters inside clusters are made here; use a namespace or vm boundary"
GATEWAY_VCPU: Final = 1
GATEWAY_MEMORY_GIB: Final = 1
GATEWAY_STORAGE_GIB: Final = 1
"""Room of the gateway beside what the tenant was granted."""
MAX_PODS_PER_UNIT: Final = 3
"""Running, going and coming while a replica is replaced."""
AT_ZERO: Final = 20
"""Deployments and volumes of replicas at zero, whose units may have been given back: no unit counts for them."""
WHOLE_CLASS: Final = "gpu.nvidia.com"
MIG_CLASS: Final = "mig.nvidia.com"
"""NVIDIA's device classes."""

QUOTA: Final = "tenantry"
DEFAULT_DENY: Final = "tenantry-default-deny"
CUT_OFF: Final = "tenantry-cut-off"
NAMING_ANNOTATION: Final = f"{MARK_DOMAIN}/gpu-names"
"""On a quota: how MIG devices were called when it was made, and a digest of the names in it."""
PEACE: Final = (
    "pod-security.kubernetes.io/enforce",
    "pod-security.kubernetes.io/audit",
    "pod-security.kubernetes.io/warn",
)


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What of the cluster the objects of a boundary depend on."""

    gpu_resources: frozenset[str] = frozenset()
    """Extended resources that any node offers."""
    device_classes: frozenset[str] = frozenset()
    single: bool = False
    """A node hands MIG devices out under the name of whole GPUs (MIG strategy `single`)."""

    @property
    def naming(self) -> str:
        """Return how MIG devices are called here, for `NAMING_ANNOTATION`."""
        return "single" if self.single else "own"


# --- steps ----------------------------------------------------------------------------------------


def steps(spec: BoundarySpec) -> list[Step]:
    """Return the steps of a boundary. Raises `NotSupported` for what no cluster can be."""
    if spec.kind == BoundaryKind.CLUSTER:
        raise NotSupported(CLUSTER_MISSING)
    if spec.kind != BoundaryKind.NAMESPACE:
        raise NotSupported(KIND_MISSING)
    wants: dict[str, dict[str, Any]] = {
        "namespace.create": {"tier": spec.tier},
        "namespace.limits": {
            "vcpu": spec.vcpu,
            "memory_gib": spec.memory_gib,
            "storage_gib": spec.storage_gib,
            "gpu_resources": dict(sorted(spec.gpu_resources.items())),
        },
        "namespace.policies": {"cut_off": spec.cut_off, "tier": spec.tier},
        "namespace.access": {"access": [list(pair) for pair in sorted(spec.access)]},
    }
    found = [make(spec.ref, name, wants[name], spec) for name in in_order(wants)]
    if spec.gateway is not None:
        found.append(gateways.gateway_step(spec, spec.gateway))
    return found


def objects(step: str, spec: BoundarySpec, settings: Settings, facts: ClusterFacts) -> list[Object]:
    """Return the objects of one step but the gateway's, without our mark."""
    namespace = spec.ref.name
    match step:
        case "namespace.create":
            return creation(spec, settings)
        case "namespace.limits":
            return [quota(spec, settings, facts), limit_range(spec, settings), admitted(spec, settings)]
        case "namespace.policies":
            return [cut_off_policy(namespace)] if spec.cut_off else allow_policies(namespace, settings)
        case "namespace.access":
            return access(spec)
        case _:
            raise LookupError(step)


# --- namespace ------------------------------------------------------------------------------------


def creation(spec: BoundarySpec, settings: Settings) -> list[Object]:
    """Return the namespace, closed from its first moment: `restricted`, default-deny, no token by default."""
    version = settings.pod_security_version
    security: dict[str, str] = {}
    for label in PEACE:
        security |= {label: "restricted", f"{label}-version": version}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": spec.ref.name, "labels": security},
        },
        _policy(spec.ref.name, DEFAULT_DENY, {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": spec.ref.name},
            "automountServiceAccountToken": False,
        },
    ]


# --- limits ---------------------------------------------------------------------------------------


def quota(spec: BoundarySpec, settings: Settings, facts: ClusterFacts) -> Object:
    """Return the quota: what was granted, and 0 for every other GPU resource and device class of the cluster."""
    units = max(1, sum(spec.gpu_resources.values()) + 1)
    vcpu, memory = spec.vcpu + GATEWAY_VCPU, spec.memory_gib + GATEWAY_MEMORY_GIB
    hard = {
        "requests.cpu": str(vcpu),
        "requests.memory": f"{memory}Gi",
        "limits.memory": f"{memory}Gi",
        "requests.storage": f"{spec.storage_gib + settings.cache_gib * units + GATEWAY_STORAGE_GIB}Gi",
        "persistentvolumeclaims": str(MAX_PODS_PER_UNIT * units + 2 + AT_ZERO),
        "pods": str(MAX_PODS_PER_UNIT * units + 3),
        "services.loadbalancers": "1" if settings.access == "load-balancer" else "0",  # the gateway's
        "services.nodeports": "0",
        "services": str(2 * units + 20),  # each takes an address of the cluster, and every look at it reads them all
        "count/deployments.apps": str(units + 2 + AT_ZERO),
        "count/jobs.batch": "0",
        "count/secrets": str(4 * units + 20),
        "count/configmaps": str(2 * units + 20),
        "count/resourceclaims.resource.k8s.io": str(MAX_PODS_PER_UNIT * units),
        **{f"requests.{name}": str(count) for name, count in gpu_quota(spec.gpu_resources, facts).items()},
        **{
            f"{name}.deviceclass.resource.k8s.io/devices": str(count)
            for name, count in class_quota(spec.gpu_resources, facts).items()
        },
    }
    return quota_object(spec.ref.name, hard, facts)


def quota_object(namespace: str, hard: Mapping[str, str], facts: ClusterFacts) -> Object:
    """Return a quota that says which facts of the cluster it was made by: where they change, it is applied anew."""
    made = _in(namespace, "v1", "ResourceQuota", QUOTA, {"hard": dict(hard)})
    names = hashlib.sha256(" ".join(sorted(hard)).encode()).hexdigest()[:16]
    made["metadata"]["annotations"] = {NAMING_ANNOTATION: f"{facts.naming} {names}"}
    return made


def gpu_quota(granted: Mapping[str, int], facts: ClusterFacts) -> dict[str, int]:
    """Return every extended GPU resource → how much of it may be asked for; 0 is written, never left out."""
    found = dict.fromkeys(sorted(facts.gpu_resources | _known_resources()), 0)
    for key, count in granted.items():
        product, profile = parse_resource(key)
        for name in _resource_names(product, profile, single=facts.single):
            found[name] = found.get(name, 0) + count
    return found


def class_quota(granted: Mapping[str, int], facts: ClusterFacts) -> dict[str, int]:
    """Return every device class → how many devices of it may be claimed."""
    found = dict.fromkeys(sorted(facts.device_classes | {WHOLE_CLASS, MIG_CLASS}), 0)
    for key, count in granted.items():
        _product, profile = parse_resource(key)
        found[MIG_CLASS if profile else WHOLE_CLASS] += count
    return found


def parse_resource(key: str) -> tuple[str, str]:
    """Return (product, profile) of a granted resource: `H100-80GB.1g.10gb` → (`H100-80GB`, `1g.10gb`)."""
    names = sorted((one.id for one in gpu_catalogue.products()), key=len, reverse=True)
    for product in names:
        if key == product:
            return product, ""
        if key.startswith(f"{product}."):
            return product, key[len(product) + 1 :]
    product, _, profile = key.partition(".")
    return product, profile


def _resource_names(product: str, profile: str, *, single: bool) -> set[str]:
    """Return the names under which nodes of this cluster may hand a grant out: strategy `single` has the GPU's alone.

    Of a profile that the catalogue does not know nothing can be placed, so nothing is opened for it.
    """
    try:
        whole = gpu_catalogue.profile(product, gpu_catalogue.WHOLE).resource_name
        found = gpu_catalogue.profile(product, profile).resource_name
    except LookupError:
        return set() if profile else {"nvidia.com/gpu"}
    return {found, whole} if single else {found}


def _known_resources() -> frozenset[str]:
    """Return the resource of every product and profile of the catalogue: a node that comes later adds none."""
    return frozenset(profile.resource_name for product in gpu_catalogue.products() for profile in product.profiles) | {
        "nvidia.com/gpu",
        "nvidia.com/gpu.shared",
        "nvidia.com/pgpu",
        "amd.com/gpu",
    }


def limit_range(spec: BoundarySpec, settings: Settings) -> Object:
    """Return defaults for containers that ask for nothing, and the most that one container may have."""
    vcpu, memory = str(spec.vcpu + GATEWAY_VCPU), f"{spec.memory_gib + GATEWAY_MEMORY_GIB}Gi"
    volume = max(GATEWAY_STORAGE_GIB, settings.cache_gib, spec.storage_gib)
    limits: list[Object] = [
        {
            "type": "Container",
            "defaultRequest": {"cpu": "100m", "memory": "256Mi"},
            "default": {"cpu": vcpu, "memory": "512Mi"},
            "max": {"cpu": vcpu, "memory": memory},
        },
        {"type": "PersistentVolumeClaim", "max": {"storage": f"{volume}Gi"}},
    ]
    return _in(spec.ref.name, "v1", "LimitRange", QUOTA, {"limits": limits})


def admitted(spec: BoundarySpec, settings: Settings) -> Object:
    """Return the parameters of our admission policies in this namespace; placements are patched in one by one."""
    classes = [settings.runtime_class] if settings.runtime_class else []
    return admission.params(spec.ref.name, settings.allowed_registries, runtime_classes=classes)


# --- network --------------------------------------------------------------------------------------


def allow_policies(namespace: str, settings: Settings) -> list[Object]:
    """Return what is allowed beside default-deny: DNS, proxy → gateway → replicas, and the way home by address."""
    dns_ports = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    dns: list[Object] = [_peer(settings.dns), *_blocks(settings.dns_cidrs)]
    gateway, replica = _pods("gateway"), _pods("replica")
    clients = [_peer(settings.proxy)]
    if settings.access == "load-balancer":
        clients = _blocks(("0.0.0.0/0", "::/0"))  # whoever reaches the platform's load balancer; keys decide
    found = [
        _egress(namespace, "tenantry-dns", {}, [{"to": dns, "ports": dns_ports}]),
        _ingress(namespace, "tenantry-gateway-in", gateway, [{"from": clients, "ports": [_tcp(GATEWAY_PORT)]}]),
        _egress(
            namespace,
            "tenantry-gateway-out",
            gateway,
            [{"to": [{"podSelector": replica}], "ports": [_tcp(SERVING_PORT)]}],
        ),
        _ingress(
            namespace,
            "tenantry-replica-in",
            replica,
            [{"from": [{"podSelector": gateway}], "ports": [_tcp(SERVING_PORT)]}],
        ),
    ]
    if settings.control_plane_cidrs:
        home = [{"to": _blocks(settings.control_plane_cidrs), "ports": [{"protocol": "TCP"}]}]
        found.append(_egress(namespace, "tenantry-gateway-home", gateway, home))
    if settings.model_mirror_cidrs:
        mirror = [{"to": _blocks(settings.model_mirror_cidrs), "ports": [{"protocol": "TCP"}]}]
        found.append(_egress(namespace, "tenantry-replica-mirror", replica, mirror))
    if settings.monitoring_namespace:
        scrape = [
            {
                "from": [_peer(Peer(settings.monitoring_namespace))],
                "ports": [_tcp(gateways.METRICS_PORT), _tcp(SERVING_PORT)],
            }
        ]
        found.append(_ingress(namespace, "tenantry-monitoring", _ours(), scrape))
    return found


def cut_off_policy(namespace: str) -> Object:
    """Return what stands in the place of every allow while a boundary is cut off: nothing in, nothing out."""
    return _policy(namespace, CUT_OFF, {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})


def _pods(component: str) -> Object:
    """Return the selector of our pods of one component that are not cut off one by one."""
    return {
        "matchLabels": {COMPONENT_LABEL: component},
        "matchExpressions": [{"key": CUT_OFF_LABEL, "operator": "DoesNotExist"}],
    }


def _ours() -> Object:
    return {"matchExpressions": [{"key": COMPONENT_LABEL, "operator": "In", "values": ["gateway", "replica"]}]}


def _peer(peer: Peer) -> Object:
    """Return pods of a namespace: both selectors in one element, so both must hold."""
    found: Object = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": peer.namespace}}}
    return found | ({"podSelector": {"matchLabels": dict(peer.labels)}} if peer.labels else {})


def _blocks(cidrs: Iterable[str]) -> list[Object]:
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def _tcp(port: int) -> Object:
    return {"protocol": "TCP", "port": port}


def _egress(namespace: str, name: str, pods: Object, rules: Sequence[Object]) -> Object:
    return _policy(namespace, name, {"podSelector": pods, "policyTypes": ["Egress"], "egress": list(rules)})


def _ingress(namespace: str, name: str, pods: Object, rules: Sequence[Object]) -> Object:
    return _policy(namespace, name, {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": list(rules)})


def _policy(namespace: str, name: str, spec: Object) -> Object:
    return _in(namespace, "networking.k8s.io/v1", "NetworkPolicy", name, spec)


def _in(namespace: str, api: str, kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


# --- access ---------------------------------------------------------------------------------------


def access(spec: BoundarySpec) -> list[Object]:
    """Return the bindings of all roles to the accounts of this boundary; a role without people binds nobody."""
    return [
        rbac.role_binding(
            spec.ref.name,
            role,
            [account_name(spec.ref, principal) for principal, has in spec.access if has == role],
        )
        for role in rbac.ROLES
    ]


def account_name(ref: Ref, principal: str) -> str:
    """Return the service account of one principal in one boundary: a DNS name from ids, nobody's own name."""
    digest = hashlib.sha256(f"{ref.uid}/{principal}".encode()).hexdigest()
    return f"tn-pr-{digest[:32]}"
