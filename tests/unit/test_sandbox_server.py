"""The sandbox's HTTP side: who may call, what a bad call gets, the stub's answers in vLLM's shape."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from provisioners.driver import DriverError, Secret, TransientDriverError
from provisioners.sandbox.driver import SandboxDriver, make
from tests.conformance.rigs import HttpRig, SandboxThread
from tests.conformance.specs import HOP_KEY, endpoint, finish, namespace_boundary, unit, vm_boundary

TENANT = UUID("55555555-5555-4555-8555-555555555555")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxThread]:
    made = SandboxThread(tmp_path_factory.mktemp("sandbox"))
    yield made
    made.close()


@pytest.fixture
def rig(server: SandboxThread) -> Iterator[HttpRig]:
    made = HttpRig(server)
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False) as made:
        yield made


def test_a_wrong_token_or_an_unknown_estate_is_transient_and_never_absence(server: SandboxThread) -> None:
    boundary = vm_boundary(TENANT)

    for token, estate in ((SandboxThread.TOKEN, "nothing-here"), ("wrong", "nothing-here")):
        driver = SandboxDriver(server.url, token=Secret(token), estate=estate)
        with pytest.raises(DriverError) as raised:
            driver.observe(boundary.ref)
        assert type(raised.value) is TransientDriverError
        driver.close()


def test_an_estate_that_may_be_made_is_made_when_it_is_first_asked_what_it_can_do(server: SandboxThread) -> None:
    config = {"url": server.url, "estate": "made-on-first-use", "make": "vsphere"}
    secrets = {"token": Secret(SandboxThread.TOKEN)}
    driver = make(config, secrets)
    with pytest.raises(TransientDriverError):
        driver.snapshot()

    able = driver.capabilities()
    shown = driver.snapshot()
    again = make({**config, "make": "kubernetes"}, secrets)
    again.capabilities()

    assert able.simulated
    assert [host.host for host in shown.hosts] == ["esx-a", "esx-b", "esx-c"]
    assert [host.host for host in again.snapshot().hosts] == ["esx-a", "esx-b", "esx-c"]  # one that is there stays
    driver.close()
    again.close()


def test_a_bad_control_call_changes_nothing_and_says_why(rig: HttpRig) -> None:
    base = f"{rig._url}/control"
    calls: list[tuple[str, str, Any]] = [
        ("PATCH", "settings", {"nonsense": 1}),
        ("PATCH", "settings", {"policy": "kind"}),
        ("PATCH", "settings", {"boot_s": -1}),
        ("POST", "faults", {"match": "observe", "effect": "explode"}),
        ("POST", "faults", {"match": "observe", "effect": "fail", "error": "odd"}),
        ("POST", "foreign-uses", {"name": "x"}),
        ("POST", "foreign-uses", {"name": "x", "host": "esx-a", "windows": [["esx-a-gpu-0", 3, "3g.40gb"]]}),
        ("POST", "gpus/none", {"healthy": False}),
        ("DELETE", "objects/none", None),
        ("PATCH", "settings", [1]),
    ]

    for method, path, body in calls:
        answer = rig._client.request(method, f"{base}/{path}", json=body)

        assert answer.status_code == 400, (method, path)
        assert answer.json()["detail"]
    assert rig._client.get(f"{base}/faults").json() == {"faults": []}
    assert rig._client.get(f"{base}/truth").json() == {"uses": []}


def test_without_the_token_only_health_answers(server: SandboxThread, rig: HttpRig, client: httpx.Client) -> None:
    assert client.get(f"{server.url}/healthz").json()["simulated"] is True
    for path in ("/estates", rig._url.removeprefix(server.url), f"{rig._url.removeprefix(server.url)}/snapshot"):
        assert client.get(server.url + path).status_code == 401
        assert client.get(server.url + path, headers={"Authorization": "Bearer nope"}).status_code == 401


def test_an_estate_is_made_once_and_a_bad_one_not_at_all(server: SandboxThread, rig: HttpRig) -> None:
    document = {"schema": "sandbox-estate/1", "hosts": []}

    assert rig._client.put(rig._url, json=document).status_code == 200
    assert len(rig.driver.snapshot().hosts) == 4
    for name, wrong in (("Bad_Name", document), ("other", {"hosts": []}), ("other", {**document, "hosts": [{}]})):
        assert rig._client.put(f"{server.url}/estates/{name}", json=wrong).status_code == 400
    assert "other" not in rig._client.get(f"{server.url}/estates").json()["estates"]


# --- the stub -------------------------------------------------------------------------------------


@pytest.fixture
def replica(rig: HttpRig, server: SandboxThread) -> str:
    """Return the base URL of a ready replica on slots 2 of node-a's first GPU."""
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0, start=2))
    finish(rig, boundary)
    return finish(rig, spec).units[0].backend.replace("http://127.0.0.1:0", server.url)


