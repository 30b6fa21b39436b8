"""KWOK stages: what simulated nodes and pods do, and when they wait for the player. Contract: README.md beside this.

Pure: returns the configuration that kwok 0.8 reads (`kwok.x-k8s.io/v1alpha1`). Without stages kwok does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from controlplane.labs.kubernetes.client import Object

DOMAIN: Final = "lab.tenantry.internal"
"""Prefix of everything that only the lab writes."""
SIMULATED: Final = f"{DOMAIN}/simulated"
PLAY: Final = f"{DOMAIN}/play"
PLAYED: Final = f"{DOMAIN}/Played"
"""Type of the pod condition that says which `play` the status shows."""
LOST: Final = f"{DOMAIN}/lost"
"""Annotation of a node that is to look unreachable."""
OUR_LABEL: Final = "tenantry.internal/uid"
"""A pod with it is played; `provisioners.driver.MARK_DOMAIN` and `/uid`, which the lab does not import."""
MANAGED: Final = "kwok.x-k8s.io/node=fake"

_ASKED: Final = f'.metadata.annotations["{PLAY}"]'
_STALE: Final = (
    f'if ((.metadata.annotations["{PLAY}"] // "") + "/" + (.metadata.annotations["{DOMAIN}/seq"] // ""))'
    f' == ([.status.conditions[]? | select(.type == "{PLAYED}") | .message] | first // "")'
    ' then "shown" else "stale" end'
)
_OURS: Final = f'.metadata.labels["{OUR_LABEL}"]'
_JOB: Final = '.metadata.ownerReferences.[]?.kind'
_LIVE: Final = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
_PENDING: Final = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
_NO_ADDRESS: Final = {"key": ".status.podIP", "operator": "DoesNotExist"}

_ADDRESSES: Final = """
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) | Quote }}
startTime: {{ or .status.startTime $now | Quote }}
"""
_HEAD: Final = """
{{ $now := Now }}
{{ $notes := or .metadata.annotations dict }}
{{ $reason := or ( index $notes "DOMAIN/reason" ) "DEFAULT" }}
{{ $message := or ( index $notes "DOMAIN/message" ) "" }}
{{ $exit := or ( index $notes "DOMAIN/exit-code" ) "1" }}
{{ $restarts := or ( index $notes "DOMAIN/restarts" ) "0" }}
{{ $seq := or ( index $notes "DOMAIN/seq" ) "" }}
"""


def configuration(*, pods: str = "played") -> str:
    """Return kwok's configuration file; `pods` is `played` (ours wait for the player) or `ready` (nothing waits).

    Raises `ValueError` for another word.
    """
    if pods not in {"played", "ready"}:
        raise ValueError(f"pods are played or ready, not {pods!r}")
    stages = [*_node_stages(), *_deletion(), *_unplayed(all_pods=pods == "ready")]
    if pods == "played":
        stages += _played()
    return "\n---\n".join(json.dumps(stage, indent=1) for stage in stages) + "\n"


# --- nodes ----------------------------------------------------------------------------------------


def _node_stages() -> list[Object]:
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    lost = f'.metadata.annotations["{LOST}"]'
    present = {"key": lost, "operator": "DoesNotExist"}
    beginning = _NODE_HEAD + _NODE_CONDITIONS + _NODE_ADDRESSES + "phase: Running\n"
    beat = _NODE_HEAD + _NODE_CONDITIONS
    gone = _NODE_HEAD + _NODE_LOST
    return [
        _stage("node-initialize", "Node", [{"key": ready, "operator": "NotIn", "values": ["True"]}, present], beginning),
        _stage(
            "node-heartbeat",
            "Node",
            [{"key": ready, "operator": "In", "values": ["True"]}, present],
            beat,
            delay_ms=240_000,
            jitter_ms=300_000,
        ),
        _stage(
            "node-lost",
            "Node",
            [{"key": ready, "operator": "NotIn", "values": ["Unknown"]}, {"key": lost, "operator": "Exists"}],
            gone,
        ),
    ]


_NODE_HEAD: Final = "{{ $now := Now }}\n"
_NODE_CONDITIONS: Final = """
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
"""
_NODE_ADDRESSES: Final = """
addresses:
{{ with NodeIP }}
- address: {{ . | Quote }}
  type: InternalIP
{{ end }}
{{ with NodeName }}
- address: {{ . | Quote }}
  type: Hostname
{{ end }}
{{ with NodePort }}
daemonEndpoints:
  kubeletEndpoint:
    Port: {{ . }}
{{ end }}
"""
_NODE_LOST: Final = """
conditions:
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: "Kubelet stopped posting node status."
  reason: NodeStatusUnknown
  status: "Unknown"
  type: Ready
