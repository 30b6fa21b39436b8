"""Every sign of trouble of pods and deployments in words that a tenant understands."""

from __future__ import annotations

from typing import Any

import pytest

from provisioners.kubernetes import symptoms

MIG = "requests.nvidia.com/mig-1g.10gb"
NODES = "0/7 nodes are available: "
ELSEWHERE = "node(s) didn't match Pod's node affinity/selector"
PREEMPTION = ". preemption: 0/7 nodes are available: 7 Preemption is not helpful for scheduling."


def pod(
    *,
    phase: str = "Pending",
    reason: str = "",
    scheduled: str = "",
    gated: bool = False,
    container: dict[str, Any] | None = None,
    ready: bool | None = None,
    ready_message: str = "",
    deleting: bool = False,
) -> dict[str, Any]:
    conditions = []
    if scheduled or gated:
        why = "SchedulingGated" if gated else "Unschedulable"
        conditions.append({"type": "PodScheduled", "status": "False", "reason": why, "message": scheduled})
    if ready is not None:
        conditions.append({"type": "Ready", "status": str(ready), "message": ready_message})
    return {
        "kind": "Pod",
        "metadata": {"name": "p", **({"deletionTimestamp": "2026-11-21T00:00:00Z"} if deleting else {})},
        "spec": {"nodeName": "node-a"},
        "status": {
            "phase": phase,
            "reason": reason,
            "conditions": conditions,
            "containerStatuses": [] if container is None else [container],
        },
    }


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason}}, **more}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (f"{NODES}1 Insufficient nvidia.com/mig-1g.10gb, 6 {ELSEWHERE}{PREEMPTION}",
         "its node has no free nvidia.com/mig-1g.10gb"),
        (f"{NODES}1 Insufficient cpu, 1 Insufficient memory, 5 node(s) had untolerated taint {{a: b}}{PREEMPTION}",
         "its node has no free cpu and no free memory"),
        (f"{NODES}1 Insufficient memory.", "its node has no free memory"),
        (f"{NODES}1 node(s) had untolerated taint {{nvidia.com/gpu: present}}", "its node is tainted: nvidia.com/gpu"),
        (f"{NODES}1 node(s) had untolerated taint(s), 2 x", "its node is tainted"),
        (f"{NODES}1 node(s) had untolerated taint {{node.kubernetes.io/not-ready: }}", "its node is not ready"),
        (f"{NODES}1 node(s) were unschedulable, 6 node(s) didn't match Pod's node affinity/selector",
         "its node takes no new pods"),
        (f"{NODES}7 node(s) didn't match Pod's node affinity/selector", "its node is not there"),
        (f"{NODES}1 cannot allocate all claims, 6 x",
         "its GPU cannot be allocated: the device is in use, not offered, or its claim is not there yet"),
        ('resourceclaim "c" not found',
         "its GPU cannot be allocated: the device is in use, not offered, or its claim is not there yet"),
        (f"{NODES}1 node(s) had volume node affinity conflict", "its volume is not where the node can reach it"),
        ("something new", "no node takes it yet"),
    ],
)  # fmt: skip
def test_a_pod_without_a_node_says_what_is_lacking_and_nothing_of_other_nodes(message: str, words: str) -> None:
    assert symptoms.of_pod(pod(scheduled=message)) == words
    assert "7" not in words


