"""What pods, deployments and their events say is wrong, in plain words for tenants. Pure.

The signs and their causes are those of the kubernetes-gpu facts, section 3.1. Words name what the tenant can know of:
its own pod, image, quota, GPU; the scheduler's counts of other nodes and the providers' own texts stay out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from provisioners.kubernetes.objects import Object, dig, is_deleting, name_of
from provisioners.serving import failures

_LONGEST: Final = 200
_INSUFFICIENT: Final = re.compile(r"Insufficient ([A-Za-z0-9./_-]+)")
_TAINT: Final = re.compile(r"untolerated taint(?:\(s\)|s)? ?\{?([A-Za-z0-9./_-]+)")
_QUOTA: Final = re.compile(r"requested: (?P<asked>[^;]*?), used: .*?, limited: (?P<limit>.*)$", re.DOTALL)

_WAITING: Final[Mapping[str, str]] = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "RegistryUnavailable": "its image's registry does not answer",
    "InvalidImageName": "the name of its image is none",
    "ErrImageNeverPull": "its image is not on the node and must not be pulled",
    "ImageInspectError": "its image on the node is broken",
    "CreateContainerConfigError": "a Secret or setting that it needs is missing, or its image would run as root",
    "CreateContainerError": "its container cannot be made on the node",
    "RunContainerError": "its program cannot be started",
}
_STARTING: Final[Mapping[str, str]] = {
    "ContainerCreating": "its container is being made; a large image takes minutes the first time",
    "PodInitializing": "it is being prepared",
}
_FAILED: Final[Mapping[str, str]] = {
    "UnexpectedAdmissionError": "the node refused its GPU: the device has gone or was carved anew",
    "Evicted": "the node was short of room and put it out",
    "NodeShutdown": "its node is shutting down",
    "Terminated": "its node was shutting down",
    "NodeAffinity": "its node no longer fits what it asks for",
    "OutOfcpu": "its node has no processors left for it",
    "OutOfmemory": "its node has no memory left for it",
    "Preempting": "it made way for a more important pod",
}
_EVENTS: Final[Mapping[str, str]] = {
    "FailedMount": "a volume cannot be mounted",
    "FailedAttachVolume": "its volume is still attached elsewhere",
    "FailedCreatePodSandBox": "its network or sandbox cannot be made on the node",
    "FailedPrepareDynamicResources": "its GPU cannot be prepared on the node",
    "FailedBinding": "its volume has no storage yet",
    "ProvisioningFailed": "its volume cannot be made",
}
_UNSCHEDULED: Final = (
    ("untolerated taint", "its node is tainted"),
    ("unschedulable", "its node takes no new pods"),
    ("volume", "its volume is not where the node can reach it"),
    ("didn't match Pod's node affinity/selector", "its node is not there"),
    ("no nodes available", "its node is not there"),
)
"""(part of the scheduler's message, our words); the first that fits."""
LOADING: Final = "loading the model"
SIGKILL_EXIT: Final = 137


def of_deployment(deployment: Object) -> str:
    """Return why a Deployment makes no pod, or has not come up in its time, "" where it does not say."""
    for condition in _conditions(deployment):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return of_refused_pod(str(condition.get("message") or ""))
    return ""


def is_late(deployment: Object) -> bool:
    """Whether a Deployment has passed its progress deadline."""
    return any(
        condition.get("type") == "Progressing"
        and condition.get("status") == "False"
        and condition.get("reason") == "ProgressDeadlineExceeded"
        for condition in _conditions(deployment)
    )


def of_refused_pod(message: str) -> str:
    """Return why admission refused a pod: quota, Pod Security, a policy."""
    if "exceeded quota" in message:
        match = _QUOTA.search(message)
        numbers = "" if match is None else f": {_short(match['asked'])} asked for, limit {_short(match['limit'])}"
        return f"the namespace's quota has no room for its pod{numbers}"
    if "violates PodSecurity" in message:
        return "Pod Security of the namespace refuses its pod"
    if "ValidatingAdmissionPolicy" in message or "denied" in message:
        return f"an admission policy of the cluster refuses its pod: {_reason_of_denial(message)}".rstrip(": ")
    if "must specify" in message or "maximum " in message:
        return "the namespace's limits refuse its pod"
    return "the cluster refuses its pod"


def _reason_of_denial(message: str) -> str:
    return _short(message.rpartition("denied request: ")[2] if "denied request: " in message else "")


def of_pod(pod: Object, events: Iterable[Object] = ()) -> str:
    """Return why a pod does not serve yet, "" for one that does; `events` of its namespace, any order."""
    if is_deleting(pod):
        return "its former pod is still stopping"
    phase = dig(pod, "status", "phase", default="")
    if phase == "Failed":
        reason = str(dig(pod, "status", "reason", default=""))
        return _FAILED.get(reason, "its pod has failed") if reason else _ended_words(pod) or "its pod has failed"
    broken = _unscheduled(pod) or _waiting(pod)
    if broken or _condition(pod, "Ready").get("status") == "True":
        return broken
    if _node_lost(pod):
        return f"node {dig(pod, 'spec', 'nodeName', default='')} does not respond"
    return _told(pod, events) or _starting(pod)


def _starting(pod: Object) -> str:
    statuses = dig(pod, "status", "containerStatuses", default=[])
    starting = next((_STARTING[one] for one in map(_waiting_reason, statuses) if one in _STARTING), "")
    if starting:
        return starting
    return LOADING if any("running" in (one.get("state") or {}) for one in statuses) else "starting"


def exit_code(pod: Object) -> int | None:
    """Return how the container of a pod ended the last time, None where it never has."""
    for status in dig(pod, "status", "containerStatuses", default=[]):
        for place in ("state", "lastState"):
            code = dig(status, place, "terminated", "exitCode")
            if isinstance(code, int):
                return code
    return None


def of_claim_volume(claim: Object) -> str:
    """Return why a volume is not there yet, "" for one that is or waits for its first pod."""
    lost = dig(claim, "status", "phase") == "Lost"
    return "its volume is lost" if lost else ""


# --- pods -----------------------------------------------------------------------------------------


def _unscheduled(pod: Object) -> str:
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False":
        return ""
    message = str(condition.get("message") or "")
    if condition.get("reason") == "SchedulingGated":
        return "its scheduling is held back"
    lacking = list(dict.fromkeys(_INSUFFICIENT.findall(message)))
    taint = _TAINT.search(message)
    if "cannot allocate all claims" in message or "resourceclaim" in message.lower():
        return "its GPU cannot be allocated: the device is in use, not offered, or its claim is not there yet"
    if lacking:
        return f"its node has no free {' and no free '.join(one.rstrip('.') for one in lacking)}"
    if taint is not None:
        is_down = taint[1].startswith(("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"))
        return "its node is not ready" if is_down else f"its node is tainted: {taint[1]}"
    return next((words for sign, words in _UNSCHEDULED if sign in message), "no node takes it yet")


def _waiting(pod: Object) -> str:
    """Return the word for a container that cannot start, or that keeps ending."""
    for status in dig(pod, "status", "containerStatuses", default=[]):
        reason = _waiting_reason(status)
        if reason in _WAITING:
            return _WAITING[reason]
        if reason == "CrashLoopBackOff" or dig(status, "state", "terminated") is not None:
            again = f"; {status.get('restartCount', 0)} restarts so far" if status.get("restartCount") else ""
            return f"{_end_of(status)}{again}"
    return ""


def _ended_words(pod: Object) -> str:
    statuses = dig(pod, "status", "containerStatuses", default=[])
    return next((_end_of(status) for status in statuses if dig(status, "state", "terminated") is not None), "")


def _end_of(status: Mapping[str, Any]) -> str:
    ended = dig(status, "state", "terminated") or dig(status, "lastState", "terminated") or {}
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        return "it needed more main memory than it has and was killed"
    if code == SIGKILL_EXIT:
        return "it was killed: it did not answer its health check, or its node was drained"
    known = failures.words_of(str(ended.get("message") or ""))  # the end of its log, where it wrote nothing else
    if known:
        return known
    if code is None:
        return "it ends as soon as it starts"
    return f"it ended with status {code}; its log says why" if code else "it ended by itself"


def _waiting_reason(status: Mapping[str, Any]) -> str:
    return str(dig(status, "state", "waiting", "reason", default=""))


def _node_lost(pod: Object) -> bool:
    ready = _condition(pod, "Ready")
    return dig(pod, "status", "reason") == "NodeLost" or (
        ready.get("status") == "False" and "node is not ready" in str(ready.get("message") or "").lower()
    )


def _told(pod: Object, events: Iterable[Object]) -> str:
    """Return what the newest warning about this pod means."""
    about = [
        event
        for event in events
        if dig(event, "involvedObject", "name") == name_of(pod) and event.get("reason") in _EVENTS
    ]
    if not about:
        return ""
    return _EVENTS[str(max(about, key=_time_of)["reason"])]


def _time_of(event: Object) -> str:
    series = dig(event, "series", "lastObservedTime")
    created = dig(event, "metadata", "creationTimestamp", default="")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or created)


def _conditions(obj: Object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dig(obj, "status", "conditions", default=[])
    return found


def _condition(obj: Object, kind: str) -> dict[str, Any]:
    return next((condition for condition in _conditions(obj) if condition.get("type") == kind), {})


def _short(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]
