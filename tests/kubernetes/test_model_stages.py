"""The pod that brings a model into its mirror: what it is, what is made of each of its states, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from provisioners.driver import (
    Conflicting,
    DriverError,
    DriverRejected,
    ModelFiles,
    NotSupported,
    Secret,
    StageProgress,
    StagesModels,
    TransientDriverError,
)
from provisioners.kubernetes import capabilities
from provisioners.kubernetes.capabilities import Facts
from provisioners.kubernetes.client import Listing
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import ref_of
from provisioners.kubernetes.settings import BadSettings, Settings, settings_of
from provisioners.kubernetes.staging import PROGRAM, bring, stages
from tests.kubernetes import samples

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = Settings(slug="c", url="https://127.0.0.1:1", token=Secret("t"), vllm_image="r/vllm@sha256:1")
FILES = ModelFiles(
    UUID("11111111-1111-4111-8111-111111111111"), "meta-llama/Llama-3.1-8B", "0" * 40, "nfs://files.example/exports/m"
)


class Cluster:
    """Holds pods, their logs and events; nothing else of a cluster is asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.said: list[str] | DriverError = []
        self.events: list[dict[str, Any]] = []
        self.made = 0

    def get(self, _api: str, _kind: str, name: str, namespace: str = "") -> Any:
        assert namespace == "tenantry-system"
        return self.objects.get(name)

    def create(self, obj: dict[str, Any]) -> Any:
        name = obj["metadata"]["name"]
        if name in self.objects:
            raise Conflicting("it is there")
        self.made += 1
        obj["metadata"].update(uid=f"uid-{self.made}", creationTimestamp=NOW.isoformat())
        self.objects[name] = obj
        return obj

    def delete(self, _api: str, _kind: str, name: str, _namespace: str = "", *, uid: str) -> bool:
        assert self.objects[name]["metadata"]["uid"] == uid
        del self.objects[name]
        return True

    def list(self, _api: str, _kind: str, *, namespace: str, fields: str) -> Listing:
        assert (namespace, fields) == ("tenantry-system", "type=Warning")
        return Listing(tuple(self.events), "1")

    def logs(self, _pod: str, _namespace: str, _container: str, *, tail: int) -> Iterator[str]:
        if isinstance(self.said, DriverError):
            raise self.said
        yield from self.said[-tail:]

    @property
    def pod(self) -> dict[str, Any]:
        return self.objects[stages.name_for(FILES)]

    def is_running(self, *lines: Any, restarts: int = 0) -> None:
        state = {"state": {"running": {}}, "restartCount": restarts}
        self.pod["status"] = {"phase": "Running", "containerStatuses": [state]}
        self.said = [f"2026-01-02T03:04:05.1Z {line if isinstance(line, str) else json.dumps(line)}" for line in lines]

    def has_ended(self, verdict: Any, *, message: bool = True) -> None:
        self.is_running(verdict)
        ended = {"exitCode": 0, "reason": "Completed", **({"message": json.dumps(verdict)} if message else {})}
        self.pod["status"] = {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": ended}}]}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def made(cluster: Cluster) -> stages.Stages:
    return stages.Stages(cluster, SETTINGS, lambda: NOW)  # type: ignore[arg-type]


def of(said: Any) -> tuple[str, int, int | None]:
    return str(said.progress), said.bytes_done, said.bytes_total


# --- what it is -------------------------------------------------------------------------------------------


def test_the_pod_may_do_nothing_but_write_into_the_mirror() -> None:
    pod = stages.pod_of(FILES, stages.BRING, SETTINGS)
    spec, (container,) = pod["spec"], pod["spec"]["containers"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 2000, "runAsGroup": 2000, "seccompProfile": {"type": "RuntimeDefault"},
    }, "no fsGroup: a kubelet would give it everything that lies on the export"  # fmt: skip
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert container["image"] == SETTINGS.vllm_image
    assert spec["volumes"] == [{
        "name": "mirror",
        "csi": {
            "driver": "nfs.csi.k8s.io", "readOnly": False,
            "volumeAttributes": {"server": "files.example", "share": "/exports/m"},
        },
    }]  # fmt: skip
    assert spec["activeDeadlineSeconds"] == 86_400
    assert ref_of(pod) is None, "it is no tenant's, so no inventory takes it for one's leftovers"
    assert "env" not in container


def test_its_command_is_our_program_with_checked_words_and_no_shell() -> None:
    words = stages.pod_of(FILES, stages.BRING, SETTINGS)["spec"]["containers"][0]["command"]

    assert words[:4] == ["python3", "-I", "-B", "-c"]
    assert words[4].replace("$$", "$") == PROGRAM
    assert words[5:] == [
        "bring", "--root=/mirror", "--repository=meta-llama/Llama-3.1-8B", f"--commit={'0' * 40}",
        words[9], "--told=/dev/termination-log", "--hub=https://huggingface.co",
    ]  # fmt: skip
    assert bring._given(words[5:]).part == words[9].partition("=")[2]
    assert not any(word.startswith("--hub") for word in stages.pod_of(FILES, stages.REMOVE, SETTINGS)["spec"][
        "containers"][0]["command"])  # fmt: skip


def test_clusters_that_share_an_export_load_into_folders_of_their_own() -> None:
    other = replace(SETTINGS, url="https://127.0.0.1:2")
    parts = [
        stages.pod_of(FILES, stages.BRING, one)["spec"]["containers"][0]["command"][9] for one in (SETTINGS, other)
    ]

    assert parts[0] != parts[1]
    assert stages.pod_of(FILES, stages.REMOVE, SETTINGS)["spec"]["containers"][0]["command"][9] == parts[0]


NAMES = [*samples.HOSTILE, "../../etc", "a/..", "a//b", "-x/y", "a/b\n"]
SERVERS = [word for word in NAMES if word not in {"null", "true", "1e3"}]  # a server may be called so


@pytest.mark.parametrize(
    ("field", "word"),
    [*((field, word) for field in ("source", "commit") for word in NAMES), *(("mirror", word) for word in SERVERS)],
)
def test_no_name_that_leads_elsewhere_gets_into_a_pod(
    cluster: Cluster, made: stages.Stages, field: str, word: str
) -> None:
    changes: dict[str, Any] = {field: f"nfs://{word}/x" if field == "mirror" else word}
    hostile = replace(FILES, **changes)
    for call in (made.stage, made.drop):
        with pytest.raises(DriverRejected):
            call(hostile)

    assert cluster.made == 0


@pytest.mark.parametrize(("mirror", "words"), [("", "mirror on NFS"), ("s3://bucket/x", "fills the bucket")])
def test_other_sources_are_loaded_by_model_servers_themselves(made: stages.Stages, mirror: str, words: str) -> None:
    for call in (made.stage, made.drop):
        with pytest.raises(NotSupported, match=words):
            call(replace(FILES, mirror=mirror))


# --- what it has come to ----------------------------------------------------------------------------------


def test_begun_followed_done_and_done_again(cluster: Cluster, made: stages.Stages) -> None:
    begun, again = made.stage(FILES), made.stage(FILES)
    cluster.is_running()
    looking = made.stage(FILES)
    cluster.is_running({"bytes_done": 5, "bytes_total": 10}, "noise", '{"x": 1}', "[]", "{")
    running = made.stage(FILES)
    cluster.has_ended({"done": True, "bytes_done": 10, "bytes_total": 10, "files": 3})
    done, repeated = made.stage(FILES), made.stage(FILES)

    assert of(begun) == of(again) == of(looking) == ("running", 0, None)
    assert looking.message == "it looks at what the hub has"
    assert of(running) == ("running", 5, 10)
    assert of(done) == of(repeated) == ("done", 10, 10)
    assert done.message == "3 files were brought, at nfs://files.example/exports/m/meta-llama/Llama-3.1-8B/" + "0" * 40
    assert cluster.made == 1


def test_a_verdict_that_did_not_get_into_the_status_is_read_from_the_log(cluster: Cluster, made: stages.Stages) -> None:
    made.stage(FILES)
    cluster.has_ended({"done": True, "bytes_done": 10, "bytes_total": 10, "files": 3}, message=False)

    assert of(made.stage(FILES)) == ("done", 10, 10)


@pytest.mark.parametrize("word", [*bring.WORDS, "unheard-of"])
def test_what_cannot_be_brought_is_refused_in_plain_words_and_begins_anew_when_asked(
    cluster: Cluster, made: stages.Stages, word: str
) -> None:
    made.stage(FILES)
    cluster.has_ended({"failed": word, "why": "Connection refused", "bytes_needed": 2**31, "bytes_free": 2**30})

    with pytest.raises(DriverRejected) as refused:
        made.stage(FILES)

    assert cluster.objects == {}
    assert ("nobody here knows" in refused.value.detail) == (word == "unheard-of")
    assert "Traceback" not in refused.value.detail
    assert len(refused.value.detail) <= 400
    expected = {
        "gated": "asks for an account", "no-room": "2.0 GiB are missing, 1.0 GiB are free",
        "hub-away": "Connection refused", "no-right": "let user 2000",
    }  # fmt: skip
    assert expected.get(word, "") in refused.value.detail
    assert of(made.stage(FILES)) == ("running", 0, None)


def test_accidents_are_mended_by_the_kubelet_until_there_are_too_many(cluster: Cluster, made: stages.Stages) -> None:
    made.stage(FILES)
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}

    def crashed(count: int, state: dict[str, Any]) -> None:
        one = {"state": state, "lastState": ended, "restartCount": count}
        cluster.pod["status"] = {"phase": "Running", "containerStatuses": [one]}

    crashed(1, {"waiting": {"reason": "CrashLoopBackOff"}})
    with pytest.raises(TransientDriverError, match="OOMKilled, exit code 137"):
        made.stage(FILES)
    cluster.is_running(restarts=1)
    with pytest.raises(TransientDriverError, match="it looks at what the hub has"):
        made.stage(FILES)
    crashed(stages.MOST_ACCIDENTS, {"running": {}})
    with pytest.raises(DriverRejected, match="5 times unexpectedly"):
        made.stage(FILES)

    assert cluster.objects == {}


