"""What a cluster can do: gaps with their remedy, rights with their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioners.driver import Binding, Secret
from provisioners.kubernetes import capabilities, layout, rbac, referred
from provisioners.kubernetes.capabilities import Facts
from provisioners.kubernetes.client import Listing
from provisioners.kubernetes.rbac import Right
from provisioners.kubernetes.referred import Referred
from provisioners.kubernetes.settings import Peer, RouteParent, Settings

SETTINGS = Settings(
    slug="here", url="https://x.invalid", token=Secret("t"), control_plane_cidrs=("10.30.0.0/24",),
    model_mirror_cidrs=("10.40.0.10/32",),
)  # fmt: skip
CARVING = {"spec": {"migManager": {"config": {"name": layout.CONFIG_MAP}}}}
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
        "cert-manager", "cilium", "gatekeeper", "gateway-api", "gpu-operator", "inference-extension", "keda", "kueue",
        "kyverno", "layout-change", "move", "policies-enforced", "prometheus-operator",
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

    found = capabilities.assess(
        Facts("v1.36.3", lambda _api, _kind: True, lacking, installed(), policy=CARVING), SETTINGS
    )

    assert found.missing == {
        "right:patch nodes": "Needed to label nodes. Apply deploy/kubernetes/rbac.yaml.",
        "list httproutes.gateway.networking.k8s.io": "Needed to publish addresses. Apply deploy/kubernetes/rbac.yaml.",
        "vm-storage": "Machines need a storage class, and none is given.",
        "move": found.missing["move"],
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"access": "lab"}, "as they are no names"),
        ({"access": "cluster", "zone": "models.example"}, "as they are no names"),
        ({"access": "load-balancer", "dns_records": "external-dns"}, "set zone"),
        ({"access": "load-balancer", "zone": "models.example"}, "people set their DNS records"),
        ({"access": "route", "zone": "models.example"}, "people set their DNS records"),
        ({"access": "load-balancer", "zone": "models.example", "dns_records": "external-dns"}, ""),
        ({"access": "route", "zone": "models.example", "dns_records": "external-dns"}, ""),
    ],
)
def test_endpoints_move_only_where_their_name_can_lead_elsewhere_by_itself(changes: dict[str, str], words: str) -> None:
    found = capabilities.assess(Facts("v1.36.3", lambda _api, _kind: True), replace(SETTINGS, **changes))

    assert found.features["move"] is not bool(words)
    assert words in found.missing.get("move", "")
    assert (found.features["canary"], found.features["zero"]) == (True, True)


class Reviewing:
    """An API server that knows one account's rules, and more than they show."""

    def __init__(self, rules: list[dict[str, Any]], also: set[str], there: dict[str, Any] | None = None) -> None:
        self.rules, self.also, self.asked = rules, also, []
        self.there = installed() if there is None else there
        """Name → object."""
        self.read: list[str] = []

    def version(self) -> str:
        return "v1.36.3"

    def serves(self, api: str, kind: str = "") -> bool:
        return (api, kind) in PLAIN

    def get(self, _api: str, kind: str, name: str, _namespace: str = "") -> dict[str, Any] | None:
        self.read.append(kind)
        return self.there.get(name)

    def list(self, _api: str, kind: str) -> Listing:
        self.read.append(kind)
        return Listing(tuple(one for one in self.there.values() if one["kind"] == kind), "1")

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
        "patch nodes", "create serviceaccounts/token in tenantry-access"
    ]  # fmt: skip
    assert cluster.asked == ["get nodes", "list nodes", "patch nodes", "create serviceaccounts"]


@pytest.mark.parametrize("may", [True, False])
def test_whether_mirrors_can_be_mounted_is_asked_where_the_account_may(may: bool) -> None:
    rules = [rule.as_rule() for rule in rbac.CONTROL_PLANE if may or "csidrivers" not in rule.resources]
    cluster = Reviewing(rules, set())
    cluster.serves = lambda api, kind="": (api, kind) in {*PLAIN, capabilities.NFS[:2]}  # type: ignore[method-assign]

    found = capabilities.read(cluster, SETTINGS)

    assert ("CSIDriver" in cluster.read) is may
    assert found.features["model-staging"] is not may
    assert ("get csidrivers.storage.k8s.io nfs.csi.k8s.io" in found.missing) is not may


def test_asking_a_cluster_puts_it_together() -> None:
    found = capabilities.read(Reviewing([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}], set()), SETTINGS)

    assert (found.kind, found.simulated) == ("kubernetes", False)
    assert not [name for name in found.missing if name.startswith("right:")]


def test_what_may_not_be_looked_at_is_no_gap_and_is_not_asked_for() -> None:
    kept = [rule.as_rule() for rule in rbac.CONTROL_PLANE if rule.resources[0] not in {"namespaces", "storageclasses"}]
    fewer = [rule for rule in kept if "clusterroles" not in rule["resources"]]
    cluster = Reviewing(fewer, also=set())

    found = capabilities.read(cluster, replace(SETTINGS, storage_class="fast"))

    assert cluster.read == []
    assert "right:list storageclasses.storage.k8s.io" in found.missing
    assert not {"storage-class", "people", "proxy", "dns"} & set(found.missing)


# --- what the settings name -------------------------------------------------------------------------------


