"""The Kubernetes driver on a real control plane of the lab: what it lacks is said; what hurts it hurts on the wire.

Faults strike single HTTP calls of a step: one that does not get through, one whose answer is lost. Nodes and pods are
simulated (KWOK); API server, admission, quota, garbage collection, scheduler and DRA allocation are the real ones. A
pod that tries a node's GPUs ends as on a real one, with the list of just the devices that the scheduler gave it.
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import urllib3

from controlplane.labs.kubernetes import devices, furniture, slices
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from controlplane.labs.kubernetes.nodes import Gpu, Kind, Node, install
from provisioners.driver import (
    Acceptance,
    Handle,
    Observed,
    ObservedProvider,
    Poll,
    Ref,
    Secret,
    Step,
    TransientDriverError,
)
from provisioners.kubernetes import access, rbac
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.ground import INSIDE
from provisioners.kubernetes.objects import EVERYTHING, UID_LABEL, UNIT_LABEL, dig, labels, name_of
from provisioners.kubernetes.settings import Peer, Settings
from provisioners.sandbox.faults import ERRORS
from tenants import gpu_catalogue

Object = dict[str, Any]

LACKS: Mapping[str, str] = {
    "vm": "a cluster without a VM service has no machines: its driver answers NotSupported, as was just asserted",
    "tasks": "every step of a cluster is done at once: only removals have handles, and nothing keeps a failed task",
    "failed-starts": "a Deployment that finds no device is there and waits; that is in tests/kubernetes",
    "recarve": "DRA carves by claims, a MIG manager by a plan for its node: tests/kubernetes/test_layout_real.py",
    "document": "the estate of the sandbox's document; a cluster's own is in tests/kubernetes",
    "stale-lists": "lists are read from the store, never from a cache",
    "gpu-health": "DRA shows health by taints; tested with nodes of their own in tests/kubernetes",
    "step-log": "the log of a boundary is its gateway's, and pods that nobody plays keep none",
}


class NamedGpu(Gpu):
    """A GPU whose UUID is readable."""

    def uuid(self, node: str) -> str:
        """Return the id that conformance's specs use."""
        return f"{node}-gpu-{self.index}"


ONES = tuple(("1g.10gb", start) for start in range(7))
NODE_A = Node(
    "node-a",
    "H100-80GB",
    (NamedGpu(0, ONES), NamedGpu(1, (*ONES[:4], ("3g.40gb", 4))), NamedGpu(2), NamedGpu(3)),
    kind=Kind.STATIC,
    vcpu=256,
    memory_gib=2048,
)
NODE_B = Node("node-b", "H100-80GB", (NamedGpu(0), NamedGpu(1)), kind=Kind.PARTITIONABLE, vcpu=256, memory_gib=2048)
NODES = (furniture.SYSTEM_NODE, NODE_A, NODE_B)


def furnish(cluster: LabCluster) -> None:
    """Make what conformance needs in a cluster; safe to repeat."""
    with cluster.api() as api:
        for made in rbac.objects():
            api.apply(made)
        furniture.furnish(api, NODES)
        for node in (NODE_A, NODE_B):
            install(api, node)
            slices.publish(api, node)


def ready_cluster(request: pytest.FixtureRequest) -> LabCluster:
    """Return a furnished cluster whose pods become ready by themselves, one per run.

    TENANTRY_CONFORMANCE_CLUSTER=FOLDER takes one that runs there (`up --name NAME --pods ready --nodes none`).
    """
    cluster: LabCluster
    if folder := os.environ.get("TENANTRY_CONFORMANCE_CLUSTER"):
        cluster = LabCluster(Path(folder).name, folder=Path(folder))
    else:
        cluster = request.getfixturevalue("kube_clusters")("conformance", pods="ready")
    furnish(cluster)
    return cluster


