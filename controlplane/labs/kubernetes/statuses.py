"""The status of a played pod, written as a kubelet writes it. Pure.

Conditions keep the time of their last transition; a pod is Ready when its containers are, and says in its message
that it is a simulated pod.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

Object = dict[str, Any]
SIMULATED: Final = "simulated pod"


def stamp(moment: datetime) -> str:
    """Return a moment as the API writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Ended:
    """How one run of a container ended."""

    exit_code: int
    reason: str
    started_at: str
    finished_at: str
    message: str = ""

    def as_json(self, container_id: str) -> Object:
        """Return it as `terminated`."""
        return {
            "exitCode": self.exit_code,
            "reason": self.reason,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "containerID": container_id,
            **({"message": self.message} if self.message else {}),
        }


@dataclass(slots=True)
class ContainerView:
    """What is known of one container."""

    name: str
    image: str
    restarts: int = 0
    running_since: str = ""
    """Not empty while it runs."""
    waiting: tuple[str, str] = ("ContainerCreating", "")
    """(reason, message) while it neither runs nor has ended for good."""
    ended: Ended | None = None
    """Set where it will not be started again."""
    last: Ended | None = None
    started: bool = False
    ready: bool = False

    def as_json(self, pod_uid: str) -> Object:
        """Return it as an entry of `containerStatuses`."""
        container_id = f"lab://{hashlib.sha256(f'{pod_uid}/{self.name}/{self.restarts}'.encode()).hexdigest()}"
        earlier = f"lab://{hashlib.sha256(f'{pod_uid}/{self.name}/{self.restarts - 1}'.encode()).hexdigest()}"
        state: Object
        if self.ended is not None:
            state = {"terminated": self.ended.as_json(container_id)}
        elif self.running_since:
            state = {"running": {"startedAt": self.running_since}}
        else:
            reason, message = self.waiting
            state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        digest = self.image.partition("@")[2]
        return {
            "name": self.name,
            "image": self.image,
            "imageID": self.image if digest else "",
            "restartCount": self.restarts,
            "started": self.started and bool(self.running_since),
            "ready": self.ready and bool(self.running_since),
            "state": state,
            "lastState": {} if self.last is None else {"terminated": self.last.as_json(earlier)},
            **({"containerID": container_id} if self.running_since or self.ended else {}),
        }


def phase_of(views: Sequence[ContainerView]) -> str:
    """Return a pod's phase."""
    if views and all(view.ended is not None for view in views):
        failed = any(view.ended is not None and view.ended.exit_code != 0 for view in views)
        return "Failed" if failed else "Succeeded"
    begun = all(view.running_since or view.last or view.ended for view in views)
    return "Running" if views and begun else "Pending"


def status_of(
    pod: Object, views: Sequence[ContainerView], *, host_ip: str, pod_ip: str, now: datetime, started_at: str
) -> Object:
    """Return the whole status of a pod, with what others wrote into it (the scheduler's condition) kept."""
    before = pod.get("status") or {}
    phase = phase_of(views)
    over = phase in {"Succeeded", "Failed"}
    unready = [view.name for view in views if not (view.ready and view.running_since)]
    ready = not unready and not over
    reason, why = ("", SIMULATED) if ready else ("ContainersNotReady", f"containers with unready status: {unready}")
    if over:
        reason, why = ("PodCompleted" if phase == "Succeeded" else "PodFailed"), ""
    begun = phase != "Pending" or any(view.running_since for view in views)
    wanted = {
        "PodReadyToStartContainers": (begun or ready, "", ""),
        "Initialized": (True, "", ""),
        "ContainersReady": (ready, reason, why),
        "Ready": (ready, reason, why),
    }
    return {
        **{name: value for name, value in before.items() if name in _KEPT},
        "phase": phase,
        "observedGeneration": pod["metadata"].get("generation", 1),
        "conditions": _conditions(before.get("conditions") or [], wanted, pod, now),
        "containerStatuses": [view.as_json(pod["metadata"]["uid"]) for view in views],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": started_at,
    }


_KEPT: Final = frozenset({"nominatedNodeName", "resourceClaimStatuses", "extendedResourceClaimStatus", "qosClass"})


def failed_status(pod: Object, *, reason: str, message: str, now: datetime) -> Object:
    """Return the status of a pod that its node refused."""
    before = pod.get("status") or {}
    return {
        **{name: value for name, value in before.items() if name in _KEPT | {"conditions"}},
        "phase": "Failed",
        "reason": reason,
        "message": message,
        "startTime": before.get("startTime") or stamp(now),
    }


def _conditions(
    before: Sequence[Object], wanted: dict[str, tuple[bool, str, str]], pod: Object, now: datetime
) -> list[Object]:
    known = {condition["type"]: condition for condition in before}
    found = [condition for condition in before if condition["type"] not in wanted]
    for name, (holds, reason, message) in wanted.items():
        status = "True" if holds else "False"
        earlier = known.get(name)
        same = earlier is not None and earlier["status"] == status
        since = earlier["lastTransitionTime"] if same and earlier is not None else stamp(now)
        found.append(
            {
                "type": name,
                "status": status,
                "lastTransitionTime": since,
                "lastProbeTime": None,
                "observedGeneration": pod["metadata"].get("generation", 1),
                **({"reason": reason} if reason else {}),
                **({"message": message} if message else {}),
            }
        )
    return found
