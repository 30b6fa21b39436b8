"""A cluster of the lab as the provider of crash points: real API server, scheduler and controllers, simulated nodes.

The cluster's time is real and the point's is not, so whatever the cluster does by itself is awaited before the
point's clock moves. Pods are ready by themselves; who has which device is what the scheduler allocated.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from controlplane.labs.kubernetes import furniture
from controlplane.labs.kubernetes.carving import slots_of
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from controlplane.labs.kubernetes.devices import truths, write_truth
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.nodes import Kind, Node, gpu_node
from provisioners.driver import Handle, Ref
from provisioners.driver import Kind as RefKind
from provisioners.kubernetes import access, layout, rbac
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.ground import INSIDE
from provisioners.kubernetes.layout import Layouts, Timing
from provisioners.kubernetes.objects import EVERYTHING, UNIT_LABEL, dig, labels, name_of, ref_of
from tenants import gpu_catalogue
from tests.conformance.kubernetes_rig import NamedGpu, settings_for
from tests.crash import carving
from tests.crash.clock import Clock
from tests.crash.told import Told
from tests.crash.world import Site
from tests.kubernetes.test_layout_real import POLICY, POLICY_DEFINITION

Object = dict[str, Any]
PATIENCE_S: Final = 90.0
"""What a cluster has begun by itself and not ended after this long, it will not end."""
STUCK_S: Final = 20.0
"""What a cluster has not moved for so long, it does not move by itself: nothing that it does is paced so slowly."""
LOOK_S: Final = 0.15
CARVES_S: Final = 1.0
"""Between looks at a layout change: the driver lets the MIG manager's file take its time, which shows nowhere."""
DRA: Final = "resource.k8s.io/v1"
ONES: Final = tuple(("1g.10gb", start) for start in range(7))
TWOS: Final = (("2g.20gb", 0), ("2g.20gb", 2), ("1g.10gb", 4), ("1g.10gb", 5))
NODE: Final = Node(
    "node-a", "H100-80GB", (NamedGpu(0, ONES), NamedGpu(1, TWOS)), kind=Kind.STATIC, vcpu=256, memory_gib=2048
)
MIG_NODE: Final = gpu_node(carving.MIG_HOST, "A100-80GB", count=1, layouts={0: ONES})
NODES: Final = (NODE, MIG_NODE)
PLAYER: Final = ("--choice", "adversarial", "--programs", "none", "--hurry", "0.02")
"""How nodes are played: pods are ready without a program, a MIG manager carves, and all of it in a hurry."""
TIMING: Final = Timing(entry_s=2.0, drain_s=30.0, carve_s=60.0, compare_s=30.0, restore_s=60.0)
_STATE: Final = "nvidia.com/mig.config.state"
_DEVICE: Final = re.compile(r"gpu-(\d+)(?:-mig-(.+)-\d+-(\d+))?")
_pause = threading.Event().wait


def furnish(cluster: LabCluster) -> None:
    """Make what points need in a cluster that runs: our rights, stand-ins, nodes carved as at the beginning."""
    with cluster.api() as api:
        for made in rbac.objects():
            api.apply(made)
        if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "clusterpolicies.nvidia.com") is None:
            api.create(POLICY_DEFINITION)
        if api.delete("v1", "Node", MIG_NODE.name):  # whatever an earlier run has carved it into
            _await(lambda: MIG_NODE.name not in truths(cluster.folder), "its devices are forgotten")
        write_truth(cluster.folder, NODES)
        furniture.furnish(api, (furniture.SYSTEM_NODE, *NODES))
        for node in NODES:
            _await(lambda name=node.name: _is_ready(api.get("v1", "Node", name)), f"{node.name} is ready")
        _await(lambda: _is_applied(cluster, POLICY), "the GPU operator's policy is served")


def _is_applied(cluster: LabCluster, obj: Object) -> bool:
    with cluster.api() as api:  # one that has not asked yet which kinds are served
        try:
            api.apply(obj)
        except LabError:
            return False
    return True


def _is_ready(node: Object | None) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in dig(node, "status", "conditions") or ())


