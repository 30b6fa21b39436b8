"""`python -m controlplane.labs.demo`: one tenant on both sides at once, for `make demo LAB=all`.

A namespace and an endpoint on a lab Kubernetes cluster, an endpoint in a VM and a machine on a lab vCenter, all of one
tenant, Ready and used at the same time; then everything is given back. `--stop` stops what was started.
"""

from __future__ import annotations

import base64
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
import yaml

from controlplane.cli.client import Json
from controlplane.cli.walk import OPERATOR, Opened, Route, Timeline, Walk, WalkFailed, unit_of
from controlplane.labs import showing
from controlplane.labs.connecting import command_line
from controlplane.labs.kubernetes import demo as kubernetes
from controlplane.labs.vsphere import demo as vsphere

NAMESPACE: Final = Route("a namespace with a MIG device", "hello-space", "k8s-dra", "H100-80GB/1g.10gb")
Walked = list[tuple[Walk, Opened]]


@dataclass
class NamespaceWalk(Walk):
    """A namespace's walk: it is used by asking its cluster with a credential of one's own."""

    noun: str = "namespaces"
    first_use: str = "the first answer of its cluster"

    def _what(self, path: Route) -> Json:
        return {"units": [unit_of(path)]}

    def _first_use(self, ready: Json, key: str) -> None:
        """List pods as Mia would, by a kubeconfig. Raises `WalkFailed`."""
        del key
        self.timeline.say("Mia", f"tenantry kubeconfig {ready['name']} --static")
        server = server_of(yaml.safe_load(command_line(self.mia, "kubeconfig", ready["name"], "--static")))
        with httpx.Client(verify=server.trust, trust_env=False, timeout=30.0) as http:
            own, others = (
                http.get(
                    f"{server.url}/api/v1/namespaces/{name}/pods", headers={"Authorization": f"Bearer {server.token}"}
                ).status_code
                for name in (server.namespace, "kube-system")
            )
        if (own, others) != (httpx.codes.OK, httpx.codes.FORBIDDEN):
            raise WalkFailed(f"the cluster answers {own} for her namespace and {others} for kube-system")
        self.timeline.say("cluster", "200 for her namespace, 403 for another one", style="bold green")

    def _further_use(self, ready: Json, key: str) -> None:
        """Nothing else."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a kubeconfig leads."""

    url: str
    namespace: str
    token: str
    trust: ssl.SSLContext


def server_of(config: Json) -> Server:
    """Return where the current context of a kubeconfig leads. Raises `KeyError`, `ValueError` for another document."""
    cluster = config["clusters"][0]["cluster"]
    pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return Server(
        cluster["server"].rstrip("/"),
        config["contexts"][0]["context"]["namespace"],
        config["users"][0]["user"]["token"],
        ssl.create_default_context(cadata=pem),
    )


def walks(people: showing.People, timeline: Timeline) -> dict[str, float]:
    """Start, connect, open everything, use it, give it back. Raises `showing.FAILURES`."""
    timeline.title("A cluster and a vCenter")
    site = kubernetes.sites()[0]
    cluster, vcenter = kubernetes.start(site, timeline), vsphere.start(timeline)
    before = vsphere.inventory(vcenter)
    kubernetes.connect(site, cluster, people[OPERATOR], timeline)
    vsphere.connect(vcenter, people[OPERATOR], timeline)
    nodes = {node.name: node for node in site.nodes}
    in_cluster = kubernetes.LabWalk(people, timeline, clusters={site.provider: cluster}, nodes=nodes)
    limits = in_cluster.limits()
    opened = _opened(
        timeline,
        (
            (NamespaceWalk(people, timeline), NAMESPACE),
            (in_cluster, kubernetes.PATHS[0]),
            (vsphere.VsphereWalk(people, timeline, vcenter=vcenter), vsphere.ENDPOINT),
            (vsphere.MachineWalk(people, timeline, vcenter=vcenter), vsphere.MACHINE),
        ),
    )
    for walker, one in reversed(opened):
        timeline.title(f"Giving back {one.ready['name']}")
        walker.give_back(one)
    in_cluster.restore(limits)
    vsphere.nothing_left(vcenter, before, timeline)
    return {one.ready["name"]: one.took_s for _, one in opened}


def _opened(timeline: Timeline, asked: Sequence[tuple[Walk, Route]]) -> Walked:
    """Open one after the other, and see that all of them are Ready then. Raises `WalkFailed`."""
    opened: Walked = []
    for number, (walker, path) in enumerate(asked, start=1):
        timeline.title(f"{number}. {path.title[0].upper()}{path.title[1:]}")
        opened.append((walker, walker.open(path)))
    timeline.title("All at once")
    phases: dict[str, Any] = {one.ready["name"]: walker.read(one.ready)["phase"] for walker, one in opened}
    if set(phases.values()) != {"Ready"}:
        raise WalkFailed(f"not all are Ready at once: {phases}")
    timeline.say("tenantry", f"Ready at once, of one tenant on both sides: {', '.join(phases)}", style="bold green")
    return opened


def stop() -> None:
    """Stop what a walk has started."""
    vsphere.vcenter_of().stop()
    kubernetes.cluster_of(kubernetes.sites()[0]).stop()


def main(arguments: list[str]) -> int:
    """Walk, or stop."""
    told = (
        "One tenant on Kubernetes and on vSphere at once. Both speak their real protocols; nodes, hosts, GPUs, "
        "containers and guests are SIMULATED."
    )
    return showing.main("controlplane.labs.demo", __doc__, arguments, told=told, walks=walks, stop=stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
