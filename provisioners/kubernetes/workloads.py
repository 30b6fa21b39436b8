"""An endpoint in a tenant's namespace as objects: model servers and how they are reached. Pure.

Specs → steps, and one step's payload → objects, in the order in which they are applied. Names derive from ids; the mark
is put on by the driver (`objects.marked_set`), but pod templates carry it from here, because nobody else writes into
them. Facts of vLLM 0.32 and of Kubernetes 1.36: kubernetes-gpu facts, sections 3.1 and 3.2.

Invariants: a unit is one Deployment of at most one pod, replaced by Recreate, so no rollout uses a unit twice; what a
pod asks its node for comes from `gpu.Request` alone; secrets stand in Secrets only, one for each revision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import (
    MARK_DOMAIN,
    Binding,
    BoundaryKind,
    DriverRejected,
    EndpointSpec,
    NotSupported,
    Power,
    Ref,
    ServingSpec,
    Step,
    UnitSpec,
)
from provisioners.kubernetes import pods
from provisioners.kubernetes.gpu import Request
from provisioners.kubernetes.objects import (
    COMPONENT_LABEL,
    STEP_LABEL,
    UID_LABEL,
    UNIT_LABEL,
    Object,
    name_of,
    step_label,
)
from provisioners.kubernetes.pods import GATEWAY, REPLICA
from provisioners.kubernetes.settings import EXTERNAL_DNS, SERVING_PORT, Settings
from provisioners.steps import in_order, indexed, make
from tenants import gpu_catalogue, models_catalogue

SECRET_STEP: Final = "serving.secret"  # noqa: S105 - a step's name
REPLICA_STEP: Final = "serving.replica"
SERVICE_STEP: Final = "serving.service"
DNS_PREFIXES: Final = ("external-dns.alpha.kubernetes.io", "external-dns.kubernetes.io")
"""Of annotations that ExternalDNS reads, before its release 0.22 and since (its docs/annotations/annotations.md)."""
DNS_TTL_S: Final = 60
"""How long a name may be remembered: less than a place that an endpoint has left waits for its last callers
(`tenants.moves.DRAIN_LIMIT`)."""

KINDS_OF_STEP: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    SECRET_STEP: (("v1", "Secret"),),
    REPLICA_STEP: (
        ("apps/v1", "Deployment"),
        ("v1", "Service"),
        ("resource.k8s.io/v1", "ResourceClaim"),
        ("v1", "PersistentVolumeClaim"),
    ),
    SERVICE_STEP: (
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("v1", "Service"),
        ("policy/v1", "PodDisruptionBudget"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
    ),
}
"""Which kinds a step can have made, in the order in which they are removed: (API, kind)."""

REVISION_ANNOTATION: Final = f"{MARK_DOMAIN}/revision"
MODEL_ANNOTATION: Final = f"{MARK_DOMAIN}/model"
HOST_ANNOTATION: Final = f"{MARK_DOMAIN}/host"
PROFILE_ANNOTATION: Final = f"{MARK_DOMAIN}/profile"
"""On a replica's Deployment, for reading it back; the unit's other facts stand beside them for people."""
SECRETS_ANNOTATION: Final = f"{MARK_DOMAIN}/secrets"
"""On each Secret: the names of all of its endpoint, so that one that is lost is missed."""

SHUTDOWN_S: Final = 120
"""Running requests get this long after SIGTERM (`vllm serve --shutdown-timeout`; its default aborts them)."""
LEAVE_S: Final = 15
"""Before SIGTERM: gateways and endpoints forget the pod first."""
GRACE_S: Final = LEAVE_S + SHUTDOWN_S + 30
LEAST_STARTUP_S: Final = 1800
LONGEST_STARTUP_S: Final = 4 * 3600
COMPILE_S: Final = 600
LOAD_S_PER_GIB: Final = 20
"""Weights that come at 50 MiB/s at worst, from the mirror and once more from the disk."""
PULL_S: Final = 1800
"""The image is many GiB: the first start on a node may take a quarter of an hour."""
PROBE_S: Final = 10
CACHE_GIB: Final = 100
"""Room for weights in an emptyDir; a limit, not a demand."""
LARGEST_SHM_GIB: Final = 16
MODELS_PATH: Final = "/models"
MIRROR_PATH: Final = "/mirror"
"""Where `ServingSpec.mirror` wants an NFS mirror."""
SERVING_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/tmp/home",  # noqa: S108 - a path in the container
    "USER": "vllm",
    "TMPDIR": "/tmp",  # noqa: S108
    "HF_HOME": MODELS_PATH,
    "XDG_CACHE_HOME": f"{MODELS_PATH}/.cache",
    "XDG_CONFIG_HOME": "/tmp/config",  # noqa: S108
    "VLLM_CACHE_ROOT": f"{MODELS_PATH}/.vllm",
    "VLLM_CONFIG_ROOT": "/tmp/config/vllm",  # noqa: S108
    "TRITON_CACHE_DIR": f"{MODELS_PATH}/.triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{MODELS_PATH}/.inductor",
    "FLASHINFER_WORKSPACE_BASE": MODELS_PATH,
    "NUMBA_CACHE_DIR": "/tmp/numba",  # noqa: S108
    "OUTLINES_CACHE_DIR": "/tmp/outlines",  # noqa: S108
}
"""Everything that vLLM and what it stands on would write into the root file system."""
_KEY_FLAGS: Final = ("--api-key",)


@dataclass(frozen=True, slots=True)
class EndpointPart:
    """Payload of an endpoint's step."""

    spec: EndpointSpec
    unit: UnitSpec | None = None
    """Set for a replica's step."""


