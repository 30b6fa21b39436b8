"""What every part of the driver stands on: one cluster, what is known of it for a minute, which kinds steps make.

Reads only, but for the applier that it hands on. Whose a namespace is, is decided here and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from provisioners.driver import Conflicting, DriverRejected, Kind, Ref, Step, TransientDriverError
from provisioners.kubernetes import access, admission, gpu, inventory
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import Applier, KindRef, is_made_anew
from provisioners.kubernetes.boundary import ClusterFacts
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.nodes import is_single
from provisioners.kubernetes.objects import Object, dig, name_of, namespace_of, uid_of
from provisioners.kubernetes.settings import Settings

FACTS_LIFE_S: Final = 60.0
"""For how long names of GPU resources and capabilities are taken as known."""

DEPLOYMENT: Final = KindRef("apps/v1", "Deployment")
SERVICE: Final = KindRef("v1", "Service")
SECRET: Final = KindRef("v1", "Secret")
POLICY: Final = KindRef("networking.k8s.io/v1", "NetworkPolicy")
BINDING: Final = KindRef("rbac.authorization.k8s.io/v1", "RoleBinding")
VOLUME: Final = KindRef("v1", "PersistentVolumeClaim")
CLAIM: Final = KindRef("resource.k8s.io/v1", "ResourceClaim")
MONITOR: Final = KindRef("monitoring.coreos.com/v1", "PodMonitor")
CERTIFICATE: Final = KindRef("cert-manager.io/v1", "Certificate")
ROUTE: Final = KindRef("gateway.networking.k8s.io/v1", "HTTPRoute")
BUDGET: Final = KindRef("policy/v1", "PodDisruptionBudget")
CONFIG: Final = KindRef("v1", "ConfigMap")
QUOTA: Final = KindRef("v1", "ResourceQuota")
LIMITS: Final = KindRef("v1", "LimitRange")
ACCOUNT: Final = KindRef("v1", "ServiceAccount")
MADE_BY: Final[Mapping[str, tuple[KindRef, ...]]] = {
    "namespace.create": (POLICY,),
    "namespace.limits": (QUOTA, LIMITS, CONFIG),
    "namespace.policies": (POLICY,),
    "namespace.access": (BINDING,),
    access.ACCOUNTS: (*access.MADE, CLAIM),
    "namespace.gateway": (DEPLOYMENT, SERVICE, SECRET, VOLUME, MONITOR, CERTIFICATE),
    "serving.secret": (SECRET,),
    "serving.replica": (DEPLOYMENT, SERVICE, CLAIM, VOLUME),
    "serving.service": (ROUTE, SERVICE, BUDGET, MONITOR),
}
"""Kinds that a step may have made, in the order in which they are removed."""
INSIDE: Final = (
    POLICY, ACCOUNT, QUOTA, LIMITS, BINDING, CONFIG, SECRET, DEPLOYMENT, SERVICE, VOLUME, BUDGET, CLAIM, MONITOR, ROUTE,
    CERTIFICATE,
)  # fmt: skip
"""Everything of ours that a namespace can hold."""
OF_ENDPOINT: Final = (SECRET, DEPLOYMENT, SERVICE, CLAIM, VOLUME, BUDGET, MONITOR, ROUTE)
"""Everything that an endpoint's steps make."""
READ_WHOLE: Final = (QUOTA, DEPLOYMENT, ROUTE, CERTIFICATE)
"""Kinds of which more than the metadata is needed to say how they are; what people put into others stays there."""

T = TypeVar("T")


