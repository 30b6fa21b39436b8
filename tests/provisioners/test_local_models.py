"""Real processes of model servers behind the sandbox: what was rendered, found again, ended with all that is theirs.

The program here stands in for vLLM, so that this takes seconds: it listens, has a child as vLLM has, and can be told to
end. What a real vLLM does is in `tests/vllm`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import EndpointSpec, Observed, Power, Presence, Secret, ServingSpec
from provisioners.sandbox import processes
from provisioners.sandbox.driver import SandboxDriver
from provisioners.serving.runtime import PLACES, Place, RevisionFacts, UnitFacts
from provisioners.serving.vllm import VLLM
from tests.conformance.specs import endpoint, namespace_boundary, unit, vm_boundary
from tests.sandbox_process import SandboxProcess, as_wanted, is_gone

TENANT = UUID("44444444-4444-4444-8444-444444444444")
KEY = "the-key-of-the-last-hop"
PROGRAM = """#!/usr/bin/env python3
import http.server, json, os, subprocess, sys
port = int(next(word for word in sys.argv if word.startswith("--port=")).partition("=")[2])
child = subprocess.Popen(["sleep", "3600"])
print("INFO 01-01 00:00:00 [model.py:1] Resolved architecture: Stub", flush=True)
if os.path.exists(os.path.join(os.environ["HF_HOME"], "broken")):
    print("ValueError: User-specified max_model_len (9) is greater than the derived max_model_len (len=8)", flush=True)
    os._exit(1)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = {"/health": "", "/version": '{"version": "0.32.0"}',
                "/metrics": 'vllm:cache_config_info{kv_cache_memory_bytes="1024",kv_cache_size_tokens="64"} 1.0\\n'}
        self.send_response(200 if self.path in text else 404)
        self.end_headers()
        self.wfile.write(text.get(self.path, "").encode())
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    program, home = tmp_path / "bin" / "vllm", tmp_path / "home"
    program.parent.mkdir()
    home.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    process = SandboxProcess(tmp_path, "--vllm", str(program), "--hf-home", str(home))
    yield process
    process.stop()
    assert list(model_processes(process)) == []


def serving(number: int = 1) -> tuple[ServingSpec, RevisionFacts]:
    facts = RevisionFacts(
        uid=uuid4(), number=number, endpoint="chat", source="tenantry/tiny", commit="a" * 40, quantisation="",
        arguments={"max_model_len": 1024}, hop_key=Secret(KEY),
    )  # fmt: skip
    made = VLLM.render(facts, UnitFacts(1, "1g.10gb", 16), next(iter(PLACES.values())))
    spec = ServingSpec(
        facts.uid, number, "chat", facts.source, facts.commit, "vllm", made.argv, made.environment, made.secrets
    )
    return spec, facts


def opened(sandbox: SandboxProcess, driver: SandboxDriver, *, in_vm: bool = False) -> tuple[EndpointSpec, Any]:
    boundary = vm_boundary(TENANT) if in_vm else namespace_boundary(TENANT)
    sandbox.wait_for(lambda: as_wanted(driver, boundary))
    serves, facts = serving()
    spec = replace(endpoint(boundary, unit(0, host="esx-a" if in_vm else "node-a")), serving=serves)
    return spec, (facts, boundary)


def models(sandbox: SandboxProcess, driver: SandboxDriver) -> list[dict[str, Any]]:
    address = driver._address
    found: list[dict[str, Any]] = sandbox.client.get(f"{address}/control/models").json()["models"]
    return found


def model_processes(sandbox: SandboxProcess) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and processes.mark_of(int(entry.name)) is not None:
            try:
                inside = (entry / "cwd").readlink().is_relative_to(sandbox.folder / "state" / "models")
            except OSError:
                continue
            if inside:
                yield int(entry.name)


def ready(sandbox: SandboxProcess, driver: SandboxDriver, spec: EndpointSpec) -> Observed:
    seen: Observed = sandbox.wait_for(lambda: as_wanted(driver, spec))
    return seen