@dataclass(slots=True)
class ClusterAccess:
    """One cluster, as a point looks at it. Make one per process: it keeps connections."""

    cluster: LabCluster
    api: Api = field(init=False)
    _told: Told | None = None
    _carves: bool = False

    def __post_init__(self) -> None:
        """Connect lazily."""
        self.api = self.cluster.api()

    def driver(self, *, deadline_s: float) -> Told:
        """Return the product's driver, as a process that has just begun has it: it knows nothing yet."""
        del deadline_s  # a busy machine is no point of these
        driver = KubernetesDriver(settings_for(self.cluster))
        driver._layouts = Layouts(driver.cluster, now=lambda: datetime.now(UTC), timing=TIMING)
        self._told = Told(driver)
        return self._told

    def close(self) -> None:
        """Give the connections back."""
        if self._told is not None:
            self._told.close()
        self.api.close()

    # --- the cluster's own time -------------------------------------------------------------------

    def is_waited_for(self) -> bool:
        """Whether the driver said in the sweep that just ended that something only takes its time."""
        assert self._told is not None
        waiting = self._told.waiting
        self._carves = any(layout.is_layout(Handle(what)) for what in waiting if isinstance(what, str))
        self._carves |= any(what.kind is RefKind.LAYOUT for what in waiting if isinstance(what, Ref))
        self._told.waiting = set()
        return bool(waiting)

    def await_rest(self) -> None:
        """Wait until pods are as their Deployments want them, nothing is on its way out, and nothing is carved."""
        if self._carves:
            _pause(CARVES_S)
        end = time.monotonic() + PATIENCE_S
        before, changed = [""], time.monotonic()
        while moving := list(self._moving()):
            now = time.monotonic()
            if moving != before:
                before, changed = moving, now
            if now - changed >= STUCK_S:
                return  # by itself it does no more: what is missing a sweep has to bring; `wrong` tells what it did not
            if now >= end:
                raise AssertionError(f"not within {PATIENCE_S:.0f} s: the cluster is at rest: {moving}")
            _pause(LOOK_S)

    def _moving(self) -> Iterator[str]:
        wanted: Counter[str] = Counter()
        for one in self.api.list("apps/v1", "Deployment", labels=EVERYTHING):
            status, count = one.get("status") or {}, int(one["spec"]["replicas"])
            wanted[one["metadata"]["namespace"]] += count
            counts = [int(status.get(name, 0)) for name in ("replicas", "updatedReplicas", "availableReplicas")]
            is_taken = int(status.get("observedGeneration", 0)) == one["metadata"]["generation"]
            if not is_taken or counts != [count] * 3 or _is_leaving(one):
                said = [f"{c['type']}={c['status']} {c.get('message', '')}" for c in status.get("conditions", ())]
                yield f"Deployment {name_of(one)}: {counts} of {count}, {said}"
        for one in self.api.list("v1", "Pod", labels=EVERYTHING):
            wanted[one["metadata"]["namespace"]] -= 1
            if _is_leaving(one):
                yield f"Pod {name_of(one)}"
        yield from (f"{count} pods of {name}" for name, count in wanted.items() if count)
        for api, kind in (("v1", "Namespace"), (DRA, "ResourceClaim")):
            yield from (
                f"{kind} {name_of(one)}" for one in self.api.list(api, kind, labels=EVERYTHING) if _is_leaving(one)
            )
        yield from self._carving()

    def _carving(self) -> Iterator[str]:
        node = self.api.get("v1", "Node", MIG_NODE.name)
        if labels(node or {}).get(_STATE) in {"pending", "rebooting"}:
            yield "the MIG manager"
            return
        truth = truths(self.cluster.folder).get(MIG_NODE.name)
        made = {name: len(slots) for name, slots in slots_of(truth.gpus, "mixed").items()} if truth is not None else {}
        told = dig(node or {}, "status", "allocatable", default={})
        if any(int(told.get(name, 0)) != count for name, count in made.items()):
            yield "the device plugin"

    # --- what is there ----------------------------------------------------------------------------

    def marked(self) -> list[Object]:
        """Return every object with our mark but pods, and but the layouts that the cluster's MIG manager reads."""
        kinds = [("v1", "Namespace"), *((one.api, one.kind) for one in INSIDE)]
        assert self._told is not None
        return [
            {**one, "kind": kind}
            for api, kind in kinds
            if self._told.cluster.serves(api, kind)
            for one in self.api.list(api, kind, labels=EVERYTHING)
            if one["metadata"].get("namespace") != furniture.OPERATOR
        ]

    def pods(self) -> list[Object]:
        """Return every pod with our mark."""
        return self.api.list("v1", "Pod", labels=EVERYTHING)

    def everything(self) -> dict[str, list[str]]:
        """Return ids by word. Boundaries count by namespace; of all others each id counts once."""
        marked, pods = self.marked(), self.pods()
        boundaries = [ref for one in marked if one["kind"] == "Namespace" and (ref := ref_of(one)) is not None]
        others = {ref for one in marked if (ref := ref_of(one)) is not None} - set(boundaries)
        return {
            "begun": [],
            "objects": sorted(str(ref.uid) for ref in (*boundaries, *others)),
            "gateways": sorted(uid for one in marked if (uid := _gateway_of(one))),
            "running": sorted(unit for pod in pods if (unit := labels(pod).get(UNIT_LABEL, "")) and not _is_over(pod)),
            "tasks": sorted(f"removal of {one['kind']} {name_of(one)}" for one in (*marked, *pods) if _is_leaving(one)),
        }

    def truth(self) -> list[dict[str, Any]]:
        """Return who has which device by the allocations of all claims."""
        found = []
        for claim in self.api.list(DRA, "ResourceClaim"):
            for given in dig(claim, "status", "allocation", "devices", "results", default=[]):
                match = _DEVICE.fullmatch(str(given["device"]))
                assert match is not None
                profile = re.sub(r"^(\dg)(.+)$", r"\1.\2", match[2] or "")
                found.append(
                    {
                        "unit": labels(claim).get(UNIT_LABEL, ""),
                        "name": name_of(claim),
                        "device": f"{given['pool']}-gpu-{match[1]}",
                        "start": int(match[3] or 0),
                        "size": gpu_catalogue.profile(NODE.product, profile).size,
                    }
                )
        return found

    def leftovers(self) -> list[str]:
        """Return whatever of ours still exists."""
        return sorted(f"{one['kind']} {name_of(one)}" for one in (*self.marked(), *self.pods()))

    def shape(self) -> Counter[str]:
        """Return how many objects of each kind each step has: what must be the same however often it was begun."""
        return Counter(
            f"{one['kind']} of {_step(one)}" for one in (*self.marked(), *self.pods()) if not _is_leaving(one)
        )

    def wrong(self) -> list[str]:
        """Return what does not come to rest in the end; names in a cluster are unique by themselves."""
        self.await_rest()
        return [f"not at rest: {one}" for one in self._moving()]

    def wipe(self) -> None:
        """Take away by force what a point has left, so that the next one begins with nothing."""
        for pod in self.pods():
            self.api.delete("v1", "Pod", name_of(pod), pod["metadata"]["namespace"], grace_s=0)
        for kind in access.MADE:
            for one in self.api.list(kind.api, kind.kind, namespace=rbac.ACCESS_NAMESPACE, labels=EVERYTHING):
                self.api.delete(kind.api, kind.kind, name_of(one), rbac.ACCESS_NAMESPACE)
        for one in self.api.list("v1", "Namespace", labels=EVERYTHING):
            self.api.delete("v1", "Namespace", name_of(one))
        _await(lambda: not self.leftovers(), "everything is gone", why=self.leftovers)
        furnish(self.cluster)


