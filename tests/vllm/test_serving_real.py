"""A real vLLM behind a real gateway: the official client unchanged, and not one route more than the list has."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from provisioners.gateway.paths import match
from provisioners.sandbox import processes
from provisioners.serving.runtime import Place, UnitFacts
from provisioners.serving.vllm import VERSION, VLLM
from tests.vllm.conftest import HOP_KEY, NAME, Served

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(600)]
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Where do you run?"}]


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.address, api_key=served.key, max_retries=0)


def direct(served: Served) -> str:
    """Where vLLM itself listens: what no caller reaches."""
    return f"http://127.0.0.1:{served.server['port']}"


# --- the official client ------------------------------------------------------------------------------


def test_a_chat_is_answered_by_the_real_thing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=16)

    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith(f"vllm-{VERSION}")
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 16


def test_a_chat_is_streamed_with_its_usage_when_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 16
    assert chunks[-1].choices == []


def test_a_completion_is_answered_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="This License", max_tokens=8, temperature=0)
    parts = list(client.completions.create(model=NAME, prompt="This License", max_tokens=8, temperature=0, stream=True))

    assert whole.choices[0].text == "".join(part.choices[0].text for part in parts if part.choices)


def test_models_are_the_endpoint_by_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_a_wrong_key_is_an_authentication_error(served: Served) -> None:
    stranger = openai.OpenAI(base_url=served.address, api_key="tnt_test_wrong", max_retries=0)

    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=NAME, messages=MESSAGES)


def test_a_key_without_the_scope_is_a_permission_error(served: Served) -> None:
    chat_only = openai.OpenAI(base_url=served.address, api_key=served.chat_only, max_retries=0)

    assert chat_only.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=1).choices
    with pytest.raises(openai.PermissionDeniedError):
        chat_only.completions.create(model=NAME, prompt="This License")


def test_what_the_model_refuses_is_a_bad_request_in_its_own_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="1024"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5000)


def test_a_model_without_embeddings_says_so_as_an_error_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
        client.embeddings.create(model=NAME, input="This License")


# --- a model that embeds --------------------------------------------------------------------------------


def test_a_model_that_embeds_gives_vectors_to_the_official_client(embedding: Served) -> None:
    client = openai.OpenAI(base_url=embedding.address, api_key=embedding.key, max_retries=0)
    texts = ["This License", "This License", "Something else"]

    answer = client.embeddings.create(model=NAME, input=texts)
    plain = client.embeddings.create(model=NAME, input="This License", encoding_format="float")

    vectors = [one.embedding for one in answer.data]
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {128}
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-2)
    assert vectors[0] != pytest.approx(vectors[2], abs=1e-2)
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-2)
    assert answer.usage.prompt_tokens > 0


def test_a_model_that_embeds_does_not_write_and_says_so_as_an_error_of_the_client(embedding: Served) -> None:
    client = openai.OpenAI(base_url=embedding.address, api_key=embedding.key, max_retries=0)

    with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
        client.chat.completions.create(model=NAME, messages=MESSAGES)


def test_its_own_routes_are_refused_as_well(embedding: Served) -> None:
    hidden = hidden_of(embedding)

    answers = {(method, path): asked(embedding, method, path) for method, path in hidden}

    assert {("POST", "/pooling"), ("POST", "/tokenize")} <= set(hidden)
    assert set(answers.values()) == {404}
    assert ("POST", "/v1/embeddings") in routes_of(embedding)


# --- keys ---------------------------------------------------------------------------------------------


def test_every_key_that_opens_nothing_is_refused_by_the_same_bytes(served: Served) -> None:
    shown = {"no key": {}, "no key at all": {"Authorization": "Bearer x"}}
    shown |= {kind: {"Authorization": f"Bearer {key}"} for kind, key in served.shut.items()}
    shown["wrong"] = {"Authorization": f"Bearer {served.key[:-1]}{'0' if served.key[-1] != '0' else '1'}"}
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 1}
    requests: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/chat/completions", body),
        ("POST", "/completions", {"model": NAME, "prompt": "This"}),
        ("POST", "/embeddings", {"model": NAME, "input": "This"}),
        ("GET", "/models", None),
        ("GET", f"/models/{NAME}", None),
    ]

    answers = {
        (kind, path): httpx.request(method, served.address + path, headers=headers, json=content)
        for kind, headers in shown.items()
        for method, path, content in requests
    }
    of_the_other = answers.pop(("foreign", "/models"))

    told = {
        (answer.status_code, answer.content, tuple(sorted(_lasting(answer).items()))) for answer in answers.values()
    }
    assert len(told) == 1
    assert {answer.status_code for answer in answers.values()} == {401}
    # Of the gateway that both endpoints stand behind, the other's key lists the other's models and nothing else.
    assert [model["id"] for model in of_the_other.json()["data"]] == ["other"]
    good = httpx.post(f"{served.address}/chat/completions", headers=authorised(served), json=body)
    assert good.status_code == 200


def _lasting(answer: httpx.Response) -> dict[str, str]:
    """Return the headers without what differs from answer to answer."""
    return {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id"}}


def authorised(served: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {served.key}"}


# --- routes -------------------------------------------------------------------------------------------


def asked(served: Served, method: str, target: str) -> int:
    """Return the status of a request whose target stands on the wire exactly as given."""
    gateway = urlsplit(served.address)
    connection = http.client.HTTPConnection(gateway.hostname or "", gateway.port, timeout=30)
    try:
        connection.request(method, target, body=b"{}", headers=authorised(served))
        return connection.getresponse().status
    finally:
        connection.close()


def routes_of(served: Served) -> set[tuple[str, str]]:
    """Return every (method, path) that the running vLLM has, by its own description and by its own log."""
    described = httpx.get(f"{direct(served)}/openapi.json").raise_for_status().json()["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    for path, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", served.log):
        found |= {(method.strip(), path) for method in methods.split(",")}
    # Mounted programs and web sockets have no methods; each is tried by those that could reach it.
    for path in re.findall(r"Route: (\S+), Endpoint: ", served.log):
        found |= {(method, path) for method in ("GET", "POST")}
    return found


def hidden_of(served: Served) -> list[tuple[str, str]]:
    """Return what the running vLLM has and the allow-list has not."""
    named = sorted((method, re.sub(r"\{\w+\}", "x", path)) for method, path in routes_of(served))
    return [(method, path) for method, path in named if match(method, path) is None]


def test_every_route_that_vllm_has_and_the_list_has_not_is_refused(served: Served) -> None:
    hidden = hidden_of(served)

    answers = {(method, path): asked(served, method, path) for method, path in hidden}

    assert len(hidden) > 25
    assert {("POST", "/invocations"), ("POST", "/tokenize"), ("POST", "/v1/responses")} <= set(hidden)
    assert set(answers.values()) == {404}


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../tokenize", "/v1/%2e%2e/tokenize", "//tokenize", "/tokenize/", "/tokenize?x=1", "/TOKENIZE",
        "/%74okenize", "/v1/models/../../tokenize", "/v1/chat/completions/../../../tokenize",
        "/v1/chat/completions/render",
        "/v1/models/x/../../load_lora_adapter", "http://127.0.0.1/tokenize", "/v1/chat/completions;/../../tokenize",
        "/v1\\..\\tokenize", "/v1/chat/completions%00/tokenize", "tokenize", "*",
    ],
)  # fmt: skip
def test_no_spelling_of_a_hidden_route_gets_through(served: Served, target: str) -> None:
    assert asked(served, "POST", target) in {400, 404}  # 400: no request at all


def test_what_the_list_shares_with_vllm_is_known(served: Served) -> None:
    shared = {(method, path) for method, path in routes_of(served) if match(method, path) is not None}

    assert shared == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),  # the gateway's own
    }


# --- the process --------------------------------------------------------------------------------------


def test_the_process_is_exactly_the_rendered_call(served: Served) -> None:
    argv = processes.argv_of(served.server["pid"])
    place = Place("127.0.0.1", served.server["port"])

    assert argv[2:] == VLLM.render(served.facts, UnitFacts(1, "1g.10gb", 16), place).argv[1:]


def test_no_key_stands_in_any_list_of_processes_nor_in_the_log(served: Served) -> None:
    lines = [" ".join(processes.argv_of(int(pid.name))) for pid in Path("/proc").glob("[0-9]*")]

    assert any("vllm" in line for line in lines)
    assert not any(secret in line for line in lines for secret in (HOP_KEY, served.key))
    assert HOP_KEY not in served.log


def test_vllm_alone_is_guarded_by_the_key_of_the_last_hop(served: Served) -> None:
    answers = [
        httpx.get(f"{direct(served)}/v1/models", headers=headers).status_code
        for headers in ({}, {"Authorization": f"Bearer {served.key}"}, {"Authorization": f"Bearer {HOP_KEY}"})
    ]

    assert answers == [401, 401, 200]


def test_it_says_what_it_made_room_for_and_that_its_gpu_is_simulated(served: Served) -> None:
    report = served.seen.units[0].engine

    assert report is not None
    assert report.program == f"vLLM {VERSION}"
    assert report.kv_cache_bytes == 2**30
    # two layers, two KV heads of 32, keys and values of two bytes: 512 bytes a token
    assert report.kv_cache_tokens == 2**30 // 512
    assert "simulated" in report.runs_on