"""


# --- pods -----------------------------------------------------------------------------------------


def _unplayed(*, all_pods: bool) -> list[Object]:
    """Pods that nobody plays run at once; those of a Job end well at once."""
    who = [] if all_pods else [{"key": _OURS, "operator": "DoesNotExist"}]
    running = [_LIVE, *who, _NO_ADDRESS]
    ended = [_LIVE, *who, {"key": ".status.phase", "operator": "In", "values": ["Running"]}, _owned_by_job()]
    return [
        _stage("pod-ready", "Pod", running, _HEAD + _conditions(ready=True) + _containers("running", ready=True) + _ADDRESSES + "phase: Running\n"),
        _stage("pod-complete", "Pod", ended, _HEAD + _conditions(ready=False, reason="PodCompleted") + _containers("completed", ready=False) + "phase: Succeeded\n"),
    ]


def _owned_by_job() -> Object:
    return {"key": _JOB, "operator": "In", "values": ["Job"]}


def _deletion() -> list[Object]:
    """A pod ends at once, unless a player holds it and has not said that its processes ended."""
    gone = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    player = f'.metadata.annotations["{DOMAIN}/player"]'
    ways = {
        "pod-delete": {"key": player, "operator": "DoesNotExist"},
        "pod-delete-stopped": {"key": _ASKED, "operator": "In", "values": ["stopped"]},
        "pod-delete-forced": {"key": ".metadata.deletionGracePeriodSeconds | tostring", "operator": "In", "values": ["0"]},
    }
    done = {"finalizers": {"empty": True}, "delete": True}
    return [_stage(name, "Pod", [gone, way], None, done=done) for name, way in ways.items()]


def _played() -> list[Object]:
    """One stage per word of the player."""
    first = _stage(
        "played-created",
        "Pod",
        [_LIVE, {"key": _OURS, "operator": "Exists"}, _NO_ADDRESS, {"key": _ASKED, "operator": "DoesNotExist"}],
        _head("ContainerCreating") + _conditions(ready=False, played="") + _containers("waiting", ready=False) + _ADDRESSES + "phase: Pending\n",
    )
    words = {
        "waiting": ("Pending", False, _containers("waiting", ready=False), "ContainerCreating"),
        "running": ("Running", False, _containers("running", ready=False), "ContainersNotReady"),
        "ready": ("Running", True, _containers("running", ready=True), ""),
        "crashed": ("Running", False, _containers("crashed", ready=False), "Error"),
        "failed": ("Failed", False, _containers("failed", ready=False), "Error"),
        "succeeded": ("Succeeded", False, _containers("completed", ready=False), "PodCompleted"),
    }
    made = [first]
    for word, (phase, ready, containers, default) in words.items():
        status = _head(default) + _conditions(ready=ready, played=word) + containers + _ADDRESSES + f"phase: {phase}\n"
        if word == "failed":
            status += "reason: {{ $reason | Quote }}\nmessage: {{ $message | Quote }}\n"
        selector = [
            _LIVE,
            {"key": _OURS, "operator": "Exists"},
            {"key": _ASKED, "operator": "In", "values": [word]},
            {"key": _STALE, "operator": "In", "values": ["stale"]},
        ]
        made.append(_stage(f"played-{word}", "Pod", selector, status))
    return made


def _head(default_reason: str) -> str:
    return _HEAD.replace("DOMAIN", DOMAIN).replace("DEFAULT", default_reason)


def _conditions(*, ready: bool, reason: str = "", played: str | None = None) -> str:
    """Return the pod's conditions; times change only where kwok sees another status (it merges by type)."""
    lines = ["conditions:"]
    why = reason or ("" if ready else "ContainersNotReady")
    for kind, state in (("Initialized", True), ("Ready", ready), ("ContainersReady", ready), ("PodReadyToStartContainers", True)):
        lines += ["- lastTransitionTime: {{ $now | Quote }}", f'  status: "{state}"', f"  type: {kind}"]
        lines.append(f'  reason: "{"" if state else why}"')  # conditions are merged by type: an old reason would stay
    if played is not None:
        lines += [
            "- lastTransitionTime: {{ $now | Quote }}",
            '  status: "True"',
            f"  type: {PLAYED}",
            f'  reason: "{played}"',
            f'  message: {{{{ printf "%s/%s" "{played}" $seq | Quote }}}}',
        ]
    lines += [
        "{{ range .spec.readinessGates }}",
        "- lastTransitionTime: {{ $now | Quote }}",
        f'  status: "{ready}"',
        "  type: {{ .conditionType | Quote }}",
        "{{ end }}",
    ]
    return "\n".join(lines) + "\n"


