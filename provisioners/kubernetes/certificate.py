"""The isolation certificate of one namespace: what was really tried against it, with which outcome.

The 18 checks are those of the multi-tenancy benchmarks (kubernetes-sigs/multi-tenancy, benchmarks; ids as there, two
share MTB-PL1-BC-HI-1), five and the access reviews are ours. Attempts are made with tokens of probes: accounts with
exactly the roles of people, made for the run and taken away with it; all of them are dry runs. A refusal counts only
with the reason it should have: one that something else happened to stop is not shown to hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from provisioners.driver import Certificate, DriverError, IsolationCheck, Ref, TransientDriverError
from provisioners.kubernetes import access, admission, rbac
from provisioners.kubernetes.boundary import DEFAULT_DENY, QUOTA, account_name
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.network import Network, Peer, Port, network
from provisioners.kubernetes.objects import (
    COMPONENT_LABEL,
    MANAGED_BY_LABEL,
    TENANT_LABEL,
    Object,
    dig,
    labels,
    name_of,
    ref_of,
    uid_of,
)
from provisioners.kubernetes.rbac import ACCESS_NAMESPACE, Right
from provisioners.kubernetes.settings import GATEWAY_PORT, SERVING_PORT, Settings

PASSED: Final = "passed"
FAILED: Final = "failed"
WITHHELD: Final = "withheld"
UNKNOWN: Final = "unknown"
REVOKED_WITHIN_S: Final = 5.0
SETTLED_WITHIN_S: Final = 10.0
"""For how long a probe's rights may take to reach the API server."""
MOST_NEIGHBOURS: Final = 3
PROBE: Final = "tenantry-certificate"
"""Names of the probes' bindings begin with it."""

TITLES: Final[Mapping[str, str]] = {
    "MTB-PL1-CC-CPI-1": "People reach nothing that belongs to the whole cluster",
    "MTB-PL1-BC-CPI-2": "People do not change what the platform shares with them",
    "MTB-PL1-BC-CPI-3": "No added capabilities",
    "MTB-PL1-BC-CPI-4": "Nothing runs as root",
    "MTB-PL1-BC-CPI-5": "No privileged containers",
    "MTB-PL1-BC-CPI-6": "No raising of privileges",
    "MTB-PL1-CC-TI-1": "People do not change their quotas",
    "MTB-PL1-CC-TI-2": "People reach nothing of other tenants",
    "MTB-PL1-BC-HI-1": "No directories of the node",
    "MTB-PL1-BC-HI-1-ports": "No ports on nodes",
    "MTB-PL1-BC-HI-3": "Not the node's network",
    "MTB-PL1-BC-HI-4": "Not the node's processes",
    "MTB-PL1-BC-HI-5": "Not the node's shared memory",
    "MTB-PL1-CC-FNS-1": "Quotas bound every resource, each kind of GPU included",
    "MTB-PL1-CC-FNS-2": "Quotas bound numbers of objects",
    "MTB-PL1-CC-DI-1": "Images are pulled anew, with the pod's own rights",
    "MTB-PL2-BC-OPS-3": "People make role bindings in their namespace",
    "MTB-PL2-BC-OPS-4": "People make network policies in their namespace",
    "TEN-1-claim": "Nobody uses devices handed to another",
    "TEN-2-image": "Only images of the platform's registries, pinned by digest",
    "TEN-3-node": "GPUs only with a placement, and only on its node",
    "TEN-4-peer": "The network lets nobody else in, and nobody out",
    "TEN-5-token": "A token is refused within 5 s of leaving",
    "TEN-6-roles": "Each role may exactly what it should, and nobody else is let in",
}
"""Every check, in the order in which it is shown."""
BASE: Final = frozenset(
    {
        ("authentication.k8s.io", "selfsubjectreviews", "create"),
        ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
        ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
    }
)
"""What `system:basic-user` gives to everybody; `system:discovery` and `system:public-info-viewer` give paths only."""
BASE_PATHS: Final = frozenset(
    {
        "/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version", "/version/", "/healthz", "/livez",
        "/readyz", "/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks",
        "/openid/v1/jwks/",
    }
)  # fmt: skip
"""Paths of those two roles, and the public keys of service accounts (`system:service-account-issuer-discovery`)."""
VERBS: Final = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
_POD_SECURITY: Final = ("violates PodSecurity",)


