"""A cluster of the lab as a whole world: nodes of a test's own, foreign pods on them, sweeps of the product, the truth.

API server, scheduler, admission and controllers are the real ones. Nodes are simulated; the lab's device plugin
chooses adversarially, and what it chose is read from its own record, which no product code sees. Pods are Ready
without a program behind them.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from controlplane.labs.kubernetes import devices, furniture, slices
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from controlplane.labs.kubernetes.nodes import Gpu, Kind, Node, install
from provisioners import sweep
from provisioners.kubernetes import access, rbac
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.ground import INSIDE
from provisioners.kubernetes.layout import CONFIG_MAP
from provisioners.kubernetes.objects import EVERYTHING, UNIT_LABEL, dig, labels, name_of, ref_of
from provisioners.passes import Engine
from tenants import audit, gpu_catalogue
from tenants.models import Endpoint, Finding, Hold, Host, Intent, Provider
from tenants.operations import endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind
from tests import factories
from tests.conformance.kubernetes_rig import settings_for
from tests.drive import FakeClock

DRA = "resource.k8s.io/v1"
_DEVICE = re.compile(r"^gpu-(?P<gpu>\d+)(?:-mig-.+-(?P<start>\d+))?$")
pause = threading.Event().wait


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """One device in use: `start` is None where the ledger does not know it yet."""

    host: str
    gpu: int
    start: int | None
    profile: str
    unit: str = ""


def worlds_cluster(request: pytest.FixtureRequest) -> LabCluster:
    """Return the cluster of these tests, one per run.

    TENANTRY_WORLDS_CLUSTER=FOLDER takes one that runs there, started with the same arguments of the player.
    """
    cluster: LabCluster
    if folder := os.environ.get("TENANTRY_WORLDS_CLUSTER"):
        cluster = LabCluster(Path(folder).name, folder=Path(folder))
        assert cluster.status().ready
    else:
        start = request.getfixturevalue("kube_clusters")
        cluster = start("worlds", player=("--choice", "adversarial", "--programs", "none"))
    with cluster.api() as api:
        for made in rbac.objects():
            api.apply(made)
        furniture.furnish(api, (furniture.SYSTEM_NODE,))
        for made in slices.device_classes():
            api.apply(made)
    return cluster


@dataclass(slots=True)
class World:
    """A connected cluster with open hosts, one tenant with quota, and what it asked for."""

    cluster: LabCluster
    api: Api
    nodes: tuple[Node, ...]
    driver: KubernetesDriver
    provider: Provider
    clock: FakeClock
    tenant: Any
    actor: Any
    foreign_namespace: str
    before: tuple[str, ...] = ()
    """Violations that earlier tests left in the lab's record."""
    others: dict[UUID, Any] = field(default_factory=dict)
    """Drivers of further providers, by row."""
    _names: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    # --- sweeps -----------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """Return what passes run with."""

        def driver_of(provider: Provider) -> Any:
            return self.others.get(provider.pk, self.driver)

        return Engine(clock=self.clock, driver_of=driver_of, base_s=0.5, jitter=lambda: 1.0)

    def sweep(self) -> int:
        """Run what is due now, and see that nothing is in use twice and the ledger adds up."""
        made = sweep.sweep(self.engine)
        self.assert_nothing_double()
        return made

    def look(self) -> None:
        """Take a snapshot now, and let passes do what it made due."""
        self.clock.move(1)
        Provider.objects.filter(pk=self.provider.pk).update(due_at=self.clock())
        self.sweep()

    def drive(self, until: Callable[[], bool], *, most: int = 150, step_s: float = 1.0) -> int:
        """Sweep until a condition holds, the cluster getting a moment in between; return the number of sweeps."""
        for count in range(1, most + 1):
            self.sweep()
            if until():
                return count
            self.clock.move(step_s)
            pause(0.1)
        raise AssertionError(f"not reached after {most} sweeps:\n{self.explain()}")

    def explain(self) -> str:
        """Return what stands where, for failing tests."""
        lines = []
        for kind in sweep.PASSES.values():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                said = [f"{c['type']}={c['status']} {c['reason']} {c['message']}" for c in row.conditions]
                lines.append(f"{kind.word} {row.pk} {row.phase} due={row.due_at} failures={row.failures} {said}")
        lines += [f"finding {row.kind}: {row.detail}" for row in Finding.objects.filter(resolved_at=None)]
        lines += [f"held {use}" for use in sorted(self.held("tenant", "foreign"), key=str)]
        return "\n".join([*lines, *(f"used {use}" for use in self.used())])

    # --- what the tenant asks for -----------------------------------------------------------------

    def ask(self, product: str, profile: str = "", *, replicas: int = 1) -> Endpoint:
        """Ask for an endpoint on this cluster."""
        units = (UnitAsk(GpuAsk(product, profile), vcpu=2, memory_gib=8),) * replicas
        spec = AllocationSpec(units, where=Where(kind=BoundaryKind.NAMESPACE, provider=self.provider.name))
        ask = EndpointAsk(f"e{next(self._names)}", RevisionAsk("llama-3-1-8b"), spec)
        return endpoints.create(tenant=self.tenant, ask=ask, actor=self.actor, now=self.clock()).endpoint

    def delete(self, row: Endpoint) -> None:
        """Ask for an endpoint's end."""
        endpoints.delete(endpoint=Endpoint.objects.get(pk=row.pk), actor=self.actor, now=self.clock())

    def at_rest(self) -> bool:
        """Whether everything asked for is there or waits for room, and everything else is gone."""
        rows = Endpoint.objects.filter(released_at__isnull=True)
        return all(row.phase in {"Ready", "Waiting"} and row.deletion_requested_at is None for row in rows)

    def ready(self) -> int:
        """Return how many endpoints can be used."""
        return Endpoint.objects.filter(released_at__isnull=True, phase="Ready").count()

    # --- what others do ---------------------------------------------------------------------------

    def foreign(
        self, name: str, host: str, *, profile: str = "", gpu: int = 0, start: int = 0, bound: bool = True, **spec: Any
    ) -> None:
        """Let somebody else's pod take a device; with the device plugin any of the profile, with DRA this one."""
        node = self.node(host)
        selector = {"kubernetes.io/hostname": host}
        container: dict[str, Any] = {"name": "theirs", "image": "registry.elsewhere.example/job@sha256:" + "3" * 64}
        whole: dict[str, Any] = {"nodeSelector": selector, "containers": [container], **spec}
        if node.kind is Kind.DEVICE_PLUGIN:
            resource = gpu_catalogue.profile(node.product, profile).resource_name if profile else "nvidia.com/gpu"
            container["resources"] = {"limits": {resource: "1"}}
        else:
            self._claim(name, node, profile, gpu, start)
            container["resources"] = {"claims": [{"name": "gpu"}]}
            whole["resourceClaims"] = [{"name": "gpu", "resourceClaimName": name}]
        meta = {"name": name, "namespace": self.foreign_namespace}
        self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": whole})
        if bound:
            self.await_foreign(name)

    def await_foreign(self, name: str) -> None:
        """Wait until a foreign pod runs and has its device."""

        def runs() -> bool:
            pod = self.api.get("v1", "Pod", name, self.foreign_namespace)
            if dig(pod or {}, "status", "phase") != "Running" or pod is None:
                return False
            host = pod["spec"]["nodeName"]
            if self.node(host).kind is not Kind.DEVICE_PLUGIN:
                return True
            truth = devices.truths(self.cluster.folder).get(host)
            return truth is not None and pod["metadata"]["uid"] in truth.held

        self.eventually(runs, f"the foreign pod {name} runs")

    def foreign_runs(self, name: str) -> bool:
        """Whether a foreign pod is there, untouched."""
        pod = self.api.get("v1", "Pod", name, self.foreign_namespace)
        return pod is not None and dig(pod, "status", "phase") == "Running" and not pod["metadata"].get(
            "deletionTimestamp"
        )  # fmt: skip

    def foreign_ends(self, name: str) -> None:
        """Let a foreign pod go, with its claim."""
        self.api.delete("v1", "Pod", name, self.foreign_namespace, grace_s=0)
        if self.api.get(DRA, "ResourceClaim", name, self.foreign_namespace) is not None:
            self.api.delete(DRA, "ResourceClaim", name, self.foreign_namespace)
        there = lambda: self.api.get("v1", "Pod", name, self.foreign_namespace) is None  # noqa: E731
        self.eventually(there, f"the foreign pod {name} is gone")

    def _claim(self, name: str, node: Node, profile: str, gpu: int, start: int) -> None:
        """Claim one device as a clever stranger does: by its id where it has one, else any of a GPU."""
        one = node.gpus[gpu]
        attribute = "device.attributes['gpu.nvidia.com']"
        if not profile:
            condition = f"{attribute}.type == 'gpu' && {attribute}.uuid == '{one.uuid(node.name)}'"
        elif node.kind is Kind.STATIC:
            condition = f"{attribute}.type == 'mig' && {attribute}.uuid == '{node.mig_uuid(one, profile, start)}'"
        else:
            parent = one.uuid(node.name)
            condition = (
                f"{attribute}.type == 'mig' && {attribute}.parentUUID == '{parent}' && "
                f"{attribute}.profile == '{profile}'"
            )
        request = {
            "deviceClassName": "mig.nvidia.com" if profile else "gpu.nvidia.com",
            "selectors": [{"cel": {"expression": condition}}],
        }
        self.api.create(
            {
                "apiVersion": DRA,
                "kind": "ResourceClaim",
                "metadata": {"name": name, "namespace": self.foreign_namespace},
                "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
            }
        )

    # --- the truth and the ledger -----------------------------------------------------------------

    def node(self, name: str) -> Node:
        """Return a node of this test."""
        return next(node for node in self.nodes if node.name == name)

    def used(self) -> list[Use]:
        """Return every device in use, by the lab's record (device plugin) and the scheduler's allocations (DRA)."""
        units = {pod["metadata"]["uid"]: labels(pod).get(UNIT_LABEL, "") for pod in self.api.list("v1", "Pod")}
        mine = {node.name for node in self.nodes}
        found = []
        for host, truth in devices.truths(self.cluster.folder).items():
            for uid, held in truth.held.items() if host in mine else ():
                unit = units.get(uid, "")
                found += [Use(host, slot.gpu, slot.start, slot.profile, unit) for _, slot in held]
        for claim in self.api.list(DRA, "ResourceClaim"):
            for one in dig(claim, "status", "allocation", "devices", "results", default=[]):
                match = _DEVICE.match(one["device"])
                if one["pool"] in mine and match is not None:
                    host, start = one["pool"], int(match["start"] or 0)
                    profile = self._profile_of(host, one["device"])
                    found.append(Use(host, int(match["gpu"]), start, profile, labels(claim).get(UNIT_LABEL, "")))
        return sorted(found)

    def _profile_of(self, host: str, device: str) -> str:
        node = self.node(host)
        for gpu in node.gpus:
            for profile in node.model.profiles.values():
                for start in profile.starts:
                    if slices.device_name(gpu, profile, start) == device:
                        return profile.name
        return ""

    def held(self, *kinds: str) -> set[Use]:
        """Return the windows that the ledger holds, with the profile of a tenant's."""
        rows = Hold.objects.filter(kind__in=kinds).select_related("device", "host")
        return {
            Use(
                row.host.provider_ref,
                row.device.index,
                row.start,
                row.profile,
                str(row.unit_id or ""),
            )
            for row in rows
        }

    def assert_same_counts(self) -> None:
        """See that as many devices of each profile are held for tenants on each host as pods of ours really have."""
        held = Counter((use.host, use.profile) for use in self.held("tenant"))
        used = Counter((use.host, use.profile) for use in self.used() if use.unit)
        assert held == used, self.explain()

    def assert_very_devices(
        self, *, exact: Callable[[Node], bool] = lambda node: node.kind is not Kind.DEVICE_PLUGIN
    ) -> None:
        """See that each unit has exactly the device that the ledger holds for it, on the nodes that tell."""
        mine = {node.name for node in self.nodes if exact(node)}
        held = {use for use in self.held("tenant") if use.host in mine}
        assert held == {use for use in self.used() if use.host in mine and use.unit}, self.explain()

    def assert_nothing_double(self) -> None:
        """See that no two pods share hardware, by the lab's own record and by the scheduler's allocations."""
        assert [text for text in devices.violations(self.cluster.folder) if text not in self.before] == []
        taken: dict[tuple[str, int, int], Use] = {}
        for use in self.used():
            node = self.node(use.host)
            size = gpu_catalogue.profile(node.product, use.profile).size
            for slot in range(use.start or 0, (use.start or 0) + size):
                other = taken.setdefault((use.host, use.gpu, slot), use)
                assert other is use, f"{other} and {use}"
        assert audit.findings(audit.LEDGER) == []

    def contradictions(self) -> list[str]:
        """Return what is wrong at rest: our rows, the ledger and the cluster's objects must say the same."""
        found = [f"audit {one.check}: {one.detail}" for one in audit.findings()]
        found += [f"open intent {one.step} of {one.object_kind}" for one in Intent.objects.filter(settled_at=None)]
        found += [f"finding {one.kind}: {one.detail}" for one in Finding.objects.filter(resolved_at=None)]
        rows = {}
        for word, kind in sweep.PASSES.items():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                rows[str(row.pk)] = (word, row)
                if row.lease_expires_at is not None and row.lease_expires_at > self.clock():
                    found.append(f"{word} is still leased")
        for one in self.marked():
            ref = ref_of(one)
            if name_of(one) == CONFIG_MAP:
                continue  # of the whole cluster; goes with nobody
            if ref is None or str(ref.uid) not in rows:
                found.append(f"orphan {one.get('kind')} {name_of(one)}")
        held = {use.unit: use for use in self.held("tenant")}
        deployments = Counter(labels(one).get(UNIT_LABEL, "") for one in self.api.list("apps/v1", "Deployment"))
        claims = Counter(labels(one).get(UNIT_LABEL, "") for one in self.api.list(DRA, "ResourceClaim"))
        pods = Counter(labels(one).get(UNIT_LABEL, "") for one in self.api.list("v1", "Pod"))
        for unit, use in held.items():
            dra = self.node(use.host).kind is not Kind.DEVICE_PLUGIN
            counts = (deployments[unit], pods[unit], claims[unit])
            if counts != (1, 1, int(dra)):
                found.append(f"unit {unit} on {use.host} has {counts} Deployments, pods and claims")
        for unit in {*deployments, *claims, *pods} - {"", *held}:
            found.append(f"unit {unit} runs and holds nothing")
        return found

    def marked(self) -> list[dict[str, Any]]:
        """Return everything in the cluster that carries our mark."""
        kinds = [("v1", "Namespace"), ("v1", "Pod"), *((one.api, one.kind) for one in INSIDE)]
        served = [(api, kind) for api, kind in kinds if self.driver.cluster.serves(api, kind)]
        return [{**one, "kind": kind} for api, kind in served for one in self.api.list(api, kind, labels=EVERYTHING)]

    # --- time -------------------------------------------------------------------------------------

    def eventually(self, is_so: Callable[[], bool], what: str, *, within_s: float = 180.0) -> None:
        """Wait in real time for what the cluster does by itself."""
        end = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < end, f"not within {within_s} s: {what}\n{self.explain()}"
            pause(0.2)

    def pods_settled(self) -> bool:
        """Whether every pod that a Deployment of ours wants runs, and nothing is on its way out."""
        for one in self.api.list("apps/v1", "Deployment", labels=EVERYTHING):
            if dig(one, "status", "readyReplicas", default=0) != one["spec"]["replicas"]:
                return False
        kinds = (("v1", "Pod"), ("v1", "Namespace"))
        return not any(
            one["metadata"].get("deletionTimestamp")
            for api, kind in kinds
            for one in self.api.list(api, kind, labels=EVERYTHING)
        )


