"""What a cluster can do: gaps with their remedy, rights with their names."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners.driver import Binding, Secret
from provisioners.kubernetes import capabilities, rbac
from provisioners.kubernetes.capabilities import Facts
from provisioners.kubernetes.rbac import Right
from provisioners.kubernetes.settings import Settings

SETTINGS = Settings(slug="here", url="https://x.invalid", token=Secret("t"))
PLAIN = {
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy"),
    ("resource.k8s.io/v1", "ResourceClaim"),
}


def installed() -> dict[str, Any]:
    return {obj["metadata"]["name"]: obj for obj in rbac.objects() if obj["kind"] == "ClusterRole"}


def test_a_plain_cluster_says_what_is_missing_for_which_feature() -> None:
    found = capabilities.assess(Facts("v1.36.3", lambda api, kind: (api, kind) in PLAIN, roles=installed()), SETTINGS)

    assert found.version == "v1.36.3"
    assert found.bindings == {Binding.HOST, Binding.DEVICE, Binding.GPU}
    assert sorted(found.missing) == [
        "cilium", "gatekeeper", "gateway-api", "gpu-operator", "inference-extension", "keda", "kueue", "kyverno",
        "policies-enforced", "prometheus-operator",
    ]  # fmt: skip
    assert all(not found.features[name] for name in found.missing)
    assert found.features["dra"]
    assert found.features["people"]


def test_an_old_cluster_without_dra_and_roles_says_so() -> None:
    roles = installed()
    roles["tenantry-viewer"] = {**roles["tenantry-viewer"], "rules": [{"verbs": ["*"]}]}
    found = capabilities.assess(
        Facts("v1.33.9+k3s1", lambda _api, _kind: False, roles={**roles, "tenantry-member": None}),
        Settings(slug="here", url="https://x.invalid", access="route"),
    )

    assert found.bindings == {Binding.HOST}
    assert found.missing["version"].startswith("Kubernetes v1.33.9+k3s1 is older than 1.34")
    assert found.missing["people"].startswith("Not as they should be: tenantry-member, tenantry-viewer.")
    assert {"admission", "admission-pinning", "routes", "dra"} <= set(found.missing)


def test_each_right_that_is_missing_is_named_with_what_it_is_for() -> None:
    lacking = (
        Right("", "nodes", "patch", why="label nodes"),
        Right("gateway.networking.k8s.io", "httproutes", "list", why="publish addresses", optional=True),
    )

    found = capabilities.assess(Facts("v1.36.3", lambda _api, _kind: True, lacking, installed()), SETTINGS)

    assert found.missing == {
        "right:patch nodes": "Needed to label nodes. Apply deploy/kubernetes/rbac.yaml.",
        "list httproutes.gateway.networking.k8s.io": "Needed to publish addresses. Apply deploy/kubernetes/rbac.yaml.",
        "vm-storage": "Machines need a storage class, and none is given.",
    }


class Reviewing:
    """An API server that knows one account's rules, and more than they show."""

    def __init__(self, rules: list[dict[str, Any]], also: set[str]) -> None:
        self.rules, self.also, self.asked = rules, also, []

    def version(self) -> str:
        return "v1.36.3"

    def serves(self, api: str, kind: str = "") -> bool:
        return (api, kind) in PLAIN

    def get(self, _api: str, _kind: str, name: str, _namespace: str = "") -> dict[str, Any] | None:
        return installed().get(name)

    def create(self, obj: dict[str, Any], **_where: str) -> dict[str, Any]:
        if obj["kind"] == "SelfSubjectRulesReview":
            return {"status": {"resourceRules": self.rules, "incomplete": True}}
        asked = obj["spec"]["resourceAttributes"]
        words = f"{asked['verb']} {asked['resource']}"
        self.asked.append(words)
        return {"status": {"allowed": words in self.also}}


def test_what_rules_do_not_show_is_asked_right_by_right() -> None:
    everything = [rule.as_rule() for rule in rbac.CONTROL_PLANE if "nodes" not in rule.resources]
    cluster = Reviewing(everything, also={"get nodes", "list nodes"})

    found = capabilities.lacking(cluster)

    assert [right.words for right in found] == [
        "watch nodes", "patch nodes", "create serviceaccounts/token in tenantry-access"
    ]  # fmt: skip
    assert cluster.asked == ["get nodes", "list nodes", "watch nodes", "patch nodes", "create serviceaccounts"]


def test_asking_a_cluster_puts_it_together() -> None:
    found = capabilities.read(Reviewing([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}], set()), SETTINGS)

    assert (found.kind, found.simulated) == ("kubernetes", False)
    assert not [name for name in found.missing if name.startswith("right:")]


@pytest.mark.parametrize(
    ("text", "version"), [("v1.36.3", (1, 36)), ("1.34", (1, 34)), ("v1.33.9-gke.1", (1, 33)), ("odd", (0, 0))]
)
def test_versions_are_read(text, version) -> None:
    assert capabilities.version_of(text) == version