# --- steps ----------------------------------------------------------------------------------------


def endpoint_steps(spec: EndpointSpec) -> tuple[Step, ...]:
    """Return the steps of an endpoint in a namespace, in order. Raises `NotSupported`, `DriverRejected`."""
    if spec.boundary_kind is not BoundaryKind.NAMESPACE:
        msg = "a cluster makes endpoints in namespaces only"
        raise NotSupported(msg)
    _checked_command(spec.serving)  # another revision's is checked where its own replica starts: it stops nothing else
    secret = {secret_name(spec.ref, one): sorted(one.secrets) for one in spec.servings}
    found = [make(spec.ref, SECRET_STEP, secret, EndpointPart(spec))]
    for unit in spec.units:
        serving = _serving(spec.ref, spec.serving_of(unit))
        want = {"unit": _placed(unit), "serving": serving, "power": str(spec.power)}
        found.append(make(spec.ref, indexed(REPLICA_STEP, unit.index), want, EndpointPart(spec, unit)))
    service: dict[str, Any] = {"model": spec.serving.model, "cut_off": spec.cut_off, "several": _are_several(spec)}
    if spec.host:
        service["host"] = spec.host
        if not spec.named:
            service["named"] = False
    found.append(make(spec.ref, SERVICE_STEP, service, EndpointPart(spec)))
    by_name = {step.name: step for step in found}
    return tuple(by_name[name] for name in in_order(by_name))


def _are_several(spec: EndpointSpec) -> bool:
    """Whether one replica is left where another is evicted; one that is only tried out beside takes nobody's place."""
    return sum(unit.role != "surge" for unit in spec.units) > 1


def _placed(unit: UnitSpec) -> dict[str, Any]:
    """Return what of a unit the cluster is told and can be held to: what it chooses itself is left out."""
    return {
        "uid": str(unit.uid),
        "host": unit.host,
        "product": unit.product,
        "profile": unit.profile,
        "gpu_count": unit.gpu_count,
        "binding": str(unit.binding),
        "devices": [] if unit.binding is Binding.HOST else list(unit.devices),
        "starts": list(unit.starts) if unit.binding is Binding.DEVICE else [],
        "vcpu": unit.vcpu,
        "memory_gib": unit.memory_gib,
    }


def _serving(ref: Ref, serving: ServingSpec) -> dict[str, Any]:
    return {
        "model": serving.model,
        "source": serving.source,
        "commit": serving.commit,
        "runtime": serving.runtime,
        "revision": serving.revision,
        "revision_uid": str(serving.revision_uid),
        "argv": list(serving.argv),
        "environment": dict(sorted(serving.environment.items())),
        "secret": secret_name(ref, serving),
        "secrets": sorted(serving.secrets),
    }


# --- an endpoint's objects ------------------------------------------------------------------------


def secret_objects(spec: EndpointSpec) -> tuple[Object, ...]:
    """Return the Secrets of an endpoint's model servers, one for each revision; there even where they hold nothing."""
    found = [pods.secret(secret_name(spec.ref, one), spec.boundary.name, one.secrets) for one in spec.servings]
    for one in found:
        one["metadata"]["annotations"] = {SECRETS_ANNOTATION: ",".join(sorted(map(name_of, found)))}
    return tuple(found)


