"""Admission on a real kube-apiserver, tried with the tokens of people: what is let through, pinned, refused."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import DriverError, DriverRejected
from provisioners.kubernetes import admission
from provisioners.kubernetes.objects import COMPONENT_LABEL, UID_LABEL, UNIT_LABEL, Object, uid_of
from tests.kubernetes.ground import MIG, NODE, Ground, eventually, pod

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]
SECRET = {"name": "tn-ep-1-key", "key": "key"}


def refusal(ground: Ground, obj: Object, role: str = "member") -> str:
    """Return why the API server refuses an object of a person, `""` where it takes it."""
    try:
        ground.acting(role).apply(obj, dry_run=True)
    except DriverError as error:
        return error.raw
    return ""


def test_an_ordinary_pod_is_taken_and_its_image_always_pulled(ground: Ground) -> None:
    made = ground.acting("member").apply(pod(ground.mine.namespace), dry_run=True)

    assert made["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    assert "nodeSelector" not in made["spec"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "docker.io/library/x@sha256:" + "0" * 64}, "the platform's registries only"),
        ({"image": "registry.internal.evil.example/x@sha256:" + "0" * 64}, "the platform's registries only"),
        ({"image": "registry.internal/app:latest"}, "pinned by digest"),
        ({"gpu": MIG}, "has no placement"),
        ({"gpu": "deviceclass.resource.kubernetes.io/gpu.nvidia.com"}, "has no placement"),
        ({"gpu": "vendor.example/never-heard-of"}, "has no placement"),
        (
            {"resourceClaims": [{"name": "g", "resourceClaimName": "tn-ep-2-0"}]},
            "has no placement",
        ),
        ({"nodeName": NODE}, "leave nodeName out"),
        ({"schedulerName": "mine"}, "leave schedulerName out"),
        ({"priorityClassName": "system-node-critical"}, "priority class"),
        ({"runtimeClassName": "nvidia"}, "untime"),
        ({"labels": {UID_LABEL: str(uuid4())}}, "are the platform's to set"),
        ({"labels": {UNIT_LABEL: str(uuid4())}, "gpu": MIG}, "denied request"),  # by either of two policies
        ({"labels": {COMPONENT_LABEL: "gateway"}}, "are the platform's to set"),
        ({"container": {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}}, "reach for devices"),
        ({"container": {"env": [{"name": "LD_PRELOAD", "value": "x.so"}]}}, "reach for devices"),
        ({"container": {"envFrom": [{"configMapRef": {"name": "x"}}]}}, "envFrom needs a prefix"),
        (
            {"container": {"envFrom": [{"prefix": "NV", "configMapRef": {"name": "x"}}]}},
            "envFrom needs a prefix",
        ),
        ({"container": {"envFrom": [{"prefix": "APP_", "secretRef": {"name": "tn-ep-1-key"}}]}}, "for its own pods"),
        ({"container": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": SECRET}}]}}, "for its own pods"),
        ({"volumes": [{"name": "v", "secret": {"secretName": "tn-bd-1-gateway"}}]}, "for its own pods"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "tn-bd-1"}}]}}]},
            "for its own pods",
        ),
        ({"hostNetwork": True}, "violates PodSecurity"),
        ({"hostPID": True}, "violates PodSecurity"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "violates PodSecurity"),
    ],
)  # fmt: skip
def test_what_a_pod_of_a_tenant_may_not_be_is_refused_with_its_reason(
    ground: Ground, changes: dict[str, Any], words: str
) -> None:
    obj = pod(ground.mine.namespace, **changes)

    assert words in refusal(ground, obj)


def test_an_administrator_starts_no_gpu_pod_without_a_placement_either(ground: Ground) -> None:
    with pytest.raises(DriverRejected) as error:
        ground.admin.apply(pod(ground.mine.namespace, gpu=MIG), dry_run=True)

    assert "has no placement" in error.value.raw


def test_a_placed_pod_is_pinned_to_its_node_whatever_it_asks_for(ground: Ground) -> None:
    unit = uuid4()
    patch = admission.place(unit, NODE, resources=[MIG])
    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace, patch)
    own = {UNIT_LABEL: str(unit)}

    def taken() -> Object | None:
        try:
            return ground.admin.apply(
                pod(ground.mine.namespace, gpu=MIG, labels=own, nodeSelector={"kubernetes.io/hostname": "node-z"}),
                dry_run=True,
            )
        except DriverRejected:
            return None

    made = eventually(taken, what="the placement reaches admission")
    assert made["spec"]["nodeSelector"] == {"kubernetes.io/hostname": NODE}
    with pytest.raises(DriverRejected) as error:
        ground.admin.apply(pod(ground.mine.namespace, gpu="nvidia.com/gpu", labels=own), dry_run=True)
    assert "does not have" in error.value.raw
    claim = [{"name": "g", "resourceClaimName": "somebody-elses"}]
    with pytest.raises(DriverRejected) as error:
        ground.admin.apply(pod(ground.mine.namespace, labels=own, resourceClaims=claim), dry_run=True)
    assert "uses a claim" in error.value.raw
    with pytest.raises(DriverRejected):
        ground.admin.apply(pod(ground.other.namespace, gpu=MIG, labels=own), dry_run=True)

    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace, admission.unplace(unit))
    eventually(lambda: taken() is None, what="the placement is taken back")


def test_people_start_gpu_pods_on_nodes_given_to_them_whole(ground: Ground) -> None:
    namespace = ground.other.namespace
    product = uuid4()
    given = admission.hand_out(product, ["n1", "n2"], resources=[MIG])
    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, namespace, given)

    member = ground.acting("member", ground.other)

    def taken(**spec: Any) -> Object | None:
        try:
            return member.apply(pod(namespace, gpu=MIG, **spec), dry_run=True)
        except DriverRejected:
            return None

    first = eventually(taken, what="the parameters reach admission")
    second = taken(nodeSelector={"kubernetes.io/hostname": "n2"})

    assert first["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "n1"}
    assert second is not None
    assert second["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "n2"}
    assert taken(nodeSelector={"kubernetes.io/hostname": "n3"}) is None
    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, namespace, admission.hand_out(product, ()))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "NodePort"}, "of type ClusterIP"),
        ({"type": "LoadBalancer"}, "of type ClusterIP"),
        ({"type": "ExternalName", "externalName": "evil.example"}, "of type ClusterIP"),
        ({"externalIPs": ["203.0.113.7"]}, "no external addresses"),
        ({}, ""),
    ],
)
def test_services_of_tenants_stay_inside(ground: Ground, spec: Object, words: str) -> None:
    obj = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": ground.mine.namespace},
        "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}], **spec},
    }  # fmt: skip

    said = refusal(ground, obj)

    assert (words in said) if words else said == ""


def test_a_template_with_our_labels_is_refused_before_a_controller_makes_pods_of_it(ground: Ground) -> None:
    inner = pod(ground.mine.namespace)
    template = {"metadata": {"labels": {"app": "x", COMPONENT_LABEL: "gateway"}}, "spec": inner["spec"]}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": ground.mine.namespace},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template},
    }  # fmt: skip

    said = refusal(ground, deployment)
    template["metadata"]["labels"].pop(COMPONENT_LABEL)

    assert "are the platform's to set" in said
    assert refusal(ground, deployment) == ""


def test_what_is_ours_is_neither_changed_nor_deleted_by_an_owner(ground: Ground) -> None:
    namespace = ground.mine.namespace
    secret = ground.admin.apply(
        {
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "tn-ep-1-key", "namespace": namespace, "labels": {UID_LABEL: str(uuid4())}},
            "stringData": {"key": "not for them"},
        }
    )  # fmt: skip
    config = ground.admin.get("v1", "ConfigMap", admission.PARAMS, namespace)
    assert config is not None

    owner = ground.acting("owner")
    for attempt in (
        lambda: owner.patch("v1", "Secret", "tn-ep-1-key", namespace, {}),
        lambda: owner.patch("v1", "Secret", "tn-ep-1-key", namespace, {"metadata": {"labels": {UID_LABEL: None}}}),
        lambda: owner.delete("v1", "Secret", "tn-ep-1-key", namespace, uid=uid_of(secret)),
        lambda: owner.get("v1", "Secret", "tn-ep-1-key", namespace),
        lambda: owner.patch("v1", "ConfigMap", admission.PARAMS, namespace, {"data": {"registries": "/"}}),
        lambda: owner.delete("v1", "ConfigMap", admission.PARAMS, namespace, uid=uid_of(config)),
    ):
        with pytest.raises(DriverError) as error:
            attempt()
        assert "not for them" not in f"{error.value.detail} {error.value.raw}"

    left = ground.admin.get("v1", "ConfigMap", admission.PARAMS, namespace)
    assert left is not None
    assert left["data"]["registries"] == "registry.internal/"


def test_the_server_finds_nothing_wrong_with_the_types_of_our_expressions(ground: Ground) -> None:
    def checked() -> list[Object] | None:
        found = [ground.admin.get(admission.API, "ValidatingAdmissionPolicy", name) for name in admission.VALIDATING]
        settled = [one for one in found if one and (one.get("status") or {}).get("observedGeneration")]
        return settled if len(settled) == len(found) else None

    found = eventually(checked, within_s=20, what="type checking")

    warnings = [
        (one["metadata"]["name"], each)
        for one in found
        for each in (one["status"].get("typeChecking") or {}).get("expressionWarnings", [])
    ]
    assert warnings == []


def test_policies_are_kept_with_the_least_rights_and_no_others_can_be(ground: Ground) -> None:
    answer = ground.admin.create(
        {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {"name": "tenantry", "namespace": "tenantry-system"}, "spec": {"audiences": []},
        },
        subresource="token", name="tenantry",
    )  # fmt: skip
    from provisioners.driver import Secret

    account = ground.with_token(Secret(answer["status"]["token"]))
    policy = next(obj for obj in admission.cluster_objects() if obj["metadata"]["name"] == admission.MARKS)

    made = account.apply(policy, dry_run=True)
    with pytest.raises(DriverError) as error:
        account.apply({**policy, "metadata": {"name": "somebody-elses"}}, dry_run=True)

    assert made["metadata"]["name"] == admission.MARKS
    assert "forbidden" in error.value.raw
    account.close()
