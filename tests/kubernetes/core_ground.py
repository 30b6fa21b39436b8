"""The control plane's own sweeps on a cluster of the lab: rows, passes and inventory in this process, all else real.

The clock of the passes is moved by hand; the cluster's is the real one, so waiting for pods takes real time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from controlplane.labs.kubernetes.client import Api
from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
from provisioners import sweep
from provisioners.kinds import PASSES
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.passes import Engine
from tenants.models import Host, Provider
from tests import factories
from tests.conformance.kubernetes_rig import settings_for
from tests.drive import FakeClock

INVENTORY_S = 120.0
"""More than the pause between two snapshots, whatever the dice say."""


@dataclass(slots=True)
class CoreOnCluster:
    """One cluster, connected as a provider, with all of its hosts open."""

    cluster: LabCluster
    api: Api
    driver: KubernetesDriver
    provider: Provider
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def engine(self) -> Engine:
        """Return what passes run with."""
        return Engine(clock=self.clock, driver_of=lambda _provider: self.driver, base_s=0.5, jitter=lambda: 1.0)

    def sweep(self) -> int:
        """Let a minute or two go by, so that a snapshot is due, and sweep; return the passes made."""
        self.clock.move(INVENTORY_S)
        Provider.objects.filter(pk=self.provider.pk).update(due_at=self.clock())
        return sweep.sweep(self.engine)

    def drive(self, until: Callable[[], bool], *, most: int = 200) -> None:
        """Sweep until a condition holds; the cluster gets a moment in between."""
        for _ in range(most):
            sweep.sweep(self.engine)
            if until():
                return
            self.clock.move(1)
            threading.Event().wait(0.1)
        raise AssertionError(f"not reached after {most} sweeps:\n{self.explain()}")

    def settle(self, *, most: int = 20) -> None:
        """Sweep until a whole sweep makes no changing call and passes no row but the provider's."""
        for _ in range(most):
            before = self.driver.cluster.writes
            if self.sweep() <= 1 and self.driver.cluster.writes == before:
                return
            threading.Event().wait(0.2)
        raise AssertionError(f"it does not come to rest:\n{self.explain()}")

    def look_until(self, so: Callable[[], bool], *, most: int = 60) -> None:
        """Take snapshots until they show something: an API server that just got new kinds answers 429 for a while."""
        for _ in range(most):
            self.clock.move(INVENTORY_S)
            Provider.objects.update(due_at=self.clock() - timedelta(seconds=1), breaker_failures=0)
            sweep.sweep(self.engine)
            if so():
                return
            threading.Event().wait(0.5)
        raise AssertionError(f"not shown after {most} snapshots:\n{self.explain()}")

    def explain(self) -> str:
        """Return what stands where, for failing tests."""
        lines = []
        for kind in PASSES.values():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                said = [f"{c['type']}={c['status']} {c['reason']} {c['message']}" for c in row.conditions]
                lines.append(f"{kind.word} {row.phase} due={row.due_at} failures={row.failures} {said}")
        return "\n".join(lines)

    def close(self) -> None:
        """Give the connections back."""
        self.driver.close()
        self.api.close()


def connected(cluster: LabCluster, **settings: Any) -> CoreOnCluster:
    """Connect a furnished cluster and open its hosts."""
    driver = KubernetesDriver(replace(settings_for(cluster), **settings))
    found = driver.capabilities()
    provider = factories.provider(
        kind="kubernetes",
        capabilities={
            "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
            "bindings": sorted(str(binding) for binding in found.bindings),
        },
        due_at=None,
    )
    made = CoreOnCluster(cluster, cluster.api(), driver, provider)
    made.look_until(Host.objects.exists)
    Host.objects.update(state="open")
    made.look_until(lambda: Host.objects.filter(placeable=True).exists())
    return made


# --- kinds of other projects ------------------------------------------------------------------------------


def definition(group: str, kind: str, plural: str) -> dict[str, Any]:
    """Return a definition of one kind that takes any fields: the driver only asks whether it is served."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def volume(number: int) -> dict[str, Any]:
    """Return a volume of the class `lab` that any claim may be bound to."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"lab-{number}"},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "lab",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"/tmp/lab-{number}"},
        },
    }


STORAGE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "lab"},
    "provisioner": "kubernetes.io/no-provisioner",
    "volumeBindingMode": "WaitForFirstConsumer",
}


def accept_routes(api: Api) -> None:
    """Play the gateway controller: every route is taken."""
    for route in api.list("gateway.networking.k8s.io/v1", "HTTPRoute"):
        generation = route["metadata"]["generation"]
        seen = (route.get("status") or {}).get("parents") or []
        if seen and all(one["observedGeneration"] == generation for one in seen[0]["conditions"]):
            continue
        conditions = [
            {
                "type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind in ("Accepted", "ResolvedRefs")
        ]  # fmt: skip
        parent = {"parentRef": route["spec"]["parentRefs"][0], "controllerName": "lab/x", "conditions": conditions}
        api.patch(
            "gateway.networking.k8s.io/v1", "HTTPRoute", route["metadata"]["name"], {"status": {"parents": [parent]}},
            namespace=route["metadata"]["namespace"], subresource="status",
        )  # fmt: skip
