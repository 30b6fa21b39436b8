"""A model's files brought into its mirror on NFS, and taken away again: the pod that does it, and what it has come to.

One pod for each model in our own namespace runs `bring.py`; why it is no Job is told in ADR 17. The kubelet starts it
anew after an accident; it ends with 0 once it has said its verdict, which stands in its status. One that has brought
the files stays as the record, without a process; where it was swept up, another one finds them in their place. Bringing
and taking away share its name, so they never run at once. What was refused leaves no pod, so asking again begins anew
and goes on with the bytes that are there. A pod of that name without our mark is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from provisioners.driver import (
    FIELD_MANAGER,
    MARK_DOMAIN,
    Conflicting,
    DriverError,
    DriverRejected,
    ModelFiles,
    NotSupported,
    StagedModel,
    StageProgress,
    TransientDriverError,
)
from provisioners.kubernetes import gpu, pods
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.objects import (
    MANAGED_BY_LABEL,
    UID_LABEL,
    Object,
    annotations_of,
    dig,
    is_deleting,
    labels,
    name_of,
    namespace_of,
    uid_of,
)
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.staging import CALL, TOLD
from provisioners.serving import vllm

BRING: Final = "bring"
REMOVE: Final = "remove"
TASK_ANNOTATION: Final = f"{MARK_DOMAIN}/model-staging"
MODEL_ANNOTATION: Final = f"{MARK_DOMAIN}/model"
ROOT: Final = "/mirror"
LIMIT_S: Final = 24 * 3600
START_LIMIT_S: Final = 1800
"""The image is many GiB and may have to be pulled first."""
LEFT_S: Final = 600
"""An ended pod that took files away was looked at long before."""
MOST_ACCIDENTS: Final = 5
NAMES: Final = "tn-model-"
LINES: Final = 5
ROOM: Final[Mapping[str, str]] = {"cpu": "1", "memory": "1Gi"}
STARTING: Final = "its pod is being started"
ENDING: Final = "its former pod is ending first"


@dataclass(frozen=True, slots=True)
class Said:
    """What a pod has come to."""

    verdict: Mapping[str, Any] | None = None
    """The program's own, None while it has none."""
    given_up: str = ""
    """Why it will have none, in words."""
    lost: str = ""
    """Why another pod has to go on."""
    waits: str = ""
    """Why it does not start, or not go on, yet."""
    running: bool = False