@contextmanager
def connected(
    cluster: LabCluster,
    nodes: Sequence[Node],
    *,
    clock: FakeClock | None = None,
    driver: KubernetesDriver | None = None,
) -> Iterator[World]:
    """Make nodes in a cluster, connect it and open its hosts; everything is taken away afterwards."""
    devices.write_truth(cluster.folder, nodes)
    api = cluster.api()
    for node in nodes:
        install(api, node)
        slices.publish(api, node)
    _await(lambda: all(_is_ready(api, node.name) for node in nodes), "the nodes are ready")
    foreign = f"theirs-{uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": foreign}})
    driver = driver or KubernetesDriver(replace(settings_for(cluster), slug="worlds"))
    found = driver.capabilities()
    provider = factories.provider(
        kind="kubernetes",
        capabilities={
            "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
            "bindings": sorted(str(binding) for binding in found.bindings),
        },
        due_at=None,
    )
    tenant = factories.tenant()
    factories.generous(tenant, *{node.product for node in nodes if node.product})
    actor = factories.actor(factories.member(tenant))
    factories.served_model("llama-3-1-8b")
    before = tuple(devices.violations(cluster.folder))
    world = World(
        cluster, api, tuple(nodes), driver, provider, clock or FakeClock(), tenant, actor, foreign, before
    )  # fmt: skip
    try:
        sweep.sweep(world.engine)
        Host.objects.filter(provider_ref__in=[node.name for node in nodes]).update(state="open")
        world.look()
        yield world
    finally:
        _clear(world)


