"""A model brought into its mirror on a real API server: the pod is played, its program, the bytes and the log are real.

The hub is a stand-in on loopback; the export is a folder of the lab.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from controlplane.labs.kubernetes import containers
from provisioners import staging_models
from provisioners.driver import DriverRejected, ModelFiles, Secret, StagedModel, StageProgress, TransientDriverError
from provisioners.kubernetes import rbac
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.objects import dig, uid_of
from provisioners.kubernetes.staging import stages
from tenants.models import Event, ModelStage, Provider, ServedModel
from tenants.operations import model_stages
from tenants.states import PlatformRole
from tests import factories
from tests.conformance.kubernetes_rig import settings_for
from tests.drive import world
from tests.kubernetes.hub import COMMIT, REPOSITORY, WANTED, Hub, serving

if TYPE_CHECKING:
    from controlplane.labs.kubernetes.client import Api
    from controlplane.labs.kubernetes.cluster import Cluster as LabCluster

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]
SYSTEM = rbac.SYSTEM_NAMESPACE
DRIVER = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "nfs.csi.k8s.io"},
          "spec": {"attachRequired": False, "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}  # fmt: skip
pause = threading.Event().wait


class Lab:
    """A driver with the account of the file of rights, an export, a hub, and one model of a test's own."""

    def __init__(self, cluster: LabCluster, api: Api, hub: Hub) -> None:
        self.cluster, self.api, self.hub = cluster, api, hub
        self.export = cluster.folder / "exports" / "files.example" / uuid4().hex
        self.export.mkdir(parents=True)
        mirror = f"nfs://files.example/{self.export.name}"
        self.files = ModelFiles(uuid4(), REPOSITORY, COMMIT, mirror)
        settings = settings_for(cluster, hub_url=hub.url)
        self.driver = KubernetesDriver(replace(settings, token=Secret(account_token(api))))

    @property
    def final(self) -> Path:
        return self.export / REPOSITORY / COMMIT

    def pod(self) -> Any:
        return self.api.get("v1", "Pod", stages.name_for(self.files), SYSTEM)

    def until(self, is_so: Callable[[StagedModel], bool], call: Any = None, *, within_s: float = 120) -> StagedModel:
        """Look as a worker does, until it is so."""
        for _ in range(int(within_s / 0.1)):
            with suppress(TransientDriverError):
                found: StagedModel = (call or self.driver.stage_model)(self.files)
                if is_so(found):
                    return found
            pause(0.1)
        raise AssertionError(f"not in time: {json.dumps((self.pod() or {}).get('status'), indent=1)}")

    def process(self) -> int:
        """Return the process that plays its container."""
        marker = f"{containers.CONTAINER_VARIABLE}={uid_of(self.pod())}/".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (folder / "environ").read_bytes():
                    return int(folder.name)
        return 0

    def close(self) -> None:
        self.hub.held.set()
        found = self.pod()
        if found is not None:
            self.api.delete("v1", "Pod", stages.name_for(self.files), SYSTEM)
        self.driver.close()


def account_token(api: Api) -> str:
    """Return a token of the account that the file of rights makes, and no administrator's."""
    asked = {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {"name": rbac.ACCOUNT, "namespace": SYSTEM}, "spec": {"audiences": []},
    }  # fmt: skip
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{rbac.ACCOUNT}/token"
    return str(api.request("POST", path, body=asked)["status"]["token"])


@pytest.fixture(scope="module", autouse=True)
def installed(kube_cluster: LabCluster) -> Iterator[None]:
    with kube_cluster.api() as api:
        for made in (*rbac.objects(), DRIVER):
            api.apply(made)
        yield
        api.delete("storage.k8s.io/v1", "CSIDriver", "nfs.csi.k8s.io")


@pytest.fixture
def lab(kube_cluster: LabCluster, kube_api: Api) -> Iterator[Lab]:
    with serving(Hub()) as hub:
        made = Lab(kube_cluster, kube_api, hub)
        yield made
        made.close()


def is_done(said: StagedModel) -> bool:
    return said.progress is StageProgress.DONE


def test_from_the_asking_to_done_killed_in_between_repeated_and_taken_away(lab: Lab) -> None:
    hub, total = lab.hub, lab.hub.total
    hub.held.clear()
    begun = lab.driver.stage_model(lab.files)
    half = lab.until(lambda said: said.bytes_done > 2_000_000)
    seen_half = lab.final.exists()
    first, pod = lab.process(), uid_of(lab.pod())
    os.kill(first, signal.SIGKILL)
    hub.held.set()
    done = lab.until(is_done)
    restarts = dig(lab.pod(), "status", "containerStatuses", 0, "restartCount")
    repeated = lab.driver.stage_model(lab.files)
    there = {str(path.relative_to(lab.final)) for path in lab.final.rglob("*") if path.is_file()}

    assert (begun.progress, begun.bytes_done) == (StageProgress.RUNNING, 0)
    assert (half.bytes_total, seen_half) == (total, False)
    assert (done.bytes_done, done.bytes_total, repeated) == (total, total, done)
    assert (uid_of(lab.pod()), restarts) == (pod, 1), "the kubelet started it anew in the same pod"
    assert there == WANTED | {".tenantry.json"}
    assert all((lab.final / name).read_bytes() == hub.files[name] for name in WANTED)

    neighbour = lab.export / REPOSITORY / ("f" * 40)
    neighbour.mkdir()
    lab.until(lambda said: said.progress is StageProgress.ABSENT, lab.driver.drop_model)
    again = lab.until(lambda said: said.progress is StageProgress.ABSENT, lab.driver.drop_model)

    assert again.progress is StageProgress.ABSENT
    assert [path.name for path in (lab.export / REPOSITORY).iterdir()] == [neighbour.name]


