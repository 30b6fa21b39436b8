"""Who may do what in a cluster: the control plane's own rights, the roles of people, and how both are checked. Pure.

`deploy/kubernetes/rbac.yaml` is `document()`; a test compares them. The roles of people are cluster roles that this
file brings and that the control plane may only bind (`bind` on exactly these names): it can hand out none that an
administrator has not installed. Service accounts of people live in a namespace of ours, where nobody else may go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from provisioners.driver import FIELD_MANAGER
from provisioners.kubernetes.objects import MANAGED_BY_LABEL, Object

SYSTEM_NAMESPACE: Final = "tenantry-system"
"""Holds the control plane's account, acceptance pods, and those that bring files of models into mirrors."""
ACCESS_NAMESPACE: Final = "tenantry-access"
"""Holds the service accounts of people and the leases their tokens are bound to."""
ACCOUNT: Final = "tenantry"
ROLES: Final[Mapping[str, str]] = {
    "owner": "tenantry-owner",
    "member": "tenantry-member",
    "viewer": "tenantry-viewer",
}
"""Role of a membership → cluster role, bound in the tenant's namespace only."""
POLICIES: Final = (
    "tenantry-pods", "tenantry-gpus", "tenantry-services", "tenantry-marks", "tenantry-templates",
    "tenantry-pod-defaults", "tenantry-gpu-nodes",
)  # fmt: skip
"""Names of our admission policies and of their bindings."""
SENTENCES: Final = (
    "Read nodes, pods, device slices and what the cluster serves",
    "Label and cordon nodes, evict pods from them",
    "Make and change namespaces, quotas, network policies and workloads in them",
    "Keep its own admission policies, by name",
    "Bind the three roles of people, and make their tokens in a namespace of its own",
)

