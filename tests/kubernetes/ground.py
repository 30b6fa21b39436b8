"""A cluster with our rights, policies and two tenants in it, for tests of admission, access and certificates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from provisioners.driver import BoundaryKind, BoundarySpec, DriverError, Kind, NamespaceSpec, Ref, Secret
from provisioners.kubernetes import access, admission, rbac
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import Object, uid_of
from provisioners.kubernetes.settings import Settings

REGISTRY = "registry.internal/"
IMAGE = f"{REGISTRY}app@sha256:{'0' * 64}"
NODE = "node-a"
MIG = "nvidia.com/mig-1g.10gb"


def eventually(check: Callable[[], Any], *, within_s: float = 10.0, what: str = "") -> Any:
    """Return the first true answer of `check`; fail after `within_s`."""
    until = time.monotonic() + within_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < until, f"not within {within_s} s: {what}"
        time.sleep(0.1)  # noqa: TID251  asks a real server again


@dataclass
class Tenancy:
    """One tenant's boundary with an owner, a member and a viewer in it."""

    ref: Ref
    people: dict[str, str] = field(default_factory=lambda: {r: str(uuid4()) for r in ("owner", "member", "viewer")})

    @property
    def namespace(self) -> str:
        return self.ref.name

    def spec(self) -> BoundarySpec:
        return BoundarySpec(
            ref=self.ref, kind=BoundaryKind.NAMESPACE, tier="shared", generation=1, gateway=None, vcpu=8,
            memory_gib=32, storage_gib=50, gpu_resources={"H100-80GB.1g.10gb": 2, "H100-80GB": 2}, access=self.access(),
        )  # fmt: skip

    def handed_out(self, **changes: Any) -> NamespaceSpec:
        ref = Ref(Kind.NAMESPACE, UUID(int=self.ref.uid.int ^ 1), self.ref.tenant_uid)
        spec = NamespaceSpec(ref=ref, boundary=self.ref, generation=1, units=(), access=self.access())
        return replace(spec, **changes)

    def access(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((person, role) for role, person in self.people.items()))


class Ground:
    """What tests stand on: an administrator's client, the driver, two tenants."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admin = Cluster(settings)
        self.driver = KubernetesDriver(settings, cluster=self.admin)
        self._clients: dict[str, Cluster] = {}
        self.mine, self.other = (Tenancy(Ref(Kind.BOUNDARY, uuid4(), uuid4())) for _ in range(2))

    def build(self) -> None:
        for obj in (*rbac.objects(), *admission.cluster_objects()):
            self.admin.apply(obj)
        for one in (self.mine, self.other):
            self.make(one)
        eventually(self._refuses, within_s=30, what="policies take effect")

    def make(self, one: Tenancy) -> None:
        for step in self.driver.steps(one.spec()):
            self.driver.start(step)
        self.let_in(one)

    def let_in(self, one: Tenancy, **changes: Any) -> None:
        for step in self.driver.steps(one.handed_out(**changes)):
            self.driver.start(step)

    def _refuses(self) -> bool:
        try:
            self.admin.apply(pod(self.mine.namespace, image="elsewhere/x:latest"), dry_run=True)
        except DriverError:
            return True
        return False

    def acting(self, role: str, one: Tenancy | None = None) -> Cluster:
        """A client with the token of one person, kept."""
        whose = one or self.mine
        person = whose.people[role]
        if person not in self._clients:
            self._clients[person] = self.with_token(access.mint(self.admin, whose.ref, person).value)
        return self._clients[person]

    def with_token(self, token: Secret) -> Cluster:
        return Cluster(replace(self.settings, token=token, client_certificate=None, client_key=None))

    def tear_down(self) -> None:
        for one in (self.mine, self.other):
            found = self.admin.get("v1", "Namespace", one.namespace)
            if found is not None:
                self.admin.delete("v1", "Namespace", one.namespace, uid=uid_of(found), propagation="Background")
        for client in (self.admin, *self._clients.values()):
            client.close()


def pod(
    namespace: str, *, image: str = IMAGE, gpu: str = "", labels: dict[str, str] | None = None, **spec: Any
) -> Object:
    """Return a pod that Pod Security `restricted` takes, with changes."""
    container: Object = {
        "name": "main",
        "image": image,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"cpu": "100m", "memory": "64Mi", **({gpu: "1"} if gpu else {})},
        },
    }
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "try", "namespace": namespace, "labels": labels or {}},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            **spec,
        },
    }