def secret_name(ref: Ref, serving: ServingSpec) -> str:
    """Return the name of a revision's Secret."""
    return f"{ref.name}-env-{serving.revision_uid.hex[:12]}"


def replica_name(ref: Ref, index: int) -> str:
    """Return the name of a replica's Deployment and Service."""
    return f"{ref.name}-{index}"


def cache_name(replica: str) -> str:
    """Return the name of the volume of weights of a replica, by the name of its Deployment."""
    return f"{replica}-cache"


def replica_objects(spec: EndpointSpec, unit: UnitSpec, settings: Settings, share: Request) -> tuple[Object, ...]:
    """Return what makes one replica: claims, cache, Service, Deployment last. Raises `DriverRejected`."""
    name, namespace = replica_name(spec.ref, unit.index), spec.boundary.name
    chosen = {UID_LABEL: str(spec.ref.uid), STEP_LABEL: step_label(indexed(REPLICA_STEP, unit.index))}
    volumes: list[Object] = []
    if settings.cache_gib:
        volumes.append(_cache(cache_name(name), namespace, settings))
    service = pods.service(name, namespace, chosen, port=SERVING_PORT, target="http")
    # Unready pods are listed too: only the gateway decides which replica takes requests, by what we tell it.
    service["spec"]["publishNotReadyAddresses"] = True
    return (*share.claims, *volumes, service, _deployment(spec, unit, settings, share, chosen))


def _cache(name: str, namespace: str, settings: Settings) -> Object:
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{settings.cache_gib}Gi"}},
        },
    }
    if settings.storage_class:
        claim["spec"]["storageClassName"] = settings.storage_class
    return claim


def _deployment(
    spec: EndpointSpec, unit: UnitSpec, settings: Settings, share: Request, chosen: Mapping[str, str]
) -> Object:
    step, serving = indexed(REPLICA_STEP, unit.index), spec.serving_of(unit)
    budget_s = startup_s(serving, unit)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": replica_name(spec.ref, unit.index),
            "namespace": spec.boundary.name,
            "labels": {UNIT_LABEL: str(unit.uid), COMPONENT_LABEL: REPLICA},
            "annotations": _facts(spec, unit),
        },
        "spec": {
            # At zero the Deployment stays, of no pod: Service, cache and name are what the next start goes on with.
            "replicas": 1 if spec.power is Power.ON else 0,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": budget_s + PULL_S,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": dict(chosen)},
            "template": {
                "metadata": {
                    "labels": pods.template_labels(spec.ref, step, REPLICA, **{UNIT_LABEL: str(unit.uid)}),
                    "annotations": {
                        REVISION_ANNOTATION: str(serving.revision),
                        # Two revisions may ask for the very same: the pod is made anew, for what it says it serves.
                        f"{MARK_DOMAIN}/revision-uid": str(serving.revision_uid),
                    },
                },
                "spec": _replica_pod(spec, unit, settings, share, budget_s),
            },
        },
    }


def _facts(spec: EndpointSpec, unit: UnitSpec) -> dict[str, str]:
    told = {
        "product": unit.product,
        "gpus": str(1 if unit.profile else unit.gpu_count),
        "binding": str(unit.binding),
        "devices": ",".join(unit.devices),
        "starts": ",".join(str(start) for start in unit.starts),
    }
    return {
        REVISION_ANNOTATION: str(spec.serving_of(unit).revision),
        MODEL_ANNOTATION: spec.serving.model,
        HOST_ANNOTATION: unit.host,
        PROFILE_ANNOTATION: unit.profile,
        **{f"{MARK_DOMAIN}/{name}": value for name, value in told.items()},
    }


