"""The lab itself: a real control plane that starts, is adopted, survives kills, and schedules as the real one does."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.labs.kubernetes import furniture, nodes, slices
from controlplane.labs.kubernetes.client import Api, Refused
from controlplane.labs.kubernetes.nodes import Kind, gpu_node

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]

IMAGE = "registry.lab.internal/x@sha256:" + "0" * 64
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    """Wait until the condition holds; return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)  # noqa: TID251 - asks a real server again
    return found


def pod(
    namespace: str, name: str, *, limits: dict[str, str] | None = None, claim: str = "", **spec: Any
) -> dict[str, Any]:
    resources: dict[str, Any] = {"limits": limits or {}}
    body: dict[str, Any] = {
        "containers": [{"name": "c", "image": IMAGE, "securityContext": RESTRICTED, "resources": resources}]
    }
    if claim:
        body["resourceClaims"] = [{"name": "gpu", "resourceClaimName": claim}]
        resources["claims"] = [{"name": "gpu"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body | spec,
    }


def claim(namespace: str, name: str, *, cls: str = slices.MIG_CLASS, cel: str = "") -> dict[str, Any]:
    exactly: dict[str, Any] = {"deviceClassName": cls}
    if cel:
        exactly["selectors"] = [{"cel": {"expression": cel}}]
    return {
        "apiVersion": slices.API,
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
    }


def condition(obj: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    found = ((obj or {}).get("status") or {}).get("conditions") or ()
    return next((one for one in found if one["type"] == kind), {})


@pytest.fixture
def node_of(kube_api: Api):
    """Make a node of this test's own; gone after it."""
    made = []

    def make(*words: Any, **options: Any) -> nodes.Node:
        node = gpu_node(*words, **options)
        nodes.install(kube_api, node)
        slices.publish(kube_api, node)
        made.append(node.name)
        until(lambda: not tainted(kube_api.get("v1", "Node", node.name)), f"{node.name} without taints")
        return node

    yield make
    for name in made:
        kube_api.delete("v1", "Node", name)


def tainted(node: dict[str, Any] | None) -> bool:
    return node is None or bool(node["spec"].get("taints")) or condition(node, "Ready").get("status") != "True"


# --- the servers ----------------------------------------------------------------------------------


def test_it_is_the_version_it_says_and_serves_what_the_driver_needs(kube_api):
    assert kube_api.request("GET", "/version")["gitVersion"] == "v1.36.3"
    for api, kind in (
        ("resource.k8s.io/v1", "ResourceClaim"),
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy"),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("policy/v1", "PodDisruptionBudget"),
    ):
        assert kube_api.path(api, kind)


def test_without_a_token_it_refuses(kube_cluster):
    with (
        Api(kube_cluster.url, ca=kube_cluster.credentials.ca, token="wrong") as stranger,
        pytest.raises(Refused) as refused,
    ):
        stranger.list("v1", "Node")
    assert refused.value.status == 401


def test_every_usual_node_is_ready_and_every_stand_in_runs(kube_api):
    for node in furniture.usual_nodes():
        until(lambda name=node.name: not tainted(kube_api.get("v1", "Node", name)), f"{node.name} ready")
    for namespace, labels in (furniture.DNS, furniture.PROXY):
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = until(lambda n=namespace, s=selector: kube_api.list("v1", "Pod", namespace=n, labels=s), "a pod")
        until(
            lambda n=namespace, p=found[0]["metadata"]["name"]: (
                condition(kube_api.get("v1", "Pod", p, n), "Ready").get("status") == "True"
            ),
            f"{namespace} ready",
        )


@pytest.mark.timeout(240)
def test_a_stopped_cluster_starts_again_in_seconds_with_its_data_and_a_running_one_is_adopted(kube_clusters):
    cluster = kube_clusters("again", pods="ready")
    with cluster.api() as api:
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept"}})
    token = cluster.admin_token

    assert cluster.stop() is True
    assert cluster.status().processes == {}
    began = time.monotonic()
    cluster.start()
    took = time.monotonic() - began
    pids = cluster.status().processes
    cluster.start()  # adopts

    assert took < 10
    assert cluster.status().processes == pids
    assert cluster.admin_token == token
    with cluster.api() as api:
        assert api.get("v1", "Namespace", "kept") is not None
    cluster.kill("kube-apiserver")
    assert not cluster.status().ready
    cluster.start()
    assert cluster.status().ready
    assert cluster.status().processes["etcd"] == pids["etcd"]
    cluster.stop()


# --- the real scheduler on simulated nodes --------------------------------------------------------


def test_quota_and_restricted_pod_security_are_the_real_ones(kube_api, kube_namespace, node_of):
    node_of("quota-node", "H100-80GB", count=1, layouts={0: tuple(("1g.10gb", s) for s in range(7))})
    kube_api.patch(
        "v1",
        "Namespace",
        kube_namespace,
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    quota = {"hard": {"requests.nvidia.com/mig-1g.10gb": "1"}}
    kube_api.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "q", "namespace": kube_namespace},
            "spec": quota,
        }
    )
    until(lambda: kube_api.get("v1", "ResourceQuota", "q", kube_namespace)["status"].get("hard"), "the quota's status")
    until(lambda: kube_api.get("v1", "ServiceAccount", "default", kube_namespace), "the service account")

    kube_api.create(
        pod(
            kube_namespace,
            "one",
            limits={"nvidia.com/mig-1g.10gb": "1"},
            nodeSelector={"kubernetes.io/hostname": "quota-node"},
        )
    )
    with pytest.raises(Refused, match="exceeded quota"):
        kube_api.create(pod(kube_namespace, "two", limits={"nvidia.com/mig-1g.10gb": "1"}))
    loose = pod(kube_namespace, "loose")
    del loose["spec"]["containers"][0]["securityContext"]
    with pytest.raises(Refused, match="violates PodSecurity"):
        kube_api.create(loose)

    seen = until(
        lambda: (
            (p := kube_api.get("v1", "Pod", "one", kube_namespace))
            and condition(p, "Ready").get("status") == "True"
            and p
        ),
        "ready",
    )
    assert seen["spec"]["nodeName"] == "quota-node"


