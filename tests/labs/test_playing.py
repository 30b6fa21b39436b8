"""Pods of ours on a real kube-apiserver are played from what they really have, by their own probes, until they end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from controlplane.labs.kubernetes import devices, nodes, pods, processes
from controlplane.labs.kubernetes.ground import LAB

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]

DIGEST = "@sha256:" + "0" * 64
VLLM = f"registry.lab.internal/vllm/vllm-openai{DIGEST}"
pause = threading.Event().wait
ONE = {"nvidia.com/mig-1g.10gb": "1"}


def until(is_true, *, within_s=20.0):
    """Return what `is_true` returns once it is."""
    end = time.monotonic() + within_s
    while not (found := is_true()):
        assert time.monotonic() < end, f"not within {within_s} s: {is_true}"
        pause(0.1)
    return found


class Played:
    """One pod of ours."""

    def __init__(self, api, namespace, **changes):
        self.api, self.namespace, self.name = api, namespace, f"p-{uuid4().hex[:8]}"
        container = {
            "name": "vllm",
            "image": VLLM,
            "command": ["vllm", "serve"],
            "args": ["Qwen/Qwen3-8B", "--served-model-name=chat", "--port=8000"],
            "ports": [{"name": "http", "containerPort": 8000}],
            "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
            "securityContext": {"runAsUser": 2000},
            "resources": {"limits": {**ONE, "cpu": "1"}},
            **changes.pop("container", {}),
        }
        meta = {
            "name": self.name,
            "namespace": namespace,
            "labels": {"tenantry.internal/uid": str(uuid4())},
            "annotations": changes.pop("annotations", {}),
        }
        spec = {
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 10,
            "containers": [container],
            **changes,
        }
        made = api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        self.uid = made["metadata"]["uid"]

    def now(self):
        return self.api.get("v1", "Pod", self.name, self.namespace)

    def container(self):
        found = (self.now() or {}).get("status", {}).get("containerStatuses")
        return found[0] if found else {"state": {}, "lastState": {}, "ready": False, "restartCount": 0}

    def is_ready(self):
        conditions = (self.now() or {}).get("status", {}).get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def waits_with(self, reason):
        waiting = self.container()["state"].get("waiting") or {}
        return waiting if waiting.get("reason") == reason else None

    def url(self):
        return f"http://127.0.0.1:{self.now()['metadata']['annotations'][f'{LAB}/port']}"

    def process(self, folder):
        return next((pid for uid, pid, marker in pods.recorded(folder) if uid == self.uid), 0)

    def delete(self, grace_s=None):
        self.api.delete("v1", "Pod", self.name, self.namespace, grace_s=grace_s)


@pytest.fixture
def play(kube_api, kube_namespace):
    made = []

    def start(**changes):
        made.append(Played(kube_api, kube_namespace, **changes))
        return made[-1]

    yield start
    for pod in made:
        pod.delete(grace_s=0)


@pytest.fixture
def folder(kube_cluster):
    return kube_cluster.folder


def chat(url, key="", path="/v1/chat/completions"):
    body = {"model": "chat", "messages": [{"role": "user", "content": "Where?"}]}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}{path}", json=body, headers=headers, trust_env=False, timeout=5)


def test_a_pod_answers_once_it_is_ready_and_says_that_it_is_simulated(play, folder):
    pod = play()

    until(pod.is_ready)

    answer = chat(pod.url())
    assert answer.status_code == 200
    assert f"simulated pod ({pod.namespace}/{pod.name})" in answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["x-tenantry-simulated"] == "true"
    held = [uid for truth in devices.truths(folder).values() for uid in truth.held]
    assert held.count(pod.uid) == 1
    assert devices.violations(folder) == []


def test_a_missing_secret_keeps_a_pod_waiting_until_it_is_there(play, kube_api, folder):
    env = [{"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "late", "key": "key"}}}]
    pod = play(container={"env": env})

    waiting = until(lambda: pod.waits_with("CreateContainerConfigError"))
    assert waiting["message"] == 'secret "late" not found'
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late", "namespace": pod.namespace}}
    kube_api.create({**secret, "stringData": {"other": "x"}})
    until(
        lambda: (pod.waits_with("CreateContainerConfigError") or {}).get("message", "").startswith("couldn't find key")
    )
    kube_api.patch("v1", "Secret", "late", {"stringData": {"key": "s3cret"}}, namespace=pod.namespace)
    until(pod.is_ready)

    assert [chat(pod.url(), key).status_code for key in ("", "wrong", "s3cret")] == [401, 401, 200]
    state = (folder / "pods" / pod.uid / "state.json").read_text()
    assert "s3cret" not in state


def test_wrong_argv_crashes_with_the_programs_own_words_and_backs_off(play):
    pod = play(container={"args": ["Qwen/Qwen3-8B", "--max-model-length=5"]})

    until(lambda: pod.container()["restartCount"] >= 2 and pod.waits_with("CrashLoopBackOff"))

    last = pod.container()["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (2, "Error")
    assert "unrecognized arguments: --max-model-length=5" in last["message"]
    assert not pod.is_ready()


def test_a_program_that_does_not_exist_is_a_start_error(play):
    pod = play(container={"command": ["vlm"]})

    until(lambda: pod.container()["lastState"].get("terminated"))

    last = pod.container()["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (128, "StartError")


def test_a_probe_on_another_port_keeps_a_pod_unready(play):
    pod = play(container={"readinessProbe": {"httpGet": {"path": "/health", "port": 8001}, "periodSeconds": 1}})

    until(lambda: pod.container()["state"].get("running"))
    pause(1)

    assert not pod.is_ready()


def test_a_process_that_dies_is_restarted_on_the_same_port_under_the_same_device(play, folder):
    pod = play()
    until(pod.is_ready)
    url, first = pod.url(), pod.process(folder)
    before = {node: dict(truth.held) for node, truth in devices.truths(folder).items()}

    os.kill(first, signal.SIGKILL)
    until(lambda: pod.container()["restartCount"] == 1 and pod.is_ready())

    assert pod.container()["lastState"]["terminated"]["exitCode"] == 137
    assert pod.url() == url
    assert chat(url).status_code == 200
    after = {node: dict(truth.held) for node, truth in devices.truths(folder).items()}
    assert [held.get(pod.uid) for held in before.values()] == [held.get(pod.uid) for held in after.values()]


def test_a_liveness_probe_that_fails_restarts_its_container(play):
    probe = {"httpGet": {"path": "/nowhere", "port": "http"}, "periodSeconds": 1, "failureThreshold": 2}
    pod = play(container={"livenessProbe": probe})

    until(lambda: pod.container()["restartCount"] >= 1)


def test_deletion_ends_the_process_in_order_and_removes_the_pod(play, folder):
    pod = play(annotations={})
    until(pod.is_ready)
    pid = pod.process(folder)

    pod.delete()
    until(lambda: pod.now() is None)

    assert not Path(f"/proc/{pid}").exists() or not processes.is_alive(pid, f"{pod.uid}/vllm/1")
    until(lambda: not (folder / "pods" / pod.uid).exists())
    until(lambda: all(pod.uid not in truth.held for truth in devices.truths(folder).values()))


def test_a_pod_removed_by_force_leaves_no_process(play, folder):
    pod = play()
    until(pod.is_ready)
    pid = pod.process(folder)

    pod.delete(grace_s=0)

    until(lambda: not processes.is_alive(pid, f"{pod.uid}/vllm/1"))


def test_the_player_may_die_and_the_pods_live_on(play, folder, kube_cluster):
    pod = play()
    until(pod.is_ready)
    pid, url = pod.process(folder), pod.url()

    kube_cluster.kill("player")
    assert chat(url).status_code == 200
    gone = play()
    kube_cluster.start()

    until(gone.is_ready)
    assert pod.process(folder) == pid
    assert pod.container()["restartCount"] == 0
    os.kill(pid, signal.SIGKILL)  # the adopted one is still looked after
    until(lambda: pod.container()["restartCount"] == 1 and pod.is_ready())
    assert pod.container()["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"


def test_an_image_that_is_not_there_cannot_be_pulled(play):
    pod = play(container={"image": f"registry.lab.internal/nothing{DIGEST}"})

    until(lambda: pod.waits_with("ImagePullBackOff") or pod.waits_with("ErrImagePull"))


def test_more_pods_than_devices_are_never_given_one_twice(play, folder, kube_api):
    """The scheduler counts; the lab's device plugin chooses: however many come and go, nobody shares."""
    name = f"few-{uuid4().hex[:6]}"
    few = nodes.gpu_node(name, "H100-80GB", count=1, layouts={0: (("1g.10gb", 0), ("1g.10gb", 4))})
    nodes.install(kube_api, few)
    try:
        wanted = {"nodeSelector": {"kubernetes.io/hostname": name}}
        first = [play(**wanted) for _ in range(3)]
        until(lambda: sum(pod.is_ready() for pod in first) == 2)
        waiting = next(pod for pod in first if not pod.is_ready())
        assert not waiting.now()["spec"].get("nodeName")
        next(pod for pod in first if pod.is_ready()).delete()
        until(waiting.is_ready)

        held = devices.truths(folder)[name].held
        assert len({slot for slots in held.values() for _, slot in slots}) == len(held) == 2
        assert devices.violations(folder) == []
    finally:
        kube_api.delete("v1", "Node", name)