class Ground:
    """One cluster. Thread-safe."""

    def __init__(self, settings: Settings, cluster: Cluster, now: Callable[[], datetime]) -> None:
        """Stand on `cluster`."""
        self.settings = settings
        self.cluster = cluster
        self.now = now
        self.applier = Applier(cluster, now=now)
        self._known: dict[str, tuple[float, Any]] = {}
        self._knowing = threading.Lock()

    def recall(self, name: str, read: Callable[[], T]) -> T:
        """Return what is known under a name for a minute, read anew after that."""
        with self._knowing:
            known = self._known.get(name)
        if known is not None and time.monotonic() - known[0] < FACTS_LIFE_S:
            found: T = known[1]
            return found
        found = read()
        self.remember(name, found)
        return found

    def remember(self, name: str, found: object) -> None:
        """Take something as known."""
        with self._knowing:
            self._known[name] = (time.monotonic(), found)

    def facts(self) -> ClusterFacts:
        """Return what boundaries depend on of the cluster."""
        return self.recall("facts", lambda: self.facts_of(self.cluster.list("v1", "Node").items))

    def facts_of(self, nodes: Sequence[Object]) -> ClusterFacts:
        """Return it from nodes that were read."""
        named = {name for node in nodes for name in dig(node, "status", "capacity", default={}) if _is_extended(name)}
        classes: Sequence[Object] = ()
        if self.cluster.serves("resource.k8s.io/v1", "DeviceClass"):
            classes = self.cluster.list("resource.k8s.io/v1", "DeviceClass").items
        extended = {str(dig(one, "spec", "extendedResourceName", default="")) for one in classes} - {""}
        single = any(is_single(node) for node in nodes)
        return ClusterFacts(frozenset(named | extended), frozenset(name_of(one) for one in classes), single)

    @property
    def is_simulated(self) -> bool:
        """Whether what this cluster shows is a lab's."""
        return self.settings.lab or self.settings.access == "lab"

    def listed(self, kinds: Sequence[KindRef], labels: str, *, namespace: str = "") -> tuple[Object, ...]:
        """Return the objects of some kinds that a label selector finds; of Secrets the metadata alone."""
        found: list[Object] = []
        for kind in kinds:
            if self.cluster.serves(kind.api, kind.kind):
                bare = kind == SECRET
                found += self.cluster.list(kind.api, kind.kind, namespace=namespace, labels=labels, bare=bare).items
        return tuple(found)

    def inside(self, namespace: str, kinds: Sequence[KindRef]) -> tuple[Object, ...]:
        """Return the objects of some kinds in a tenant's namespace that we made, those that lost their labels too."""
        found: list[Object] = []
        for kind in kinds:
            if self.cluster.serves(kind.api, kind.kind):
                bare = kind not in READ_WHOLE
                found += self.cluster.list(kind.api, kind.kind, namespace=namespace, bare=bare).items
        return tuple(one for one in found if marks.is_made_by_us(one))

    def namespaces_of(self, tenant: UUID) -> tuple[str, ...]:
        """Return the namespaces of one tenant's boundaries that carry their labels."""
        labels = f"{marks.TENANT_LABEL}={tenant},{marks.KIND_LABEL}={Kind.BOUNDARY}"
        listed = self.cluster.list("v1", "Namespace", labels=labels, bare=True).items
        whose = [(name_of(one), marks.ref_of(one)) for one in listed]
        return tuple(sorted(name for name, ref in whose if ref is not None and ref.name == name))

    def warnings(self, namespace: str, pods: Sequence[Object]) -> tuple[Object, ...]:
        """Return what the cluster warns of in a namespace, only while a pod of ours does not work."""
        if all(is_ready(pod) for pod in pods):
            return ()
        return self.cluster.list("v1", "Event", namespace=namespace, fields="type=Warning").items

    def is_within(self, ref: Ref) -> Callable[[Object], bool]:
        """Return a check that an object lies in a boundary of the same tenant: elsewhere a mark proves nothing."""
        known: dict[str, bool] = {}

        def within(obj: Object) -> bool:
            name = namespace_of(obj)
            if name not in known:
                namespace = self.cluster.get("v1", "Namespace", name)
                owner = None if namespace is None else marks.ref_of(namespace)
                known[name] = (
                    owner is not None
                    and owner.kind is Kind.BOUNDARY
                    and owner.name == name
                    and owner.tenant_uid == ref.tenant_uid
                )
            return known[name]

        return within

    def tell(self, namespace: str, tenant: UUID, body: Object) -> bool:
        """Patch what admission is told in a namespace of a tenant; False where there is nothing to tell it by.

        Raises `Conflicting` where what has its name is not ours.
        """
        live = self.cluster.get("v1", "ConfigMap", admission.PARAMS, namespace)
        if live is None:
            return False
        owner = marks.ref_of(live)
        if owner is None or owner.kind is not Kind.BOUNDARY or owner.name != namespace or owner.tenant_uid != tenant:
            raise Conflicting(f"{marks.title(live)} in {namespace} is there and is not ours")
        told = {**body, "metadata": {"uid": uid_of(live)}}
        self.cluster.patch("v1", "ConfigMap", admission.PARAMS, namespace, told)
        return True

    def inventory_of(self, nodes: Collection[str], *, pods: bool = False) -> inventory.Inventory:
        """Return what is known of some nodes, their devices and all claims; with `pods`, who runs on them."""
        read = [node for name in sorted(nodes) if (node := self.cluster.get("v1", "Node", name)) is not None]
        dra = self.cluster.serves(gpu.API, "ResourceSlice")
        policy, layouts = inventory.layouts_of(self.cluster)
        running: list[Object] = []
        for name in sorted(nodes) if pods else ():
            running += self.cluster.list("v1", "Pod", fields=f"spec.nodeName={name}").items
        listed = inventory.Listed(
            nodes=tuple(read),
            pods=tuple(running),
            slices=self.cluster.list(gpu.API, "ResourceSlice").items if dra else (),
            claims=self.cluster.list(gpu.API, "ResourceClaim").items if dra else (),
            policy=policy,
            layouts=layouts,
        )
        return inventory.understood(listed)

    def served(self) -> frozenset[str]:
        """Return the optional kinds that the cluster knows."""
        return frozenset(
            kind.kind for kind in (MONITOR, ROUTE, CERTIFICATE) if self.cluster.serves(kind.api, kind.kind)
        )

    def check_namespace(self, ref: Ref) -> Object:
        """Return a boundary's namespace. Raises unless it is ours, stays, and is the one that we made."""
        namespace = self.cluster.get("v1", "Namespace", ref.name)
        if namespace is None:
            raise TransientDriverError(f"namespace {ref.name} is not there")
        if not marks.is_ours(namespace, ref):
            raise Conflicting(f"namespace {ref.name} is there and is not ours")
        if marks.is_deleting(namespace):
            raise TransientDriverError(f"namespace {ref.name} is being removed")
        if is_made_anew(namespace):
            raise TransientDriverError(f"namespace {ref.name} was made anew by somebody else; isolation comes first")
        return namespace


def payload(step: Step, kind: type[T]) -> T:
    """Return a forward step's payload. Raises `DriverRejected` where it is another's."""
    if not isinstance(step.payload, kind):
        raise DriverRejected(f"step {step.name} came without its spec")
    return step.payload


def is_ready(pod: Object) -> bool:
    """Whether a pod takes requests."""
    conditions = dig(pod, "status", "conditions", default=[])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _is_extended(resource: str) -> bool:
    """Whether a resource of a node is a device: every name with a domain that is not Kubernetes' own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and not domain.endswith("kubernetes.io")
