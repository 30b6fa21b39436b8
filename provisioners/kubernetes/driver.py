"""The Kubernetes driver: namespaces as boundaries, vLLM endpoints in them, GPUs by device plugin or DRA.

Steps are pure; what hangs on the cluster (names of resources, facts of a node, what is served) is read when a
step is started. A step is a set of server-side applies and returns `Done` at once; whether it works shows in
`observe`. Removals return a handle that is looked at until nothing of the step is left.

Invariants: nothing is written into a namespace that is not ours, still there and the one we made; isolation is
made before anything that it isolates; a namespace goes last and only when nothing of ours is in it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from provisioners.driver import (
    Acceptance,
    BoundarySpec,
    Capabilities,
    Certificate,
    Conflicting,
    Credential,
    Done,
    Driver,
    DriverRejected,
    EndpointSpec,
    GatewaySpec,
    Handle,
    Kind,
    LayoutChange,
    LogLine,
    MachineSpec,
    NamespaceSpec,
    NotSupported,
    Observed,
    ObservedProvider,
    ObservedUnit,
    ObservedUse,
    Part,
    Poll,
    Power,
    Ref,
    Secret,
    Spec,
    Step,
    TransientDriverError,
    UnitSpec,
)
from provisioners.kubernetes import (
    acceptance,
    access,
    admission,
    certificate,
    gateways,
    gpu,
    inventory,
    layout,
    reading,
    reading_endpoint,
    workloads,
)
from provisioners.kubernetes import boundary as boundaries
from provisioners.kubernetes import capabilities as asking
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import Applier, KindRef, is_made_anew, poll_of, removal_handle
from provisioners.kubernetes.boundary import CUT_OFF, ClusterFacts
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.failures import AdmissionRefused, AdmissionUnready
from provisioners.kubernetes.objects import COMPONENT_LABEL, CUT_OFF_LABEL, Object, dig, name_of, namespace_of, uid_of
from provisioners.kubernetes.pods import GATEWAY
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE
from provisioners.kubernetes.reading_endpoint import EndpointSeen, GatewaySeen
from provisioners.kubernetes.settings import Settings, settings_of
from provisioners.steps import split

FACTS_LIFE_S: Final = 60.0
"""For how long names of GPU resources and capabilities are taken as known."""
ADMISSION_WAITS_S: Final = (0.1, 0.3, 0.6, 1.0, 2.0, 0.0)
"""How long a new placement may take until admission knows it: its parameters come by a watch of the API server."""
ALLOWED_ANNOTATION: Final = "tenantry.internal/allowed"
"""On the policy of a cut-off boundary: the allows that it stands for."""
NO_MACHINES: Final = "a cluster runs no virtual machines; use a vm boundary elsewhere"

_DEPLOYMENT: Final = KindRef("apps/v1", "Deployment")
_SERVICE: Final = KindRef("v1", "Service")
_SECRET: Final = KindRef("v1", "Secret")
_POLICY: Final = KindRef("networking.k8s.io/v1", "NetworkPolicy")
_BINDING: Final = KindRef("rbac.authorization.k8s.io/v1", "RoleBinding")
_VOLUME: Final = KindRef("v1", "PersistentVolumeClaim")
_CLAIM: Final = KindRef("resource.k8s.io/v1", "ResourceClaim")
_MONITOR: Final = KindRef("monitoring.coreos.com/v1", "PodMonitor")
_ROUTE: Final = KindRef("gateway.networking.k8s.io/v1", "HTTPRoute")
_BUDGET: Final = KindRef("policy/v1", "PodDisruptionBudget")
_CONFIG: Final = KindRef("v1", "ConfigMap")
MADE_BY: Final[Mapping[str, tuple[KindRef, ...]]] = {
    "namespace.create": (_POLICY,),
    "namespace.limits": (KindRef("v1", "ResourceQuota"), KindRef("v1", "LimitRange"), _CONFIG),
    "namespace.policies": (_POLICY,),
    "namespace.access": (_BINDING,),
    access.ACCOUNTS: access.MADE,
    "namespace.gateway": (_DEPLOYMENT, _SERVICE, _SECRET, _VOLUME, _MONITOR),
    "serving.secret": (_SECRET,),
    "serving.replica": (_DEPLOYMENT, _SERVICE, _CLAIM, _VOLUME),
    "serving.service": (_ROUTE, _SERVICE, _BUDGET, _MONITOR),
}
"""Kinds that a step may have made, in the order in which they are removed."""
INSIDE: Final = (
    _POLICY, KindRef("v1", "ServiceAccount"), KindRef("v1", "ResourceQuota"), KindRef("v1", "LimitRange"), _BINDING,
    _CONFIG, _SECRET, _DEPLOYMENT, _SERVICE, _VOLUME, _BUDGET, _CLAIM, _MONITOR, _ROUTE,
)  # fmt: skip
"""Everything of ours that a namespace can hold."""
OF_ENDPOINT: Final = (_SECRET, _DEPLOYMENT, _SERVICE, _CLAIM, _VOLUME, _BUDGET, _MONITOR, _ROUTE)
"""Everything that an endpoint's steps make."""
_REMOVAL: Final = re.compile(
    r"^removal (?P<kind>[a-z]+)/(?P<uid>[0-9a-f-]{36})/(?P<tenant>[0-9a-f-]{36}) (?P<step>\S+)$"
)

