"""`python -m controlplane.labs.kubernetes.demo`: the golden path on two lab clusters, for `make demo LAB=kubernetes`.

Starts the clusters, gives the control plane the least rights that it needs (`deploy/kubernetes/rbac.yaml`, a token of
its own account), connects both as an operator does, and walks the path on each kind of node: GPUs of DRA that are
carved on demand, MIG devices that DRA publishes, MIG devices of the device plugin. What the ledger says is compared
with what the real scheduler and the lab's nodes really did. API, scheduler and admission are real; GPUs, containers
and models are simulated. `--stop` stops the clusters.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from controlplane.cli.client import Client, Json, pause
from controlplane.cli.walk import OPERATOR, TENANT, Route, Timeline, Walk, WalkFailed
from controlplane.labs import connecting, showing
from controlplane.labs.kubernetes import devices, furniture, slices
from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.cluster import Cluster
from controlplane.labs.kubernetes.nodes import Gpu, Kind, Node, gpu_node

RIGHTS: Final = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes" / "rbac.yaml"
ACCOUNT: Final = ("tenantry-system", "tenantry")
TOKEN_S: Final = 24 * 3600
REPORTED_WITHIN_S: Final = 30.0
"""From Ready until the ledger has the device that the provider named."""
_DIGEST: Final = "sha256:" + "0" * 64
IMAGES: Final = {
    "gateway_image": f"registry.lab.internal/tenantry/gateway@{_DIGEST}",
    "vllm_image": f"registry.lab.internal/vllm/vllm-openai@{_DIGEST}",
}
"""Nothing is pulled: the lab plays them."""


@dataclass(frozen=True, slots=True)
class Site:
    """One lab cluster and the provider that it is connected as."""

    provider: str
    site: str
    nodes: tuple[Node, ...]
    player: tuple[str, ...] = ()


def sites() -> tuple[Site, ...]:
    """Return the demo's two clusters."""
    carved = (("3g.40gb", 4), ("2g.20gb", 0), ("1g.10gb", 2), ("1g.10gb", 3))
    return (
        Site(
            "k8s-dra",
            "berlin",
            (
                furniture.SYSTEM_NODE,
                gpu_node("h100-parts", "H100-80GB", count=2, kind=Kind.PARTITIONABLE),
                gpu_node("a100-carved", "A100-80GB", count=2, kind=Kind.STATIC, layouts={0: carved, 1: carved}),
            ),
        ),
        Site(
            "k8s-plugin",
            "oslo",
            (
                furniture.SYSTEM_NODE,
                gpu_node("h100-mixed-a", "H100-80GB", count=2, layouts={0: carved, 1: carved}),
                gpu_node("h100-mixed-b", "H100-80GB", count=2, layouts={0: carved}),
            ),
            ("--choice", "adversarial"),
        ),
    )


PATHS: Final = (
    Route(
        "an endpoint on Kubernetes, its MIG device carved by DRA when the claim is allocated",
        "hello-parts", "k8s-dra", "H100-80GB/2g.20gb",
    ),
    Route(
        "an endpoint on Kubernetes, on one MIG device that DRA publishes",
        "hello-carved", "k8s-dra", "A100-80GB/3g.40gb",
    ),
    Route(
        "an endpoint on Kubernetes, its device chosen by the device plugin (adversarially)",
        "hello-plugin", "k8s-plugin", "H100-80GB/2g.20gb",
    ),
)  # fmt: skip


# --- clusters ---------------------------------------------------------------------------------------


def cluster_of(site: Site) -> Cluster:
    """Return a site's cluster, started or not."""
    return Cluster(f"demo-{site.provider}", player=site.player)


def start(site: Site, timeline: Timeline) -> Cluster:
    """Start a cluster with its nodes. Raises `LabError`."""
    began = time.monotonic()
    cluster = cluster_of(site)
    devices.write_truth(cluster.folder, site.nodes)
    cluster.start(tell=timeline.plain)
    with cluster.api() as api:
        furniture.furnish(api, site.nodes)
    names = ", ".join(node.name for node in site.nodes if node.gpus)
    took = time.monotonic() - began
    timeline.say("lab", f"cluster {cluster.name} is up after {took:.1f} s: {cluster.url}, simulated nodes {names}")
    return cluster