@pytest.fixture
def holder() -> Iterator[httpx.Client]:
    """A client that shows replicas the key that they want."""
    with httpx.Client(headers={"Authorization": f"Bearer {HOP_KEY}"}, trust_env=False) as found:
        yield found


CHAT = {"model": "chat", "messages": [{"role": "user", "content": "how are you"}]}


def test_a_chat_answer_says_where_it_ran_and_that_it_is_simulated(replica: str, holder: httpx.Client) -> None:
    answer = holder.post(f"{replica}/chat/completions", json=CHAT)

    body = answer.json()
    assert answer.headers["x-tenantry-simulated"] == "true"
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"].startswith("This answer is simulated by Tenantry")
    assert body["choices"][0]["message"]["content"].endswith("You wrote: how are you")
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["tenantry"]["host"], body["tenantry"]["revision"]) == ("node-a", 1)
    assert body["tenantry"]["slots"] == ["node-a-gpu-0 slots 2-2 (1g.10gb)"]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_carries_the_same_text_then_usage_then_done(replica: str, holder: httpx.Client, *, chat: bool) -> None:
    path = "chat/completions" if chat else "completions"
    asked = CHAT if chat else {"model": "chat", "prompt": "how are you"}
    whole = holder.post(f"{replica}/{path}", json=asked).json()

    streamed = holder.post(
        f"{replica}/{path}", json={**asked, "stream": True, "stream_options": {"include_usage": True}}
    )

    lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines[:-1]]
    choices = [event["choices"][0] for event in events if event["choices"]]
    text = "".join((choice["delta"].get("content") or "") if chat else choice["text"] for choice in choices)
    expected = whole["choices"][0]["message"]["content"] if chat else whole["choices"][0]["text"]
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    assert text == expected
    assert choices[-1]["finish_reason"] == "stop"
    assert events[-1]["usage"] == whole["usage"]
    assert len({event["id"] for event in events}) == 1


def test_max_tokens_ends_an_answer_with_reason_length(replica: str, holder: httpx.Client) -> None:
    body = holder.post(f"{replica}/chat/completions", json={**CHAT, "max_tokens": 3}).json()

    assert body["usage"]["completion_tokens"] == 3
    assert body["choices"][0]["finish_reason"] == "length"