def certify(
    cluster: Cluster, settings: Settings, ref: Ref, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Certificate:
    """Try everything against one boundary and say what held. Raises `DriverError` where that cannot even begin."""
    began = now()
    seen = _read(cluster, ref)
    examined = _Examined(cluster, settings, ref, seen)
    with _probes(cluster, settings, ref) as probes:
        found = {check.key: check for check in examined.run(probes)}
    checks = tuple(
        found.get(key, IsolationCheck(key, title, UNKNOWN, "It could not be tried.")) for key, title in TITLES.items()
    )
    return Certificate(ref, began, cluster.version(), checks, _unshown(settings, seen), simulated=settings.lab)


def _unshown(settings: Settings, seen: _Seen) -> tuple[str, ...]:
    """Return what no check of ours can show."""
    found = [
        "Whether the network plug-in enforces the policies: what they mean was evaluated, no packet was sent.",
        "Isolation of memory and timing between parts of one GPU: that is the hardware's.",
        "Attempts were dry runs: admission answered them as it would in earnest, nothing was started.",
    ]
    if not seen.neighbours:
        found.append("No other tenant is on this cluster: a namespace made up stood in for its own.")
    if settings.lab or settings.access == "lab":
        found.append("This cluster is a laboratory: its nodes and pods are simulated.")
    return tuple(found)


# --- what is there ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read before anything was tried."""

    namespaces: tuple[Object, ...]
    policies: tuple[Object, ...]
    quotas: tuple[Object, ...]
    bindings: tuple[Object, ...]
    gpu_resources: frozenset[str]
    neighbours: tuple[str, ...]
    """Namespaces of other tenants."""
    resources: tuple[tuple[str, str, bool], ...]
    """(group, resource with its subresource, whether it lies in namespaces)."""


def _read(cluster: Cluster, ref: Ref) -> _Seen:
    namespaces = cluster.list("v1", "Namespace").items
    if not any(name_of(one) == ref.name for one in namespaces):
        msg = f"namespace {ref.name} is not there"
        raise TransientDriverError(msg)
    nodes = cluster.list("v1", "Node").items
    others = [one for one in namespaces if _is_another(one, ref)]
    resources = {
        (one.group, name, one.namespaced)
        for one in cluster.resources()
        for name in (one.plural, *(f"{one.plural}/{below}" for below, _verbs in one.subresources))
    }
    return _Seen(
        namespaces=namespaces,
        policies=cluster.list("networking.k8s.io/v1", "NetworkPolicy").items,
        quotas=cluster.list("v1", "ResourceQuota", namespace=ref.name).items,
        bindings=cluster.list("rbac.authorization.k8s.io/v1", "RoleBinding", namespace=ref.name).items,
        gpu_resources=frozenset(
            name
            for node in nodes
            for name in dig(node, "status", "capacity", default={})
            if "/" in name and not name.partition("/")[0].endswith("kubernetes.io")
        ),
        neighbours=tuple(sorted(name_of(one) for one in others)[:MOST_NEIGHBOURS]),
        resources=tuple(sorted(resources)),
    )


def _is_another(namespace: Object, ref: Ref) -> bool:
    tenant = labels(namespace).get(TENANT_LABEL)
    return tenant is not None and tenant != str(ref.tenant_uid)


# --- probes -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Probes:
    """An account for each role, with a client that uses its token."""

    clients: Mapping[str, Cluster]
    names: Mapping[str, str]


@contextmanager
def _probes(cluster: Cluster, settings: Settings, ref: Ref) -> Iterator[_Probes]:
    """Make an account for each role, and take them away whatever happens."""
    names = {word: account_name(ref, f"certificate/{word}") for word in rbac.ROLES}
    clients: dict[str, Cluster] = {}
    try:
        for word, name in names.items():
            for obj in _probe_objects(ref, word, name):
                cluster.apply(obj)
            token = access.mint(cluster, ref, f"certificate/{word}", seconds=access.SHORTEST_S)
            clients[word] = Cluster(replace(settings, token=token.value, client_certificate=None, client_key=None))
        _await_rights(clients.values(), ref)
        yield _Probes(clients, names)
    finally:
        for client in clients.values():
            client.close()
        for word, name in names.items():
            _dismiss(cluster, ref, word, name)


def _probe_objects(ref: Ref, word: str, name: str) -> tuple[Object, ...]:
    head = {"labels": {MANAGED_BY_LABEL: PROBE}}
    binding = rbac.role_binding(ref.name, word, [name])
    binding["metadata"] = {"name": f"{PROBE}-{word}", "namespace": ref.name, **head}
    account = {"name": name, "namespace": ACCESS_NAMESPACE, **head}
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account, "automountServiceAccountToken": False},
        {"apiVersion": "v1", "kind": "Secret", "metadata": account, "type": "Opaque"},
        binding,
    )


