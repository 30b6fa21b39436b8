"""The isolation certificate on a real kube-apiserver: all checks, and a hole of each kind planted and found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from provisioners.driver import Certificate, TransientDriverError
from provisioners.kubernetes import admission, rbac
from provisioners.kubernetes.boundary import account_name
from provisioners.kubernetes.isolation.checks import TITLES
from provisioners.kubernetes.isolation.probes import PROBE
from provisioners.kubernetes.objects import MANAGED_BY_LABEL, Object, uid_of
from tests.kubernetes.ground import Ground, eventually, pod

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]
RBAC = "rbac.authorization.k8s.io/v1"
EVERYBODY = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts"}


def outcomes(found: Certificate) -> dict[str, str]:
    return {check.key: check.outcome for check in found.checks if check.outcome != "passed"}


def leftovers(ground: Ground) -> list[str]:
    return [
        obj["metadata"]["name"]
        for api, kind, namespace in (
            ("v1", "ServiceAccount", rbac.ACCESS_NAMESPACE),
            ("v1", "Secret", rbac.ACCESS_NAMESPACE),
            (RBAC, "RoleBinding", ground.mine.namespace),
        )
        for obj in ground.admin.list(
            api, kind, namespace=namespace, labels="app.kubernetes.io/managed-by=tenantry-certificate"
        ).items
    ]


def test_a_boundary_as_we_make_it_passes_every_check_and_two_are_withheld(ground: Ground) -> None:
    found = ground.driver.certify(ground.mine.ref)

    assert [check.key for check in found.checks] == list(TITLES)
    assert outcomes(found) == {"MTB-PL2-BC-OPS-3": "withheld", "MTB-PL2-BC-OPS-4": "withheld"}, found
    assert found.passed
    assert ground.other.namespace not in str(found)  # a tenant reads it
    assert found.version.startswith("v1.36")
    assert any("laboratory" in line for line in found.unshown)
    assert leftovers(ground) == []


def test_a_boundary_that_is_not_there_has_no_certificate(ground: Ground) -> None:
    with pytest.raises(TransientDriverError, match="is not there"):
        ground.driver.certify(ground.mine.handed_out().ref)


# --- planted holes -----------------------------------------------------------------------------------------

Plant = Callable[[Ground, ExitStack], None]


def _made(ground: Ground, stack: ExitStack, obj: Object) -> None:
    live = ground.admin.create(obj)
    meta = live["metadata"]
    stack.callback(
        ground.admin.delete, obj["apiVersion"], obj["kind"], meta["name"], meta.get("namespace", ""), uid=uid_of(live)
    )


def _changed(ground: Ground, stack: ExitStack, api: str, kind: str, name: str, namespace: str, body: Any) -> None:
    before = ground.admin.get(api, kind, name, namespace)
    assert before is not None
    ground.admin.patch(api, kind, name, namespace, body)
    back = {key: before[key] for key in body if key != "metadata"}
    if "metadata" in body:
        labels = before["metadata"]["labels"]
        back["metadata"] = {"labels": {key: labels.get(key) for key in body["metadata"]["labels"]}}
    stack.callback(ground.admin.patch, api, kind, name, namespace, back)


def _gone(ground: Ground, stack: ExitStack, api: str, kind: str, name: str, namespace: str = "") -> None:
    live = ground.admin.get(api, kind, name, namespace)
    assert live is not None
    ground.admin.delete(api, kind, name, namespace, uid=uid_of(live))
    kept = {
        **live,
        "metadata": {k: live["metadata"][k] for k in ("name", "labels", "annotations") if k in live["metadata"]},
    }
    if namespace:
        kept["metadata"]["namespace"] = namespace
    kept.pop("status", None)
    stack.callback(ground.admin.create, kept)
    eventually(lambda: ground.admin.get(api, kind, name, namespace) is None, what="it is gone")


def _policy(ground: Ground, name: str, spec: Object) -> Object:
    head = {"name": name, "namespace": ground.mine.namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": head, "spec": spec}


def _binding(namespace: str, role: str, subject: Object) -> Object:
    return {
        "apiVersion": RBAC, "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": "planted", **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }  # fmt: skip


def pod_security_lowered(g: Ground, stack: ExitStack) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    _changed(g, stack, "v1", "Namespace", g.mine.namespace, "", {"metadata": {"labels": labels}})


def quota_gone(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, "v1", "ResourceQuota", "tenantry", g.mine.namespace)


def count_of_objects_unbounded(g: Ground, stack: ExitStack) -> None:
    before = g.admin.get("v1", "ResourceQuota", "tenantry", g.mine.namespace)
    assert before is not None
    path = [{"op": "remove", "path": "/spec/hard/count~1secrets"}]
    g.admin.patch("v1", "ResourceQuota", "tenantry", g.mine.namespace, path, type="json")
    spec = {"spec": {"hard": before["spec"]["hard"]}}
    stack.callback(g.admin.patch, "v1", "ResourceQuota", "tenantry", g.mine.namespace, spec)


def default_deny_gone(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, "networking.k8s.io/v1", "NetworkPolicy", "tenantry-default-deny", g.mine.namespace)


def network_opened_to_all(g: Ground, stack: ExitStack) -> None:
    opened = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"namespaceSelector": {}}]}]}
    _made(g, stack, _policy(g, "planted", opened))


def way_out_to_the_metadata_of_nodes(g: Ground, stack: ExitStack) -> None:
    out = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]}]}
    _made(g, stack, _policy(g, "planted", out))


def somebody_bound_here(g: Ground, stack: ExitStack) -> None:
    _made(g, stack, _binding(g.mine.namespace, "view", {**EVERYBODY, "name": "friends", "kind": "Group"}))


def all_accounts_see_the_cluster(g: Ground, stack: ExitStack) -> None:
    _made(g, stack, _binding("", "system:node-problem-detector", EVERYBODY))


def people_bound_in_another_tenant(g: Ground, stack: ExitStack) -> None:
    group = {**EVERYBODY, "name": f"system:serviceaccounts:{rbac.ACCESS_NAMESPACE}"}
    _made(g, stack, _binding(g.other.namespace, "view", group))


def role_may_change_quotas(g: Ground, stack: ExitStack) -> None:
    rules = [rule.as_rule() for rule in rbac.PEOPLE["owner"]]
    more = {"apiGroups": [""], "resources": ["resourcequotas"], "verbs": ["patch"]}
    _changed(g, stack, RBAC, "ClusterRole", "tenantry-owner", "", {"rules": [*rules, more]})


def way_in_on_the_port_of_a_database(g: Ground, stack: ExitStack) -> None:
    rule = {"from": [{"namespaceSelector": {}}], "ports": [{"port": 5432}]}
    _made(g, stack, _policy(g, "planted", {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]}))


def way_out_to_private_addresses(g: Ground, stack: ExitStack) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}
    _made(g, stack, _policy(g, "planted", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}))


def _more_for_owners(g: Ground, stack: ExitStack, **rule: list[str]) -> None:
    rules = [each.as_rule() for each in rbac.PEOPLE["owner"]]
    _changed(g, stack, RBAC, "ClusterRole", "tenantry-owner", "", {"rules": [*rules, {"apiGroups": [""], **rule}]})


def role_may_change_one_quota_by_its_name(g: Ground, stack: ExitStack) -> None:
    _more_for_owners(g, stack, resources=["resourcequotas"], verbs=["patch"], resourceNames=["tenantry"])


def role_may_act_as_accounts(g: Ground, stack: ExitStack) -> None:
    _more_for_owners(g, stack, resources=["serviceaccounts"], verbs=["impersonate"])


def role_may_act_as_anybody(g: Ground, stack: ExitStack) -> None:
    _more_for_owners(g, stack, resources=["users"], verbs=["impersonate"])


def a_member_bound_in_another_namespace(g: Ground, stack: ExitStack) -> None:
    member = account_name(g.mine.ref, g.mine.people["member"])
    subject = {"kind": "ServiceAccount", "name": member, "namespace": rbac.ACCESS_NAMESPACE}
    _made(g, stack, _binding("kube-public", "view", subject))


def everybody_here_bound_in_another_tenant(g: Ground, stack: ExitStack) -> None:
    group = {**EVERYBODY, "name": f"system:serviceaccounts:{g.mine.namespace}"}
    _made(g, stack, _binding(g.other.namespace, "view", group))


def the_account_of_pods_sees_the_cluster(g: Ground, stack: ExitStack) -> None:
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": g.mine.namespace}
    _made(g, stack, _binding("", "view", subject))


def role_makes_role_bindings(g: Ground, stack: ExitStack) -> None:
    rules = [rule.as_rule() for rule in rbac.PEOPLE["owner"]]
    more = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["rolebindings"], "verbs": ["create"]}
    _changed(g, stack, RBAC, "ClusterRole", "tenantry-owner", "", {"rules": [*rules, more]})


def images_not_checked(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, admission.API, "ValidatingAdmissionPolicyBinding", "tenantry-pods")
    image = f"{pod('x')['spec']['containers'][0]['image'].partition('@')[0]}:latest"
    eventually(lambda: _is_taken(g, pod(g.mine.namespace, image=image)), within_s=20, what="admission forgets")


def gpus_not_checked(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, admission.API, "ValidatingAdmissionPolicyBinding", "tenantry-gpus")
    gpu = pod(g.mine.namespace, resourceClaims=[{"name": "g", "resourceClaimName": "x"}])
    eventually(lambda: _is_taken(g, gpu), within_s=20, what="admission forgets")


def node_ports_open(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, admission.API, "ValidatingAdmissionPolicyBinding", "tenantry-services")
    before = g.admin.get("v1", "ResourceQuota", "tenantry", g.mine.namespace)
    assert before is not None
    hard = before["spec"]["hard"]
    g.admin.patch("v1", "ResourceQuota", "tenantry", g.mine.namespace, {"spec": {"hard": {"services.nodeports": "5"}}})
    stack.callback(g.admin.patch, "v1", "ResourceQuota", "tenantry", g.mine.namespace, {"spec": {"hard": hard}})
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": g.mine.namespace},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]},
    }  # fmt: skip
    eventually(lambda: _is_taken(g, service), within_s=20, what="admission and quota forget")


def parameters_unprotected(g: Ground, stack: ExitStack) -> None:
    _gone(g, stack, admission.API, "ValidatingAdmissionPolicyBinding", "tenantry-marks")
    labelled = pod(g.mine.namespace, labels={"tenantry.internal/unit": "x"})
    eventually(lambda: _is_taken(g, labelled), within_s=20, what="admission forgets")


def what_ends_a_membership_is_kept_from_going(g: Ground, stack: ExitStack) -> None:
    """Put a finalizer on all that a probe is made of: deleted, it stays, and so do rights and token."""
    kinds = (
        ("", "v1", "secrets"), ("", "v1", "serviceaccounts"), ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    )  # fmt: skip
    policy = {
        "apiVersion": admission.API, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "planted"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [group], "apiVersions": [version], "resources": [resource], "operations": ["CREATE"]}
                    for group, version, resource in kinds
                ]
            },
            "matchConditions": [{
                "name": "probes",
                "expression": f"object.metadata.?labels[?'{MANAGED_BY_LABEL}'].orValue('') == '{PROBE}'",
            }],
            "reinvocationPolicy": "Never",
            "mutations": [{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {
                    "expression": "Object{metadata: Object.metadata{finalizers: ['example.com/stay']}}"
                },
            }],
        },
    }  # fmt: skip
    binding = {
        "apiVersion": admission.API, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "planted"},
        "spec": {"policyName": "planted"},
    }  # fmt: skip
    stack.callback(_let_go, g)
    _made(g, stack, policy)
    _made(g, stack, binding)
    eventually(lambda: _would_be_kept(g), within_s=20, what="it is kept")


def _would_be_kept(g: Ground) -> bool:
    probe = {
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "x", "namespace": rbac.ACCESS_NAMESPACE, "labels": {MANAGED_BY_LABEL: PROBE}},
    }  # fmt: skip
    return bool(g.admin.apply(probe, dry_run=True)["metadata"].get("finalizers"))


def _let_go(g: Ground) -> None:
    eventually(lambda: not _would_be_kept(g), within_s=20, what="admission forgets")
    for api, kind, namespace in (
        ("v1", "ServiceAccount", rbac.ACCESS_NAMESPACE),
        ("v1", "Secret", rbac.ACCESS_NAMESPACE),
        (RBAC, "RoleBinding", g.mine.namespace),
    ):
        for obj in g.admin.list(api, kind, namespace=namespace, labels=f"{MANAGED_BY_LABEL}={PROBE}").items:
            g.admin.patch(api, kind, obj["metadata"]["name"], namespace, {"metadata": {"finalizers": None}})


def _is_taken(g: Ground, obj: Object) -> bool:
    try:
        g.acting("member").apply(obj, dry_run=True)
    except Exception:  # noqa: BLE001  any refusal
        return False
    return True


HOLES: tuple[tuple[Plant, str], ...] = (
    (pod_security_lowered, "MTB-PL1-BC-CPI-5"),
    (quota_gone, "MTB-PL1-CC-FNS-1"),
    (count_of_objects_unbounded, "MTB-PL1-CC-FNS-2"),
    (default_deny_gone, "TEN-4-peer"),
    (network_opened_to_all, "TEN-4-peer"),
    (way_out_to_the_metadata_of_nodes, "TEN-4-peer"),
    (somebody_bound_here, "TEN-6-roles"),
    (all_accounts_see_the_cluster, "MTB-PL1-CC-CPI-1"),
    (people_bound_in_another_tenant, "MTB-PL1-CC-TI-2"),
    (role_may_change_quotas, "MTB-PL1-CC-TI-1"),
    (role_makes_role_bindings, "MTB-PL2-BC-OPS-3"),
    (way_in_on_the_port_of_a_database, "TEN-4-peer"),
    (way_out_to_private_addresses, "TEN-4-peer"),
    (role_may_change_one_quota_by_its_name, "MTB-PL1-CC-TI-1"),
    (role_may_act_as_accounts, "TEN-6-roles"),
    (role_may_act_as_anybody, "MTB-PL1-CC-CPI-1"),
    (a_member_bound_in_another_namespace, "MTB-PL1-CC-TI-2"),
    (everybody_here_bound_in_another_tenant, "MTB-PL1-CC-TI-2"),
    (the_account_of_pods_sees_the_cluster, "MTB-PL1-CC-CPI-1"),
    (images_not_checked, "TEN-2-image"),
    (gpus_not_checked, "TEN-3-node"),
    (node_ports_open, "MTB-PL1-BC-HI-1-ports"),
    (parameters_unprotected, "MTB-PL1-BC-CPI-2"),
    (what_ends_a_membership_is_kept_from_going, "TEN-5-token"),
)


@pytest.mark.parametrize(("plant", "key"), HOLES, ids=[plant.__name__ for plant, _key in HOLES])
def test_a_planted_hole_is_found(ground: Ground, plant: Plant, key: str) -> None:
    with ExitStack() as stack:
        plant(ground, stack)

        found = ground.driver.certify(ground.mine.ref)

    failed = {name: outcome for name, outcome in outcomes(found).items() if outcome == "failed"}
    assert key in failed, found
    assert not found.passed
    assert ground.other.namespace not in str(found)
    assert leftovers(ground) == []


def test_after_the_holes_are_mended_everything_holds_again(ground: Ground) -> None:
    def certified() -> bool:
        return ground.driver.certify(ground.mine.ref).passed

    eventually(certified, within_s=30, what="the boundary is whole again")
