"""Attempts: objects that a member or an owner must be refused, each with the words of the right refusal.

All are dry runs: admission answers as it would in earnest, nothing is started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final
from uuid import uuid4

from provisioners.driver import DriverError, IsolationCheck
from provisioners.kubernetes import admission
from provisioners.kubernetes.boundary import DEFAULT_DENY, QUOTA
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.isolation.checks import attempt, check, judged, refused
from provisioners.kubernetes.objects import Object, dig
from provisioners.kubernetes.settings import Settings

_POD_SECURITY: Final = ("violates PodSecurity",)


class Attempts:
    """What is tried in one namespace."""

    def __init__(self, settings: Settings, namespace: str, gpu_resources: Collection[str]) -> None:
        """`gpu_resources` are the devices that nodes of the cluster offer."""
        self._namespace, self._gpus = namespace, gpu_resources
        registry = settings.allowed_registries[0] if settings.allowed_registries else "registry.invalid/"
        self._image = f"{admission.prefix(registry)}tenantry/certificate@sha256:{'0' * 64}"

    def of_member(self, member: Cluster) -> Iterator[IsolationCheck]:
        """Try what a member must be refused, one object after the other."""
        gpu = min(self._gpus, default="nvidia.com/gpu")
        gpus = {
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "10m", "memory": "16Mi", gpu: "1"},
            }
        }
        root = {"runAsNonRoot": False, "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}
        port = {"ports": [{"containerPort": 80, "hostPort": 80}]}
        claim = [{"name": "gpu", "resourceClaimName": "tn-ep-of-another-0"}]
        foreign = f"docker.io/library/busybox@sha256:{'0' * 64}"
        visible = {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}
        attempts: tuple[tuple[str, tuple[tuple[str, Object, tuple[str, ...]], ...]], ...] = (
            ("MTB-PL1-BC-CPI-3", (("a capability is added", self._pod(
                {"securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}}), _POD_SECURITY),)),
            ("MTB-PL1-BC-CPI-4", (("it runs as root", self._pod(securityContext=root), _POD_SECURITY),)),
            ("MTB-PL1-BC-CPI-5", (("it is privileged", self._pod(
                {"securityContext": {"privileged": True, "allowPrivilegeEscalation": True}}), _POD_SECURITY),)),
            ("MTB-PL1-BC-CPI-6", (("it raises privileges", self._pod(
                {"securityContext": {"allowPrivilegeEscalation": True}}), _POD_SECURITY),)),
            ("MTB-PL1-BC-HI-1", (("it mounts a directory of the node", self._pod(
                volumes=[{"name": "host", "hostPath": {"path": "/"}}]), _POD_SECURITY),)),
            ("MTB-PL1-BC-HI-1-ports", (("a service takes a port of nodes", self._service("NodePort"),
                                        ("of type ClusterIP", "exceeded quota")),)),
            ("MTB-PL1-BC-HI-3", (("it is in the node's network", self._pod(hostNetwork=True), _POD_SECURITY),
                                 ("it takes a port of the node", self._pod(port), _POD_SECURITY))),
            ("MTB-PL1-BC-HI-4", (("it sees the node's processes", self._pod(hostPID=True), _POD_SECURITY),)),
            ("MTB-PL1-BC-HI-5", (("it shares the node's memory", self._pod(hostIPC=True), _POD_SECURITY),)),
            ("TEN-1-claim", (("it uses a claim that is not its own", self._pod(resourceClaims=claim),
                              ("has no placement", "uses a claim")),)),
            ("TEN-2-image", (
                ("its image is not pinned", self._pod({"image": f"{self._image.partition('@')[0]}:latest"}),
                 ("pinned by digest",)),
                ("its image is from elsewhere", self._pod({"image": foreign}), ("platform's registries",)))),
            ("TEN-3-node", (
                ("it asks for a GPU without a placement", self._pod(gpus), ("has no placement", "not on the node")),
                ("it names its node", self._pod(nodeName="certificate"), ("leave nodeName out",)),
                ("it asks the GPU runtime for all devices", self._pod(visible), ("reach for devices",)))),
        )  # fmt: skip
        for key, tries in attempts:
            yield judged(key, [attempt(member, what, obj, words) for what, obj, words in tries])

    def of_owner(self, owner: Cluster) -> IsolationCheck:
        """Try to change what the platform shares with a tenant."""
        head = {"namespace": self._namespace}
        tries = (
            (
                "an owner rewrites the parameters of admission",
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": admission.PARAMS, **head},
                 "data": {"registries": "/"}},
                ("the platform's",),
            ),
            (
                "an owner opens the network",
                {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                 "metadata": {"name": DEFAULT_DENY, **head}, "spec": {"podSelector": {}, "ingress": [{}]}},
                ("cannot patch",),
            ),
            (
                "an owner raises the quota",
                {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": QUOTA, **head},
                 "spec": {"hard": {"pods": "9999"}}},
                ("cannot patch",),
            ),
        )  # fmt: skip
        return judged("MTB-PL1-BC-CPI-2", [attempt(owner, what, obj, words) for what, obj, words in tries])

    def pulling(self, member: Cluster) -> IsolationCheck:
        """Try to use an image that lies on the node already."""
        key = "MTB-PL1-CC-DI-1"
        try:
            made = member.apply(self._pod({"imagePullPolicy": "IfNotPresent"}), dry_run=True)
        except DriverError as error:
            return judged(key, [refused("an image is taken from the node's cache", error, ("imagePullPolicy",))])
        policy = str(dig(made, "spec", "containers", 0, "imagePullPolicy", default=""))
        holes = [] if policy == "Always" else [f"an image is taken from the node's cache ({policy})"]
        return check(key, holes, "IfNotPresent was turned into Always.")

    def _pod(self, container: Object | None = None, **spec: Any) -> Object:
        """Return a pod that is let through, with changes."""
        made: Object = {
            "name": "main",
            "image": self._image,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "10m", "memory": "16Mi"},
            },
        }
        for key, value in (container or {}).items():
            made[key] = {**made[key], **value} if isinstance(value, dict) and isinstance(made.get(key), dict) else value
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"certificate-{uuid4().hex[:8]}", "namespace": self._namespace},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [made],
            }
            | spec,
        }  # fmt: skip

    def _service(self, kind: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"certificate-{uuid4().hex[:8]}", "namespace": self._namespace},
            "spec": {"type": kind, "selector": {"app": "certificate"}, "ports": [{"port": 80}]},
        }
