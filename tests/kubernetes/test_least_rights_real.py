"""The driver with the account of deploy/kubernetes/rbac.yaml and no other right: everything works, a gap is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from provisioners.driver import Handle, Kind, Ref, Secret, TransientDriverError
from provisioners.kubernetes import admission, rbac
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import uid_of
from tests.kubernetes.ground import Ground, Tenancy, eventually

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]
RBAC = "rbac.authorization.k8s.io/v1"


@pytest.fixture
def least(ground: Ground) -> Iterator[KubernetesDriver]:
    answer = ground.admin.create(
        {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "metadata": {"name": rbac.ACCOUNT, "namespace": rbac.SYSTEM_NAMESPACE}, "spec": {"audiences": []},
        },
        subresource="token", name=rbac.ACCOUNT,
    )  # fmt: skip
    token = Secret(answer["status"]["token"])
    driver = KubernetesDriver(replace(ground.settings, token=token, client_certificate=None, client_key=None))
    yield driver
    driver.close()


def settle(driver: KubernetesDriver, answer: object) -> None:
    if isinstance(answer, Handle):
        eventually(lambda: driver.poll(answer).state == "done", within_s=60, what=answer.value)


def test_its_rights_are_enough_for_a_boundary_from_its_making_to_its_end(
    ground: Ground, least: KubernetesDriver
) -> None:
    del ground
    one = Tenancy(Ref(Kind.BOUNDARY, uuid4(), uuid4()))
    spec, handed_out = one.spec(), one.handed_out()

    able = least.capabilities()
    shown = least.snapshot()
    made = [*least.steps(spec), *least.steps(handed_out)]
    for step in made:
        settle(least, least.start(step))
    seen = least.observe(spec.ref)
    credential = least.credential(spec.ref, one.people["owner"], seconds=600, name="it", command=("x",))
    certified = least.certify(spec.ref)
    for step in reversed(made):
        settle(least, least.start(step.undoing()))

    assert [name for name in able.missing if name.startswith("right:") or name in {"people", "admission"}] == []
    assert shown.complete
    assert {part.step: part.have for part in seen.parts} == {step.name: step.want for step in least.steps(spec)}
    assert credential.namespace == spec.ref.name
    assert certified.passed, certified
    eventually(lambda: not least.observe(spec.ref).exists, within_s=60, what="the namespace is gone")


def test_each_right_that_is_taken_away_is_named_and_given_back_it_is_not(
    ground: Ground, least: KubernetesDriver
) -> None:
    role = next(obj for obj in rbac.objects() if obj["kind"] == "ClusterRole" and obj["metadata"]["name"] == "tenantry")
    fewer = [rule for rule in role["rules"] if rule["resources"] not in (["nodes"], ["networkpolicies"])]
    ground.admin.patch(RBAC, "ClusterRole", "tenantry", "", {"rules": fewer})

    def missing() -> list[str]:
        return sorted(name for name in least.capabilities().missing if name.startswith("right:"))

    try:
        named = eventually(missing, what="the right is gone")
        after = eventually(lambda: (found := missing()) == named and found, what="it stays so")
    finally:
        ground.admin.patch(RBAC, "ClusterRole", "tenantry", "", {"rules": role["rules"]})

    assert after == sorted(
        [f"right:{verb} nodes" for verb in ("get", "list", "patch")]
        + [
            f"right:{verb} networkpolicies.networking.k8s.io"
            for verb in ("get", "list", "watch", "create", "patch", "delete")
        ]
    )
    eventually(lambda: not missing(), what="the rights are back")


def test_its_rights_are_enough_to_mend_admission_policies(ground: Ground, least: KubernetesDriver) -> None:
    api, kind, name = admission.API, "ValidatingAdmissionPolicy", "tenantry-pods"
    before = ground.admin.get(api, kind, name)
    assert before is not None
    ground.admin.patch(api, kind, name, "", {"spec": {"failurePolicy": "Ignore"}})
    ground.admin.delete(api, kind, "tenantry-services", uid=uid_of(ground.admin.get(api, kind, "tenantry-services")))

    shown = least.snapshot()

    assert "admission" not in shown.capabilities.missing, shown.capabilities.missing["admission"]
    after = ground.admin.get(api, kind, name)
    assert after is not None
    assert after["spec"]["failurePolicy"] == before["spec"]["failurePolicy"] == "Fail"
    assert ground.admin.get(api, kind, "tenantry-services") is not None


def test_what_the_settings_name_is_looked_up_with_its_rights(ground: Ground, least: KubernetesDriver) -> None:
    driver = KubernetesDriver(
        replace(least.settings, storage_class="least-fast", runtime_class="least-gpu", monitoring_namespace="nowhere"),
    )
    kinds = (
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "least-fast"},
         "provisioner": "example.com/none"},
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "least-gpu"}, "handler": "gpu"},
    )  # fmt: skip
    named = {"storage-class", "runtime-class", "monitoring", "dns", "control-plane-cidrs"}
    try:
        before = named & set(driver.capabilities().missing)
        for obj in kinds:
            ground.admin.apply(obj)
        after = named & set(driver.capabilities().missing)
    finally:
        driver.close()
        for obj in kinds:
            live = ground.admin.get(obj["apiVersion"], obj["kind"], obj["metadata"]["name"])
            if live is not None:
                ground.admin.delete(obj["apiVersion"], obj["kind"], obj["metadata"]["name"], uid=uid_of(live))

    assert before == {"storage-class", "runtime-class", "monitoring", "control-plane-cidrs"}
    assert after == {"monitoring", "control-plane-cidrs"}


# --- what is not taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"token": Secret("not-the-one")}, "secret.token", "does not accept our credential"),
        ({"token": Secret("not-the-one"), "proven_by": "kubeconfig"}, "secret.kubeconfig", "does not accept"),
        ({"ca_pem": ""}, "config.ca_pem", "certificate"),
        ({"ca_pem": "", "trusted_by": "secret.kubeconfig"}, "secret.kubeconfig", "certificate"),
        ({"ca_pem": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"}, "config.ca_pem", "cannot be read"),
    ],
)
def test_what_a_cluster_does_not_take_is_said_with_its_field(
    ground: Ground, changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(TransientDriverError, match=words) as raised:
        KubernetesDriver(replace(ground.settings, **changes)).capabilities()

    assert raised.value.field == field