def test_a_pod_that_the_cluster_ended_is_followed_by_another(cluster: Cluster, made: stages.Stages) -> None:
    made.stage(FILES)
    cluster.pod["status"] = {"phase": "Failed", "reason": "Evicted"}

    with pytest.raises(TransientDriverError, match="Evicted"):
        made.stage(FILES)
    made.stage(FILES)
    cluster.pod["metadata"]["deletionTimestamp"] = NOW.isoformat()
    ending = made.stage(FILES)
    cluster.objects.clear()
    made.stage(FILES)

    assert ending.message == stages.ENDING
    assert cluster.made == 3


def test_one_that_takes_too_long_or_never_starts_is_given_up(cluster: Cluster) -> None:
    at = [NOW]
    made = stages.Stages(cluster, SETTINGS, lambda: at[0])  # type: ignore[arg-type]
    made.stage(FILES)
    cluster.pod["status"] = {"phase": "Failed", "reason": "DeadlineExceeded"}
    with pytest.raises(DriverRejected, match="24 hours"):
        made.stage(FILES)
    made.stage(FILES)
    message = "driver name nfs.csi.k8s.io not found in the list of registered CSI drivers"
    cluster.events = [{"involvedObject": {"uid": cluster.pod["metadata"]["uid"]}, "message": message}]
    waiting = made.stage(FILES)
    at[0] = NOW + timedelta(seconds=stages.START_LIMIT_S + 1)
    with pytest.raises(DriverRejected, match=r"did not start in 30 minutes: .*install csi-driver-nfs"):
        made.stage(FILES)

    assert "install csi-driver-nfs" in waiting.message
    assert cluster.objects == {}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
            "its pod waits: ErrImagePull: no such image",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]},
            "its pod waits: 0/3 nodes are available",
        ),
        ({}, "its pod is being started"),
    ],
)
def test_what_keeps_it_waiting_is_said(
    cluster: Cluster, made: stages.Stages, status: dict[str, Any], words: str
) -> None:
    made.stage(FILES)
    cluster.pod["status"] = {"phase": "Pending", **status}

    assert made.stage(FILES).message == words