def _replica_pod(spec: EndpointSpec, unit: UnitSpec, settings: Settings, share: Request, budget_s: int) -> Object:
    room, serving = _room(unit), spec.serving_of(unit)
    asked = {**room, **share.resources}
    resources: dict[str, Any] = {"requests": asked, "limits": dict(asked)}
    if share.container_claims:
        resources["claims"] = [dict(claim) for claim in share.container_claims]
    mirrors = _mirror_volumes(serving)
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": pods.pod_security(),
        "containers": [
            {
                "name": "server",
                "image": settings.vllm_image,
                "command": pods.argv(_checked_command(serving)),
                "env": pods.environment(
                    serving.environment,
                    SERVING_ENVIRONMENT,
                    secrets=serving.secrets,
                    secret_name=secret_name(spec.ref, serving),
                ),
                "ports": [{"name": "http", "containerPort": SERVING_PORT, "protocol": "TCP"}],
                "resources": resources,
                "securityContext": pods.container_security(read_only_root=settings.read_only_root),
                "startupProbe": pods.http_probe(
                    "/health", period_s=PROBE_S, timeout_s=5, failures=-(-budget_s // PROBE_S)
                ),
                "readinessProbe": pods.http_probe("/health", period_s=5, timeout_s=5, failures=3),
                "livenessProbe": pods.http_probe("/health", period_s=15, timeout_s=10, failures=4),
                # What it says last is what `symptoms` puts into plain words.
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_S}}},
                "volumeMounts": [
                    *({"name": one["name"], "mountPath": MIRROR_PATH, "readOnly": True} for one in mirrors),
                    {"name": "models", "mountPath": MODELS_PATH},
                    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
                ],
            }
        ],
        "volumes": [
            *mirrors,
            _models_volume(spec.ref, unit, settings),
            pods.scratch("shm", f"{_shm_gib(unit)}Gi", in_memory=True),
            pods.scratch("tmp", "10Gi"),
        ],
    }
    if unit.product and settings.runtime_class:
        pod["runtimeClassName"] = settings.runtime_class
    if share.tolerations:
        pod["tolerations"] = [dict(one) for one in share.tolerations]
    if share.node_selector:
        pod["nodeSelector"] = dict(share.node_selector)
    if share.pod_claims:
        pod["resourceClaims"] = [dict(claim) for claim in share.pod_claims]
    return pod


def _room(unit: UnitSpec) -> dict[str, str]:
    """Return processors and memory; memory is never lent out twice, so what is asked for is the limit."""
    room = {"cpu": str(unit.vcpu), "memory": f"{unit.memory_gib}Gi"}
    return {name: value for name, value in room.items() if not value.startswith("0")}


