"""KWOK stages: what simulated nodes do, and pods that nobody plays. Contract: README.md beside this.

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
LOST: Final = f"{DOMAIN}/lost"
"""Annotation of a node that is to look unreachable: `dead` or `cut`."""
OUR_LABEL: Final = "tenantry.internal/uid"
"""A pod with it is played; `provisioners.driver.MARK_DOMAIN` and `/uid`, which the lab does not import."""
MANAGED: Final = "kwok.x-k8s.io/node=fake"

_LIVE: Final = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
_GONE: Final = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
_NOBODYS: Final = {"key": f'.metadata.labels["{OUR_LABEL}"]', "operator": "DoesNotExist"}


def configuration(*, pods: str = "played") -> str:
    """Return kwok's configuration file.

    `pods` is `played` (ours are the player's: no stage touches them) or `ready` (ours run at once like all others).
    Raises `ValueError` for another word.
    """
    if pods not in {"played", "ready"}:
        raise ValueError(f"pods are played or ready, not {pods!r}")
    stages = [*_node_stages(), *_pod_stages([] if pods == "ready" else [_NOBODYS])]
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
        _stage(
            "node-initialize", "Node", [{"key": ready, "operator": "NotIn", "values": ["True"]}, present], beginning
        ),
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


def _pod_stages(whose: list[Object]) -> list[Object]:
    """Pods run at once; those of a Job end well at once; a deleted one is gone at once."""
    beginning = [_LIVE, *whose, {"key": ".status.podIP", "operator": "DoesNotExist"}]
    ended = [
        _LIVE,
        *whose,
        {"key": ".status.phase", "operator": "In", "values": ["Running"]},
        {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["Job"]},
    ]
    running = _HEAD + _conditions(ready=True) + _CONTAINERS["running"] + _ADDRESSES + "phase: Running\n"
    completed = _HEAD + _conditions(ready=False) + _CONTAINERS["completed"] + "phase: Succeeded\n"
    done = {"finalizers": {"empty": True}, "delete": True}
    return [
        _stage("pod-ready", "Pod", beginning, running),
        _stage("pod-complete", "Pod", ended, completed),
        _stage("pod-delete", "Pod", [_GONE, *whose], None, done=done),
    ]


_HEAD: Final = "{{ $now := Now }}\n"
_POD_ADDRESS: Final = (
    '{{ PodIPWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" )'
    ' ( or .metadata.name "" ) ( or .metadata.namespace "" ) | Quote }}'
)
_ADDRESSES: Final = f"""
hostIP: {{{{ NodeIPWith .spec.nodeName | Quote }}}}
podIP: {_POD_ADDRESS}
startTime: {{{{ $now | Quote }}}}
"""


def _conditions(*, ready: bool) -> str:
    """Return the pod's conditions. They are merged by type, so an old reason would stay: it is always written."""
    lines = ["conditions:"]
    kinds = {"Initialized": True, "PodReadyToStartContainers": ready, "Ready": ready, "ContainersReady": ready}
    for kind, state in kinds.items():
        lines += ["- lastTransitionTime: {{ $now | Quote }}", f'  status: "{state}"', f"  type: {kind}"]
        lines.append(f'  reason: "{"" if state else "PodCompleted"}"')
    lines += ["{{ range .spec.readinessGates }}", "- lastTransitionTime: {{ $now | Quote }}"]
    lines += [f'  status: "{ready}"', "  type: {{ .conditionType | Quote }}", "{{ end }}"]
    return "\n".join(lines) + "\n"


_RUNNING: Final = """
    running:
      startedAt: {{ $now | Quote }}"""
_COMPLETED: Final = """
    terminated:
      exitCode: 0
      reason: Completed
      finishedAt: {{ $now | Quote }}
      startedAt: {{ $now | Quote }}"""


def _containers(state: str, *, runs: bool) -> str:
    """Return the statuses of all containers in one state; init containers have ended, sidecars run."""
    ready = str(runs).lower()
    return f"""
containerStatuses:
{{{{ range .spec.containers }}}}
- image: {{{{ .image | Quote }}}}
  imageID: {{{{ .image | Quote }}}}
  name: {{{{ .name | Quote }}}}
  ready: {ready}
  started: {ready}
  restartCount: 0
  state:{state}
{{{{ end }}}}
initContainerStatuses:
{{{{ range .spec.initContainers }}}}
- image: {{{{ .image | Quote }}}}
  imageID: {{{{ .image | Quote }}}}
  name: {{{{ .name | Quote }}}}
  ready: true
  restartCount: 0
  {{{{ if eq ( or .restartPolicy "" ) "Always" }}}}
  started: true
  state:{_RUNNING}
  {{{{ else }}}}
  started: false
  state:{_COMPLETED}
  {{{{ end }}}}
{{{{ end }}}}
"""


_CONTAINERS: Final = {
    "running": _containers(_RUNNING, runs=True),
    "completed": _containers(_COMPLETED, runs=False),
}


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
        after["statusTemplate"] = status
    spec: Object = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": list(selector)},
        "next": after,
    }
    if delay_ms:
        spec["delay"] = {"durationMilliseconds": delay_ms, "jitterDurationMilliseconds": jitter_ms}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}