def test_metrics_carry_vllms_names_and_count_what_was_answered(replica: str, holder: httpx.Client) -> None:
    base = replica.removesuffix("/v1")
    answer = holder.post(f"{replica}/chat/completions", json=CHAT).json()

    text = holder.get(f"{base}/metrics").text

    labels = '{engine="0",model_name="chat"}'
    generated = float(answer["usage"]["completion_tokens"])
    assert f"vllm:prompt_tokens_total{labels} 3.0" in text
    assert f"vllm:generation_tokens_total{labels} {generated}" in text
    assert f"vllm:num_requests_running{labels} 0.0" in text
    assert f"vllm:e2e_request_latency_seconds_count{labels} 1.0" in text
    assert f"vllm:inter_token_latency_seconds_count{labels} {generated - 1}" in text
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="chat"} 1.0' in text
    assert holder.get(f"{base}/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "chat/completions", {**CHAT, "model": "other"}, 404),
        ("POST", "chat/completions", {"model": "chat"}, 400),
        ("POST", "chat/completions", {**CHAT, "max_tokens": "many"}, 400),
        ("POST", "chat/completions", [], 400),
        ("POST", "completions", {"model": "chat", "prompt": 7}, 400),
        ("POST", "embeddings", {"model": "chat", "input": "x"}, 400),
        ("GET", "models/other", None, 404),
        ("GET", "models/chat", None, 200),
        ("GET", "nothing", None, 404),
    ],
)
def test_the_stub_answers_wrong_requests_in_openais_error_shape(
    replica: str, holder: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    answer = holder.request(method, f"{replica}/{path}", json=body)

    assert answer.status_code == status
    assert ("error" in answer.json()) is (status != 200)


def test_a_replica_answers_only_when_loaded_on_a_sound_gpu_and_not_cut_off(
    rig: HttpRig, server: SandboxThread, holder: httpx.Client
) -> None:
    rig.settings(load_s=5.0)
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    finish(rig, boundary)
    rig.driver.start(rig.driver.steps(spec)[0])
    rig.clock.tick(1)
    rig.driver.start(rig.driver.steps(spec)[1])
    rig.clock.tick(1)
    models = f"{rig._url}/replicas/{spec.units[0].uid}/v1/models"

    loading = holder.get(models)
    rig.clock.tick(10)
    ready = holder.get(models)
    rig.driver.isolate(boundary.ref, cut_off=True)
    cut_off = holder.get(models)
    rig.driver.isolate(boundary.ref, cut_off=False)
    rig.gpu_health("node-a-gpu-0", healthy=False)
    broken = holder.get(models)

    assert (loading.status_code, ready.status_code) == (503, 200)
    assert loading.json()["error"]["message"] == "the replica is loading its model (simulated)"
    assert (cut_off.status_code, broken.status_code) == (503, 503)


def test_a_replica_with_a_key_answers_those_who_show_it_and_keeps_no_plain_key(
    rig: HttpRig, server: SandboxThread, client: httpx.Client
) -> None:
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    finish(rig, boundary)
    address = finish(rig, spec).address.replace("http://127.0.0.1:0", server.url)
    base = f"{rig._url}/replicas/{spec.units[0].uid}"
    good = {"Authorization": f"Bearer {HOP_KEY}"}

    refused = [
        client.post(f"{base}/v1/chat/completions", json=CHAT),
        client.get(f"{base}/v1/models", headers={"Authorization": f"Bearer {HOP_KEY[:-1]}"}),
        client.get(f"{base}/v1/models", headers={"Authorization": f"Basic {HOP_KEY}"}),
    ]
    taken = [
        client.post(f"{base}/v1/chat/completions", json=CHAT, headers=good),
        client.get(f"{base}/v1/models", headers=good),
        client.get(f"{base}/health"),
        client.get(f"{base}/metrics"),
        client.post(f"{address}/chat/completions", json=CHAT),
    ]

    assert [(answer.status_code, answer.json()) for answer in refused] == [(401, {"error": "Unauthorized"})] * 3
    assert [answer.status_code for answer in taken] == [200] * 5
    assert HOP_KEY not in rig.stored()


def test_a_simulated_gateway_answers_for_its_boundary_and_says_so(
    rig: HttpRig, server: SandboxThread, client: httpx.Client
) -> None:
    boundary = namespace_boundary(TENANT)
    spec = endpoint(boundary, unit(0))
    finish(rig, boundary)
    address = finish(rig, spec).address.replace("http://127.0.0.1:0", server.url)

    answer = client.post(f"{address}/chat/completions", json=CHAT)

    assert answer.status_code == 200
    assert answer.headers["x-tenantry-gateway"] == "simulated"
    assert client.post(f"{address}/chat/completions", json={**CHAT, "model": "other"}).status_code == 503


def test_a_provider_that_hangs_costs_the_caller_its_deadline_and_no_more(server: SandboxThread, rig: HttpRig) -> None:
    estate = rig._url.rpartition("/")[2]
    driver = SandboxDriver(server.url, token=Secret(SandboxThread.TOKEN), estate=estate, deadline_s=0.2)
    boundary = vm_boundary(TENANT)
    rig.fault("start:folder.create", "hang", seconds=3.0, after_effect=True)

    with pytest.raises(TransientDriverError, match="no answer in time"):
        driver.start(driver.steps(boundary)[0])

    assert driver.observe(boundary.ref).exists
    driver.close()


def test_a_server_that_is_not_there_is_transient() -> None:
    driver = SandboxDriver("http://127.0.0.1:1", token=Secret("sesame"), estate="e", deadline_s=0.5)

    with pytest.raises(TransientDriverError, match="cannot be reached"):
        driver.snapshot()
    assert "sesame" not in repr(driver)
    driver.close()


@pytest.mark.slow
def test_a_slow_call_answers_late_and_holds_up_no_other(server: SandboxThread, rig: HttpRig) -> None:
    estate = rig._url.rpartition("/")[2]
    hasty = SandboxDriver(server.url, token=Secret(SandboxThread.TOKEN), estate=estate, deadline_s=0.2)
    rig.fault("capabilities", "slow", seconds=0.5, times=2)

    with pytest.raises(TransientDriverError, match="no answer in time"):
        hasty.capabilities()
    began = time.perf_counter()
    found = rig.driver.capabilities()

    assert found.simulated
    assert time.perf_counter() - began >= 0.5
    assert hasty.capabilities() == found
    hasty.close()