_READ: Final = ("get", "list", "watch")
_KEEP: Final = (*_READ, "create", "patch", "delete")
_KEEP_UNHEARD: Final = ("get", "list", "create", "patch", "delete")
"""Of what is looked at by sweeps only."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a role: every verb on every resource of one API group."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()
    """Only objects of these names; empty: all."""
    optional: bool = False
    """Only a feature is lost without it."""

    def as_rule(self) -> Object:
        """Return it as RBAC writes it."""
        made: Object = {"apiGroups": [self.group], "resources": list(self.resources), "verbs": list(self.verbs)}
        return made | ({"resourceNames": list(self.names)} if self.names else {})


CONTROL_PLANE: Final = (
    Rule("", ("nodes",), ("get", "list", "patch"), "see GPUs; set MIG layouts, cordon"),
    Rule("", ("namespaces",), _KEEP, "one per boundary"),
    Rule("", ("pods",), _KEEP, "see foreign use; acceptance; repair"),
    Rule("", ("pods/log",), ("get",), "show logs of endpoints"),
    Rule("", ("pods/eviction",), ("create",), "drain a node"),
    Rule("", ("events",), ("list",), "say why something does not start"),
    Rule("", ("configmaps", "services", "serviceaccounts", "resourcequotas", "limitranges"), _KEEP,
         "what a boundary and an endpoint consist of"),
    Rule("", ("persistentvolumeclaims",), _KEEP_UNHEARD, "caches of models, state of gateways"),
    Rule("", ("secrets",), _KEEP, "deliver keys; see that they are still there"),
    Rule("apps", ("deployments",), _KEEP, "gateways and model servers"),
    Rule("networking.k8s.io", ("networkpolicies",), _KEEP, "close the network"),
    Rule("policy", ("poddisruptionbudgets",), _KEEP_UNHEARD, "keep endpoints up while nodes are drained"),
    Rule("rbac.authorization.k8s.io", ("rolebindings",), _KEEP, "give people their role in their namespace"),
    Rule("rbac.authorization.k8s.io", ("roles", "clusterroles", "clusterrolebindings"), ("get", "list"),
         "look for holes"),
    Rule("rbac.authorization.k8s.io", ("clusterroles",), ("bind",), "the roles of people, and no others",
         names=tuple(ROLES.values())),
    Rule("resource.k8s.io", ("resourceclaims",), _KEEP, "claim devices"),
    Rule("resource.k8s.io", ("resourceslices", "deviceclasses"), ("list",), "see devices"),
    Rule("admissionregistration.k8s.io", ("validatingadmissionpolicies", "validatingadmissionpolicybindings",
                                          "mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
         ("get", "create", "patch"), "our admission policies, by name", names=POLICIES),
    Rule("admissionregistration.k8s.io", ("validatingadmissionpolicies", "validatingadmissionpolicybindings",
                                          "mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
         ("list",), "see that our admission policies are as we made them"),
    Rule("storage.k8s.io", ("storageclasses",), ("list",), "look for the configured class"),
    Rule("storage.k8s.io", ("csidrivers",), ("get",), "see whether a mirror on NFS can be mounted",
         names=("nfs.csi.k8s.io",), optional=True),
    Rule("node.k8s.io", ("runtimeclasses",), ("list",), "look for the configured class"),
    Rule("gateway.networking.k8s.io", ("httproutes",), _KEEP, "publish addresses", optional=True),
    Rule("gateway.networking.k8s.io", ("gateways",), ("get",), "look at the shared Gateway", optional=True),
    Rule("monitoring.coreos.com", ("podmonitors",), _KEEP_UNHEARD, "have endpoints scraped", optional=True),
    Rule("cert-manager.io", ("certificates",), _KEEP_UNHEARD, "have cert-manager make certificates", optional=True),
    Rule("vmoperator.vmware.com", ("virtualmachines",), _KEEP, "machines on a Supervisor", optional=True),
    Rule("vmoperator.vmware.com", ("virtualmachineclasses",), ("list", "create", "patch"),
         "make the shapes of machines, or choose among those that are there", optional=True),
    Rule("nvidia.com", ("clusterpolicies",), ("get",), "read the GPU operator's settings", optional=True),
)  # fmt: skip
"""Rights of the control plane in the whole cluster."""
IN_ACCESS_NAMESPACE: Final = (
    Rule("", ("serviceaccounts/token",), ("create",), "tokens of people, an hour at most"),
)  # fmt: skip
"""Rights in `ACCESS_NAMESPACE` only: nowhere else can it make a token."""

_WORKLOADS: Final = (
    Rule("", ("pods", "services", "configmaps", "persistentvolumeclaims", "events", "endpoints",
              "resourcequotas", "limitranges", "serviceaccounts"), _READ, "see"),
    Rule("apps", ("deployments", "replicasets", "statefulsets"), _READ, "see"),
    Rule("batch", ("jobs", "cronjobs"), _READ, "see"),
    Rule("discovery.k8s.io", ("endpointslices",), _READ, "see"),
    Rule("networking.k8s.io", ("networkpolicies",), _READ, "see why a connection is refused"),
    Rule("policy", ("poddisruptionbudgets",), _READ, "see"),
    Rule("resource.k8s.io", ("resourceclaims",), _READ, "see the devices of claims"),
)  # fmt: skip
_CHANGES: Final = ("create", "update", "patch", "delete")
_USING: Final = (
    Rule("", ("pods", "services", "configmaps", "persistentvolumeclaims"), _CHANGES, "work"),
    # No get, list or watch: the gateway's and the runtime's secrets lie in the same namespace.
    Rule("", ("secrets",), _CHANGES, "deliver own secrets; none can be read"),
    Rule("", ("pods/log",), ("get",), "read logs"),
    Rule("", ("pods/exec", "pods/attach", "pods/portforward"), ("create", "get"), "into own pods; see admission"),
    Rule("apps", ("deployments", "statefulsets"), _CHANGES, "work"),
    Rule("apps", ("deployments/scale", "statefulsets/scale"), ("get", "update", "patch"), "work"),
    Rule("batch", ("jobs", "cronjobs"), _CHANGES, "work"),
    Rule("policy", ("poddisruptionbudgets",), _CHANGES, "work"),
)  # fmt: skip
PEOPLE: Final[Mapping[str, tuple[Rule, ...]]] = {
    "owner": (
        *_WORKLOADS,
        *_USING,
        Rule("rbac.authorization.k8s.io", ("rolebindings",), _READ, "see who is let in"),
    ),
    "member": (*_WORKLOADS, *_USING),
    "viewer": _WORKLOADS,
}
"""What a membership's role may do in its own namespace.

