"""The acceptance run of one node: a pod that asks every free GPU of it for its name. Objects and verdict are pure.

One pod per node in our own namespace, as small and as restricted as any other of ours; it takes what the node offers
and nobody uses, runs `nvidia-smi -L`, and leaves the answer as its termination message, so that no log is needed. The
run is looked at again and again until the pod has ended; then pod and claim are removed. What others use is not
tried, and a node on which nothing is free cannot be accepted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import NAMESPACE_URL, uuid5

from provisioners.driver import FIELD_MANAGER, MARK_DOMAIN, Acceptance, DriverRejected, TransientDriverError
from provisioners.kubernetes import gpu, pods
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.nodes import HOSTNAME_LABEL, Node, counts
from provisioners.kubernetes.objects import MANAGED_BY_LABEL, UID_LABEL, Object, dig, labels, uid_of
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.slices import GPU, MIG
from tenants import gpu_catalogue

NODE_ANNOTATION: Final = f"{MARK_DOMAIN}/acceptance-of"
COMMAND: Final = ("sh", "-c", "nvidia-smi -L > /dev/termination-log")
LIMIT_S: Final = 1800
"""The image is many GiB and may have to be pulled first."""
LOOK_AGAIN_S: Final = 5.0
MOST_CLAIMED: Final = 32
"""A claim has at most this many requests; more devices than that are tried as a sample."""
_GPU_LINE: Final = re.compile(r"^GPU (?P<index>\d+): (?P<name>.+?) \(UUID: (?P<uuid>GPU-[^)]+)\)\s*$")
_MIG_LINE: Final = re.compile(r"^\s+MIG (?P<profile>\S+)\s+Device\s+\d+: \(UUID: (?P<uuid>MIG-[^)]+)\)\s*$")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is to see."""

    counts: Mapping[str, int]
    """MIG profile (`""`: whole GPU) → how many free ones the pod takes."""
    resources: Mapping[str, int]
    """Extended resources of the container."""
    requests: tuple[Object, ...] = ()
    """Requests of its claim, with DRA."""


def run(cluster: Cluster, settings: Settings, node: Node, occupied: gpu.Occupied, *, now: datetime) -> Acceptance:
    """Start, look at or end the run of a node.

    Raises `TransientDriverError` while it goes on, and whatever the cluster answers.
    """
    if not node.ready:
        return Acceptance(passed=False, checks=(("node is ready", False, node.message or "it is not Ready"),))
    if not node.gpus:
        return Acceptance(passed=True, checks=(("node is ready", True, "it is Ready and has no GPU"),))
    namespace, name = settings.system_namespace, name_for(node)
    pod = cluster.get("v1", "Pod", name, namespace)
    if pod is None:
        wanted = wanted_of(node, occupied)
        if not wanted.counts:
            seen = "all its GPUs are in use by others, so none could be tried"
            return Acceptance(passed=False, checks=(("node is ready", True, "Ready"), ("GPUs answer", False, seen)))
        for made in objects(node, settings, wanted):
            cluster.apply(made)
        raise TransientDriverError("the acceptance pod was started", retry_after_s=LOOK_AGAIN_S)
    if labels(pod).get(UID_LABEL) != uid_label(node):
        raise DriverRejected(f"a pod that is not ours is called {name} in {namespace}")
    found = verdict(pod, node) or (_given_up(pod) if is_overdue(pod, now) else None)
    if found is None:
        raise TransientDriverError("the acceptance pod has not ended yet", retry_after_s=LOOK_AGAIN_S)
    claim = cluster.get(gpu.API, "ResourceClaim", name, namespace) if cluster.serves(gpu.API, "ResourceClaim") else None
    if claim is not None:
        cluster.delete(gpu.API, "ResourceClaim", name, namespace, uid=uid_of(claim))
    cluster.delete("v1", "Pod", name, namespace, uid=uid_of(pod))
    return found


def name_for(node: Node) -> str:
    """Return the name of a node's acceptance pod and claim."""
    return f"tn-accept-{uuid5(NAMESPACE_URL, f'{MARK_DOMAIN}/acceptance/{node.uid}').hex}"