class Stages:
    """Brings models into mirrors of one cluster and takes them away. Thread-safe; keeps nothing."""

    def __init__(self, cluster: Cluster, settings: Settings, now: Callable[[], datetime]) -> None:
        """Work in the system namespace of `settings`."""
        self._cluster, self._settings, self._now = cluster, settings, now

    def stage(self, files: ModelFiles) -> StagedModel:
        """Begin where nothing has begun, and say how far it is. Raises `DriverError`."""
        check(files)
        pod = self._pod(files, BRING)
        if isinstance(pod, str):
            return StagedModel(StageProgress.RUNNING, 0, None, pod)
        said = self._judged(pod)
        if said.verdict is None:
            return self._running(pod, said)
        if word := said.verdict.get("failed"):
            self._end(pod)
            raise DriverRejected(reason_of(str(word), files, self._settings, said.verdict))
        size, count = int(said.verdict.get("bytes_done", 0)), said.verdict.get("files")
        found = "were there already" if said.verdict.get("was_there") else "were brought"
        message = f"{count} files {found}, at {files.mirror}/{files.source}/{files.commit}"
        return StagedModel(StageProgress.DONE, size, size, message)

    def drop(self, files: ModelFiles) -> StagedModel:
        """Take the files away; of what was brought by somebody else nothing. Raises `DriverError`."""
        check(files)
        pod = self._pod(files, REMOVE)
        if isinstance(pod, str):
            return StagedModel(StageProgress.RUNNING, 0, None, pod)
        said = self._judged(pod)
        if said.verdict is None:
            return StagedModel(StageProgress.RUNNING, 0, None, said.waits)
        self._end(pod)
        if word := said.verdict.get("failed"):
            raise DriverRejected(reason_of(str(word), files, self._settings, said.verdict))
        return StagedModel(StageProgress.ABSENT, 0, None)

    def sweep(self, pods_there: Iterable[Object]) -> None:
        """Remove pods that took files away for two who asked at once: the second's answer nobody awaits.

        Raises `DriverError`.
        """
        for pod in pods_there:
            is_ours = labels(pod).get(MANAGED_BY_LABEL) == FIELD_MANAGER and name_of(pod).startswith(NAMES)
            is_here = namespace_of(pod) == self._settings.system_namespace
            is_over = dig(pod, "status", "phase") in {"Succeeded", "Failed"} and not is_deleting(pod)
            is_old = _age(pod, self._now()) > timedelta(seconds=LEFT_S)
            if is_ours and is_here and is_over and is_old and annotations_of(pod).get(TASK_ANNOTATION) == REMOVE:
                self._end(pod)

    # --- the pod ------------------------------------------------------------------------------------------

    def _pod(self, files: ModelFiles, task: str) -> Object | str:
        """Return the pod of a task; in words what is awaited, where it was made only now or another one ends first."""
        namespace, name = self._settings.system_namespace, name_for(files)
        found = self._cluster.get("v1", "Pod", name, namespace)
        if found is None:
            with suppress(Conflicting):  # another process was first
                self._cluster.create(pod_of(files, task, self._settings))
            return STARTING
        if labels(found).get(UID_LABEL) != uid_label(files):
            raise DriverRejected(f"a pod that is not ours is called {name} in {namespace}")
        if is_deleting(found):
            return ENDING
        if annotations_of(found).get(TASK_ANNOTATION) != task:
            self._end(found)
            return ENDING
        return found

    def _end(self, pod: Object) -> None:
        self._cluster.delete("v1", "Pod", name_of(pod), self._settings.system_namespace, uid=uid_of(pod))

    def _judged(self, pod: Object) -> Said:
        """Return what a pod has come to, and end one that comes to nothing: another look makes another one.

        Raises `DriverRejected` where none would come further, `TransientDriverError` where one was lost.
        """
        said = judged(pod, self._warnings(pod), now=self._now())
        if said.given_up:
            self._end(pod)
            raise DriverRejected(said.given_up)
        if said.lost:
            self._end(pod)
            raise TransientDriverError(f"{said.lost}; another one goes on")
        if dig(pod, "status", "phase") == "Succeeded" and said.verdict is None:
            verdict = last_of(self._lines(pod), ("done", "removed", "failed"))
            if verdict is None:
                self._end(pod)
                raise TransientDriverError("its pod ended without a word; another one goes on")
            return Said(verdict=verdict)
        return said

    def _warnings(self, pod: Object) -> tuple[Object, ...]:
        if dig(pod, "status", "phase", default="Pending") != "Pending":
            return ()
        found = self._cluster.list("v1", "Event", namespace=self._settings.system_namespace, fields="type=Warning")
        return tuple(one for one in found.items if dig(one, "involvedObject", "uid") == uid_of(pod))

    def _running(self, pod: Object, said: Said) -> StagedModel:
        told = last_of(self._lines(pod), ("bytes_done",)) if said.running else None
        if told is None:
            words = said.waits or "it looks at what the hub has"
            if dig(pod, "status", "containerStatuses", 0, "restartCount", default=0):
                raise TransientDriverError(words)  # the bytes that were told before are still there
            return StagedModel(StageProgress.RUNNING, 0, None, words)
        return StagedModel(StageProgress.RUNNING, int(told["bytes_done"]), int(told["bytes_total"]))

    def _lines(self, pod: Object) -> list[str]:
        name = str(dig(pod, "spec", "containers", 0, "name"))
        try:
            return list(self._cluster.logs(name_of(pod), self._settings.system_namespace, name, tail=LINES))
        except DriverError as error:
            raise TransientDriverError("how far it is cannot be read at the moment", raw=error.raw) from error


