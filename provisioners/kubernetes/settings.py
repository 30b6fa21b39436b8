"""Everything the driver is told of one cluster: how it is reached, what is deployed there, and by which limits.

Read once from a provider's config and credentials; frozen, no I/O. Whoever needs a figure of the cluster that
is not found by asking it takes it from here.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from provisioners.driver import Secret
from tenants import endpoint_tls

EXTERNAL_DNS: Final = "external-dns"
DNS_RECORDS: Final = ("show", EXTERNAL_DNS, "none")
CERTIFICATES: Final = (endpoint_tls.NONE, endpoint_tls.OWN_CA, endpoint_tls.FILES, endpoint_tls.CERT_MANAGER)
ACCESS: Final = ("route", "load-balancer", "cluster", "lab")
"""How an endpoint's address comes to be: an HTTPRoute, a Service of type LoadBalancer, the cluster's own DNS, a lab."""
GATEWAY_PORT: Final = 8080
SERVING_PORT: Final = 8000
LARGEST_CACHE_GIB: Final = 65_536


class BadSettings(ValueError):
    """A setting of the provider cannot be used; the text says which and why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Pods of the platform that may talk with a tenant's, by the labels of their namespace and their own."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Empty: every pod of that namespace."""


@dataclass(frozen=True, slots=True)
class RouteParent:
    """The platform's Gateway that HTTPRoutes attach to."""

    namespace: str
    name: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """One cluster as configured."""

    slug: str
    url: str
    """Base URL of the kube-apiserver."""
    ca_pem: str = ""
    """Certificates that the API server's is checked with; empty: the machine's own."""
    token: Secret | None = None
    client_certificate: Secret | None = None
    client_key: Secret | None = None
    """PEM texts of a client certificate, where no token is used."""
    proven_by: str = "token"
    """Name of the provider's secret that the credential was taken from."""
    trusted_by: str = "config.ca_pem"
    """The provider's setting or secret that says whom to trust."""
    tls_server_name: str = ""
    access: str = "cluster"
    zone: str = ""
    """DNS zone of endpoint addresses with `route` and `load-balancer`: `<endpoint>.<tenant>.<zone>`."""
    dns_records: str = "show"
    """Who sets their records: people (`show`), or ExternalDNS by annotations of ours with `load-balancer`; routes it
    reads by itself. `none`: whoever resolves the zone's names does it without us."""
    certificates: str = endpoint_tls.NONE
    """Where the certificates of gateways come from that end TLS, behind a load balancer."""
    certificate_issuer: str = ""
    """Whom cert-manager has sign them: `ClusterIssuer/name`, or `group/Kind/name` of another cluster-wide issuer."""
    endpoint_ca_pem: str = ""
    """Who signed the endpoints' certificates; read by who looks at addresses from outside, by no driver."""
    route_parent: RouteParent | None = None
    gateway_image: str = "registry.invalid/tenantry/gateway:unset"
    vllm_image: str = "registry.invalid/vllm/vllm-openai:unset"
    """Both pinned by digest in production."""
    registries: tuple[str, ...] = ()
    """Prefixes of images that may run in a tenant's namespace; empty: those of the two images above."""
    system_namespace: str = "tenantry-system"
    control_plane_cidrs: tuple[str, ...] = ()
    """Where gateways may call home; empty: nowhere, where network policies are enforced."""
    model_mirror_cidrs: tuple[str, ...] = ()
    """Where model servers may load models from; empty: nowhere, where network policies are enforced."""
    hub_url: str = "https://huggingface.co"
    """Where files of models are brought from into mirrors: the hub, or what a site has in its place."""
    dns: Peer = field(default_factory=lambda: Peer("kube-system", {"k8s-app": "kube-dns"}))
    dns_cidrs: tuple[str, ...] = ()
    """Address of a DNS cache on the node, commonly `169.254.20.10/32`."""
    proxy: Peer = field(default_factory=lambda: Peer("gateway-system"))
    """Who may open connections to a namespace's gateway; with `load-balancer` everybody may."""
    monitoring_namespace: str = ""
    pod_security_version: str = "v1.36"
    read_only_root: bool = True
    storage_class: str = ""
    cache_gib: int = 0
    """Size of the volume of model weights per replica; 0: an emptyDir. Its class is `storage_class`, or the default."""
    gateway_storage_class: str = ""
    """Empty: an emptyDir, and a gateway that lost it is started with a fresh token."""
    runtime_class: str = ""
    vm_gpu_types: tuple[str, ...] = ()
    """vGPU types that hosts of a Supervisor have (`nvidia_h100xm-1-10c`), beside those that its VM classes name."""
    vm_network: str = ""
    """Network of machines, as `group/version/Kind/name` in their namespace; empty: the namespace's default."""
    vm_instance_uuid: bool = False
    """Whether machines get their instance UUID from us: a Supervisor takes it from privileged accounts only."""
    reads_per_s: float = 100.0
    writes_per_s: float = 50.0
    """Most calls of all processes together; each may make its share."""
    processes: int = 1
    """That share the limits; not a setting of the provider, but of the installation."""
    call_deadline_s: float = 10.0
    """For one call; lists of a whole cluster get `list_deadline_s`."""
    list_deadline_s: float = 25.0
    page: int = 500
    """Objects per page of a list."""
    lab: bool = False
    """True for a cluster whose pods are played by a lab: what it answers is simulated."""

    @property
    def ends_tls(self) -> bool:
        """Whether gateways listen with TLS: elsewhere it ends in front of them, or there is none."""
        return self.access == "load-balancer" and self.certificates != endpoint_tls.NONE

    @property
    def allowed_registries(self) -> tuple[str, ...]:
        """Prefixes of images that may run in a tenant's namespace."""
        return self.registries or tuple(
            sorted({image.rpartition("/")[0] + "/" for image in (self.gateway_image, self.vllm_image) if "/" in image})
        )

    def __repr__(self) -> str:
        """Show which cluster, and no credential."""
        return f"Settings({self.slug}, {self.url}, access={self.access})"


