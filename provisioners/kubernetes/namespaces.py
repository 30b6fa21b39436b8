"""A boundary on a cluster: read exactly, made step by step, cut off, removed last and only when it is empty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from provisioners.driver import (
    BoundaryKind,
    BoundarySpec,
    Done,
    GatewaySpec,
    Handle,
    Observed,
    Part,
    Ref,
    Secret,
    Step,
    TransientDriverError,
)
from provisioners.kubernetes import boundary as boundaries
from provisioners.kubernetes import caches, gateways, guarding, reading, reading_endpoint
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.applying import removal_handle
from provisioners.kubernetes.boundary import CUT_OFF, ClusterFacts
from provisioners.kubernetes.ground import INSIDE, MADE_BY, POLICY, Ground, payload
from provisioners.kubernetes.objects import Object, name_of, uid_of
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.vm_service import boundary as vm_boundaries
from provisioners.kubernetes.vm_service import kinds

ALLOWED_ANNOTATION: Final = "tenantry.internal/allowed"
"""On the policy of a cut-off boundary: the allows that it stands for."""


class Namespaces:
    """The boundaries of one cluster."""

    def __init__(self, ground: Ground) -> None:
        """Work on `ground`."""
        self._ground = ground

    def observe(self, ref: Ref) -> Observed:
        """Read one boundary exactly."""
        namespace = self._ground.cluster.get("v1", "Namespace", ref.name)
        inside, gateway, facts = reading.Inside(namespace), None, None
        if namespace is not None and marks.is_ours(namespace, ref):
            if marks.is_deleting(namespace):
                inside = reading.Inside(namespace, remaining=self._remaining(namespace))
            else:
                inside = reading.Inside(namespace, self._inside(ref))
                gateway = self._gateway_part(ref, inside.marked)
                facts = self._ground.facts()
        return reading.boundary(
            ref,
            inside,
            gateway=gateway,
            now=self._ground.now(),
            facts=facts,
            simulated=self._ground.is_simulated,
        )

    def _inside(self, ref: Ref) -> tuple[Object, ...]:
        """Return everything of ours in a boundary's namespace, with machines where there can be any."""
        return self._ground.inside(ref.name, (*INSIDE, *kinds.held(self._ground.cluster.serves)))

    def _gateway_part(self, ref: Ref, marked: Sequence[Object]) -> Part | None:
        pods = self._ground.cluster.list("v1", "Pod", namespace=ref.name, labels=marks.selector(ref)).items
        own = [obj for obj in marked if marks.step_of(obj) == reading.GATEWAY and marks.is_ours(obj, ref)]
        return reading_endpoint.gateway_part(
            ref, own, pods, self._ground.warnings(ref.name, pods), now=self._ground.now()
        )

    def _remaining(self, namespace: Object) -> dict[str, tuple[Object, ...]]:
        """Return what a namespace on its way out still holds, by resource, where it says what that is."""
        if not reading.stuck(namespace, {}):
            return {}
        by_name = {
            f"{one.plural}.{one.group}" if one.group else one.plural: one
            for one in self._ground.cluster.resources()
            if one.namespaced and "list" in one.verbs
        }
        found = {}
        for name in reading.remaining_resources(namespace)[:5]:
            if (one := by_name.get(name)) is not None:
                bare = one.kind == "Secret"
                found[name] = self._ground.cluster.list(
                    one.api, one.kind, namespace=name_of(namespace), bare=bare
                ).items
        return found

    def make_namespace(self, step: Step) -> Done:
        """Make the namespace, closed, and our admission policies before it."""
        spec = payload(step, BoundarySpec)
        self._ground.recall("admission", self._make_policies)
        return self._ground.applier.make(
            step, _objects(step.name, spec, self._ground.settings, ClusterFacts()), namespace=step.ref.name
        )

    def _make_policies(self) -> None:
        """Make our admission policies be there before anything that they watch over; what is not served is left out."""
        trouble = guarding.mend(self._ground.cluster, now=self._ground.now()).trouble
        if trouble is not None:
            raise trouble

    def make_inside(self, step: Step) -> Done:
        """Make limits, policies or access in a namespace of ours."""
        self._ground.check_namespace(step.ref)
        spec = payload(step, BoundarySpec)
        facts = self._ground.facts() if step.name == "namespace.limits" else ClusterFacts()
        wanted = _objects(step.name, spec, self._ground.settings, facts)
        quota = next((one for one in wanted if one["kind"] == "ResourceQuota"), None)
        if quota is not None and self._ground.settings.cache_gib:  # before the quota: its want is what says it is done
            caches.make_room(self._ground.cluster, step.ref.name, quota)
        return self._ground.applier.make(step, wanted, prune=MADE_BY[step.name], namespace=step.ref.name)

    def make_gateway(self, step: Step) -> Done:
        """Start the gateway with its token, or go on with the one that it has."""
        self._ground.check_namespace(step.ref)
        gateway = payload(step, GatewaySpec)
        namespace = step.ref.name
        if gateway.enrolment_token is None:
            gateway = replace(gateway, enrolment_token=self._delivered(namespace))
        wanted = gateways.gateway_objects(step.ref, gateway, self._ground.settings, self._ground.served())
        return self._ground.applier.make(step, wanted, prune=MADE_BY[step.name], namespace=namespace)

    def _delivered(self, namespace: str) -> Secret | None:
        """Return the token that a gateway was started with, so that a change of it starts nothing anew."""
        deployment = self._ground.cluster.get("apps/v1", "Deployment", gateways.GATEWAY_NAME, namespace)
        delivery = gateways.delivery_in(deployment)
        if not delivery:
            return None
        return gateways.token_in(
            self._ground.cluster.get("v1", "Secret", gateways.gateway_secret_name(delivery), namespace)
        )

    def remove(self, ref: Ref) -> Handle | Done:
        """Ask for the end of a namespace. Raises `TransientDriverError` while anything of ours is in it."""
        namespace = self._ground.cluster.get("v1", "Namespace", ref.name)
        if namespace is None or not marks.is_ours(namespace, ref):
            return Done()
        if not marks.is_deleting(namespace):
            held = reading.holds(ref, self._inside(ref))
            if held:
                raise TransientDriverError(f"namespace {ref.name} cannot go: {held}")
            self._ground.cluster.delete("v1", "Namespace", ref.name, uid=uid_of(namespace), propagation="Background")
        return removal_handle(ref, reading.CREATE)

    def cut_off(self, ref: Ref) -> Done:
        """Put a policy that allows nothing in the place of all allows, and keep them on it."""
        allows = [one for one in self._policies(ref) if name_of(one) != CUT_OFF]
        if not allows:
            return Done()
        kept = [{"name": name_of(one), "want": marks.intent_of(one), "spec": one["spec"]} for one in allows]
        policy = boundaries.cut_off_policy(ref.name)
        policy["metadata"]["annotations"] = {ALLOWED_ANNOTATION: json.dumps(kept)}
        # Another want than any spec's: the boundary shows as not as wanted until its spec says what it is to be.
        step = Step("namespace.policies", f"{ref.uid}:isolate", "cut-off-by-hand", 30, ref, None)
        return self._ground.applier.make(step, [policy], prune=[POLICY], namespace=ref.name)

    def reconnect(self, ref: Ref) -> Done:
        """Bring the allows back that a policy stands for."""
        policy = next((one for one in self._policies(ref) if name_of(one) == CUT_OFF), None)
        kept = json.loads(marks.annotations_of(policy).get(ALLOWED_ANNOTATION, "[]")) if policy is not None else []
        if not kept:
            return Done()
        wanted = [boundaries._policy(ref.name, one["name"], one["spec"]) for one in kept]
        step = Step("namespace.policies", f"{ref.uid}:isolate", str(kept[0]["want"]), 30, ref, None)
        return self._ground.applier.make(step, wanted, prune=[POLICY], namespace=ref.name)

    def _policies(self, ref: Ref) -> list[Object]:
        listed = self._ground.listed((POLICY,), marks.selector(ref), namespace=ref.name)
        return [one for one in listed if marks.step_of(one) == "namespace.policies"]


def _objects(step: str, spec: BoundarySpec, settings: Settings, facts: ClusterFacts) -> list[Object]:
    """Return the objects of one step of a namespace or VM boundary."""
    build = vm_boundaries.objects if spec.kind is BoundaryKind.VM else boundaries.objects
    return build(step, spec, settings, facts)
