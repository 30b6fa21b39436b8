"""What a cluster can do for us, found by asking it: its version, what it serves, what our account may do there.

`assess` is pure; `read` asks. A feature that is missing comes with the one line that mends it, a right that is missing
is named by the API server itself (SelfSubjectAccessReview). Rights are keyed `right:<verb> <resource>` in `missing`.
What the settings name (`referred`) is looked up where our account may; what it may not look up is no gap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from provisioners.driver import Binding, BoundaryKind, Capabilities
from provisioners.kubernetes import inventory, layout, rbac, referred
from provisioners.kubernetes.client import Listing
from provisioners.kubernetes.objects import Object
from provisioners.kubernetes.pods import NFS_DRIVER
from provisioners.kubernetes.rbac import Right
from provisioners.kubernetes.referred import Referred
from provisioners.kubernetes.settings import EXTERNAL_DNS, Settings
from provisioners.kubernetes.vm_service import kinds as vm_service
from tenants import endpoint_tls

OLDEST: Final = (1, 34)
RIGHT: Final = "right:"
"""What keys of `missing` begin with where a right is missing."""
NEUTRAL: Final = "kube-public"
"""A namespace that every cluster has and where nobody binds our account: what it may there, it may everywhere."""

STAGING: Final = "model-staging"
NFS: Final = ("storage.k8s.io/v1", "CSIDriver", NFS_DRIVER)

Serves = Callable[[str, str], bool]
"""(`apps/v1`, `Deployment` or `""`) → whether the cluster serves it."""


class Asked(Protocol):
    """What is needed of `client.Cluster`."""

    def version(self) -> str:
        """Return the server's version."""

    def serves(self, api: str, kind: str = "") -> bool:
        """Whether it serves an API."""

    def get(self, api: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return one object."""

    def list(self, api: str, kind: str) -> Listing:
        """Return all objects of a kind."""

    def create(self, obj: Object, *, subresource: str = "", name: str = "") -> Object:
        """Create a review."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Something optional that a cluster may serve."""

    feature: str
    apis: tuple[tuple[str, str], ...]
    """Any one of these (API, kind) is enough."""
    remedy: str


ENGINES: Final = (
    Engine("dra", (("resource.k8s.io/v1", "ResourceClaim"),),
           "Devices are handed out by the device plugin only: which GPU a pod gets is the node's choice. Dynamic "
           "Resource Allocation needs Kubernetes 1.34 and a driver that publishes devices."),
    Engine("admission-pinning", (("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy"),),
           "Pods are checked, not pinned to their node by admission: that needs Kubernetes 1.36."),
    Engine("gateway-api", (("gateway.networking.k8s.io/v1", "HTTPRoute"),),
           "Addresses cannot be published by routes. Install the Gateway API and a controller for it, or use another "
           "way to reach endpoints."),
    Engine("inference-extension", (("inference.networking.k8s.io/v1", "InferencePool"),),
           "Requests are spread over replicas without looking at their load. Install the Gateway API Inference "
           "Extension to change that."),
    Engine("kueue", (("kueue.x-k8s.io/v1beta2", "ClusterQueue"), ("kueue.x-k8s.io/v1beta1", "ClusterQueue")),
           "Batch work of tenants is not queued by the cluster. Install Kueue to change that."),
    Engine("keda", (("keda.sh/v1alpha1", "ScaledObject"),),
           "Endpoints do not scale by their own load. Install KEDA to change that."),
    Engine("prometheus-operator", (("monitoring.coreos.com/v1", "PodMonitor"),),
           "The cluster's own monitoring does not see endpoints. Install the Prometheus operator to change that."),
    Engine("cert-manager", (("cert-manager.io/v1", "Certificate"),),
           "Certificates of endpoints cannot come from cert-manager. Install it, or have an authority of your own sign "
           "them, or give them as files."),
    Engine("kyverno", (("policies.kyverno.io/v1", "ImageValidatingPolicy"), ("kyverno.io/v1", "ClusterPolicy")),
           "Signatures of images are not checked; digests are. Install Kyverno to change that."),
    Engine("gatekeeper", (("templates.gatekeeper.sh/v1", "ConstraintTemplate"),),
           "Nothing is lost: the cluster's own admission policies are used."),
    Engine("cilium", (("cilium.io/v2", "CiliumNetworkPolicy"),),
           "Model servers reach a mirror by its networks, not by its name. Cilium would allow names."),
    Engine("gpu-operator", (("nvidia.com/v1", "ClusterPolicy"),),
           "GPUs are not carved by us and their labels may be missing. Install the NVIDIA GPU operator, or the device "
           "plugin with GPU feature discovery."),
)  # fmt: skip
_ENFORCERS: Final = (
    ("cilium.io/v2", "CiliumNetworkPolicy"),
    ("crd.projectcalico.org/v1", "FelixConfiguration"),
    ("projectcalico.org/v3", "FelixConfiguration"),
    ("crd.antrea.io/v1beta1", "AntreaAgentInfo"),
    ("k8s.ovn.org/v1", "EgressFirewall"),
)
"""APIs by which a network plug-in that enforces network policies is known."""
_OWN: Final = ("isolate", "power", "logs", "evacuate", "acceptance", "certificate", "canary", "zero")
"""What the driver does by itself wherever the rights are there."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was asked of one cluster."""

    version: str
    serves: Serves
    lacking: tuple[Right, ...] = ()
    """Rights that the API server says our account has not."""
    roles: Mapping[str, Object | None] | None = None
    """Cluster role of people → what is installed, None for one that is not there."""
    policy: Object | None = None
    """The GPU operator's ClusterPolicy."""
    may_read_policy: bool = True
    referred: Referred = field(default_factory=Referred)
    """What was found of what the settings name."""
    has_nfs: bool | None = None
    """Whether pods can mount a mirror on NFS; None where that was not asked."""
    simulated: bool = False


def assess(facts: Facts, settings: Settings) -> Capabilities:
    """Return what the cluster can do and what mends what it cannot."""
    features: dict[str, bool] = dict.fromkeys(_OWN, True)
    missing: dict[str, str] = {}
    for engine in ENGINES:
        features[engine.feature] = any(facts.serves(api, kind) for api, kind in engine.apis)
        if not features[engine.feature]:
            missing[engine.feature] = engine.remedy
    if remedy := _layout_gap(facts, has_operator=features["gpu-operator"]):
        missing["layout-change"] = remedy
    features["layout-change"] = "layout-change" not in missing
    features["policies-enforced"] = any(facts.serves(api, kind) for api, kind in _ENFORCERS)
    if not features["policies-enforced"]:
        missing["policies-enforced"] = (
            "No network plug-in that is known to enforce network policies was found: without one they are ignored."
        )
    missing |= _gaps(facts, settings)
    if remedy := _naming_gap(settings):
        missing["move"] = remedy
    features["move"] = "move" not in missing
    missing |= referred.gaps(facts.referred, settings)
    if facts.has_nfs is False:
        missing[STAGING] = (
            "Pods cannot mount a mirror on NFS, to bring models there or to serve them from it. Install csi-driver-nfs "
            f"({NFS_DRIVER})."
        )
    features[STAGING] = STAGING not in missing
    features |= {f"{STAGING}:{source}": False for source in ("hub", "s3")}  # there is no place to bring them to
    for right in facts.lacking:
        key = right.words if right.optional else f"{RIGHT}{right.words}"
        missing[key] = f"Needed to {right.why}. Apply deploy/kubernetes/rbac.yaml."
    kinds = {BoundaryKind.NAMESPACE}
    if vm_service.api_of(facts.serves):
        features[vm_service.FEATURE] = not any(_is_machines(right) for right in facts.lacking)
        if features[vm_service.FEATURE]:
            kinds.add(BoundaryKind.VM)
        if not settings.storage_class:
            missing["vm-storage"] = "Machines need a storage class, and none is given."
    features["people"] = "people" not in missing
    features["admission"] = "admission" not in missing
    features["cluster"] = False  # no clusters inside clusters are made here
    bindings = {Binding.HOST} | ({Binding.DEVICE, Binding.GPU} if features["dra"] else set())
    return Capabilities(
        kind="kubernetes",
        version=facts.version,
        boundary_kinds=frozenset(kinds),
        bindings=frozenset(bindings),
        features=features,
        missing=missing,
        simulated=facts.simulated,
    )


def _is_machines(right: Right) -> bool:
    """Whether machines cannot be driven without a right; without one to VM classes, those that are there are used."""
    return (right.group, right.resource) == (vm_service.GROUP, "virtualmachines")


def _gaps(facts: Facts, settings: Settings) -> dict[str, str]:
    missing: dict[str, str] = {}
    if version_of(facts.version) < OLDEST:
        missing["version"] = f"Kubernetes {facts.version} is older than 1.34, the oldest that is supported."
    if not facts.serves("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"):
        missing["admission"] = "Pods of tenants cannot be checked: that needs ValidatingAdmissionPolicy."
    if settings.access == "route" and not facts.serves("gateway.networking.k8s.io/v1", "HTTPRoute"):
        missing["routes"] = "Endpoints are to be reached by routes, and the Gateway API is not installed."
    if settings.certificates == endpoint_tls.CERT_MANAGER and not facts.serves("cert-manager.io/v1", "Certificate"):
        missing["certificates"] = "Certificates are to come from cert-manager, and it is not installed."
    if not settings.control_plane_cidrs:
        missing["control-plane-cidrs"] = (
            "Gateways of endpoints cannot call home where network policies are enforced, and never report. Set "
            "control_plane_cidrs to the networks of this control plane's addresses."
        )
    if not settings.model_mirror_cidrs:
        missing["model-mirror-cidrs"] = (
            "Model servers cannot load models where network policies are enforced. Set model_mirror_cidrs to the "
            "networks of the mirror that they load from."
        )
    wrong = [
        name
        for word, name in rbac.ROLES.items()
        if facts.roles is not None and not _is_role(facts.roles.get(name), word)
    ]
    if wrong:
        missing["people"] = f"Not as they should be: {', '.join(wrong)}. Apply deploy/kubernetes/rbac.yaml."
    return missing


def _naming_gap(settings: Settings) -> str:
    """Return why the address of an endpoint cannot follow it to another place, and what mends it, `""` where it can.

    Where people set the record, nobody would know when the old place may go.
    """
    if settings.access not in {"load-balancer", "route"} or not settings.zone:
        return (
            "Addresses of endpoints stay where they are, as they are no names: choose access load-balancer or route, "
            "and set zone."
        )
    if settings.dns_records != EXTERNAL_DNS:
        return (
            "Addresses of endpoints stay where they are, as people set their DNS records: let ExternalDNS set them "
            "(dns_records)."
        )
    return ""


def _layout_gap(facts: Facts, *, has_operator: bool) -> str:
    """Return why layouts cannot be set by plans and what mends it, `""` where they can."""
    if not has_operator:
        return (
            "Layouts are set by the MIG manager of the NVIDIA GPU operator, which is not there. Install it. GPUs that "
            "Dynamic Resource Allocation carves on demand need no plan."
        )
    if not facts.may_read_policy:
        return ""
    if facts.policy is None:
        return f"{layout.NO_MANAGER[:1].upper()}{layout.NO_MANAGER[1:]}. Create it with the operator's chart."
    if inventory.config_name(facts.policy) != layout.CONFIG_MAP:
        return f"{layout.REMEDY[:1].upper()}{layout.REMEDY[1:]}"
    return ""


def _is_role(found: Object | None, word: str) -> bool:
    """Whether a role of people is installed with exactly its rules."""
    return found is not None and found.get("rules") == [rule.as_rule() for rule in rbac.PEOPLE[word]]


def version_of(text: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as `v1.36.3+k3s1`; (0, 0) where it cannot be read."""
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


# --- asking -----------------------------------------------------------------------------------------------


def read(cluster: Asked, settings: Settings) -> Capabilities:
    """Ask a cluster. Raises `DriverError`."""
    version = cluster.version()
    without = lacking(cluster)

    def may(verb: str, group: str, resource: str) -> bool:
        return not any((one.verb, one.group, one.resource) == (verb, group, resource) for one in without)

    roles = None
    if may("get", "rbac.authorization.k8s.io", "clusterroles"):
        api = "rbac.authorization.k8s.io/v1"
        roles = {name: cluster.get(api, "ClusterRole", name) for name in rbac.ROLES.values()}
    is_served = cluster.serves(*inventory.CLUSTER_POLICY[:2])
    may_read_policy = may("get", "nvidia.com", "clusterpolicies")
    asks_nfs = cluster.serves(*NFS[:2]) and may("get", "storage.k8s.io", "csidrivers")
    facts = Facts(
        version,
        cluster.serves,
        lacking=without,
        roles=roles,
        policy=cluster.get(*inventory.CLUSTER_POLICY) if is_served and may_read_policy else None,
        may_read_policy=may_read_policy,
        referred=referred.look(cluster, settings, may),
        has_nfs=cluster.get(*NFS) is not None if asks_nfs else None,
        simulated=settings.lab or settings.access == "lab",
    )
    return assess(facts, settings)


def lacking(cluster: Asked) -> tuple[Right, ...]:
    """Return the rights of the control plane that its account has not.

    What its rules show as given is not asked again; for the rest the API server is asked right by right. Raises
    `DriverError`.
    """
    wanted = [right for right in rbac.needed() if not right.optional or _is_served(cluster, right)]
    rules = {space: _rules(cluster, space or NEUTRAL) for space in {right.namespace for right in wanted}}
    doubtful = [right for right in wanted if not rbac.allows(rules[right.namespace], right)]
    return tuple(right for right in doubtful if not _is_allowed(cluster, right))


def _is_served(cluster: Asked, right: Right) -> bool:
    """Whether an optional right is about something that the cluster has at all."""
    if right.resource == "csidrivers":
        return cluster.serves(*NFS[:2])
    if right.group == vm_service.GROUP:
        return bool(vm_service.api_of(cluster.serves))
    return any(
        cluster.serves(api, kind)
        for engine in ENGINES
        for api, kind in engine.apis
        if api.partition("/")[0] == right.group
    )


def _rules(cluster: Asked, namespace: str) -> Collection[Mapping[str, Any]]:
    answer = cluster.create(rbac.rules_review(namespace))
    rules: Iterable[Mapping[str, Any]] = (answer.get("status") or {}).get("resourceRules") or ()
    return tuple(rules)


def _is_allowed(cluster: Asked, right: Right) -> bool:
    answer = cluster.create(right.review())
    return bool((answer.get("status") or {}).get("allowed"))