def test_a_dead_node_takes_its_processes_along_and_acknowledges_nothing(play, folder, kube_api):
    name = f"lost-{uuid4().hex[:6]}"
    nodes.install(kube_api, nodes.gpu_node(name, "H100-80GB", count=1, layouts={0: (("1g.10gb", 0),)}))
    try:
        pod = play(nodeSelector={"kubernetes.io/hostname": name})
        until(pod.is_ready)
        pid = pod.process(folder)

        kube_api.patch("v1", "Node", name, {"metadata": {"annotations": {f"{LAB}/lost": "dead"}}})
        until(lambda: not processes.is_alive(pid, f"{pod.uid}/vllm/1"))
        pod.delete()
        pause(1)
        assert pod.now()["metadata"]["deletionTimestamp"]

        kube_api.patch("v1", "Node", name, {"metadata": {"annotations": {f"{LAB}/lost": None}}})
        until(lambda: pod.now() is None)
    finally:
        kube_api.delete("v1", "Node", name)


# --- the MIG manager ----------------------------------------------------------------------------------

CONFIG = json.dumps(
    {
        "version": "v1",
        "mig-configs": {
            "halves": [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}],
            "first-off": [{"devices": [0], "mig-enabled": False}],
        },
    }
)


class Managed:
    """One node and its MIG manager."""

    def __init__(self, api, name):
        self.api, self.name = api, name

    def labels(self):
        return self.api.get("v1", "Node", self.name)["metadata"]["labels"]

    def allocatable(self):
        found = self.api.get("v1", "Node", self.name)["status"]["allocatable"]
        return {name: int(count) for name, count in found.items() if name.startswith("nvidia.com/")}

    def ask(self, entry):
        changes = {"nvidia.com/mig.config": entry, "nvidia.com/mig.config.state": None}
        self.api.patch("v1", "Node", self.name, {"metadata": {"labels": changes}})

    def script(self, word):
        self.api.patch("v1", "Node", self.name, {"metadata": {"annotations": {f"{LAB}/mig-script": word}}})

    def state(self):
        return self.labels().get("nvidia.com/mig.config.state")