def _shm_gib(unit: UnitSpec) -> int:
    """Return the size of /dev/shm: what is in it counts against the container's memory."""
    return max(1, min(LARGEST_SHM_GIB, unit.memory_gib // 4))


def _models_volume(ref: Ref, unit: UnitSpec, settings: Settings) -> Object:
    if settings.cache_gib:
        return {"name": "models", "persistentVolumeClaim": {"claimName": cache_name(replica_name(ref, unit.index))}}
    return pods.scratch("models", f"{CACHE_GIB}Gi")


def _mirror_volumes(serving: ServingSpec) -> list[Object]:
    """Return the volume of a mirror on NFS."""
    is_mounted = serving.mirror.startswith("nfs://")
    return [pods.nfs_volume("mirror", serving.mirror, read_only=True)] if is_mounted else []


def _checked_command(serving: ServingSpec) -> tuple[str, ...]:
    """Return the runtime's command line with what a pod adds to it. Raises `NotSupported`, `DriverRejected`."""
    if serving.runtime != "vllm":
        msg = f"no runtime is called {serving.runtime!r} on a cluster"
        raise NotSupported(msg)
    if any(word == flag or word.startswith(f"{flag}=") for word in serving.argv for flag in _KEY_FLAGS):
        msg = "a key is given by the variable VLLM_API_KEY only, never on a command line"
        raise DriverRejected(msg)
    for name in serving.environment.keys() & serving.secrets.keys():
        msg = f"the variable {name} is both a secret and not"
        raise DriverRejected(msg)
    if "VLLM_API_KEY" in serving.environment:
        msg = "VLLM_API_KEY is a secret and must come as one"
        raise DriverRejected(msg)
    pods.argv(serving.argv)
    pods.environment(serving.environment, {}, secrets=serving.secrets)
    added = [f"--shutdown-timeout={SHUTDOWN_S}"] if not _given(serving, "--shutdown-timeout") else []
    return (*serving.argv, *added)


def _given(serving: ServingSpec, flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in serving.argv)


def startup_s(serving: ServingSpec, unit: UnitSpec) -> int:
    """Return how long a model server may take from its start to its first 200, in whole probes.

    By the weights as the catalogue has them, else by the GPU's memory, which they cannot exceed.
    """
    budget_s = COMPILE_S + LOAD_S_PER_GIB * _weights_gib(serving, unit)
    whole = -(-int(budget_s) // PROBE_S) * PROBE_S
    return max(LEAST_STARTUP_S, min(LONGEST_STARTUP_S, whole))


def _weights_gib(serving: ServingSpec, unit: UnitSpec) -> float:
    try:
        return max(models_catalogue.model(serving.source).weights.values()) / 2**30
    except (models_catalogue.UnknownModel, ValueError):
        pass
    try:
        product = gpu_catalogue.product(unit.product)
        if unit.profile:
            memory = gpu_catalogue.profile(product, unit.profile).memory_gib_planning
            return float(memory if memory is not None else product.total_memory_gib)
        return float(product.total_memory_gib) * unit.gpu_count
    except (gpu_catalogue.UnknownProduct, gpu_catalogue.UnknownProfile):
        return float(unit.memory_gib)


# --- how an endpoint is reached -------------------------------------------------------------------


def service_objects(
    spec: EndpointSpec, settings: Settings, served: Collection[str], balanced: str = ""
) -> tuple[Object, ...]:
    """Return what publishes an endpoint and watches over it; `served`: kinds that the cluster knows.

    `balanced`: where the load balancer of its namespace answers, as far as DNS is to be told of it. Its name is told
    and routed where it is to lead here only; the gateway behind answers for it at either place of one that moves.

    A cut-off endpoint has no route. Raises `NotSupported` where addresses are to be routes and there are none.
    """
    namespace = spec.boundary.name
    found = [pods.gateway_service(spec.ref.name, namespace, {COMPONENT_LABEL: GATEWAY}, settings)]
    if balanced and spec.host and spec.named:
        found[0]["metadata"]["annotations"] = _told_to_dns(hostname=spec.host, target=balanced)
    if _are_several(spec):
        found.append(_disruption_budget(spec))
    if settings.monitoring_namespace and "PodMonitor" in served:
        found.append(
            pods.pod_monitor(spec.ref.name, namespace, {UID_LABEL: str(spec.ref.uid), COMPONENT_LABEL: REPLICA}, "http")
        )
    if settings.access == "route":
        if "HTTPRoute" not in served:
            msg = "the cluster serves no HTTPRoute: install the Gateway API, or choose another access for this provider"
            raise NotSupported(msg)
        if not spec.cut_off:
            found.append(_route(spec, namespace, settings))
    return tuple(found)


def _told_to_dns(**told: str) -> dict[str, str]:
    """Return what ExternalDNS is told of a name; without it the record goes, where it was told before."""
    said = {**told, "ttl": str(DNS_TTL_S)}
    return {f"{prefix}/{name}": text for prefix in DNS_PREFIXES for name, text in said.items()}


def _disruption_budget(spec: EndpointSpec) -> Object:
    """Return a budget that keeps one replica: with a single one it would only block drains and MIG changes."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": spec.ref.name, "namespace": spec.boundary.name},
        "spec": {
            "minAvailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {UID_LABEL: str(spec.ref.uid), COMPONENT_LABEL: REPLICA}},
        },
    }


def _route(spec: EndpointSpec, namespace: str, settings: Settings) -> Object:
    """Return the route by an endpoint's name or, where that leads elsewhere or is too long, by one made of its id."""
    ref, parent = spec.ref, settings.route_parent
    if parent is None or not settings.zone:
        msg = "with access route, the provider needs a zone and the Gateway that routes attach to"
        raise DriverRejected(msg)
    attached = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": parent.name}
    attached["namespace"] = parent.namespace
    if parent.section:
        attached["sectionName"] = parent.section
    told = {"annotations": _told_to_dns()} if settings.dns_records == EXTERNAL_DNS else {}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": ref.name, "namespace": namespace, **told},
        "spec": {
            "parentRefs": [attached],
            "hostnames": [spec.host if spec.host and spec.named else f"{ref.name}.{settings.zone.strip('.')}"],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                    # A stream may take long: many gateways give up after 15 s if nothing is said.
                    "timeouts": {"request": "3600s"},
                    "backendRefs": [{"group": "", "kind": "Service", "name": ref.name, "port": 80, "weight": 1}],
                }
            ],
        },
    }
