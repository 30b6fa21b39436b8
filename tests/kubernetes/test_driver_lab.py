"""The driver on a real API server: drift, fights, names made anew, what is stuck, errors as they really come."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import (
    BoundarySpec,
    Conflicting,
    Done,
    DriverRejected,
    NotSupported,
    Presence,
    Secret,
    TransientDriverError,
    removal_of,
)
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.failures import AccessDenied
from provisioners.kubernetes.objects import Object, annotations_of, labels, name_of, owned_fields, uid_of
from tests.conformance.specs import endpoint, finish, namespace_boundary, remove, unit, unmet
from tests.kubernetes.gpu_ground import until

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.cluster import Cluster as LabCluster
    from tests.conformance.kubernetes_rig import KubernetesRig

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]
TENANT = UUID("44444444-4444-4444-8444-444444444444")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> LabCluster:
    from tests.conformance.kubernetes_rig import ready_cluster

    return ready_cluster(request)


@pytest.fixture
def rig(lab: LabCluster) -> Iterator[KubernetesRig]:
    from tests.conformance.kubernetes_rig import KubernetesRig

    made = KubernetesRig(lab)
    yield made
    made.close()


@pytest.fixture
def boundary(rig: KubernetesRig) -> BoundarySpec:
    spec = namespace_boundary(TENANT)
    finish(rig, spec)
    return spec


@contextmanager
def no_writes(cluster: Cluster) -> Iterator[None]:
    before = cluster.writes
    yield
    assert cluster.writes == before


def mend(rig: KubernetesRig, spec: BoundarySpec) -> None:
    """Walk to the end, as often as what is made anew asks for."""
    for _ in range(5):
        try:
            finish(rig, spec)
        except TransientDriverError:
            rig.clock.tick()
        else:
            return
    finish(rig, spec)


# --- what is as wanted stays untouched ------------------------------------------------------------


def test_what_is_as_wanted_gets_no_changing_call_and_a_bounded_number_of_reads(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    with no_writes(rig.driver.cluster):
        finish(rig, boundary)
        rig.driver.snapshot()
        for step in rig.driver.steps(boundary)[:4]:
            assert rig.driver.start(step) == Done()

    reads = rig.driver.cluster.reads
    rig.driver.snapshot()
    assert rig.driver.cluster.reads - reads < 30


# --- drift ----------------------------------------------------------------------------------------

Change = Callable[[Object], Any]
CHANGES: dict[str, tuple[str, str, str, Change]] = {
    "Pod Security label": (
        "v1", "Namespace", "", lambda _: {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}},
    ),
    "our mark": ("v1", "Namespace", "", lambda _: {"metadata": {"labels": {"tenantry.internal/tenant": None}}}),
    "default-deny": (
        "networking.k8s.io/v1", "NetworkPolicy", "tenantry-default-deny",
        lambda _: {"spec": {"policyTypes": ["Egress"]}},
    ),
    "a peer of a policy": (
        "networking.k8s.io/v1", "NetworkPolicy", "tenantry-replica-in", lambda _: {"spec": {"ingress": [{}]}},
    ),
    "quota": ("v1", "ResourceQuota", "tenantry", lambda _: {"spec": {"hard": {"requests.nvidia.com/gpu": "64"}}}),
    "limits": ("v1", "LimitRange", "tenantry", lambda _: {"spec": {"limits": []}}),
    "binding": (
        "rbac.authorization.k8s.io/v1", "RoleBinding", "tenantry-owner",
        lambda _: {"subjects": [{"kind": "Group", "name": "all", "apiGroup": "rbac.authorization.k8s.io"}]},
    ),
    "default account": ("v1", "ServiceAccount", "default", lambda _: {"automountServiceAccountToken": True}),
    "admission parameters": ("v1", "ConfigMap", "tenantry-placements", lambda _: {"data": {"registries": "evil/"}}),
    "gateway": ("apps/v1", "Deployment", "tn-gateway", lambda _: {"spec": {"replicas": 3}}),
    "service": ("v1", "Service", "tn-gateway", lambda _: {"spec": {"publishNotReadyAddresses": None, "ports": [
        {"name": "http", "port": 81, "targetPort": "http", "protocol": "TCP"}]}}),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_somebody_changes_shows_as_different_and_is_restored(
    rig: KubernetesRig, boundary: BoundarySpec, what: str
) -> None:
    api, kind, name, change = CHANGES[what]
    namespace = "" if kind == "Namespace" else boundary.ref.name
    name = name or boundary.ref.name
    before = rig.driver.cluster.get(api, kind, name, namespace)
    assert before is not None

    rig.api.patch(api, kind, name, change(before), namespace=namespace)

    assert unmet(rig, boundary, rig.driver.observe(boundary.ref)) is not None
    mend(rig, boundary)
    after = rig.driver.cluster.get(api, kind, name, namespace)
    assert after is not None
    assert uid_of(after) == uid_of(before) or kind == "Service"
    assert owned_fields(after) >= {field for field in owned_fields(before) if "annotations" not in field}
    assert kind == "Service" or after.get("spec") == before.get("spec")
    assert after.get("data") == before.get("data")
    assert after.get("subjects") == before.get("subjects")
    assert labels(after) == labels(before)
    with no_writes(rig.driver.cluster):
        finish(rig, boundary)


@pytest.mark.parametrize(
    ("api", "kind", "name"),
    [
        ("networking.k8s.io/v1", "NetworkPolicy", "tenantry-default-deny"),
        ("networking.k8s.io/v1", "NetworkPolicy", "tenantry-gateway-in"),
        ("v1", "ResourceQuota", "tenantry"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", "tenantry-member"),
        ("apps/v1", "Deployment", "tn-gateway"),
    ],
)
def test_what_somebody_deletes_is_made_again(
    rig: KubernetesRig, boundary: BoundarySpec, api: str, kind: str, name: str
) -> None:
    rig.api.delete(api, kind, name, boundary.ref.name)
    if kind == "Deployment":
        rig._await(lambda: rig.api.get(api, kind, name, boundary.ref.name) is None)

    assert unmet(rig, boundary, rig.driver.observe(boundary.ref)) is not None
    if kind == "Deployment":
        # Its one-time token is used up: only the core's fresh one brings it back.
        assert rig.driver.observe(boundary.ref).part("namespace.gateway").have == ""
    finish(rig, boundary)

    assert rig.api.get(api, kind, name, boundary.ref.name) is not None


def test_a_field_taken_back_three_times_is_left_to_people_and_isolation_never(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    namespace = boundary.ref.name
    for _ in range(3):
        rig.api.patch("apps/v1", "Deployment", "tn-gateway", {"spec": {"replicas": 3}}, namespace=namespace)
        finish(rig, boundary)

    rig.api.patch("apps/v1", "Deployment", "tn-gateway", {"spec": {"replicas": 3}}, namespace=namespace)
    part = rig.driver.observe(boundary.ref).part("namespace.gateway")
    for _ in range(5):
        rig.api.patch(
            "networking.k8s.io/v1", "NetworkPolicy", "tenantry-dns", {"spec": {"egress": [{}]}}, namespace=namespace
        )
        assert rig.driver.observe(boundary.ref).part("namespace.policies").have == ""
        step = next(one for one in rig.driver.steps(boundary) if one.name == "namespace.policies")
        rig.driver.start(step)

    assert part.have != ""
    assert rig.driver.observe(boundary.ref).part("namespace.policies").have == step.want


# --- names made anew, what is stuck ---------------------------------------------------------------


def test_a_namespace_made_anew_under_its_name_is_noticed_and_isolated_first(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    old = rig.driver.cluster.get("v1", "Namespace", boundary.ref.name)
    assert old is not None
    rig.api.delete("v1", "Namespace", boundary.ref.name)
    rig._await(lambda: rig.api.get("v1", "Namespace", boundary.ref.name) is None)
    restored = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": boundary.ref.name,
            "labels": dict(labels(old)),
            "annotations": dict(annotations_of(old)),
        },
    }
    rig.api.create(restored)

    seen = rig.driver.observe(boundary.ref)
    with pytest.raises(TransientDriverError, match="made anew"):
        rig.driver.start(rig.driver.steps(boundary)[4])

    assert seen.exists
    assert seen.part("namespace.create").have == ""
    assert "made anew" in seen.part("namespace.create").message
    finish(rig, boundary)
    assert rig.api.get("networking.k8s.io/v1", "NetworkPolicy", "tenantry-default-deny", boundary.ref.name)


def test_a_stuck_namespace_names_object_and_finalizer_and_goes_when_it_is_let_go(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    name = boundary.ref.name
    held = {"name": "theirs", "namespace": name, "finalizers": ["example.com/keep"]}
    rig.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held})
    handle = rig.driver.start(removal_of(boundary.ref, "namespace.create"))
    assert not isinstance(handle, Done)

    rig._await(lambda: rig.driver.observe(boundary.ref).blocked_by != "")
    blocked = rig.driver.observe(boundary.ref)
    polled = rig.driver.poll(handle)
    rig.api.patch("v1", "ConfigMap", "theirs", {"metadata": {"finalizers": None}}, namespace=name)
    rig._await(lambda: not rig.driver.observe(boundary.ref).exists)

    assert blocked.blocked_by == "ConfigMap theirs is held by example.com/keep"
    assert blocked.part("namespace.create").presence == Presence.CHANGING
    assert polled.state == "running"
    assert rig.driver.poll(handle).state == "done"


def test_a_foreign_object_under_a_name_of_ours_is_a_conflict_and_stays(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    rig.api.delete("v1", "ResourceQuota", "tenantry", boundary.ref.name)
    foreign = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "tenantry", "namespace": boundary.ref.name},
        "spec": {"hard": {"pods": "5"}},
    }
    made = rig.api.create(foreign)

    with pytest.raises(Conflicting, match="ResourceQuota tenantry"):
        rig.driver.start(rig.driver.steps(boundary)[1])
    rig.driver.start(removal_of(boundary.ref, "namespace.limits"))

    left = rig.api.get("v1", "ResourceQuota", "tenantry", boundary.ref.name)
    assert left is not None
    assert left["metadata"]["uid"] == made["metadata"]["uid"]
    assert left["spec"]["hard"] == {"pods": "5"}


# --- network --------------------------------------------------------------------------------------


def test_isolating_replaces_the_policies_and_restoring_brings_the_same_back(
    rig: KubernetesRig, boundary: BoundarySpec
) -> None:
    def policies() -> dict[str, Any]:
        found = rig.api.list("networking.k8s.io/v1", "NetworkPolicy", namespace=boundary.ref.name)
        return {name_of(one): one["spec"] for one in found}

    before = policies()
    rig.driver.isolate(boundary.ref, cut_off=True)
    cut = policies()
    rig.driver.isolate(boundary.ref, cut_off=True)
    rig.driver.isolate(boundary.ref, cut_off=False)

    assert set(cut) == {"tenantry-default-deny", "tenantry-cut-off"}
    assert not any(spec.get("ingress") or spec.get("egress") for spec in cut.values())
    assert policies() == before
    assert unmet(rig, boundary, rig.driver.observe(boundary.ref)) is None


def test_a_cut_off_endpoint_keeps_its_pod_and_loses_its_connections(rig: KubernetesRig, boundary: BoundarySpec) -> None:
    spec = endpoint(boundary, unit(0))
    finish(rig, spec)
    selected = f"tenantry.internal/uid={spec.ref.uid}"
    (before,) = rig.api.list("v1", "Pod", labels=selected)

    finish(rig, replace(spec, cut_off=True))
    (cut,) = rig.api.list("v1", "Pod", labels=selected)
    finish(rig, spec)
    (after,) = rig.api.list("v1", "Pod", labels=selected)

    assert before["metadata"]["uid"] == cut["metadata"]["uid"] == after["metadata"]["uid"]
    assert labels(cut)["tenantry.internal/cut-off"] == "true"
    assert "tenantry.internal/cut-off" not in labels(after)


# --- hosts ----------------------------------------------------------------------------------------


def test_a_node_is_cordoned_shown_so_and_given_back(rig: KubernetesRig, boundary: BoundarySpec) -> None:
    spec = endpoint(boundary, unit(0))
    finish(rig, spec)

    left = rig.driver.evacuate("node-a")
    shown = next(host for host in rig.driver.snapshot().hosts if host.host == "node-a")
    rig.driver.restore("node-a")

    assert spec.units[0].uid in [use.unit for use in left]
    assert shown.in_maintenance
    assert not next(host for host in rig.driver.snapshot().hosts if host.host == "node-a").in_maintenance
    with pytest.raises(DriverRejected):
        rig.driver.evacuate("nowhere")


def test_whole_gpus_go_to_one_unit_and_are_shown_with_their_ids(rig: KubernetesRig, boundary: BoundarySpec) -> None:
    one = replace(unit(0, count=2), devices=("node-a-gpu-2", "node-a-gpu-3"))
    spec = endpoint(boundary, one)

    seen = finish(rig, spec)

    assert sorted(found.device for found in seen.units) == ["node-a-gpu-2", "node-a-gpu-3"]
    assert sorted(use["device"] for use in rig.truth()) == ["node-a-gpu-2", "node-a-gpu-3"]
    modes = {gpu.device: gpu.mode for host in rig.driver.snapshot().hosts for gpu in host.gpus}
    assert modes["node-a-gpu-2"] == "full"
    remove(rig, spec)
    assert rig.truth() == []


# --- the client -----------------------------------------------------------------------------------


def test_lists_come_whole_in_pages(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    cluster = Cluster(settings_for(lab, page=3))

    found = cluster.list("rbac.authorization.k8s.io/v1", "ClusterRole")

    names = [name_of(one) for one in found.items]
    assert len(names) == len(set(names)) > 50
    assert cluster.reads > 15
    assert all(one["kind"] == "ClusterRole" for one in found.items)
    cluster.close()


def test_what_the_server_does_not_take_is_rejected_and_names_no_secret(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    cluster = Cluster(settings_for(lab))
    unknown = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "default"}, "dada": {}}
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "default"},
        "data": {"k": "hunter2!"},
    }  # fmt: skip
    nowhere = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": f"no-{uuid4()}"}}

    with pytest.raises(DriverRejected):
        cluster.apply(unknown)
    with pytest.raises((DriverRejected, TransientDriverError)) as quoted:
        cluster.apply(secret)
    with pytest.raises(TransientDriverError):
        cluster.apply(nowhere)
    with pytest.raises(NotSupported):
        cluster.get("no.such/v1", "Thing", "x")

    assert "hunter2" not in quoted.value.detail + quoted.value.raw
    cluster.close()


def test_a_delete_spares_another_object_of_the_same_name(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    cluster = Cluster(settings_for(lab))
    name = f"x-{uuid4().hex[:8]}"
    made = cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}})

    assert cluster.delete("v1", "ConfigMap", name, "default", uid=str(uuid4()))
    assert cluster.get("v1", "ConfigMap", name, "default") is not None
    assert cluster.delete("v1", "ConfigMap", name, "default", uid=uid_of(made))
    until(lambda: cluster.get("v1", "ConfigMap", name, "default") is None)  # the garbage collector's turn
    assert cluster.delete("v1", "ConfigMap", name, "default", uid=uid_of(made))
    cluster.close()


def test_bare_lists_hold_no_values_of_secrets(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    cluster = Cluster(settings_for(lab))
    name = f"x-{uuid4().hex[:8]}"
    meta = {"name": name, "namespace": "default", "labels": {"x": name}}
    made = cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"k": "hunter2"}})

    (found,) = cluster.list("v1", "Secret", labels=f"x={name}", bare=True).items

    assert (found["kind"], name_of(found), "data" in found) == ("Secret", name, False)
    cluster.delete("v1", "Secret", name, "default", uid=uid_of(made))
    cluster.close()


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"token": Secret("wrong")}, AccessDenied, "credential"),
        ({"ca_pem": ""}, TransientDriverError, "certificate"),
        ({"url": "https://127.0.0.1:1"}, TransientDriverError, "reached"),
    ],
    ids=["token", "certificate", "address"],
)
def test_a_cluster_that_cannot_be_used_says_why(
    lab: LabCluster, changes: dict[str, Any], kind: type[Exception], says: str
) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    driver = KubernetesDriver(settings_for(lab, **changes))

    with pytest.raises(kind, match=says) as raised:
        driver.cluster.version()

    assert type(raised.value) is kind
    driver.close()


def test_a_server_that_never_answers_costs_no_more_than_the_deadline(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        cluster = Cluster(settings_for(lab, url=url))
        began = time.monotonic()
        with pytest.raises(TransientDriverError, match="in time"):
            cluster.version()

    assert time.monotonic() - began < 15
    cluster.close()


def test_a_watch_tells_what_changes_after_a_list(lab: LabCluster) -> None:
    from tests.conformance.kubernetes_rig import settings_for

    cluster = Cluster(settings_for(lab))
    name = f"x-{uuid4().hex[:8]}"
    listed = cluster.list("v1", "ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}
    made = cluster.create(copy.deepcopy(body))
    cluster.delete("v1", "ConfigMap", name, "default", uid=uid_of(made), propagation="Background")

    told = cluster.watch("v1", "ConfigMap", since=listed.resource_version, timeout_s=1)

    assert [kind for kind, found in told if name_of(found) == name] == ["ADDED", "DELETED"]
    cluster.close()
