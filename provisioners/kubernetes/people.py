"""Namespaces handed to people: their accounts, and the GPUs that they may use in pods of their own.

With claims (DRA) a node may be shared: each unit gets a claim that we make, on exactly its device, and admission lets
people use that and no other. Through the device plugin the kubelet chooses the device, so a node is handed out only
where the tenant holds all of its GPUs; else people start no GPU pods there, whatever their quota says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from provisioners.driver import MARK_DOMAIN, Binding, Done, Handle, NamespaceSpec, Observed, Ref, Step, UnitSpec
from provisioners.kubernetes import access, admission, gpu, reading
from provisioners.kubernetes import objects as marks
from provisioners.kubernetes.ground import CLAIM, Ground, payload
from provisioners.kubernetes.objects import Object, dig, name_of, namespace_of
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE

KINDS: Final = (*access.MADE, CLAIM)
"""What the step makes; leases go first, they end the tokens."""
HANDED_OUT: Final = f"{MARK_DOMAIN}/handed-out"
"""On what stands for the step: what admission is told of it."""


class People:
    """Who works in the namespaces of one cluster."""

    def __init__(self, ground: Ground) -> None:
        """Work on `ground`."""
        self._ground = ground

    def observe(self, ref: Ref) -> Observed:
        """Read the accounts and claims of one namespace that was handed out."""
        own = [obj for obj in self._ground.listed(KINDS, marks.selector(ref)) if self._may(ref)(obj)]
        parts = reading.parts(ref, own, now=self._ground.now())
        if not self._is_told(ref, own):
            words = "what people may use was changed by somebody else"
            parts = tuple(replace(part, have="", message=words) if part.have else part for part in parts)
        return Observed(ref, exists=bool(parts), parts=parts, simulated=self._ground.is_simulated)

    def make(self, step: Step) -> Done:
        """Make accounts and claims, then tell admission what people may use. Raises `DriverRejected`, `NoCapacity`."""
        spec = payload(step, NamespaceSpec)
        self._ground.check_namespace(spec.boundary)
        shares = {} if spec.cut_off else self._shares(spec)
        claims = [claim for share in shares.values() for claim in share.claims]
        body = admission.hand_out(
            spec.ref.uid,
            [share.node_selector[admission.HOSTNAME] for share in shares.values()],
            resources=[name for share in shares.values() for name in share.resources],
            claims=[name_of(claim) for claim in claims],
        )
        wanted = access.objects(spec)
        for one in wanted:
            if one["kind"] == "ConfigMap":
                one["metadata"]["annotations"] = {HANDED_OUT: next(iter(body["data"].values())) or ""}
        done = self._ground.applier.make(step, [*wanted, *claims], prune=KINDS)
        self._ground.tell(spec.boundary.name, spec.boundary.tenant_uid, body)
        return done

    def _is_told(self, ref: Ref, own: Sequence[Object]) -> bool:
        """Whether admission lets people use exactly what was handed out to them."""
        anchor = next((one for one in own if one["kind"] == "ConfigMap" and not marks.is_deleting(one)), None)
        boundary = str(dig(anchor, "data", access.BOUNDARY_KEY, default=""))
        if anchor is None or not boundary:
            return True
        params = self._ground.cluster.get("v1", "ConfigMap", admission.PARAMS, boundary)
        told = dig(params, "data", f"{admission.FREE}{ref.uid}", default="")
        return bool(told == marks.annotations_of(anchor).get(HANDED_OUT, ""))

    def remove(self, step: Step) -> Handle | Done:
        """Let admission take nothing more, then end tokens, accounts and claims."""
        anchor = self._ground.cluster.get("v1", "ConfigMap", step.ref.name, ACCESS_NAMESPACE)
        boundary = str(dig(anchor, "data", access.BOUNDARY_KEY, default=""))
        if anchor is not None and marks.is_ours(anchor, step.ref) and boundary:
            self._ground.tell(boundary, step.ref.tenant_uid, admission.hand_out(step.ref.uid, ()))
        return self._ground.applier.remove(step, KINDS, may=self._may(step.ref))

    def _may(self, ref: Ref) -> Callable[[Object], bool]:
        """Return a check that an object lies where this driver makes such objects: elsewhere a mark proves nothing."""
        within = self._ground.is_within(ref)
        return lambda obj: marks.is_ours(obj, ref) and (namespace_of(obj) == ACCESS_NAMESPACE or within(obj))

    # --- devices

    def _shares(self, spec: NamespaceSpec) -> Mapping[UnitSpec, gpu.Request]:
        """Return what each unit of people gives them to use; units whose node is not theirs alone give nothing."""
        units = [unit for unit in spec.units if unit.product]
        if not units:
            return {}
        known = self._ground.inventory_of({unit.host for unit in units}, pods=True)
        found: dict[UnitSpec, gpu.Request] = {}
        for unit in units:
            node = known.nodes.get(unit.host)
            if node is None:
                continue  # it comes back, or the unit is placed anew; both change what is seen
            name = f"{spec.ref.name}-{unit.index}"
            occupied = gpu.Occupied()  # through the device plugin, people's own pods are not in each other's way
            if unit.binding is not Binding.HOST:
                running = known.pods.get(unit.host, ())
                occupied = gpu.occupied(node, running, known.claims, known.pools, but=unit.uid)
            found[unit] = gpu.request(unit, node, name=name, namespace=spec.boundary.name, occupied=occupied)
        return {unit: share for unit, share in found.items() if share.claims or self._is_whole(unit.host, found)}

    def _is_whole(self, host: str, shares: Mapping[UnitSpec, gpu.Request]) -> bool:
        """Whether units of people hold every device that a node offers through its device plugin."""
        node = self._ground.cluster.get("v1", "Node", host)
        offered = {
            name: int(amount)
            for name, amount in dig(node, "status", "allocatable", default={}).items()
            if _is_device(name) and str(amount).isdigit() and int(amount)
        }
        held: Counter[str] = Counter()
        for unit, share in shares.items():
            if unit.host == host:
                held.update({name: int(amount) for name, amount in share.resources.items()})
        return bool(offered) and all(held[name] >= number for name, number in offered.items())


def _is_device(resource: str) -> bool:
    domain, slash, _ = resource.partition("/")
    return bool(slash) and not domain.endswith("kubernetes.io")