Withheld on purpose: role bindings, network policies, quotas, claims of devices (our API offers what they are for).
"""


# --- the file ---------------------------------------------------------------------------------------------


def objects() -> tuple[Object, ...]:
    """Return everything of the file: namespaces, our account and its rights, the roles of people."""
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM_NAMESPACE}
    return (
        _namespace(SYSTEM_NAMESPACE),
        _namespace(ACCESS_NAMESPACE),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": SYSTEM_NAMESPACE, "labels": _labels()},
            "automountServiceAccountToken": False,
        },
        _role("ClusterRole", ACCOUNT, CONTROL_PLANE),
        _binding("ClusterRoleBinding", ACCOUNT, account),
        _role("Role", ACCOUNT, IN_ACCESS_NAMESPACE, ACCESS_NAMESPACE),
        _binding("RoleBinding", ACCOUNT, account, ACCESS_NAMESPACE),
        *(_role("ClusterRole", name, PEOPLE[word]) for word, name in ROLES.items()),
    )


def document() -> str:
    """Return `deploy/kubernetes/rbac.yaml`."""
    head = "# Generated from provisioners/kubernetes/rbac.py. Apply as an administrator: kubectl apply -f rbac.yaml\n"
    return head + "---\n".join(yaml.safe_dump(obj, sort_keys=False, width=110) for obj in objects())


def _labels() -> dict[str, str]:
    return {MANAGED_BY_LABEL: f"{FIELD_MANAGER}-install"}


def _namespace(name: str) -> Object:
    level = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")
    }  # acceptance pods obey it like everything else
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": _labels() | level}}


def _role(kind: str, name: str, rules: Iterable[Rule], namespace: str = "") -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {}), "labels": _labels()},
        "rules": [rule.as_rule() for rule in rules],
    }


def _binding(kind: str, name: str, subject: Object, namespace: str = "") -> Object:
    role = "ClusterRole" if kind == "ClusterRoleBinding" else "Role"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {}), "labels": _labels()},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name},
        "subjects": [subject],
    }


def role_binding(namespace: str, role: str, accounts: Sequence[str]) -> Object:
    """Return the binding of one role of people to accounts of `ACCESS_NAMESPACE`; our mark is the caller's to add."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": ROLES[role], "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLES[role]},
        "subjects": [
            {"kind": "ServiceAccount", "name": name, "namespace": ACCESS_NAMESPACE} for name in sorted(accounts)
        ],
    }


# --- rights, one by one -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource, as an access review asks for it."""

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""
    why: str = ""
    optional: bool = False

    @property
    def words(self) -> str:
        """Return it for people: `patch nodes`, `create serviceaccounts/token in tenantry-access`."""
        group = f".{self.group}" if self.group else ""
        resource, _, below = self.resource.partition("/")
        text = f"{self.verb} {resource}{group}{f'/{below}' if below else ''}"
        text += f" {self.name}" if self.name else ""
        return text + (f" in {self.namespace}" if self.namespace else "")

    def review(self) -> Object:
        """Return the SelfSubjectAccessReview that asks whether the caller has it."""
        resource, _, below = self.resource.partition("/")
        attributes = {
            "group": self.group,
            "resource": resource,
            "subresource": below,
            "verb": self.verb,
            "namespace": self.namespace,
            "name": self.name,
        }
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "metadata": {},
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }


def needed() -> tuple[Right, ...]:
    """Return every right of the control plane, one by one."""
    return (*_rights(CONTROL_PLANE, ""), *_rights(IN_ACCESS_NAMESPACE, ACCESS_NAMESPACE))


def _rights(rules: Iterable[Rule], namespace: str) -> Iterator[Right]:
    for rule in rules:
        for resource in rule.resources:
            for verb in rule.verbs:
                for name in rule.names or ("",):
                    yield Right(rule.group, resource, verb, namespace, name, rule.why, rule.optional)


def allows(rules: Iterable[Mapping[str, Any]], right: Right) -> bool:
    """Whether resource rules (of a role, or of a SelfSubjectRulesReview's status) give a right.

    A rule for certain names gives it only where the right names one of them.
    """
    return any(
        _has(rule.get("verbs"), right.verb)
        and _has(rule.get("apiGroups"), right.group)
        and _has_resource(rule.get("resources"), right.resource)
        and (not rule.get("resourceNames") or (right.name != "" and right.name in rule["resourceNames"]))
        for rule in rules
    )


def touches(rules: Iterable[Mapping[str, Any]], right: Right) -> bool:
    """Whether resource rules give a right on anything at all, be it on objects of certain names only."""
    return allows(({**rule, "resourceNames": None} for rule in rules), right)


def _has(values: Iterable[str] | None, wanted: str) -> bool:
    return any(value in {"*", wanted} for value in values or ())


def _has_resource(values: Iterable[str] | None, wanted: str) -> bool:
    _resource, _, below = wanted.partition("/")
    return any(value in {"*", wanted} or (below and value == f"*/{below}") for value in values or ())


def rules_review(namespace: str) -> Object:
    """Return the SelfSubjectRulesReview of one namespace."""
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "metadata": {},
        "spec": {"namespace": namespace},
    }