def _is_ready(api: Api, name: str) -> bool:
    conditions = dig(api.get("v1", "Node", name) or {}, "status", "conditions", default=[])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _clear(world: World) -> None:
    api = world.api
    for pod in (*api.list("v1", "Pod", labels=EVERYTHING), *api.list("v1", "Pod", namespace=world.foreign_namespace)):
        api.delete("v1", "Pod", name_of(pod), pod["metadata"]["namespace"], grace_s=0)
    for kind in access.MADE:
        for one in api.list(kind.api, kind.kind, namespace=rbac.ACCESS_NAMESPACE, labels=EVERYTHING):
            api.delete(kind.api, kind.kind, name_of(one), rbac.ACCESS_NAMESPACE)
    names = [name_of(one) for one in api.list("v1", "Namespace", labels=EVERYTHING)]
    for name in (*names, world.foreign_namespace):
        api.delete("v1", "Namespace", name)
    _await(lambda: not any(api.get("v1", "Namespace", name) for name in (*names, world.foreign_namespace)), "all gone")
    for node in world.nodes:
        for one in api.list(DRA, "ResourceSlice", fields=f"spec.nodeName={node.name}"):
            api.delete(DRA, "ResourceSlice", name_of(one))
        api.delete("v1", "Node", node.name)
    world.driver.close()
    api.close()


def _await(is_so: Callable[[], bool], what: str, *, within_s: float = 240.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        pause(0.2)


def fresh_name(prefix: str) -> str:
    """Return a node's name that no other test has."""
    return f"{prefix}-{uuid4().hex[:6]}"


def gpus(*layouts: Iterable[tuple[str, int]] | None) -> tuple[Gpu, ...]:
    """Return GPUs by their layouts, None for a whole one."""
    return tuple(Gpu(index, None if layout is None else tuple(layout)) for index, layout in enumerate(layouts))