def test_a_log_that_cannot_be_read_loses_no_bytes(cluster: Cluster, made: stages.Stages) -> None:
    made.stage(FILES)
    cluster.is_running()
    cluster.said = DriverRejected("the container has no log")

    with pytest.raises(TransientDriverError, match="cannot be read at the moment"):
        made.stage(FILES)


# --- taking away ------------------------------------------------------------------------------------------


def test_what_is_brought_is_ended_before_it_is_taken_away_and_the_other_way_round(
    cluster: Cluster, made: stages.Stages
) -> None:
    made.stage(FILES)
    cluster.is_running({"bytes_done": 5, "bytes_total": 10})

    first = made.drop(FILES)
    second = made.drop(FILES)
    task = cluster.pod["metadata"]["annotations"][stages.TASK_ANNOTATION]
    cluster.has_ended({"removed": True})
    gone = made.drop(FILES)
    left = dict(cluster.objects)
    made.drop(FILES)
    back = made.stage(FILES)

    assert (first.message, second.message) == (stages.ENDING, stages.STARTING)
    assert task == stages.REMOVE
    assert (gone.progress, left) == (StageProgress.ABSENT, {})
    assert back.message == stages.ENDING


def test_a_pod_that_took_files_away_for_nobody_goes_with_a_sweep_and_no_other_does(cluster: Cluster) -> None:
    at = [NOW]
    made = stages.Stages(cluster, SETTINGS, lambda: at[0])  # type: ignore[arg-type]
    brought = replace(FILES, uid=UUID(int=1))
    made.stage(brought)
    made.drop(FILES)
    for pod in cluster.objects.values():
        pod["status"] = {"phase": "Succeeded"}
    theirs = {"metadata": {"name": "tn-model-x", "namespace": "tenantry-system", "uid": "u"}}

    made.sweep([*cluster.objects.values(), theirs])
    before = len(cluster.objects)
    at[0] = NOW + timedelta(seconds=stages.LEFT_S + 1)
    made.sweep([*cluster.objects.values(), theirs])

    assert before == 2
    assert list(cluster.objects) == [stages.name_for(brought)]


