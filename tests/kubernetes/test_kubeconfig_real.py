"""A member at a terminal: the real kubectl with the kubeconfig that `tenantry kubeconfig` prints, on a real API server.

kubectl runs the plug-in that the file names; a small program stands for `tenantry kube-credential` and prints what that
prints. What a member may not do is refused with its reason; what remains goes as anywhere else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from controlplane.labs.kubernetes import build
from provisioners.kubernetes import access, admission
from provisioners.kubernetes.objects import UID_LABEL, Object
from tests.kubernetes.ground import MIG, NODE, Ground, eventually, pod

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
PLUGIN = """#!{python}
import pathlib
print(pathlib.Path({answer!r}).read_text())
"""
FOREIGN = "ghcr.io/somebody/job@sha256:" + "0" * 64
NO_PLACEMENT = "this pod asks for a GPU and has no placement: ask for one first"
REGISTRIES = "images come from the platform's registries only"


def kubectl_of(ground: Ground, folder: Path, role: str, *, static: bool = False) -> Kubectl:
    """Return a call of kubectl as one person: with the plug-in of the file, or with the file that holds a token."""
    plugin, answer, config = (
        folder / f"{role}-plugin",
        folder / f"{role}-answer",
        folder / f"{role}-{static}.kubeconfig",
    )
    made = ground.driver.credential(
        ground.mine.ref, ground.mine.people[role], seconds=900, name="it", command=(str(plugin), "kube-credential")
    )
    answer.write_text(json.dumps(access.exec_credential(made.token.reveal(), made.expires_at.isoformat())))
    plugin.write_text(PLUGIN.format(python=sys.executable, answer=str(answer)))
    plugin.chmod(0o755)
    config.write_text(made.static_kubeconfig.reveal() if static else made.kubeconfig)
    program = build.ensure().path("kubectl")

    def call(*words: str, obj: Object | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), "--kubeconfig", str(config), "--cache-dir", str(folder / "cache"), *words],
            input=None if obj is None else json.dumps(obj), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return call


@pytest.fixture
def member(ground: Ground, tmp_path: Path) -> Kubectl:
    return kubectl_of(ground, tmp_path, "member")


def made(kind: str, name: str, api: str = "v1", *, labels: Object | None = None, **body: Any) -> Object:
    """Return an object without a namespace: kubectl puts it into that of the file."""
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels or {}}, **body}


def of_people(**changes: Any) -> Object:
    obj = pod("", **changes)
    del obj["metadata"]["namespace"]
    return obj


def service(**spec: Any) -> Object:
    return made("Service", "web", spec={"selector": {"app": "web"}, "ports": [{"port": 80}], **spec})


REFUSED: dict[str, tuple[Object, str]] = {
    "a GPU without a placement": (of_people(gpu=MIG), NO_PLACEMENT),
    "a whole GPU without a placement": (of_people(gpu="nvidia.com/gpu"), NO_PLACEMENT),
    "a GPU by a claim of their own": (
        of_people(resourceClaims=[{"name": "g", "resourceClaimName": "mine"}]), NO_PLACEMENT,
    ),
    "an image of a foreign registry": (of_people(image=FOREIGN), REGISTRIES),
    "an image of the world's registry": (of_people(image="nginx"), REGISTRIES),
    "a node port": (service(type="NodePort"), "services of tenants are of type ClusterIP"),
    "a load balancer": (service(type="LoadBalancer"), "services of tenants are of type ClusterIP"),
    "a foreign priority class": (
        of_people(priorityClassName="system-node-critical"), "this priority class is not for tenants",
    ),
    "a foreign runtime class": (of_people(runtimeClassName="lab-runtime"), "this runtime class is not for tenants"),
    "a label of ours": (of_people(labels={UID_LABEL: str(uuid4())}), "are the platform's to set"),
    "a node of their choice": (of_people(nodeName=NODE), "the scheduler chooses the node"),
}  # fmt: skip


@pytest.fixture(scope="module")
def runtime_class(ground: Ground) -> Any:
    """A runtime class that the cluster has and tenants may not use: without it the server itself would refuse."""
    ground.admin.apply(made("RuntimeClass", "lab-runtime", "node.k8s.io/v1", handler="lab"))


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.usefixtures("runtime_class")
def test_a_member_is_refused_with_the_reason(member: Kubectl, what: str) -> None:
    obj, words = REFUSED[what]

    answer = member("apply", "-f", "-", obj=obj)

    assert answer.returncode != 0
    assert words in answer.stderr


@pytest.mark.parametrize("static", [False, True], ids=["plug-in", "static file"])
def test_what_is_allowed_goes_as_anywhere_else(ground: Ground, tmp_path: Path, static: bool) -> None:
    member = kubectl_of(ground, tmp_path, "member", static=static)
    own = [
        of_people(),
        service(),
        made("ConfigMap", "settings", data={"a": "b"}),
        made("Secret", "own", stringData={"a": "b"}),
    ]

    # `apply` would read first, and nobody reads Secrets: the gateway's and the model server's are among them.
    answers = [member("create", "-f", "-", obj=obj) for obj in own]
    seen = member("get", "pods", "-o", "name")
    gone = member("delete", "pod/try", "service/web", "configmap/settings", "secret/own", "--wait=false")

    assert [answer.stderr for answer in (*answers, seen, gone)] == [""] * 6
    assert "pod/try" in seen.stdout


def test_what_is_ours_is_neither_changed_nor_taken_by_a_member(ground: Ground, member: Kubectl) -> None:
    ours = f"configmap/{admission.PARAMS}"
    attempts = [
        member("label", ours, f"{UID_LABEL}-"),
        member("label", ours, "tenantry.internal/extra=1"),
        member("patch", ours, "--type=merge", "-p", '{"data":{"registries":"/"}}'),
        member("delete", ours, "--wait=false"),
        member("create", "configmap", "tn-mine"),
        member("label", "namespace", ground.mine.namespace, "pod-security.kubernetes.io/enforce=privileged"),
        member("delete", "networkpolicy", "--all", "--wait=false"),
        member("patch", "resourcequota", "tenantry", "--type=merge", "-p", '{"spec":{"hard":{"pods":"900"}}}'),
        member("get", "secrets"),
        member("get", "pods", "--namespace", ground.other.namespace),
        member("get", "nodes"),
        member("create", "token", "default"),
    ]

    assert [answer.returncode for answer in attempts] == [1] * len(attempts)
    left = ground.admin.get("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace)
    assert left is not None
    assert left["data"]["registries"] == "registry.internal/"


@pytest.mark.parametrize(
    ("changes", "words"), [({"gpu": MIG}, NO_PLACEMENT), ({"image": FOREIGN}, REGISTRIES)], ids=["GPU", "image"]
)
def test_what_a_member_may_not_start_no_deployment_of_theirs_starts_either(
    ground: Ground, member: Kubectl, changes: dict[str, Any], words: str
) -> None:
    name = f"web-{uuid4().hex[:6]}"
    template = {"metadata": {"labels": {"app": name}}, "spec": of_people(**changes)["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}

    answer = member("apply", "-f", "-", obj=made("Deployment", name, "apps/v1", spec=spec))

    def why() -> str:
        found = json.loads(member("get", "deployment", name, "-o", "json").stdout)
        said = [one["message"] for one in found.get("status", {}).get("conditions", []) if one["type"].endswith("lure")]
        return " ".join(said)

    assert answer.returncode == 0
    assert words in eventually(why, within_s=30, what="the controller says why there is no pod")
    assert member("get", "pods", "-l", f"app={name}", "-o", "name").stdout == ""
    assert member("delete", "deployment", name, "--wait=false").returncode == 0


def test_a_placed_gpu_pod_of_people_goes_to_the_node_of_its_placement(ground: Ground, member: Kubectl) -> None:
    product = uuid4()
    given = admission.hand_out(product, [NODE], resources=[MIG])
    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace, given)
    obj = of_people(gpu=MIG)

    answer = eventually(
        lambda: (found := member("apply", "--dry-run=server", "-o", "json", "-f", "-", obj=obj)).stdout and found,
        what="admission hears of it",
    )
    elsewhere = of_people(gpu=MIG, nodeSelector={"kubernetes.io/hostname": "another"})
    refused = member("apply", "--dry-run=server", "-f", "-", obj=elsewhere)
    ground.admin.patch("v1", "ConfigMap", admission.PARAMS, ground.mine.namespace, admission.hand_out(product, ()))

    assert json.loads(answer.stdout)["spec"]["nodeSelector"] == {"kubernetes.io/hostname": NODE}
    assert "this pod is not on the node of its placement" in refused.stderr


def test_a_viewer_looks_and_an_owner_may_what_a_member_may(ground: Ground, tmp_path: Path) -> None:
    viewer, owner = (kubectl_of(ground, tmp_path, role) for role in ("viewer", "owner"))

    assert viewer("get", "pods,services,configmaps").returncode == 0
    assert "forbidden" in viewer("apply", "-f", "-", obj=of_people()).stderr
    assert owner("apply", "--dry-run=server", "-f", "-", obj=of_people()).returncode == 0
    assert REGISTRIES in owner("apply", "-f", "-", obj=of_people(image=FOREIGN)).stderr


def test_kubectl_is_refused_within_five_seconds_after_leaving(ground: Ground, tmp_path: Path) -> None:
    leaver = kubectl_of(ground, tmp_path, "member", static=True)
    person = ground.mine.people["member"]
    assert leaver("get", "pods").returncode == 0

    try:
        del ground.mine.people["member"]
        began = time.monotonic()
        ground.let_in(ground.mine)
        ground.make(ground.mine)
        eventually(lambda: leaver("get", "pods").returncode == 1, within_s=5, what="kubectl is refused")
        took_s = time.monotonic() - began
    finally:
        ground.mine.people["member"] = person
        ground.make(ground.mine)

    assert took_s < 5