def name_for(files: ModelFiles) -> str:
    """Return the name of the pod of a model's files."""
    return f"{NAMES}{_id(files).hex}"


def uid_label(files: ModelFiles) -> str:
    """Return what marks a pod as the one of these very files."""
    return str(_id(files))


def _id(files: ModelFiles) -> Any:
    return uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/model-staging/{files.uid}/{files.source}/{files.commit}/{files.mirror}")


def check(files: ModelFiles) -> None:
    """Refuse what has no place to be brought to, and names that lead elsewhere.

    Raises `NotSupported`, `DriverRejected`.
    """
    if not files.mirror:
        msg = (
            "model servers of a cluster load models of the hub themselves, each for itself; give the model a mirror on "
            "NFS (source nfs://server/export) to have its files there beforehand"
        )
        raise NotSupported(msg)
    if not files.mirror.startswith("nfs://"):
        msg = "model servers stream from the bucket by themselves: who fills the bucket puts the files there"
        raise NotSupported(msg)
    vllm.check_mirrored(files.source, files.commit, files.mirror)


def pod_of(files: ModelFiles, task: str, settings: Settings) -> Object:
    """Return the pod of a task. Its names were checked: it is of the platform, and no tenant's word stands in it."""
    words = [
        *CALL, task, f"--root={ROOT}", f"--repository={files.source}", f"--commit={files.commit}",
        f"--part={uuid5(_id(files), settings.url).hex[:12]}", f"--told={TOLD}",
        *([f"--hub={settings.hub_url}"] if task == BRING else []),
    ]  # fmt: skip
    # Without a group of files: with one, a kubelet would change the group of all that lies on the export.
    security = {name: value for name, value in pods.pod_security().items() if not name.startswith("fsGroup")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name_for(files),
            "namespace": settings.system_namespace,
            "labels": {UID_LABEL: uid_label(files), MANAGED_BY_LABEL: FIELD_MANAGER},
            "annotations": {TASK_ANNOTATION: task, MODEL_ANNOTATION: f"{files.source}@{files.commit}"},
        },
        "spec": {
            "restartPolicy": "OnFailure",
            "activeDeadlineSeconds": LIMIT_S,
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": [dict(one) for one in gpu.TOLERATIONS],  # a cluster may have no other nodes
            "securityContext": security,
            "containers": [
                {
                    "name": task,
                    "image": settings.vllm_image,
                    "command": pods.argv(words),
                    "resources": {"requests": dict(ROOM), "limits": dict(ROOM)},
                    "securityContext": pods.container_security(read_only_root=True),
                    "terminationMessagePath": TOLD,
                    "volumeMounts": [{"name": "mirror", "mountPath": ROOT}],
                }
            ],
            "volumes": [pods.nfs_volume("mirror", files.mirror, read_only=False)],
        },
    }


# --- reading it -------------------------------------------------------------------------------------------


def judged(pod: Object, warnings: Iterable[Object] = (), *, now: datetime) -> Said:
    """Return what a pod's status says."""
    status = pod.get("status") or {}
    phase, state = status.get("phase", "Pending"), dig(status, "containerStatuses", 0, "state", default={})
    if phase == "Succeeded":
        return Said(verdict=last_of([str(dig(state, "terminated", "message", default=""))], _VERDICTS))
    if phase == "Failed":
        reason = str(status.get("reason") or dig(state, "terminated", "reason", default="") or "it failed")
        if reason == "DeadlineExceeded":
            return Said(
                given_up=f"it took longer than {LIMIT_S // 3600} hours; asked for again, it goes on where it was"
            )
        return Said(lost=f"its pod was ended by the cluster ({reason})")
    accidents, why = _accidents(status)
    if accidents >= MOST_ACCIDENTS:
        return Said(given_up=f"its program ended {accidents} times unexpectedly ({why}); its pod's log says more")
    if "running" in state:
        return Said(running=True)
    waits = _waits(status, warnings) or (f"its program ended unexpectedly ({why})" if accidents else "")
    if phase == "Pending" and _age(pod, now) > timedelta(seconds=START_LIMIT_S):
        return Said(given_up=f"its pod did not start in {START_LIMIT_S // 60} minutes: {waits or 'no reason is given'}")
    return Said(waits=f"its pod waits: {waits}" if waits else STARTING)


