"""What a usable cluster has beside its nodes: DNS, an ingress proxy, the GPU operator's daemons, monitoring.

Stand-ins: real Deployments, DaemonSets and Services whose pods are simulated. Their names and labels are what the
driver's readiness checks and network policies look for.
"""

from __future__ import annotations

from typing import Final

from controlplane.labs.kubernetes import slices
from controlplane.labs.kubernetes.client import Api, Object
from controlplane.labs.kubernetes.nodes import Kind, Node, Strategy, gpu_node, install

SYSTEM_NODE: Final = Node("system-0", kind=Kind.CPU, vcpu=16, memory_gib=64)
DNS: Final = ("kube-system", {"k8s-app": "kube-dns"})
PROXY: Final = ("ingress-system", {"app.kubernetes.io/name": "ingress-proxy"})
MONITORING: Final = "monitoring"
OPERATOR: Final = "gpu-operator"
_IMAGE: Final = "registry.lab.internal/stand-in@sha256:" + "0" * 64


def usual_nodes() -> tuple[Node, ...]:
    """Return one node of each kind: what `up` makes unless told otherwise."""
    ones = tuple(("1g.10gb", start) for start in range(7))
    mixed = (("3g.40gb", 4), ("2g.20gb", 0), ("1g.10gb", 2), ("1g.10gb", 3))
    return (
        SYSTEM_NODE,
        gpu_node("h100-mixed", "H100-80GB", count=4, layouts={0: ones, 1: mixed}),
        gpu_node("a100-single", "A100-80GB", count=2, strategy=Strategy.SINGLE, layouts={0: ones, 1: ones}),
        gpu_node("l40s-none", "L40S-48GB", count=4, strategy=Strategy.NONE),
        gpu_node("h100-parts", "H100-80GB", count=4, kind=Kind.PARTITIONABLE),
        gpu_node("a100-carved", "A100-80GB", count=2, kind=Kind.STATIC, layouts={0: mixed}),
        gpu_node("h100-whole", "H100-80GB", count=2, kind=Kind.WHOLE),
    )


def furnish(api: Api, nodes: tuple[Node, ...], *, extended_resource: bool = False) -> None:
    """Make nodes, their slices, device classes and stand-ins; safe to repeat."""
    for node in nodes:
        install(api, node)
        slices.publish(api, node)
    if any(node.kind in {Kind.PARTITIONABLE, Kind.STATIC, Kind.WHOLE} for node in nodes):
        for made in slices.device_classes(extended_resource=extended_resource):
            api.apply(made)
    for made in stand_ins():
        api.apply(made)


def stand_ins() -> list[Object]:
    """Return the objects, namespaces first."""
    proxy_namespace, proxy = PROXY
    made: list[Object] = [
        _namespace(proxy_namespace),
        _namespace(MONITORING),
        _namespace(OPERATOR, {"pod-security.kubernetes.io/enforce": "privileged"}),
        _deployment(DNS[0], "coredns", DNS[1]),
        _service(DNS[0], "kube-dns", DNS[1], [("dns", "UDP", 53), ("dns-tcp", "TCP", 53)], address="10.96.0.10"),
        _deployment(proxy_namespace, "ingress-proxy", proxy),
        _service(proxy_namespace, "ingress-proxy", proxy, [("https", "TCP", 443)]),
    ]
    for name, gate in (
        ("nvidia-device-plugin-daemonset", "device-plugin"),
        ("gpu-feature-discovery", "gpu-feature-discovery"),
        ("nvidia-mig-manager", "mig-manager"),
    ):
        made.append(_daemons(name, {f"nvidia.com/gpu.deploy.{gate}": "true"}))
    return made


def _namespace(name: str, labels: dict[str, str] | None = None) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}


def _deployment(namespace: str, name: str, labels: dict[str, str]) -> Object:
    template = _pod(name, labels)
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": SYSTEM_NODE.name}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def _daemons(name: str, selector: dict[str, str]) -> Object:
    labels = {"app": name}
    template = _pod(name, labels)
    template["spec"] |= {"nodeSelector": selector, "tolerations": [{"operator": "Exists"}]}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    meta = {"name": name, "namespace": OPERATOR, "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": spec}


def _pod(name: str, labels: dict[str, str]) -> Object:
    container = {"name": name, "image": _IMAGE, "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container]}}


def _service(
    namespace: str, name: str, selector: dict[str, str], ports: list[tuple[str, str, int]], *, address: str = ""
) -> Object:
    spec: Object = {
        "selector": selector,
        "ports": [{"name": label, "protocol": protocol, "port": port} for label, protocol, port in ports],
    }
    if address:
        spec["clusterIP"] = address
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