@pytest.fixture
def managed(kube_api, folder):
    name = f"mig-{uuid4().hex[:6]}"
    layouts = {0: tuple(("1g.10gb", start) for start in range(7)), 1: (("3g.40gb", 0), ("3g.40gb", 4))}
    made = nodes.gpu_node(name, "H100-80GB", count=2, layouts=layouts)
    devices.write_truth(folder, [made])
    nodes.install(kube_api, made)
    config = {"name": f"{name}-mig-config", "namespace": "gpu-operator"}
    kube_api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": config, "data": {"config.yaml": CONFIG}})
    yield Managed(kube_api, name)
    kube_api.delete("v1", "ConfigMap", f"{name}-mig-config", "gpu-operator")
    kube_api.delete("v1", "Node", name)


def test_a_layout_is_made_and_the_counts_follow_late(managed):
    pause(6.5)  # the entry is seen as late as a mounted file is
    managed.ask("halves")

    until(lambda: managed.state() == "pending")
    until(lambda: managed.state() == "success")
    late = managed.allocatable()
    until(lambda: managed.allocatable() == {"nvidia.com/mig-1g.10gb": 0, "nvidia.com/mig-3g.40gb": 4})

    assert late == {"nvidia.com/mig-1g.10gb": 7, "nvidia.com/mig-3g.40gb": 2}
    assert managed.labels()["nvidia.com/mig-3g.40gb.count"] == "4"
    assert "nvidia.com/mig-1g.10gb.count" not in managed.labels()


def test_an_entry_that_came_too_early_fails_and_is_never_tried_again(managed):
    managed.ask("halves")
    until(lambda: managed.state() == "failed")

    pause(6.5)
    assert managed.state() == "failed"
    managed.ask("halves")  # the same value once more
    pause(1)
    assert managed.state() is None
    managed.ask("first-off")
    until(lambda: managed.state() == "success")
    until(lambda: managed.allocatable().get("nvidia.com/gpu") == 1)


def test_a_pod_in_the_way_makes_a_change_fail(managed, play):
    pod = play(nodeSelector={"kubernetes.io/hostname": managed.name})
    until(pod.is_ready)
    pause(6.5)

    managed.ask("halves")
    until(lambda: managed.state() == "failed")

    assert managed.allocatable()["nvidia.com/mig-1g.10gb"] == 7
    assert pod.is_ready()


@pytest.mark.parametrize(("script", "state"), [("fail", "failed"), ("hang", "pending"), ("lose", "pending")])
def test_a_change_fails_hangs_or_loses_the_node_on_demand(managed, script, state, folder):
    pause(6.5)
    managed.script(script)

    managed.ask("halves")
    until(lambda: managed.state() == state)
    pause(4)

    assert managed.state() == state
    left = devices.truths(folder)[managed.name].gpus[0].windows
    assert len(left) == (7 if script == "hang" else 0)