def _await_rights(clients: Iterable[Cluster], ref: Ref) -> None:
    for client in clients:
        _within(SETTLED_WITHIN_S, lambda client=client: _rules(client, ref.name)[0])  # type: ignore[misc]


def _dismiss(cluster: Cluster, ref: Ref, word: str, name: str) -> None:
    for api, kind, called, namespace in (
        ("rbac.authorization.k8s.io/v1", "RoleBinding", f"{PROBE}-{word}", ref.name),
        ("v1", "Secret", name, ACCESS_NAMESPACE),
        ("v1", "ServiceAccount", name, ACCESS_NAMESPACE),
    ):
        live = cluster.get(api, kind, called, namespace)
        if live is not None and labels(live).get(MANAGED_BY_LABEL) == PROBE:
            cluster.delete(api, kind, called, namespace, uid=uid_of(live), propagation="Background")


def _within(limit_s: float, check: Callable[[], Any]) -> float:
    """Ask until `check` is true; return how long it took. Raises `TransientDriverError` after `limit_s`."""
    started = time.monotonic()
    while not check():
        if time.monotonic() - started > limit_s:
            msg = "the cluster did not take up a change in time"
            raise TransientDriverError(msg)
        time.sleep(0.1)  # noqa: TID251  asks a server again
    return time.monotonic() - started


Rules = tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]
"""(rules on resources, rules on paths)."""


def _rules(client: Cluster, namespace: str) -> Rules:
    status: Any = client.create(rbac.rules_review(namespace)).get("status") or {}
    own = [
        rule
        for rule in status.get("resourceRules") or ()
        if not {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]} <= BASE
    ]
    return tuple(own), tuple(status.get("nonResourceRules") or ())


# --- trying -----------------------------------------------------------------------------------------------


