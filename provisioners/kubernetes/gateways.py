"""The gateway in a tenant's namespace as objects: its one-time token, its state, its Service, its pod. Pure.

One pod, replaced and never doubled: two would be two holders of one identity. What it was started with shows on its
Deployment as a digest of the token; another token is another Secret, another folder of state and another pod.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping
from typing import Any, Final

from provisioners.driver import (
    MARK_DOMAIN,
    BoundarySpec,
    DriverRejected,
    GatewaySpec,
    NotSupported,
    Ref,
    Secret,
    Step,
)
from provisioners.kubernetes import pods
from provisioners.kubernetes.objects import COMPONENT_LABEL, UID_LABEL, Object, dig
from provisioners.kubernetes.pods import GATEWAY
from provisioners.kubernetes.settings import GATEWAY_PORT, Settings
from provisioners.steps import make
from tenants import endpoint_tls

GATEWAY_STEP: Final = "namespace.gateway"
GATEWAY_NAME: Final = "tn-gateway"
"""Name of the gateway's objects; the namespace is the boundary's own."""
GATEWAY_TOKEN: Final = "TENANTRY_GATEWAY_TOKEN"  # noqa: S105 - a variable's name
METRICS_PORT: Final = 9090
GATEWAY_VCPU: Final = "1"
GATEWAY_MEMORY: Final = "512Mi"
"""Room of one gateway; a namespace's quota holds it on top of the tenant's."""
TLS_SECRET: Final = f"{GATEWAY_NAME}-tls"
"""Secret that cert-manager writes."""
TLS_FOLDER: Final = "/tls"
NO_CERT_MANAGER: Final = (
    "the cluster serves no Certificate (cert-manager.io/v1): install cert-manager, or choose where certificates come "
    "from otherwise for this provider"
)
HOPELESS_EXIT: Final = 3
"""Exit status of a gateway that only a fresh token can help (`provisioners.gateway --end-when-hopeless`)."""

GATEWAY_KINDS: Final = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("v1", "PersistentVolumeClaim"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("cert-manager.io/v1", "Certificate"),
)
"""Which kinds its step can have made, in the order in which they are removed: (API, kind)."""
DELIVERY_ANNOTATION: Final = f"{MARK_DOMAIN}/delivery"
"""Stands for the enrolment token that a gateway was started with; another token means another start."""


def gateway_step(spec: BoundarySpec, gateway: GatewaySpec) -> Step:
    """Return the step of a namespace's gateway; its payload is the `GatewaySpec`, token included."""
    want: dict[str, Any] = {"gateway": str(gateway.uid), "control_plane_url": gateway.control_plane_url}
    if gateway.certificates:
        want["certificate"] = [gateway.certificates, *gateway.names, gateway.issuer]
    return make(spec.ref, GATEWAY_STEP, want, gateway)


def delivery_of(token: Secret) -> str:
    """Return what stands for a token on objects that people may read; it gives nothing of it away."""
    return hashlib.sha256(b"tenantry-delivery\0" + token.reveal().encode()).hexdigest()[:16]


def delivery_in(deployment: Object | None) -> str:
    """Return the delivery that a gateway's Deployment was made for, "" where there is none."""
    return str(dig(deployment, "metadata", "annotations", DELIVERY_ANNOTATION, default=""))


def gateway_secret_name(delivery: str) -> str:
    """Return the name of the Secret of one delivery: a pod never starts on another token than its template means."""
    return f"{GATEWAY_NAME}-{delivery}"


def token_in(secret: Object | None) -> Secret | None:
    """Return the token of a gateway's Secret, None where it has none."""
    held = dig(secret, "data", GATEWAY_TOKEN)
    return None if not isinstance(held, str) else Secret(base64.b64decode(held).decode())


def gateway_objects(
    ref: Ref, gateway: GatewaySpec, settings: Settings, served: Collection[str] = ()
) -> tuple[Object, ...]:
    """Return the gateway of a namespace: Secret with its token, state, Service, Deployment last.

    Where the spec delivers no token, give the one in the cluster (`token_in` the Secret of `delivery_in` the
    Deployment): then nothing starts anew. Raises `DriverRejected` without any.
    """
    token = gateway.enrolment_token
    if token is None:
        msg = "the gateway is not there and comes up only with a fresh token"
        raise DriverRejected(msg)
    delivery = delivery_of(token)
    namespace = ref.name
    found = [pods.secret(gateway_secret_name(delivery), namespace, {GATEWAY_TOKEN: token})]
    chosen = {COMPONENT_LABEL: GATEWAY, UID_LABEL: str(ref.uid)}
    if settings.gateway_storage_class:
        found.append(_gateway_state(namespace, settings))
    if settings.ends_tls and gateway.certificates == endpoint_tls.CERT_MANAGER:
        if "Certificate" not in served:
            raise NotSupported(NO_CERT_MANAGER)
        found.append(_certificate(namespace, gateway))
    found.append(_gateway_service(ref, chosen, settings))
    if settings.monitoring_namespace and "PodMonitor" in served:
        found.append(pods.pod_monitor(GATEWAY_NAME, namespace, chosen, "metrics"))
    found.append(_gateway_deployment(ref, gateway, settings, chosen, delivery))
    return tuple(found)


