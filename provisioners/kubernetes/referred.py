"""What a provider's settings name in the cluster and do not make: storage and runtime classes, a Gateway, peers.

`look` asks, once per reading of the cluster's capabilities and only for what is named; `gaps` is pure. What our account
may not look up, or what the cluster does not serve, is not known and therefore no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from provisioners.kubernetes.client import Listing
from provisioners.kubernetes.objects import Object, dig, name_of
from provisioners.kubernetes.settings import RouteParent, Settings

STORAGE: Final = ("storage.k8s.io/v1", "StorageClass")
RUNTIME: Final = ("node.k8s.io/v1", "RuntimeClass")
GATEWAY: Final = ("gateway.networking.k8s.io/v1", "Gateway")
DEFAULT: Final = "storageclass.kubernetes.io/is-default-class"

May = Callable[[str, str, str], bool]
"""(verb, group, resource) → whether our account may do it everywhere."""


class Looking(Protocol):
    """What is needed of `client.Cluster`."""

    def serves(self, api: str, kind: str = "") -> bool:
        """Whether it serves an API."""

    def get(self, api: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return one object."""

    def list(self, api: str, kind: str) -> Listing:
        """Return all objects of a kind."""


@dataclass(frozen=True, slots=True)
class Referred:
    """What was found; None where it was not looked for."""

    storage: tuple[Object, ...] | None = None
    """Every storage class."""
    runtimes: tuple[Object, ...] | None = None
    """Every runtime class."""
    gateway: tuple[Object | None] | None = None
    """The shared Gateway, or that there is none."""
    namespaces: Mapping[str, bool] = field(default_factory=dict)
    """Namespace of a peer → whether it is there."""


def look(cluster: Looking, settings: Settings, may: May) -> Referred:
    """Ask a cluster. Raises `DriverError`."""

    def every(kind: tuple[str, str], plural: str) -> tuple[Object, ...] | None:
        group = kind[0].partition("/")[0]
        return cluster.list(*kind).items if may("list", group, plural) and cluster.serves(*kind) else None

    parent = settings.route_parent if settings.access == "route" else None
    has_gateways = may("get", "gateway.networking.k8s.io", "gateways") and cluster.serves(*GATEWAY)
    peers = _peers(settings) if may("get", "", "namespaces") else {}
    return Referred(
        storage=every(STORAGE, "storageclasses") if _needs_storage(settings) else None,
        runtimes=every(RUNTIME, "runtimeclasses") if settings.runtime_class else None,
        gateway=(cluster.get(*GATEWAY, parent.name, parent.namespace),) if parent and has_gateways else None,
        namespaces={name: cluster.get("v1", "Namespace", name) is not None for name in sorted(set(peers.values()))},
    )


def _needs_storage(settings: Settings) -> bool:
    return bool(settings.storage_class or settings.gateway_storage_class or settings.cache_gib)


def _peers(settings: Settings) -> dict[str, str]:
    """Return who may talk with endpoints → the namespace of their pods."""
    found = {"dns": settings.dns.namespace, "monitoring": settings.monitoring_namespace}
    if settings.access != "load-balancer":
        found["proxy"] = settings.proxy.namespace
    return {peer: namespace for peer, namespace in found.items() if namespace}


def gaps(found: Referred, settings: Settings) -> dict[str, str]:
    """Return feature → what is not there as the settings name it, and what mends it."""
    missing: dict[str, str] = {}
    if found.storage is not None:
        missing |= _storage_gaps(found.storage, settings)
    if found.runtimes is not None and settings.runtime_class not in (names := {name_of(one) for one in found.runtimes}):
        missing["runtime-class"] = (
            f"There is no runtime class {settings.runtime_class}: pods with GPUs would not start. Make it, or set "
            f"runtime_class to one that is there{_listed(names)}."
        )
    parent = settings.route_parent
    if found.gateway is not None and parent is not None and (sentence := _gateway_gap(found.gateway[0], parent)):
        missing["shared-gateway"] = sentence
    for peer, namespace in _peers(settings).items():
        if found.namespaces.get(namespace) is False:
            missing[peer] = f"There is no namespace {namespace}, {_PEERS[peer]}"
    return missing


_PEERS: Final[Mapping[str, str]] = {
    "dns": "where alone names are looked up: endpoints would find nobody. Set dns to where DNS answers.",
    "monitoring": "which alone may read the metrics of endpoints. Set monitoring_namespace to where your monitoring "
    "runs, or to nothing.",
    "proxy": "whose pods alone may call endpoints: where network policies are enforced, nobody reaches them. Set proxy "
    "to the pods of your shared Gateway, or of your clients.",
}


def _storage_gaps(classes: Collection[Object], settings: Settings) -> dict[str, str]:
    names = {name_of(one) for one in classes}
    missing = {
        key: f"There is no storage class {name}: {what} would wait for ever. Make it, or set {setting} to one that is "
        f"there{_listed(names)}."
        for key, setting, name, what in (
            ("storage-class", "storage_class", settings.storage_class, "volumes"),
            ("gateway-storage-class", "gateway_storage_class", settings.gateway_storage_class, "gateways"),
        )
        if name and name not in names
    }
    is_default = any(dig(one, "metadata", "annotations", DEFAULT, default="") == "true" for one in classes)
    if settings.cache_gib and not settings.storage_class and not is_default:
        missing["cache"] = (
            "A cache of models is asked for, no storage class is set and the cluster has no default one: model servers "
            f"would wait for ever. Set storage_class{_listed(names)}."
        )
    return missing


def _gateway_gap(gateway: Object | None, parent: RouteParent) -> str:
    """Return why no route of a tenant's namespace can attach to the shared Gateway, `""` where one can."""
    title = f"{parent.namespace}/{parent.name}"
    if gateway is None:
        return f"There is no Gateway {title}: addresses would lead nowhere. Make it, or set route_parent to another."
    listeners = dig(gateway, "spec", "listeners", default=[])
    chosen = [one for one in listeners if parent.section in {"", one.get("name")}]
    if not chosen:
        names = _listed({str(one.get("name")) for one in listeners})
        return f"Gateway {title} has no listener {parent.section}. Set route_parent to one that it has{names}."
    if all(dig(one, "allowedRoutes", "namespaces", "from", default="Same") in {"Same", "None"} for one in chosen):
        return (
            f"Gateway {title} takes routes of its own namespace only, and endpoints are in others. Set "
            "allowedRoutes.namespaces.from of its listener to All, or to Selector with a label of tenants' namespaces."
        )
    return ""


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:8]
    return f" ({', '.join(shown)})" if shown else ""