class _Examined:
    """One run against one boundary."""

    def __init__(self, cluster: Cluster, settings: Settings, ref: Ref, seen: _Seen) -> None:
        self._cluster, self._settings, self._ref, self._seen = cluster, settings, ref, seen
        self._namespace = ref.name
        registry = settings.allowed_registries[0] if settings.allowed_registries else "registry.invalid/"
        self._image = f"{admission.prefix(registry)}tenantry/certificate@sha256:{'0' * 64}"

    def run(self, probes: _Probes) -> Iterator[IsolationCheck]:
        """Yield every check; the token's is last, it ends a probe."""
        yield from self._reviews(probes)
        yield from self._quotas()
        yield from self._attempts(probes.clients["member"])
        yield self._shared(probes.clients["owner"])
        yield self._pulling(probes.clients["member"])
        yield self._network()
        yield self._token(probes)

    # --- access reviews

    def _reviews(self, probes: _Probes) -> Iterator[IsolationCheck]:
        """Compare what each role may, here, elsewhere and in the whole cluster, with what it should."""
        here = {word: _rules(client, self._namespace) for word, client in probes.clients.items()}
        extra: list[str] = [f"{word} may not {words}" for word in here for words in self._lacking(word, here[word][0])]
        for word, (rules, _paths) in here.items():
            wanted = [rule.as_rule() for rule in rbac.PEOPLE[word]]
            extra += [
                f"{word} may {right.words}"
                for right in self._rights(rules, namespaced=True)
                if not rbac.allows(wanted, right)
            ]
        strangers = [*self._strangers(), *extra]
        yield _check("TEN-6-roles", strangers, f"{len(self._seen.resources)} resources, {len(VERBS)} verbs, 3 roles.")

        cluster_wide, foreign = [], []
        places = (*self._seen.neighbours, ACCESS_NAMESPACE, rbac.SYSTEM_NAMESPACE, "kube-system", "default")
        for word, client in probes.clients.items():
            for place in places:
                rules, paths = _rules(client, place)
                foreign += [f"{word} may {right.words} in {place}" for right in self._rights(rules, namespaced=True)]
                cluster_wide += [f"{word} may {right.words}" for right in self._rights(rules, namespaced=False)]
                cluster_wide += [
                    f"{word} may {verb} {path}"
                    for rule in paths
                    for path in rule.get("nonResourceURLs") or ()
                    for verb in rule.get("verbs") or ()
                    if path not in BASE_PATHS or verb != "get"
                ]
        own = [f"{w} may {r.words}" for w, (rules, _p) in here.items() for r in self._rights(rules, namespaced=False)]
        yield _check(
            "MTB-PL1-CC-CPI-1", [*own, *cluster_wide],
            "Exactly what system:basic-user, system:discovery and system:public-info-viewer give, and the public keys "
            "of service accounts.",
        )  # fmt: skip
        yield _check("MTB-PL1-CC-TI-2", foreign, f"Nothing in {', '.join(places)}.")
        for key, resources, offer in (
            ("MTB-PL1-CC-TI-1", (("", "resourcequotas"), ("", "limitranges")), ""),
            ("MTB-PL2-BC-OPS-3", (("rbac.authorization.k8s.io", "rolebindings"),), "members are let in and out"),
            ("MTB-PL2-BC-OPS-4", (("networking.k8s.io", "networkpolicies"),), "traffic is opened or cut off"),
        ):
            given = [
                f"{word} may {right.words}"
                for word, (rules, _paths) in here.items()
                for group, resource in resources
                for verb in ("create", "update", "patch", "delete", "deletecollection")
                if rbac.allows(rules, right := Right(group, resource, verb))
            ]
            found = _check(key, given, "No role may change them.")
            if offer and not given:
                words = f"Withheld on purpose: {offer} through the platform, which records who and why."
                found = replace(found, outcome=WITHHELD, seen=words)
            yield found

    def _rights(self, rules: Sequence[Mapping[str, Any]], *, namespaced: bool) -> list[Right]:
        """Return every verb on every resource of the cluster that rules give, of one scope; base rights left out."""
        if not rules:
            return []
        return [
            right
            for group, resource, inside in self._seen.resources
            if inside is namespaced
            for verb in VERBS
            if (group, resource, verb) not in BASE and rbac.allows(rules, right := Right(group, resource, verb))
        ]

    def _lacking(self, word: str, rules: Sequence[Mapping[str, Any]]) -> list[str]:
        served = {(group, resource) for group, resource, _inside in self._seen.resources}
        return [
            right.words
            for rule in rbac.PEOPLE[word]
            for resource in rule.resources
            for verb in rule.verbs
            if (rule.group, resource) in served and not rbac.allows(rules, right := Right(rule.group, resource, verb))
        ]

    def _strangers(self) -> list[str]:
        """Return bindings in the namespace that are none of ours, or bind whom ours do not."""
        found = []
        for binding in self._seen.bindings:
            name = name_of(binding)
            if name.startswith(f"{PROBE}-"):
                continue
            role, subjects = str(dig(binding, "roleRef", "name")), binding.get("subjects") or []
            if name not in rbac.ROLES.values() or role != name or ref_of(binding) != self._ref:
                who = ", ".join(str(one.get("name")) for one in subjects)
                found.append(f"role binding {name} gives {role} to {who or 'nobody'}")
                continue
            found += [
                f"role binding {name} lets {one.get('kind')} {one.get('name')} in"
                for one in subjects
                if one.get("kind") != "ServiceAccount" or one.get("namespace") != ACCESS_NAMESPACE
            ]
        return found

    # --- quotas

    def _quotas(self) -> Iterator[IsolationCheck]:
        hard: dict[str, str] = {}
        for quota in self._seen.quotas:
            hard |= dig(quota, "spec", "hard", default={})
        wanted = ["requests.cpu", "requests.memory", "limits.memory", "requests.storage"]
        wanted += [f"requests.{name}" for name in sorted(self._seen.gpu_resources)]
        missing = [f"{name} is not bounded" for name in wanted if name not in hard]
        yield _check("MTB-PL1-CC-FNS-1", missing, f"{len(wanted)} resources, each with a limit.")
        counts = ["pods", "persistentvolumeclaims", "count/deployments.apps", "count/secrets", "count/configmaps"]
        missing = [f"{name} is not bounded" for name in counts if name not in hard]
        yield _check("MTB-PL1-CC-FNS-2", missing, f"{', '.join(counts)}.")

    # --- attempts

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

    def _attempts(self, member: Cluster) -> Iterator[IsolationCheck]:
        """Try what a member must be refused, one object after the other."""
        gpu = min(self._seen.gpu_resources, default="nvidia.com/gpu")
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
            yield _judged(key, [_attempt(member, what, obj, words) for what, obj, words in tries])

    def _service(self, kind: str) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"certificate-{uuid4().hex[:8]}", "namespace": self._namespace},
            "spec": {"type": kind, "selector": {"app": "certificate"}, "ports": [{"port": 80}]},
        }

    def _shared(self, owner: Cluster) -> IsolationCheck:
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
        return _judged("MTB-PL1-BC-CPI-2", [_attempt(owner, what, obj, words) for what, obj, words in tries])

    def _pulling(self, member: Cluster) -> IsolationCheck:
        key = "MTB-PL1-CC-DI-1"
        try:
            made = member.apply(self._pod({"imagePullPolicy": "IfNotPresent"}), dry_run=True)
        except DriverError as error:
            return _judged(key, [_refused("an image is taken from the node's cache", error, ("imagePullPolicy",))])
        policy = str(dig(made, "spec", "containers", 0, "imagePullPolicy", default=""))
        holes = [] if policy == "Always" else [f"an image is taken from the node's cache ({policy})"]
        return _check(key, holes, "IfNotPresent was turned into Always.")

    # --- network

    def _network(self) -> IsolationCheck:
        holes = list(
            dict.fromkeys(network_holes(self._seen.namespaces, self._seen.policies, self._settings, self._ref))
        )
        return _check("TEN-4-peer", holes, "Every connection but the platform's own is refused by the policies.")

    # --- token

    def _token(self, probes: _Probes) -> IsolationCheck:
        """End a probe as a membership ends, and look how long its token is still taken."""
        key, word = "TEN-5-token", "viewer"
        client = probes.clients[word]
        try:
            client.list("v1", "Pod", namespace=self._namespace)
        except DriverError as error:
            return IsolationCheck(key, TITLES[key], UNKNOWN, f"The token never worked: {error.raw[:200]}")
        _dismiss(self._cluster, self._ref, word, probes.names[word])
        refusal = ""

        def is_refused() -> bool:
            nonlocal refusal
            try:
                client.list("v1", "Pod", namespace=self._namespace)
            except DriverError as error:
                refusal = error.raw[:3]
            return refusal in {"401", "403"}

        try:
            took_s = _within(REVOKED_WITHIN_S, is_refused)
        except TransientDriverError:
            return _check(key, [f"it was still taken after {REVOKED_WITHIN_S:.0f} s"], "")
        return _check(key, [], f"Refused with {refusal} after {took_s:.1f} s.")