def rights(api: Api) -> str:
    """Give the control plane its least rights in a cluster and return a token of its account. Raises `LabError`."""
    for document in yaml.safe_load_all(RIGHTS.read_text()):
        if document:
            api.apply(document)
    namespace, name = ACCOUNT
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_S},
    }
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    answer = api.request("POST", path, body=request)
    token: str = answer["status"]["token"]
    return token


def provider_config(cluster: Cluster) -> dict[str, Any]:
    """Return what a lab cluster's provider is configured with."""
    namespace, labels = furniture.PROXY
    chosen = ",".join(f"{key}={value}" for key, value in labels.items())
    return {
        "url": cluster.url,
        "ca_pem": cluster.ca_pem,
        "access": "lab",
        "lab": True,
        **IMAGES,
        "proxy": f"{namespace}:{chosen}",
        "monitoring_namespace": furniture.MONITORING,
        "control_plane_cidrs": "127.0.0.1/32",
    }


# --- connecting, as an operator does ------------------------------------------------------------------


def connect(site: Site, cluster: Cluster, ole: Client, timeline: Timeline) -> None:
    """Connect a cluster, accept its hosts and open them, through the API. Raises `WalkFailed`, `CliError`."""
    with cluster.api() as api:
        token = rights(api)
    connecting.store(
        ole,
        name=site.provider,
        kind="kubernetes",
        site=site.site,
        config=provider_config(cluster),
        secrets={"token": token},
    )
    timeline.say("Ole", f"connects {site.provider} with the least rights that it needs and a token of its own account")
    wanted = {node.name for node in site.nodes if node.gpus}
    connecting.hand_over(ole, provider=site.provider, wanted=wanted, timeline=timeline)


# --- the walk -----------------------------------------------------------------------------------------


