"""BoundarySpec → objects: closed from the first moment, every GPU resource named, one intent per step."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from provisioners.driver import BoundaryKind, BoundarySpec, GatewaySpec, Kind, NotSupported, Ref, Secret
from provisioners.kubernetes import boundary
from provisioners.kubernetes.boundary import ClusterFacts
from provisioners.kubernetes.objects import Object, is_ours, marked_set, name_of, ref_of, step_label, step_of
from provisioners.kubernetes.settings import Peer, Settings

REF = Ref(Kind.BOUNDARY, UUID(int=1), UUID(int=2))
SPEC = BoundarySpec(
    ref=REF,
    kind=BoundaryKind.NAMESPACE,
    tier="shared",
    generation=1,
    gateway=GatewaySpec(UUID(int=3), "https://control.example", Secret("t")),
    vcpu=16,
    memory_gib=64,
    storage_gib=100,
    gpu_resources={"H100-80GB.1g.10gb": 4, "H100-80GB": 2},
    access=(("p-1", "member"), ("p-2", "viewer")),
)
SETTINGS = Settings(
    slug="k",
    url="https://k8s.example",
    control_plane_cidrs=("10.9.0.0/16",),
    model_mirror_cidrs=("10.8.0.0/16",),
    dns_cidrs=("169.254.20.10/32",),
    proxy=Peer("gateway-system", {"app": "proxy"}),
    monitoring_namespace="monitoring",
)


NO_FACTS = ClusterFacts()


def objects(step: str, spec: BoundarySpec = SPEC, facts: ClusterFacts = NO_FACTS) -> dict[str, Object]:
    found = boundary.objects(step, spec, SETTINGS, facts)
    return {f"{obj['kind']}/{name_of(obj)}": obj for obj in found}


def test_steps_come_in_order_and_hold_the_spec_alone() -> None:
    steps = boundary.steps(SPEC)
    other_token = replace(SPEC, gateway=GatewaySpec(UUID(int=3), "https://control.example", None))

    assert [step.name for step in steps] == [
        "namespace.create", "namespace.limits", "namespace.policies", "namespace.access", "namespace.gateway",
    ]  # fmt: skip
    assert [step.key for step in boundary.steps(other_token)] == [step.key for step in steps]


@pytest.mark.parametrize("kind", [BoundaryKind.VM, BoundaryKind.CLUSTER])
def test_other_kinds_of_boundaries_are_not_supported(kind: BoundaryKind) -> None:
    with pytest.raises(NotSupported, match="namespace"):
        boundary.steps(replace(SPEC, kind=kind))


def test_a_namespace_is_restricted_pinned_and_closed_before_anything_is_allowed() -> None:
    found = objects("namespace.create")

    assert found[f"Namespace/{REF.name}"]["metadata"]["labels"] == {
        f"pod-security.kubernetes.io/{mode}{suffix}": value
        for mode in ("enforce", "audit", "warn")
        for suffix, value in (("", "restricted"), ("-version", "v1.36"))
    }
    assert found["NetworkPolicy/tenantry-default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert found["ServiceAccount/default"]["automountServiceAccountToken"] is False


def test_a_quota_names_every_gpu_resource_and_class_with_nothing_where_nothing_was_granted() -> None:
    facts = ClusterFacts(frozenset({"nvidia.com/mig-3g.40gb", "vendor.example/npu"}), frozenset({"other.example"}))

    hard = objects("namespace.limits", facts=facts)["ResourceQuota/tenantry"]["spec"]["hard"]

    assert hard["requests.cpu"] == "17"
    assert hard["requests.memory"] == "65Gi"
    assert hard["requests.nvidia.com/mig-1g.10gb"] == "4"
    assert hard["requests.nvidia.com/gpu"] == "2"
    assert hard["requests.nvidia.com/mig-3g.40gb"] == "0"
    assert hard["requests.vendor.example/npu"] == "0"
    assert hard["mig.nvidia.com.deviceclass.resource.k8s.io/devices"] == "4"
    assert hard["gpu.nvidia.com.deviceclass.resource.k8s.io/devices"] == "2"
    assert hard["other.example.deviceclass.resource.k8s.io/devices"] == "0"
    assert (hard["services.nodeports"], hard["services.loadbalancers"]) == ("0", "0")
    assert 20 < int(hard["services"]) < 100
    assert not any(name.startswith("limits.nvidia") for name in hard)


@pytest.mark.parametrize(
    ("granted", "single", "whole", "carved"),
    [
        ({"H100-80GB.1g.10gb": 4}, False, "0", "4"),
        ({"H100-80GB.1g.10gb": 4}, True, "4", "4"),
        ({"H100-80GB.1g.10gb": 4, "H100-80GB": 2}, True, "6", "4"),
        ({"H100-80GB": 2}, False, "2", "0"),
        ({"made-up.1g.10gb": 3}, True, "0", "0"),
        ({}, True, "0", "0"),
    ],
)
def test_the_name_of_whole_gpus_is_open_to_parts_only_where_nodes_hand_them_out_by_it(
    granted: dict[str, int], single: bool, whole: str, carved: str
) -> None:
    facts = ClusterFacts(single=single)

    hard = objects("namespace.limits", replace(SPEC, gpu_resources=granted), facts)["ResourceQuota/tenantry"]["spec"]

    assert hard["hard"]["requests.nvidia.com/gpu"] == whole
    assert hard["hard"]["requests.nvidia.com/mig-1g.10gb"] == carved


def test_a_quota_says_by_which_facts_it_was_made() -> None:
    def note(facts: ClusterFacts) -> str:
        made = objects("namespace.limits", facts=facts)["ResourceQuota/tenantry"]
        return str(made["metadata"]["annotations"][boundary.NAMING_ANNOTATION])

    plain, single = note(NO_FACTS), note(ClusterFacts(single=True))
    more = note(ClusterFacts(frozenset({"vendor.example/npu"})))

    assert (plain.split()[0], single.split()[0]) == ("own", "single")
    assert plain.split()[1] == single.split()[1] != more.split()[1]


def test_the_network_allows_dns_and_the_way_from_proxy_to_replica_and_home_and_nothing_else() -> None:
    found = objects("namespace.policies")

    names = ("dns", "gateway-in", "gateway-out", "replica-in", "gateway-home", "replica-mirror", "monitoring")
    assert set(found) == {f"NetworkPolicy/tenantry-{name}" for name in names}
    (rule,) = found["NetworkPolicy/tenantry-gateway-in"]["spec"]["ingress"]
    assert rule == {
        "from": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway-system"}},
                "podSelector": {"matchLabels": {"app": "proxy"}},
            }
        ],
        "ports": [{"protocol": "TCP", "port": 8080}],
    }
    (rule,) = found["NetworkPolicy/tenantry-replica-in"]["spec"]["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"tenantry.internal/component": "gateway"}
    assert "namespaceSelector" not in rule["from"][0]
    (rule,) = found["NetworkPolicy/tenantry-gateway-home"]["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "10.9.0.0/16"}}]
    (rule,) = found["NetworkPolicy/tenantry-dns"]["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def test_what_is_cut_off_has_one_policy_that_allows_nothing() -> None:
    found = objects("namespace.policies", replace(SPEC, cut_off=True))

    assert [obj["spec"] for obj in found.values()] == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]


def test_access_binds_accounts_from_ids_to_the_three_roles() -> None:
    found = objects("namespace.access")

    assert set(found) == {f"RoleBinding/tenantry-{role}" for role in ("owner", "member", "viewer")}
    assert found["RoleBinding/tenantry-owner"]["subjects"] == []
    (member,) = found["RoleBinding/tenantry-member"]["subjects"]
    assert member["name"] == boundary.account_name(REF, "p-1")
    assert "p-1" not in member["name"]


@pytest.mark.parametrize("name", ["namespace.create", "serving.replica[12]"])
def test_a_step_is_read_back_from_the_label_that_its_name_became(name: str) -> None:
    (made,) = marked_set([{"kind": "X", "metadata": {"name": "x"}}], REF, step=name, want="w")

    assert step_of(made) == name
    assert "[" not in step_label(name)


def test_an_object_is_still_ours_when_its_labels_were_taken_away() -> None:
    (made,) = marked_set([{"kind": "X", "metadata": {"name": "x"}}], REF, step="namespace.create", want="w")
    made["metadata"]["labels"] = {}

    assert ref_of(made) == REF
    assert is_ours(made, REF)
    assert not is_ours(made, Ref(Kind.BOUNDARY, REF.uid, UUID(int=9)))
    assert ref_of({"kind": "X", "metadata": {"name": "x", "labels": {"tenantry.internal/uid": "junk"}}}) is None