# --- judging ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Try:
    """One attempt: refused for the right reason (`held`), let through (`hole`), or stopped by something else."""

    what: str
    outcome: str
    words: str


def _attempt(client: Cluster, what: str, obj: Object, words: tuple[str, ...]) -> _Try:
    try:
        client.apply(obj, dry_run=True)
    except DriverError as error:
        return _refused(what, error, words)
    return _Try(what, FAILED, "was let through")


def _refused(what: str, error: DriverError, words: tuple[str, ...]) -> _Try:
    if any(word in error.raw for word in words):
        return _Try(what, PASSED, error.raw)
    if "exceeded quota" in error.raw:
        return _Try(what, FAILED, "only the quota stood in its way")  # quota is asked last: all else let it through
    return _Try(what, UNKNOWN, f"was stopped by something else: {error.raw[:200] or error.detail}")


def _judged(key: str, tries: Sequence[_Try]) -> IsolationCheck:
    worst = next((o for o in (FAILED, UNKNOWN) if any(one.outcome == o for one in tries)), PASSED)
    if worst == PASSED:
        return IsolationCheck(key, TITLES[key], PASSED, "Refused: " + "; ".join(one.what for one in tries) + ".")
    return IsolationCheck(
        key, TITLES[key], worst, "; ".join(f"{one.what}: {one.words}" for one in tries if one.outcome == worst)
    )


