"""From a container's real argv to the process that plays it: programs, ports, paths, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from controlplane.labs.kubernetes import containers
from controlplane.labs.kubernetes.containers import ImageMissing, Mount, NotStarted, check_user, image_of, launch
from controlplane.labs.kubernetes.environment import Sources
from controlplane.labs.kubernetes.model_stub import CannotStart, check_environment, parser, place
from controlplane.labs.kubernetes.probes import Probe, Verdict, port_of
from controlplane.labs.kubernetes.volumes import Folders, MountFailed, set_up
from provisioners.kubernetes.staging import CALL, TOLD

GATEWAY = ["python", "-m", "provisioners.gateway"]
POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"tenantry.internal/unit": "unit-1"}},
    "spec": {"nodeName": "node-1", "containers": []},
}


def launched(words, *, container=None, mounts=(), environment=None):
    ports = itertools.count(11000)
    return launch(
        POD,
        container or {"name": "c"},
        words=words,
        environment=environment or {},
        mounts=mounts,
        layer=Path("/lab/layer"),
        free_port=lambda: next(ports),
        marker="u/c/1",
    )


def test_a_gateway_listens_on_a_port_of_the_lab_and_keeps_its_state_in_its_volume():
    found = launched(
        [*GATEWAY, "--host", "0.0.0.0", "--port=8080", "--metrics-port", "9090", "--state", "/var/lib/gw/state"],
        mounts=[Mount("/var/lib", Path("/lab/wrong")), Mount("/var/lib/gw", Path("/lab/state"))],
        environment={"TENANTRY_GATEWAY_CA_FILE": "/var/lib/gw/ca.pem", "X": "/elsewhere"},
    )

    assert found.argv[1:] == (
        "-m", "provisioners.gateway", "--state", "/lab/state/state", "--host=127.0.0.1", "--port=11000",
        "--metrics-port=11001",
    )  # fmt: skip
    assert found.ports == {8080: 11000, 9090: 11001}
    assert found.environment["TENANTRY_GATEWAY_CA_FILE"] == "/lab/state/ca.pem"
    assert found.environment["X"] == "/elsewhere"
    assert found.environment["HOSTNAME"] == "p"
    assert "reveal" not in repr(found)


def test_a_program_on_the_pods_own_loopback_cannot_be_reached():
    assert launched([*GATEWAY, "--port", "8080", "--state", "/s"]).ports == {}
    assert launched([*GATEWAY, "--host=127.0.0.1", "--port", "8080", "--state", "/s"]).ports == {}
    assert launched(["vllm", "serve", "m"]).ports == {8000: 11000}


def test_state_without_a_volume_lies_in_the_layer_or_is_refused_on_a_read_only_root():
    words = [*GATEWAY, "--host=0.0.0.0", "--port=8080", "--state=/state"]

    assert "--state=/lab/layer/state" in launched(words).argv
    with pytest.raises(NotStarted, match="Read-only file system: '/state'") as raised:
        launched(words, container={"name": "c", "securityContext": {"readOnlyRootFilesystem": True}})
    assert (raised.value.exit_code, raised.value.reason) == (2, "Error")


def test_what_brings_models_is_played_by_itself_and_writes_into_the_export_and_its_termination_message():
    words = [*CALL, "bring", "--root=/mirror", "--repository=a/b", f"--told={TOLD}", "--hub=http://127.0.0.1:1/x"]

    found = launch(
        POD, {"name": "c", "securityContext": {"readOnlyRootFilesystem": True}}, words=words, environment={},
        mounts=[Mount("/mirror", Path("/lab/exports/s/e"))], layer=Path("/lab/layer"), free_port=lambda: 1,
        marker="u/c/1", termination=Path("/lab/c.termination"),
    )  # fmt: skip

    assert found.argv[1:4] == ("-I", "-B", "-c")
    assert found.argv[5:] == (
        "bring", "--root=/lab/exports/s/e", "--repository=a/b", "--told=/lab/c.termination",
        "--hub=http://127.0.0.1:1/x",
    )  # fmt: skip
    with pytest.raises(NotStarted, match="our own programs"):
        launched(["python3", "-I", "-B", "-c", "print()"])


@pytest.mark.parametrize(
    ("driver", "server", "share", "words"),
    [
        ("nfs.csi.k8s.io", "s", "/gone", "mounting s:/gone failed"),
        ("nfs.csi.k8s.io", "s", "/../../x", "failed"),
        ("nfs.csi.k8s.io", "", "/e", "failed"),
        ("other.example", "s", "/e", "not found in the list of registered CSI drivers"),
    ],
)
def test_an_export_is_a_folder_that_somebody_has_made(tmp_path, driver, server, share, words):
    (tmp_path / "exports" / "s" / "e").mkdir(parents=True)
    folders = Folders(tmp_path / "pod", tmp_path / "claims", tmp_path / "exports")

    def pod(driver, server, share):
        source = {"driver": driver, "volumeAttributes": {"server": server, "share": share}}
        return {"metadata": {"namespace": "n"}, "spec": {"volumes": [{"name": "mirror", "csi": source}]}}

    assert set_up(pod("nfs.csi.k8s.io", "s", "/e"), folders, Sources()) == {"mirror": tmp_path / "exports/s/e"}
    with pytest.raises(MountFailed, match=words):
        set_up(pod(driver, server, share), folders, Sources())


def test_a_program_that_is_not_there_is_refused_as_the_runtime_refuses_it():
    with pytest.raises(NotStarted, match='exec: "vlm": executable file not found in \\$PATH') as raised:
        launched(["vlm", "serve", "m"])

    assert (raised.value.exit_code, raised.value.reason) == (128, "StartError")


def test_a_played_model_server_says_what_it_asked_for_and_never_which_device_it_got():
    container = {"name": "c", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1", "cpu": "2"}}}

    found = json.loads(launched(["vllm", "serve", "m"], container=container).environment[containers.PLACE_VARIABLE])

    assert found["slots"] == ["1 × nvidia.com/mig-1g.10gb"]
    assert (found["pod"], found["node"], found["unit"]) == ("n/p", "node-1", "unit-1")


def test_images_that_the_lab_knows_and_a_root_image_under_run_as_non_root():
    digest = "@sha256:" + "0" * 64
    assert image_of(f"registry.internal/vllm/vllm-openai:v0.32.0{digest}").entrypoint == ("vllm", "serve")
    assert not image_of(f"registry.internal/tenantry/gateway{digest}").is_root
    with pytest.raises(ImageMissing, match="not found"):
        image_of("registry.internal/other:1")

    pod = {**POD, "spec": {"securityContext": {"runAsNonRoot": True}}}
    with pytest.raises(ValueError, match="container has runAsNonRoot and image will run as root"):
        check_user(pod, {"name": "c"}, image_of("vllm"))
    check_user(pod, {"name": "c", "securityContext": {"runAsUser": 2000}}, image_of("vllm"))


def test_the_stub_takes_what_the_runtime_renders_and_refuses_what_vllm_refuses(capsys):
    words = [
        "Qwen/Qwen3-8B", "--revision=" + "0" * 40, "--served-model-name=chat", "--port=8000", "--max-model-len=4096",
        "--tensor-parallel-size=1", "--no-enable-prefix-caching", "--enable-auto-tool-choice",
        "--tool-call-parser=hermes", "--shutdown-timeout=60", "--gpu-memory-utilization=0.9", "--dtype=bfloat16",
    ]  # fmt: skip

    given = parser().parse_args(words)

    found = place(given, {"pod": "n/p", "node": "node-1"})
    assert (found.model, found.host) == ("chat", "node-1")
    assert "simulated pod (n/p)" in found.words
    for wrong in (["--max-model-length=1"], ["--dtype=int4"], ["--max-num-seqs=many"]):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(["m", *wrong])
        assert ended.value.code == 2
    assert "unrecognized arguments: --max-model-length=1" in capsys.readouterr().err


def test_the_stub_ends_where_a_service_link_breaks_vllm(tmp_path):
    with pytest.raises(CannotStart, match="appears to be a URI"):
        check_environment({"VLLM_PORT": "tcp://10.96.0.7:80"})
    check_environment({"VLLM_PORT": "8001", "HOME": str(tmp_path)})


def test_a_probe_changes_its_verdict_after_its_thresholds_only():
    container = {"readinessProbe": {"periodSeconds": 5, "successThreshold": 2, "failureThreshold": 3}}
    probe = Probe.of(container, "readiness", hurry=0.1)
    assert probe is not None
    assert (probe.period_s, probe.timeout_s) == (0.5, 1.0)
    verdict = Verdict(probe)
    seen = []

    for succeeded in (True, True, False, False, True, False, False, False, True, True):
        verdict.take(succeeded=succeeded)
        seen.append(verdict.passed)

    assert seen == [False, True, True, True, True, True, True, False, False, True]


def test_a_probes_port_is_a_number_or_a_name():
    container = {"ports": [{"name": "http", "containerPort": 8000}]}

    assert [port_of(container, port) for port in (80, "81", "http", "other")] == [80, 81, 8000, None]
