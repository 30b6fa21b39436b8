"""An endpoint on a cluster: tried out before it is made, told to admission, read with its devices, cut off."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from provisioners.driver import (
    Done,
    DriverRejected,
    EndpointSpec,
    Observed,
    ObservedUnit,
    Power,
    Ref,
    Step,
    TransientDriverError,
    UnitSpec,
)
from provisioners.kubernetes import admission, gateways, gpu, reading_endpoint, workloads
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import KindRef
from provisioners.kubernetes.failures import AdmissionRefused, AdmissionUnready
from provisioners.kubernetes.ground import DEPLOYMENT, MADE_BY, OF_ENDPOINT, Ground, payload
from provisioners.kubernetes.objects import COMPONENT_LABEL, CUT_OFF_LABEL, Object, dig, name_of, namespace_of, uid_of
from provisioners.kubernetes.pods import GATEWAY
from provisioners.kubernetes.reading_endpoint import EndpointSeen, GatewaySeen
from provisioners.kubernetes.settings import EXTERNAL_DNS

ADMISSION_WAITS_S: Final = (0.1, 0.3, 0.6, 1.0, 2.0, 0.0)
"""How long a new placement may take until admission knows it: its parameters come by a watch of the API server."""


class Endpoints:
    """The endpoints of one cluster."""

    def __init__(self, ground: Ground) -> None:
        """Work on `ground`."""
        self._ground = ground
        self._never = threading.Event()

    def observe(self, ref: Ref) -> Observed:
        """Read one endpoint: what has its mark, its pods, its devices, its gateway."""
        within = self._ground.is_within(ref)
        found = self._made_for(ref, OF_ENDPOINT)
        listed = self._ground.cluster.list("v1", "Pod", labels=marks.selector(ref)).items
        pods = tuple(pod for pod in listed if within(pod))
        namespace = next((namespace_of(one) for one in (*found, *pods)), "")
        seen = EndpointSeen(ref, found, pods, self._ground.warnings(namespace, pods), self._gateway_of(namespace))
        nodes = {str(dig(pod, "spec", "nodeName")) for pod in pods if dig(pod, "spec", "nodeName")}
        known = self._ground.inventory_of(nodes) if nodes else None

        def units(uid: UUID, pod: Object | None, backend: str) -> tuple[ObservedUnit, ...]:
            if known is None:
                return ()
            node = known.nodes.get(str(dig(pod, "spec", "nodeName", default="")))
            return gpu.observed(uid, pod, node, known.claims, known.pools, backend=backend)

        answer = reading_endpoint.observed(seen, self._ground.settings, units=units, now=self._ground.now())
        told = self._ground.cluster.get("v1", "ConfigMap", admission.PARAMS, namespace) if namespace else None
        return _judged(reading_endpoint.misplaced(answer, found, told), seen)

    def _made_for(self, ref: Ref, kinds: Sequence[KindRef]) -> tuple[Object, ...]:
        """Return what was made for a ref in its tenant's namespaces, with its labels or without."""
        found = tuple(
            one
            for namespace in self._ground.namespaces_of(ref.tenant_uid)
            for one in self._ground.inside(namespace, kinds)
            if marks.is_ours(one, ref)
        )
        if found:
            return found
        within = self._ground.is_within(ref)  # a namespace that lost its own labels is not found by them
        return tuple(one for one in self._ground.listed(kinds, marks.selector(ref)) if within(one))

    def _gateway_of(self, namespace: str) -> GatewaySeen:
        if not namespace:
            return GatewaySeen()
        labels = f"{COMPONENT_LABEL}={GATEWAY}"
        pods = self._ground.cluster.list("v1", "Pod", namespace=namespace, labels=labels).items
        service = None
        if self._ground.settings.access == "load-balancer":
            service = self._ground.cluster.get("v1", "Service", gateways.GATEWAY_NAME, namespace)
        return GatewaySeen(pods, service)

    def make_part(self, step: Step, bare: str) -> Done:
        """Make the Secret, a replica or the Service of an endpoint. Raises what its pod would be refused with."""
        part = payload(step, workloads.EndpointPart)
        spec, namespace = part.spec, part.spec.boundary.name
        self._ground.check_namespace(spec.boundary)
        if bare == workloads.SECRET_STEP:
            return self._ground.applier.make(
                step, workloads.secret_objects(spec), prune=MADE_BY[bare], namespace=namespace
            )
        if bare == workloads.REPLICA_STEP and part.unit is not None:
            share = self._share(spec, part.unit)
            wanted = workloads.replica_objects(spec, part.unit, self._ground.settings, share)
            self._place(spec, part.unit, share)
            self._try_out(wanted)
            return self._ground.applier.make(step, wanted, prune=MADE_BY[bare], namespace=namespace)
        wanted = workloads.service_objects(
            spec, self._ground.settings, self._ground.served(), balanced=self._told_to_dns(namespace)
        )
        if spec.cut_off:
            for one in wanted:
                one["metadata"].setdefault("annotations", {})[CUT_OFF_LABEL] = "true"
        done = self._ground.applier.make(step, wanted, prune=MADE_BY[bare], namespace=namespace)
        self.isolate(spec.ref, cut_off=spec.cut_off)
        return done

    def _told_to_dns(self, namespace: str) -> str:
        """Return where the namespace's load balancer answers, where ExternalDNS is to be told; `""` where not."""
        settings = self._ground.settings
        if settings.access != "load-balancer" or settings.dns_records != EXTERNAL_DNS or not settings.zone:
            return ""
        found = reading_endpoint.balanced_host(
            self._ground.cluster.get("v1", "Service", gateways.GATEWAY_NAME, namespace)
        )
        if not found:
            raise TransientDriverError("the load balancer has no address yet that DNS could be told")
        return found

    def _share(self, spec: EndpointSpec, unit: UnitSpec) -> gpu.Request:
        """Return what a unit asks its node for. Raises `DriverRejected`, `NoCapacity`."""
        if spec.power is Power.OFF:
            return gpu.Request({})  # nothing is held while it is off
        known = self._ground.inventory_of({unit.host}, pods=True)
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
        if not self._ground.tell(spec.boundary.name, spec.boundary.tenant_uid, body):
            msg = f"ConfigMap {admission.PARAMS} is not there, so admission would refuse every pod"
            raise TransientDriverError(msg)

    def unplace(self, step: Step) -> None:
        """Take the placements of a step's units back, before its pods go: none comes up again."""
        for live in self._made_for(step.ref, (DEPLOYMENT,)):
            unit, namespace = dig(live, "spec", "template", "metadata", "labels", marks.UNIT_LABEL), namespace_of(live)
            if marks.step_of(live) != step.name or not unit:
                continue
            self._ground.tell(namespace, step.ref.tenant_uid, admission.unplace(UUID(unit)))

    def _try_out(self, wanted: Sequence[Object]) -> None:
        """Ask the cluster whether it would take a new replica's pod: a Deployment is taken whatever it holds.

        Raises what the pod would be refused with: quota, Pod Security, admission.
        """
        deployment = next(one for one in wanted if one["kind"] == "Deployment")
        name, namespace = name_of(deployment), namespace_of(deployment)
        if not dig(deployment, "spec", "replicas") or self._ground.cluster.get(
            "apps/v1", "Deployment", name, namespace
        ):
            return
        template = deployment["spec"]["template"]
        metadata = {**template["metadata"], "generateName": f"{name}-", "namespace": namespace}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        for wait_s in ADMISSION_WAITS_S:
            try:
                self._ground.cluster.create(pod, dry_run=True)
            except (AdmissionRefused, AdmissionUnready):
                if not wait_s:
                    raise
                self._never.wait(wait_s)  # admission hears of a placement a moment later
            else:
                return

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Let the pods of an endpoint take no connection, or take them again; they run on."""
        within = self._ground.is_within(ref)
        label = "true" if cut_off else None
        labels = f"{marks.selector(ref)},{COMPONENT_LABEL}"
        for pod in self._ground.cluster.list("v1", "Pod", labels=labels).items:
            if marks.labels(pod).get(CUT_OFF_LABEL) != label and within(pod):
                body = {"metadata": {"uid": uid_of(pod), "labels": {CUT_OFF_LABEL: label}}}
                self._ground.cluster.patch("v1", "Pod", name_of(pod), namespace_of(pod), body)
        return Done()

    def power(self, ref: Ref, want: Power) -> Done:
        """Scale an endpoint's replicas to none or to one; the spec's own want stays what it is."""
        within = self._ground.is_within(ref)
        count = 1 if want is Power.ON else 0
        for one in self._ground.cluster.list("apps/v1", "Deployment", labels=marks.selector(ref)).items:
            if dig(one, "spec", "replicas") != count and within(one):
                body = {"metadata": {"uid": uid_of(one)}, "spec": {"replicas": count}}
                self._ground.cluster.patch("apps/v1", "Deployment", name_of(one), namespace_of(one), body)
        return Done()


def _judged(shown: Observed, seen: EndpointSeen) -> Observed:
    """Show the Service of a cut-off endpoint as different while a pod takes connections: one that came up since."""
    cut_off = any(marks.annotations_of(one).get(CUT_OFF_LABEL) for one in seen.objects)
    if not cut_off or all(CUT_OFF_LABEL in marks.labels(pod) for pod in seen.pods if not marks.is_deleting(pod)):
        return shown
    parts = tuple(
        replace(part, have="", message="a pod that came up since takes connections")
        if part.step == workloads.SERVICE_STEP
        else part
        for part in shown.parts
    )
    return replace(shown, parts=parts)