_STATES: Final = {
    "running": ("true", "    running:\n      startedAt: {{ $now | Quote }}"),
    "waiting": ("false", "    waiting:\n      reason: {{ $reason | Quote }}\n      message: {{ $message | Quote }}"),
    "crashed": (
        "false",
        "    waiting:\n      reason: CrashLoopBackOff\n"
        '      message: {{ printf "back-off restarting failed container=%s" .name | Quote }}\n'
        "  lastState:\n    terminated:\n      exitCode: {{ $exit }}\n      reason: {{ $reason | Quote }}\n"
        "      message: {{ $message | Quote }}\n      finishedAt: {{ $now | Quote }}\n      startedAt: {{ $now | Quote }}",
    ),
    "failed": (
        "false",
        "    terminated:\n      exitCode: {{ $exit }}\n      reason: {{ $reason | Quote }}\n      message: {{ $message | Quote }}\n"
        "      finishedAt: {{ $now | Quote }}\n      startedAt: {{ $now | Quote }}",
    ),
    "completed": (
        "false",
        "    terminated:\n      exitCode: 0\n      reason: Completed\n      finishedAt: {{ $now | Quote }}\n      startedAt: {{ $now | Quote }}",
    ),
}


def _containers(state: str, *, ready: bool) -> str:
    """Return the statuses of all containers and init containers in one state."""
    started, text = _STATES[state]
    lines = f"""
containerStatuses:
{{{{ range .spec.containers }}}}
- image: {{{{ .image | Quote }}}}
  imageID: {{{{ .image | Quote }}}}
  name: {{{{ .name | Quote }}}}
  ready: {str(ready).lower()}
  started: {started}
  restartCount: {{{{ $restarts }}}}
  state:
{text}
{{{{ end }}}}
initContainerStatuses:
{{{{ range .spec.initContainers }}}}
- image: {{{{ .image | Quote }}}}
  imageID: {{{{ .image | Quote }}}}
  name: {{{{ .name | Quote }}}}
  restartCount: 0
  ready: true
  {{{{ if eq .restartPolicy "Always" }}}}
  started: true
  state:
    running:
      startedAt: {{{{ $now | Quote }}}}
  {{{{ else }}}}
  started: false
  state:
    terminated:
      exitCode: 0
      reason: Completed
      finishedAt: {{{{ $now | Quote }}}}
      startedAt: {{{{ $now | Quote }}}}
  {{{{ end }}}}
{{{{ end }}}}
"""
    return lines


def _stage(
    name: str,
    kind: str,
    selector: Sequence[Object],
    status: str | None,
    *,
    done: Object | None = None,
    delay_ms: int = 0,
    jitter_ms: int = 0,
) -> Object:
    after: dict[str, Any] = dict(done or {})
    if status is not None:
        after["statusTemplate"] = status.replace("DOMAIN", DOMAIN).replace("DEFAULT", "")
    spec: Object = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": list(selector)},
        "next": after,
    }
    if delay_ms:
        spec["delay"] = {"durationMilliseconds": delay_ms, "jitterDurationMilliseconds": jitter_ms}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}
