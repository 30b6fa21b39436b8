"""Our view of the lab's shared cluster, for tests of GPUs and layouts: driver, nodes of one's own, waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID, uuid4

from provisioners.driver import Kind, Ref, Secret
from provisioners.kubernetes import admission, inventory
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import UNIT_LABEL, mark
from provisioners.kubernetes.settings import Settings

pause = threading.Event().wait
IMAGE = "registry.lab.internal/stand-in@sha256:" + "0" * 64
T = TypeVar("T")


def until(look: Callable[[], T], *, within_s: float = 40.0) -> T:
    """Return what `look` returns once it is true."""
    end = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {within_s} s"
        pause(0.2)
    return found


def driver_of(cluster: Any) -> KubernetesDriver:
    """Return the driver as the lab's administrator."""
    settings = Settings(
        slug="lab", url=cluster.url, ca_pem=cluster.ca_pem, token=Secret(cluster.admin_token), access="lab",
        lab=True, reads_per_s=500, writes_per_s=500,
    )  # fmt: skip
    return KubernetesDriver(settings)


def seen_of(driver: KubernetesDriver) -> inventory.Inventory:
    """Return what the whole cluster is known as."""
    return inventory.understood(inventory.read(driver.cluster))


def unguard(api: Any, namespace: str) -> None:
    """Take our admission policies away, which other tests left: pods that are made by hand have no placement."""
    from controlplane.labs.kubernetes.client import Refused

    for one in admission.cluster_objects():
        api.delete(one["apiVersion"], one["kind"], one["metadata"]["name"])
    container = {"name": "c", "image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": {"containers": [container]}}

    def is_admitted() -> bool:
        try:
            api.request("POST", api.path("v1", "Pod", namespace=namespace), body=pod, params={"dryRun": "All"})
        except Refused as refused:
            if refused.status not in {403, 422}:
                raise
            return False
        return True

    until(is_admitted)  # the API server learns by a watch that they are gone


class Tenancy:
    """A namespace with our mark, made by hand, and pods in it."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.tenant = uuid4()
        self.boundary = Ref(Kind.BOUNDARY, uuid4(), self.tenant)
        self.endpoint = Ref(Kind.ENDPOINT, uuid4(), self.tenant)
        self.name = self.boundary.name
        meta = {"name": self.name, "labels": dict(mark(self.boundary))}
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        unguard(api, self.name)

    def pod(
        self, name: str, request: Any, unit: UUID | None = None, *, namespace: str = "", **spec: Any
    ) -> dict[str, Any]:
        """Make claims and a pod as `gpu.request` says; of ours where `unit` is given."""
        namespace = namespace or self.name
        labels = {**mark(self.endpoint), UNIT_LABEL: str(unit)} if unit is not None else {}
        for claim in request.claims:
            claim["metadata"]["labels"] = {**claim["metadata"].get("labels", {}), **labels}
            self.api.create(claim)
        container = {
            "name": "c",
            "image": IMAGE,
            "resources": {
                "limits": {"cpu": "1", "memory": "1Gi", **request.resources},
                "claims": list(request.container_claims),
            },
        }
        made: dict[str, Any] = self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels or {"app": name}},
                "spec": {
                    "nodeSelector": dict(request.node_selector),
                    "tolerations": list(request.tolerations),
                    "resourceClaims": list(request.pod_claims),
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                    **spec,
                },
            }
        )
        return made

    def bound(self, name: str, namespace: str = "") -> dict[str, Any]:
        """Return a pod once the scheduler has put it on a node."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] | None = self.api.get("v1", "Pod", name, namespace or self.name)
            return found if found and found["spec"].get("nodeName") else None

        return until(look) or {}

    def end(self) -> None:
        """Take the namespace and what is in it away."""
        for pod in self.api.list("v1", "Pod", namespace=self.name):
            self.api.delete("v1", "Pod", pod["metadata"]["name"], self.name, grace_s=0)
        self.api.delete("v1", "Namespace", self.name)