@dataclass(frozen=True, slots=True)
class ClusterSite(Site):
    """A point on a cluster: `provider_url` is its address, `estate` its name."""

    lab: LabCluster = field(kw_only=True)

    def access(self) -> ClusterAccess:
        """Return the cluster."""
        return ClusterAccess(self.lab)


def site(lab: LabCluster, database: str, clock: Clock) -> ClusterSite:
    """Return where a point on a cluster happens."""
    return ClusterSite(database, lab.url, lab.name, clock, lab=lab)


def _gateway_of(one: Object) -> str:
    """Return the id of the gateway that a Deployment starts, "" where it starts none."""
    if one["kind"] != "Deployment":
        return ""
    for container in dig(one, "spec", "template", "spec", "containers", default=[]):
        for variable in container.get("env") or ():
            if variable["name"] == "TENANTRY_GATEWAY_UID":
                return str(variable["value"])
    return ""


def _step(one: Object) -> str:
    """Return the step that made an object, without its unit's number: which one is left hangs on the stages before."""
    return re.sub(r"\.\d+$", "", labels(one).get("tenantry.internal/step", ""))


def _is_leaving(one: Object) -> bool:
    return "deletionTimestamp" in one["metadata"]


def _is_over(pod: Object) -> bool:
    return dig(pod, "status", "phase") in {"Succeeded", "Failed"}


def _await(is_so: Any, what: str, *, why: Any = list) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() >= end:
            raise AssertionError(f"not within {PATIENCE_S:.0f} s: {what}: {why()}")
        _pause(LOOK_S)