def test_the_scheduler_refuses_overlapping_partitions(kube_api, kube_namespace, node_of):
    node = node_of("parts-node", "H100-80GB", count=1, kind=Kind.PARTITIONABLE)
    mine = f"device.attributes['gpu.nvidia.com'].parentUUID == '{node.gpus[0].uuid(node.name)}'"
    until(lambda: kube_api.get("v1", "ServiceAccount", "default", kube_namespace), "the service account")

    for name, profile in (("a", "4g.40gb"), ("b", "3g.40gb"), ("c", "1g.10gb")):
        cel = f"{mine} && device.attributes['gpu.nvidia.com'].profile == '{profile}'"
        kube_api.create(claim(kube_namespace, name, cel=cel))
        kube_api.create(pod(kube_namespace, name, claim=name))
        wanted = "Unschedulable" if name == "c" else ""
        until(
            lambda n=name, w=wanted: (
                (p := kube_api.get("v1", "Pod", n, kube_namespace))
                and (
                    condition(p, "PodScheduled").get("reason") == w
                    if w
                    else condition(p, "Ready").get("status") == "True"
                )
            ),
            f"{name} {'refused' if wanted else 'ready'}",
        )

    given = {name: kube_api.get(slices.API, "ResourceClaim", name, kube_namespace)["status"] for name in "ab"}
    devices = {name: one["allocation"]["devices"]["results"][0]["device"] for name, one in given.items()}
    assert devices == {"a": "gpu-0-mig-4g40gb-5-0", "b": "gpu-0-mig-3g40gb-9-4"}
    waiting = kube_api.get("v1", "Pod", "c", kube_namespace)
    assert "cannot allocate all claims" in condition(waiting, "PodScheduled")["message"]


def test_a_changed_layout_changes_labels_and_allocatable_and_leaves_nothing_of_the_old(kube_api, node_of):
    node = node_of("change-node", "A100-80GB", count=1, layouts={0: (("3g.40gb", 4),)})

    nodes.publish(kube_api, node.carved({0: (("1g.10gb", 0),)}), stale=frozenset({"nvidia.com/mig-3g.40gb"}))

    seen = kube_api.get("v1", "Node", "change-node")
    assert not [name for name in seen["metadata"]["labels"] if name.startswith("nvidia.com/mig-3g")]
    gpus = {name: count for name, count in seen["status"]["allocatable"].items() if name.startswith("nvidia.com/")}
    assert gpus == {"nvidia.com/mig-1g.10gb": "1", "nvidia.com/mig-3g.40gb": "0"}


def test_a_lost_node_is_not_ready_until_it_is_back(kube_api, node_of):
    node_of("lost-node", "L40S-48GB", count=1)
    note = "lab.tenantry.internal/lost"

    kube_api.patch("v1", "Node", "lost-node", {"metadata": {"annotations": {note: "dead"}}})
    until(lambda: condition(kube_api.get("v1", "Node", "lost-node"), "Ready").get("status") == "Unknown", "unknown")
    kube_api.patch("v1", "Node", "lost-node", {"metadata": {"annotations": {note: None}}})
    until(lambda: not tainted(kube_api.get("v1", "Node", "lost-node")), "ready again")


def test_a_pod_that_is_nobodys_runs_and_goes_at_once_and_a_job_ends_well(kube_api, kube_namespace):
    until(lambda: kube_api.get("v1", "ServiceAccount", "default", kube_namespace), "the service account")
    job = {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE}]}}}
    kube_api.create(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": kube_namespace}, "spec": job}
    )
    kube_api.create(pod(kube_namespace, "plain"))

    until(
        lambda: condition(kube_api.get("v1", "Pod", "plain", kube_namespace), "Ready").get("status") == "True",
        "plain ready",
    )
    until(
        lambda: condition(kube_api.get("batch/v1", "Job", "j", kube_namespace), "Complete").get("status") == "True",
        "job",
    )
    kube_api.delete("v1", "Pod", "plain", kube_namespace)
    until(lambda: kube_api.get("v1", "Pod", "plain", kube_namespace) is None, "plain gone", 10)


def test_logs_of_played_and_unplayed_pods_come_through_the_api_server(kube_api, kube_cluster, kube_namespace):
    until(lambda: kube_api.get("v1", "ServiceAccount", "default", kube_namespace), "the service account")
    kube_api.create(pod(kube_namespace, "quiet", nodeSelector={"kubernetes.io/hostname": "system-0"}))
    until(
        lambda: condition(kube_api.get("v1", "Pod", "quiet", kube_namespace), "Ready").get("status") == "True", "ready"
    )
    path = f"/api/v1/namespaces/{kube_namespace}/pods/quiet/log"

    assert kube_api.request("GET", path) == "simulated pod: no container runs here\n"

    folder = kube_cluster.folder / "pods" / "made-by-a-test"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"pod": f"{kube_namespace}/quiet"}))
    (folder / "c.log").write_text("one\ntwo\nthree\n")
    try:
        assert kube_api.request("GET", path) == "one\ntwo\nthree\n"
        lines = kube_api.request("GET", path, params={"tailLines": "1", "timestamps": "true"}).split()
        assert (lines[0][-1], lines[1:]) == ("Z", ["three"])
    finally:
        shutil.rmtree(folder)