def test_files_of_others_are_not_taken_away(cluster: Cluster, made: stages.Stages) -> None:
    made.drop(FILES)
    cluster.has_ended({"failed": "foreign"})

    with pytest.raises(DriverRejected, match="were not brought by this platform"):
        made.drop(FILES)
    assert cluster.objects == {}


def test_a_foreign_pod_of_that_name_is_never_touched(cluster: Cluster, made: stages.Stages) -> None:
    theirs = {"kind": "Pod", "metadata": {"name": "x", "uid": "u"}}
    cluster.objects[stages.name_for(FILES)] = theirs

    for call in (made.stage, made.drop):
        with pytest.raises(DriverRejected, match="not ours"):
            call(FILES)
    assert cluster.objects[stages.name_for(FILES)] is theirs


def test_of_two_who_begin_at_once_one_makes_the_pod(cluster: Cluster, made: stages.Stages) -> None:
    there = {}

    class Late(Cluster):
        def get(self, *_: Any, **__: Any) -> Any:
            return None

    late = Late()
    late.objects = cluster.objects
    made.stage(FILES)
    there.update(cluster.objects)
    begun = stages.Stages(late, SETTINGS, lambda: NOW).stage(FILES)  # type: ignore[arg-type]

    assert of(begun) == ("running", 0, None)
    assert (cluster.objects, late.made) == (there, 0)


# --- around it --------------------------------------------------------------------------------------------


def test_the_driver_can() -> None:
    assert isinstance(KubernetesDriver(SETTINGS), StagesModels)


def test_without_the_driver_for_nfs_the_capability_says_what_to_install() -> None:
    def able(has_nfs: bool | None) -> Any:
        return capabilities.assess(Facts("v1.36.3", lambda _api, _kind: True, has_nfs=has_nfs), SETTINGS)

    gone, there, unknown = (able(one) for one in (False, True, None))

    assert "Install csi-driver-nfs" in gone.missing["model-staging"]
    assert [one.features["model-staging"] for one in (gone, there, unknown)] == [False, True, True]
    assert "model-staging" not in {**there.missing, **unknown.missing}
    assert {there.features[f"model-staging:{source}"] for source in ("hub", "s3")} == {False}


@pytest.mark.parametrize(
    "url", ["hub.example", "file:///etc/passwd", "https://u:p@hub.example", "https://hub.example?x=1", "https://a b", "https://$(X)"]
)  # fmt: skip
def test_the_hubs_address_is_an_address(url: str) -> None:
    config = {"url": "https://c.invalid", "hub_url": url}
    with pytest.raises(BadSettings, match="hub_url"):
        settings_of(config, {"token": Secret("t")})

    assert settings_of({**config, "hub_url": "http://hub.internal:8081/api/hf"}, {"token": Secret("t")}).hub_url