def test_a_record_that_the_cluster_swept_up_is_found_again_in_the_mirror(lab: Lab) -> None:
    done = lab.until(is_done)
    lab.api.delete("v1", "Pod", stages.name_for(lab.files), SYSTEM)
    lab.hub.asked.clear()
    again = lab.until(is_done)

    assert (again.bytes_done, lab.hub.asked) == (done.bytes_done, [])
    assert "were there already" in again.message


def test_what_is_taken_away_while_it_comes_is_gone_and_can_be_asked_for_anew(lab: Lab) -> None:
    lab.hub.held.clear()
    lab.until(lambda said: said.bytes_done > 2_000_000)
    lab.until(lambda said: said.progress is StageProgress.ABSENT, lab.driver.drop_model)
    left = list((lab.export / REPOSITORY).iterdir())
    lab.hub.held.set()
    lab.until(is_done)

    assert left == []
    assert lab.final.is_dir()


def test_a_gated_model_is_refused_in_words_and_files_put_there_by_hand_are_found(lab: Lab) -> None:
    lab.hub.error = (401, "GatedRepo")
    with pytest.raises(DriverRejected) as refused:
        lab.until(is_done)
    lab.final.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (lab.final / name).write_bytes(b"{}")
    done = lab.until(is_done)
    with pytest.raises(DriverRejected, match="were not brought by this platform"):
        lab.until(lambda said: said.progress is StageProgress.ABSENT, lab.driver.drop_model)

    assert f"puts its files at {lab.files.mirror}/{REPOSITORY}/{COMMIT}" in refused.value.detail
    assert done.bytes_done == 4
    assert (lab.final / "model.safetensors").exists()


def test_many_at_once_make_one_pod_and_say_the_same(lab: Lab) -> None:
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: lab.driver.stage_model(lab.files), range(8)))
    pod = uid_of(lab.pod())
    lab.until(is_done)
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: lab.driver.stage_model(lab.files), range(8)))

    assert {said.progress for said in begun} == {StageProgress.RUNNING}
    assert {(said.progress, said.bytes_done) for said in ended} == {(StageProgress.DONE, lab.hub.total)}
    assert uid_of(lab.pod()) == pod


def test_an_export_that_is_not_there_keeps_it_waiting_and_says_why(lab: Lab) -> None:
    lab.files = replace(lab.files, mirror="nfs://files.example/nowhere")

    waiting = lab.until(lambda said: "mount" in said.message)

    assert waiting.progress is StageProgress.RUNNING
    assert "MountVolume.SetUp failed" in waiting.message


def test_a_foreign_pod_of_that_name_is_left_alone(lab: Lab) -> None:
    theirs = stages.pod_of(lab.files, stages.BRING, lab.driver.settings)
    theirs["metadata"] |= {"labels": {"app": "theirs"}, "annotations": {}}
    made = lab.api.create(theirs)

    for call in (lab.driver.stage_model, lab.driver.drop_model):
        with pytest.raises(DriverRejected, match="a pod that is not ours"):
            call(lab.files)

    assert uid_of(lab.pod()) == uid_of(made)


def test_the_cluster_offers_it_where_it_has_the_driver_for_nfs(lab: Lab) -> None:
    with_it = lab.driver.capabilities()
    lab.api.delete("storage.k8s.io/v1", "CSIDriver", "nfs.csi.k8s.io")
    try:
        without = lab.driver.capabilities()
    finally:
        lab.api.apply(DRIVER)

    assert with_it.features["model-staging"]
    assert not without.features["model-staging"]
    assert "Install csi-driver-nfs" in without.missing["model-staging"]


def test_no_sweep_takes_its_pod_for_somebodys_leftovers(lab: Lab) -> None:
    lab.until(is_done)

    seen = lab.driver.snapshot()

    assert not any(stages.name_for(lab.files) in str(one) for one in (*seen.objects, *seen.uses))


@pytest.mark.usefixtures("db")
def test_asked_by_an_operator_a_worker_follows_it_and_its_bytes_stand_at_the_model(lab: Lab) -> None:
    here = world()
    factories.served_model()
    ServedModel.objects.update(repository=REPOSITORY, commit=COMMIT, source=lab.files.mirror)
    able = lab.driver.capabilities()
    Provider.objects.update(capabilities={"features": dict(able.features), "missing": dict(able.missing)})
    model, provider = ServedModel.objects.get(), Provider.objects.get(pk=here.provider.pk)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    lab.files = replace(lab.files, uid=model.pk)
    model_stages.stage(provider=provider, model=model, actor=operator, now=here.clock())

    def followed(is_so: Callable[[ModelStage], bool]) -> ModelStage:
        for _ in range(600):
            staging_models.follow(here.clock, driver_of=lambda _: lab.driver)
            row = ModelStage.objects.get()
            if is_so(row):
                return row
            pause(0.1)
        raise AssertionError(f"not in time: {row.state} {row.message}")

    lab.hub.held.clear()
    half = followed(lambda row: row.bytes_done > 2_000_000)
    lab.hub.held.set()
    done = followed(lambda row: row.state == "done")
    model_stages.remove(stage=done, actor=operator, now=here.clock())
    gone = followed(lambda row: row.state == "removed")

    assert (half.state, half.bytes_total) == ("running", lab.hub.total)
    assert (done.bytes_done, done.bytes_total) == (lab.hub.total, lab.hub.total)
    assert Event.objects.filter(kind="model-stage.done", data__bytes=lab.hub.total).count() == 1
    assert (gone.message, lab.final.exists()) == ("", False)