def test_a_gated_pod_says_so() -> None:
    assert symptoms.of_pod(pod(gated=True)) == "its scheduling is held back"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (f'pods "x" is forbidden: exceeded quota: q, requested: {MIG}=1, used: {MIG}=2, limited: {MIG}=2',
         f"the namespace's quota has no room for its pod: {MIG}=1 asked for, limit {MIG}=2"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:v1.36": runAsNonRoot != true',
         "Pod Security of the namespace refuses its pod"),
        ("pods x is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: images come by digest",
         "an admission policy of the cluster refuses its pod: images come by digest"),
        ('admission webhook "w.example.com" denied the request: no',
         "an admission policy of the cluster refuses its pod"),
        ('pods "x" is forbidden: [maximum memory usage per Container is 4Gi, but limit is 8Gi]',
         "the namespace's limits refuse its pod"),
        ("etcdserver: request timed out", "the cluster refuses its pod"),
    ],
)  # fmt: skip
def test_a_refused_pod_says_which_rule_refused_it(message: str, words: str) -> None:
    deployment = {
        "kind": "Deployment",
        "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": message}]},
    }

    assert symptoms.of_deployment(deployment) == words
    assert symptoms.of_deployment({"kind": "Deployment"}) == ""


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (waiting("ErrImagePull"), "its image cannot be pulled"),
        (waiting("ImagePullBackOff"), "its image cannot be pulled"),
        (waiting("InvalidImageName"), "the name of its image is none"),
        (waiting("CreateContainerConfigError"),
         "a Secret or setting that it needs is missing, or its image would run as root"),
        (waiting("CrashLoopBackOff", lastState=ended(1), restartCount=4),
         "it ended with status 1; its log says why; 4 restarts so far"),
        (waiting("CrashLoopBackOff", lastState=ended(137, "OOMKilled"), restartCount=1),
         "it needed more main memory than it has and was killed; 1 restarts so far"),
        (waiting("CrashLoopBackOff", lastState=ended(137)),
         "it was killed: it did not answer its health check, or its node was drained"),
        (waiting("CrashLoopBackOff", lastState=ended(0)), "it ended by itself"),
        (waiting("CrashLoopBackOff"), "it ends as soon as it starts"),
        ({"state": ended(1)}, "it ended with status 1; its log says why"),
        (waiting("ContainerCreating"), "its container is being made; a large image takes minutes the first time"),
        ({"state": {"running": {}}}, "loading the model"),
        ({}, "starting"),
    ],
)  # fmt: skip
def test_a_container_that_does_not_run_says_why(container: dict[str, Any], words: str) -> None:
    assert symptoms.of_pod(pod(container=container, ready=False)) == words


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("UnexpectedAdmissionError", "the node refused its GPU: the device has gone or was carved anew"),
        ("Evicted", "the node was short of room and put it out"),
        ("", "its pod has failed"),
        ("New", "its pod has failed"),
    ],
)
def test_a_failed_pod_says_why(reason: str, words: str) -> None:
    assert symptoms.of_pod(pod(phase="Failed", reason=reason)) == words


def test_the_newest_warning_of_this_very_pod_counts() -> None:
    def event(reason: str, name: str, at: str) -> dict[str, Any]:
        return {"reason": reason, "involvedObject": {"name": name}, "lastTimestamp": at}

    stuck = pod(container=waiting("ContainerCreating"), ready=False)
    events = [
        event("FailedAttachVolume", "p", "2026-11-21T00:00:01Z"),
        event("FailedMount", "p", "2026-11-21T00:00:02Z"),
        event("FailedPrepareDynamicResources", "another", "2026-11-21T00:00:03Z"),
        event("Scheduled", "p", "2026-11-21T00:00:04Z"),
    ]

    assert symptoms.of_pod(stuck, events) == "a volume cannot be mounted"


def test_a_pod_on_a_silent_node_a_leaving_one_and_a_ready_one() -> None:
    running = {"state": {"running": {}}}

    assert symptoms.of_pod(pod(phase="Running", container=running, ready=True)) == ""
    assert symptoms.of_pod(pod(phase="Running", container=running, ready=True, deleting=True)) == (
        "its former pod is still stopping"
    )
    lost = pod(phase="Running", container=running, ready=False, ready_message="Node is not ready")
    assert symptoms.of_pod(lost) == "node node-a does not respond"


def test_the_last_exit_status_is_found_in_either_state() -> None:
    assert symptoms.exit_code(pod(container={"state": ended(3)})) == 3
    assert symptoms.exit_code(pod(container=waiting("CrashLoopBackOff", lastState=ended(3)))) == 3
    assert symptoms.exit_code(pod(container={"state": {"running": {}}})) is None
    assert symptoms.exit_code(pod()) is None


def test_the_end_of_a_model_servers_log_is_told_in_plain_words() -> None:
    said = {
        "terminated": {
            "exitCode": 1,
            "reason": "Error",
            "message": "ValueError: No available memory for the cache blocks.",
        }
    }

    assert symptoms.of_pod(pod(container=waiting("CrashLoopBackOff", lastState=said, restartCount=2))) == (
        "the model leaves no GPU memory for requests: it needs a larger GPU, or a smaller model; 2 restarts so far"
    )