def settings_for(cluster: LabCluster, **changes: Any) -> Settings:
    """Return the settings of a lab's cluster, as its administrator."""
    namespace, proxy = furniture.PROXY
    values: dict[str, Any] = {
        "slug": cluster.name,
        "url": cluster.url,
        "ca_pem": cluster.ca_pem,
        "token": Secret(cluster.admin_token),
        "access": "cluster",
        "lab": True,
        "gateway_image": "registry.lab.internal/tenantry/gateway@sha256:" + "1" * 64,
        "vllm_image": "registry.lab.internal/vllm/vllm-openai@sha256:" + "2" * 64,
        "proxy": Peer(namespace, proxy),
        "control_plane_cidrs": ("10.200.0.0/16",),
        "model_mirror_cidrs": ("10.201.0.0/16",),
        "reads_per_s": 1000.0,
        "writes_per_s": 1000.0,
    }
    return Settings(**(values | changes))


# --- faults ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Fault:
    """One fault: the call of the driver that it strikes, and how."""

    match: str
    effect: str
    times: int = 1
    error: str = "transient"
    detail: str = "told to fail"
    struck: bool = field(default=False, init=False)


class HurtCluster(Cluster):
    """The client, some of whose writes do not get through or lose their answer."""

    def __init__(self, settings: Settings) -> None:
        """Talk to the cluster of `settings`."""
        super().__init__(settings)
        self.next_write = ""
        """What happens to the next write: `""` nothing, `cut` before the server, `lost` after it."""

    def _send(self, purpose: str, method: str, path: str, *rest: Any, **options: Any) -> Any:
        if method == "GET" or not self.next_write:
            return super()._send(purpose, method, path, *rest, **options)
        what, self.next_write = self.next_write, ""
        if what == "lost":
            super()._send(purpose, method, path, *rest, **options)
        msg = "the connection to the cluster was lost"
        raise TransientDriverError(msg, raw=type(urllib3.exceptions.ProtocolError).__name__)


class HurtDriver(KubernetesDriver):
    """The driver with faults on its calls."""

    def __init__(self, settings: Settings) -> None:
        """Drive the cluster of `settings`."""
        self.hurt = HurtCluster(settings)
        self.faults: list[Fault] = []
        self.play: Callable[[], None] = lambda: None
        """Has the pods that try GPUs end."""
        super().__init__(settings, cluster=self.hurt)

    def acceptance(self, host: str) -> Acceptance:
        """Try a host; what its pod would have run has ended by then."""
        self.play()
        return super().acceptance(host)

    def start(self, step: Step) -> Any:
        """Start a step under its fault, if it has one."""
        with self._under(f"{'undo' if step.undo else 'start'}:{step.name}"):
            return super().start(step)

    def observe(self, ref: Ref) -> Observed:
        """Read under a fault."""
        with self._under("observe"):
            return super().observe(ref)

    def snapshot(self) -> ObservedProvider:
        """Read all under a fault."""
        with self._under("snapshot"):
            return super().snapshot()

    def poll(self, handle: Handle) -> Poll:
        """Poll under a fault."""
        with self._under("poll"):
            return super().poll(handle)

    @contextmanager
    def _under(self, call: str) -> Iterator[None]:
        fault = next((one for one in self.faults if one.times and _matches(one.match, call)), None)
        if fault is not None:
            fault.times -= 1
            if fault.effect == "fail":
                raise ERRORS[fault.error](fault.detail)
            self.hurt.next_write = {"lost-answer": "lost", "hang": "lost", "task-fail": "cut"}.get(fault.effect, "")
        try:
            yield
        finally:
            self.hurt.next_write = ""


def _matches(pattern: str, call: str) -> bool:
    return fnmatchcase(call.replace("[", "<"), pattern.replace("[", "<"))


# --- the rig --------------------------------------------------------------------------------------


class RealClock:
    """Time that passes by itself."""

    def tick(self, seconds: float = 0.5) -> None:
        """Let a little of it pass, whatever was asked for."""
        threading.Event().wait(min(seconds, 0.25))