_VERDICTS: Final = ("done", "removed", "failed")


def last_of(lines: Iterable[str], keys: Iterable[str]) -> dict[str, Any] | None:
    """Return the last line that is an object of JSON with one of the keys; times in front of it are left out."""
    for line in reversed(list(lines)):
        _, brace, text = line.partition("{")
        try:
            found = json.loads(brace + text)
        except ValueError:
            continue
        if isinstance(found, dict) and not found.keys().isdisjoint(keys):
            return found
    return None


def _accidents(status: Mapping[str, Any]) -> tuple[int, str]:
    count = int(dig(status, "containerStatuses", 0, "restartCount", default=0))
    ended = dig(status, "containerStatuses", 0, "lastState", "terminated", default={})
    return count, f"{ended.get('reason') or 'Error'}, exit code {ended.get('exitCode', 'unknown')}"


def _waits(status: Mapping[str, Any], warnings: Iterable[Object]) -> str:
    waiting = dig(status, "containerStatuses", 0, "state", "waiting", default={})
    if waiting.get("reason") not in {None, "", "ContainerCreating", "CrashLoopBackOff"}:
        return f"{waiting['reason']}: {waiting.get('message', '')}"[:300]
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") != "True":
            return str(one.get("message") or one.get("reason") or "")[:300]
    if waiting.get("reason") == "CrashLoopBackOff":
        return ""
    told = [str(one.get("message", "")) for one in warnings]
    if any("nfs.csi.k8s.io" in text and "not found" in text for text in told):
        return "the cluster has no driver for volumes on NFS: install csi-driver-nfs (nfs.csi.k8s.io)"
    return told[-1][:300] if told else ""


def _age(pod: Object, now: datetime) -> timedelta:
    made = str(dig(pod, "metadata", "creationTimestamp", default=""))
    return now - datetime.fromisoformat(made) if made else timedelta(0)


def reason_of(word: str, files: ModelFiles, settings: Settings, verdict: Mapping[str, Any]) -> str:
    """Return why it cannot be done, in words."""
    where, place = f"{files.source} at {files.commit[:12]}", f"{files.mirror}/{files.source}/{files.commit}"
    said = {
        "gated": (
            f"the hub asks for an account that may load {files.source}: it is gated or private, and nothing here has "
            f"an account. Somebody who has accepted its licence puts its files at {place}, or the model gets a mirror "
            "that has them"
        ),
        "not-found": f"the hub has no {where}, or shows it to nobody without an account",
        "no-safetensors": f"{where} has no weights as safetensors, and no others are served",
        "not-whole": f"{where} lacks weights that its own index names",
        "other-bytes": f"what the hub sends is not what stands in the commit ({str(verdict.get('path', ''))[:120]})",
        "strange-list": f"the hub's list of files of {where} says no sizes or digests by which they could be checked",
        "no-room": f"there is no room left on {files.mirror}{_room(verdict)}",
        "no-right": f"nothing can be written on {files.mirror}: let user {pods.USER} of its clients write there",
        "hub-away": (
            f"the hub at {settings.hub_url} is not reached from the cluster, or does not answer "
            f"({str(verdict.get('why', ''))[:120] or 'no reason is given'})"
        ),
        "foreign": f"the files at {place} were not brought by this platform: who put them there takes them away",
        "unfinished": f"there is a folder without weights at {place}, and it is not ours: take it away, or fill it",
    }
    return said.get(word, f"its program said {word[:40]!r}, which nobody here knows")


def _room(verdict: Mapping[str, Any]) -> str:
    needed, free = verdict.get("bytes_needed"), verdict.get("bytes_free")
    if not isinstance(needed, int) or not isinstance(free, int):
        return ""
    return f": {needed / 2**30:.1f} GiB are missing, {free / 2**30:.1f} GiB are free"