@dataclass
class LabWalk(Walk):
    """The walk, with a look into the clusters beside the ledger."""

    clusters: Mapping[str, Cluster] | None = None
    nodes: Mapping[str, Node] | None = None

    def _check_held(self, ready: Json) -> None:
        """Compare what the ledger holds with what scheduler and nodes did. Raises `WalkFailed`."""
        super()._check_held(ready)
        story = self._story_when_reported(ready)
        provider = story["boundary"]["provider"]
        cluster = (self.clusters or {})[provider]
        with cluster.api() as api:
            pods = api.list("v1", "Pod", labels=f"tenantry.internal/uid={ready['id']}")
            claims = api.list(slices.API, "ResourceClaim")
        held: dict[str, Counter[str]] = {}
        for unit in story["placement"]:
            for window in unit["windows"]:
                self._check_window(window, unit, pods, claims)
                held.setdefault(window["host"], Counter())[self._profile(window, unit)] += 1
        for host, profiles in held.items():
            node = (self.nodes or {})[host]
            if node.kind is Kind.DEVICE_PLUGIN:
                self._check_counts(node, cluster, profiles)
        wrong = devices.violations(cluster.folder)
        if wrong:
            raise WalkFailed("; ".join(wrong))

    def _story_when_reported(self, ready: Json) -> Json:
        """Return the endpoint's story once the ledger knows the device that the cluster has named."""
        end = time.monotonic() + REPORTED_WITHIN_S
        while True:
            story: Json = self.mia.get(f"/tenants/{TENANT}/endpoints/{ready['id']}/explain")
            self._tell(story)
            windows = [window for unit in story["placement"] for window in unit["windows"]]
            unnamed = [
                window
                for window in windows
                if not window["reported"] and (self.nodes or {})[window["host"]].kind is not Kind.DEVICE_PLUGIN
            ]
            if windows and not unnamed:
                return story
            if time.monotonic() > end:
                raise WalkFailed(f"the ledger was not told of the device in {REPORTED_WITHIN_S:.0f} s: {unnamed}")
            pause(0.4)

    def _check_window(self, window: Json, unit: Json, pods: list[Json], claims: list[Json]) -> None:
        nodes = {pod["spec"].get("nodeName") for pod in pods}
        if nodes != {window["host"]}:
            raise WalkFailed(f"the ledger says {window['host']}, the scheduler chose {sorted(map(str, nodes))}")
        node = (self.nodes or {})[window["host"]]
        if node.kind is Kind.DEVICE_PLUGIN:
            self.timeline.say("scheduler", f"bound the pod to {window['host']}, as the ledger says", style="green")
            return
        uids = {pod["metadata"]["uid"] for pod in pods}
        got = sorted(
            f"{result['pool']}/{result['device']}"
            for claim in claims
            if uids & {user["uid"] for user in (claim.get("status") or {}).get("reservedFor") or ()}
            for result in claim["status"]["allocation"]["devices"]["results"]
        )
        profile = next((p for p in node.model.profiles.values() if p.name == self._profile(window, unit)), None)
        wanted = f"{node.name}/{slices.device_name(Gpu(window['gpu']), profile, window['start'])}"
        if got != [wanted]:
            raise WalkFailed(f"the ledger says {wanted}, the scheduler allocated {got}")
        self.timeline.say("scheduler", f"allocated {wanted}: the ledger's very device", style="green")

    def _profile(self, window: Json, unit: Json) -> str:
        return str(window.get("profile") or unit.get("profile") or "")

    def _check_counts(self, node: Node, cluster: Cluster, held: Counter[str]) -> None:
        """See that as many devices of each profile are in use on the node as the ledger holds there (`held`)."""
        truth = devices.truths(cluster.folder)[node.name]
        real = Counter(slot.profile for held in truth.held.values() for _, slot in held)
        if real != held:
            raise WalkFailed(f"the ledger holds {_counted(held)} of {node.name}, and {_counted(real)} are in use")
        used = sum(slot.size or node.model.slices for held in truth.held.values() for _, slot in held)
        ledger = sum(
            device["slots"] - int(device["free"]).bit_count()
            for device in self.ole.items("/devices", most=1000)
            if device["host"] == node.name
        )
        if used != ledger:
            raise WalkFailed(f"{used} slots of {node.name} are in use, the ledger holds {ledger}")
        self.timeline.say("lab", f"in use on {node.name}: {_counted(real)}, as the ledger says; no slot more is held")


def _counted(profiles: Counter[str]) -> str:
    """Return how many of which profile, in words."""
    return ", ".join(f"{count} × {name or 'whole GPU'}" for name, count in sorted(profiles.items())) or "nothing"


def walks(people: showing.People, timeline: Timeline) -> dict[str, float]:
    """Start, connect and walk everything; return what each path took. Raises `showing.FAILURES`."""
    timeline.title("Two clusters")
    clusters = {site.provider: start(site, timeline) for site in sites()}
    for site in sites():
        connect(site, clusters[site.provider], people[OPERATOR], timeline)
    nodes = {node.name: node for site in sites() for node in site.nodes}
    took = {}
    for number, path in enumerate(PATHS, start=1):
        timeline.title(f"{number}. {path.title[0].upper()}{path.title[1:]}")
        took[path.title] = LabWalk(people, timeline, clusters=clusters, nodes=nodes).walk(path)
    return took


def stop() -> None:
    """Stop the demo's clusters; their data stays."""
    for site in sites():
        cluster_of(site).stop()


def main(arguments: list[str]) -> int:
    """Walk, or stop the clusters."""
    told = (
        "The golden path on a real Kubernetes control plane. Nodes, GPUs and containers are SIMULATED: "
        "the pods' programs run on this machine."
    )
    return showing.main("controlplane.labs.kubernetes.demo", __doc__, arguments, told=told, walks=walks, stop=stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