T = TypeVar("T")


class KubernetesDriver:
    """One cluster. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        *,
        cluster: Cluster | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Drive the cluster of `settings`; connects on first use."""
        self.settings = settings
        self.cluster = cluster or Cluster(settings)
        self._now = now
        self._layouts = layout.Layouts(
            self.cluster, now=now, timing=layout.LAB_TIMING if settings.lab else layout.Timing()
        )
        self._applier = Applier(self.cluster, now=now)
        self._known: dict[str, tuple[float, Any]] = {}
        self._knowing = threading.Lock()
        self._never = threading.Event()

    def __repr__(self) -> str:
        """Show which cluster, and no credential."""
        return f"KubernetesDriver({self.settings.slug}, {self.settings.url})"

    # --- the whole cluster ------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Ask the cluster what it can do."""
        found = asking.read(self.cluster, self.settings)
        self._remember("capabilities", found)
        return found

    def snapshot(self) -> ObservedProvider:
        """Read the whole cluster: one list per kind."""
        known = self._recall("capabilities", self.capabilities)
        listed = inventory.read(self.cluster)
        self._remember("facts", self._facts_of(listed.nodes))
        return inventory.provider(listed, known)

    def _facts(self) -> ClusterFacts:
        return self._recall("facts", lambda: self._facts_of(self.cluster.list("v1", "Node").items))

    def _facts_of(self, nodes: Sequence[Object]) -> ClusterFacts:
        named = {name for node in nodes for name in dig(node, "status", "capacity", default={}) if _is_extended(name)}
        classes: Sequence[Object] = ()
        if self.cluster.serves("resource.k8s.io/v1", "DeviceClass"):
            classes = self.cluster.list("resource.k8s.io/v1", "DeviceClass").items
        extended = {str(dig(one, "spec", "extendedResourceName", default="")) for one in classes} - {""}
        return ClusterFacts(frozenset(named | extended), frozenset(name_of(one) for one in classes))

    def _recall(self, name: str, read: Callable[[], T]) -> T:
        with self._knowing:
            known = self._known.get(name)
        if known is not None and time.monotonic() - known[0] < FACTS_LIFE_S:
            found: T = known[1]
            return found
        found = read()
        self._remember(name, found)
        return found

    def _remember(self, name: str, found: object) -> None:
        with self._knowing:
            self._known[name] = (time.monotonic(), found)

    # --- one object -------------------------------------------------------------------------------

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly."""
        if ref.kind is Kind.BOUNDARY:
            return self._observe_boundary(ref)
        if ref.kind is Kind.MACHINE:
            return Observed(ref, exists=False, simulated=self._is_simulated)
        if ref.kind is Kind.ENDPOINT:
            return self._observe_endpoint(ref)
        if ref.kind is Kind.NAMESPACE:
            return self._observe_accounts(ref)
        if ref.kind is Kind.LAYOUT:
            return self._layouts.observe(ref)
        raise NotSupported(f"not driven yet: {ref.kind}")

    @property
    def _is_simulated(self) -> bool:
        return self.settings.lab or self.settings.access == "lab"

    def _observe_accounts(self, ref: Ref) -> Observed:
        found = self._listed(access.MADE, marks.selector(ref), namespace=ACCESS_NAMESPACE)
        own = [obj for obj in found if marks.is_ours(obj, ref)]
        parts = reading.parts(ref, own, now=self._now())
        return Observed(ref, exists=bool(parts), parts=parts, simulated=self._is_simulated)

    def _observe_boundary(self, ref: Ref) -> Observed:
        namespace = self.cluster.get("v1", "Namespace", ref.name)
        inside, gateway, gpu_resources = reading.Inside(namespace), None, frozenset[str]()
        if namespace is not None and marks.is_ours(namespace, ref):
            if marks.is_deleting(namespace):
                inside = reading.Inside(namespace, remaining=self._remaining(namespace))
            else:
                inside = reading.Inside(namespace, self._listed(INSIDE, marks.EVERYTHING, namespace=ref.name))
                gateway = self._gateway_part(ref, inside.marked)
                gpu_resources = self._facts().gpu_resources
        return reading.boundary(
            ref,
            inside,
            gateway=gateway,
            now=self._now(),
            gpu_resources=gpu_resources,
            simulated=self._is_simulated,
        )

    def _gateway_part(self, ref: Ref, marked: Sequence[Object]) -> Part | None:
        pods = self.cluster.list("v1", "Pod", namespace=ref.name, labels=marks.selector(ref)).items
        own = [obj for obj in marked if marks.step_of(obj) == reading.GATEWAY and marks.is_ours(obj, ref)]
        return reading_endpoint.gateway_part(ref, own, pods, self._warnings(ref.name, pods), now=self._now())

    def _listed(self, kinds: Sequence[KindRef], labels: str, *, namespace: str = "") -> tuple[Object, ...]:
        found: list[Object] = []
        for kind in kinds:
            if self.cluster.serves(kind.api, kind.kind):
                bare = kind == _SECRET
                found += self.cluster.list(kind.api, kind.kind, namespace=namespace, labels=labels, bare=bare).items
        return tuple(found)

    def _warnings(self, namespace: str, pods: Sequence[Object]) -> tuple[Object, ...]:
        """Return what the cluster warns of in a namespace, only while a pod of ours does not work."""
        if all(_is_ready(pod) for pod in pods):
            return ()
        return self.cluster.list("v1", "Event", namespace=namespace, fields="type=Warning").items

    def _observe_endpoint(self, ref: Ref) -> Observed:
        within = self._is_within(ref)
        found = tuple(one for one in self._listed(OF_ENDPOINT, marks.selector(ref)) if within(one))
        listed = self.cluster.list("v1", "Pod", labels=marks.selector(ref)).items
        pods = tuple(pod for pod in listed if within(pod))
        namespace = next((namespace_of(one) for one in (*found, *pods)), "")
        seen = EndpointSeen(ref, found, pods, self._warnings(namespace, pods), self._gateway_of(namespace))
        nodes = {str(dig(pod, "spec", "nodeName")) for pod in pods if dig(pod, "spec", "nodeName")}
        known = self._inventory_of(nodes) if nodes else None

        def units(uid: UUID, pod: Object | None, backend: str) -> tuple[ObservedUnit, ...]:
            if known is None:
                return ()
            node = known.nodes.get(str(dig(pod, "spec", "nodeName", default="")))
            return gpu.observed(uid, pod, node, known.claims, known.pools, backend=backend)

        return reading_endpoint.observed(seen, self.settings, units=units, now=self._now())

    def _gateway_of(self, namespace: str) -> GatewaySeen:
        if not namespace:
            return GatewaySeen()
        labels = f"{COMPONENT_LABEL}={GATEWAY}"
        pods = self.cluster.list("v1", "Pod", namespace=namespace, labels=labels).items
        service = None
        if self.settings.access == "load-balancer":
            service = self.cluster.get("v1", "Service", gateways.GATEWAY_NAME, namespace)
        return GatewaySeen(pods, service)

    def _is_within(self, ref: Ref) -> Callable[[Object], bool]:
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

    def _inventory_of(self, nodes: Collection[str], *, pods: bool = False) -> inventory.Inventory:
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

    def _remaining(self, namespace: Object) -> dict[str, tuple[Object, ...]]:
        """Return what a namespace on its way out still holds, by resource, where it says what that is."""
        if not reading.stuck(namespace, {}):
            return {}
        by_name = {
            f"{one.plural}.{one.group}" if one.group else one.plural: one
            for one in self.cluster.resources()
            if one.namespaced and "list" in one.verbs
        }
        found = {}
        for name in reading.remaining_resources(namespace)[:5]:
            if (one := by_name.get(name)) is not None:
                bare = one.kind == "Secret"
                found[name] = self.cluster.list(one.api, one.kind, namespace=name_of(namespace), bare=bare).items
        return found

    # --- steps ------------------------------------------------------------------------------------

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`. Raises `NotSupported`, `DriverRejected`."""
        match spec:
            case BoundarySpec():
                return boundaries.steps(spec)
            case EndpointSpec():
                return workloads.endpoint_steps(spec)
            case MachineSpec():
                raise NotSupported(NO_MACHINES)
            case NamespaceSpec():
                return access.steps(spec)

    def start(self, step: Step) -> Handle | Done:
        """Start one step or its undo."""
        bare = split(step.name)[0]
        if bare == layout.STEP:
            return self._layouts.start(step)
        if step.undo:
            return self._undo(step, bare)
        if bare == "namespace.create":
            return self._make_namespace(step)
        if bare == reading.GATEWAY:
            return self._make_gateway(step)
        if step.ref.kind is Kind.BOUNDARY:
            return self._make_inside(step)
        if step.ref.kind is Kind.ENDPOINT:
            return self._make_endpoint_part(step, bare)
        if bare == access.ACCOUNTS:
            wanted = access.objects(_payload(step, NamespaceSpec))
            return self._applier.make(step, wanted, prune=access.MADE, namespace=ACCESS_NAMESPACE)
        raise NotSupported(f"not driven yet: {step.name}")

    def _undo(self, step: Step, bare: str) -> Handle | Done:
        if bare == reading.CREATE:
            return self._remove_namespace(step.ref)
        namespace = self._namespace_of(step.ref)
        if bare == workloads.REPLICA_STEP:
            self._unplace(step)
        if bare == access.ACCOUNTS:  # they lie in a namespace of ours, not in the boundary's
            return self._applier.remove(step, access.MADE, namespace=namespace)
        return self._applier.remove(step, MADE_BY[bare], namespace=namespace, may=self._is_within(step.ref))

    def poll(self, handle: Handle) -> Poll:
        """Look at a removal, which is done once nothing of its step is left, or go on with a layout change."""
        if layout.is_layout(handle):
            return self._layouts.poll(handle)
        match = _REMOVAL.match(handle.value)
        if match is None:
            return Poll("unknown")
        ref = Ref(Kind(match["kind"]), UUID(match["uid"]), UUID(match["tenant"]))
        step = match["step"]
        if step == reading.CREATE:
            namespace = self.cluster.get("v1", "Namespace", ref.name)
            return poll_of(namespace is None or not marks.is_ours(namespace, ref))
        return poll_of(self._applier.is_gone(ref, step, MADE_BY[split(step)[0]], self._namespace_of(ref)))

    def _namespace_of(self, ref: Ref) -> str:
        """Return where a ref's objects are looked for: a boundary's in its own namespace, endpoints' by their mark."""
        if ref.kind is Kind.NAMESPACE:
            return ACCESS_NAMESPACE
        return ref.name if ref.kind is Kind.BOUNDARY else ""

    # --- boundary ---------------------------------------------------------------------------------

    def _make_namespace(self, step: Step) -> Done:
        spec = _payload(step, BoundarySpec)
        self._recall("admission", self._make_policies)
        return self._applier.make(
            step, boundaries.objects(step.name, spec, self.settings, ClusterFacts()), namespace=step.ref.name
        )

    def _make_policies(self) -> None:
        """Make our admission policies be there before anything that they watch over; what is not served is left out."""
        for wanted in admission.cluster_objects():
            if self.cluster.serves(wanted["apiVersion"], wanted["kind"]):
                self.cluster.apply(wanted)

    def _make_inside(self, step: Step) -> Done:
        self._check_namespace(step.ref)
        spec = _payload(step, BoundarySpec)
        facts = self._facts() if step.name == "namespace.limits" else ClusterFacts()
        wanted = boundaries.objects(step.name, spec, self.settings, facts)
        return self._applier.make(step, wanted, prune=MADE_BY[step.name], namespace=step.ref.name)

    def _make_gateway(self, step: Step) -> Done:
        self._check_namespace(step.ref)
        gateway = _payload(step, GatewaySpec)
        namespace = step.ref.name
        if gateway.enrolment_token is None:
            gateway = replace(gateway, enrolment_token=self._delivered(namespace))
        wanted = gateways.gateway_objects(step.ref, gateway, self.settings, self._served())
        return self._applier.make(step, wanted, prune=MADE_BY[step.name], namespace=namespace)

    def _delivered(self, namespace: str) -> Secret | None:
        """Return the token that a gateway was started with, so that a change of it starts nothing anew."""
        deployment = self.cluster.get("apps/v1", "Deployment", gateways.GATEWAY_NAME, namespace)
        delivery = gateways.delivery_in(deployment)
        if not delivery:
            return None
        return gateways.token_in(self.cluster.get("v1", "Secret", gateways.gateway_secret_name(delivery), namespace))

    def _served(self) -> frozenset[str]:
        return frozenset(kind.kind for kind in (_MONITOR, _ROUTE) if self.cluster.serves(kind.api, kind.kind))

    def _check_namespace(self, ref: Ref) -> Object:
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

    def _remove_namespace(self, ref: Ref) -> Handle | Done:
        namespace = self.cluster.get("v1", "Namespace", ref.name)
        if namespace is None or not marks.is_ours(namespace, ref):
            return Done()
        if not marks.is_deleting(namespace):
            held = reading.holds(ref, self._listed(INSIDE, marks.EVERYTHING, namespace=ref.name))
            if held:
                raise TransientDriverError(f"namespace {ref.name} cannot go: {held}")
            self.cluster.delete("v1", "Namespace", ref.name, uid=uid_of(namespace), propagation="Background")
        return removal_handle(ref, reading.CREATE)

    # --- endpoint ---------------------------------------------------------------------------------

    def _make_endpoint_part(self, step: Step, bare: str) -> Done:
        part = _payload(step, workloads.EndpointPart)
        spec, namespace = part.spec, part.spec.boundary.name
        self._check_namespace(spec.boundary)
        if bare == workloads.SECRET_STEP:
            return self._applier.make(step, workloads.secret_objects(spec), prune=MADE_BY[bare], namespace=namespace)
        if bare == workloads.REPLICA_STEP and part.unit is not None:
            share = self._share(spec, part.unit)
            wanted = workloads.replica_objects(spec, part.unit, self.settings, share)
            self._place(spec, part.unit, share)
            self._try_out(wanted)
            return self._applier.make(step, wanted, prune=MADE_BY[bare], namespace=namespace)
        wanted = workloads.service_objects(spec, self.settings, self._served())
        done = self._applier.make(step, wanted, prune=MADE_BY[bare], namespace=namespace)
        self.isolate(spec.ref, cut_off=spec.cut_off)
        return done

    def _share(self, spec: EndpointSpec, unit: UnitSpec) -> gpu.Request:
        """Return what a unit asks its node for. Raises `DriverRejected`, `NoCapacity`."""
        if spec.power is Power.OFF:
            return gpu.Request({})  # nothing is held while it is off
        known = self._inventory_of({unit.host}, pods=True)
        node = known.nodes.get(unit.host)
        if node is None:
            raise DriverRejected(f"the cluster has no node {unit.host}")
        running = known.pods.get(unit.host, ())
        used = gpu.occupied(node, running, known.claims, known.pools, but=unit.uid)
        name = workloads.replica_name(spec.ref, unit.index)
        return gpu.request(unit, node, name=name, namespace=spec.boundary.name, occupied=used)

    def _place(self, spec: EndpointSpec, unit: UnitSpec, share: gpu.Request) -> None:
        """Tell admission where the unit's pod may run and what it may ask for; nothing while it is off."""
        body = admission.unplace(unit.uid)
        if spec.power is Power.ON:
            host = share.node_selector.get(admission.HOSTNAME, "")
            claims = [name_of(claim) for claim in share.claims]
            body = admission.place(unit.uid, host, resources=share.resources, claims=claims)
        self.cluster.patch("v1", "ConfigMap", admission.PARAMS, spec.boundary.name, body)

    def _unplace(self, step: Step) -> None:
        """Take the placements of a step's units back, before its pods go: none comes up again."""
        within = self._is_within(step.ref)
        for live in self._applier.of_step(_DEPLOYMENT, step.ref, step.name):
            unit, namespace = marks.labels(live).get(marks.UNIT_LABEL, ""), namespace_of(live)
            if unit and within(live) and self.cluster.get("v1", "ConfigMap", admission.PARAMS, namespace):
                body = admission.unplace(UUID(unit))
                self.cluster.patch("v1", "ConfigMap", admission.PARAMS, namespace, body)

    def _try_out(self, wanted: Sequence[Object]) -> None:
        """Ask the cluster whether it would take a new replica's pod: a Deployment is taken whatever it holds.

        Raises what the pod would be refused with: quota, Pod Security, admission.
        """
        deployment = next(one for one in wanted if one["kind"] == "Deployment")
        name, namespace = name_of(deployment), namespace_of(deployment)
        if not dig(deployment, "spec", "replicas") or self.cluster.get("apps/v1", "Deployment", name, namespace):
            return
        template = deployment["spec"]["template"]
        metadata = {**template["metadata"], "generateName": f"{name}-", "namespace": namespace}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        for wait_s in ADMISSION_WAITS_S:
            try:
                self.cluster.create(pod, dry_run=True)
            except (AdmissionRefused, AdmissionUnready):
                if not wait_s:
                    raise
                self._never.wait(wait_s)  # admission hears of a placement a moment later
            else:
                return

    # --- network ----------------------------------------------------------------------------------

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut off a boundary (its allow policies are replaced) or an endpoint (its pods take no connection)."""
        if ref.kind is Kind.BOUNDARY:
            self._check_namespace(ref)
            return self._cut_off(ref) if cut_off else self._reconnect(ref)
        if ref.kind is not Kind.ENDPOINT:
            raise NotSupported(NO_MACHINES)
        label = "true" if cut_off else None
        for pod in self.cluster.list("v1", "Pod", labels=f"{marks.selector(ref)},{COMPONENT_LABEL}").items:
            if marks.labels(pod).get(CUT_OFF_LABEL) != label:
                body = {"metadata": {"uid": uid_of(pod), "labels": {CUT_OFF_LABEL: label}}}
                self.cluster.patch("v1", "Pod", name_of(pod), namespace_of(pod), body)
        return Done()

    def _cut_off(self, ref: Ref) -> Done:
        allows = [one for one in self._policies(ref) if name_of(one) != CUT_OFF]
        if not allows:
            return Done()
        kept = [{"name": name_of(one), "want": marks.intent_of(one), "spec": one["spec"]} for one in allows]
        policy = boundaries.cut_off_policy(ref.name)
        policy["metadata"]["annotations"] = {ALLOWED_ANNOTATION: json.dumps(kept)}
        # Another want than any spec's: the boundary shows as not as wanted until its spec says what it is to be.
        step = Step("namespace.policies", f"{ref.uid}:isolate", "cut-off-by-hand", 30, ref, None)
        return self._applier.make(step, [policy], prune=[_POLICY], namespace=ref.name)

    def _reconnect(self, ref: Ref) -> Done:
        policy = next((one for one in self._policies(ref) if name_of(one) == CUT_OFF), None)
        kept = json.loads(marks.annotations_of(policy).get(ALLOWED_ANNOTATION, "[]")) if policy is not None else []
        if not kept:
            return Done()
        wanted = [boundaries._policy(ref.name, one["name"], one["spec"]) for one in kept]
        step = Step("namespace.policies", f"{ref.uid}:isolate", str(kept[0]["want"]), 30, ref, None)
        return self._applier.make(step, wanted, prune=[_POLICY], namespace=ref.name)

    def _policies(self, ref: Ref) -> list[Object]:
        return self._applier.of_step(_POLICY, ref, "namespace.policies", ref.name)

    # --- power, hosts, layouts --------------------------------------------------------------------

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Scale an endpoint's replicas to none or to one; the spec's own want stays what it is."""
        if ref.kind is not Kind.ENDPOINT:
            raise NotSupported(NO_MACHINES)
        count = 1 if want is Power.ON else 0
        for one in self.cluster.list("apps/v1", "Deployment", labels=marks.selector(ref)).items:
            if dig(one, "spec", "replicas") != count:
                body = {"metadata": {"uid": uid_of(one)}, "spec": {"replicas": count}}
                self.cluster.patch("apps/v1", "Deployment", name_of(one), namespace_of(one), body)
        return Done()

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Cordon a node; return what still uses its GPUs, foreign use included."""
        self._cordon(host, cordoned=True)
        return [use for use in self.snapshot().uses if use.host == host]

    def restore(self, host: str) -> Done:
        """Uncordon a node."""
        self._cordon(host, cordoned=False)
        return Done()

    def _cordon(self, host: str, *, cordoned: bool) -> None:
        node = self.cluster.get("v1", "Node", host)
        if node is None:
            raise DriverRejected(f"the cluster has no node {host}")
        if bool(dig(node, "spec", "unschedulable", default=False)) != cordoned:
            body = {"metadata": {"uid": uid_of(node)}, "spec": {"unschedulable": cordoned or None}}
            self.cluster.patch("v1", "Node", host, "", body)

    def acceptance(self, host: str) -> Acceptance:
        """Run the acceptance pod of a node; it is looked at again until it has ended."""
        seen = self._inventory_of({host}, pods=True)
        node = seen.nodes.get(host)
        if node is None:
            raise DriverRejected(f"there is no node {host}")
        occupied = gpu.occupied(node, seen.pods.get(host, ()), seen.claims, seen.pools)
        return acceptance.run(self.cluster, self.settings, node, occupied, now=self._now())

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:
        """Return the steps that carve one GPU."""
        return layout.layout_steps(change)

    # --- people -----------------------------------------------------------------------------------

    def credential(
        self, boundary: Ref, principal: str, *, seconds: int, name: str, command: Sequence[str]
    ) -> Credential:
        """Return a token of one person in a boundary, an hour at most; it ends with the person's membership."""
        token = access.mint(self.cluster, boundary, principal, seconds=seconds)

        def file(**user: Any) -> str:
            return access.kubeconfig(
                name=name, url=self.settings.url, ca_pem=self.settings.ca_pem, namespace=boundary.name, **user
            )

        static = Secret(file(token=token.value))
        return Credential(token.value, token.expires_at, boundary.name, file(command=command), static)

    def certify(self, boundary: Ref) -> Certificate:
        """Try everything against one boundary and say what held."""
        return certificate.certify(self.cluster, self.settings, boundary, now=self._now)

    # --- logs -------------------------------------------------------------------------------------

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` lines of an object's pods since an RFC 3339 time, oldest first."""
        lines: list[LogLine] = []
        for pod in self.cluster.list("v1", "Pod", namespace=self._namespace_of(ref), labels=marks.selector(ref)).items:
            for container in dig(pod, "spec", "containers", default=[]):
                try:
                    lines += self._log_of(pod, container["name"], since=since, tail=tail)
                except TransientDriverError:
                    continue  # a container that has not started has no log yet
        lines.sort(key=lambda line: line.at)
        yield from lines[-tail:] if tail > 0 else ()

    def _log_of(self, pod: Object, container: str, *, since: str, tail: int) -> Iterator[LogLine]:
        for line in self.cluster.logs(name_of(pod), namespace_of(pod), container, tail=tail, since=since):
            at, _, text = line.partition(" ")
            yield LogLine(at, text, f"{name_of(pod)}/{container}")

    def close(self) -> None:
        """Close the connections."""
        self.cluster.close()


def _payload(step: Step, kind: type[T]) -> T:
    """Return a forward step's payload. Raises `DriverRejected` where it is another's."""
    if not isinstance(step.payload, kind):
        raise DriverRejected(f"step {step.name} came without its spec")
    return step.payload


def _is_ready(pod: Object) -> bool:
    conditions = dig(pod, "status", "conditions", default=[])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _is_extended(resource: str) -> bool:
    """Whether a resource of a node is a device: every name with a domain that is not Kubernetes' own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and not domain.endswith("kubernetes.io")


def make(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Driver:
    """Return the driver of one provider row. Raises `KeyError` for what is missing, `BadSettings` for the unusable."""
    return KubernetesDriver(settings_of(config, secrets))