class KubernetesRig:
    """The driver on a cluster of the lab."""

    lacks = LACKS
    address = "http://"
    reachable_from = "cluster"

    def __init__(self, cluster: LabCluster) -> None:
        """Use a cluster that runs and is furnished."""
        self.clock = RealClock()
        self.api: Api = cluster.api()
        self.driver = HurtDriver(settings_for(cluster))
        self.driver.play = self._play_acceptance
        self._foreign: list[str] = []

    def backend(self, unit: Any) -> str:
        """Return how a replica's address ends."""
        return f"-{unit.index}"

    def fault(self, match: str, effect: str, **options: Any) -> None:
        """Have one."""
        known = {name: value for name, value in options.items() if name in {"times", "error", "detail"}}
        self.driver.faults.append(Fault(match, effect, **known))

    def mend(self) -> None:
        """Have none."""
        self.driver.faults.clear()

    def settings(self, **changes: Any) -> None:
        """A cluster has none of the sandbox's."""

    def foreign_object(self, name: str) -> None:
        """Make a namespace of this name that is not ours."""
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self._foreign.append(name)

    def foreign_use(self, name: str, host: str, windows: list[tuple[str, int, str]]) -> None:
        """Let somebody else's pod run with claims on these devices."""
        namespace = f"foreign-{uuid.uuid4().hex[:8]}"
        self.foreign_object(namespace)
        published = {(one["gpu"], one["start"], one["profile"]): one["uuid"] for one in self._published(host)}
        claims = []
        for number, window in enumerate(windows):
            claims.append(f"c{number}")
            condition = f"device.attributes['gpu.nvidia.com'].uuid == '{published[window]}'"
            request = {
                "deviceClassName": "mig.nvidia.com" if window[2] else "gpu.nvidia.com",
                "selectors": [{"cel": {"expression": condition}}],
            }
            self.api.create(
                {
                    "apiVersion": "resource.k8s.io/v1",
                    "kind": "ResourceClaim",
                    "metadata": {"name": claims[-1], "namespace": namespace},
                    "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
                }
            )
        container = {
            "name": "x",
            "image": "x",
            "resources": {"claims": [{"name": one} for one in claims]},
        }
        spec = {
            "nodeSelector": {"kubernetes.io/hostname": host},
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "resourceClaims": [{"name": one, "resourceClaimName": one} for one in claims],
        }
        meta = {"name": name, "namespace": namespace}
        self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        self._await(lambda: dig(self.api.get("v1", "Pod", name, namespace), "status", "phase") == "Running")

    def _published(self, host: str) -> list[Object]:
        found = []
        for one in self.api.list("resource.k8s.io/v1", "ResourceSlice", fields=f"spec.nodeName={host}"):
            for device in one["spec"].get("devices") or []:
                told = {name: value.get("string", "") for name, value in device["attributes"].items()}
                gpu = told.get("parentUUID") or told["uuid"]
                start = int(device["name"].rpartition("-")[2]) if told["type"] == "mig" else 0
                found.append({"gpu": gpu, "start": start, "profile": told.get("profile", ""), "uuid": told["uuid"]})
        return found

    def _play_acceptance(self) -> None:
        """Have each acceptance pod that runs end with what `nvidia-smi -L` would print in it."""
        place = self.driver.settings.system_namespace
        for pod in self.api.list("v1", "Pod", namespace=place, labels=EVERYTHING):
            name = name_of(pod)
            if not name.startswith("tn-accept-") or dig(pod, "status", "phase") != "Running":
                continue
            node = pod["spec"]["nodeName"]
            claim = self.api.get("resource.k8s.io/v1", "ResourceClaim", name, place)
            given = [
                self._use(claim or {}, name, str(one["pool"]), str(one["device"]))
                for one in dig(claim, "status", "allocation", "devices", "results", default=[])
            ]
            seen = [(int(use["device"].rpartition("-")[2]), use["profile"], use["start"]) for use in given]
            lines = devices.listing(node, gpu_catalogue.product("H100-80GB").names[0], seen)
            over = {"exitCode": 0, "reason": "Completed", "message": "\n".join(lines) + "\n"}
            status = {
                "phase": "Succeeded",
                "containerStatuses": [
                    {
                        "name": "acceptance", "image": "x", "imageID": "x", "ready": False, "restartCount": 0,
                        "state": {"terminated": over},
                    }
                ],
            }  # fmt: skip
            self.api.patch("v1", "Pod", name, {"status": status}, namespace=place, subresource="status")

    def host_health(self, host: str, *, healthy: bool) -> None:
        """Not of a cluster here."""
        raise NotImplementedError

    def gpu_health(self, device: str, *, healthy: bool) -> None:
        """Not of a cluster here."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """Return everything that carries our mark."""
        found = []
        for api, kind in [("v1", "Namespace"), ("v1", "Pod"), *((one.api, one.kind) for one in INSIDE)]:
            if self.driver.cluster.serves(api, kind):
                found += [f"{kind} {name_of(one)}" for one in self.api.list(api, kind, labels=EVERYTHING)]
        return sorted(found)

    def truth(self) -> list[dict[str, Any]]:
        """Return who really has which device, by what the scheduler allocated."""
        found = []
        for claim in self.api.list("resource.k8s.io/v1", "ResourceClaim"):
            user = dig(claim, "status", "reservedFor", 0, "name")
            for given in dig(claim, "status", "allocation", "devices", "results", default=[]):
                if user is None:
                    continue
                found.append(self._use(claim, str(user), str(given["pool"]), str(given["device"])))
        return sorted(found, key=lambda use: (use["host"], use["device"], use["start"]))

    def _use(self, claim: Object, user: str, host: str, device: str) -> dict[str, Any]:
        match = re.fullmatch(r"gpu-(\d+)(?:-mig-(.+)-\d+-(\d+))?", device)
        assert match is not None
        profile = re.sub(r"^(\dg)(.+)$", r"\1.\2", match[2] or "")
        size = gpu_catalogue.profile("H100-80GB", profile).size
        return {
            "host": host,
            "device": f"{host}-gpu-{match[1]}",
            "start": int(match[3] or 0),
            "size": size,
            "profile": profile,
            "unit": labels(claim).get(UNIT_LABEL, ""),
            "name": user if UID_LABEL not in labels(claim) else name_of(claim),
        }

    def stored(self) -> str:
        """Return everything of ours that the server keeps where people may read it, events included: no Secrets."""
        kinds = [("v1", "Namespace"), ("v1", "Pod"), *((one.api, one.kind) for one in INSIDE if one.kind != "Secret")]
        found = [
            one for api, kind in kinds if self.driver.cluster.serves(api, kind) for one in self.api.list(api, kind)
        ]
        return json.dumps([*found, *self.api.list("v1", "Event")])

    def close(self) -> None:
        """Take everything away and wait until it is gone: the next test has the same nodes."""
        self.mend()
        # A namespace that still has pods when its removal begins takes twice as long: what would make them anew first.
        for kind in ("Deployment", "ReplicaSet"):
            for one in self.api.list("apps/v1", kind, labels=EVERYTHING):
                self.api.delete("apps/v1", kind, name_of(one), one["metadata"]["namespace"])
        for pod in self.api.list("v1", "Pod", labels=EVERYTHING):
            self.api.delete("v1", "Pod", name_of(pod), pod["metadata"]["namespace"], grace_s=0)
        for kind in access.MADE:
            for one in self.api.list(kind.api, kind.kind, namespace=rbac.ACCESS_NAMESPACE, labels=EVERYTHING):
                self.api.delete(kind.api, kind.kind, name_of(one), rbac.ACCESS_NAMESPACE)
        names = [name_of(one) for one in self.api.list("v1", "Namespace", labels=EVERYTHING)]
        for name in (*names, *self._foreign):
            self.api.delete("v1", "Namespace", name)
        self._await(lambda: not self.truth() and not self.leftovers())
        self.driver.close()
        self.api.close()

    def _await(self, is_so: Any, *, seconds: float = 60.0) -> None:
        for _ in range(int(seconds / 0.2)):
            if is_so():
                return
            threading.Event().wait(0.2)
        msg = "not so in time"
        raise AssertionError(msg)
