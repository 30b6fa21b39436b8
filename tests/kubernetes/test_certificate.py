"""What a certificate says of network policies and of refusals, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from provisioners.driver import DriverRejected, Kind, Ref
from provisioners.kubernetes import boundary
from provisioners.kubernetes.isolation import checks, connections, elsewhere, rights, scene
from provisioners.kubernetes.settings import Peer, Settings

TENANT, OTHER = UUID(int=1), UUID(int=2)
REF = Ref(Kind.BOUNDARY, UUID(int=3), TENANT)
SETTINGS = Settings(slug="x", url="https://x.invalid", control_plane_cidrs=("10.9.0.0/16",), proxy=Peer("front"))


def namespace(name: str, tenant: UUID | None = None) -> dict[str, Any]:
    labels = {"tenantry.internal/tenant": str(tenant)} if tenant else {}
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


NAMESPACES = [namespace(REF.name, TENANT), namespace("tn-bd-theirs", OTHER), namespace("front"), namespace("default")]
DENY = {
    "kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": REF.name},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}  # fmt: skip


def holes(*policies: dict[str, Any]) -> set[str]:
    return set(connections.holes(NAMESPACES, policies, SETTINGS, REF))


def test_the_policies_that_we_make_have_no_hole_and_none_at_all_is_one_big_hole() -> None:
    made = [DENY, *boundary.allow_policies(REF.name, SETTINGS)]

    assert holes(*made) == set()
    assert len(holes()) > 100
    assert holes(DENY, boundary.cut_off_policy(REF.name)) == set()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]},
            "a pod of another tenant reaches a gateway on port 443 (by planted)",
        ),
        (
            {"podSelector": {}, "egress": [{}], "policyTypes": ["Egress"]},
            "a model server reaches the node's metadata on port 80",
        ),
        (
            {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 8000}]}]},
            "",
        ),
        (
            {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {}}]}],
                "egress": [{"to": [{"podSelector": {}}]}],
            },
            "a pod of the tenant reaches its model server past the gateway on port 8000",
        ),
        (
            {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]},
            "the internet reaches a pod on port 22 (by planted)",
        ),
        (
            {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 5432}]}]},
            "a pod of another tenant reaches a pod on port 5432 (by planted)",
        ),
        (
            {"podSelector": {}, "ingress": [{"ports": [{"port": 9000, "endPort": 9090, "protocol": "UDP"}]}]},
            "a pod of another tenant reaches a model server on port 9090 (by planted)",
        ),
        (
            {
                "podSelector": {},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}],
            },
            "a model server reaches an address of 10.0.0.0/8 on port 443",
        ),
        (
            {
                "podSelector": {"matchLabels": {"component": "none"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}],
            },
            "a pod reaches an address of 10.9.0.0/16 on port 22",
        ),
        (
            {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]},
            "a pod of another tenant reaches a pod on port 22 (by planted)",
        ),
        (
            {
                "podSelector": {},
                "ingress": [
                    {
                        "from": [
                            {
                                "namespaceSelector": {"matchLabels": {"team": "builds"}},
                                "podSelector": {"matchExpressions": [{"key": "runner", "operator": "Exists"}]},
                            }
                        ],
                        "ports": [{"port": 22}],
                    }
                ],
            },
            "a pod of another namespace reaches a gateway on port 22 (by planted)",
        ),
        (
            {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "mine"}}}]}],
                "egress": [{"to": [{"podSelector": {}}]}],
            },
            "a pod of the tenant reaches its gateway past the gateway on port 8080",
        ),
    ],
)
def test_a_policy_that_opens_something_is_named_with_what_it_opens(spec: dict[str, Any], words: str) -> None:
    planted = {"kind": "NetworkPolicy", "metadata": {"name": "planted", "namespace": REF.name}, "spec": spec}
    made = [DENY, *boundary.allow_policies(REF.name, SETTINGS)]

    found = holes(*made, planted)

    assert words in found if words else found == set()
    assert "tn-bd-theirs" not in str(found)  # a tenant reads it


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        ('pods "x" is forbidden: violates PodSecurity "restricted:v1.36"', "passed"),
        ("exceeded quota: tenantry, requested: pods=1", "failed"),
        ("ValidatingAdmissionPolicy 'a' denied request: something else", "unknown"),
    ],
)
def test_a_refusal_counts_only_with_the_reason_it_should_have(raw: str, outcome: str) -> None:
    class Refusing:
        def apply(self, _obj: object, *, dry_run: bool) -> None:
            assert dry_run
            raise DriverRejected("no", raw=raw)

    tried = checks.attempt(Refusing(), "it is privileged", {}, ("violates PodSecurity",))  # type: ignore[arg-type]

    assert tried.outcome == outcome
    assert checks.judged("MTB-PL1-BC-CPI-5", [tried]).outcome == outcome


def test_what_is_on_its_way_out_protects_nobody() -> None:
    leaving = {"metadata": {"name": "x", "namespace": REF.name, "deletionTimestamp": "2026-11-21T12:00:00Z"}}

    class Answering:
        def list(self, _api: str, kind: str, **_more: str) -> SimpleNamespace:
            found = {"Namespace": tuple(NAMESPACES), "NetworkPolicy": (DENY, leaving), "ResourceQuota": (leaving,)}
            return SimpleNamespace(items=found.get(kind, ()))

        def resources(self) -> tuple[()]:
            return ()

    seen = scene.read(Answering(), REF)  # type: ignore[arg-type]

    assert (seen.policies, seen.quotas) == ((DENY,), ())


def test_what_the_platform_opens_by_its_own_settings_is_no_hole() -> None:
    settings = replace(
        SETTINGS, access="load-balancer", model_mirror_cidrs=("10.8.0.0/16",), dns_cidrs=("169.254.20.10/32",),
        monitoring_namespace="watch",
    )  # fmt: skip
    made = [DENY, *boundary.allow_policies(REF.name, settings)]

    assert set(connections.holes([*NAMESPACES, namespace("watch")], made, settings, REF)) == set()


# --- rights -----------------------------------------------------------------------------------------------

RESOURCES = (("", "pods", True), ("", "configmaps", True), ("", "nodes", False))
MEMBER = {"kind": "ServiceAccount", "name": "tn-pr-1", "namespace": "tenantry-access"}
VIEW = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
BASIC = [{"nonResourceURLs": ["/version", "/healthz"], "verbs": ["get"]}]


def binding(name: str, subject: dict[str, Any], role: str = "view", *, at: str = "") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": at}, "subjects": [subject],
        "roleRef": {"kind": "ClusterRole", "name": role},
    }  # fmt: skip


def group(name: str) -> dict[str, Any]:
    return {"kind": "Group", "name": name}


def account(name: str, at: str) -> dict[str, Any]:
    return {"kind": "ServiceAccount", "name": name, "namespace": at}


@pytest.mark.parametrize(
    ("planted", "cluster_wide", "foreign"),
    [
        (binding("p", MEMBER, at="kube-public"), [], [
            "role binding p in kube-public gives account tn-pr-1 of a person here: get pods"]),
        (binding("p", MEMBER, at="tn-bd-theirs"), [], [
            "a role binding of another tenant gives account tn-pr-1 of a person here: get pods"]),
        (binding("p", MEMBER, at="builds"), [], [
            "a role binding of another namespace gives account tn-pr-1 of a person here: get pods"]),
        (binding("p", account("default", REF.name)), [
            "cluster role binding p gives account default of this namespace: get pods"], []),
        (binding("p", {"kind": "User", "name": f"system:serviceaccount:{REF.name}:default"}), [
            "cluster role binding p gives account default of this namespace: get pods"], []),
        (binding("p", group(f"system:serviceaccounts:{REF.name}")), [
            f"cluster role binding p gives group system:serviceaccounts:{REF.name}: get pods"], []),
        (binding("p", group("system:authenticated"), at="default"), [], [
            "role binding p in default gives group system:authenticated: get pods"]),
        (binding("p", group("system:authenticated"), "basic"), [], []),
        (binding("p", account("tn-pr-1", "elsewhere")), [], []),
        (binding("p", account("tn-pr-2", "tenantry-access"), at="tn-bd-theirs"), [], []),
        (binding("p", MEMBER, "gone", at="default"), [], []),
    ],
)  # fmt: skip
def test_a_binding_that_gives_anybody_here_rights_elsewhere_is_named(
    planted: dict[str, Any], cluster_wide: list[str], foreign: list[str]
) -> None:
    seen = SimpleNamespace(
        namespaces=(*NAMESPACES, namespace("builds")), resources=RESOURCES,
        bindings=(binding("tenantry-member", MEMBER, at=REF.name), planted),
        roles={("", "view"): {"rules": VIEW}, ("", "basic"): {"rules": BASIC}},
    )  # fmt: skip

    assert elsewhere.found(seen, REF) == (cluster_wide, foreign)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"resources": ["configmaps"], "verbs": ["patch"], "resourceNames": ["x"]}, ["patch configmaps"]),
        ({"resources": ["pods"], "verbs": ["escalate", "bind"]}, ["bind pods", "escalate pods"]),
        ({"resources": ["users"], "verbs": ["impersonate"]}, ["impersonate users"]),
        ({"resources": ["nodes"], "verbs": ["use"]}, ["use nodes"]),
    ],
)
def test_rights_on_single_names_and_by_unusual_verbs_are_seen(rule: dict[str, Any], words: list[str]) -> None:
    assert rights.beyond(RESOURCES, [{"apiGroups": [""], **rule}]) == words


def test_every_check_of_the_benchmarks_and_ours_has_a_title() -> None:
    keys = list(checks.TITLES)

    assert len([key for key in keys if key.startswith("MTB-")]) == 18
    assert len([key for key in keys if key.startswith("TEN-")]) == 6