def uid_label(node: Node) -> str:
    """Return what marks the pod as a run of this very node."""
    return str(uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/acceptance/{node.uid}"))


def wanted_of(node: Node, occupied: gpu.Occupied) -> Wanted:
    """Return what of a node nobody uses."""
    if node.published:
        return _claimed(node, occupied)
    free: Counter[str] = Counter()
    resources: dict[str, int] = {}
    for resource, there in node.allocatable.items():
        profile = counts({resource: 1}, node.strategy, single=node.single)
        for name in profile:
            left = there - occupied.carved[name]
            if left > 0:
                free[name] += left
                resources[resource] = left
    return Wanted(free, resources)


def _claimed(node: Node, occupied: gpu.Occupied) -> Wanted:
    """Return requests for every published device that overlaps nothing in use, whole GPUs before parts of them."""
    taken = {window.device for window in occupied.windows}
    free: Counter[str] = Counter()
    requests: list[Object] = []
    for device in node.published:
        if device.partition and device.kind == MIG:
            continue
        used = device.gpu in taken if device.kind == GPU else device.gpu in taken and bool(occupied.windows)
        if used or device.taint or not device.uuid or len(requests) == MOST_CLAIMED:
            continue
        free[device.profile] += 1
        expression = gpu._by_uuid(device.kind, device.uuid)
        requests.append(
            {
                "name": f"gpu-{len(requests)}",
                "exactly": {
                    "deviceClassName": gpu.GPU_CLASS if device.kind == GPU else gpu.MIG_CLASS,
                    "selectors": [{"cel": {"expression": expression}}],
                    "allocationMode": "ExactCount",
                    "count": 1,
                },
            }
        )
    return Wanted(free, {}, tuple(requests))


def objects(node: Node, settings: Settings, wanted: Wanted) -> tuple[Object, ...]:
    """Return the claim, where there is one, and the pod."""
    name, namespace = name_for(node), settings.system_namespace
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {UID_LABEL: uid_label(node), MANAGED_BY_LABEL: FIELD_MANAGER},
        "annotations": {
            NODE_ANNOTATION: node.name,
            f"{MARK_DOMAIN}/expects": ",".join(f"{n}x{p or 'whole'}" for p, n in sorted(wanted.counts.items())),
        },
    }
    limits = {"cpu": "500m", "memory": "512Mi", **{name: str(count) for name, count in wanted.resources.items()}}
    container: Object = {
        "name": "acceptance",
        "image": settings.vllm_image,
        "command": list(COMMAND),
        "resources": {"requests": dict(limits), "limits": limits},
        "securityContext": pods.container_security(read_only_root=True),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    spec: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIMIT_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {HOSTNAME_LABEL: node.hostname},
        "tolerations": [*gpu.TOLERATIONS, {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}],
        "securityContext": pods.pod_security(),
        "containers": [container],
    }
    if not wanted.requests:
        return ({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},)
    claim = {
        "apiVersion": gpu.API,
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": {"devices": {"requests": list(wanted.requests)}},
    }
    spec["resourceClaims"] = [{"name": "gpus", "resourceClaimName": name}]
    container["resources"]["claims"] = [{"name": "gpus"}]
    return claim, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def verdict(pod: Object, node: Node) -> Acceptance | None:
    """Return what a run has shown, None while it goes on."""
    phase = dig(pod, "status", "phase", default="Pending")
    if phase not in {"Succeeded", "Failed"}:
        return None
    ready = ("node is ready", True, "Ready")
    ended = dig(pod, "status", "containerStatuses", 0, "state", "terminated", default={})
    message = str(ended.get("message") or dig(pod, "status", "message", default="") or "")
    if phase == "Failed" or ended.get("exitCode") != 0:
        reason = str(ended.get("reason") or dig(pod, "status", "reason", default="") or "it failed")
        return Acceptance(passed=False, checks=(ready, ("GPUs answer", False, f"{reason}: {message[:300]}")))
    products, seen = listed(message)
    expected = _expected(pod)
    known = gpu_catalogue.find_by_provider_name(next(iter(sorted(products)), ""))
    right = len(products) == 1 and known is not None and known.id == node.product
    checks = [ready, ("product is as published", right, ", ".join(sorted(products)) or "none")]
    for profile, count in sorted(expected.items()):
        word = profile or "whole GPUs"
        checks.append((f"{word} answer", seen[profile] == count, f"{seen[profile]} of {count}"))
    return Acceptance(passed=all(passed for _, passed, _ in checks), checks=tuple(checks))


def listed(text: str) -> tuple[set[str], Counter[str]]:
    """Return (product names, MIG profile or `""` → distinct devices) of an `nvidia-smi -L`."""
    products: set[str] = set()
    devices: dict[str, set[str]] = {}
    carved: set[str] = set()
    gpus: dict[str, str] = {}
    latest = ""
    for line in text.splitlines():
        if match := _GPU_LINE.match(line):
            latest = match["uuid"]
            products.add(match["name"])
            gpus[latest] = match["name"]
        elif match := _MIG_LINE.match(line):
            carved.add(latest)
            devices.setdefault(match["profile"], set()).add(match["uuid"])
    whole = set(gpus) - carved
    return products, Counter({"": len(whole), **{profile: len(uuids) for profile, uuids in devices.items()}})


def _expected(pod: Object) -> Counter[str]:
    text = str(dig(pod, "metadata", "annotations", f"{MARK_DOMAIN}/expects", default=""))
    found: Counter[str] = Counter()
    for part in filter(None, text.split(",")):
        count, _, profile = part.partition("x")
        found["" if profile == "whole" else profile] = int(count)
    return found


def _given_up(pod: Object) -> Acceptance:
    conditions = dig(pod, "status", "conditions", default=[])
    why = next((c.get("message") for c in conditions if c.get("type") == "PodScheduled" and c["status"] != "True"), "")
    waiting = dig(pod, "status", "containerStatuses", 0, "state", "waiting", "reason", default="")
    seen = f"its pod did not start in {LIMIT_S // 60} minutes: {why or waiting or 'no reason is given'}"
    return Acceptance(passed=False, checks=(("node is ready", True, "Ready"), ("GPUs answer", False, seen)))


def is_overdue(pod: Object, now: datetime) -> bool:
    """Whether a run that never began is to be given up: the deadline in the pod counts from its start only."""
    made = str(dig(pod, "metadata", "creationTimestamp", default=""))
    return bool(made) and (now - datetime.fromisoformat(made)).total_seconds() > LIMIT_S