@pytest.mark.slow
def test_a_replica_is_exactly_the_rendered_call_and_its_key_stands_in_no_list_of_processes(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(models="local")
    spec, (facts, _) = opened(sandbox, driver)

    seen = ready(sandbox, driver, spec)

    (record,) = models(sandbox, driver)
    argv = processes.argv_of(record["pid"])
    place = Place("127.0.0.1", record["port"])
    assert argv[2:] == VLLM.render(facts, UnitFacts(1, "1g.10gb", 16), place).argv[1:]
    assert seen.units[0].backend == f"http://127.0.0.1:{record['port']}/v1"
    environment = dict(
        pair.partition("=")[::2] for pair in Path(f"/proc/{record['pid']}/environ").read_text().split("\0") if pair
    )
    assert environment["VLLM_API_KEY"] == KEY
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "TENANTRY_SANDBOX_TOKEN" not in environment
    assert not any(KEY in " ".join(processes.argv_of(int(pid.name))) for pid in Path("/proc").glob("[0-9]*"))
    assert KEY.encode() not in b"".join(file.read_bytes() for file in (sandbox.folder / "state").glob("*.sqlite3*"))
    report = seen.units[0].engine
    assert report is not None
    assert (report.program, report.kv_cache_tokens, report.kv_cache_bytes) == ("vLLM 0.32.0", 64, 1024)
    assert "simulated" in report.runs_on
    assert seen.simulated is True
    driver.close()


@pytest.mark.slow
def test_it_outlives_the_server_is_found_again_and_leaves_with_its_endpoint(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(models="local")
    spec, (_, boundary) = opened(sandbox, driver)
    ready(sandbox, driver, spec)
    before = sorted(model_processes(sandbox))

    sandbox.kill()
    sandbox.start()
    again = ready(sandbox, driver, spec)

    assert sorted(model_processes(sandbox)) == before
    assert again.units[0].engine is not None
    sandbox.wait_for(lambda: is_gone(driver, spec))
    assert list(model_processes(sandbox)) == []
    assert list((sandbox.folder / "state" / "models").glob("*/*")) == []
    sandbox.wait_for(lambda: is_gone(driver, boundary))
    driver.close()


@pytest.mark.slow
def test_one_that_died_starts_again_without_what_was_left_of_it(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)
    ready(sandbox, driver, spec)
    (first,) = models(sandbox, driver)
    left = set(model_processes(sandbox)) - {first["pid"]}

    os.kill(first["pid"], signal.SIGKILL)
    sandbox.wait_for(lambda: not driver.observe(spec.ref).part("serving.replica[0]").ready)
    ready(sandbox, driver, spec)

    (second,) = models(sandbox, driver)
    assert second["pid"] != first["pid"]
    assert left.isdisjoint(model_processes(sandbox))
    driver.close()


@pytest.mark.slow
def test_one_whose_key_a_restart_has_forgotten_is_an_absent_part_and_a_new_step_starts_it(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)
    ready(sandbox, driver, spec)

    sandbox.kill()
    for pid in list(model_processes(sandbox)):
        os.kill(pid, signal.SIGKILL)
    sandbox.start()

    part = "serving.replica[0]"
    sandbox.wait_for(lambda: driver.observe(spec.ref).part(part).presence is Presence.ABSENT)
    assert driver.observe(spec.ref).units == ()
    assert list(driver.snapshot().uses) == []
    assert ready(sandbox, driver, spec).part(part).ready
    driver.close()


@pytest.mark.slow
@pytest.mark.parametrize("in_vm", [False, True], ids=["namespace", "vm"])
def test_one_that_was_lost_while_its_endpoint_goes_leaves_nothing(sandbox: SandboxProcess, *, in_vm: bool) -> None:
    driver = sandbox.estate(models="local", gateways="simulated")
    spec, (_, boundary) = opened(sandbox, driver, in_vm=in_vm)
    ready(sandbox, driver, spec)
    sandbox.kill()
    for pid in list(model_processes(sandbox)):
        os.kill(pid, signal.SIGKILL)
    sandbox.start()
    sandbox.wait_for(lambda: driver.observe(spec.ref).part("serving.replica[0]").presence is Presence.ABSENT)

    sandbox.wait_for(lambda: is_gone(driver, spec))
    sandbox.wait_for(lambda: is_gone(driver, boundary))

    assert sandbox.client.get(f"{driver._address}/control/leftovers").json()["leftovers"] == []
    assert list(driver.snapshot().uses) == []
    driver.close()


@pytest.mark.slow
def test_another_revision_takes_the_place_of_the_first_and_the_network_taken_away_hides_it(
    sandbox: SandboxProcess,
) -> None:
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)
    ready(sandbox, driver, spec)
    (first,) = models(sandbox, driver)

    newer = replace(spec, serving=serving(2)[0])
    sandbox.wait_for(lambda: as_wanted(driver, newer))

    (second,) = models(sandbox, driver)
    assert second["pid"] != first["pid"]
    assert processes.mark_of(first["pid"]) is None
    driver.isolate(spec.ref, cut_off=True)
    assert driver.observe(spec.ref).units[0].backend == ""
    driver.close()


@pytest.mark.slow
def test_in_a_machine_it_stops_with_the_machine_and_comes_back_with_it(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(models="local", gateways="simulated")
    spec, _ = opened(sandbox, driver, in_vm=True)
    ready(sandbox, driver, spec)

    driver.power(spec.ref, want=Power.OFF)
    sandbox.wait_for(lambda: not list(model_processes(sandbox)))
    driver.power(spec.ref, want=Power.ON)

    assert ready(sandbox, driver, spec).units[0].backend
    driver.close()


@pytest.mark.slow
def test_an_estate_that_is_removed_takes_its_model_servers_with_it(sandbox: SandboxProcess) -> None:
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)
    ready(sandbox, driver, spec)

    gone = sandbox.client.delete(driver._address, timeout=60)

    assert gone.status_code == 204
    assert list(model_processes(sandbox)) == []
    driver.close()


@pytest.mark.slow
def test_one_that_cannot_start_says_why_in_plain_words_and_runs_when_it_can(sandbox: SandboxProcess) -> None:
    (sandbox.folder / "home" / "broken").touch()
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)

    def message() -> str:
        as_wanted(driver, spec)
        return driver.observe(spec.ref).part("serving.replica[0]").message

    sandbox.wait_for(lambda: "the model takes a context of 8 tokens at most, and 9 were asked for" in message())
    assert any("max_model_len" in line.text for line in driver.logs(spec.ref, since="", tail=20))
    (sandbox.folder / "home" / "broken").unlink()

    assert ready(sandbox, driver, spec).units[0].backend
    driver.close()


@pytest.mark.slow
def test_a_sandbox_without_a_vllm_says_what_to_do(tmp_path: Path) -> None:
    sandbox = SandboxProcess(tmp_path)
    driver = sandbox.estate(models="local")
    spec, _ = opened(sandbox, driver)

    def message() -> str:
        as_wanted(driver, spec)
        return driver.observe(spec.ref).part("serving.replica[0]").message

    assert sandbox.wait_for(lambda: "make vllm" in message())
    driver.close()
    sandbox.stop()
