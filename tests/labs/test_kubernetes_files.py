"""Files and command lines of the lab: no secret where others can read it, nothing beyond loopback, stages as agreed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from cryptography import x509

from controlplane.labs.kubernetes import images, stages
from controlplane.labs.kubernetes.cluster import Cluster
from controlplane.labs.kubernetes.credentials import Credentials
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.servers import PORTS, Servers


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    pki = Credentials(folder / "pki")
    pki.make()
    made = Servers(folder, {name: 20_000 + number for number, name in enumerate(PORTS)}, pki, folder / "audit.jsonl")
    made.write_files(pods="played")
    return made


def command_lines(servers: Servers) -> list[str]:
    parts = (servers.etcd(), servers.apiserver(), servers.controller_manager(), servers.scheduler(), servers.kwok())
    return [word for part in parts for word in part]


def test_no_secret_is_on_a_command_line(servers):
    token = servers.credentials.admin_token()

    assert len(token) >= 32
    assert not [word for word in command_lines(servers) if token in word]


def test_everything_listens_on_loopback_only(servers):
    words = command_lines(servers)

    assert not [word for word in words if "0.0.0.0" in word or "[::]" in word]
    assert sum(word.startswith("--bind-address=127.0.0.1") for word in words) == 3
    assert all("127.0.0.1" in word for word in words if "listen-" in word or "server-address" in word)


def test_keys_tokens_and_kubeconfigs_are_for_their_owner_only(servers):
    files = [file for file in servers.folder.rglob("*") if file.is_file()]

    assert {file.name for file in files} >= {"ca.key", "tokens.csv", "sa.key", "kwok.kubeconfig", "kwok.yaml"}
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}


def test_credentials_are_made_once(servers):
    before = {file.name: file.read_bytes() for file in servers.credentials.folder.iterdir()}

    servers.credentials.make()
    servers.write_files(pods="played")

    assert {file.name: file.read_bytes() for file in servers.credentials.folder.iterdir()} == before


def test_a_servers_program_is_who_it_should_be(servers):
    made = x509.load_pem_x509_certificate(servers.credentials.certificate("scheduler").read_bytes())

    assert made.subject.rfc4514_string() == "CN=system:kube-scheduler"


@pytest.mark.parametrize("name", ["", "A", "-a", "a" * 33, "a/b", "a.b"])
def test_a_clusters_name_is_a_label(name, tmp_path):
    with pytest.raises(LabError, match="DNS label"):
        Cluster(name, folder=tmp_path)


def stage_selectors(pods: str) -> dict[str, list[str]]:
    found = [json.loads(text) for text in stages.configuration(pods=pods).split("\n---\n")]
    return {
        one["metadata"]["name"]: [part["key"] for part in one["spec"]["selector"]["matchExpressions"]] for one in found
    }


def test_no_stage_touches_a_played_pod():
    ours = '.metadata.labels["tenantry.internal/uid"]'

    played = {name: keys for name, keys in stage_selectors("played").items() if name.startswith("pod")}
    assert len(played) == 3
    assert all(ours in keys for keys in played.values())
    assert not [name for name, keys in stage_selectors("ready").items() if ours in keys]


def test_pods_are_played_or_ready():
    with pytest.raises(ValueError, match="not 'asleep'"):
        stages.configuration(pods="asleep")


def test_an_image_is_the_same_for_the_same_content_and_readable_by_anybody(tmp_path):
    program = tmp_path / "program"
    program.write_text("x")
    program.chmod(0o700)

    first, second = (images.pause(program, tmp_path / name) for name in ("one", "two"))

    assert first.digest == second.digest
    assert first.pinned == f"registry.lab.internal/pause@{first.digest}"
    with tarfile.open(first.file) as tar:
        index = json.load(tar.extractfile("index.json"))
        assert index["manifests"][0]["digest"] == first.digest
        manifest = json.load(tar.extractfile(blob(first.digest)))
        layer = tar.extractfile(blob(manifest["layers"][0]["digest"])).read()
    with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as tar:
        entry = tar.getmember("pause")
        assert (entry.uid, entry.mode, tar.extractfile(entry).read()) == (0, 0o755, b"x")


def blob(digest: str) -> str:
    return str(Path("blobs") / "sha256" / digest.removeprefix("sha256:"))
