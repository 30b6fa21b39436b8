"""What every pod of ours has in common: how values become argv and environment, and how little it may do. Pure.

Kubernetes replaces `$(NAME)` in `command`, `args` and `env[].value`; every `$` of a value is doubled, so nothing that
a tenant or a catalogue wrote is ever replaced by anything (kubernetes/third_party/forked/golang/expansion). Secrets
come by `secretKeyRef` only, so they stand in no pod's spec. Names that would reach past the container's own
share of a GPU, or change what code it loads, are refused.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from provisioners.driver import DriverRejected, Ref, Secret
from provisioners.kubernetes.objects import COMPONENT_LABEL, STEP_LABEL, UID_LABEL, UNIT_LABEL, Object, mark, step_label
from provisioners.kubernetes.settings import Settings

USER: Final = 2000
"""Uid and gid of our containers; any but 0 will do, images must not count on an entry for it."""
GATEWAY: Final = "gateway"
REPLICA: Final = "replica"
"""Values of `COMPONENT_LABEL` on pods."""
NFS_DRIVER: Final = "nfs.csi.k8s.io"
"""The CSI driver by which pods mount a mirror."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FOREIGN_VARIABLES: Final = re.compile(
    r"NVIDIA_.*|CUDA_VISIBLE_DEVICES|LD_.*|PYTHON(PATH|HOME|STARTUP)|KUBERNETES_.*|VLLM_SERVER_DEV_MODE|GPU_DEVICE.*"
)
"""With the legacy runtime `NVIDIA_VISIBLE_DEVICES=all` shows every GPU of the node (kubernetes-gpu facts, 7)."""
_CONTROL: Final = re.compile(r"[\x00\ud800-\udfff]")
"""No argv and no environment can hold NUL; a lone surrogate is no text at all."""


def escaped(value: str) -> str:
    """Return `value` as it must be written so that the kubelet's expansion gives it back. Raises `DriverRejected`."""
    if _CONTROL.search(value):
        msg = "an argument or a variable of the model server holds a character that no program can be given"
        raise DriverRejected(msg)
    return value.replace("$", "$$")


def argv(words: Sequence[str]) -> list[str]:
    """Return a command line for `command`. Raises `DriverRejected` for one without a program."""
    if not words or not words[0]:
        msg = "the model server's command line is empty"
        raise DriverRejected(msg)
    return [escaped(word) for word in words]


def environment(
    given: Mapping[str, str], ours: Mapping[str, str], *, secrets: Iterable[str] = (), secret_name: str = ""
) -> list[Object]:
    """Return `env`: `given`, over it `ours`, then one entry per name of `secrets` that refers to the Secret.

    Each name stands once (the list is merged by name). Raises `DriverRejected` for a name that is none or that
    is not for tenants to set.
    """
    plain = {**given, **ours}
    hidden = sorted(set(secrets))
    for name in (*given, *hidden):
        check_variable(name)
    shown: list[Object] = [
        {"name": name, "value": escaped(plain[name])} for name in sorted(plain) if name not in hidden
    ]
    return shown + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret_name, "key": name}}} for name in hidden
    ]


def check_variable(name: str) -> None:
    """Refuse what is no name of a variable, or not a tenant's to set. Raises `DriverRejected`."""
    if not _VARIABLE.fullmatch(name) or _FOREIGN_VARIABLES.fullmatch(name):
        msg = f"the variable {name[:60]!r} cannot be set for a model server"
        raise DriverRejected(msg)


def secret(name: str, namespace: str, values: Mapping[str, Secret]) -> Object:
    """Return a Secret that holds `values` by variable name. The one place where they are plain text."""
    for key in values:
        check_variable(key)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.reveal().encode()).decode() for key, value in sorted(values.items())},
    }


def template_labels(ref: Ref, step: str, component: str, **more: str) -> dict[str, str]:
    """Return a pod template's labels: our mark, the step that wants the pod, and what it is to network policies."""
    return {**mark(ref), STEP_LABEL: step_label(step), COMPONENT_LABEL: component, **more}


def pod_security() -> Object:
    """Return the pod's security context: what Pod Security `restricted` asks for."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, read_only_root: bool) -> Object:
    """Return a container's security context."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only_root,
        "runAsNonRoot": True,
    }


def http_probe(
    path: str, *, period_s: int, timeout_s: int, failures: int, port: str = "http", scheme: str = "HTTP"
) -> Object:
    """Return a probe of a container's port; with HTTPS the kubelet believes any certificate."""
    asked = {"path": path, "port": port} | ({} if scheme == "HTTP" else {"scheme": scheme})
    return {
        "httpGet": asked,
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def scratch(name: str, size: str, *, in_memory: bool = False) -> Object:
    """Return an emptyDir volume with an upper size."""
    volume: dict[str, Any] = {"sizeLimit": size}
    if in_memory:
        volume["medium"] = "Memory"
    return {"name": name, "emptyDir": volume}


def nfs_volume(name: str, mirror: str, *, read_only: bool) -> Object:
    """Return the volume of a mirror `nfs://server/export`.

    Pod Security `restricted` allows no `nfs` volume, but one by a CSI driver. Source: kubernetes-csi/csi-driver-nfs,
    inline volumes; Pod Security Standards, "Volume Types".
    """
    server, _, export = mirror.removeprefix("nfs://").partition("/")
    attributes = {"server": server, "share": f"/{export}"}
    return {"name": name, "csi": {"driver": NFS_DRIVER, "readOnly": read_only, "volumeAttributes": attributes}}


# --- how pods are reached and watched -----------------------------------------------------------------


def gateway_service(name: str, namespace: str, chosen: Mapping[str, str], settings: Settings) -> Object:
    """Return a Service at which callers reach a gateway: with TLS where the gateway ends it."""
    if settings.ends_tls:
        return service(name, namespace, chosen, port=443, target="https")
    return service(name, namespace, chosen, port=80, target="http")


def service(name: str, namespace: str, chosen: Mapping[str, str], *, port: int, target: str) -> Object:
    """Return a Service of the cluster's own addresses."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP",
            "selector": dict(chosen),
            "ports": [{"name": target, "port": port, "targetPort": target, "protocol": "TCP"}],
        },
    }


def pod_monitor(name: str, namespace: str, chosen: Mapping[str, str], port: str) -> Object:
    """Return what tells Prometheus (its operator) to read the pods' metrics."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": dict(chosen)},
            "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "15s"}],
            "podTargetLabels": [UID_LABEL, UNIT_LABEL],
        },
    }