def test_networks_that_are_not_given_are_a_gap_with_the_setting_that_mends_it() -> None:
    bare = Settings(slug="here", url="https://x.invalid", token=Secret("t"))

    found = capabilities.assess(Facts("v1.36.3", lambda _api, _kind: True, roles=installed(), policy=CARVING), bare)

    assert sorted(found.missing) == ["control-plane-cidrs", "model-mirror-cidrs", "move", "vm-storage"]
    assert "never report. Set control_plane_cidrs" in found.missing["control-plane-cidrs"]
    assert "Set model_mirror_cidrs" in found.missing["model-mirror-cidrs"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (None, "The cluster has no GPU operator with a MIG manager"),
        ({"spec": {}}, "kubectl patch clusterpolicy cluster-policy"),
        ({"spec": {"migManager": {"config": {"name": "theirs"}}}}, '{"name":"tenantry-mig-layouts"}'),
    ],
)
def test_layouts_that_cannot_be_set_say_what_mends_that(policy: dict[str, Any] | None, words: str) -> None:
    found = capabilities.assess(Facts("v1.36.3", lambda _api, _kind: True, roles=installed(), policy=policy), SETTINGS)
    unread = capabilities.assess(
        Facts("v1.36.3", lambda _api, _kind: True, roles=installed(), may_read_policy=False), SETTINGS
    )

    assert words in found.missing["layout-change"]
    assert (found.features["layout-change"], unread.features["layout-change"]) == (False, True)


def gateway(*listeners: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Gateway", "metadata": {"name": "shared"}, "spec": {"listeners": list(listeners)}}


def of_class(kind: str, name: str, *, default: bool = False) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "annotations": {referred.DEFAULT: str(default).lower()}}}


OPEN = {"name": "https", "allowedRoutes": {"namespaces": {"from": "All"}}}
ROUTES = {"access": "route", "zone": "a.example", "route_parent": RouteParent("gw", "shared", "https")}
FAST = of_class("StorageClass", "fast")


@pytest.mark.parametrize(
    ("settings", "there", "missing"),
    [
        ({"storage_class": "slow"}, Referred(storage=(FAST,)), {"storage-class": "there is no storage class slow: "}),
        ({"storage_class": "fast"}, Referred(storage=(FAST,)), {}),
        ({"storage_class": "slow"}, Referred(), {}),
        ({"gateway_storage_class": "slow"}, Referred(storage=(FAST,)), {"gateway-storage-class": "(fast)"}),
        ({"cache_gib": 9}, Referred(storage=(FAST,)), {"cache": "set storage_class (fast)."}),
        ({"cache_gib": 9}, Referred(storage=()), {"cache": "set storage_class."}),
        ({"cache_gib": 9}, Referred(storage=(of_class("StorageClass", "any", default=True),)), {}),
        ({"runtime_class": "nvidia"}, Referred(runtimes=()), {"runtime-class": "pods with gpus would not start"}),
        ({"runtime_class": "nvidia"}, Referred(runtimes=(of_class("RuntimeClass", "nvidia"),)), {}),
        (ROUTES, Referred(gateway=(None,)), {"shared-gateway": "there is no gateway gw/shared"}),
        (ROUTES, Referred(gateway=(gateway({"name": "http"}),)), {"shared-gateway": "has no listener https"}),
        (ROUTES, Referred(gateway=(gateway({"name": "https"}),)), {"shared-gateway": "of its own namespace only"}),
        (ROUTES, Referred(gateway=(gateway(OPEN),)), {}),
        (
            {**ROUTES, "route_parent": RouteParent("gw", "shared")},
            Referred(gateway=(gateway({"name": "http"}, OPEN),)),
            {},
        ),
        ({}, Referred(namespaces={"gateway-system": False}), {"proxy": "set proxy to the pods"}),
        ({"access": "load-balancer"}, Referred(namespaces={"gateway-system": False}), {}),
        ({"dns": Peer("dns")}, Referred(namespaces={"dns": False}), {"dns": "set dns to where dns answers"}),
        ({"monitoring_namespace": "mon"}, Referred(namespaces={"mon": False}), {"monitoring": "monitoring_namespace"}),
    ],
)
def test_what_the_settings_name_and_is_not_there_is_a_gap(settings: Any, there: Referred, missing: Any) -> None:
    found = referred.gaps(there, replace(SETTINGS, **settings))

    assert set(found) == set(missing)
    assert all(words in found[name].lower() for name, words in missing.items())


def test_only_what_the_settings_name_is_looked_up_and_each_kind_once() -> None:
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    there = {"fast": FAST, "nvidia": of_class("RuntimeClass", "nvidia"), "shared": gateway(OPEN)}
    plain, full = Reviewing(everything, set(), there), Reviewing(everything, set(), there)
    full.serves = plain.serves = lambda _api, _kind="": True  # type: ignore[method-assign]

    referred.look(plain, SETTINGS, lambda *_: True)
    found = referred.look(
        full,
        replace(
            SETTINGS, storage_class="fast", gateway_storage_class="fast", cache_gib=1, runtime_class="nvidia",
            monitoring_namespace="kube-system", **ROUTES,
        ),
        lambda *_: True,
    )  # fmt: skip

    assert plain.read == ["Namespace", "Namespace"]
    assert full.read == ["StorageClass", "RuntimeClass", "Gateway", "Namespace", "Namespace"]
    assert found == Referred(
        (FAST,), (there["nvidia"],), (there["shared"],), {"gateway-system": False, "kube-system": False}
    )


@pytest.mark.parametrize(
    ("text", "version"), [("v1.36.3", (1, 36)), ("1.34", (1, 34)), ("v1.33.9-gke.1", (1, 33)), ("odd", (0, 0))]
)
def test_versions_are_read(text, version) -> None:
    assert capabilities.version_of(text) == version
