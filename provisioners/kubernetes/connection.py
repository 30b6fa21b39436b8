"""What connecting a cluster asks for, and how a pasted kubeconfig is read. Pure.

Each setting is judged by the reader that reads it later (`settings`), so that the form and the driver never differ. A
kubeconfig can name programs and files. Both would run or be read where the worker runs, by whoever may paste one,
so exec plug-ins, auth providers and file references are refused by name before anything is stored.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from provisioners import tls_settings
from provisioners.driver import Secret
from provisioners.kubernetes import rbac
from provisioners.kubernetes.settings import KEYS, BadSettings, settings_of
from tenants.endpoint_tls import CERT_MANAGER, FILES, NONE, OWN_CA
from tenants.provider_kinds import Credential, Document, ProviderKind, Setting

LONGEST: Final = 65_536
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_FILES: Final = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


class Unusable(ValueError):
    """A kubeconfig that cannot be used; its text says why and quotes no secret."""


def check_kubeconfig(text: str) -> None:
    """Raise `Unusable` unless the current context of a kubeconfig can be used as it stands, by itself."""
    given = _document(text)
    context = _named(given, "contexts", "context", str(given.get("current-context") or ""))
    cluster = _named(given, "clusters", "cluster", str(context.get("cluster") or ""))
    user = _named(given, "users", "user", str(context.get("user") or ""))
    _refuse_programs_and_files(cluster, user)
    if refusal := _refuse_url(str(cluster.get("server") or "")):
        raise Unusable(refusal)
    if not user.get("token") and not (user.get("client-key-data") and user.get("client-certificate-data")):
        msg = "Its user has neither a token nor a client certificate with its key."
        raise Unusable(msg)
    for holder, name in (
        (cluster, "certificate-authority-data"),
        (user, "client-certificate-data"),
        (user, "client-key-data"),
    ):
        _refuse_garbage(holder.get(name), name)


def _document(text: str) -> dict[str, Any]:
    if len(text) > LONGEST:
        msg = f"It has more than {LONGEST} characters."
        raise Unusable(msg)
    try:
        # An alias lets a few lines stand for gigabytes; no tool writes one into a kubeconfig.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            msg = "It uses YAML aliases; write it without."
            raise Unusable(msg)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, Unusable):
            raise
        msg = "It is no YAML."
        raise Unusable(msg) from error
    if not isinstance(found, dict) or found.get("kind") != "Config":
        msg = "It is no kubeconfig: the document must be of kind Config."
        raise Unusable(msg)
    return found


def _named(given: Mapping[str, Any], listed: str, inner: str, name: str) -> dict[str, Any]:
    entries = given.get(listed)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(inner), dict):
            found: dict[str, Any] = entry[inner]
            return found
    msg = f"It has no {inner} named {name[:60]!r}." if name else "Its current context names none."
    raise Unusable(msg)


def _refuse_programs_and_files(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    if "exec" in user:
        command = str((user["exec"] or {}).get("command", "") if isinstance(user["exec"], dict) else "")[:60]
        msg = (
            f"It would run a program ({command or 'exec plug-in'}) on this machine, and that is refused. "
            "Use the token of a service account instead."
        )
        raise Unusable(msg)
    if "auth-provider" in user:
        msg = "It uses an auth provider, and that is refused. Use the token of a service account instead."
        raise Unusable(msg)
    for name in _FILES:
        if name in user or name in cluster:
            msg = f"{name} names a file; put its content in, with {name.removesuffix('File')}-data or as text."
            raise Unusable(msg)
    if user.get("username") or user.get("password"):
        msg = "A user name and password are refused. Use the token of a service account instead."
        raise Unusable(msg)
    if any(key in user for key in ("as", "as-uid", "as-groups", "as-user-extra")):
        msg = "It impersonates somebody else, and that is refused."
        raise Unusable(msg)
    if cluster.get("insecure-skip-tls-verify"):
        msg = "It does not check the server's certificate. Give the certificate authority instead."
        raise Unusable(msg)
    if cluster.get("proxy-url"):
        msg = "It goes through a proxy of its own (proxy-url), and that is not supported."
        raise Unusable(msg)


def _refuse_garbage(value: object, name: str) -> None:
    try:
        base64.b64decode(str(value or ""), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        msg = f"{name} is no base64 of a PEM text."
        raise Unusable(msg) from error


# --- what the form asks for -------------------------------------------------------------------------------


def _refuse_kubeconfig(text: str) -> str:
    try:
        check_kubeconfig(text)
    except Unusable as error:
        return str(error)
    return ""


def _refuse_url(text: str) -> str:
    try:
        url = urlsplit(text)
        port_is_fine = url.port is None or url.port > 0
    except ValueError:
        return "This is no address."
    if url.scheme != "https" or not url.hostname or not port_is_fine:
        return "Give the API server's address, beginning with https://."
    if url.username or url.password or url.query or url.fragment:
        return "Give the address alone, without user, query or fragment."
    return ""


def _refuse_ca(text: str) -> str:
    if not _PEM.search(text):
        return "Paste the certificate itself, from BEGIN CERTIFICATE to END CERTIFICATE."
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return "What stands in it is no certificate that can be read. Paste it once more, whole."
    return ""


def _refuse_token(text: str) -> str:
    return "A token is one word." if re.search(r"\s", text.strip()) else ""


def _matching(pattern: str, sentence: str) -> Callable[[str], str]:
    expression = re.compile(pattern)
    return lambda text: "" if expression.fullmatch(text) else sentence


def judge(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (key, sentence) of an entry that the driver could not use, None where it could use all of them.

    An address that is not there may come with the kubeconfig, a credential at any time.
    """
    given = {key: value for key, value in config.items() if value not in {None, ""}}
    try:
        settings_of({"url": "https://cluster.invalid", **given}, {"token": Secret("not the one")})
    except BadSettings as error:
        key, _, text = str(error).partition(": ")
        return key, text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
    return None


