"""No right is asked for that the driver does not use, and it makes no call for which it asks no right.

Calls are found in the driver's source by what they say (`cluster.list("v1", "Node")`); those that are given an object
or a kind of a table are named here by that table.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from provisioners.kubernetes import admission, inventory, rbac, referred
from provisioners.kubernetes.ground import INSIDE, MADE_BY
from provisioners.kubernetes.vm_service import kinds
from provisioners.kubernetes.watching import HEARD

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "provisioners" / "kubernetes"
KINDS = {
    "nodes": "Node", "namespaces": "Namespace", "pods": "Pod", "events": "Event", "configmaps": "ConfigMap",
    "services": "Service", "serviceaccounts": "ServiceAccount", "resourcequotas": "ResourceQuota",
    "limitranges": "LimitRange", "persistentvolumeclaims": "PersistentVolumeClaim", "secrets": "Secret",
    "deployments": "Deployment", "networkpolicies": "NetworkPolicy", "poddisruptionbudgets": "PodDisruptionBudget",
    "rolebindings": "RoleBinding", "roles": "Role", "clusterroles": "ClusterRole",
    "clusterrolebindings": "ClusterRoleBinding", "resourceclaims": "ResourceClaim", "resourceslices": "ResourceSlice",
    "deviceclasses": "DeviceClass", "validatingadmissionpolicies": "ValidatingAdmissionPolicy",
    "validatingadmissionpolicybindings": "ValidatingAdmissionPolicyBinding",
    "mutatingadmissionpolicies": "MutatingAdmissionPolicy",
    "mutatingadmissionpolicybindings": "MutatingAdmissionPolicyBinding", "storageclasses": "StorageClass",
    "runtimeclasses": "RuntimeClass", "httproutes": "HTTPRoute", "gateways": "Gateway", "podmonitors": "PodMonitor",
    "virtualmachines": "VirtualMachine", "virtualmachineclasses": "VirtualMachineClass",
    "clusterpolicies": "ClusterPolicy", "certificates": "Certificate", "csidrivers": "CSIDriver",
}  # fmt: skip
"""Resource → kind."""
VERBS = {"get": "get", "list": "list", "watch": "watch", "patch": "patch", "delete": "delete"}
"""Method of `client.Cluster` with API and kind in front → verb."""
APPLIED = ("get", "list", "create", "patch", "delete")
"""What `Applier` does with each kind that it makes and removes."""
GIVEN_OBJECTS = {
    "Namespace": ("create", "patch"),  # boundary.creation, by `Applier`
    "Pod": ("create", "patch"),  # acceptance.run
    "ResourceClaim": ("create", "patch"),  # acceptance.run
    "ConfigMap": ("create", "patch"),  # layout: the entries of the MIG manager
    "ServiceAccount": ("create", "patch"),  # isolation.probes
    "VirtualMachine": ("create",),  # vm_service.machines
    "VirtualMachineClass": ("create", "patch"),  # vm_service.machines
}
CERTIFICATE = {(kind, verb) for kind in ("Role", "ClusterRole", "ClusterRoleBinding") for verb in ("get", "list")}
"""What the certificate of a boundary's isolation reads to look for holes, whichever of both it takes."""


def asked() -> set[tuple[str, str]]:
    """Return (kind or resource below one, verb) of every right in the file."""
    return {(KINDS.get(right.resource, right.resource), right.verb) for right in rbac.needed() if right.verb != "bind"}


def called() -> set[tuple[str, str]]:
    """Return the same of every call."""
    found: set[tuple[str, str]] = set()
    for path in sorted(FOLDER.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                found |= set(_rights_of(call, call.func.attr, module))
    return found


def _rights_of(call: ast.Call, method: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    values = list(_values(call.args, module))
    if method in VERBS and len(values) >= 2 and values[1] in KINDS.values():
        yield values[1], VERBS[method]
    below = {word.arg: word.value for word in call.keywords}.get("subresource")
    if method == "create" and isinstance(below, ast.Constant):
        yield {"eviction": "pods/eviction", "token": "serviceaccounts/token"}[str(below.value)], "create"
    if method == "logs" and "cluster" in ast.unparse(call.func):
        yield "pods/log", "get"


def _values(arguments: list[ast.expr], module: ModuleType) -> Iterator[Any]:
    for one in arguments:
        if isinstance(one, ast.Starred):
            found = _value(one.value, module)
            yield from found if isinstance(found, tuple) else ()
        else:
            yield _value(one, module)


def _value(expression: ast.expr, module: ModuleType) -> Any:
    if isinstance(expression, ast.Constant):
        return expression.value
    if isinstance(expression, ast.Name):
        return getattr(module, expression.id, None)
    if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        return getattr(getattr(module, expression.value.id, None), expression.attr, None)
    return None


def by_tables() -> set[tuple[str, str]]:
    """Return what is called with kinds of tables and with whole objects."""
    found = {(kind.kind, verb) for made in (*MADE_BY.values(), INSIDE) for kind in made for verb in APPLIED}
    found |= {(one.kind, verb) for one in HEARD for verb in ("list", "watch")}
    found |= {(kinds.VM, verb) for verb in ("list", "watch")}  # kinds.held
    found |= {(kind, "list") for _api, kind in inventory.MARKED}
    found |= {(one["kind"], verb) for one in admission.cluster_objects() for verb in ("get", "list", "create", "patch")}
    found |= {(kind[1], "list") for kind in (referred.STORAGE, referred.RUNTIME)}
    return found | {(kind, verb) for kind, verbs in GIVEN_OBJECTS.items() for verb in verbs}


def test_every_resource_of_the_file_is_known_here() -> None:
    assert {right.resource for right in rbac.needed() if "/" not in right.resource} == set(KINDS)


def test_no_right_is_asked_for_that_no_call_uses() -> None:
    assert sorted(asked() - called() - by_tables() - CERTIFICATE) == []


def test_no_call_is_made_for_which_no_right_is_asked() -> None:
    assert sorted((called() | by_tables()) - asked()) == []


def test_only_the_roles_of_people_may_be_bound_and_bindings_are_made() -> None:
    bound = {right.name for right in rbac.needed() if right.verb == "bind"}

    assert bound == set(rbac.ROLES.values())
    assert ("RoleBinding", "create") in by_tables()


def test_the_calls_are_found() -> None:
    found = called()

    assert {("Node", "patch"), ("Namespace", "delete"), ("Gateway", "get"), ("ClusterPolicy", "get")} <= found
    assert {("pods/eviction", "create"), ("serviceaccounts/token", "create"), ("pods/log", "get")} <= found