def _gateway_state(namespace: str, settings: Settings) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": GATEWAY_NAME, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": settings.gateway_storage_class,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def _certificate(namespace: str, gateway: GatewaySpec) -> Object:
    """Return what has cert-manager make the tenant's certificate and renew it.

    Fields as in cert-manager/cert-manager:deploy/crds/cert-manager.io_certificates.yaml (version v1).
    """
    *group, kind, name = gateway.issuer.split("/")
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": GATEWAY_NAME, "namespace": namespace},
        "spec": {
            "secretName": TLS_SECRET,
            "dnsNames": list(gateway.names),
            "issuerRef": {"group": group[0] if group else "cert-manager.io", "kind": kind, "name": name},
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["digital signature", "server auth"],
        },
    }


def _gateway_service(ref: Ref, chosen: Mapping[str, str], settings: Settings) -> Object:
    service = pods.gateway_service(GATEWAY_NAME, ref.name, chosen, settings)
    if settings.access == "load-balancer":
        service["spec"]["type"] = "LoadBalancer"
        service["spec"]["allocateLoadBalancerNodePorts"] = False
    return service


def _gateway_deployment(
    ref: Ref, gateway: GatewaySpec, settings: Settings, chosen: Mapping[str, str], delivery: str
) -> Object:
    command = [
        "python",
        "-m",
        "provisioners.gateway",
        "--host=0.0.0.0",
        f"--port={GATEWAY_PORT}",
        f"--metrics-port={METRICS_PORT}",
        # A folder per token: what an older identity left there would hide that this one never enrolled.
        f"--state=/state/{delivery}",
        "--end-when-hopeless",
    ]
    mounts: list[Object] = [{"name": "state", "mountPath": "/state"}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    volumes: list[Object] = []
    if settings.ends_tls:
        command.append("--tls")
    if settings.ends_tls and gateway.certificates == endpoint_tls.CERT_MANAGER:
        command += [f"--certificate={TLS_FOLDER}/tls.crt", f"--key={TLS_FOLDER}/tls.key"]
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        # Optional: the gateway enrols while cert-manager is at work, and says what it waits for.
        volumes.append({"name": "tls", "secret": {"secretName": TLS_SECRET, "optional": True, "defaultMode": 0o440}})
    scheme, port = ("HTTPS", "https") if settings.ends_tls else ("HTTP", "http")
    ours = {
        "TENANTRY_GATEWAY_CONTROL_URL": gateway.control_plane_url,
        "TENANTRY_GATEWAY_UID": str(gateway.uid),
        "HOME": "/tmp",  # noqa: S108
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    room = {"cpu": GATEWAY_VCPU, "memory": GATEWAY_MEMORY}
    state: Object = pods.scratch("state", "1Gi")
    if settings.gateway_storage_class:
        state = {"name": "state", "persistentVolumeClaim": {"claimName": GATEWAY_NAME}}
    container: Object = {
        "name": "gateway",
        "image": settings.gateway_image,
        "command": pods.argv(command),
        "env": pods.environment({}, ours, secrets=[GATEWAY_TOKEN], secret_name=gateway_secret_name(delivery)),
        "ports": [
            {"name": port, "containerPort": GATEWAY_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": dict(room), "limits": dict(room)},
        "securityContext": pods.container_security(read_only_root=True),
        "startupProbe": pods.http_probe("/healthz", period_s=2, timeout_s=5, failures=60, port=port, scheme=scheme),
        "readinessProbe": pods.http_probe("/readyz", period_s=2, timeout_s=2, failures=2, port=port, scheme=scheme),
        "livenessProbe": pods.http_probe("/healthz", period_s=10, timeout_s=5, failures=3, port=port, scheme=scheme),
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": GATEWAY_NAME,
            "namespace": ref.name,
            "labels": {COMPONENT_LABEL: GATEWAY},
            "annotations": {DELIVERY_ANNOTATION: delivery},
        },
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 600,
            # Two at once would be two holders of one identity, and the volume goes to one node only.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": dict(chosen)},
            "template": {
                "metadata": {
                    "labels": pods.template_labels(ref, GATEWAY_STEP, GATEWAY),
                    "annotations": {DELIVERY_ANNOTATION: delivery},
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 45,
                    "securityContext": pods.pod_security(),
                    "containers": [container],
                    "volumes": [state, pods.scratch("tmp", "256Mi"), *volumes],
                },
            },
        },
    }