def _judged(key: str) -> Callable[[str], str]:
    def refuses(text: str) -> str:
        found = judge({key: text})
        return found[1] if found is not None else ""

    return refuses


def _lacks(config: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, str] | None:
    if "kubeconfig" not in secrets:
        if "token" not in secrets:
            return "secret.kubeconfig", "Paste a kubeconfig, or give address, certificate authority and token."
        if not config.get("url"):
            return "config.url", "With a token, the API server's address is needed."
    if config.get("access") == "route":
        for key, sentence in _OF_ROUTES.items():
            if not config.get(key):
                return f"config.{key}", sentence
    for key in ("gateway_image", "vllm_image"):
        if not config.get(key) and config.get("access") != "lab":
            return f"config.{key}", "This is needed, pinned by digest."
    return tls_settings.lacks(config, secrets)


_OF_ROUTES: Final = {
    "zone": "Addresses by routes need a zone.",
    "route_parent": "Routes need the Gateway that they attach to.",
}
_IMAGE: Final = _matching(
    r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)+(:[\w.-]+)?@sha256:[0-9a-f]{64}",
    "Pin it by digest: registry/name@sha256:… with 64 hex digits.",
)

CONNECTION: Final = ProviderKind(
    slug="kubernetes",
    title="Kubernetes cluster",
    sentence="Namespaces and GPUs of a cluster, through its API.",
    icon="boxes",
    settings=(
        Setting(
            "url", "Address of the API server", "Not needed with a kubeconfig.",
            example="https://10.20.0.1:6443", refuses=_refuse_url,
        ),
        Setting(
            "ca_pem", "Certificate authority", "The certificate that signed the API server's. Not needed with a "
            "kubeconfig, or where this machine trusts it already.", is_long=True, refuses=_refuse_ca,
        ),
        Setting(
            "access", "How clients reach an endpoint", "The address of each endpoint follows from it.",
            choices=(
                ("route", "By a route of a shared Gateway (HTTPRoute)"),
                ("load-balancer", "By the platform's own load balancer"),
                ("cluster", "From inside the cluster only"),
                ("lab", "Laboratory: simulated pods on this machine"),
            ),
        ),
        Setting(
            "zone", "Zone", "The DNS zone of endpoint addresses: endpoint.tenant.zone.", example="models.example.net",
            refuses=_judged("zone"),
        ),
        tls_settings.setting(
            NONE, OWN_CA, FILES, CERT_MANAGER,
            more="With a load balancer; with routes TLS ends at the shared Gateway, and its listener has them.",
        ),
        Setting(
            "certificate_issuer", "Issuer", "With cert-manager: whom it has sign them. A wildcard needs one that "
            "proves names by DNS, or a private authority.", example="ClusterIssuer/internal",
            refuses=_judged("certificate_issuer"),
        ),
        Setting(
            "dns_records", "DNS records of endpoints", "People set the record that an endpoint’s page shows, or "
            "ExternalDNS does: by annotations on Services with a load balancer, else by routes. Endpoints can move to "
            "or from this provider only then. Or whoever resolves the names of the zone does it by himself, and no "
            "record is asked for.",
            choices=(
                ("show", "People set them"), ("external-dns", "ExternalDNS sets them"),
                ("none", "Nobody here: names are resolved elsewhere"),
            ),
        ),
        Setting(
            "endpoint_ca_pem", "Certificate authority of endpoints", "Who signed the certificates at endpoints’ "
            "addresses, where this machine does not trust him: addresses are looked at from outside with it.",
            is_long=True, refuses=_refuse_ca,
        ),
        Setting(
            "route_parent", "Shared Gateway", "Namespace, name and listener of the Gateway that routes attach to.",
            example="gateway-system/shared/https", refuses=_judged("route_parent"),
        ),
        Setting(
            "proxy", "Who may call endpoints", "Pods that may open connections to endpoints: those of the shared "
            "Gateway, or those of clients in the cluster. A namespace, and labels where not all of its pods may. "
            "Nobody else gets through. Empty: gateway-system. With a load balancer everybody may.",
            example="envoy-gateway-system:app.kubernetes.io/name=envoy", refuses=_judged("proxy"),
        ),
        Setting(
            "control_plane_cidrs", "Networks of this control plane", "Where endpoints' gateways may call home, "
            "separated by commas. Where network policies are enforced, a gateway never reports without it.",
            example="10.30.0.0/24", refuses=_judged("control_plane_cidrs"),
        ),
        Setting(
            "model_mirror_cidrs", "Networks of the model mirror", "Where model servers may load models from, "
            "separated by commas. Where network policies are enforced, they load from nowhere else.",
            example="10.40.0.10/32", refuses=_judged("model_mirror_cidrs"),
        ),
        Setting(
            "gateway_image", "Image of the gateway", "Pinned by digest.",
            example="registry.internal/tenantry/gateway@sha256:…", refuses=_IMAGE,
        ),
        Setting(
            "vllm_image", "Image of vLLM", "Pinned by digest.",
            example="registry.internal/vllm/vllm-openai@sha256:…", refuses=_IMAGE,
        ),
        Setting(
            "registries", "Registries", "Images of tenants come from these only, separated by commas. Empty: those of "
            "the two images above.", example="registry.internal/",
        ),
        Setting(
            "cache_gib", "Cache of models", "GiB that each model server keeps on a volume of its own, so that a "
            "restart does not load the model again. Empty or 0: the node's own disk, gone with the pod.",
            example="200", refuses=_judged("cache_gib"),
        ),
        Setting(
            "storage_class", "Storage class", "Of the caches of models, and of machines on a Supervisor. Empty: the "
            "cluster's default.", example="fast", refuses=_judged("storage_class"),
        ),
        Setting(
            "monitoring_namespace", "Namespace of the monitoring",
            "Its pods may read the metrics of endpoints. Empty: none may.", example="monitoring",
            refuses=_judged("monitoring_namespace"),
        ),
        Setting(
            "gateway_storage_class", "Storage class of gateways", "Where a gateway keeps its state. Empty: the node's "
            "own disk; a gateway that moves to another node is then enrolled anew by itself.", example="standard",
            refuses=_judged("gateway_storage_class"), is_advanced=True,
        ),
        Setting(
            "runtime_class", "Runtime class", "Of pods with GPUs, where the node's default runtime does not show GPUs "
            "to them. Empty: the node's default.", example="nvidia", refuses=_judged("runtime_class"),
            is_advanced=True,
        ),
        Setting(
            "read_only_root", "File system of model servers", "Writable is less safe; only for an image of vLLM that "
            "writes outside of /tmp and its models.",
            choices=(("true", "Read-only"), ("false", "Writable")), is_advanced=True,
        ),
        Setting(
            "layouts", "MIG layouts", "Whether people plan every change of how GPUs are carved, or what nobody uses is "
            "carved by itself for what waits. Needs the MIG manager of the GPU operator.",
            choices=(("fixed", "By plan"), ("on-idle", "Idle GPUs by themselves")), is_advanced=True,
        ),
        Setting(
            "pod_security_version", "Version of Pod Security", "Whose rules of the level “restricted” hold in tenants' "
            "namespaces. Empty: v1.36.", example="v1.36", refuses=_judged("pod_security_version"), is_advanced=True,
        ),
        Setting(
            "dns", "DNS of the cluster", "Pods that answer DNS: a namespace, and labels where it holds others too. "
            "Empty: kube-system:k8s-app=kube-dns.",
            example="openshift-dns:dns.operator.openshift.io/daemonset-dns=default", refuses=_judged("dns"),
            is_advanced=True,
        ),
        Setting(
            "dns_cidrs", "Networks of DNS", "Where DNS answers at an address that is no pod's, such as a cache on the "
            "node; separated by commas.", example="169.254.20.10/32", refuses=_judged("dns_cidrs"), is_advanced=True,
        ),
        Setting(
            "tls_server_name", "Name in the certificate", "Where the API server's certificate is for another name than "
            "its address. Not needed with a kubeconfig.", example="kubernetes.default.svc",
            refuses=_judged("tls_server_name"), is_advanced=True,
        ),
        Setting(
            "vm_gpu_types", "vGPU types of machines", "On a Supervisor: the types that its hosts have beside those "
            "that its VM classes name, separated by commas.", example="nvidia_h100xm-1-10c, nvidia_h100xm-80c",
            refuses=_judged("vm_gpu_types"), is_advanced=True,
        ),
        Setting(
            "vm_network", "Network of machines", "On a Supervisor: group/version/Kind/name. Empty: the namespace's "
            "default.", example="crd.nsx.vmware.com/v1alpha1/SubnetSet/vm-default", refuses=_judged("vm_network"),
            is_advanced=True,
        ),
        Setting(
            "vm_instance_uuid", "Instance UUID of machines", "On a Supervisor: it takes one from privileged accounts "
            "only.", choices=(("false", "Chosen by the Supervisor"), ("true", "Chosen by us")), is_advanced=True,
        ),
    ),
    credentials=(
        Credential(
            "kubeconfig", "Kubeconfig", "The whole file. One that would run a program or read a file is refused.",
            optional=True, is_long=True, refuses=_refuse_kubeconfig,
        ),
        Credential(
            "token", "Token", "Instead of a kubeconfig: the token of the service account in the file of rights.",
            optional=True, refuses=_refuse_token,
        ),
        *tls_settings.CREDENTIALS,
    ),
    rights=rbac.SENTENCES,
    documents=(
        Document(
            "The least it needs",
            "Apply this as an administrator of the cluster: it makes the account, its rights and the roles of "
            "people. The test names each right that is missing.",
            "rbac.yaml",
            rbac.document(),
        ),
    ),
    lacks=_lacks,
    more_keys=KEYS | {"layouts"},  # read by the control plane itself: `tenants.operations.idle_layouts`
    judges=judge,
)  # fmt: skip