def _check(key: str, holes: Sequence[str], held: str) -> IsolationCheck:
    if not holes:
        return IsolationCheck(key, TITLES[key], PASSED, held)
    unique = list(dict.fromkeys(holes))
    more = f" and {len(unique) - 5} more" if len(unique) > 5 else ""
    return IsolationCheck(key, TITLES[key], FAILED, "; ".join(unique[:5]) + more)


# --- network policies -------------------------------------------------------------------------------------

PORTS: Final = (Port(22), Port(53), Port(53, "UDP"), Port(80), Port(443), Port(GATEWAY_PORT), Port(SERVING_PORT))
OUTSIDE: Final = (Peer("the internet", address="203.0.113.7"), Peer("the node's metadata", address="169.254.169.254"))
STAND_IN: Final = "another-tenant"


def network_holes(
    namespaces: Sequence[Object], policies: Sequence[Object], settings: Settings, ref: Ref
) -> Iterator[str]:
    """Yield each connection of a boundary that its policies let through and must not. Pure."""
    stand_in: Object = {"metadata": {"name": STAND_IN, "labels": {TENANT_LABEL: str(UUID(int=0))}}}
    net = network((*namespaces, stand_in), policies)
    others = [name_of(one) for one in namespaces if _is_another(one, ref)][:MOST_NEIGHBOURS]
    mine = _pods(ref.name)
    strangers = [pod for name in (*others, STAND_IN, "default", "kube-system") for pod in _pods(name)]
    for pod in mine:
        for port in PORTS:
            yield from _into(net, strangers, pod, port, settings)
            yield from _out_of(net, pod, strangers, port, settings)
    free, replica, gateway = mine[2], mine[1], mine[0]
    for target in (replica, gateway):
        for port in (Port(SERVING_PORT), Port(GATEWAY_PORT)):
            if net.lets(free, target, port):
                yield f"a pod of the tenant reaches its {target.name} past the gateway on port {port.number}"


def _pods(namespace: str) -> tuple[Peer, Peer, Peer]:
    return (
        Peer("gateway", namespace, {COMPONENT_LABEL: "gateway"}),
        Peer("model server", namespace, {COMPONENT_LABEL: "replica"}),
        Peer("pod", namespace, {"app": "anything"}),
    )


def _into(net: Network, strangers: Sequence[Peer], pod: Peer, port: Port, settings: Settings) -> Iterator[str]:
    for stranger in (*strangers, OUTSIDE[0]):
        if stranger.namespace in {settings.monitoring_namespace, settings.proxy.namespace} - {""}:
            continue
        # Only our side counts: a stranger's own policies are his to open.
        if net.lets_in(stranger, pod, port):
            by = ", ".join(net.by(stranger, pod, port))
            yield f"{_place(stranger)} reaches a {pod.name} on port {port.number} ({f'by {by}' if by else 'unguarded'})"


def _out_of(net: Network, pod: Peer, strangers: Sequence[Peer], port: Port, settings: Settings) -> Iterator[str]:
    for target in (*strangers, *OUTSIDE):
        if target.namespace == settings.dns.namespace and port.number == 53:
            continue
        if net.lets_out(pod, target, port):
            yield f"a {pod.name} reaches {_place(target)} on port {port.number}"


def _place(peer: Peer) -> str:
    return f"a {peer.name} of {peer.namespace}" if peer.namespace else peer.name