_TEXTS: Final = (
    "slug", "url", "ca_pem", "tls_server_name", "access", "zone", "gateway_image", "vllm_image", "system_namespace",
    "monitoring_namespace", "pod_security_version", "storage_class", "gateway_storage_class", "runtime_class",
    "vm_network", "dns_records", "endpoint_ca_pem", "certificates", "certificate_issuer", "hub_url",
)  # fmt: skip
_NUMBERS: Final = ("reads_per_s", "writes_per_s", "call_deadline_s", "list_deadline_s")
_WHOLE: Final = ("cache_gib", "page")
_FLAGS: Final = ("read_only_root", "lab", "vm_instance_uuid")
_LISTS: Final = ("registries", "control_plane_cidrs", "model_mirror_cidrs", "dns_cidrs", "vm_gpu_types")
_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAMED: Final[Mapping[str, tuple[str, str]]] = {
    name: (pattern, sentence)
    for names, pattern, sentence in (
        (("zone",), rf"\.?{_LABEL}(\.{_LABEL})*\.?", "a DNS name such as models.example.net"),
        (("tls_server_name",), rf"{_LABEL}(\.{_LABEL})*|[0-9a-fA-F:.]+", "the name in the API server's certificate"),
        (("system_namespace", "monitoring_namespace"), _LABEL, "a name as Kubernetes writes it: a-z, 0-9, '-'"),
        (("storage_class", "gateway_storage_class", "runtime_class"), rf"{_LABEL}(\.{_LABEL})*",
         "a name as Kubernetes writes it: a-z, 0-9, '-', '.'"),
        (("hub_url",), r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?",
         "an address such as https://huggingface.co, without user or query"),
        (("pod_security_version",), r"latest|v1\.\d{1,3}", "a version such as v1.36, or latest"),
    )
    for name in names
}  # fmt: skip
"""Setting → how its text is written, and that in words."""
_LABEL_KEY: Final = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_ISSUER: Final = re.compile(r"([a-z0-9.-]+/)?[A-Z][A-Za-z]+/[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_NETWORK: Final = re.compile(r"[a-z0-9.-]+/v[a-z0-9]+/[A-Z][A-Za-z]+/[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_CIDRS: Final = ("control_plane_cidrs", "model_mirror_cidrs", "dns_cidrs")


def settings_of(config: Mapping[str, Any], secrets: Mapping[str, Secret]) -> Settings:
    """Return the settings of a provider's row.

    The credential is one of `token`, `client_certificate` with `client_key`, or `kubeconfig` (its current context;
    `url` and `ca_pem` are then taken from it where the config has none). Raises `BadSettings`, and `KeyError` with
    the name of a setting or credential that is missing.
    """
    given = {name: value for name, value in config.items() if value not in (None, "")}
    values: dict[str, Any] = {}
    for names, read in _READERS:
        values |= {name: read(name, given[name]) for name in names if name in given}
    if "ca_pem" not in values and "kubeconfig" in secrets:
        values["trusted_by"] = "secret.kubeconfig"
    _credential(values, secrets)
    if "url" not in values:
        raise KeyError("url")
    values.setdefault("slug", urlsplit(values["url"]).hostname or "cluster")
    return _checked(values)


def _credential(values: dict[str, Any], secrets: Mapping[str, Secret]) -> None:
    if "kubeconfig" in secrets and secrets["kubeconfig"].reveal().strip():
        _from_kubeconfig(values, secrets["kubeconfig"])
        values["proven_by"] = "kubeconfig"
        return
    certificate, key = secrets.get("client_certificate"), secrets.get("client_key")
    if certificate is not None and certificate.reveal():
        if key is None or not key.reveal():
            raise KeyError("client_key")
        values["client_certificate"], values["client_key"] = certificate, key
        values["proven_by"] = "client_certificate"
        return
    values["token"] = Secret(secrets["token"].reveal().strip())


def _checked(values: dict[str, Any]) -> Settings:
    parts = urlsplit(values["url"])
    if parts.scheme != "https" or not parts.hostname:
        raise BadSettings("url: the address of a cluster starts with https:// and names a host")
    if parts.username or parts.password:
        raise BadSettings("url: no credential belongs in an address")
    values["url"] = values["url"].rstrip("/")
    for name, words in (("access", ACCESS), ("dns_records", DNS_RECORDS), ("certificates", CERTIFICATES)):
        if values.get(name, words[0]) not in words:
            raise BadSettings(f"{name}: one of {', '.join(words)}")
    if values.get("access") == "route" and values.get("route_parent") is None:
        raise BadSettings("route_parent: with access route, the Gateway that routes attach to is needed")
    if values.get("vm_network") and not _NETWORK.fullmatch(values["vm_network"]):
        raise BadSettings("vm_network: written group/version/Kind/name")
    for name, (pattern, sentence) in _NAMED.items():
        if values.get(name) and not re.fullmatch(pattern, values[name]):
            raise BadSettings(f"{name}: {sentence}")
    for name in _CIDRS:
        for cidr in values.get(name, ()):
            try:
                ip_network(cidr)
            except ValueError as error:
                raise BadSettings(f"{name}: {cidr[:60]!r} is no network such as 10.20.0.0/16") from error
    _check_amounts(values)
    _check_certificates(values)
    return Settings(**values)


def _check_certificates(values: Mapping[str, Any]) -> None:
    source, issuer = values.get("certificates", endpoint_tls.NONE), values.get("certificate_issuer", "")
    if issuer and not _ISSUER.fullmatch(issuer):
        raise BadSettings("certificate_issuer: written ClusterIssuer/name, or group/Kind/name")
    if issuer.startswith("Issuer/") or ("/Issuer/" in issuer and issuer.startswith("cert-manager.io/")):
        raise BadSettings("certificate_issuer: an Issuer is one namespace's; name a ClusterIssuer")
    if source == endpoint_tls.NONE:
        return
    if values.get("access") == "route":
        raise BadSettings("certificates: with routes TLS ends at the shared Gateway, and its listener has them")
    if values.get("access") != "load-balancer":
        raise BadSettings("certificates: gateways end TLS behind a load balancer only")
    if not values.get("zone"):
        raise BadSettings("zone: certificates are for names, so they need a zone")
    if source == endpoint_tls.CERT_MANAGER and not issuer:
        raise BadSettings("certificate_issuer: cert-manager needs to know who signs, such as ClusterIssuer/internal")


def _check_amounts(values: Mapping[str, Any]) -> None:
    for name in (*_NUMBERS, "page"):
        if values.get(name, 1) <= 0:
            raise BadSettings(f"{name}: must be above 0")
    if not 0 <= values.get("cache_gib", 0) <= LARGEST_CACHE_GIB:
        raise BadSettings(f"cache_gib: from 0 to {LARGEST_CACHE_GIB}")


def _number(name: str, value: object) -> float:
    try:
        found = float(str(value))
    except ValueError as error:
        raise BadSettings(f"{name}: no number") from error
    if not math.isfinite(found):
        raise BadSettings(f"{name}: no number")
    return found


def _flag(name: str, value: object) -> bool:
    text = str(value).lower()
    if text in {"true", "1", "yes", "on"}:
        return True
    if text in {"false", "0", "no", "off"}:
        return False
    raise BadSettings(f"{name}: true or false")


def _text(_name: str, value: object) -> str:
    return str(value)


def _whole(name: str, value: object) -> int:
    found = _number(name, value)
    if found != int(found):
        raise BadSettings(f"{name}: a whole number")
    return int(found)


def _list(_name: str, value: object) -> tuple[str, ...]:
    """Return a list given as JSON or as text with commas."""
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(text for item in items if (text := str(item).strip()))


def _peer(name: str, value: object) -> Peer:
    """Return a peer: `{"namespace": …, "labels": {…}}`, or as text `kube-system`, `kube-system:k8s-app=kube-dns`."""
    if isinstance(value, Mapping):
        return Peer(str(value["namespace"]), {str(k): str(v) for k, v in (value.get("labels") or {}).items()})
    namespace, _, rest = str(value).partition(":")
    if not re.fullmatch(_LABEL, namespace.strip()):
        raise BadSettings(f"{name}: written namespace, or namespace:label=value,label=value")
    labels = {}
    for pair in _list(name, rest):
        key, equals, text = pair.partition("=")
        if not equals or not _LABEL_KEY.fullmatch(key.strip()) or not _LABEL_VALUE.fullmatch(text.strip()):
            raise BadSettings(f"{name}: labels are written key=value")
        labels[key.strip()] = text.strip()
    return Peer(namespace.strip(), labels)


def _route_parent(_name: str, value: object) -> RouteParent:
    parts = str(value).split("/")
    if len(parts) not in {2, 3} or not all(parts):
        raise BadSettings("route_parent: written namespace/name or namespace/name/listener")
    if not all(re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", part) for part in parts):
        raise BadSettings("route_parent: namespace, name and listener are names as Kubernetes writes them")
    return RouteParent(*parts)


_READERS: Final[tuple[tuple[tuple[str, ...], Callable[[str, object], Any]], ...]] = (
    (_TEXTS, _text),
    (_NUMBERS, _number),
    (_WHOLE, _whole),
    (_FLAGS, _flag),
    (_LISTS, _list),
    (("dns", "proxy"), _peer),
    (("route_parent",), _route_parent),
)
KEYS: Final = frozenset(name for names, _read in _READERS for name in names)
"""Every entry of a provider's configuration that is read here."""


# --- kubeconfig -----------------------------------------------------------------------------------


def _from_kubeconfig(values: dict[str, Any], text: Secret) -> None:
    """Take address, certificates and credential of a kubeconfig's current context. Raises `BadSettings`."""
    try:
        document = yaml.safe_load(text.reveal())
    except yaml.YAMLError:
        raise BadSettings("kubeconfig: no YAML") from None  # the text of the error quotes the credential
    if not isinstance(document, dict):
        raise BadSettings("kubeconfig: no mapping")
    context = _named(document, "contexts", str(document.get("current-context", ""))).get("context") or {}
    cluster = _named(document, "clusters", str(context.get("cluster", ""))).get("cluster") or {}
    user = _named(document, "users", str(context.get("user", ""))).get("user") or {}
    if "exec" in user or "auth-provider" in user:
        raise BadSettings("kubeconfig: programs of a kubeconfig (exec, auth-provider) are never run; give a token")
    if cluster.get("insecure-skip-tls-verify"):
        raise BadSettings("kubeconfig: insecure-skip-tls-verify is refused; give certificate-authority-data")
    if "certificate-authority" in cluster or "client-certificate" in user or "tokenFile" in user:
        raise BadSettings("kubeconfig: it names files; write their content into it (kubectl config view --flatten)")
    values.setdefault("url", str(cluster.get("server", "")))
    if cluster.get("certificate-authority-data"):
        values.setdefault("ca_pem", _decoded("certificate-authority-data", cluster))
    if cluster.get("tls-server-name"):
        values.setdefault("tls_server_name", str(cluster["tls-server-name"]))
    if user.get("token"):
        values["token"] = Secret(str(user["token"]))
    elif user.get("client-certificate-data") and user.get("client-key-data"):
        values["client_certificate"] = Secret(_decoded("client-certificate-data", user))
        values["client_key"] = Secret(_decoded("client-key-data", user))
    else:
        raise BadSettings("kubeconfig: its user has neither a token nor a client certificate")


def _named(document: Mapping[str, Any], plural: str, name: str) -> dict[str, Any]:
    for entry in document.get(plural) or []:
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise BadSettings(f"kubeconfig: its current context names no entry of {plural}")


def _decoded(name: str, holder: Mapping[str, Any]) -> str:
    try:
        return base64.b64decode(str(holder[name]), validate=True).decode()
    except (binascii.Error, ValueError):
        raise BadSettings(f"kubeconfig: {name} is no base64") from None
